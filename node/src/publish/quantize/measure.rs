//! What quantising cost: the same text, read by the model before and after.
//!
//! Each model is run from its folder, group by group as if it came from a swarm, so one that does not fit
//! into memory is measured as well. One pass over each is enough.

use std::{
    collections::HashMap,
    fs,
    io::{self, Read, Seek, SeekFrom},
    ops::Range,
    path::{Path, PathBuf},
    sync::Arc,
};

use bytes::Bytes;
use futures::future::BoxFuture;
use surf_chunker::{Checkpoint, CutError, Options, Sink, open_regular, read_regular};
use surf_protocol::{Chunk, ChunkId, VerifiedRange, manifest::ChunkEntry};
use tokio::{runtime::Handle, task::spawn_blocking};

use crate::{
    api::Quality,
    config,
    engine::{self, Engine, EngineError, Files, Reading},
    journal::Journal,
    source::{ModelSource, SourceError, Urgency},
    weights::Streamed,
};

/// A page of plain English.
const TEXT: &str = include_str!("text.txt");

/// Bytes of a file that the engine reads whole.
const FILE_SIZE_MAX: u64 = 128 << 20;

/// Why it could not be measured.
#[derive(Debug, thiserror::Error)]
pub(super) enum MeasureError {
    #[error(transparent)]
    Engine(#[from] EngineError),
    #[error(transparent)]
    Cut(#[from] CutError),
    #[error("{path}: {cause}")]
    File { path: PathBuf, cause: io::Error },
    #[error("the models read the text as different tokens")]
    Incomparable,
    #[error("the node is stopping")]
    Stopped,
}

/// How far the model in the folder `after` is from that in `before`. Calls `halfway` when one has been read.
pub(super) async fn measure(
    before: &Path,
    after: &Path,
    config: &config::Engine,
    halfway: impl FnOnce(),
) -> Result<Quality, MeasureError> {
    let first = read(before, config).await?;
    halfway();
    let second = read(after, config).await?;
    Ok(Quality {
        tokens: first.tokens() as u64,
        kl_divergence: first.divergence(&second).ok_or(MeasureError::Incomparable)?,
        perplexity_before: first.perplexity(),
        perplexity: second.perplexity(),
    })
}

async fn read(folder: &Path, config: &config::Engine) -> Result<Reading, MeasureError> {
    Ok(load(folder, config).await?.exactly().read(TEXT).await?)
}

/// The model in `folder`, ready to run.
pub(super) async fn load(folder: &Path, config: &config::Engine) -> Result<Engine, MeasureError> {
    let dir = folder.to_owned();
    let opened = spawn_blocking(move || Ok::<_, MeasureError>((OnDisk::open(&dir)?, files(&dir)?)));
    let ((manifest, source), files) = opened.await.map_err(|_| MeasureError::Stopped)??;
    let (journal, config, runtime) = (Arc::new(Journal::default()), *config, Handle::current());
    let loading = spawn_blocking(move || {
        let memory = engine::shares(&files, &manifest, &config)?.weights;
        let weights =
            Streamed::new(Arc::new(manifest), Arc::new(source), memory, runtime, Arc::clone(&journal));
        Engine::load(&files, Arc::new(weights), &config, journal)
    });
    Ok(loading.await.map_err(|_| MeasureError::Stopped)??)
}

/// The files in `folder` that the engine reads.
fn files(folder: &Path) -> Result<Files, MeasureError> {
    let mut files = Files::default();
    for name in Files::WANTED {
        let path = folder.join(name);
        match fs::metadata(&path) {
            Ok(metadata) if metadata.len() <= FILE_SIZE_MAX => {
                let bytes =
                    read_regular(&path, FILE_SIZE_MAX).map_err(|cause| MeasureError::File { path, cause })?;
                files.0.insert(name.to_owned(), bytes.into());
            }
            _ => (),
        }
    }
    Ok(files)
}

/// The chunks of a model where they lie in the files of its folder.
#[derive(Debug)]
struct OnDisk {
    files: Vec<PathBuf>,
    /// The file of each chunk, and where in it the chunk begins.
    places: HashMap<ChunkId, (usize, u64)>,
}

impl OnDisk {
    fn open(folder: &Path) -> Result<(Checkpoint, Self), CutError> {
        let manifest = surf_chunker::open(folder, &Options { follow_links: true }, &Nobody)?;
        let mut places = HashMap::new();
        for (at, file) in manifest.files().iter().enumerate() {
            let mut end = 0;
            for chunk in &file.chunks {
                places.entry(chunk.id).or_insert((at, end));
                end += u64::from(chunk.size);
            }
        }
        let files = manifest.files().iter().map(|file| folder.join(&file.path)).collect();
        Ok((manifest, Self { files, places }))
    }

    async fn read(&self, chunk: ChunkEntry) -> Result<Chunk, SourceError> {
        let (file, offset) = *self.places.get(&chunk.id).ok_or(SourceError::Missing(chunk.id))?;
        let path = self.files[file].clone();
        let reading = spawn_blocking(move || {
            let failed = |error: io::Error| SourceError::failed(path.display(), error);
            let mut file = open_regular(&path).map_err(failed)?;
            file.seek(SeekFrom::Start(offset)).map_err(failed)?;
            let mut bytes = vec![0; chunk.size as usize];
            file.read_exact(&mut bytes).map_err(failed)?;
            Chunk::verify(chunk.id, Bytes::from(bytes))
                .map_err(|error| SourceError::failed(path.display(), error))
        });
        reading.await.map_err(|error| SourceError::failed("disk", error))?
    }
}

impl ModelSource for OnDisk {
    fn chunk(&self, chunk: ChunkEntry, _: Urgency) -> BoxFuture<'_, Result<Chunk, SourceError>> {
        Box::pin(self.read(chunk))
    }

    fn chunk_in_place(&self, chunk: ChunkEntry, _: Urgency) -> BoxFuture<'_, Result<Chunk, SourceError>> {
        Box::pin(self.read(chunk))
    }

    fn range(
        &self,
        chunk: ChunkEntry,
        range: Range<u32>,
    ) -> BoxFuture<'_, Result<VerifiedRange, SourceError>> {
        Box::pin(async move {
            let whole = self.read(chunk).await?;
            VerifiedRange::of(&whole, range).map_err(|error| SourceError::failed("disk", error))
        })
    }
}

/// Nobody keeps the chunks.
struct Nobody;

impl Sink for Nobody {
    fn chunk(&self, _: &Chunk, _: &Path, _: u64) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        Ok(())
    }
}

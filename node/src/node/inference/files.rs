//! The small files of a model, as the engine wants them.

use std::{io, ops::Range, sync::Arc};

use bytes::{Bytes, BytesMut};
use surf_chunker::{Checkpoint, Families};
use surf_protocol::Manifest;
use tokio::{runtime::Handle, task::spawn_blocking};

use crate::{
    config,
    engine::{self, Files},
    node::NodeError,
    source::{ModelSource, Urgency},
};

/// Bytes of a file that the engine reads whole: tokenizer, templates, metadata. The largest tokenizers have
/// some 35 MB.
const FILE_SIZE_MAX: u64 = 64 << 20;

/// Bytes of a file that only configures something. It becomes some sixteen times as much in memory.
const CONFIG_SIZE_MAX: u64 = 4 << 20;

/// Chat templates with names that are read. Models have two or three.
const TEMPLATES_MAX: usize = 16;

/// Files that may be larger than those.
const LARGE: [&str; 4] = ["tokenizer.json", "vocab.txt", "vocab.json", "merges.txt"];

/// Bytes of those, whatever the vocabulary is, and for each of its tokens: a token and how it is merged take 130
/// bytes in the files of models that are in use. What such a file becomes in memory grows with it.
const VOCABULARY_SIZE: u64 = 2 << 20;
const TOKEN_SIZE: u64 = 256;

/// Bytes of all chat templates with names together.
const TEMPLATES_SIZE_MAX: u64 = 4 << 20;

/// What of `manifest` is loaded, told from files that `source` has.
pub(super) async fn checkpoint(
    source: &Arc<dyn ModelSource>,
    manifest: Arc<Manifest>,
) -> Result<Checkpoint, NodeError> {
    let files =
        Remote { source: Arc::clone(source), manifest: Arc::clone(&manifest), runtime: Handle::current() };
    let read = spawn_blocking(move || Checkpoint::read(manifest, &Families::default(), &files)).await;
    read.map_err(|error| NodeError::Failed(error.to_string()))?.map_err(|error| match error.downcast() {
        Ok(error) => error,
        Err(error) => NodeError::Failed(error.to_string()),
    })
}

/// The files of a model, which a source has.
struct Remote {
    source: Arc<dyn ModelSource>,
    manifest: Arc<Manifest>,
    runtime: Handle,
}

impl surf_chunker::Files for Remote {
    fn read(&self, file: u32, range: Range<u64>) -> io::Result<Vec<u8>> {
        let bytes = self.runtime.block_on(bytes_of(&*self.source, &self.manifest, file, range));
        Ok(bytes.map_err(io::Error::other)?.into())
    }
}

/// What the engine reads of a model.
///
/// How large a vocabulary may be is told by the configuration, which is read first.
pub(super) async fn all(
    source: &dyn ModelSource,
    checkpoint: &Arc<Checkpoint>,
    config: &config::Engine,
) -> Result<Files, NodeError> {
    let manifest = checkpoint.manifest();
    let mut files = Files::default();
    for name in Files::WANTED.into_iter().filter(|name| !LARGE.contains(name)) {
        if let Some(bytes) = read(source, manifest, name, CONFIG_SIZE_MAX).await? {
            files.0.insert(name.to_owned(), bytes);
        }
    }
    let paths = manifest.files().iter().map(|file| file.path.as_str());
    let mut room = TEMPLATES_SIZE_MAX;
    for name in paths.filter(|path| Files::is_template(path)).take(TEMPLATES_MAX) {
        if let Some(bytes) = read(source, manifest, name, room).await? {
            room -= bytes.len() as u64;
            files.0.insert(name.to_owned(), bytes);
        }
    }
    files = with_gguf(source, checkpoint, files).await?;
    let vocabulary = engine::vocabulary(&files, checkpoint, config)?;
    let most = vocabulary_size_max(vocabulary as u64);
    for name in Files::WANTED.into_iter().filter(|name| LARGE.contains(name)) {
        if let Some(bytes) = read(source, manifest, name, most).await? {
            files.0.insert(name.to_owned(), bytes);
        }
    }
    for name in files.named() {
        let most = if LARGE.contains(&&*name) { most } else { CONFIG_SIZE_MAX };
        if let Some(bytes) = read(source, manifest, &name, most).await? {
            files.0.insert(name, bytes);
        }
    }
    Ok(files)
}

/// Bytes of a file that has a vocabulary of so many tokens.
fn vocabulary_size_max(tokens: u64) -> u64 {
    (VOCABULARY_SIZE + tokens.saturating_mul(TOKEN_SIZE)).min(FILE_SIZE_MAX)
}

/// `files` with what a GGUF file says about the model, if it is in one.
async fn with_gguf(
    source: &dyn ModelSource,
    checkpoint: &Arc<Checkpoint>,
    mut files: Files,
) -> Result<Files, NodeError> {
    let manifest = checkpoint.manifest();
    let Some(wanted) = Files::wanted_of_gguf(checkpoint) else { return Ok(files) };
    let most = vocabulary_size_max(wanted.vocabulary);
    if most < wanted.head {
        let why = format!("the metadata of {} has {} bytes; {most} are read", manifest.id(), wanted.head);
        return Err(NodeError::Invalid(why));
    }
    let head = bytes_of(source, manifest, wanted.file, 0..wanted.head).await?;
    let mut tensors = Vec::new();
    for name in wanted.tensors {
        if let Some(tensor) = checkpoint.tensor(&name) {
            let range = tensor.offset..tensor.offset + tensor.size;
            tensors.push((name, bytes_of(source, manifest, tensor.file, range).await?.to_vec()));
        }
    }
    let checkpoint = Arc::clone(checkpoint);
    // A vocabulary takes a while to read.
    let adding = spawn_blocking(move || {
        files.add_gguf(&checkpoint, wanted.file, &head, &tensors)?;
        Ok(files)
    });
    adding.await.map_err(|error| NodeError::Failed(error.to_string()))?
}

/// Some bytes of the file at position `file`.
async fn bytes_of(
    source: &dyn ModelSource,
    manifest: &Manifest,
    file: u32,
    range: Range<u64>,
) -> Result<Bytes, NodeError> {
    let mut bytes = BytesMut::with_capacity((range.end - range.start).min(FILE_SIZE_MAX) as usize);
    for piece in manifest.pieces(file, range) {
        let chunk = source.chunk(piece.chunk, Urgency::Deadline(0)).await?;
        bytes.extend_from_slice(&chunk.bytes()[piece.range.start as usize..piece.range.end as usize]);
    }
    Ok(bytes.freeze())
}

/// A file of the model of at most `most` bytes, whole, if the model has it.
async fn read(
    source: &dyn ModelSource,
    manifest: &Manifest,
    name: &str,
    most: u64,
) -> Result<Option<Bytes>, NodeError> {
    let Some(file) = manifest.file(name) else { return Ok(None) };
    if most < file.size {
        let why = format!("{name} of {} has {} bytes; {most} are read", manifest.id(), file.size);
        return Err(NodeError::Invalid(why));
    }
    let mut bytes = BytesMut::with_capacity(file.size as usize);
    for &chunk in &file.chunks {
        bytes.extend_from_slice(source.chunk(chunk, Urgency::Deadline(0)).await?.bytes());
    }
    Ok(Some(bytes.freeze()))
}

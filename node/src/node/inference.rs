//! One model at a time, ready to run.
//!
//! The memory budget belongs to whoever runs, so another model is loaded only when nobody uses the
//! one that is: a request for it waits a while for that, and is told that the node is busy after.

use std::{
    ops::Range,
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use surf_protocol::{Manifest, ModelId};
use tokio::{
    sync::mpsc,
    time::{Instant, sleep},
};

use super::{Node, NodeError};
use crate::{
    api::{CacheStats, Checked, GroupCache, LoadedModel},
    engine::{self, Engine, Files},
    publish::announcer::Wanting,
    source::{ModelSource, Urgency},
    store::Lease,
    weights::Streamed,
};

/// How long a request waits for another model to be done with.
const SWITCH_WAIT: Duration = Duration::from_secs(60);

/// How often it looks whether that is the case.
const SWITCH_LOOK: Duration = Duration::from_millis(50);

/// Bytes of a file that the engine reads whole: configuration, tokenizer, templates. The largest
/// tokenizers have some 35 MB.
const FILE_SIZE_MAX: u64 = 128 << 20;

/// The model that is ready to run, if one is.
#[derive(Debug, Default)]
pub(super) struct Slot {
    /// Held while a model is loaded, so that two requests do not load two.
    loading: tokio::sync::Mutex<()>,
    loaded: Mutex<Option<Arc<Loaded>>>,
}

#[derive(Debug)]
struct Loaded {
    id: ModelId,
    engine: Engine,
    weights: Arc<Streamed>,
    memory: u64,
    /// Chunks in use are not evicted.
    _lease: Lease,
    /// And others who want them know us.
    _wanting: Wanting,
}

/// A generation under way: its events, and the model that must stay as long as they come.
#[derive(Debug)]
pub struct Generation {
    events: mpsc::Receiver<engine::Event>,
    loaded: Arc<Loaded>,
}

impl Generation {
    /// The next event. `None` after the last.
    pub async fn next(&mut self) -> Option<engine::Event> {
        self.events.recv().await
    }

    /// The text of one token, special ones too.
    pub fn token_text(&self, id: u32) -> String {
        self.loaded.engine.token_text(id)
    }

    /// What of the weights was in memory, so far.
    pub fn cache(&self) -> CacheStats {
        self.loaded.cache()
    }
}

impl Node {
    /// Continues a prompt.
    pub async fn generate(&self, model: &str, request: engine::Request) -> Result<Generation, NodeError> {
        let loaded = self.loaded(model).await?;
        let events = loaded.engine.generate(request)?;
        Ok(Generation { events, loaded })
    }

    /// What the model makes of every position of each of `rows`.
    pub async fn forward(
        &self,
        model: &str,
        rows: Vec<engine::Row>,
    ) -> Result<Vec<engine::Output>, NodeError> {
        let loaded = self.loaded(model).await?;
        Ok(loaded.engine.forward(rows).await?)
    }

    /// Each of `texts` as a vector.
    pub async fn embed(&self, model: &str, texts: &[engine::Prompt]) -> Result<engine::Embedded, NodeError> {
        let loaded = self.loaded(model).await?;
        Ok(loaded.engine.embed(texts).await?)
    }

    /// Runs recorded inputs and compares with the recorded outputs, a safetensors file.
    pub async fn check(&self, model: &str, expected: Bytes, tolerance: f64) -> Result<Checked, NodeError> {
        let loaded = self.loaded(model).await?;
        let checked = loaded.engine.check(&expected, tolerance as f32).await?;
        Ok(Checked {
            model: loaded.id.to_string(),
            compared: checked.compared as u64,
            max_abs_err: checked.max_abs_err.into(),
            max_rel_err: checked.max_rel_err.into(),
            argmax_agree: checked.argmax_agree,
            greedy_agree: checked.greedy_agree,
            pass: checked.pass,
        })
    }

    /// Frees the memory of `model`, if it is loaded and nobody uses it.
    pub(super) async fn unload(&self, model: ModelId) -> Result<(), NodeError> {
        let _loading = self.parts.loaded.loading.lock().await;
        match self.parts.loaded.current() {
            Some(loaded) if loaded.id == model => self.parts.loaded.empty(loaded).await,
            _ => Ok(()),
        }
    }

    async fn loaded(&self, model: &str) -> Result<Arc<Loaded>, NodeError> {
        let manifest = self.manifest(model).await?;
        let slot = &self.parts.loaded;
        let _loading = slot.loading.lock().await;
        match slot.current() {
            Some(loaded) if loaded.id == manifest.id() => return Ok(loaded),
            Some(other) => slot.empty(other).await?,
            None => (),
        }
        let loaded = Arc::new(self.load(manifest).await?);
        *slot.loaded.lock().expect("no panics while held") = Some(Arc::clone(&loaded));
        Ok(loaded)
    }

    async fn load(&self, manifest: Arc<Manifest>) -> Result<Loaded, NodeError> {
        let wanting = self.parts.wanted.want(manifest.id());
        let lease = self.parts.store.lease(manifest.chunks().iter().map(|chunk| chunk.id));
        let source: Arc<dyn ModelSource> = Arc::new(self.parts.fetcher.model(Arc::clone(&manifest)));
        let mut files = Files::default();
        for name in Files::WANTED {
            if let Some(bytes) = read(&*source, &manifest, name).await? {
                files.0.insert(name.to_owned(), bytes);
            }
        }
        add_gguf(&*source, &manifest, &mut files).await?;
        for name in files.named() {
            if let Some(bytes) = read(&*source, &manifest, &name).await? {
                files.0.insert(name, bytes);
            }
        }
        let config = self.parts.config.engine;
        let runtime = tokio::runtime::Handle::current();
        let journal = Arc::clone(&self.parts.journal);
        let id = manifest.id();
        // What is not streamed passes through, to where the engine keeps it.
        let memory = if engine::is_whole(&files) { 0 } else { config.memory };
        let weights = Streamed::new(manifest, source, memory, runtime, Arc::clone(&journal));
        let weights = Arc::new(weights);
        let loading = tokio::task::spawn_blocking({
            let weights = Arc::clone(&weights);
            move || Engine::load(&files, weights, &config, journal)
        });
        let engine = loading.await.map_err(|error| NodeError::Failed(error.to_string()))??;
        Ok(Loaded { id, engine, weights, memory: config.memory, _lease: lease, _wanting: wanting })
    }
}

impl Slot {
    /// What is loaded, in the words of the API.
    pub(super) fn view(&self) -> Option<LoadedModel> {
        let loaded = self.current()?;
        let stats = loaded.weights.stats();
        Some(LoadedModel {
            model: loaded.id.to_string(),
            device: loaded.engine.device().to_owned(),
            memory: loaded.memory,
            resident_groups: stats.groups.iter().filter(|group| group.resident).count(),
            groups: stats.groups.len(),
            // The slot and this function hold it too.
            active: Arc::strong_count(&loaded).saturating_sub(2),
            passes: stats.passes,
        })
    }

    fn current(&self) -> Option<Arc<Loaded>> {
        self.loaded.lock().expect("no panics while held").clone()
    }

    /// Waits until nobody uses `loaded`, and drops it. Callers hold `loading`.
    async fn empty(&self, mut loaded: Arc<Loaded>) -> Result<(), NodeError> {
        *self.loaded.lock().expect("no panics while held") = None;
        let deadline = Instant::now() + SWITCH_WAIT;
        loop {
            match Arc::try_unwrap(loaded) {
                Ok(unused) => {
                    drop(unused);
                    return Ok(());
                }
                Err(used) if deadline < Instant::now() => {
                    let busy = format!("the node is running {}; try again later", used.id);
                    *self.loaded.lock().expect("no panics while held") = Some(used);
                    return Err(NodeError::Busy(busy));
                }
                Err(used) => loaded = used,
            }
            sleep(SWITCH_LOOK).await;
        }
    }
}

impl Loaded {
    fn cache(&self) -> CacheStats {
        let stats = self.weights.stats();
        let per_group: Vec<GroupCache> = stats
            .groups
            .iter()
            .map(|group| GroupCache {
                group: group.group.clone(),
                hits: group.hits,
                ready: group.ready,
                misses: group.misses,
                bytes: group.bytes,
            })
            .collect();
        CacheStats {
            passes: stats.passes,
            hits: per_group.iter().map(|group| group.hits).sum(),
            ready: per_group.iter().map(|group| group.ready).sum(),
            misses: per_group.iter().map(|group| group.misses).sum(),
            per_group,
            resident_bytes: stats.resident_bytes,
        }
    }
}

/// What a GGUF file says about the model, if it is in one.
async fn add_gguf(source: &dyn ModelSource, manifest: &Manifest, files: &mut Files) -> Result<(), NodeError> {
    let Some(wanted) = Files::wanted_of_gguf(manifest) else { return Ok(()) };
    if FILE_SIZE_MAX < wanted.head {
        let why =
            format!("the metadata of {} has {} bytes; {FILE_SIZE_MAX} are read", manifest.id(), wanted.head);
        return Err(NodeError::Invalid(why));
    }
    let head = bytes_of(source, manifest, wanted.file, 0..wanted.head).await?;
    let mut tensors = Vec::new();
    for name in wanted.tensors {
        if let Some(tensor) = manifest.tensor(&name) {
            let range = tensor.offset..tensor.offset + tensor.size;
            tensors.push((name, bytes_of(source, manifest, tensor.file, range).await?.to_vec()));
        }
    }
    Ok(files.add_gguf(manifest, wanted.file, &head, &tensors)?)
}

/// Some bytes of the file at position `file`.
async fn bytes_of(
    source: &dyn ModelSource,
    manifest: &Manifest,
    file: u32,
    range: Range<u64>,
) -> Result<Bytes, NodeError> {
    let mut bytes = BytesMut::new();
    for piece in manifest.pieces(file, range) {
        let chunk = source.chunk(piece.chunk, Urgency::Deadline(0)).await?;
        bytes.extend_from_slice(&chunk.bytes()[piece.range.start as usize..piece.range.end as usize]);
    }
    Ok(bytes.freeze())
}

/// A small file of the model, whole, if the model has it.
async fn read(source: &dyn ModelSource, manifest: &Manifest, name: &str) -> Result<Option<Bytes>, NodeError> {
    let Some(file) = manifest.file(name) else { return Ok(None) };
    if FILE_SIZE_MAX < file.size {
        let why = format!("{name} of {} has {} bytes; {FILE_SIZE_MAX} are read", manifest.id(), file.size);
        return Err(NodeError::Invalid(why));
    }
    let mut bytes = BytesMut::new();
    for &chunk in &file.chunks {
        bytes.extend_from_slice(source.chunk(chunk, Urgency::Deadline(0)).await?.bytes());
    }
    Ok(Some(bytes.freeze()))
}

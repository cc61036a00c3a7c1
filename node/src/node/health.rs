//! Whether the node can serve, and which of its models can run.

use std::{collections::HashMap, io, ops::Range, sync::Arc};

use bytes::{Bytes, BytesMut};
use surf_chunker::{Checkpoint, Families};
use surf_protocol::{Manifest, ModelId};
use tokio::{runtime::Handle, task::spawn_blocking};

use super::Node;
use crate::{
    api::Health,
    engine::{self, Files},
    source::Library,
};

/// Bytes of a configuration that is looked at to tell whether a model can run. Real ones have a few thousand.
const CONFIG_SIZE_MAX: u64 = 1 << 20;

/// The same for the metadata of a GGUF file, which hold the tokenizer.
const HEAD_SIZE_MAX: u64 = 32 << 20;

/// Whether models can run, by id. A model never changes, so each is looked at once.
pub(super) type Verdicts = std::sync::Mutex<HashMap<ModelId, Result<(), String>>>;

/// The files of a model, as far as they are on this node.
struct Here {
    node: Node,
    manifest: Arc<Manifest>,
    runtime: Handle,
}

impl surf_chunker::Files for Here {
    fn read(&self, file: u32, range: Range<u64>) -> io::Result<Vec<u8>> {
        let bytes = self.runtime.block_on(self.node.here_of(&self.manifest, file, range));
        bytes.map(Into::into).ok_or(io::ErrorKind::NotFound.into())
    }
}

impl Node {
    /// How the node is. Not well is only what a restart or another node would cure: having no peers is
    /// neither.
    pub async fn health(&self) -> Vec<Health> {
        let store = self.parts.store.clone();
        let writable = spawn_blocking(move || store.writable()).await;
        let writable = writable.unwrap_or_else(|_| Err("it could not be looked at".to_owned()));
        let running = match self.parts.announcing.is_finished() || self.parts.swarm.is_closed() {
            true => Err("it has stopped".to_owned()),
            false => Ok(format!("{} peers", self.parts.swarm.connected())),
        };
        vec![Health { part: "store", state: writable }, Health { part: "control plane", state: running }]
    }

    /// Whether a model whose manifest is here can run, as far as what is here tells; if not, why not.
    pub(super) async fn verdict(&self, model: ModelId) -> Result<(), String> {
        if let Some(known) = self.verdicts().get(&model) {
            return known.clone();
        }
        let Some(manifest) = self.parts.store.manifest_of(model) else {
            return Err("the model is not on this node".to_owned());
        };
        let Some(verdict) = self.look_at(&manifest).await else { return Ok(()) };
        let here: Vec<ModelId> = self.parts.store.manifests().iter().map(|manifest| manifest.id()).collect();
        let mut verdicts = self.verdicts();
        verdicts.retain(|model, _| here.contains(model));
        verdicts.insert(model, verdict.clone());
        verdict
    }

    fn verdicts(&self) -> std::sync::MutexGuard<'_, HashMap<ModelId, Result<(), String>>> {
        self.parts.verdicts.lock().expect("no panics while held")
    }

    /// `None`: what tells is not here yet.
    async fn look_at(&self, manifest: &Arc<Manifest>) -> Option<Result<(), String>> {
        const CONFIG: &str = "config.json";
        let mut files = Files::default();
        let mut gguf = None;
        if let Some(at) = manifest.files().iter().position(|file| file.path == CONFIG) {
            let size = manifest.files()[at].size;
            if CONFIG_SIZE_MAX < size {
                return Some(Err(format!("its {CONFIG} has {size} bytes")));
            }
            let bytes = self.here_of(manifest, at as u32, 0..size).await?;
            files.0.insert(CONFIG.to_owned(), bytes);
        }
        let checkpoint = self.checkpoint_here(manifest).await?;
        if let Some(wanted) = Files::wanted_of_gguf(&checkpoint).filter(|wanted| wanted.head <= HEAD_SIZE_MAX)
        {
            let head = self.here_of(manifest, wanted.file, 0..wanted.head).await?;
            let mut tensors = Vec::new();
            for name in wanted.tensors {
                if let Some(tensor) = checkpoint.tensor(&name) {
                    let range = tensor.offset..tensor.offset + tensor.size;
                    tensors.push((name, self.here_of(manifest, tensor.file, range).await?.to_vec()));
                }
            }
            gguf = Some((wanted.file, head, tensors));
        }
        let config = self.parts.config.engine;
        let looking = spawn_blocking(move || {
            if let Some((file, head, tensors)) = gguf {
                files.add_gguf(&checkpoint, file, &head, &tensors)?;
            }
            engine::shares(&files, &checkpoint, &config).map(drop)
        });
        Some(looking.await.ok()?.map_err(|error| error.to_string()))
    }

    /// What of `manifest` is loaded, if what tells is here.
    async fn checkpoint_here(&self, manifest: &Arc<Manifest>) -> Option<Checkpoint> {
        let manifest = Arc::clone(manifest);
        let here = Here { node: self.clone(), manifest: Arc::clone(&manifest), runtime: Handle::current() };
        let reading = move || Checkpoint::read(manifest, &Families::default(), &here);
        spawn_blocking(reading).await.ok()?.ok()
    }

    /// Some bytes of the file at position `file`, if they are all here.
    async fn here_of(&self, manifest: &Manifest, file: u32, range: Range<u64>) -> Option<Bytes> {
        let mut bytes = BytesMut::new();
        for piece in manifest.pieces(file, range) {
            let chunk = self.parts.store.serve(piece.chunk.id).await.ok()??;
            bytes.extend_from_slice(chunk.get(piece.range.start as usize..piece.range.end as usize)?);
        }
        Some(bytes.freeze())
    }
}

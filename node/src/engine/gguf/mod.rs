//! Models in GGUF files: their metadata as the files that other models come with, and their tensors
//! under the names that other models have.
//!
//! So the rest of the engine knows nothing of GGUF: a configuration is read from `config.json`, a
//! tokenizer from `tokenizer.json`, whoever wrote them. Where a folder has both, `config.json` is made
//! from the metadata in any case, because the tensors are as the metadata says; every other file that
//! the folder has stays as it is, and only what is missing is made.

mod config;
mod pieces;
mod splits;
mod tokenizer;

#[cfg(test)]
mod tests;

use surf_chunker::Checkpoint;
use surf_chunker::gguf::Metadata;
use surf_protocol::Dtype;

use self::{config::About, tokenizer::Vocabulary};
use super::{EngineError, files::Files};

pub(crate) use splits::QWEN2;
pub(crate) use surf_chunker::families::under_either_name as find;

/// A tensor that every model has, and no other format calls like this.
const EMBEDDING: &str = "token_embd.weight";

/// Factors of rotary speeds, which are not metadata but tensors: for all sequences, for those within
/// the original context, and for longer ones.
const FACTORS: [&str; 3] = ["rope_freqs.weight", "rope_factors_short.weight", "rope_factors_long.weight"];

/// Bytes of such a tensor, at most: far more pairs than a head has.
const FACTORS_SIZE_MAX: u64 = 64 << 10;

/// Files that one model may be split into. Names have room for five digits.
const PARTS_MAX: u64 = 99_999;

/// What is wrong with the metadata: a key, and what it is.
type Fault = String;

/// The name under which `is_there` has the tensor that an architecture calls `name`.
pub(crate) fn stored_name(name: &str, is_there: impl Fn(&str) -> bool) -> String {
    find(name, |name| is_there(name).then(|| name.to_owned())).unwrap_or_else(|| name.to_owned())
}

/// What to read of a model's GGUF file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// Position of the file in the manifest.
    pub file: u32,
    /// Bytes from its beginning on that hold its metadata.
    pub head: u64,
    /// Tokens of its vocabulary, as many as its embedding has rows.
    pub vocabulary: u64,
    /// Small tensors that say something about the model.
    pub tensors: Vec<String>,
}

impl Files {
    /// What to read of the GGUF file that `manifest` lists the tensors of, if it does.
    pub fn wanted_of_gguf(manifest: &Checkpoint) -> Option<Wanted> {
        let embedding = manifest.tensor(EMBEDDING)?;
        let path = &manifest.files()[embedding.file as usize].path;
        // Of several files, the first holds all metadata.
        let first = parted(path).map(|(stem, total)| part(stem, 1, total));
        let path = first.filter(|first| manifest.file(first).is_some()).unwrap_or(path.clone());
        let file = manifest.files().iter().position(|file| file.path == path)?;
        let inside = manifest.tensors().iter().filter(|tensor| tensor.file as usize == file);
        let head = inside.map(|tensor| tensor.offset).min().unwrap_or(manifest.files()[file].size);
        let small = |name: &&&str| {
            let tensor = manifest.tensor(name);
            tensor.is_some_and(|tensor| tensor.dtype == Dtype::F32 && tensor.size <= FACTORS_SIZE_MAX)
        };
        let tensors = FACTORS.iter().filter(small).map(|name| (*name).to_owned()).collect();
        let vocabulary = embedding.shape.first().copied().unwrap_or(0);
        Some(Wanted { file: file as u32, head, vocabulary, tensors })
    }

    /// Adds what the GGUF file at position `file` says, of which `head` and `tensors` are the bytes that
    /// were wanted: the configuration in any case, and what else is missing.
    pub fn add_gguf(
        &mut self,
        manifest: &Checkpoint,
        file: u32,
        head: &[u8],
        tensors: &[(String, Vec<u8>)],
    ) -> Result<(), EngineError> {
        let path = manifest.files().get(file as usize).map_or("the GGUF file", |file| file.path.as_str());
        self.translate(manifest, path, head, tensors).map_err(|fault| EngineError::file(path, fault))
    }

    fn translate(
        &mut self,
        manifest: &Checkpoint,
        path: &str,
        head: &[u8],
        tensors: &[(String, Vec<u8>)],
    ) -> Result<(), Fault> {
        let metadata = Metadata::read(head).map_err(|fault| fault.to_string())?;
        whole(&metadata, manifest, path)?;
        let config = About::read(&metadata, manifest, tensors)?.config()?;
        self.0.insert("config.json".to_owned(), config.to_string().into());
        let Some(vocabulary) = Vocabulary::read(&metadata)? else { return Ok(()) };
        let mut add = |path: &str, make: &dyn Fn() -> Result<String, Fault>| {
            if !self.0.contains_key(path) {
                self.0.insert(path.to_owned(), make()?.into());
            }
            Ok::<_, Fault>(())
        };
        add("tokenizer.json", &|| tokenizer::tokenizer(&metadata, &vocabulary))?;
        add("tokenizer_config.json", &|| tokenizer::config(&metadata, &vocabulary))?;
        add("generation_config.json", &|| Ok(tokenizer::generation(&metadata, &vocabulary)))
    }
}

/// Fails if the file at `path` is one of several that are not all there.
fn whole(metadata: &Metadata<'_>, manifest: &Checkpoint, path: &str) -> Result<(), Fault> {
    const COUNT: &str = "split.count";
    let Some(count) = metadata.find(COUNT) else { return Ok(()) };
    let count = count.as_u64().filter(|count| *count <= PARTS_MAX);
    let count = count.ok_or_else(|| format!("{COUNT} must be a number up to {PARTS_MAX}"))?;
    if count <= 1 {
        return Ok(());
    }
    let (stem, total) =
        parted(path).ok_or_else(|| format!("{COUNT} is {count}; its name says nothing of it"))?;
    match (1..=count).map(|at| part(stem, at, total)).find(|path| manifest.file(path).is_none()) {
        Some(missing) => Err(format!("is one of {count} files, of which {missing} is missing")),
        None => Ok(()),
    }
}

/// What stands before and after the number in `model-00002-of-00003.gguf`.
fn parted(path: &str) -> Option<(&str, &str)> {
    let (rest, total) = path.rsplit_once("-of-")?;
    Some((rest.rsplit_once('-')?.0, total))
}

fn part(stem: &str, at: u64, total: &str) -> String {
    format!("{stem}-{at:05}-of-{total}")
}

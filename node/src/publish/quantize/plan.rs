//! What becomes of each file of a folder, before any of it is written.

use std::{
    io::{self, Read},
    path::{Path, PathBuf},
};

use serde_json::Value;
use surf_chunker::{Contents, Listed, Parameter, json, open_regular};
use surf_protocol::Dtype;

use super::mix::{Kind, Model};

/// Bytes of a `config.json` that are read, as the chunker bounds them.
const CONFIG_SIZE_MAX: u64 = 1 << 20;

/// Bytes of an index that are read, as the chunker bounds them.
const INDEX_SIZE_MAX: u64 = 64 << 20;

/// Formats of weights that are not read here. A quantised model leaves such files out: they would be a second copy.
const WEIGHTS: [&str; 11] =
    ["safetensors", "gguf", "bin", "pt", "pth", "ckpt", "onnx", "onnx_data", "h5", "msgpack", "ot"];

/// What becomes of a folder.
#[derive(Debug)]
pub(super) struct Plan {
    /// Files of which some tensors are quantised.
    pub(super) rewritten: Vec<Rewritten>,
    /// Files that stay as they are.
    pub(super) kept: Vec<Listed>,
    /// Bytes of all these files before.
    pub(super) bytes_before: u64,
    /// Tensors that are quantised.
    pub(super) tensors: usize,
}

/// A file of weights and what is written in its place.
#[derive(Debug)]
pub(super) struct Rewritten {
    pub(super) file: Listed,
    /// What it begins with then.
    pub(super) header: Vec<u8>,
    /// Its tensors in the order of their bytes, each with the type that it becomes, if it does.
    pub(super) tensors: Vec<(Parameter, Option<Dtype>)>,
    /// Its bytes then.
    pub(super) size: u64,
}

/// Why a folder cannot be quantised.
#[derive(Debug, thiserror::Error)]
pub enum Unsuitable {
    /// Its weights are not plain floats.
    #[error(
        "the weights are quantised already ({0}); publish them as they are, or quantise the original model"
    )]
    Already(String),
    /// They are not what they should be.
    #[error("{0}")]
    Weightless(String),
    /// There are none that can be read.
    #[error("there are no weights in safetensors files to quantise")]
    NoWeights,
    /// They are in another format.
    #[error("the weights are in {0:?}; only those in safetensors files can be quantised")]
    Format(String),
    /// Nothing would become smaller.
    #[error("no tensor would become smaller by {0}")]
    Nothing(&'static str),
    /// The header of the new file cannot be.
    #[error("tensor {0:?} cannot be written to a safetensors file")]
    Tensor(String),
    /// A file cannot be read.
    #[error("cannot read {path}: {cause}")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What went wrong.
        cause: io::Error,
    },
}

impl Plan {
    /// What to do with `contents` to make it `kind`.
    pub(super) fn new(contents: Contents, kind: Kind) -> Result<Self, Unsuitable> {
        let Contents { files, tensors, fault } = contents;
        if let Some(fault) = fault {
            return Err(Unsuitable::Weightless(fault));
        }
        let config = files.iter().find(|file| file.path == "config.json").map(config).transpose()?;
        let config = config.unwrap_or_default();
        suitable(&config, &files, &tensors)?;
        let model = Model::new(&config, &tensors);
        let mut of_file: Vec<Vec<(Parameter, Option<Dtype>)>> = files.iter().map(|_| Vec::new()).collect();
        for tensor in tensors {
            let dtype = model.choose(kind, &tensor);
            of_file[tensor.file as usize].push((tensor, dtype));
        }
        let left_out = |at: usize, file: &Listed| of_file[at].is_empty() && is_weights(&file.path);
        let left_out: Vec<String> = files
            .iter()
            .enumerate()
            .filter(|(at, file)| left_out(*at, file))
            .map(|(_, file)| file.path.clone())
            .collect();
        let mut plan = Self { rewritten: Vec::new(), kept: Vec::new(), bytes_before: 0, tensors: 0 };
        for (file, mut tensors) in files.into_iter().zip(of_file) {
            if left_out.contains(&file.path) || is_index_of(&file, &left_out)? {
                continue;
            }
            plan.bytes_before += file.size;
            match tensors.iter().filter(|(_, dtype)| dtype.is_some()).count() {
                0 => plan.kept.push(file),
                quantised => {
                    plan.tensors += quantised;
                    tensors.sort_by_key(|(tensor, _)| (tensor.offset, tensor.size));
                    plan.rewritten.push(Rewritten::new(file, tensors)?);
                }
            }
        }
        if plan.rewritten.is_empty() { Err(Unsuitable::Nothing(kind.name())) } else { Ok(plan) }
    }

    /// Bytes of the model then.
    pub(super) fn bytes_after(&self) -> u64 {
        let kept: u64 = self.kept.iter().map(|file| file.size).sum();
        self.written() + kept
    }

    /// Bytes to write.
    pub(super) fn written(&self) -> u64 {
        self.rewritten.iter().map(|file| file.size).sum()
    }

    /// Bytes to read for that.
    pub(super) fn read(&self) -> u64 {
        self.rewritten.iter().map(|file| file.file.size).sum()
    }
}

impl Rewritten {
    fn new(file: Listed, tensors: Vec<(Parameter, Option<Dtype>)>) -> Result<Self, Unsuitable> {
        let then = |(tensor, dtype): &(Parameter, Option<Dtype>)| dtype.unwrap_or(tensor.dtype);
        let entries = tensors.iter().map(|entry| (&*entry.0.name, then(entry), &*entry.0.shape));
        let header = surf_chunker::header(entries).map_err(Unsuitable::Tensor)?;
        let size = |entry| then(entry).size_of(&entry.0.shape).unwrap_or(0);
        let size = header.len() as u64 + tensors.iter().map(size).sum::<u64>();
        Ok(Self { file, header, tensors, size })
    }
}

fn suitable(config: &Value, files: &[Listed], tensors: &[Parameter]) -> Result<(), Unsuitable> {
    let quantization = &config["quantization_config"];
    if !quantization.is_null() {
        let method = quantization["quant_method"].as_str().unwrap_or("by a method without a name");
        return Err(Unsuitable::Already(format!("quantization_config of config.json says {method:?}")));
    }
    if tensors.is_empty() {
        return Err(Unsuitable::NoWeights);
    }
    for tensor in tensors {
        let path = &files[tensor.file as usize].path;
        if !path.ends_with(".safetensors") {
            return Err(Unsuitable::Format(path.clone()));
        }
        if 1 < tensor.dtype.block().elements {
            return Err(Unsuitable::Already(format!("{:?} is {:?}", tensor.name, tensor.dtype)));
        }
    }
    Ok(())
}

fn is_weights(path: &str) -> bool {
    let extension = Path::new(path).extension().and_then(|extension| extension.to_str());
    extension.is_some_and(|extension| WEIGHTS.contains(&extension))
}

/// Whether `file` is the index of shards that are left out.
fn is_index_of(file: &Listed, left_out: &[String]) -> Result<bool, Unsuitable> {
    if left_out.is_empty() || !file.path.ends_with(".index.json") {
        return Ok(false);
    }
    let Some(index) = value(file, INDEX_SIZE_MAX)? else { return Ok(false) };
    let folder = file.path.rsplit_once('/').map_or(String::new(), |(folder, _)| format!("{folder}/"));
    let shards = index["weight_map"].as_object().into_iter().flatten();
    let names =
        |shard: &Value| shard.as_str().is_some_and(|shard| left_out.contains(&format!("{folder}{shard}")));
    Ok(shards.into_iter().any(|(_, shard)| names(shard)))
}

fn config(file: &Listed) -> Result<Value, Unsuitable> {
    Ok(value(file, CONFIG_SIZE_MAX)?.unwrap_or_default())
}

/// The JSON in a file of at most `size_max` bytes, if it is any.
fn value(file: &Listed, size_max: u64) -> Result<Option<Value>, Unsuitable> {
    let failed = |cause| Unsuitable::Unreadable { path: file.real.clone(), cause };
    let mut text = Vec::new();
    open_regular(&file.real).map_err(failed)?.take(size_max).read_to_end(&mut text).map_err(failed)?;
    Ok(json::read(&text).ok())
}

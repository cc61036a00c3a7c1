//! Which files of weights belong together, and whose tensors the manifest lists.
//!
//! A set is one copy of a model's weights: the shards that an index names, or that are numbered
//! `…-00001-of-00003`, or a file by itself. In a set no tensor is twice. A folder may hold several sets
//! of the same tensors (half and full precision, say); then the one that other tools would load is listed, and the
//! others are published without their tensors being listed. Half a set is never listed.

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
    io::Read,
};

use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};

use crate::{
    CutError, IndexFault, Listed,
    header::{Format, Header},
};

/// Bytes in an index. That of a mixture of experts with 91,000 tensors has 9 MB.
pub(crate) const INDEX_SIZE_MAX: u64 = 64 * 1024 * 1024;

/// Positions of the files of one set, ascending.
type Set = Vec<usize>;

/// The sets of a folder, the one to load first.
///
/// Checks every index against the shards it names, so nothing is hashed of a folder that is not whole.
pub(crate) fn sets(files: &[Listed], headers: &BTreeMap<usize, Header>) -> Result<Vec<Set>, CutError> {
    // Sets are called by their index, or as their files are.
    let mut set_of: HashMap<usize, String> = HashMap::new();
    // Files of PyTorch's of which none was read are no weights here.
    let has_pickles = headers.keys().any(|&at| Format::of(&files[at].path) == Some(Format::Pickle));
    let is_index = |path: &str| path.ends_with(INDEX_SUFFIX) || has_pickles && is_pickles_index(path);
    for index in files.iter().filter(|file| is_index(&file.path)) {
        for at in check(index, files, headers)? {
            set_of.entry(at).or_insert_with(|| index.path.clone());
        }
    }
    for &at in headers.keys() {
        set_of.entry(at).or_insert_with(|| unnumbered(&files[at].path));
    }
    let mut sets: BTreeMap<(Preference, String), Set> = BTreeMap::new();
    for &at in headers.keys() {
        let name = set_of.remove(&at).expect("every file with a header was put in a set above");
        sets.entry((preference(&name), name)).or_default().push(at);
    }
    Ok(sets.into_values().collect())
}

/// Every file as a set by itself.
pub(crate) fn alone(headers: &BTreeMap<usize, Header>) -> Vec<Set> {
    headers.keys().map(|&at| vec![at]).collect()
}

/// The files whose tensors the manifest lists, ascending.
pub(crate) fn listed(
    files: &[Listed],
    headers: &BTreeMap<usize, Header>,
    sets: &[Set],
) -> Result<Vec<usize>, CutError> {
    let mut taken: HashMap<&str, usize> = HashMap::new();
    let mut listed = Vec::new();
    for set in sets {
        let mut own: HashMap<&str, usize> = HashMap::new();
        for &at in set {
            for tensor in &headers[&at].tensors {
                if let Some(first) = own.insert(&tensor.name, at) {
                    return Err(CutError::Duplicate {
                        tensor: tensor.name.clone(),
                        first: files[first].seen.clone(),
                        second: files[at].seen.clone(),
                    });
                }
            }
        }
        if !own.keys().any(|name| taken.contains_key(name)) {
            taken.extend(own);
            listed.extend(set.iter().filter(|at| headers[at].understood()));
        }
    }
    listed.sort_unstable();
    Ok(listed)
}

const INDEX_SUFFIX: &str = ".safetensors.index.json";

/// Whether this is the index of shards of PyTorch's that are read.
fn is_pickles_index(path: &str) -> bool {
    path.ends_with(".bin.index.json") && !path.contains('/')
}

/// What other tools would load first, first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Preference {
    /// `model.safetensors`, as a file.
    Alone,
    /// What `model.safetensors.index.json` names.
    Index,
    /// Any other safetensors file beside it.
    Beside,
    /// PyTorch's files.
    Pickle,
    /// GGUF files, each of which is a whole model, or numbered shards of one.
    Gguf,
    /// In folders below.
    Below,
}

fn preference(name: &str) -> Preference {
    match name {
        "model.safetensors" => Preference::Alone,
        "model.safetensors.index.json" => Preference::Index,
        _ if name.contains('/') => Preference::Below,
        _ if Format::of(name) == Some(Format::Gguf) => Preference::Gguf,
        _ if Format::of(name) == Some(Format::Pickle) || is_pickles_index(name) => Preference::Pickle,
        _ => Preference::Beside,
    }
}

/// `model-00001-of-00003.safetensors` without its number; other names as they are.
fn unnumbered(path: &str) -> String {
    let number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let parts = || {
        let (path, extension) = path.rsplit_once('.')?;
        let (rest, total) = path.rsplit_once("-of-")?;
        let (stem, at) = rest.rsplit_once('-')?;
        (number(at) && number(total)).then(|| format!("{stem}-of-{total}.{extension}"))
    };
    parts().unwrap_or_else(|| path.to_owned())
}

/// The shards that `index` names, if each has the tensors that it should.
fn check(
    index: &Listed,
    files: &[Listed],
    headers: &BTreeMap<usize, Header>,
) -> Result<Vec<usize>, CutError> {
    let fault = |fault| CutError::Index { index: index.seen.clone(), fault };
    if INDEX_SIZE_MAX < index.size {
        return Err(fault(IndexFault::TooLarge));
    }
    let mut json = vec![0; index.size as usize];
    index.open()?.read_exact(&mut json).map_err(|source| index.failed(source))?;
    shards(&json, &index.path, files, headers).map_err(fault)
}

fn shards(
    json: &[u8],
    index: &str,
    files: &[Listed],
    headers: &BTreeMap<usize, Header>,
) -> Result<Vec<usize>, IndexFault> {
    let Index { weight_map: Pairs(pairs) } =
        serde_json::from_slice(json).map_err(|error| IndexFault::Malformed(error.to_string()))?;
    let folder = index.rsplit_once('/').map_or(String::new(), |(folder, _)| format!("{folder}/"));
    let mut shards: BTreeMap<String, (usize, Vec<&str>)> = BTreeMap::new();
    for (tensor, shard) in pairs {
        let (at, names) = match shards.get(&shard) {
            Some(known) => known,
            None => {
                if !inside(&shard) {
                    return Err(IndexFault::Escapes { tensor, shard });
                }
                let path = format!("{folder}{shard}");
                let Ok(at) = files.binary_search_by(|file| file.path.cmp(&path)) else {
                    return Err(IndexFault::MissingShard { tensor, shard });
                };
                let tensors = headers.get(&at).map_or(&[][..], |header| &header.tensors);
                let mut names: Vec<&str> = tensors.iter().map(|tensor| tensor.name.as_str()).collect();
                names.sort_unstable();
                shards.entry(shard.clone()).or_insert((at, names))
            }
        };
        if names.binary_search(&tensor.as_str()).is_err() {
            let shard = files[*at].path.clone();
            return Err(IndexFault::MissingTensor { tensor, shard });
        }
    }
    Ok(shards.into_values().map(|(at, _)| at).collect())
}

/// Whether a path is relative and goes down only.
fn inside(path: &str) -> bool {
    !path.contains(['\\', '\0']) && path.split('/').all(|part| !matches!(part, "" | "." | ".."))
}

#[derive(serde::Deserialize)]
struct Index {
    weight_map: Pairs,
}

/// A map as it stands in the file, with what is there twice.
struct Pairs(Vec<(String, String)>);

impl<'de> Deserialize<'de> for Pairs {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct All;
        impl<'de> Visitor<'de> for All {
            type Value = Pairs;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a map from tensors to files")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Pairs, A::Error> {
                let mut pairs = Vec::new();
                while let Some(pair) = map.next_entry()? {
                    pairs.push(pair);
                }
                Ok(Pairs(pairs))
            }
        }
        deserializer.deserialize_map(All)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbered_shards_have_one_name() {
        assert_eq!(unnumbered("a/model-00002-of-00010.safetensors"), "a/model-of-00010.safetensors");
        assert_eq!(unnumbered("model-x-of-3.safetensors"), "model-x-of-3.safetensors");
        assert_eq!(unnumbered("best-of-3.safetensors"), "best-of-3.safetensors");
    }

    #[test]
    fn a_shard_path_goes_down_only() {
        assert!(inside("a.safetensors") && inside("sub/a.safetensors") && inside("..a"));
        for path in ["../a", "a/../../b", "/etc/passwd", "", "a//b", "./a", "..\\a"] {
            assert!(!inside(path), "{path:?}");
        }
    }
}

//! Which of a folder's tensors are loaded.
//!
//! A set is one copy of a model's weights: the shards that an index names, or that are numbered
//! `…-00001-of-00003`, or a file by itself. In a set no name is twice: the index says which shard counts, without an
//! index the first does. A folder may hold several sets of the same tensors (half and full precision, say); the first
//! that transformers would load is taken, and whatever others repeat nothing of it. An index beside the file that
//! would hold everything is not looked at.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    io::{self, BufReader, Read, Seek, SeekFrom},
};

use surf_protocol::TensorEntry;

use super::{
    Files,
    index::{INDEX_SIZE_MAX, Index, SUFFIX, inside, unnumbered},
};
use crate::{
    families::{Families, Grouping},
    format::{self, Format},
};

/// Bytes of a file that are asked for at a time, when it is told what is wrong with it.
const READ_SIZE: usize = 64 << 10;

/// How the names begin of what training leaves beside weights.
const BESIDE: [&str; 5] = ["training_args", "optimizer", "scheduler", "scaler", "rng_state"];

/// What is in a folder.
pub(crate) struct Listing<'a> {
    /// Path and size, sorted by path.
    pub(super) files: Vec<(&'a str, u64)>,
    /// Sorted by file and name.
    tensors: &'a [TensorEntry],
    /// For each file, where its tensors begin; and the end.
    firsts: Vec<usize>,
}

/// What of it is loaded.
pub(super) struct Choice<'a> {
    pub(super) tensors: Vec<&'a TensorEntry>,
    /// `None` for a family that is not known.
    pub(super) grouping: Option<Grouping>,
    /// Why it cannot be.
    pub(super) fault: Option<String>,
}

impl<'a> Listing<'a> {
    pub(super) fn new(files: impl Iterator<Item = (&'a str, u64)>, tensors: &'a [TensorEntry]) -> Self {
        let files: Vec<_> = files.collect();
        let first = |at: usize| tensors.partition_point(|tensor| (tensor.file as usize) < at);
        let firsts = (0..=files.len()).map(first).collect();
        Self { files, tensors, firsts }
    }

    /// The position and size of the file at `path`.
    pub(super) fn file(&self, path: &str) -> Option<(u32, u64)> {
        let at = self.files.binary_search_by(|(known, _)| (*known).cmp(path)).ok()?;
        Some((at as u32, self.files[at].1))
    }

    fn path(&self, file: u32) -> &'a str {
        self.files[file as usize].0
    }

    fn tensors_of(&self, file: u32) -> &'a [TensorEntry] {
        &self.tensors[self.firsts[file as usize]..self.firsts[file as usize + 1]]
    }

    fn tensor(&self, file: u32, name: &str) -> Option<&'a TensorEntry> {
        let tensors = self.tensors_of(file);
        Some(&tensors[tensors.binary_search_by(|tensor| (*tensor.name).cmp(name)).ok()?])
    }

    /// The format of a file: that of its tensors, or the one that its name promises.
    fn format(&self, file: u32) -> Option<Format> {
        match self.tensors_of(file).first().map(|tensor| tensor.dtype.as_str()) {
            Some(tag) if tag.starts_with("ggml:") => Some(Format::Gguf),
            Some(tag) if tag.starts_with("torch.") => Some(Format::Pickle),
            Some(_) => Some(Format::Safetensors),
            None => Format::by_name(self.path(file)),
        }
    }
}

/// What other tools would load first, first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Preference {
    /// `model.safetensors`, as a file.
    Alone,
    /// What `model.safetensors.index.json` names.
    Index,
    /// Any other safetensors file beside it.
    Beside,
    /// PyTorch's files.
    Pickle,
    /// In folders below.
    Below,
    /// GGUF files, each of which is a whole model, or numbered shards of one.
    Gguf,
}

/// One copy of a model's weights, or of a part of them.
#[derive(Default)]
struct Set<'a> {
    tensors: Vec<&'a TensorEntry>,
    fault: Option<String>,
}

/// What `listing` has that is loaded.
pub(super) fn choose<'a>(
    listing: &Listing<'a>,
    families: &Families,
    config: Option<&[u8]>,
    files: Option<&dyn Files>,
) -> io::Result<Choice<'a>> {
    let sets = Sets { listing, files }.all()?;
    let (gguf, others): (Vec<_>, Vec<_>) =
        sets.into_iter().partition(|((preference, _), _)| *preference == Preference::Gguf);
    let mut taken = Taken::default();
    others.into_iter().for_each(|((preference, _), set)| taken.add(preference, set));
    let names = || taken.tensors.iter().map(|tensor| &*tensor.name);
    let mut grouping = Grouping::new(families, config, names());
    // A GGUF file beside a model of a known family is a copy of it under other names.
    if grouping.is_none() && !gguf.is_empty() && !taken.is_settled {
        gguf.into_iter().for_each(|((preference, _), set)| taken.add(preference, set));
        let has_gguf = taken.tensors.iter().any(|tensor| tensor.dtype.as_str().starts_with("ggml:"));
        grouping = has_gguf.then(Grouping::gguf);
    }
    let Taken { tensors, fault, .. } = taken;
    let fault = match (fault, tensors.is_empty()) {
        (None, true) => Sets { listing, files }.unread()?,
        (fault, _) => fault,
    };
    Ok(Choice { tensors, grouping, fault })
}

#[derive(Default)]
struct Taken<'a> {
    tensors: Vec<&'a TensorEntry>,
    names: HashSet<&'a str>,
    fault: Option<String>,
    /// What is loaded first was there, sound or not: no other copy takes its place.
    is_settled: bool,
}

impl<'a> Taken<'a> {
    fn add(&mut self, preference: Preference, set: Set<'a>) {
        let is_main = preference <= Preference::Index;
        if set.tensors.iter().any(|tensor| self.names.contains(&*tensor.name)) {
            return;
        }
        // What is wrong with something else than the model itself matters only where there is no model.
        if self.tensors.is_empty() && self.fault.is_none() {
            self.fault = set.fault.clone();
        } else if set.fault.is_some() {
            return;
        }
        if set.fault.is_none() && !self.is_settled && !set.tensors.is_empty() {
            self.fault = None;
        }
        self.is_settled |= is_main;
        self.names.extend(set.tensors.iter().map(|tensor| &*tensor.name));
        self.tensors.extend(set.tensors);
    }
}

/// Makes sets.
struct Sets<'l, 'a> {
    listing: &'l Listing<'a>,
    files: Option<&'l dyn Files>,
}

impl<'a> Sets<'_, 'a> {
    /// All sets, the one to load first.
    fn all(&self) -> io::Result<BTreeMap<(Preference, String), Set<'a>>> {
        let weights: Vec<u32> =
            (0..self.listing.files.len() as u32).filter(|&at| self.is_weights(at)).collect();
        let weights = self.without_pickles(weights);
        let mut sets = BTreeMap::new();
        let mut in_set: HashSet<u32> = HashSet::new();
        for (path, base, index) in self.indexes(&weights) {
            let (set, shards) = self.indexed(path, index)?;
            in_set.extend(shards);
            sets.insert((self.preference(base, true), path.to_owned()), set);
        }
        let mut numbered: BTreeMap<String, (u64, Vec<u32>)> = BTreeMap::new();
        for at in weights.into_iter().filter(|at| !in_set.contains(at)) {
            let path = self.listing.path(at);
            match unnumbered(path) {
                Some((name, count)) => numbered.entry(name).or_insert((count, Vec::new())).1.push(at),
                None => {
                    let set = self.one(&[at])?;
                    sets.insert((self.preference_of(at), path.to_owned()), set);
                }
            }
        }
        for (name, (count, shards)) in numbered {
            let mut set = self.one(&shards)?;
            // GGUF files say themselves how many there are.
            let preference = self.preference_of(shards[0]);
            if (shards.len() as u64) < count && preference != Preference::Gguf {
                let path = self.listing.path(shards[0]);
                let missing = format!("{path} is one of {count} files, of which {} are here", shards.len());
                set.fault.get_or_insert(missing);
            }
            sets.insert((preference, name), set);
        }
        Ok(sets)
    }

    /// Whether the file holds weights, or should.
    fn is_weights(&self, at: u32) -> bool {
        let path = self.listing.path(at);
        match Format::by_name(path) {
            _ if !self.listing.tensors_of(at).is_empty() => true,
            Some(Format::Safetensors | Format::Gguf) => true,
            Some(Format::Pickle) => is_main_pickle(path),
            None => false,
        }
    }

    /// Of PyTorch's files, those called `pytorch_model…bin`; without such, and without weights in other formats
    /// beside them, all that training does not leave there. None where `model.safetensors` or its index is.
    fn without_pickles(&self, weights: Vec<u32>) -> Vec<u32> {
        let (pickles, mut others): (Vec<u32>, Vec<u32>) =
            weights.into_iter().partition(|&at| self.listing.format(at) == Some(Format::Pickle));
        let has = |path| self.listing.file(path).is_some();
        if has("model.safetensors") || has("model.safetensors.index.json") {
            return others;
        }
        let main = |at: &u32| is_main_pickle(self.listing.path(*at));
        let beside = |at: &u32| !self.listing.path(*at).contains('/');
        if pickles.iter().any(main) {
            others.extend(pickles.into_iter().filter(main));
        } else if !others.iter().any(beside) {
            let left = |path: &str| BESIDE.iter().any(|name| path.starts_with(name));
            others.extend(pickles.into_iter().filter(|at| beside(at) && !left(self.listing.path(*at))));
        }
        others.sort_unstable();
        others
    }

    /// The indexes that are looked at: path, the path of the file that would hold everything, position.
    fn indexes(&self, weights: &[u32]) -> Vec<(&'a str, &'a str, u32)> {
        let pickles = weights.iter().any(|&at| self.listing.format(at) == Some(Format::Pickle));
        let files = self.listing.files.iter().zip(0..);
        let indexes = files.filter_map(|((path, _), at)| Some((*path, path.strip_suffix(SUFFIX)?, at)));
        let looked_at = indexes.filter(|(_, base, _)| {
            let of_weights =
                base.ends_with(".safetensors") || base.ends_with(".bin") && !base.contains('/') && pickles;
            of_weights && self.files.is_some() && self.listing.file(base).is_none()
        });
        looked_at.collect()
    }

    /// What the index at `path` names: the set, and the files that are in it.
    fn indexed(&self, path: &str, at: u32) -> io::Result<(Set<'a>, Vec<u32>)> {
        let (_, size) = self.listing.files[at as usize];
        let Some(files) = self.files.filter(|_| size <= INDEX_SIZE_MAX) else {
            let fault = Some(format!("{path} is larger than {INDEX_SIZE_MAX} bytes"));
            return Ok((Set { fault, ..Set::default() }, Vec::new()));
        };
        let pairs = match crate::json::read::<Index>(&files.read(at, 0..size)?) {
            Ok(index) => index.weight_map.0,
            Err(error) => {
                let fault = Some(format!("{path} cannot be read: {error}"));
                return Ok((Set { fault, ..Set::default() }, Vec::new()));
            }
        };
        let folder = path.rsplit_once('/').map_or(String::new(), |(folder, _)| format!("{folder}/"));
        let (mut set, mut shards) = (Set::default(), HashMap::<String, Option<u32>>::new());
        let mut chosen: HashMap<&'a str, &'a TensorEntry> = HashMap::new();
        for (tensor, shard) in pairs {
            let place = |shard: &String| self.listing.file(&format!("{folder}{shard}")).map(|(at, _)| at);
            let file =
                *shards.entry(shard.clone()).or_insert_with(|| place(&shard).filter(|_| inside(&shard)));
            match file.and_then(|file| self.listing.tensor(file, &tensor)) {
                // Of several entries, the last counts, as in Python.
                Some(found) => _ = chosen.insert(&found.name, found),
                None if set.fault.is_none() => set.fault = Some(self.missing(path, &tensor, &shard, file)?),
                None => (),
            }
        }
        let mut files: Vec<u32> = shards.into_values().flatten().collect();
        files.sort_unstable();
        // What the index does not name is loaded with its shard.
        for tensor in files.iter().flat_map(|&file| self.listing.tensors_of(file)) {
            chosen.entry(&tensor.name).or_insert(tensor);
        }
        set.tensors = chosen.into_values().collect();
        set.tensors.sort_by_key(|tensor| (tensor.file, tensor.offset));
        Ok((set, files))
    }

    /// Why a tensor is not where its index says.
    fn missing(&self, index: &str, tensor: &str, shard: &str, file: Option<u32>) -> io::Result<String> {
        let says = format!("{index} says that tensor {tensor:?} is in {shard:?}");
        let Some(file) = file else {
            let why = if inside(shard) { "which is not there" } else { "which is outside the folder" };
            return Ok(format!("{says}, {why}"));
        };
        match self.listing.tensors_of(file) {
            [] => Ok(self.why_unread(file)?.unwrap_or(format!("{says}, which holds no weights"))),
            _ => Ok(format!("{says}, which does not have it")),
        }
    }

    /// The tensors of `files`, of which the first counts where two have the same name.
    fn one(&self, files: &[u32]) -> io::Result<Set<'a>> {
        let (mut set, mut names) = (Set::default(), HashSet::new());
        for &file in files {
            let tensors = self.listing.tensors_of(file);
            if tensors.is_empty() && set.fault.is_none() {
                set.fault = self.why_unread(file)?;
            }
            set.tensors.extend(tensors.iter().filter(|tensor| names.insert(&*tensor.name)));
        }
        Ok(set)
    }

    /// Why there are no weights at all, if a file should hold some.
    fn unread(&self) -> io::Result<Option<String>> {
        let is_left = |path: &str| BESIDE.iter().any(|name| path.starts_with(name));
        let named = (0..self.listing.files.len() as u32).filter(|&at| {
            Format::by_name(self.listing.path(at)).is_some() && !is_left(self.listing.path(at))
        });
        for at in named {
            // Many a file is called `.bin`.
            let may_be_other = self.listing.format(at) == Some(Format::Pickle) && !self.is_weights(at);
            if !may_be_other || self.begins_as_pickle(at)? {
                return self.why_unread(at);
            }
        }
        Ok(None)
    }

    fn begins_as_pickle(&self, at: u32) -> io::Result<bool> {
        let (_, size) = self.listing.files[at as usize];
        let Some(files) = self.files else { return Ok(false) };
        Ok(crate::pickle::begins(&files.read(at, 0..size.min(16))?))
    }

    fn why_unread(&self, at: u32) -> io::Result<Option<String>> {
        let Some(files) = self.files else { return Ok(None) };
        let (path, size) = self.listing.files[at as usize];
        let mut file = BufReader::with_capacity(READ_SIZE, Reader { files, file: at, size, at: 0 });
        let fault = format::fault(path, &mut file, size)?;
        Ok(fault.map(|fault| format!("{path} cannot be read as weights: {fault}")))
    }

    fn preference_of(&self, at: u32) -> Preference {
        match self.listing.format(at) {
            Some(Format::Gguf) => Preference::Gguf,
            _ => self.preference(self.listing.path(at), false),
        }
    }

    /// Of the file at `path`, or of the index that stands for it.
    fn preference(&self, path: &str, is_index: bool) -> Preference {
        match path {
            "model.safetensors" if is_index => Preference::Index,
            "model.safetensors" => Preference::Alone,
            _ if path.contains('/') => Preference::Below,
            _ if Format::by_name(path) == Some(Format::Pickle) => Preference::Pickle,
            _ => Preference::Beside,
        }
    }
}

fn is_main_pickle(path: &str) -> bool {
    path.starts_with("pytorch_model") && path.ends_with(".bin") && !path.contains('/')
}

/// A file of a model, as one that can be read from any place.
struct Reader<'a> {
    files: &'a dyn Files,
    file: u32,
    size: u64,
    at: u64,
}

impl Read for Reader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let end = self.size.min(self.at.saturating_add(buffer.len() as u64));
        if end <= self.at {
            return Ok(0);
        }
        let bytes = self.files.read(self.file, self.at..end)?;
        let place = buffer.get_mut(..bytes.len()).ok_or(io::ErrorKind::InvalidData)?;
        place.copy_from_slice(&bytes);
        self.at += bytes.len() as u64;
        Ok(bytes.len())
    }
}

impl Seek for Reader<'_> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let at = match to {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::End(by) => self.size.checked_add_signed(by),
            SeekFrom::Current(by) => self.at.checked_add_signed(by),
        };
        self.at = at.ok_or(io::ErrorKind::InvalidInput)?;
        Ok(self.at)
    }
}

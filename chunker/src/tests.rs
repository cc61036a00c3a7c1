//! Whole folders, from disk to manifest.

mod damage;
mod fixtures;
mod folders;
mod golden;

use std::{
    collections::BTreeMap,
    error::Error,
    fs,
    path::{Path, PathBuf},
    sync::Mutex,
};

use surf_protocol::{Chunk, Manifest};

use super::*;

/// Keeps every chunk, and checks that they come in file order.
#[derive(Default)]
struct Kept {
    chunks: Mutex<BTreeMap<PathBuf, Vec<Chunk>>>,
}

impl Sink for Kept {
    fn chunk(&self, chunk: &Chunk, file: &Path, offset: u64) -> Result<(), Box<dyn Error + Send + Sync>> {
        let mut files = self.chunks.lock().unwrap();
        let chunks = files.entry(file.to_owned()).or_default();
        assert_eq!(chunks.iter().map(|chunk| chunk.bytes().len() as u64).sum::<u64>(), offset);
        chunks.push(chunk.clone());
        Ok(())
    }
}

/// Takes chunks and does nothing.
pub(crate) struct Nothing;

impl Sink for Nothing {
    fn chunk(&self, _: &Chunk, _: &Path, _: u64) -> Result<(), Box<dyn Error + Send + Sync>> {
        Ok(())
    }
}

pub(crate) fn manifest(path: &Path) -> Manifest {
    cut(path, &Options::default(), &Nothing).unwrap()
}

fn refused(path: &Path) -> CutError {
    cut(path, &Options::default(), &Nothing).unwrap_err()
}

/// A safetensors file of bytes: names, rows, and columns.
pub(crate) fn safetensors(tensors: &[(&str, usize, usize)]) -> Vec<u8> {
    let (mut entries, mut data) = (Vec::new(), Vec::new());
    for &(name, rows, columns) in tensors {
        let begin = data.len();
        data.extend(noise(name, rows * columns));
        let end = data.len();
        entries.push(format!(
            r#""{name}":{{"dtype":"U8","shape":[{rows},{columns}],"data_offsets":[{begin},{end}]}}"#
        ));
    }
    file(&format!("{{{}}}", entries.join(",")), &data)
}

pub(crate) fn file(header: &str, data: &[u8]) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), data].concat()
}

/// Bytes that are the same for the same name only.
fn noise(name: &str, size: usize) -> Vec<u8> {
    let mut bytes = vec![0; size];
    blake3::Hasher::new().update(name.as_bytes()).finalize_xof().fill(&mut bytes);
    bytes
}

pub(crate) fn folder(files: &[(&str, &[u8])]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (path, bytes) in files {
        let path = folder.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }
    folder
}

#[test]
fn one_piece_is_joined_without_a_copy() {
    let piece = Bytes::from(vec![1, 2, 3]);
    assert_eq!(join(std::slice::from_ref(&piece)).as_ptr(), piece.as_ptr());
    assert_eq!(join(&[piece, Bytes::from_static(b"x")]), &[1, 2, 3, b'x'][..]);
    assert_eq!(join(&[]), Bytes::new());
}

//! Folders that are not whole, and files that do not keep still.

use std::sync::atomic::{AtomicBool, Ordering};

use super::*;

/// Whatever is wrong with a file of weights, it is published: as bytes.
#[test]
fn damaged_files_are_cut_like_any_others() {
    let good = safetensors(&[("a", 2, 50), ("b", 300, 70)]);
    let overlapping = r#"{"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},"b":{"dtype":"U8","shape":[4],"data_offsets":[2,6]}}"#;
    let cases: [&[u8]; 6] = [
        b"",
        b"1234567",
        &good[..good.len() - 1],
        &[&good[..], b"x"].concat(),
        b"version https://git-lfs.github.com/spec/v1\noid",
        &file(overlapping, b"123456"),
    ];
    for bytes in cases {
        let folder = folder(&[("model.safetensors", bytes)]);
        let manifest = manifest(folder.path());
        assert_eq!(manifest.tensors(), []);
        let sizes: Vec<u32> = manifest.files()[0].chunks.iter().map(|chunk| chunk.size).collect();
        assert_eq!(sizes, plan::plain(bytes.len() as u64));
    }
    assert_eq!(manifest(folder(&[("model.safetensors", &good)]).path()).files()[0].chunks.len(), 3);
}

#[test]
fn a_header_over_the_limit_is_not_read() {
    let folder = folder(&[("model.safetensors", &[&100_000_001u64.to_le_bytes()[..], b"{"].concat())]);
    let path = folder.path().join("model.safetensors");
    // Sparse: the size is there, the bytes are not.
    fs::OpenOptions::new().append(true).open(path).unwrap().set_len(101 << 20).unwrap();
    let contents = contents(folder.path(), &Options::default()).unwrap();
    let fault = contents.fault.unwrap();
    assert!(fault.contains("its header of 100000001 bytes is larger than"), "{fault}");
}

/// Does something to a file when its first chunk is handed over.
struct Meddling<F>(F, AtomicBool);

impl<F: Fn(&Path) + Sync> Sink for Meddling<F> {
    fn chunk(&self, _: &Chunk, file: &Path, _: u64) -> Result<(), Box<dyn Error + Send + Sync>> {
        if !self.1.swap(true, Ordering::Relaxed) {
            self.0(file);
        }
        Ok(())
    }
}

#[test]
fn a_file_that_changes_meanwhile_is_named() {
    let change = |meddle: fn(&Path)| {
        let folder = folder(&[("weights.bin", &noise("weights", 40 << 20))]);
        let sink = Meddling(meddle, AtomicBool::new(false));
        let error = cut(folder.path(), &Options::default(), &sink).unwrap_err();
        assert!(
            matches!(&error, CutError::Changed { file } if *file == folder.path().join("weights.bin")),
            "{error}"
        );
    };
    change(|path| fs::OpenOptions::new().write(true).open(path).unwrap().set_len(9 << 20).unwrap());
    change(|path| fs::OpenOptions::new().write(true).open(path).unwrap().set_len(50 << 20).unwrap());
    change(|path| {
        let file = fs::OpenOptions::new().write(true).open(path).unwrap();
        file.set_modified(std::time::UNIX_EPOCH).unwrap();
    });
    change(|path| {
        fs::rename(path, path.with_extension("old")).unwrap();
        fs::copy(path.with_extension("old"), path).unwrap();
    });
}

/// Takes some chunks, then no more.
struct Full;

impl Sink for Full {
    fn chunk(&self, _: &Chunk, _: &Path, offset: u64) -> Result<(), Box<dyn Error + Send + Sync>> {
        if offset == 0 { Ok(()) } else { Err("the disk is full".into()) }
    }
}

#[test]
fn an_error_of_the_sink_ends_the_cutting() {
    let folder = folder(&[("weights.bin", &noise("weights", 30 << 20)), ("small", b"1")]);
    let error = cut(folder.path(), &Options::default(), &Full).unwrap_err();
    assert!(matches!(&error, CutError::Sink { file, .. } if *file == folder.path().join("weights.bin")));
    assert_eq!(error.source().unwrap().to_string(), "the disk is full");
}

//! Folders that are not whole, and files that do not keep still.

use std::sync::atomic::{AtomicBool, Ordering};

use super::*;

/// The error for `model.safetensors` holding `bytes`.
fn refused_file(bytes: &[u8]) -> CutError {
    let folder = folder(&[("model.safetensors", bytes)]);
    let error = refused(folder.path());
    let file = folder.path().join("model.safetensors");
    assert!(error.to_string().contains(&format!("{file:?}")), "{error}");
    error
}

fn header_fault(bytes: &[u8]) -> HeaderFault {
    match refused_file(bytes) {
        CutError::Header { fault, .. } => fault,
        other => panic!("{other}"),
    }
}

fn tensor_fault(bytes: &[u8]) -> (String, TensorFault) {
    match refused_file(bytes) {
        CutError::Tensor { tensor, fault, .. } => (tensor, fault),
        other => panic!("{other}"),
    }
}

#[test]
fn damaged_safetensors_files_are_named() {
    let good = safetensors(&[("a", 2, 50), ("b", 3, 70)]);
    let start = good.len() - 310;
    assert_eq!(header_fault(b""), HeaderFault::Short { size: 0 });
    assert_eq!(header_fault(&good[..7]), HeaderFault::Short { size: 7 });
    assert!(matches!(header_fault(&good[..start - 1]), HeaderFault::PastEnd { .. }));
    assert!(matches!(header_fault(&[&[255; 8], &good[8..]].concat()), HeaderFault::PastEnd { .. }));
    assert!(matches!(header_fault(&file("not json", b"")), HeaderFault::Malformed(_)));
    assert_eq!(header_fault(&[&good[..], b"xy"].concat()), HeaderFault::Trailing(2));
    assert_eq!(header_fault(b"version https://git-lfs.github.com/spec/v1\noid"), HeaderFault::Pointer);
    let short = TensorFault::PastEnd { end: 310, data: 309 };
    assert_eq!(tensor_fault(&good[..good.len() - 1]), ("b".to_owned(), short));
    let overlapping = r#"{"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},"b":{"dtype":"U8","shape":[4],"data_offsets":[2,6]}}"#;
    let overlap = TensorFault::Overlap("a".to_owned());
    assert_eq!(tensor_fault(&file(overlapping, b"123456")), ("b".to_owned(), overlap));
}

#[test]
fn a_header_over_the_limit_is_refused_unread() {
    let folder = folder(&[("model.safetensors", &100_000_001u64.to_le_bytes())]);
    let path = folder.path().join("model.safetensors");
    // Sparse: the size is there, the bytes are not.
    fs::OpenOptions::new().append(true).open(path).unwrap().set_len(1 << 40).unwrap();
    let error = refused(folder.path());
    assert!(matches!(error, CutError::Header { fault: HeaderFault::TooLarge { .. }, .. }), "{error}");
}

fn index_fault(map: &str) -> IndexFault {
    let folder = folder(&[
        ("model-00001-of-00002.safetensors", &safetensors(&[("a", 1, 2)])),
        ("model-00002-of-00002.safetensors", &safetensors(&[("b", 1, 2)])),
        ("tokenizer.json", b"{}"),
        ("model.safetensors.index.json", map.as_bytes()),
    ]);
    match refused(folder.path()) {
        CutError::Index { index, fault } => {
            assert_eq!(index, folder.path().join("model.safetensors.index.json"));
            fault
        }
        other => panic!("{other}"),
    }
}

#[test]
fn damaged_indexes_are_named_with_the_tensor() {
    let naming = |shard: &str| {
        let map = format!(r#"{{"weight_map": {{"a": "model-00001-of-00002.safetensors", "b": "{shard}"}}}}"#);
        index_fault(&map)
    };
    let parts = |shard: &str| ("b".to_owned(), shard.to_owned());
    for shard in ["../x.safetensors", "/etc/passwd", "sub/../../x", ""] {
        let (tensor, shard) = parts(shard);
        assert_eq!(naming(&shard), IndexFault::Escapes { tensor, shard });
    }
    let (tensor, shard) = parts("model-00003-of-00003.safetensors");
    assert_eq!(naming(&shard), IndexFault::MissingShard { tensor, shard });
    for shard in ["model-00001-of-00002.safetensors", "tokenizer.json"] {
        let (tensor, shard) = parts(shard);
        assert_eq!(naming(&shard), IndexFault::MissingTensor { tensor, shard });
    }
    for malformed in ["", "[]", "{}", "{\"weight_map\": 1}", "{\"weight_map\": {\"a\": 1}}"] {
        assert!(matches!(index_fault(malformed), IndexFault::Malformed(_)), "{malformed}");
    }
}

#[test]
fn a_tensor_in_two_shards_is_refused() {
    let (one, two) = (safetensors(&[("a", 1, 2)]), safetensors(&[("a", 1, 2), ("b", 1, 2)]));
    let numbered =
        folder(&[("model-00001-of-00002.safetensors", &one), ("model-00002-of-00002.safetensors", &two)]);
    let indexed = folder(&[
        ("x.safetensors", &one),
        ("y.safetensors", &two),
        ("model.safetensors.index.json", br#"{"weight_map": {"a": "x.safetensors", "b": "y.safetensors"}}"#),
    ]);
    for folder in [numbered, indexed] {
        let error = refused(folder.path());
        assert!(matches!(&error, CutError::Duplicate { tensor, .. } if tensor == "a"), "{error}");
    }
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

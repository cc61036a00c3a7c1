//! What is a manifest and what is not.

use proptest::prelude::*;

use super::*;

fn chunk(seed: u8, size: u32) -> ChunkEntry {
    ChunkEntry { id: ChunkId::of(&[seed]), size }
}

fn file(path: &str, chunks: Vec<ChunkEntry>) -> FileEntry {
    let size = chunks.iter().map(|chunk| u64::from(chunk.size)).sum();
    FileEntry { path: path.to_owned(), size, blake3: [1; 32], sha256: [2; 32], chunks }
}

fn tensor(name: &str, file: u32, offset: u64, shape: &[u64]) -> TensorEntry {
    let size = 2 * shape.iter().product::<u64>();
    TensorEntry { file, name: name.into(), dtype: "BF16".parse().unwrap(), shape: shape.into(), offset, size }
}

/// Two files that share a chunk, and three tensors, of which two have one stem.
fn parts() -> Parts {
    Parts {
        format: FORMAT,
        files: vec![
            file("a/config.json", vec![chunk(1, 10)]),
            file("b.safetensors", vec![chunk(2, 8), chunk(3, 40), chunk(1, 10), chunk(4, 30)]),
        ],
        tensors: vec![
            tensor("embed.weight", 1, 8, &[5, 4]),
            tensor("layers.0.a", 1, 58, &[14]),
            tensor("layers.0.b", 1, 86, &[1]),
        ],
    }
}

#[test]
fn a_manifest_reads_back_and_its_id_is_the_hash_of_its_bytes() {
    let manifest = Manifest::new(parts()).unwrap();
    let bytes = manifest.encode();
    assert_eq!(Manifest::decode(&bytes).unwrap().id(), manifest.id());
    assert_eq!(manifest.id().as_bytes(), blake3::hash(&bytes).as_bytes());
}

/// These bytes are deployed. If this test fails, raise [`FORMAT`]; do not edit the expectation.
#[test]
fn golden_manifest() {
    let id = Manifest::new(parts()).unwrap().id();
    assert_eq!(id.to_hex(), "a901662a812f96af5fe8cab2cfd75e513090e678f76e8b3887b32f400d2a6aa7");
}

#[test]
fn a_shared_chunk_is_counted_once() {
    let manifest = Manifest::new(parts()).unwrap();
    assert_eq!((manifest.chunks().len(), manifest.size()), (4, 88));
    assert_eq!(manifest.position(ChunkId::of(&[3])), Some(2));
    assert_eq!(manifest.position(ChunkId::of(&[9])), None);
}

#[test]
fn a_range_of_a_file_is_found_in_its_chunks() {
    let manifest = Manifest::new(parts()).unwrap();
    let got: Vec<_> = manifest.pieces(1, 47..59).map(|p| (p.chunk.size, p.range)).collect();
    assert_eq!(got, [(40, 39..40), (10, 0..10), (30, 0..1)]);
    assert_eq!(manifest.pieces(1, 88..99).count(), 0);
    assert_eq!(manifest.pieces(1, 5..5).count(), 0);
    let embed = manifest.tensor(1, "embed.weight").unwrap();
    let got: Vec<_> = manifest.tensor_pieces(embed).map(|p| (p.chunk.size, p.range)).collect();
    assert_eq!(got, [(40, 0..40)]);
}

#[test]
fn a_tensor_is_found_by_file_and_name() {
    let mut parts = parts();
    // A copy of the model under the same names is another file's.
    parts.files.push(file("c.gguf", vec![chunk(5, 60)]));
    parts.tensors.push(tensor("embed.weight", 2, 10, &[4]));
    let manifest = Manifest::new(parts).unwrap();
    let offset = |file, name| manifest.tensor(file, name).map(|tensor| tensor.offset);
    assert_eq!(offset(1, "embed.weight"), Some(8));
    assert_eq!(offset(2, "embed.weight"), Some(10));
    assert_eq!((offset(0, "embed.weight"), offset(1, "x")), (None, None));
    assert_eq!([0, 1, 2, 3].map(|file| manifest.tensors_of(file).len()), [0, 3, 1, 0]);
    assert_eq!(manifest.file_position("b.safetensors"), Some(1));
    // The first file has no tensors, so its chunk, which is position 0, is in no stem.
    assert_eq!(manifest.stems(), [vec![2], vec![3], vec![4]]);
}

#[test]
fn a_path_may_begin_like_another() {
    let ok = |paths: &[&str]| {
        let files = paths.iter().map(|path| file(path, vec![])).collect();
        Manifest::new(Parts { format: FORMAT, files, ..Parts::default() }).is_ok()
    };
    assert!(ok(&["...", ".a", "a./..b"]));
    for path in ["", "/", "/a", "a/", "a//b", ".", "..", "a/.", "a/../b", "./a", "a\\b", "a\0"] {
        assert!(!ok(&[path]), "{path:?}");
    }
    assert!(ok(&["a", "a b", "a-/x", "a.b/c", "ab", "ab-", "b/a", "b/ab"]));
    for paths in
        [&["a", "a/b"][..], &["a", "a-", "a/b"], &["a", "a b", "a!/x", "a.b", "a/x/y"], &["a/b", "a/b/c"]]
    {
        assert!(!ok(paths), "{paths:?}");
    }
}

#[test]
fn what_was_checked_is_read_again_by_its_hash() {
    let manifest = Manifest::new(parts()).unwrap();
    let bytes = manifest.encode();
    let again = Manifest::decode_again(manifest.id(), &bytes).unwrap();
    assert_eq!((again.chunks(), again.tensors()), (manifest.chunks(), manifest.tensors()));
    let other = Manifest::decode_again(ModelId::of(b""), &bytes);
    assert!(matches!(other, Err(ManifestError::Other(_))));
}

#[test]
fn there_is_one_way_to_write_a_manifest() {
    let bytes = Manifest::new(parts()).unwrap().encode();
    // The number of files, written with more bytes than it needs.
    assert_eq!(bytes[1], 2);
    let longer = [&bytes[..1], &[0xfb, 2, 0], &bytes[2..]].concat();
    assert!(matches!(Manifest::decode(&longer), Err(ManifestError::Malformed(_))));
    let older = [&[3], &bytes[1..]].concat();
    assert!(matches!(Manifest::decode(&older), Err(ManifestError::Format(3))));
    assert_eq!(files_of_format_3(&older).unwrap(), parts().files);
    assert_eq!(files_of_format_3(&bytes), None);
}

#[test]
fn too_many_tensors_are_refused_before_they_are_read() {
    let mut bytes = wire::encode_manifest(&Parts { format: FORMAT, files: vec![], tensors: vec![] });
    bytes.pop();
    bytes.extend([0xfc, 0, 0, 9, 0]);
    // Empty tensors of 7 bytes each.
    bytes.extend([0, 1, b'a', 1, b'x', 0, 0, 0].repeat(9 << 16));
    assert!(matches!(Manifest::decode(&bytes), Err(ManifestError::Malformed(_))));
}

/// A path in many folders costs what its bytes cost. `tests/manifest_memory.rs` measures it; a set of all folders of all
/// paths took ten seconds here.
#[test]
fn paths_may_be_deep() {
    let path = |at: usize| format!("{at:05}{}", "/a".repeat(500));
    let files: Vec<FileEntry> = (0..20_000).map(|at| file(&path(at), vec![])).collect();
    let manifest = Manifest::new(Parts { format: FORMAT, files, ..Parts::default() }).unwrap();
    assert_eq!(Manifest::decode(&manifest.encode()).unwrap().files().len(), 20_000);
}

#[test]
fn what_is_wrong_is_refused() {
    type Damage = fn(&mut Parts);
    let damages: &[(&str, Damage)] = &[
        ("format", |p| p.format += 1),
        ("parent", |p| p.files[0].path = "../x".to_owned()),
        ("absolute", |p| p.files[0].path = "/x".to_owned()),
        ("backslash", |p| p.files[0].path = "a\\x".to_owned()),
        ("order", |p| p.files.swap(0, 1)),
        ("repeated", |p| p.files[1].path = p.files[0].path.clone()),
        ("file and folder", |p| p.files[1].path = "a/config.json/x".to_owned()),
        ("file size", |p| p.files[0].size += 1),
        ("empty chunk", |p| p.files[0].chunks.push(chunk(7, 0))),
        ("huge chunk", |p| p.files[0].chunks[0].size = u32::MAX),
        ("two sizes", |p| {
            p.files[0].chunks[0].size = 9;
            p.files[0].size = 9;
        }),
        ("tensor past the end", |p| p.tensors[2].offset += 1),
        ("tensors overlap", |p| p.tensors[1].offset = 47),
        ("tensor overflow", |p| p.tensors[1].offset = u64::MAX),
        ("tensor size", |p| p.tensors[1].size += 2),
        ("tensor rank", |p| p.tensors[1].shape = vec![1; 17].into()),
        ("tensor file", |p| p.tensors[2].file = 2),
        ("tensor order", |p| p.tensors[1].name = "a".into()),
        ("tensor twice", |p| p.tensors[1].name = p.tensors[0].name.clone()),
    ];
    for (what, damage) in damages {
        let mut damaged = parts();
        damage(&mut damaged);
        assert!(Manifest::new(damaged).is_err(), "{what} was accepted");
    }
}

proptest! {
    #[test]
    fn hostile_bytes_never_panic(mut bytes in Just(Manifest::new(parts()).unwrap().encode()),
                                 at in any::<prop::sample::Index>(), byte in any::<u8>(), cut in 0usize..40) {
        let at = at.index(bytes.len());
        bytes[at] = byte;
        bytes.truncate(bytes.len() - cut);
        if let Ok(manifest) = Manifest::decode(&bytes) {
            let _ = manifest.pieces(0, 0..u64::MAX).count();
        }
    }
}

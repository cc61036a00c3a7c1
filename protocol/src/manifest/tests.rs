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
    let size = Dtype::Bf16.size_of(shape).unwrap();
    TensorEntry { name: name.to_owned(), dtype: Dtype::Bf16, shape: shape.to_vec(), file, offset, size }
}

/// Two files that share a chunk, two tensors in two groups.
fn parts() -> Parts {
    Parts {
        format: FORMAT,
        files: vec![
            file("a/config.json", vec![chunk(1, 10)]),
            file("b.safetensors", vec![chunk(2, 8), chunk(3, 40), chunk(1, 10), chunk(4, 30)]),
        ],
        tensors: vec![tensor("embed", 1, 8, &[5, 4]), tensor("norm", 1, 58, &[15])],
        groups: vec![
            GroupEntry { group: Group::Embed, tensors: vec![0] },
            GroupEntry { group: Group::Block(Stack::Decoder, 0), tensors: vec![1] },
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
    assert_eq!(id.to_hex(), "5b6ec961ed8da315a591b6760caf35a8ad1ec825e748f3cc1fea7bef0c23d42e");
}

#[test]
fn rows_are_whole_blocks() {
    assert_eq!(Dtype::Q4_0.size_of(&[3, 64]), Some(3 * 2 * 18));
    assert_eq!(Dtype::Q6K.size_of(&[256]), Some(210));
    assert_eq!(Dtype::F64.size_of(&[]), Some(8));
    // As many elements, but no row is a whole block.
    for (dtype, shape) in [(Dtype::Q8_0, &[64, 3][..]), (Dtype::Q4K, &[2, 128]), (Dtype::Q5_1, &[])] {
        assert_eq!(dtype.size_of(shape), None, "{dtype:?} {shape:?}");
    }
    assert_eq!(Dtype::Q2K.size_of(&[u64::MAX, 256]), None);
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
    let embed = manifest.tensor("embed").unwrap();
    let got: Vec<_> = manifest.tensor_pieces(embed).map(|p| (p.chunk.size, p.range)).collect();
    assert_eq!(got, [(40, 0..40)]);
    assert_eq!(manifest.group_chunks(&Group::Block(Stack::Decoder, 0)), [chunk(4, 30)]);
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
        ("tensor past the end", |p| p.tensors[1].offset += 1),
        ("tensors overlap", |p| p.tensors[1].offset = 47),
        ("tensor overflow", |p| p.tensors[1].offset = u64::MAX),
        ("tensor size", |p| p.tensors[1].size -= 2),
        ("tensor shape", |p| p.tensors[1].shape = vec![u64::MAX, u64::MAX]),
        ("tensor file", |p| p.tensors[1].file = 2),
        ("tensor order", |p| p.tensors[1].name = "a".to_owned()),
        ("ungrouped", |p| drop(p.groups.pop())),
        ("grouped twice", |p| p.groups[0].tensors.push(1)),
        ("no such tensor", |p| p.groups[0].tensors.push(9)),
        ("group repeated", |p| p.groups[1].group = Group::Embed),
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

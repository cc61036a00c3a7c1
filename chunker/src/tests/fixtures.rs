//! Models saved by transformers, beside what the reference implementation reads in them.

use std::{collections::HashMap, ops::Range};

use sha2::{Digest, Sha256};
use surf_protocol::{ChunkId, Manifest};

use super::*;

const FIXTURES: [&str; 6] = [
    "tests/fixtures/models/llama",
    "tests/fixtures/models/llama-bf16-sharded",
    "tests/fixtures/models/mistral",
    "tests/fixtures/models/qwen2",
    "tests/fixtures/models/qwen3",
    "node/assets/tiny-surfer",
];

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(name)
}

/// Reads ranges of files out of chunks.
struct Shelf(HashMap<ChunkId, Chunk>);

impl Shelf {
    fn read(&self, manifest: &Manifest, file: u32, range: Range<u64>) -> Bytes {
        let bytes = |piece: surf_protocol::manifest::Piece| {
            self.0[&piece.chunk.id].bytes().slice(piece.range.start as usize..piece.range.end as usize)
        };
        join(&manifest.pieces(file, range).map(bytes).collect::<Vec<_>>())
    }
}

fn cut_twice(path: &Path) -> (Manifest, Shelf) {
    let kept = Kept::default();
    let manifest = cut(path, &Options::default(), &kept).unwrap();
    assert_eq!(cut(path, &Options::default(), &Nothing).unwrap().id(), manifest.id());
    let chunks = kept.chunks.into_inner().unwrap().into_values().flatten();
    (manifest, Shelf(chunks.map(|chunk| (chunk.id(), chunk)).collect()))
}

#[test]
fn files_come_back_byte_for_byte() {
    for name in FIXTURES {
        let (manifest, shelf) = cut_twice(&fixture(name));
        let on_disk = fs::read_dir(fixture(name)).unwrap().count();
        assert_eq!(manifest.files().len(), on_disk, "{name}");
        for (at, file) in manifest.files().iter().enumerate() {
            let expected = fs::read(fixture(name).join(&file.path)).unwrap();
            assert!(shelf.read(&manifest, at as u32, 0..file.size) == expected, "{name} {}", file.path);
            assert_eq!(file.sha256, <[u8; 32]>::from(Sha256::digest(&expected)), "{name} {}", file.path);
            assert_eq!(&file.blake3, blake3::hash(&expected).as_bytes(), "{name} {}", file.path);
        }
    }
}

#[test]
fn tensors_are_what_the_reference_reads_and_lie_on_chunks() {
    for name in FIXTURES {
        let (manifest, shelf) = cut_twice(&fixture(name));
        let mut seen = 0;
        for file in manifest.files().iter().filter(|file| file.path.ends_with(".safetensors")) {
            let bytes = fs::read(fixture(name).join(&file.path)).unwrap();
            for (tensor, view) in safetensors::SafeTensors::deserialize(&bytes).unwrap().tensors() {
                let at = manifest.file_position(&file.path).unwrap();
                let entry = manifest.tensor(at, &tensor).unwrap();
                let read = shelf.read(&manifest, entry.file, entry.offset..entry.offset + entry.size);
                assert!(read == view.data(), "{name} {tensor}");
                let shape: Vec<u64> = view.shape().iter().map(|&n| n as u64).collect();
                assert_eq!(*entry.shape, *shape, "{name} {tensor}");
                assert_eq!(entry.dtype.as_str(), view.dtype().to_string());
                let pieces: Vec<_> = manifest.tensor_pieces(entry).collect();
                let whole = pieces.iter().all(|piece| piece.range == (0..piece.chunk.size));
                assert!(pieces.len() == 1 || whole, "{name} {tensor}");
                seen += 1;
            }
        }
        assert_eq!(manifest.tensors().len(), seen, "{name}");
    }
}

#[test]
fn groups_are_embedding_layers_and_head() {
    for name in FIXTURES {
        let checkpoint = open(&fixture(name), &Options::default(), &Nothing).unwrap();
        let config = fs::read(fixture(name).join("config.json")).unwrap();
        let config: serde_json::Value = serde_json::from_slice(&config).unwrap();
        let layers = config["num_hidden_layers"].as_u64().unwrap() as u32;
        let layers = (0..layers).map(|layer| Group::Layer(Stack::Decoder, layer));
        let expected: Vec<Group> = std::iter::once(Group::Embed).chain(layers).chain([Group::Head]).collect();
        let groups: Vec<Group> = checkpoint.groups().iter().map(|entry| entry.group.clone()).collect();
        assert_eq!(groups[..expected.len()], expected, "{name}");
        // What is left are the recorded outputs that lie beside the fixtures.
        assert!(groups[expected.len()..].iter().all(|group| matches!(group, Group::Named(_))), "{groups:?}");
        // The names tell as much.
        let by_names = crate::groups(checkpoint.manifest(), &Families::default());
        let by_names: Vec<Group> = by_names.into_iter().map(|entry| entry.group).collect();
        assert_eq!(by_names, groups, "{name}");
        for layer in &groups[1..expected.len() - 1] {
            let names: Vec<_> = checkpoint.group(layer).unwrap().map(|tensor| &tensor.name).collect();
            assert!(names.iter().all(|name| name.starts_with("model.layers.")), "{name} {names:?}");
        }
    }
}

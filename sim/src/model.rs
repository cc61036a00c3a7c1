//! A model of random bytes that all nodes of a run share: each keeps bits, and the bytes stand in
//! memory once, so that a thousand nodes with the same 128 MiB cost little more than one.

use std::{ops::Range, sync::Arc};

use bytes::Bytes;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use surf_protocol::{
    Chunk, FileEntry, Manifest, TensorEntry,
    manifest::{ChunkEntry, FORMAT, Parts},
};

/// A manifest, and the bytes of its chunks.
#[derive(Debug)]
pub struct Model {
    manifest: Arc<Manifest>,
    encoded: Bytes,
    chunks: Vec<Chunk>,
    layers: Vec<Range<usize>>,
}

impl Model {
    /// A model of `chunks` different chunks of `size` bytes in `layers` layers, which take turns to be
    /// one chunk longer if they cannot be equal.
    ///
    /// # Panics
    ///
    /// If there is no chunk, or less than one for each layer.
    pub fn random(chunks: usize, size: usize, layers: usize) -> Self {
        assert!(0 < layers && layers <= chunks, "every layer has a chunk");
        let mut dice = ChaCha8Rng::seed_from_u64(0);
        let chunks: Vec<Chunk> = (0..chunks)
            .map(|_| {
                let mut bytes = vec![0; size];
                dice.fill_bytes(&mut bytes);
                Chunk::of(bytes.into())
            })
            .collect();
        let layers: Vec<Range<usize>> =
            (0..layers).map(|at| chunks.len() * at / layers..chunks.len() * (at + 1) / layers).collect();
        let manifest = Manifest::new(parts(&chunks, size, &layers)).expect("a sound manifest");
        let encoded = manifest.encode().into();
        Self { manifest: Arc::new(manifest), encoded, chunks, layers }
    }

    /// The table of contents.
    pub fn manifest(&self) -> &Arc<Manifest> {
        &self.manifest
    }

    /// The table of contents as it is sent.
    pub fn encoded(&self) -> &Bytes {
        &self.encoded
    }

    /// The chunk at a position of the manifest's list.
    pub fn chunk(&self, at: usize) -> &Chunk {
        &self.chunks[at]
    }

    /// Its entry in that list.
    pub fn entry(&self, at: usize) -> ChunkEntry {
        self.manifest.chunks()[at]
    }

    /// How many chunks there are.
    pub fn chunks(&self) -> usize {
        self.chunks.len()
    }

    /// Bytes in each chunk.
    pub fn chunk_size(&self) -> u64 {
        self.chunks[0].bytes().len() as u64
    }

    /// Bytes in all chunks.
    pub fn size(&self) -> u64 {
        self.chunk_size() * self.chunks.len() as u64
    }

    /// Positions of the chunks of each layer, in the order in which they are computed.
    pub fn layers(&self) -> &[Range<usize>] {
        &self.layers
    }
}

fn parts(chunks: &[Chunk], size: usize, layers: &[Range<usize>]) -> Parts {
    let size = size as u64;
    let tensor = |(at, layer): (usize, &Range<usize>)| TensorEntry {
        file: 0,
        name: name(at).into(),
        dtype: "U8".parse().expect("a tag"),
        shape: [layer.len() as u64 * size].into(),
        offset: layer.start as u64 * size,
        size: layer.len() as u64 * size,
    };
    let entries = chunks.iter().map(|chunk| ChunkEntry { id: chunk.id(), size: chunk.bytes().len() as u32 });
    let file = FileEntry {
        path: "weights".to_owned(),
        size: chunks.len() as u64 * size,
        blake3: [0; 32],
        sha256: [0; 32],
        chunks: entries.collect(),
    };
    Parts { format: FORMAT, files: vec![file], tensors: layers.iter().enumerate().map(tensor).collect() }
}

/// The one tensor of a layer: each is a stem of its own.
fn name(layer: usize) -> String {
    format!("layers.{layer:05}.weight")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_are_whole_chunks_and_cover_the_model() {
        let model = Model::random(10, 100, 4);
        assert_eq!(model.size(), 1000);
        let all: Vec<usize> = model.layers().iter().cloned().flatten().collect();
        assert_eq!(all, (0..10).collect::<Vec<_>>());
        for (at, layer) in model.layers().iter().enumerate() {
            let tensor = model.manifest().tensor(0, &name(at)).unwrap();
            let chunks = model.manifest().tensor_pieces(tensor).map(|piece| piece.chunk);
            assert_eq!(
                chunks.collect::<Vec<_>>(),
                layer.clone().map(|at| model.entry(at)).collect::<Vec<_>>()
            );
        }
    }
}

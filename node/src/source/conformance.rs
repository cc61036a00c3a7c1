//! What every chunk source must pass. Each implementation calls it from its own tests.

use surf_protocol::{Chunk, manifest::ChunkEntry};

use super::ChunkSource;

/// Checks `source`'s contract; `put` gives it a chunk.
pub(crate) async fn chunk_source(source: &dyn ChunkSource, put: impl AsyncFn(Chunk)) {
    let chunk = Chunk::of(bytes::Bytes::from_static(b"conformance"));
    let entry = ChunkEntry { id: chunk.id(), size: chunk.bytes().len() as u32 };
    let absent = source.get(entry).await;
    assert_eq!(absent.expect("an absent chunk is no error"), None);
    put(chunk.clone()).await;
    assert_eq!(source.get(entry).await.expect("present"), Some(chunk.clone()));

    drop(source.get(entry));
    let (one, two) = tokio::join!(source.get(entry), source.get(entry));
    assert_eq!((one.expect("one"), two.expect("two")), (Some(chunk.clone()), Some(chunk)));
}

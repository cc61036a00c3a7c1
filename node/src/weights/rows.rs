//! Rows of a table without the table.
//!
//! Which ranges of which chunks hold the rows is worked out first, without I/O. Where the whole
//! table will be needed anyway, whole chunks are asked for instead, so that no byte comes twice.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    ops::Range,
    sync::Arc,
};

use bytes::Bytes;
use futures::{StreamExt as _, stream};
use surf_chunker::{Checkpoint, Parameter};

use super::{WeightsError, ahead::Shared, tensors};
use crate::source::SourceError;

/// Ranges that are waited for at once.
const EXTENTS_AT_ONCE: usize = 32;

/// A range of a chunk travels in whole blocks of this size. What lies between two ranges of
/// neighbouring blocks would travel anyway.
const BLOCK: u32 = 16 << 10;

/// Part of a chunk that is to be fetched, and what it is fetched for.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Extent {
    /// Position of the chunk in the manifest.
    chunk: usize,
    range: Range<u32>,
    parts: Vec<Part>,
}

/// Bytes of a chunk that belong in a row.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Part {
    row: u32,
    /// Where in the row they belong.
    offset: usize,
    range: Range<u32>,
}

/// The bytes of `rows` (distinct, in any order, all there) of the tensor at position `table`.
pub(super) async fn fetch(
    shared: Arc<Shared>,
    table: usize,
    rows: BTreeSet<u32>,
) -> Result<HashMap<u32, Bytes>, WeightsError> {
    let mut found = HashMap::new();
    let mut absent = BTreeMap::new();
    let entry = &shared.manifest.tensors()[table];
    {
        let mut kept = shared.rows.lock().expect("no panics while held");
        for row in rows {
            match kept.find((table, row)) {
                Some(bytes) => _ = found.insert(row, bytes),
                None => _ = absent.insert(row, vec![0; tensors::row_size(entry)]),
            }
        }
    }
    let whole = shared.is_needed_whole(table);
    let extents = extents(&shared.manifest, entry, absent.keys().copied(), whole);
    let read = |extent: Extent| async { Ok((read(&shared, table, &extent).await?, extent)) };
    let mut read = stream::iter(extents).map(read).buffer_unordered(EXTENTS_AT_ONCE);
    while let Some(come) = read.next().await {
        let (bytes, extent): (Bytes, Extent) = come.map_err(WeightsError::Source)?;
        for Part { row, offset, range } in extent.parts {
            let from = (range.start - extent.range.start) as usize;
            let len = range.len();
            let row = absent.get_mut(&row).expect("parts are of absent rows");
            row[offset..offset + len].copy_from_slice(&bytes[from..from + len]);
        }
    }
    let mut kept = shared.rows.lock().expect("no panics while held");
    for (row, bytes) in absent {
        let bytes = Bytes::from(bytes);
        kept.keep((table, row), bytes.clone());
        found.insert(row, bytes);
    }
    Ok(found)
}

impl Shared {
    /// Whether every pass needs all of the tensor at position `table`, or it stays anyway.
    fn is_needed_whole(&self, table: usize) -> bool {
        let group = self.layout.group_of_tensor(table);
        self.plan.is_resident(group) || self.plan.position(group).is_some()
    }
}

async fn read(shared: &Shared, table: usize, extent: &Extent) -> Result<Bytes, SourceError> {
    let entry = shared.manifest.chunks()[extent.chunk];
    if extent.range == (0..entry.size) {
        let urgency = shared.held().now();
        let layout = &shared.layout;
        let streams = layout.is_cut(table) || !shared.plan.is_resident(layout.group_of_tensor(table));
        let chunk = shared.chunks.ask(extent.chunk, urgency).wait(streams).await?;
        if chunk.is_in_file() {
            shared.chunks.used(&Arc::from([chunk.clone()]));
        }
        return Ok(chunk.bytes().clone());
    }
    let got = shared.chunks.source().range(entry, extent.range.clone()).await?;
    if got.id() == entry.id && got.range() == extent.range {
        return Ok(got.bytes().clone());
    }
    Err(SourceError::failed(format!("chunk {}", entry.id), "another range came than was asked for"))
}

/// What to fetch for `rows` of `table`: whole chunks, or as few bytes as travel anyway.
fn extents(
    manifest: &Checkpoint,
    table: &Parameter,
    rows: impl Iterator<Item = u32>,
    whole: bool,
) -> Vec<Extent> {
    let size = tensors::row_size(table) as u64;
    let mut parts = BTreeMap::<usize, Vec<Part>>::new();
    for row in rows {
        let start = table.offset + u64::from(row) * size;
        let mut offset = 0;
        for piece in manifest.pieces(table.file, start..start + size) {
            let chunk = manifest.position(piece.chunk.id).expect("a chunk of this manifest");
            let len = piece.range.len();
            parts.entry(chunk).or_default().push(Part { row, offset, range: piece.range });
            offset += len;
        }
    }
    let mut extents = Vec::<Extent>::new();
    for (chunk, mut parts) in parts {
        if whole {
            let range = 0..manifest.chunks()[chunk].size;
            extents.push(Extent { chunk, range, parts });
            continue;
        }
        parts.sort_by_key(|part| (part.range.start, part.row));
        for part in parts {
            match extents.last_mut().filter(|last| last.chunk == chunk && touches(&last.range, &part.range)) {
                Some(last) => {
                    last.range.end = last.range.end.max(part.range.end);
                    last.parts.push(part);
                }
                None => extents.push(Extent { chunk, range: part.range.clone(), parts: vec![part] }),
            }
        }
    }
    extents
}

/// Whether nothing but blocks of the two ranges lies between them. `later` does not start earlier.
fn touches(earlier: &Range<u32>, later: &Range<u32>) -> bool {
    later.start / BLOCK <= (earlier.end - 1) / BLOCK + 1
}

/// Rows kept by last use, in bounded memory.
#[derive(Debug)]
pub(super) struct RowCache {
    bytes_max: u64,
    bytes: u64,
    uses: u64,
    /// With each row, when it was used last.
    rows: HashMap<Key, (Bytes, u64)>,
    by_use: BTreeMap<u64, Key>,
}

/// A tensor's position, and a row of it.
type Key = (usize, u32);

impl RowCache {
    /// Keeps at most `bytes_max` bytes.
    pub(super) fn new(bytes_max: u64) -> Self {
        Self { bytes_max, bytes: 0, uses: 0, rows: HashMap::new(), by_use: BTreeMap::new() }
    }

    /// The row, if it is kept.
    pub(super) fn find(&mut self, key: Key) -> Option<Bytes> {
        let (bytes, used) = self.rows.get_mut(&key)?;
        self.by_use.remove(used);
        self.uses += 1;
        *used = self.uses;
        self.by_use.insert(self.uses, key);
        Some(bytes.clone())
    }

    /// Keeps a row, and lets go of those used longest ago.
    pub(super) fn keep(&mut self, key: Key, bytes: Bytes) {
        let size = bytes.len() as u64;
        if self.bytes_max < size || self.find(key).is_some() {
            return;
        }
        while self.bytes_max < self.bytes + size {
            let (_, oldest) = self.by_use.pop_first().expect("kept bytes are of kept rows");
            let (gone, _) = self.rows.remove(&oldest).expect("both maps hold the same rows");
            self.bytes -= gone.len() as u64;
        }
        self.uses += 1;
        self.bytes += size;
        self.by_use.insert(self.uses, key);
        self.rows.insert(key, (bytes, self.uses));
    }

    /// Bytes kept.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }
}

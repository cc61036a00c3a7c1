//! From pieces of chunks to tensors, and from tensors to rows: copies and slices of bytes.

use std::hint::black_box;

use bytes::{Bytes, BytesMut};
use surf_chunker::Parameter;

use super::{RawTensor, Tensors};

/// Bytes in the smallest page that a system maps.
const PAGE: usize = 4096;

/// A tensor, and the runs of bytes that make it up.
pub(super) type Scattered = (Parameter, Vec<Bytes>);

/// The tensors of a group where they lie, read from disk if they are there. May block.
pub(super) fn in_place(scattered: Vec<Scattered>) -> Tensors {
    for (_, pieces) in &scattered {
        pieces.iter().for_each(touch);
    }
    let tensors = scattered.into_iter().map(|(entry, pieces)| {
        let row = row_size(&entry);
        let whole_rows = pieces.iter().all(|piece| piece.len().is_multiple_of(row.max(1)));
        let pieces = if whole_rows { pieces } else { vec![joined(pieces)] };
        (entry.name.to_string(), raw(&entry, pieces))
    });
    Tensors { tensors: tensors.collect(), resident: false, ..Tensors::default() }
}

/// The tensors of a group in memory of our own, one piece each. What they lay in is let go one by
/// one. May block.
pub(super) fn copied(scattered: Vec<Scattered>) -> Tensors {
    let tensors = scattered.into_iter().map(|(entry, pieces)| {
        let piece = joined(pieces);
        (entry.name.to_string(), raw(&entry, vec![piece]))
    });
    Tensors { tensors: tensors.collect(), resident: true, ..Tensors::default() }
}

/// Rows of `tensor`, in the order of `rows`, which are all in it.
pub(super) fn gather(tensor: &RawTensor, rows: &[u32]) -> Bytes {
    let count = tensor.shape.first().copied().unwrap_or(1).max(1);
    let size = tensor.pieces.iter().map(Bytes::len).sum::<usize>() / count;
    let mut starts = Vec::with_capacity(tensor.pieces.len());
    let mut end = 0;
    for piece in &tensor.pieces {
        starts.push(end);
        end += piece.len();
    }
    let mut gathered = BytesMut::with_capacity(rows.len() * size);
    for &row in rows {
        let at = row as usize * size;
        let Some(piece) = starts.partition_point(|&start| start <= at).checked_sub(1) else { continue };
        let inside = at - starts[piece];
        gathered.extend_from_slice(&tensor.pieces[piece][inside..inside + size]);
    }
    gathered.freeze()
}

/// Bytes in one row of `tensor`, of its outermost dimension.
pub(super) fn row_size(tensor: &Parameter) -> usize {
    let rows = tensor.shape.first().copied().unwrap_or(1).max(1);
    (tensor.size / rows) as usize
}

/// `entry`'s shape, with other pieces.
pub(super) fn raw(entry: &Parameter, pieces: Vec<Bytes>) -> RawTensor {
    let shape = entry.shape.iter().map(|&n| n as usize).collect();
    RawTensor { dtype: entry.dtype, shape, pieces }
}

/// One run of bytes in memory of our own. Each piece is let go when it has been copied.
fn joined(pieces: Vec<Bytes>) -> Bytes {
    let mut joined = BytesMut::with_capacity(pieces.iter().map(Bytes::len).sum());
    pieces.into_iter().for_each(|piece| joined.extend_from_slice(&piece));
    joined.freeze()
}

/// Reads one byte of each page, so that whoever computes with `bytes` does not wait for the disk.
/// Where the pages are in memory already, this costs some 16 ms for each GiB the first time that a
/// mapping is read, and 3 ms from then on.
fn touch(bytes: &Bytes) {
    bytes.iter().step_by(PAGE).for_each(|byte| {
        black_box(*byte);
    });
}

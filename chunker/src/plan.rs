//! Where to cut. Pure: sizes and names in, sizes out; part of the manifest's format, so a change here is a new
//! [`FORMAT`](surf_protocol::manifest::FORMAT). `docs/protocol.md` says the same.
//!
//! - A header is its own chunks, and so is what lies between tensors: padding, and headers of their own. A little
//!   of it behind small tensors goes with them.
//! - Small neighbours of one stem share a chunk. Any other tensor starts one.
//! - A large tensor is cut between rows of its outermost dimension. A row that is too large for a
//!   chunk starts one, and is cut by the same rule between its own rows. No cut splits an element, or a block of
//!   them.
//! - Each slice of a stack of matrices (of routed experts) starts a chunk, if it is not tiny.
//! - What is left at the end of a table without a number in its name (an embedding, a head) is cut finely, so that a
//!   longer one begins alike.
//! - Everything else is cut every 2 MiB.

use surf_protocol::{
    limits::CHUNK_SIZE_MAX,
    stem::{has_number, stem},
};

use crate::header::{Header, Tensor};

/// Bytes up to which a tensor may share a chunk: norms and biases of common widths. Low, because a tensor
/// that shares a chunk is found again in another model only if its neighbours are the same too.
pub(crate) const SMALL_SIZE_MAX: u64 = 16 * 1024;

/// Bytes in a shared chunk: what a change to one small tensor costs at most.
pub(crate) const SHARED_SIZE_MAX: u64 = 256 * 1024;

/// Bytes in a chunk. Small enough that a model of a few hundred MB is dozens of them, which a crowd can
/// pass on while it fetches; large enough that a 7B model in 16 bits has about seven thousand.
pub(crate) const MAX: u64 = 2 * 1024 * 1024;

/// Bytes in a chunk at the end of a table of the vocabulary. Fine-tunes add rows to it, and usual sizes
/// are multiples of this.
pub(crate) const TABLE_END: u64 = 64 * 1024;

/// Bytes from which on each slice of a stack starts a chunk: an expert is then fetched without its neighbours.
pub(crate) const SLICE_SIZE_MIN: u64 = 64 * 1024;

const _: () =
    assert!(SMALL_SIZE_MAX <= SHARED_SIZE_MAX && SHARED_SIZE_MAX <= MAX && MAX <= CHUNK_SIZE_MAX as u64);

/// Chunk sizes of a file that is just bytes.
pub(crate) fn plain(size: u64) -> Vec<u32> {
    let mut cuts = Vec::new();
    every(MAX, size, &mut cuts);
    cuts
}

/// Chunk sizes of a file of `size` bytes with tensors in it.
pub(crate) fn tensors(header: &Header, size: u64) -> Vec<u32> {
    let mut cuts = Vec::new();
    // The stem of the small tensors that the last chunk holds, and may still grow by.
    let mut open: Option<&str> = None;
    let mut end = 0;
    for tensor in header.tensors.iter().filter(|tensor| 0 < tensor.size) {
        between(tensor.offset - end, &mut open, &mut cuts);
        end = tensor.offset + tensor.size;
        if SMALL_SIZE_MAX < tensor.size {
            open = None;
            large(tensor, &mut cuts);
            continue;
        }
        let stem = stem(&tensor.name);
        match cuts.last_mut() {
            Some(last) if open == Some(stem) && u64::from(*last) + tensor.size <= SHARED_SIZE_MAX => {
                *last += tensor.size as u32;
            }
            _ => cuts.push(tensor.size as u32),
        }
        open = Some(stem);
    }
    between(size - end, &mut open, &mut cuts);
    cuts
}

/// `size` bytes that belong to no tensor.
fn between(size: u64, open: &mut Option<&str>, cuts: &mut Vec<u32>) {
    match cuts.last_mut() {
        Some(last)
            if open.is_some() && size <= SMALL_SIZE_MAX && u64::from(*last) + size <= SHARED_SIZE_MAX =>
        {
            *last += size as u32;
        }
        _ if 0 < size => {
            *open = None;
            every(MAX, size, cuts);
        }
        _ => (),
    }
}

/// A tensor with chunks of its own.
fn large(tensor: &Tensor, cuts: &mut Vec<u32>) {
    let size = tensor.size;
    let shape = dimensions(tensor);
    // A shape that does not divide the bytes evenly says nothing of rows.
    match shape.first().filter(|&&count| 0 < count && size.is_multiple_of(count)).map(|count| size / count) {
        Some(slice) if 3 <= shape.len() && SLICE_SIZE_MIN <= slice => {
            (0..shape[0]).for_each(|_| rows(&shape[1..], slice, cuts));
        }
        Some(row) if shape.len() == 2 && row <= TABLE_END && !has_number(&tensor.name) => {
            let whole = MAX / row * row;
            every(whole, size / whole * whole, cuts);
            every(TABLE_END / row * row, size % whole, cuts);
        }
        _ => rows(&shape, size, cuts),
    }
}

/// The tensor's shape, counting blocks of elements along its last dimension; nothing if its rows are not known.
fn dimensions(tensor: &Tensor) -> Vec<u64> {
    let Some(block) = tensor.block else { return Vec::new() };
    let mut shape = tensor.shape.clone();
    if let Some(last) = shape.last_mut() {
        *last /= block;
    }
    shape
}

fn rows(shape: &[u64], size: u64, cuts: &mut Vec<u32>) {
    match shape {
        [count, inner @ ..] if MAX < size && 0 < *count && size.is_multiple_of(*count) => {
            let row = size / count;
            match row <= MAX {
                true => every(MAX / row * row, size, cuts),
                false => (0..*count).for_each(|_| rows(inner, row, cuts)),
            }
        }
        // What fits, and what has no rows.
        _ => every(MAX, size, cuts),
    }
}

/// Cuts `size` bytes every `step` of them.
fn every(step: u64, size: u64, cuts: &mut Vec<u32>) {
    let (whole, rest) = (size / step, size % step);
    cuts.extend((0..whole).map(|_| step as u32));
    cuts.extend((0 < rest).then_some(rest as u32));
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::header::Tensor;

    const EIGHTH: u64 = MAX / 8;

    fn file(tensors: &[(&str, &[u64])]) -> Header {
        let mut offset = 100;
        let tensors = tensors.iter().map(|&(name, shape)| {
            let size = shape.iter().product();
            offset += size;
            let (name, shape) = (name.into(), shape.to_vec());
            Tensor { name, dtype: "U8".parse().unwrap(), shape, block: Some(1), offset: offset - size, size }
        });
        Header { tensors: tensors.collect() }
    }

    fn end(header: &Header) -> u64 {
        header.tensors.last().map_or(100, |last| last.offset + last.size)
    }

    fn cut(tensors: &[(&str, &[u64])]) -> Vec<u32> {
        let header = file(tensors);
        super::tensors(&header, end(&header))
    }

    #[test]
    fn small_neighbours_of_one_stem_share_a_chunk() {
        assert_eq!(cut(&[("a.v", &[64]), ("a.w", &[32]), ("b.v", &[8]), ("b.w", &[9])]), [100, 96, 17]);
        let layer = ["h.1.a", "h.1.b.c", "h.2.a", "h.2.e.1.w", "h.2.e.1.v"];
        assert_eq!(cut(&layer.map(|name| (name, &[8][..]))), [100, 16, 8, 16]);
    }

    #[test]
    fn a_large_tensor_ends_a_shared_chunk() {
        let large = SMALL_SIZE_MAX + 1;
        assert_eq!(cut(&[("a.1", &[64]), ("a.1", &[large]), ("a.1", &[32])]), [100, 64, large as u32, 32]);
    }

    #[test]
    fn a_shared_chunk_has_a_bound() {
        let many: Vec<(&str, &[u64])> = vec![("a", &[SMALL_SIZE_MAX]); 17];
        assert_eq!(cut(&many), [100, SHARED_SIZE_MAX as u32, SMALL_SIZE_MAX as u32]);
    }

    #[test]
    fn empty_tensors_cut_nothing() {
        assert_eq!(cut(&[("a.v", &[64]), ("b", &[0, 7]), ("a.w", &[32])]), [100, 96]);
    }

    #[test]
    fn what_lies_between_tensors_goes_with_small_ones_or_alone() {
        let large = SMALL_SIZE_MAX + 1;
        let mut header =
            file(&[("a.v", &[64]), ("a.w", &[32]), ("a.3", &[large]), ("a.4", &[large]), ("b", &[5])]);
        for (at, tensor) in header.tensors.iter_mut().enumerate() {
            tensor.offset += 10 * at as u64;
        }
        let size = end(&header) + 3;
        let cuts = super::tensors(&header, size);
        let large = large as u32;
        assert_eq!(cuts, [100, 64 + 10 + 32 + 10, large, 10, large, 10, 5 + 3]);
        header.tensors.clear();
        assert_eq!(super::tensors(&header, MAX + 1), plain(MAX + 1));
    }

    #[test]
    fn blocks_are_never_cut() {
        // One row of GGML's blocks that is larger than a chunk.
        let count = MAX / 18 + 5;
        let mut header = file(&[("a", &[count * 18])]);
        header.tensors[0].block = Some(32);
        header.tensors[0].shape = vec![count * 32];
        let cuts = super::tensors(&header, 100 + count * 18);
        assert_eq!(cuts[1..], [(MAX / 18 * 18) as u32, 5 * 18]);
    }

    #[test]
    fn large_tensors_are_cut_between_rows() {
        // Three eighths of a chunk: two to one.
        let six = 6 * EIGHTH as u32;
        assert_eq!(cut(&[("a", &[5, 3 * EIGHTH])]), [100, six, six, 3 * EIGHTH as u32]);
        // What the shape does not divide has no rows, and neither has what is of a type that is not known.
        let mut header = file(&[("a", &[5, 3 * EIGHTH])]);
        for (shape, block) in [(vec![7, 3], Some(1)), (vec![0], Some(1)), (vec![5, 3 * EIGHTH], None)] {
            (header.tensors[0].shape, header.tensors[0].block) = (shape, block);
            assert_eq!(super::tensors(&header, end(&header))[1..], plain(15 * EIGHTH));
        }
    }

    #[test]
    fn a_row_larger_than_a_chunk_starts_one_and_is_cut_between_its_own_rows() {
        let (row, five, rest) = (10 * EIGHTH, 5 * EIGHTH as u32, 2 * EIGHTH as u32);
        assert_eq!(cut(&[("a", &[2, 2, 5 * EIGHTH])]), [100, five, five, five, five]);
        assert_eq!(cut(&[("a", &[2, row])]), [100, MAX as u32, rest, MAX as u32, rest]);
    }

    #[test]
    fn a_longer_vocabulary_begins_alike() {
        let table = |rows: u64| {
            let header = file(&[("a.weight", &[rows, 1024])]);
            super::tensors(&header, end(&header))[1..].to_vec()
        };
        let (chunk, end) = (MAX as u32, TABLE_END as u32);
        assert_eq!(table(2048 + 64 + 5), [chunk, end, 5 * 1024]);
        assert_eq!(table(2048 + 128), [chunk, end, end]);
        assert_eq!(table(70), [end, 6 * 1024]);
        // Rows that do not fit are cut like any others.
        assert_eq!(cut(&[("a", &[3, TABLE_END + 1])]).len(), 2);
        // And so are those of a layer.
        assert_eq!(cut(&[("h.1.a", &[70, 1024])]), [100, 70 * 1024]);
    }

    #[test]
    fn every_slice_of_a_stack_starts_a_chunk() {
        let slice = SLICE_SIZE_MIN as u32;
        assert_eq!(cut(&[("h.1.experts", &[4, 64, 1024])]), [100, slice, slice, slice, slice]);
        assert_eq!(cut(&[("experts", &[2, 1, 1, SLICE_SIZE_MIN])]), [100, slice, slice]);
        // Tiny ones, of convolutions say, are rows like others.
        assert_eq!(cut(&[("h.1.conv", &[4, 63, 1024])]), [100, 4 * 63 * 1024]);
        // One that is larger than a chunk is cut between its own rows.
        let (three, four) = (3 * EIGHTH, [6 * EIGHTH as u32, 6 * EIGHTH as u32]);
        assert_eq!(cut(&[("experts", &[2, 4, three])]), [&[100], &four[..], &four].concat());
    }

    #[test]
    fn other_files_are_cut_every_so_often() {
        assert!(plain(0).is_empty());
        assert_eq!(plain(MAX), [2 << 20]);
        assert_eq!(plain(MAX + 1), [2 << 20, 1]);
    }

    proptest! {
        #[test]
        fn chunks_fill_the_file_and_tensors_start_them(
            shapes in prop::collection::vec(prop::collection::vec(0..400u64, 0..4), 0..20),
        ) {
            let shapes: Vec<(&str, &[u64])> = shapes.iter().map(|shape| ("h.1.a", shape.as_slice())).collect();
            let file = file(&shapes);
            let cuts = cut(&shapes);
            let mut starts = std::collections::BTreeSet::new();
            let end = cuts.iter().fold(0, |start, &size| {
                assert!(0 < size && u64::from(size) <= MAX);
                starts.insert(start);
                start + u64::from(size)
            });
            prop_assert_eq!(end, super::tests::end(&file));
            for tensor in &file.tensors {
                let after = tensor.offset + tensor.size;
                let starts_one = starts.contains(&tensor.offset) && (after == end || starts.contains(&after));
                prop_assert!(starts_one || tensor.size <= SMALL_SIZE_MAX);
            }
        }
    }
}

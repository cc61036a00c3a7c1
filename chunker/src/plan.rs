//! Where to cut. Pure: sizes in, sizes out; part of the manifest's format, so a change here is a new
//! [`FORMAT`](surf_protocol::manifest::FORMAT).
//!
//! - A header is its own chunks, and so is what lies between tensors: padding, and headers of their own. A little
//!   of it behind small tensors goes with them.
//! - A tensor starts a chunk, unless it is small and so are its neighbours of the same group.
//! - A large tensor is cut between rows of its outermost dimension. A row that is too large for a
//!   chunk starts one, and is cut by the same rule between its own rows. So an expert of a fused
//!   `[experts, out, in]` tensor is whole chunks, and no cut splits an element, or a block of them.
//! - What is left at the end of a vocabulary's table is cut finely, so that a longer one begins alike.
//! - Everything else is cut every 2 MiB.

use surf_protocol::{Group, limits::CHUNK_SIZE_MAX};

use crate::header::Header;

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

const _: () =
    assert!(SMALL_SIZE_MAX <= SHARED_SIZE_MAX && SHARED_SIZE_MAX <= MAX && MAX <= CHUNK_SIZE_MAX as u64);

/// Chunk sizes of a file that is just bytes.
pub(crate) fn plain(size: u64) -> Vec<u32> {
    let mut cuts = Vec::new();
    every(MAX, size, &mut cuts);
    cuts
}

/// Chunk sizes of a file of `size` bytes with tensors in it.
pub(crate) fn tensors(header: &Header, size: u64, group_of: impl Fn(&str) -> Group) -> Vec<u32> {
    let mut cuts = Vec::new();
    // The group of the small tensors that the last chunk holds, and may still grow by.
    let mut open: Option<Group> = None;
    let mut end = 0;
    for tensor in header.tensors.iter().filter(|tensor| 0 < tensor.size) {
        between(tensor.offset - end, &mut open, &mut cuts);
        end = tensor.offset + tensor.size;
        if SMALL_SIZE_MAX < tensor.size {
            open = None;
            let blocks = tensor.dtype.and_then(|dtype| dtype.in_blocks(&tensor.shape));
            let shape = blocks.as_ref().unwrap_or(&tensor.shape);
            match (group_of(&tensor.name), &shape[..]) {
                (Group::Embed | Group::Head, &[count, _]) if tensor.size / count <= TABLE_END => {
                    table(count, tensor.size, &mut cuts);
                }
                _ => rows(shape, tensor.size, &mut cuts),
            }
            continue;
        }
        let group = group_of(&tensor.name);
        match cuts.last_mut() {
            Some(last)
                if open.as_ref() == Some(&group) && u64::from(*last) + tensor.size <= SHARED_SIZE_MAX =>
            {
                *last += tensor.size as u32;
            }
            _ => cuts.push(tensor.size as u32),
        }
        open = Some(group);
    }
    between(size - end, &mut open, &mut cuts);
    cuts
}

/// `size` bytes that belong to no tensor.
fn between(size: u64, open: &mut Option<Group>, cuts: &mut Vec<u32>) {
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

/// A table of `count` rows, each much smaller than a chunk.
fn table(count: u64, size: u64, cuts: &mut Vec<u32>) {
    let row = size / count;
    let whole = MAX / row * row;
    every(whole, size / whole * whole, cuts);
    every(TABLE_END / row * row, size % whole, cuts);
}

fn rows(shape: &[u64], size: u64, cuts: &mut Vec<u32>) {
    match shape {
        [count, inner @ ..] if MAX < size && MAX < size / count => {
            (0..*count).for_each(|_| rows(inner, size / count, cuts));
        }
        [count, ..] if MAX < size => {
            let row = size / count;
            every(MAX / row * row, size, cuts);
        }
        // What fits; an element always does.
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
            let (name, shape) = (name.to_owned(), shape.to_vec());
            Tensor { name, dtype: None, shape, offset: offset - size, size }
        });
        Header { tensors: tensors.collect() }
    }

    fn end(header: &Header) -> u64 {
        header.tensors.last().map_or(100, |last| last.offset + last.size)
    }

    fn cut(tensors: &[(&str, &[u64])]) -> Vec<u32> {
        // One group for each first letter.
        let header = file(tensors);
        super::tensors(&header, end(&header), |name| Group::Named(name[..1].to_owned()))
    }

    #[test]
    fn small_neighbours_of_one_group_share_a_chunk() {
        assert_eq!(cut(&[("a1", &[64]), ("a2", &[32]), ("b1", &[8]), ("b2", &[9])]), [100, 96, 17]);
    }

    #[test]
    fn a_large_tensor_ends_a_shared_chunk() {
        let large = SMALL_SIZE_MAX + 1;
        assert_eq!(cut(&[("a1", &[64]), ("a2", &[large]), ("a3", &[32])]), [100, 64, large as u32, 32]);
    }

    #[test]
    fn a_shared_chunk_has_a_bound() {
        let many: Vec<(&str, &[u64])> = vec![("a", &[SMALL_SIZE_MAX]); 17];
        assert_eq!(cut(&many), [100, SHARED_SIZE_MAX as u32, SMALL_SIZE_MAX as u32]);
    }

    #[test]
    fn empty_tensors_cut_nothing() {
        assert_eq!(cut(&[("a1", &[64]), ("b", &[0, 7]), ("a2", &[32])]), [100, 96]);
    }

    #[test]
    fn what_lies_between_tensors_goes_with_small_ones_or_alone() {
        let large = SMALL_SIZE_MAX + 1;
        let mut header =
            file(&[("a1", &[64]), ("a2", &[32]), ("a3", &[large]), ("a4", &[large]), ("b", &[5])]);
        for (at, tensor) in header.tensors.iter_mut().enumerate() {
            tensor.offset += 10 * at as u64;
        }
        let size = end(&header) + 3;
        let cuts = super::tensors(&header, size, |name| Group::Named(name[..1].to_owned()));
        let large = large as u32;
        assert_eq!(cuts, [100, 64 + 10 + 32 + 10, large, 10, large, 10, 5 + 3]);
        header.tensors.clear();
        assert_eq!(super::tensors(&header, MAX + 1, |_| Group::Head), plain(MAX + 1));
    }

    #[test]
    fn blocks_are_never_cut() {
        // One row of GGML's blocks that is larger than a chunk.
        let count = MAX / 18 + 5;
        let mut header = file(&[("a", &[count * 18])]);
        header.tensors[0].dtype = Some(surf_protocol::Dtype::Q4_0);
        header.tensors[0].shape = vec![count * 32];
        let cuts = super::tensors(&header, 100 + count * 18, |_| Group::Head);
        assert_eq!(cuts[1..], [(MAX / 18 * 18) as u32, 5 * 18]);
    }

    #[test]
    fn large_tensors_are_cut_between_rows() {
        // Three eighths of a chunk: two to one.
        let six = 6 * EIGHTH as u32;
        assert_eq!(cut(&[("a", &[5, 3 * EIGHTH])]), [100, six, six, 3 * EIGHTH as u32]);
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
            let header = file(&[("a", &[rows, 1024])]);
            super::tensors(&header, end(&header), |_| Group::Embed)[1..].to_vec()
        };
        let (chunk, end) = (MAX as u32, TABLE_END as u32);
        assert_eq!(table(2048 + 64 + 5), [chunk, end, 5 * 1024]);
        assert_eq!(table(2048 + 128), [chunk, end, end]);
        assert_eq!(table(70), [end, 6 * 1024]);
        // Rows that do not fit are cut like any others.
        let wide = file(&[("a", &[3, TABLE_END + 1])]);
        assert_eq!(super::tensors(&wide, super::tests::end(&wide), |_| Group::Head).len(), 2);
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
            let shapes: Vec<(&str, &[u64])> = shapes.iter().map(|shape| ("a", shape.as_slice())).collect();
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

//! Rows of floats, cut into the steps that vectors take.

use std::ops::Range;

/// Where weights are, and which steps are made there: in the rows themselves, and at the end in a copy of what is
/// left of them, which is padded with zeros. The number of a step times its size is added to the pointers.
#[inline(always)]
pub(crate) fn parts<const ROWS: usize>(
    rows: &[&[u8]],
    size: usize,
    tail: &mut [[u8; 64]; ROWS],
) -> [([*const u8; ROWS], Range<usize>); 2] {
    // Those that are not there are computed like the last, and left.
    let row = |r: usize| rows[r.min(rows.len() - 1)];
    let (whole, rest) = (rows[0].len() / size, rows[0].len() % size);
    for (r, tail) in tail.iter_mut().enumerate() {
        tail[..rest].copy_from_slice(&row(r)[whole * size..]);
        tail[rest..].fill(0);
    }
    [
        (std::array::from_fn(|r| row(r).as_ptr()), 0..whole),
        (
            std::array::from_fn(|r| tail[r].as_ptr().wrapping_sub(whole * size)),
            whole..whole + usize::from(0 < rest),
        ),
    ]
}

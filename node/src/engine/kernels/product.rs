//! Blocked products of f32 matrices, through `gemm`: the one place that hands it pointers.

use std::{marker::PhantomData, sync::atomic::AtomicPtr, sync::atomic::Ordering};

use gemm::Parallelism;

/// A matrix to read, in a slice.
#[derive(Clone, Copy, Debug)]
pub(crate) struct View<'a> {
    data: &'a [f32],
    rows: usize,
    cols: usize,
    row_stride: usize,
    col_stride: usize,
}

impl<'a> View<'a> {
    /// `rows` by `cols`, each row `stride` after the one before.
    ///
    /// # Panics
    ///
    /// If that is not inside `data`.
    pub(crate) fn new(data: &'a [f32], rows: usize, cols: usize, stride: usize) -> Self {
        assert!(fits(data.len(), rows, cols, stride), "the view is inside its data");
        Self { data, rows, cols, row_stride: stride, col_stride: 1 }
    }

    /// The same numbers with rows and columns exchanged.
    pub(crate) fn transposed(self) -> Self {
        Self {
            rows: self.cols,
            cols: self.rows,
            row_stride: self.col_stride,
            col_stride: self.row_stride,
            ..self
        }
    }
}

/// A matrix to write, which may be some columns of a larger one. Blocks of one matrix never
/// overlap, so several threads may each write their own.
#[derive(Debug)]
pub(crate) struct Block<'a> {
    /// Of the first element. Atomic only because such a pointer may go to another thread; it is
    /// never changed. All of `rows` by `cols`, `stride` between rows, is exclusively borrowed.
    start: AtomicPtr<f32>,
    rows: usize,
    cols: usize,
    stride: usize,
    borrowed: PhantomData<&'a mut [f32]>,
}

impl<'a> Block<'a> {
    /// All of `data`, as `rows` by `cols`.
    ///
    /// # Panics
    ///
    /// If that is not the size of `data`.
    pub(crate) fn whole(data: &'a mut [f32], rows: usize, cols: usize) -> Self {
        assert_eq!(data.len(), rows * cols, "the block is all of its data");
        Self { start: AtomicPtr::new(data.as_mut_ptr()), rows, cols, stride: cols, borrowed: PhantomData }
    }

    /// Splits into runs of columns of these widths.
    ///
    /// # Panics
    ///
    /// If they add up to more than all columns.
    pub(crate) fn columns(self, widths: &[usize]) -> Vec<Block<'a>> {
        assert!(widths.iter().sum::<usize>() <= self.cols, "the widths fit the block");
        let mut first = 0;
        let block = |&width: &usize| {
            let start = AtomicPtr::new(self.start.load(Ordering::Relaxed).wrapping_add(first));
            first += width;
            Block { start, rows: self.rows, cols: width, stride: self.stride, borrowed: PhantomData }
        };
        widths.iter().map(block).collect()
    }

    /// `rows` rows from `first` on, and of these `cols` columns from `first_col` on.
    ///
    /// # Panics
    ///
    /// If they are not inside.
    pub(crate) fn part(&mut self, first: usize, rows: usize, first_col: usize, cols: usize) -> Block<'_> {
        assert!(first + rows <= self.rows && first_col + cols <= self.cols, "the part is inside its block");
        let start = self.start.load(Ordering::Relaxed).wrapping_add(first * self.stride + first_col);
        Block { start: AtomicPtr::new(start), rows, cols, stride: self.stride, borrowed: PhantomData }
    }

    /// Takes each row of one column block as rows of `width`, if there is but one: the heads that a
    /// single token has side by side, one below the other.
    ///
    /// # Panics
    ///
    /// If there is more than one row, or `width` does not divide it.
    pub(crate) fn folded(self, width: usize) -> Block<'a> {
        assert!(self.rows == 1 && self.cols.is_multiple_of(width), "one row is folded evenly");
        Block { rows: self.cols / width, cols: width, stride: width, ..self }
    }
}

/// Writes `scale · a · b` to `to`, on this thread.
///
/// # Panics
///
/// If the sizes do not fit each other.
pub(crate) fn product(to: Block<'_>, a: View<'_>, b: View<'_>, scale: f32) {
    assert_eq!((to.rows, to.cols, a.cols), (a.rows, b.cols, b.rows), "the matrices fit each other");
    let start = to.start.load(Ordering::Relaxed);
    #[expect(unsafe_code, reason = "gemm takes pointers")]
    // SAFETY: `View::new` checked that every element of `a` and `b` is inside a slice that is
    // borrowed until after this call. `to` is all of, or a checked part of, a slice that `Block`
    // borrows exclusively, and blocks of one slice are disjoint; strides are in elements.
    unsafe {
        gemm::gemm(
            a.rows,
            b.cols,
            a.cols,
            start,
            1,
            to.stride as isize,
            false,
            a.data.as_ptr(),
            a.col_stride as isize,
            a.row_stride as isize,
            b.data.as_ptr(),
            b.col_stride as isize,
            b.row_stride as isize,
            0.0,
            scale,
            false,
            false,
            false,
            Parallelism::None,
        );
    }
}

fn fits(len: usize, rows: usize, cols: usize, stride: usize) -> bool {
    let end = rows.checked_sub(1).map_or(Some(0), |last| last.checked_mul(stride)?.checked_add(cols));
    cols <= stride && end.is_some_and(|end| end <= len)
}

//! Where results go.

use std::marker::PhantomData;

use crate::lanes::canonical;

/// A matrix of results, or some of its columns: a row for each row of activations, a column for each weight row.
/// Parts of one matrix never overlap, so several threads may each write their own.
#[derive(Debug)]
pub struct Part<'a> {
    out: Out,
    rows: usize,
    columns: usize,
    borrowed: PhantomData<&'a mut [f32]>,
}

// SAFETY: a part is an exclusive borrow of its results.
unsafe impl Send for Part<'_> {}

impl<'a> Part<'a> {
    /// All of `to`, in rows of `columns` results.
    ///
    /// # Panics
    ///
    /// If that is not whole rows.
    pub fn whole(to: &'a mut [f32], columns: usize) -> Self {
        assert!(0 < columns && to.len().is_multiple_of(columns), "results are whole rows");
        let rows = to.len() / columns;
        Self { out: Out { start: to.as_mut_ptr(), stride: columns }, rows, columns, borrowed: PhantomData }
    }

    /// The first `columns` columns, and those after them.
    ///
    /// # Panics
    ///
    /// If there are not so many.
    pub fn split(self, columns: usize) -> (Self, Self) {
        assert!(columns <= self.columns, "the columns are there");
        let last = Self { out: self.out.from(0, columns), columns: self.columns - columns, ..self };
        (Self { columns, ..self }, last)
    }

    /// How many rows there are.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Results in a row.
    pub fn columns(&self) -> usize {
        self.columns
    }

    pub(crate) fn out(&self) -> Out {
        self.out
    }
}

/// Where the results of a part begin.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Out {
    /// The first result.
    start: *mut f32,
    /// Elements from one row of activations to the next.
    stride: usize,
}

impl Out {
    /// The same from another row and column on.
    pub(crate) fn from(self, row: usize, column: usize) -> Self {
        Self { start: self.start.wrapping_add(row * self.stride + column), stride: self.stride }
    }

    /// Writes `results` of the activations' row `row`, the first in column `column`.
    ///
    /// # Safety
    ///
    /// There is room for them, and nobody else reads or writes it.
    #[inline(always)]
    pub(crate) unsafe fn put(self, row: usize, column: usize, results: &[f32]) {
        let to = self.start.wrapping_add(row * self.stride + column);
        for (at, result) in results.iter().enumerate() {
            // SAFETY: as the caller promised.
            unsafe { to.add(at).write(canonical(*result)) };
        }
    }
}

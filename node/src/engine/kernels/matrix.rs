//! A weight matrix as it came: in pieces, in its own precision, and perhaps with scales beside it.

use std::{cell::RefCell, ops::Range, sync::Arc};

use bytes::Bytes;
use surf_protocol::Dtype;

use super::widen::{self, widen};

const _: () = assert!(cfg!(target_endian = "little"), "weights are little-endian and used in place");

/// An element type that a product understands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Float(Dtype);

impl Float {
    /// 32 bits.
    pub(crate) const F32: Self = Self(Dtype::F32);
    /// bfloat16.
    pub(crate) const BF16: Self = Self(Dtype::Bf16);

    /// The float that `dtype` is, if it is one.
    pub(crate) fn of(dtype: Dtype) -> Option<Self> {
        widen::known(dtype).then_some(Self(dtype))
    }

    /// Whether one element has bytes of its own.
    pub(crate) fn is_single(self) -> bool {
        self.0.block().elements == 1
    }

    /// Bytes of a row of `cols` elements, if it is whole blocks.
    pub(crate) fn row_bytes(self, cols: usize) -> Option<usize> {
        usize::try_from(self.0.size_of(&[cols as u64])?).ok()
    }
}

/// A matrix whose rows are spread over pieces, each a run of whole rows. Never copied whole.
#[derive(Clone, Debug)]
pub(crate) struct Matrix {
    float: Float,
    rows: usize,
    cols: usize,
    row_bytes: usize,
    pieces: Vec<Bytes>,
    scales: Option<Scales>,
}

/// What the elements of a matrix are multiplied by: one number for each tile of it.
#[derive(Clone, Debug)]
pub(crate) struct Scales {
    /// Rows of tiles, by rows.
    pub(crate) values: Arc<[f32]>,
    /// Rows and columns of a tile. At the matrix's edges, tiles are cut off.
    pub(crate) tile: [usize; 2],
}

/// Some consecutive rows of a [`Matrix`], in one run of bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Run<'a> {
    matrix: &'a Matrix,
    /// The first of them.
    first: usize,
    bytes: &'a [u8],
}

impl Matrix {
    /// A matrix of `rows` by `cols`, unless the pieces are not runs of whole rows that make it up.
    pub(crate) fn new(float: Float, rows: usize, cols: usize, pieces: Vec<Bytes>) -> Option<Self> {
        let row_bytes = float.row_bytes(cols).filter(|&bytes| 0 < bytes)?;
        let whole = pieces.iter().all(|piece| piece.len().is_multiple_of(row_bytes));
        let held: usize = pieces.iter().map(|piece| piece.len() / row_bytes).sum();
        let matrix = Self { float, rows, cols, row_bytes, pieces, scales: None };
        (whole && held == rows && 0 < rows).then_some(matrix)
    }

    /// The same, multiplied by `scales`, unless there is not one for every tile.
    pub(crate) fn scaled(self, scales: Scales) -> Option<Self> {
        let [high, wide] = scales.tile;
        let fits = 0 < high
            && 0 < wide
            && scales.values.len() == self.rows.div_ceil(high) * self.cols.div_ceil(wide);
        fits.then_some(Self { scales: Some(scales), ..self })
    }

    pub(crate) fn rows(&self) -> usize {
        self.rows
    }

    pub(crate) fn cols(&self) -> usize {
        self.cols
    }

    pub(crate) fn row_bytes(&self) -> usize {
        self.row_bytes
    }

    /// What its elements are stored as.
    pub(crate) fn dtype(&self) -> Dtype {
        self.float.0
    }

    /// Whether there are scales to multiply them by.
    pub(crate) fn is_scaled(&self) -> bool {
        self.scales.is_some()
    }

    /// Whether the bytes are elements of this type, with nothing to multiply them by.
    pub(crate) fn is_plain(&self, float: Float) -> bool {
        self.float == float && self.scales.is_none()
    }

    /// All rows in order, in runs of at most `rows_max`.
    pub(crate) fn runs(&self, rows_max: usize) -> Vec<Run<'_>> {
        let mut first = 0;
        let mut runs = Vec::new();
        for bytes in &self.pieces {
            let piece = Run { matrix: self, first, bytes };
            first += piece.rows();
            runs.extend(piece.parts(rows_max));
        }
        runs
    }

    /// These columns of all rows, widened, by rows. Scales are left out.
    pub(crate) fn read_columns(&self, columns: Range<usize>, to: &mut [f32]) {
        let block = self.float.0.block();
        let (elements, size) = (block.elements as usize, block.bytes as usize);
        // Whole blocks, and what of them is asked for.
        let (first, last) = (columns.start / elements, columns.end.div_ceil(elements));
        let within = columns.start - first * elements..columns.end - first * elements;
        let mut row = vec![0.0; (last - first) * elements];
        let rows = self.pieces.iter().flat_map(|piece| piece.chunks_exact(self.row_bytes));
        for (bytes, to) in rows.zip(to.chunks_exact_mut(columns.len())) {
            widen(self.float.0, &bytes[first * size..last * size], &mut row);
            to.copy_from_slice(&row[within.clone()]);
        }
    }

    /// Row `at`, widened onto the end of `to`. `None` if there is no such row.
    pub(crate) fn read_row(&self, at: usize, to: &mut Vec<f32>) -> Option<()> {
        let mut first = 0;
        for piece in &self.pieces {
            let rows = piece.len() / self.row_bytes;
            if at < first + rows {
                let bytes = &piece[(at - first) * self.row_bytes..][..self.row_bytes];
                let start = to.len();
                to.resize(start + self.cols, 0.0);
                Run { matrix: self, first: at, bytes }.read(&mut to[start..]);
                return Some(());
            }
            first += rows;
        }
        None
    }
}

impl Scales {
    /// Multiplies whole rows of `cols` elements, the first of which is the matrix's row `first`.
    fn apply(&self, first: usize, cols: usize, rows: &mut [f32]) {
        let [high, wide] = self.tile;
        let across = cols.div_ceil(wide);
        for (at, row) in rows.chunks_exact_mut(cols).enumerate() {
            let scales = &self.values[(first + at) / high * across..][..across];
            for (tile, scale) in row.chunks_mut(wide).zip(scales) {
                tile.iter_mut().for_each(|value| *value *= scale);
            }
        }
    }
}

impl<'a> Run<'a> {
    pub(crate) fn rows(&self) -> usize {
        self.bytes.len() / self.matrix.row_bytes
    }

    pub(crate) fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// The same rows, in runs of at most `rows_max`.
    pub(crate) fn parts(self, rows_max: usize) -> impl Iterator<Item = Run<'a>> {
        let parts = self.bytes.chunks(rows_max * self.matrix.row_bytes).enumerate();
        parts.map(move |(at, bytes)| Run { bytes, first: self.first + at * rows_max, ..self })
    }

    /// Calls `with` with the rows as f32: in place where they are, else widened into this thread's
    /// scratch. `with` must not call this again.
    pub(crate) fn with_f32<R>(&self, with: impl FnOnce(&[f32]) -> R) -> R {
        thread_local! {
            static SCRATCH: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
        }
        if self.matrix.is_plain(Float::F32)
            && let Ok(values) = bytemuck::try_cast_slice(self.bytes)
        {
            return with(values);
        }
        SCRATCH.with_borrow_mut(|scratch| {
            let elements = self.rows() * self.matrix.cols;
            if scratch.len() < elements {
                scratch.resize(elements, 0.0);
            }
            self.read(&mut scratch[..elements]);
            with(&scratch[..elements])
        })
    }

    /// Widens the rows to `to`, and multiplies them by their scales.
    fn read(&self, to: &mut [f32]) {
        widen(self.matrix.float.0, self.bytes, to);
        if let Some(scales) = &self.matrix.scales {
            scales.apply(self.first, self.matrix.cols, to);
        }
    }
}

//! A weight matrix as it came: in pieces, in its own precision.

use std::cell::RefCell;

use bytemuck::pod_read_unaligned;
use bytes::Bytes;
use pulp::Arch;
use surf_protocol::Dtype;

const _: () = assert!(cfg!(target_endian = "little"), "weights are little-endian and used in place");

/// Element types that a product understands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Float {
    /// 32 bits.
    F32,
    /// IEEE half.
    F16,
    /// bfloat16.
    Bf16,
}

impl Float {
    /// The float that `dtype` is, if it is one of these.
    pub(crate) fn of(dtype: Dtype) -> Option<Self> {
        match dtype {
            Dtype::F32 => Some(Self::F32),
            Dtype::F16 => Some(Self::F16),
            Dtype::Bf16 => Some(Self::Bf16),
            _ => None,
        }
    }

    /// Bytes of one element.
    pub(crate) fn size(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
        }
    }
}

/// A matrix whose rows are spread over pieces, each a run of whole rows. Never copied whole.
#[derive(Clone, Debug)]
pub(crate) struct Matrix {
    float: Float,
    rows: usize,
    cols: usize,
    pieces: Vec<Bytes>,
}

/// Some consecutive rows of a [`Matrix`], in one run of bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Run<'a> {
    float: Float,
    cols: usize,
    bytes: &'a [u8],
}

impl Matrix {
    /// A matrix of `rows` by `cols`, unless the pieces are not runs of whole rows that make it up.
    pub(crate) fn new(float: Float, rows: usize, cols: usize, pieces: Vec<Bytes>) -> Option<Self> {
        let row_bytes = cols.checked_mul(float.size()).filter(|&bytes| 0 < bytes)?;
        let whole = pieces.iter().all(|piece| piece.len().is_multiple_of(row_bytes));
        let held: usize = pieces.iter().map(|piece| piece.len() / row_bytes).sum();
        (whole && held == rows && 0 < rows).then_some(Self { float, rows, cols, pieces })
    }

    pub(crate) fn rows(&self) -> usize {
        self.rows
    }

    pub(crate) fn cols(&self) -> usize {
        self.cols
    }

    pub(crate) fn float(&self) -> Float {
        self.float
    }

    /// All rows in order, in runs of at most `rows_max`.
    pub(crate) fn runs(&self, rows_max: usize) -> Vec<Run<'_>> {
        let bytes_max = rows_max * self.cols * self.float.size();
        let runs = self.pieces.iter().flat_map(|piece| piece.chunks(bytes_max));
        runs.map(|bytes| Run { float: self.float, cols: self.cols, bytes }).collect()
    }

    /// Row `at`, widened onto the end of `to`. `None` if there is no such row.
    pub(crate) fn read_row(&self, at: usize, to: &mut Vec<f32>) -> Option<()> {
        let row_bytes = self.cols * self.float.size();
        let mut first = 0;
        for piece in &self.pieces {
            let rows = piece.len() / row_bytes;
            if at < first + rows {
                let bytes = &piece[(at - first) * row_bytes..][..row_bytes];
                let start = to.len();
                to.resize(start + self.cols, 0.0);
                widen(self.float, bytes, &mut to[start..]);
                return Some(());
            }
            first += rows;
        }
        None
    }
}

impl<'a> Run<'a> {
    pub(crate) fn rows(&self) -> usize {
        self.bytes.len() / self.row_bytes()
    }

    pub(crate) fn row_bytes(&self) -> usize {
        self.cols * self.float.size()
    }

    pub(crate) fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// The same rows, in runs of at most `rows_max`.
    pub(crate) fn parts(self, rows_max: usize) -> impl Iterator<Item = Run<'a>> {
        self.bytes.chunks(rows_max * self.row_bytes()).map(move |bytes| Run { bytes, ..self })
    }

    /// Calls `with` with the rows as f32: in place where they are, else widened into this thread's
    /// scratch. `with` must not call this again.
    pub(crate) fn with_f32<R>(&self, with: impl FnOnce(&[f32]) -> R) -> R {
        thread_local! {
            static SCRATCH: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
        }
        if self.float == Float::F32
            && let Ok(values) = bytemuck::try_cast_slice(self.bytes)
        {
            return with(values);
        }
        SCRATCH.with_borrow_mut(|scratch| {
            let elements = self.bytes.len() / self.float.size();
            if scratch.len() < elements {
                scratch.resize(elements, 0.0);
            }
            widen(self.float, self.bytes, &mut scratch[..elements]);
            with(&scratch[..elements])
        })
    }
}

/// Widens little-endian elements to f32.
pub(crate) fn widen(float: Float, bytes: &[u8], to: &mut [f32]) {
    match float {
        Float::F32 => {
            for (to, bytes) in to.iter_mut().zip(bytes.chunks_exact(4)) {
                *to = pod_read_unaligned(bytes);
            }
        }
        Float::Bf16 => Arch::new().dispatch(|| {
            for (to, bytes) in to.iter_mut().zip(bytes.as_chunks::<2>().0) {
                *to = f32::from_bits(u32::from(u16::from_le_bytes(*bytes)) << 16);
            }
        }),
        Float::F16 => Arch::new().dispatch(|| {
            for (to, bytes) in to.iter_mut().zip(bytes.as_chunks::<2>().0) {
                *to = widen_f16(u16::from_le_bytes(*bytes));
            }
        }),
    }
}

/// Without a branch, so that many go side by side; `half` asks the processor what it can for every
/// eight.
#[inline(always)]
fn widen_f16(half: u16) -> f32 {
    /// From the exponents of a half to those of a float.
    const REBIAS: f32 = f32::from_bits((127 + 127 - 15) << 23);
    let (sign, rest) = (u32::from(half & 0x8000) << 16, u32::from(half & 0x7fff));
    let endless = if 0x7c00 <= rest { 0x7f80_0000 } else { 0 };
    f32::from_bits((f32::from_bits(rest << 13) * REBIAS).to_bits() | endless | sign)
}

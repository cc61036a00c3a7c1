//! Element types that programs compute with.
//!
//! Nothing that is hashed depends on this list: a manifest holds the tag that the file itself has for a
//! type ([`Tag`](crate::manifest::Tag)), and a reader says which of its types that is. So types may be
//! added here at any time.

/// Element type of a tensor, by what the formats call them. Those with numbers of bits behind a Q, and MXFP4, are GGML's: a
/// row is runs of elements in blocks of bytes, each with a scale of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs, reason = "the names are the documentation")]
pub enum Dtype {
    Bool,
    U8,
    I8,
    U16,
    I16,
    U32,
    I32,
    U64,
    I64,
    F8E4M3,
    F8E5M2,
    F16,
    Bf16,
    F32,
    F64,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q2K,
    Q3K,
    Q4K,
    Q5K,
    Q6K,
    Iq4Nl,
    Iq4Xs,
    Mxfp4,
}

/// The smallest run of elements that has bytes of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Block {
    /// Elements in it, all of one row.
    pub elements: u64,
    /// Bytes that they take together.
    pub bytes: u64,
}

impl Dtype {
    /// One element, or a block of them.
    pub fn block(self) -> Block {
        let (elements, bytes) = match self {
            Self::Bool | Self::U8 | Self::I8 | Self::F8E4M3 | Self::F8E5M2 => (1, 1),
            Self::U16 | Self::I16 | Self::F16 | Self::Bf16 => (1, 2),
            Self::U32 | Self::I32 | Self::F32 => (1, 4),
            Self::U64 | Self::I64 | Self::F64 => (1, 8),
            Self::Q4_0 => (32, 18),
            Self::Q4_1 => (32, 20),
            Self::Q5_0 => (32, 22),
            Self::Q5_1 => (32, 24),
            Self::Q8_0 => (32, 34),
            Self::Q2K => (256, 84),
            Self::Q3K => (256, 110),
            Self::Q4K => (256, 144),
            Self::Q5K => (256, 176),
            Self::Q6K => (256, 210),
            Self::Iq4Nl => (32, 18),
            Self::Iq4Xs => (256, 136),
            Self::Mxfp4 => (32, 17),
        };
        Block { elements, bytes }
    }

    /// `shape` with blocks for the elements of its rows; `None` if they are no whole blocks.
    pub fn in_blocks(self, shape: &[u64]) -> Option<Vec<u64>> {
        let mut shape = shape.to_vec();
        match (shape.last_mut(), self.block().elements) {
            (_, 1) => (),
            (Some(row), elements) if row.is_multiple_of(elements) => *row /= elements,
            _ => return None,
        }
        Some(shape)
    }

    /// Bytes in a tensor of `shape`, unless there are more than fit in 64 bits, or rows are no whole blocks.
    pub fn size_of(self, shape: &[u64]) -> Option<u64> {
        let blocks = self.in_blocks(shape)?;
        let blocks = blocks.iter().try_fold(1u64, |product, &n| product.checked_mul(n))?;
        blocks.checked_mul(self.block().bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_whole_blocks() {
        assert_eq!(Dtype::Q4_0.size_of(&[3, 64]), Some(3 * 2 * 18));
        assert_eq!(Dtype::Q6K.size_of(&[256]), Some(210));
        assert_eq!(Dtype::F64.size_of(&[]), Some(8));
        // As many elements, but no row is a whole block.
        for (dtype, shape) in [(Dtype::Q8_0, &[64, 3][..]), (Dtype::Q4K, &[2, 128]), (Dtype::Q5_1, &[])] {
            assert_eq!(dtype.size_of(shape), None, "{dtype:?} {shape:?}");
        }
        assert_eq!(Dtype::Q2K.size_of(&[u64::MAX, 256]), None);
    }
}

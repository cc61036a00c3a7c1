//! Weights of sixteen rows, unpacked so that a vector holds the same elements of each: what many rows of
//! activations meet. Tiles are small enough to stay in a core's second-level cache.

/// One block of 256 elements of sixteen rows.
#[derive(Clone, Debug)]
#[repr(C, align(64))]
pub(crate) struct SuperTile {
    /// Four elements of each row, for each four of the block.
    pub(crate) quants: [[u32; 16]; 64],
    /// The scale of each 16 elements.
    pub(crate) scales: [[i32; 16]; 16],
    /// What sums of activations are multiplied by: minimums, or scales if there are none. Two of 16 bits each.
    pub(crate) others: [[u32; 16]; 8],
    pub(crate) d: [f32; 16],
    pub(crate) dmin: [f32; 16],
}

/// Eight blocks of 32 elements of sixteen rows.
#[derive(Clone, Debug)]
#[repr(C, align(64))]
pub(crate) struct SimpleTile {
    /// Four elements of each row, for each four of the blocks.
    pub(crate) quants: [[u32; 16]; 64],
    pub(crate) scales: [[f32; 16]; 8],
    pub(crate) minimums: [[f32; 16]; 8],
}

impl SuperTile {
    pub(crate) const ZERO: Self = Self {
        quants: [[0; 16]; 64],
        scales: [[0; 16]; 16],
        others: [[0; 16]; 8],
        d: [0.0; 16],
        dmin: [0.0; 16],
    };
}

impl SimpleTile {
    pub(crate) const ZERO: Self =
        Self { quants: [[0; 16]; 64], scales: [[0.0; 16]; 8], minimums: [[0.0; 16]; 8] };
}

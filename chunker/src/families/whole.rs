//! Families that run from all their weights at once. Nothing is asked for by layer, so their groups go by their names.

use super::{Architecture, Family};

pub(super) const FAMILY: Family = Family {
    model_types: &[
        ("gemma", Architecture::Gemma),
        ("helium", Architecture::Helium),
        ("olmo", Architecture::Olmo),
        ("olmo2", Architecture::Olmo2),
        ("phi", Architecture::Phi),
        ("starcoder2", Architecture::Starcoder2),
    ],
    classes: &[],
    roots: &[],
    rules: &[],
    beside: &[],
};

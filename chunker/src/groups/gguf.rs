//! Names of tensors in GGUF files, which are the same for all models.

use surf_protocol::Stack;

use super::{Family, Part};

/// Chosen by the format, not by a configuration.
pub(super) const FAMILY: Family = Family {
    model_types: &[],
    architectures: &[],
    roots: &[""],
    rules: &[
        ("token_embd", Part::Embed),
        ("token_embd_norm", Part::Embed),
        ("token_types", Part::Embed),
        ("position_embd", Part::Embed),
        ("blk.#", Part::Block(Stack::Decoder)),
        ("output_norm", Part::Head),
        ("output", Part::Head),
    ],
    beside: &[],
};

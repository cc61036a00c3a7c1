//! BERT and its retrained kin: one stack of encoder blocks over an embedding.

use surf_protocol::Stack::Encoder;

use super::{Family, Part};

pub(super) const FAMILY: Family = Family {
    model_types: &["bert"],
    architectures: &["BertModel", "BertForMaskedLM"],
    roots: &["bert.", ""],
    rules: RULES,
    beside: &[],
};

/// The norm of the embeddings is needed whole in every pass, as blocks are; their tables are read by row.
/// What is trained on top (`pooler`, `cls`, `lm_head`) is in no group that a pass visits.
pub(super) const RULES: &[(&str, Part)] = &[
    ("embeddings.LayerNorm", Part::Block(Encoder)),
    ("embeddings", Part::Embed),
    ("encoder.layer.#", Part::Block(Encoder)),
];

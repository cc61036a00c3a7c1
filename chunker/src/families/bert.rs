//! BERT and its retrained kin: one stack of encoder layers over an embedding.

use super::{Architecture, Family, Part, Stack::Encoder};

pub(super) const FAMILY: Family = Family {
    model_types: &[("bert", Architecture::Bert)],
    classes: &["BertModel", "BertForMaskedLM"],
    roots: &["bert.", ""],
    rules: RULES,
    beside: &[],
};

/// The norm of the embeddings is needed whole in every pass, as layers are; their tables are read by row.
/// What is trained on top (`pooler`, `cls`, `lm_head`) is in no group that a pass visits.
pub(super) const RULES: &[(&str, Part)] = &[
    ("embeddings.LayerNorm", Part::Layer(Encoder)),
    ("embeddings", Part::Embed),
    ("encoder.layer.#", Part::Layer(Encoder)),
];

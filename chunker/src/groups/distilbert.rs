//! DistilBERT: BERT with names of its own.

use surf_protocol::Stack::Encoder;

use super::{Family, Part};

pub(super) const FAMILY: Family = Family {
    model_types: &["distilbert"],
    architectures: &["DistilBertModel", "DistilBertForMaskedLM"],
    roots: &["distilbert.", ""],
    rules: &[
        ("embeddings.LayerNorm", Part::Block(Encoder)),
        ("embeddings", Part::Embed),
        ("transformer.layer.#", Part::Block(Encoder)),
    ],
    beside: &[],
};

//! DistilBERT: BERT with names of its own.

use super::{Architecture, Family, Part, Stack::Encoder};

pub(super) const FAMILY: Family = Family {
    model_types: &[("distilbert", Architecture::DistilBert)],
    classes: &["DistilBertModel", "DistilBertForMaskedLM"],
    roots: &["distilbert.", ""],
    rules: &[
        ("embeddings.LayerNorm", Part::Layer(Encoder)),
        ("embeddings", Part::Embed),
        ("transformer.layer.#", Part::Layer(Encoder)),
    ],
    beside: &[],
};

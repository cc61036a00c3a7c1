//! RoBERTa and XLM-RoBERTa: BERT under another name.

use super::{Architecture, Family, bert};

pub(super) const FAMILY: Family = Family {
    model_types: &[("roberta", Architecture::Roberta), ("xlm-roberta", Architecture::Roberta)],
    classes: &["RobertaModel", "RobertaForMaskedLM", "XLMRobertaModel", "XLMRobertaForMaskedLM"],
    roots: &["roberta.", ""],
    rules: bert::RULES,
    beside: &[],
};

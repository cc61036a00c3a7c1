//! RoBERTa and XLM-RoBERTa: BERT under another name.

use super::{Family, bert};

pub(super) const FAMILY: Family = Family {
    model_types: &["roberta", "xlm-roberta"],
    architectures: &["RobertaModel", "RobertaForMaskedLM", "XLMRobertaModel", "XLMRobertaForMaskedLM"],
    roots: &["roberta.", ""],
    rules: bert::RULES,
    beside: &[],
};

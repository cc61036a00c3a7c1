//! Groups of models whose structure is not known.

use super::Group;

/// The name up to its first number (`encoder.layer.3`), which is what repeats in every model; without a
/// number, the module that the tensor is a parameter of (`embeddings.LayerNorm`).
pub(super) fn group(name: &str) -> Group {
    let mut end = 0;
    for part in name.split('.') {
        let numbered = !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
        end += part.len();
        if numbered {
            return Group::Named(name[..end].to_owned());
        }
        end += 1;
    }
    let module = name.rsplit_once('.').map_or(name, |(module, _)| module);
    Group::Named(module.to_owned())
}

/// A layer's number, if it is written as numbers are.
pub(super) fn number(text: &str) -> Option<u32> {
    let number: u32 = text.parse().ok()?;
    // `+3` and `003` parse too, and would join what is not the same layer.
    (number.to_string() == text).then_some(number)
}

/// A name that sorts as people would sort it: `layer.9` before `layer.10`.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Natural(Vec<Part>);

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Part {
    /// Digits without leading zeros, longer is greater; then all digits, so that no two are equal.
    Number(usize, String, String),
    Text(String),
}

impl Natural {
    pub(super) fn of(name: &str) -> Self {
        let part = |part: &str| {
            let text = part.to_owned();
            match part.trim_start_matches('0') {
                digits if !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit()) => {
                    Part::Number(digits.len(), digits.to_owned(), text)
                }
                _ => Part::Text(text),
            }
        };
        Self(name.split('.').map(part).collect())
    }
}

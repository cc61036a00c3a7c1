//! Groups of models whose structure is not known.

use std::cmp::Ordering;

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
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Natural<'a>(pub(super) &'a str);

/// Digits of a number; what is longer is text, so that names of digits alone are sorted quickly too.
const DIGITS_MAX: usize = 19;

/// What stands between dots.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
enum Part<'a> {
    /// By its value; then by how it is written, so that no two are equal.
    Number(u64, &'a str),
    Text(&'a str),
}

impl<'a> Natural<'a> {
    /// The part that begins at `start`.
    fn part(&self, start: usize) -> Part<'a> {
        let rest = &self.0[start..];
        let part = rest.split_once('.').map_or(rest, |(part, _)| part);
        let number = part.parse().ok().filter(|_| part.len() <= DIGITS_MAX && !part.starts_with('+'));
        number.map_or(Part::Text(part), |number| Part::Number(number, part))
    }
}

impl Ord for Natural<'_> {
    /// By the first part that differs; where none does, the name with fewer parts comes first.
    fn cmp(&self, other: &Self) -> Ordering {
        let [one, two] = [self.0.as_bytes(), other.0.as_bytes()];
        let same = common(one, two);
        let start = one[..same].iter().rposition(|byte| *byte == b'.').map_or(0, |dot| dot + 1);
        self.part(start).cmp(&other.part(start)).then(one.len().cmp(&two.len()))
    }
}

/// How many bytes both begin with. By words, for names that differ late.
fn common(one: &[u8], two: &[u8]) -> usize {
    const WORD: usize = 16;
    let (words, _) = one.as_chunks::<WORD>();
    let whole = words.iter().zip(two.as_chunks().0).take_while(|(one, two)| one == two).count() * WORD;
    whole + one[whole..].iter().zip(&two[whole..]).take_while(|(one, two)| one == two).count()
}

impl PartialOrd for Natural<'_> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

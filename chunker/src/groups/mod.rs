//! Which tensors inference needs together, told by their names.
//!
//! A [`Family`] is a short table for models that are built alike. To add one: a file beside
//! `llama.rs`, and a line in [`FAMILIES`]. Names that no table knows are grouped by their numbered part, so every tensor
//! is in exactly one group, and the group of a tensor depends on nothing but the folder's `config.json` and the names.

mod bert;
mod distilbert;
mod gemma3;
mod gguf;
mod gpt2;
mod gpt_neox;
mod llama;
mod mixture;
mod named;
mod roberta;
mod t5;

use std::io::Read;

use surf_protocol::{Group, Stack};

use crate::Listed;

/// Every family, in no order.
const FAMILIES: &[&Family] = &[
    &bert::FAMILY,
    &distilbert::FAMILY,
    &gemma3::FAMILY,
    &gpt2::FAMILY,
    &gpt_neox::FAMILY,
    &llama::FAMILY,
    &mixture::FAMILY,
    &roberta::FAMILY,
    &t5::FAMILY,
];

/// Bytes in a `config.json`. Those of a thousand models have under a hundred thousand.
const CONFIG_SIZE_MAX: u64 = 1024 * 1024;

/// Models whose tensors are named alike.
struct Family {
    /// What `model_type` says in their `config.json`.
    model_types: &'static [&'static str],
    /// What `architectures` says, where there is no `model_type`.
    architectures: &'static [&'static str],
    /// What stands before the names that `rules` describe; a model has one of them.
    roots: &'static [&'static str],
    /// How names begin, after the root; the first that fits counts. `#` is the number of the block, and a
    /// second one that of the expert in it.
    rules: &'static [(&'static str, Part)],
    /// How names begin that stand beside the root.
    beside: &'static [(&'static str, Part)],
}

/// A group, but for its number.
#[derive(Clone, Copy)]
enum Part {
    Embed,
    Block(Stack),
    Expert(Stack),
    /// The final norm of a stack that is not the last.
    Norm(Stack),
    Head,
}

/// How the tensors of one folder are grouped.
pub(crate) struct Grouping {
    table: Option<(&'static Family, &'static str)>,
    /// How many blocks a pass visits, where that is said. Others may follow that predict further tokens.
    blocks: Option<u64>,
}

/// The `config.json` of the folder, if there is one of a sensible size.
pub(crate) fn config(files: &[Listed]) -> Option<Vec<u8>> {
    let file = files.iter().find(|file| file.path == "config.json" && file.size <= CONFIG_SIZE_MAX)?;
    let mut json = Vec::new();
    // Whether it can be read and stays as it is, hashing finds out.
    file.open().ok()?.take(CONFIG_SIZE_MAX).read_to_end(&mut json).ok()?;
    Some(json)
}

impl Grouping {
    /// What `config` and the names of all tensors say, if that is a known family.
    pub(crate) fn new<'a>(config: Option<&[u8]>, names: impl Iterator<Item = &'a str>) -> Option<Self> {
        let config: serde_json::Value = serde_json::from_slice(config?).ok()?;
        let family = family(&config)?;
        let names: Vec<&str> = names.collect();
        let fits = |root: &&&str| names.iter().any(|name| below(family, root, name).is_some());
        let blocks = config["num_hidden_layers"].as_u64();
        Some(Self { table: Some((family, *family.roots.iter().find(fits)?)), blocks })
    }

    /// By the names that GGUF files have, whatever the model.
    pub(crate) fn gguf() -> Self {
        Self { table: Some((&gguf::FAMILY, "")), blocks: None }
    }

    /// By the numbers in names alone.
    pub(crate) fn unknown() -> Self {
        Self { table: None, blocks: None }
    }

    /// The group of a tensor.
    pub(crate) fn of(&self, name: &str) -> Group {
        let from_table = |(family, root)| below(family, root, name).or_else(|| rule(family.beside, name));
        let found = self.table.and_then(from_table).filter(|group| self.is_visited(group));
        found.unwrap_or_else(|| named::group(name))
    }

    fn is_visited(&self, group: &Group) -> bool {
        match group {
            Group::Block(_, block) | Group::Expert { block, .. } => {
                self.blocks.is_none_or(|blocks| u64::from(*block) < blocks)
            }
            _ => true,
        }
    }
}

fn family(config: &serde_json::Value) -> Option<&'static Family> {
    match config["model_type"].as_str() {
        Some(name) => FAMILIES.iter().find(|family| family.model_types.contains(&name)).copied(),
        None => {
            let name = config["architectures"][0].as_str()?;
            FAMILIES.iter().find(|family| family.architectures.contains(&name)).copied()
        }
    }
}

fn below(family: &Family, root: &str, name: &str) -> Option<Group> {
    rule(family.rules, name.strip_prefix(root)?)
}

fn rule(rules: &[(&str, Part)], name: &str) -> Option<Group> {
    rules.iter().find_map(|(pattern, part)| Some(part.group(matches(pattern, name)?)))
}

/// The numbers in `name`, else 0, if it begins as `pattern` says and goes on after that.
fn matches(pattern: &str, name: &str) -> Option<[u32; 2]> {
    let (mut parts, mut numbers, mut found) = (name.split('.'), [0; 2], 0);
    for expected in pattern.split('.') {
        let part = parts.next()?;
        match expected {
            "#" => {
                numbers[found] = named::number(part)?;
                found += 1;
            }
            _ if part != expected => return None,
            _ => (),
        }
    }
    parts.next().map(|_| numbers)
}

impl Part {
    fn group(self, [block, expert]: [u32; 2]) -> Group {
        match self {
            Self::Embed => Group::Embed,
            Self::Block(stack) => Group::Block(stack, block),
            Self::Expert(stack) => Group::Expert { stack, block, expert },
            Self::Norm(stack) => Group::Norm(stack),
            Self::Head => Group::Head,
        }
    }
}

/// When a group is used in a pass; greater is later. Named groups come last, in natural order.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Use {
    Embed,
    Stack(Stack, Within),
    Head,
    Named(named::Natural),
}

/// When a group of a stack is used.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Within {
    /// A block, and the place in it: itself, then its experts.
    Block(u32, u32),
    /// The stack's final norm, before the next stack begins.
    Norm,
}

impl Use {
    pub(crate) fn of(group: &Group) -> Self {
        match group {
            Group::Embed => Self::Embed,
            Group::Block(stack, block) => Self::Stack(*stack, Within::Block(*block, 0)),
            Group::Expert { stack, block, expert } => {
                Self::Stack(*stack, Within::Block(*block, expert.saturating_add(1)))
            }
            Group::Norm(stack) => Self::Stack(*stack, Within::Norm),
            Group::Head => Self::Head,
            Group::Named(name) => Self::Named(named::Natural::of(name)),
        }
    }
}

#[cfg(test)]
mod tests;

//! What is known of families of models: the one table that readers share. Pure data: which names belong to which
//! [`Group`], which [`Architecture`] runs a model, what GGUF files call a module, what a tensor is for.
//!
//! A [`Family`] is a short table for models that are built alike. To add one: a file beside
//! `llama.rs`, and a line in [`Families::default`]. Names that no table knows are grouped by their numbered part, so
//! every tensor is in exactly one group.
//!
//! Only readers look here. What is hashed depends on none of it (`tests/tidy.rs` sees to that), so a family may be
//! added or mended at any time.

mod bert;
mod distilbert;
mod gemma3;
mod gguf;
mod gpt2;
mod gpt_neox;
mod group;
mod llama;
mod mixture;
mod named;
mod roberta;
mod roles;
mod t5;

pub use gguf::{gguf_names, under_either_name};
pub(crate) use group::Use;
pub use group::{Group, Stack};
pub use roles::{Role, role};

/// Families of models.
#[derive(Clone, Debug)]
pub struct Families(pub Vec<Family>);

/// Models whose tensors are named alike.
#[derive(Clone, Copy, Debug)]
pub struct Family {
    /// What `model_type` says in their `config.json`, and what runs them.
    pub model_types: &'static [(&'static str, Architecture)],
    /// What `architectures` says, where there is no `model_type`.
    pub classes: &'static [&'static str],
    /// What stands before the names that `rules` describe; a model has one of them.
    pub roots: &'static [&'static str],
    /// How names begin, after the root; the first that fits counts. `#` is the number of the layer, and a
    /// second one that of the expert in it.
    pub rules: &'static [(&'static str, Part)],
    /// How names begin that stand beside the root.
    pub beside: &'static [(&'static str, Part)],
}

/// A group, but for its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// Token and position embeddings.
    Embed,
    /// A layer.
    Layer(Stack),
    /// An expert of a layer.
    Expert(Stack),
    /// The final norm of a stack that is not the last.
    Norm(Stack),
    /// Final norm and output projection.
    Head,
}

/// What a model is built like: one for each way to run one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs, reason = "the names are the documentation")]
pub enum Architecture {
    Bert,
    DeepseekV2,
    DeepseekV3,
    DistilBert,
    Gemma,
    Gemma2,
    Gemma3,
    Gemma3Text,
    Gpt2,
    GptNeox,
    Helium,
    Llama,
    Mistral,
    Mixtral,
    Olmo,
    Olmo2,
    Phi,
    Phi3,
    Qwen2,
    Qwen2Moe,
    Qwen3,
    Qwen3Moe,
    Roberta,
    Starcoder2,
    T5,
}

impl Default for Families {
    fn default() -> Self {
        // Where names could be of several, the first is meant.
        Self(vec![
            mixture::FAMILY,
            llama::FAMILY,
            gemma3::FAMILY,
            gpt2::FAMILY,
            gpt_neox::FAMILY,
            bert::FAMILY,
            roberta::FAMILY,
            distilbert::FAMILY,
            t5::FAMILY,
        ])
    }
}

impl Families {
    /// What runs models that say that they are of `model_type`.
    pub fn architecture(&self, model_type: &str) -> Option<Architecture> {
        let all = self.0.iter().flat_map(|family| family.model_types);
        all.into_iter().find_map(|(name, architecture)| (*name == model_type).then_some(*architecture))
    }

    /// What a model that `architecture` runs says that it is, the usual one first.
    pub fn model_type(&self, architecture: Architecture) -> Option<&'static str> {
        let mut all = self.0.iter().flat_map(|family| family.model_types);
        all.find(|(_, known)| *known == architecture).map(|(name, _)| *name)
    }

    /// Every `model_type` that is known, in order.
    pub fn model_types(&self) -> Vec<&'static str> {
        let all = self.0.iter().flat_map(|family| family.model_types);
        let mut names: Vec<_> = all.map(|(name, _)| *name).collect();
        names.sort_unstable();
        names
    }

    /// The family that a model with this `config.json` says it is of.
    fn named(&self, config: &serde_json::Value) -> Option<Family> {
        let is = |family: &&Family| match config["model_type"].as_str() {
            Some(name) => family.model_types.iter().any(|(known, _)| *known == name),
            None => config["architectures"][0].as_str().is_some_and(|name| family.classes.contains(&name)),
        };
        self.0.iter().find(is).copied()
    }

    /// The family that has the most of these names, of those that have a layer among them.
    fn like<'a>(&self, names: impl Iterator<Item = &'a str> + Clone) -> Option<Grouping> {
        let mut best: Option<(usize, Grouping)> = None;
        for &family in &self.0 {
            for &root in family.roots {
                let (mut count, mut layers) = (0, false);
                for group in names.clone().filter_map(|name| family.group(root, name)) {
                    count += 1;
                    layers |= matches!(group, Group::Layer(..) | Group::Expert { .. });
                }
                if layers && best.as_ref().is_none_or(|(most, _)| *most < count) {
                    best = Some((count, Grouping { family, root, layers: None }));
                }
            }
        }
        best.map(|(_, grouping)| grouping)
    }
}

/// How the tensors of one model are grouped.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Grouping {
    family: Family,
    root: &'static str,
    /// How many layers a pass visits, where that is said. Others may follow that predict further tokens.
    layers: Option<u64>,
}

impl Grouping {
    /// What `config` and the names of all tensors say, if that is a known family. Without a configuration, it is the
    /// one that has the most of the names.
    pub(crate) fn new<'a>(
        families: &Families,
        config: Option<&[u8]>,
        names: impl Iterator<Item = &'a str> + Clone,
    ) -> Option<Self> {
        let Some(config) = config else { return families.like(names) };
        let config: serde_json::Value = crate::json::read(config).ok()?;
        let family = families.named(&config)?;
        let fits = |root: &&&str| names.clone().any(|name| family.below(root, name).is_some());
        let layers = config["num_hidden_layers"].as_u64();
        Some(Self { family, root: family.roots.iter().find(fits)?, layers })
    }

    /// By the names that GGUF files have, whatever the model.
    pub(crate) fn gguf() -> Self {
        Self { family: gguf::FAMILY, root: "", layers: None }
    }

    /// The group of a tensor.
    pub(crate) fn of(&self, name: &str) -> Group {
        let found = self.family.group(self.root, name).filter(|group| self.is_visited(group));
        found.unwrap_or_else(|| named::group(name))
    }

    fn is_visited(&self, group: &Group) -> bool {
        match group {
            Group::Layer(_, layer) | Group::Expert { layer, .. } => {
                self.layers.is_none_or(|layers| u64::from(*layer) < layers)
            }
            _ => true,
        }
    }
}

/// The group of a tensor of which nothing is known but its name.
pub(crate) fn by_name(name: &str) -> Group {
    named::group(name)
}

impl Family {
    fn group(&self, root: &str, name: &str) -> Option<Group> {
        self.below(root, name).or_else(|| rule(self.beside, name))
    }

    fn below(&self, root: &str, name: &str) -> Option<Group> {
        rule(self.rules, name.strip_prefix(root)?)
    }
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
                *numbers.get_mut(found)? = named::number(part)?;
                found += 1;
            }
            _ if part != expected => return None,
            _ => (),
        }
    }
    parts.next().map(|_| numbers)
}

impl Part {
    fn group(self, [layer, expert]: [u32; 2]) -> Group {
        match self {
            Self::Embed => Group::Embed,
            Self::Layer(stack) => Group::Layer(stack, layer),
            Self::Expert(stack) => Group::Expert { stack, layer, expert },
            Self::Norm(stack) => Group::Norm(stack),
            Self::Head => Group::Head,
        }
    }
}

#[cfg(test)]
mod tests;

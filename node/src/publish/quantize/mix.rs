//! Which tensor is quantised to what. Pure: names, shapes and the configuration in, types out.
//!
//! The choices are those of llama.cpp (`llama_tensor_get_type` and `tensor_allows_quantization` in its
//! `src/llama-quant.cpp`, for the mixes that it calls Q4_K_M and so on, without an importance matrix), told by
//! the names that Hugging Face's models have. Two are our own: the embedding keeps as many bits as the head,
//! because only the rows of a prompt travel, and eight where it is the head too.

use std::{collections::BTreeMap, str::FromStr};

use serde_json::Value;
use surf_chunker::{
    Parameter,
    families::{Role, role},
};
use surf_protocol::Dtype;

/// What to quantise to: the type that most tensors become.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Eight bits.
    Q8_0,
    /// Six.
    Q6K,
    /// Five.
    Q5K,
    /// Four, with finer scales.
    Q4K,
    /// Four.
    Q4_0,
    /// Three.
    Q3K,
    /// Two.
    Q2K,
}

/// The kinds, as users write them.
const NAMES: [(&str, Kind); 7] = [
    ("q8_0", Kind::Q8_0),
    ("q6_k", Kind::Q6K),
    ("q5_k", Kind::Q5K),
    ("q4_k", Kind::Q4K),
    ("q4_0", Kind::Q4_0),
    ("q3_k", Kind::Q3K),
    ("q2_k", Kind::Q2K),
];

/// What the choices depend on besides a tensor itself.
#[derive(Clone, Debug)]
pub(super) struct Model {
    /// Layers of each stack, by what stands before their numbers.
    stacks: BTreeMap<String, u64>,
    /// Whether the embedding is the head too.
    tied: bool,
    /// Routed experts in a block.
    experts: u64,
    /// Heads that share a key and value.
    sharing: u64,
}

impl Kind {
    /// Every kind, as users write it, the one with the most bits first.
    pub fn names() -> [&'static str; NAMES.len()] {
        NAMES.map(|(name, _)| name)
    }

    /// As users write it.
    pub fn name(self) -> &'static str {
        let (name, _) = NAMES[self as usize];
        name
    }

    fn dtype(self) -> Dtype {
        match self {
            Self::Q8_0 => Dtype::Q8_0,
            Self::Q6K => Dtype::Q6K,
            Self::Q5K => Dtype::Q5K,
            Self::Q4K => Dtype::Q4K,
            Self::Q4_0 => Dtype::Q4_0,
            Self::Q3K => Dtype::Q3K,
            Self::Q2K => Dtype::Q2K,
        }
    }
}

impl FromStr for Kind {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let known = NAMES.iter().find(|(name, _)| name.eq_ignore_ascii_case(text));
        let unknown = || format!("cannot quantise to {text:?}; known are {}", Self::names().join(", "));
        known.map(|(_, kind)| *kind).ok_or_else(unknown)
    }
}

impl Model {
    /// Of a model with this configuration and these tensors.
    pub(super) fn new(config: &Value, tensors: &[Parameter]) -> Self {
        let number = |names: &[&str]| names.iter().find_map(|name| config[name].as_u64());
        let mut stacks = BTreeMap::new();
        for (stack, block) in tensors.iter().filter_map(|tensor| block(&tensor.name)) {
            let blocks: &mut u64 = stacks.entry(stack.to_owned()).or_default();
            *blocks = (*blocks).max(block + 1);
        }
        let heads = number(&["num_attention_heads"]).unwrap_or(1);
        Self {
            stacks,
            tied: !tensors.iter().any(|tensor| role(&tensor.name) == Some(Role::Head)),
            experts: number(&["num_local_experts", "num_experts", "n_routed_experts"]).unwrap_or(0),
            sharing: heads / number(&["num_key_value_heads"]).unwrap_or(heads).max(1),
        }
    }

    /// What `tensor` becomes; `None` if it stays as it is.
    pub(super) fn choose(&self, kind: Kind, tensor: &Parameter) -> Option<Dtype> {
        let role = role(&tensor.name)?;
        let [outer @ .., rows, cols] = tensor.shape.as_slice() else { return None };
        let is_float = matches!(
            tensor.dtype,
            Dtype::F16 | Dtype::Bf16 | Dtype::F32 | Dtype::F64 | Dtype::F8E4M3 | Dtype::F8E5M2
        );
        // A single row is a gate or the like; more than three dimensions are pictures.
        if !is_float || *rows < 2 || *cols == 0 || 1 < outer.len() {
            return None;
        }
        let dtype = fallback(self.wanted(kind, role, &tensor.name), *cols)?;
        (dtype.size_of(&tensor.shape)? < tensor.size).then_some(dtype)
    }

    fn wanted(&self, kind: Kind, role: Role, name: &str) -> Dtype {
        let (block, blocks) = match block(name) {
            Some((stack, block)) => (block, self.stacks.get(stack).copied().unwrap_or(block + 1)),
            None => (0, 1),
        };
        let more = more_bits(block, blocks);
        // Few experts share their block's attention, which then costs little beside them.
        let few_experts = self.experts == 8;
        match (role, kind) {
            (_, Kind::Q8_0) => Dtype::Q8_0,
            (Role::Embedding, _) if self.tied => Dtype::Q8_0,
            (Role::Embedding | Role::Head, _) => Dtype::Q6K,
            (Role::Value | Role::Key, _) if few_experts => Dtype::Q8_0,
            (Role::Value, Kind::Q2K) if 4 <= self.sharing => Dtype::Q4K,
            (Role::Value | Role::Down | Role::Attended, Kind::Q2K) if !few_experts => Dtype::Q3K,
            (Role::Down, Kind::Q2K) => Dtype::Q3K,
            (Role::Value, Kind::Q3K) if block < 2 => Dtype::Q5K,
            (Role::Down, Kind::Q3K) if block < blocks / 16 => Dtype::Q5K,
            (Role::Attended, Kind::Q2K | Kind::Q3K | Kind::Q4K) if few_experts => Dtype::Q5K,
            (Role::Value | Role::Down | Role::Attended, Kind::Q3K) => Dtype::Q4K,
            (Role::Value | Role::Down, Kind::Q4K | Kind::Q5K) if more => Dtype::Q6K,
            _ => kind.dtype(),
        }
    }
}

/// Whether a block is among those that get more bits: the first and the last eighth, and every third.
fn more_bits(block: u64, blocks: u64) -> bool {
    block < blocks / 8 || 7 * blocks / 8 <= block || (block - blocks / 8) % 3 == 2
}

/// `wanted`, or what has shorter blocks where `cols` are no whole blocks; `None` if even those do not fit.
fn fallback(wanted: Dtype, cols: u64) -> Option<Dtype> {
    let fits = |dtype: &Dtype| cols.is_multiple_of(dtype.block().elements);
    let shorter = match wanted {
        Dtype::Q2K | Dtype::Q3K => Dtype::Q4_0,
        Dtype::Q4K => Dtype::Q5_0,
        Dtype::Q5K => Dtype::Q5_1,
        Dtype::Q6K => Dtype::Q8_0,
        other => other,
    };
    Some(wanted).filter(fits).or(Some(shorter).filter(fits))
}

/// What stands before the number of the block that a tensor is in, and that number.
fn block(name: &str) -> Option<(&str, u64)> {
    let mut start = 0;
    for part in name.split('.') {
        if let Ok(number) = part.parse() {
            return Some((&name[..start], number));
        }
        start += part.len() + 1;
    }
    None
}

#[cfg(test)]
#[path = "mix/tests.rs"]
mod tests;

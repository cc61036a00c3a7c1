//! A feed-forward part of many experts, of which each token takes a few.
//!
//! First the router says which, for all tokens together; only then are they asked for, all at once, so
//! what nobody chose is never fetched. Meanwhile the router of the next block, if it is here, guesses
//! from the same activations what will be chosen there.
//!
//! In GGUF files the experts of a block are stored as one tensor for each of their projections. They are
//! part of the block then, and all are there when it is.

use std::collections::BTreeMap;

use candle_core::{Device, Tensor};
use surf_protocol::{Group, Stack};

use crate::weights::RawTensor;

use super::{
    EngineError, host, kernels,
    kernels::Activation,
    linear::Linear,
    mlp::GatedMlp,
    parts::{self, Parts},
    pass::Pass,
    router::{Choice, Router},
    stored::Stored,
};

/// Experts of one block, and who is with every token.
#[derive(Debug)]
pub(crate) struct Mixture {
    pub(crate) router: Router,
    pub(crate) experts: ExpertShape,
    /// The experts themselves, where they are part of the block.
    pub(crate) stacked: Option<Stacked>,
    /// The block.
    pub(crate) block: u32,
    /// How their weights are stored.
    pub(crate) stored: Stored,
    /// An expert that every token takes.
    pub(crate) shared: Option<Shared>,
}

/// All experts of a block: gate, up and down projections, each as a tensor of experts by rows by columns.
#[derive(Clone, Debug)]
pub(crate) struct Stacked([RawTensor; 3]);

/// See [`Mixture::shared`].
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) mlp: GatedMlp,
    /// How much of it each token takes, through a sigmoid; else all.
    pub(crate) gate: Option<Linear>,
}

/// How the experts of a model look.
#[derive(Clone, Debug)]
pub(crate) struct ExpertShape {
    /// What stands between the block's name and the expert's number.
    pub(crate) under: &'static str,
    /// What gate, up and down projections are called.
    pub(crate) names: [&'static str; 3],
    pub(crate) hidden: usize,
    pub(crate) intermediate: usize,
    pub(crate) activation: Activation,
}

impl Mixture {
    /// From `[tokens, hidden]` to the same. `before` is what `x` was before its norm.
    pub(crate) fn forward(
        &self,
        x: &Tensor,
        before: &Tensor,
        pass: &mut Pass<'_>,
    ) -> Result<Tensor, EngineError> {
        let (tokens, hidden) = x.dims2()?;
        let mut takers: BTreeMap<u32, Vec<(usize, f32)>> = BTreeMap::new();
        for (token, choices) in self.router.choose(x)?.into_iter().enumerate() {
            for Choice { expert, weight } in choices {
                takers.entry(expert).or_default().push((token, weight));
            }
        }
        if self.stacked.is_none() {
            let groups: Vec<Group> = takers.keys().map(|&expert| self.group(expert)).collect();
            pass.weights.expect(&groups);
        }
        pass.guess(before)?;
        // Also what needs no waiting, while they come.
        let mut sum = match &self.shared {
            Some(shared) => host::copy(&shared.forward(x)?)?,
            None => vec![0.0; tokens * hidden],
        };
        for (expert, takers) in takers {
            let mlp = match &self.stacked {
                Some(stacked) => self.experts.mlp_of(stacked, expert, x.device())?,
                None => {
                    let tensors = pass.weights.group(&self.group(expert))?;
                    let parts = Parts::new(&tensors, x.device()).stored(self.stored);
                    self.experts.mlp(self.block, expert, &parts)?
                }
            };
            let rows: Vec<f32> = host::read(x, |x| {
                let row = |(token, _): &(usize, f32)| &x[token * hidden..(token + 1) * hidden];
                takers.iter().flat_map(row).copied().collect()
            })?;
            let y = mlp.forward(&host::tensor(rows, takers.len(), hidden)?)?;
            host::read(&y, |y| {
                for ((token, weight), y) in takers.iter().zip(y.chunks_exact(hidden)) {
                    kernels::add_scaled(&mut sum[token * hidden..(token + 1) * hidden], y, *weight);
                }
            })?;
        }
        host::tensor(sum, tokens, hidden)
    }

    /// The experts that the tokens of `x` would take.
    pub(crate) fn likely(&self, x: &Tensor) -> Result<Vec<Group>, EngineError> {
        if self.stacked.is_some() {
            return Ok(Vec::new());
        }
        let mut experts: Vec<u32> =
            self.router.choose(x)?.into_iter().flatten().map(|choice| choice.expert).collect();
        experts.sort_unstable();
        experts.dedup();
        Ok(experts.into_iter().map(|expert| self.group(expert)).collect())
    }

    fn group(&self, expert: u32) -> Group {
        Group::Expert { stack: Stack::Decoder, block: self.block, expert }
    }
}

impl Shared {
    fn forward(&self, x: &Tensor) -> Result<Tensor, EngineError> {
        let y = self.mlp.forward(x)?;
        let Some(gate) = &self.gate else { return Ok(y) };
        let (tokens, hidden) = y.dims2()?;
        let gates = host::copy(&gate.forward(x)?)?;
        let mut y = host::copy(&y)?;
        for (y, gate) in y.chunks_exact_mut(hidden).zip(gates) {
            let share = 1.0 / (1.0 + (-gate).exp());
            y.iter_mut().for_each(|y| *y *= share);
        }
        host::tensor(y, tokens, hidden)
    }
}

impl ExpertShape {
    /// The experts of `block`, if they are part of it.
    pub(crate) fn stacked(&self, block: &Parts<'_>) -> Option<Stacked> {
        let [gate, up, down] = self.names.map(|name| block.under(self.under).stack(name).cloned());
        Some(Stacked([gate?, up?, down?]))
    }

    fn mlp_of(&self, stacked: &Stacked, expert: u32, device: &Device) -> Result<GatedMlp, EngineError> {
        let [gate, up, down] = &stacked.0;
        let linear = |name: &str, all: &RawTensor, inputs: usize, outputs: usize| {
            let name = format!("{}.{name}", self.under);
            let one = layer_of(&name, all, expert as usize)?;
            Linear::new(parts::matrix(&name, &one, outputs, inputs)?, None, device)
        };
        let [gate_name, up_name, down_name] = self.names;
        Ok(GatedMlp {
            gate: linear(gate_name, gate, self.hidden, self.intermediate)?,
            up: linear(up_name, up, self.hidden, self.intermediate)?,
            down: linear(down_name, down, self.intermediate, self.hidden)?,
            activation: self.activation,
        })
    }

    fn mlp(&self, block: u32, expert: u32, parts: &Parts<'_>) -> Result<GatedMlp, EngineError> {
        let expert = parts.under(&format!("model.layers.{block}.{}.{expert}", self.under));
        let [gate, up, down] = self.names;
        Ok(GatedMlp {
            gate: expert.linear(gate, self.hidden, self.intermediate, false)?,
            up: expert.linear(up, self.hidden, self.intermediate, false)?,
            down: expert.linear(down, self.intermediate, self.hidden, false)?,
            activation: self.activation,
        })
    }
}

/// What is at `at` along the outermost dimension of `all`, which comes in pieces of whole ones.
fn layer_of(name: &str, all: &RawTensor, at: usize) -> Result<RawTensor, EngineError> {
    let wrong = || EngineError::tensor(name, format!("is {:?}, which has no expert {at}", all.shape));
    let (&count, shape) = all.shape.split_first().ok_or_else(wrong)?;
    let bytes: usize = all.pieces.iter().map(|piece| piece.len()).sum();
    let size = bytes.checked_div(count).filter(|_| at < count).ok_or_else(wrong)?;
    let mut start = at * size;
    for piece in &all.pieces {
        match start.checked_sub(piece.len()) {
            Some(rest) => start = rest,
            None if start + size <= piece.len() => {
                let pieces = vec![piece.slice(start..start + size)];
                return Ok(RawTensor { dtype: all.dtype, shape: shape.to_vec(), pieces });
            }
            None => break,
        }
    }
    Err(EngineError::tensor(name, "comes in pieces that are no whole experts"))
}

//! A feed-forward part of many experts, of which each token takes a few.
//!
//! First the router says which, for all tokens together; only then are they asked for, all at once, so
//! what nobody chose is never fetched. Meanwhile the router of the next block, if it is here, guesses
//! from the same activations what will be chosen there.

use std::collections::BTreeMap;

use candle_core::Tensor;
use surf_protocol::{Group, Stack};

use super::{
    EngineError, host, kernels,
    kernels::Activation,
    linear::Linear,
    mlp::GatedMlp,
    parts::Parts,
    pass::Pass,
    router::{Choice, Router},
    stored::Stored,
};

/// Experts of one block, and who is with every token.
#[derive(Debug)]
pub(crate) struct Mixture {
    pub(crate) router: Router,
    pub(crate) experts: ExpertShape,
    /// The block.
    pub(crate) block: u32,
    /// How their weights are stored.
    pub(crate) stored: Stored,
    /// An expert that every token takes.
    pub(crate) shared: Option<Shared>,
}

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
        let groups: Vec<Group> = takers.keys().map(|&expert| self.group(expert)).collect();
        pass.weights.expect(&groups);
        pass.guess(before)?;
        // Also what needs no waiting, while they come.
        let mut sum = match &self.shared {
            Some(shared) => host::copy(&shared.forward(x)?)?,
            None => vec![0.0; tokens * hidden],
        };
        for (group, (expert, takers)) in groups.iter().zip(takers) {
            let tensors = pass.weights.group(group)?;
            let parts = Parts::new(&tensors, x.device()).stored(self.stored);
            let mlp = self.experts.mlp(self.block, expert, &parts)?;
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

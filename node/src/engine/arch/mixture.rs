//! What families with routed experts have in common: which blocks have them, and how they are named.

use crate::engine::{
    EngineError,
    experts::{ExpertShape, Mixture, Shared},
    fields::Fields,
    mlp::GatedMlp,
    parts::Parts,
    router::{EXPERTS_MAX, Router, Routing},
    widths::Stage,
};

/// Experts in place of MLPs.
#[derive(Clone, Debug)]
pub(super) struct MixtureShape {
    /// For each block, whether it has experts.
    pub(super) blocks: Vec<bool>,
    /// What the router's projection is called, under its block.
    pub(super) router: &'static str,
    /// Whether the router has a correction beside its projection.
    pub(super) corrected: bool,
    pub(super) routing: Routing,
    pub(super) experts: ExpertShape,
    pub(super) shared: Option<SharedShape>,
}

/// An expert that every token takes.
#[derive(Clone, Debug)]
pub(super) struct SharedShape {
    /// Its name under its block.
    pub(super) name: &'static str,
    pub(super) intermediate: usize,
    /// What the projection is called that says how much of it each token takes.
    pub(super) gate: Option<&'static str>,
}

impl MixtureShape {
    /// Whether block `index` has experts.
    pub(super) fn is_in(&self, index: usize) -> bool {
        self.blocks.get(index).copied().unwrap_or(false)
    }

    /// What they take in a pass.
    pub(super) fn stage(&self) -> Stage {
        let ExpertShape { hidden, intermediate, .. } = self.experts;
        let Routing { experts, taken, .. } = self.routing;
        let shared = self.shared.as_ref().map_or(0, |shared| shared.intermediate);
        let cause = format!(
            "experts have {intermediate} elements inside, {shared} the shared one, and a token takes {taken} of {experts}"
        );
        let one = Stage::feed_forward(cause, hidden, intermediate.max(shared));
        // Scores and ranks of all experts, and choices in three lists; rows, results and their sum.
        Stage { row: one.row + (4 * experts + 8 * taken + 4 * hidden) as u64, ..one }
    }

    /// The experts of block `index`, whose other parts are `block`.
    pub(super) fn layer(&self, index: u32, block: &Parts<'_>) -> Result<Mixture, EngineError> {
        let ExpertShape { hidden, activation, .. } = self.experts;
        let shared = |shape: &SharedShape| {
            let parts = block.under(shape.name);
            Ok::<_, EngineError>(Shared {
                mlp: GatedMlp {
                    gate: parts.linear("gate_proj", hidden, shape.intermediate, false)?,
                    up: parts.linear("up_proj", hidden, shape.intermediate, false)?,
                    down: parts.linear("down_proj", shape.intermediate, hidden, false)?,
                    activation,
                },
                gate: shape.gate.map(|gate| block.linear(gate, hidden, 1, false)).transpose()?,
            })
        };
        let correction = match self.corrected {
            true => {
                let name = format!("{}.e_score_correction_bias", self.router);
                Some(block.numbers(&name, self.routing.experts)?)
            }
            false => None,
        };
        Ok(Mixture {
            router: Router {
                gate: block.linear(self.router, hidden, self.routing.experts, false)?,
                correction,
                routing: self.routing.clone(),
            },
            stacked: self.experts.stacked(block),
            experts: self.experts.clone(),
            block: index,
            stored: block.how_stored(),
            compute: block.compute().clone(),
            shared: self.shared.as_ref().map(shared).transpose()?,
        })
    }
}

/// The number of experts, under the first of `names` that is there, and how many a token takes.
pub(super) fn counts(fields: &Fields<'_>, names: &[&str]) -> Result<(usize, usize), EngineError> {
    let name = names.iter().find(|name| fields.has(name)).unwrap_or(&names[0]);
    let experts = fields.count(name, 1..=EXPERTS_MAX)?;
    Ok((experts, fields.count("num_experts_per_tok", 1..=experts)?))
}

/// The blocks with experts of the Qwen families: every `decoder_sparse_step`-th, but for `mlp_only_layers`.
pub(super) fn sparse_blocks(fields: &Fields<'_>, blocks: usize) -> Result<Vec<bool>, EngineError> {
    let step = fields.count_if("decoder_sparse_step", 1..=1 << 16)?.unwrap_or(1);
    let dense = fields.list("mlp_only_layers")?.map(Vec::as_slice).unwrap_or_default();
    let dense = |index: usize| dense.iter().any(|layer| layer.as_u64() == Some(index as u64));
    Ok((0..blocks).map(|index| (index + 1).is_multiple_of(step) && !dense(index)).collect())
}

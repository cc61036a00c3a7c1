//! Which experts a token takes, and how much of each.
//!
//! All families score every expert with one projection and take the best few; they differ in how the
//! scores are made comparable, and in what is done with them afterwards.

use std::{cmp::Ordering, sync::Arc};

use candle_core::Tensor;

use super::{EngineError, fields::Fields, host, kernels, linear::Linear};

/// Experts that a block may have.
pub(crate) const EXPERTS_MAX: usize = 4096;

/// Scores the experts of one block.
#[derive(Debug)]
pub(crate) struct Router {
    /// From the hidden size to the number of experts.
    pub(crate) gate: Linear,
    /// Added to the scores where the best are chosen, and only there. One for each expert.
    pub(crate) correction: Option<Arc<[f32]>>,
    pub(crate) routing: Routing,
}

/// How a model routes.
#[derive(Clone, Debug)]
pub(crate) struct Routing {
    /// Experts in all.
    pub(crate) experts: usize,
    /// Experts that a token takes.
    pub(crate) taken: usize,
    pub(crate) scoring: Scoring,
    /// Only the best groups of experts are considered.
    pub(crate) groups: Option<Groups>,
    /// Whether the scores of those taken are made to sum to one.
    pub(crate) normalised: bool,
    /// What they are multiplied with then.
    pub(crate) scale: f32,
}

/// How projections become scores.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scoring {
    Softmax,
    Sigmoid,
}

/// Runs of neighbouring experts, of which some are considered.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Groups {
    pub(crate) count: usize,
    pub(crate) considered: usize,
    /// How many of a group's best scores, summed, are the group's.
    pub(crate) by_best: usize,
}

/// An expert that a token takes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Choice {
    pub(crate) expert: u32,
    pub(crate) weight: f32,
}

impl Groups {
    /// `n_group` and `topk_group`, for `experts` of which `taken` are taken.
    pub(crate) fn read(
        fields: &Fields<'_>,
        experts: usize,
        taken: usize,
        by_best: usize,
    ) -> Result<Self, EngineError> {
        let count = fields.count("n_group", 1..=experts)?;
        let considered = fields.count("topk_group", 1..=count)?;
        if !experts.is_multiple_of(count) {
            return Err(fields.invalid("n_group", format!("does not divide {experts} experts")));
        }
        let size = experts / count;
        if size < by_best {
            return Err(
                fields.invalid("n_group", format!("leaves {size} experts in a group; {by_best} are scored"))
            );
        }
        if considered * size < taken {
            return Err(
                fields.invalid("topk_group", format!("leaves fewer than {taken} experts to choose from"))
            );
        }
        Ok(Self { count, considered, by_best })
    }
}

impl Router {
    /// For each row of `x`, `[tokens, hidden]`, the experts it takes.
    pub(crate) fn choose(&self, x: &Tensor) -> Result<Vec<Vec<Choice>>, EngineError> {
        let scores = self.gate.forward(x)?;
        let correction = self.correction.as_deref();
        host::read(&scores, |scores| {
            let rows = scores.chunks_exact(self.routing.experts);
            rows.map(|row| self.routing.choose(row.to_vec(), correction)).collect()
        })
    }
}

impl Routing {
    fn choose(&self, mut scores: Vec<f32>, correction: Option<&[f32]>) -> Vec<Choice> {
        match self.scoring {
            Scoring::Softmax => kernels::softmax(&mut scores),
            Scoring::Sigmoid => scores.iter_mut().for_each(|score| *score = 1.0 / (1.0 + (-*score).exp())),
        }
        let mut ranks = scores.clone();
        if let Some(correction) = correction {
            kernels::add(&mut ranks, correction);
        }
        if let Some(groups) = &self.groups {
            groups.pass_over(&mut ranks);
        }
        let best = best(&ranks, self.taken);
        let sum: f32 = best.iter().map(|&at| scores[at]).sum();
        let scale = if self.normalised { self.scale / (sum + 1e-20) } else { self.scale };
        best.into_iter().map(|at| Choice { expert: at as u32, weight: scores[at] * scale }).collect()
    }
}

impl Groups {
    /// Leaves no rank to the groups that are not considered.
    fn pass_over(&self, ranks: &mut [f32]) {
        let size = ranks.len() / self.count;
        let score = |group: &[f32]| best(group, self.by_best).into_iter().map(|at| group[at]).sum();
        let scores: Vec<f32> = ranks.chunks_exact(size).map(score).collect();
        let considered = best(&scores, self.considered);
        for (at, group) in ranks.chunks_exact_mut(size).enumerate() {
            if !considered.contains(&at) {
                group.fill(f32::NEG_INFINITY);
            }
        }
    }
}

/// Positions of the `count` greatest, the greatest first; of equals, the first.
fn best(scores: &[f32], count: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..scores.len()).collect();
    let compare = |a: &usize, b: &usize| -> Ordering { scores[*b].total_cmp(&scores[*a]).then(a.cmp(b)) };
    order.sort_unstable_by(compare);
    order.truncate(count);
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    fn routing(scoring: Scoring, groups: Option<Groups>) -> Routing {
        Routing { experts: 6, taken: 2, scoring, groups, normalised: true, scale: 2.0 }
    }

    fn weights(choices: &[Choice]) -> Vec<(u32, f32)> {
        choices.iter().map(|choice| (choice.expert, (choice.weight * 1e4).round() / 1e4)).collect()
    }

    #[test]
    fn the_best_share_what_there_is() {
        let scores = vec![0.0, 3f32.ln(), 0.0, 6f32.ln(), 0.0, 0.0];
        // Of 13 parts, 6 and 3.
        let chosen = routing(Scoring::Softmax, None).choose(scores.clone(), None);
        assert_eq!(weights(&chosen), [(3, 1.3333), (1, 0.6667)]);
        let plain = Routing { normalised: false, scale: 1.0, ..routing(Scoring::Softmax, None) };
        assert_eq!(weights(&plain.choose(scores, None)), [(3, 0.4615), (1, 0.2308)]);
    }

    #[test]
    fn a_correction_chooses_and_does_not_weigh() {
        let correction = [0.0, 0.0, 0.0, 0.0, 5.0, 0.0];
        let chosen = routing(Scoring::Sigmoid, None).choose(vec![0.0; 6], Some(&correction));
        assert_eq!(weights(&chosen), [(4, 1.0), (0, 1.0)]);
    }

    #[test]
    fn only_the_best_groups_are_considered() {
        let scores = vec![4.0, -9.0, 2.0, 2.0, 3.0, -9.0];
        let by = |by_best| Some(Groups { count: 3, considered: 1, by_best });
        let chosen = |groups| -> Vec<u32> {
            let chosen = routing(Scoring::Sigmoid, groups).choose(scores.clone(), None);
            chosen.iter().map(|choice| choice.expert).collect()
        };
        assert_eq!(chosen(None), [0, 4]);
        assert_eq!(chosen(by(2)), [2, 3]);
        assert_eq!(chosen(by(1)), [0, 1]);
    }
}

//! A feed-forward part of many experts, of which each token takes a few.
//!
//! First the router says which, for all tokens together; only then are they asked for, all at once, so
//! what nobody chose is never fetched. Meanwhile the router of the next block, if it is here, guesses
//! from the same activations what will be chosen there.
//!
//! In GGUF files the experts of a block are stored as one tensor for each of their projections. They are
//! part of the block then, and all are there when it is.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, Weak},
};

use candle_core::Tensor;
use surf_chunker::{Group, Stack};

use super::{
    EngineError,
    compute::Compute,
    host, kernels,
    kernels::Activation,
    linear::{Linear, Weight},
    mlp::GatedMlp,
    parts::{self, Parts},
    pass::Pass,
    router::{Choice, Router},
    stored::Stored,
};
use crate::weights::{RawTensor, Tensors};

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
    /// What computes their products.
    pub(crate) compute: Compute,
    /// An expert that every token takes.
    pub(crate) shared: Option<Shared>,
}

/// All experts of a block: gate, up and down projections, each as a tensor of experts by rows by columns.
#[derive(Debug)]
pub(crate) struct Stacked {
    tensors: [RawTensor; 3],
    /// Whether they stay in memory, as the block does.
    stay: bool,
    /// What was made of them so far, for as long as the block is what it is.
    made: Mutex<HashMap<u32, Arc<GatedMlp>>>,
}

/// See [`Mixture::shared`].
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) mlp: GatedMlp,
    /// How much of it each token takes, through a sigmoid; else all.
    pub(crate) gate: Option<Linear>,
}

/// The experts that stay in memory, each as what was made of its weights, for as long: a device keeps
/// its own copy of them there.
#[derive(Debug, Default)]
pub(crate) struct KeptExperts(Mutex<HashMap<Group, Kept>>);

/// What was made, and of which weights.
type Kept = (Weak<Tensors>, Arc<GatedMlp>);

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
                Some(stacked) => self.experts.mlp_of(stacked, expert, &self.compute)?,
                None => {
                    let group = self.group(expert);
                    let tensors = pass.weights.group(&group)?;
                    pass.experts.of(&group, &tensors, || {
                        let parts = Parts::new(&tensors, &self.compute).stored(self.stored);
                        self.experts.mlp(self.block, expert, &parts)
                    })?
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
        Group::Expert { stack: Stack::Decoder, layer: self.block, expert }
    }
}

impl KeptExperts {
    /// What was made of `tensors`, which are `group`'s, or what `make` makes of them now.
    fn of(
        &self,
        group: &Group,
        tensors: &Arc<Tensors>,
        make: impl FnOnce() -> Result<GatedMlp, EngineError>,
    ) -> Result<Arc<GatedMlp>, EngineError> {
        let mut kept = self.0.lock().expect("no panics while held");
        if let Some((of, mlp)) = kept.get(group)
            && Weak::as_ptr(of) == Arc::as_ptr(tensors)
        {
            return Ok(Arc::clone(mlp));
        }
        let mlp = Arc::new(make()?);
        if tensors.resident {
            kept.insert(group.clone(), (Arc::downgrade(tensors), Arc::clone(&mlp)));
        }
        Ok(mlp)
    }

    /// Lets go of those that have left memory. Looks at all, so once a pass is enough.
    pub(crate) fn forget(&self) {
        let mut kept = self.0.lock().expect("no panics while held");
        kept.retain(|_, (tensors, _)| tensors.strong_count() != 0);
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
        let (tensors, stay) = ([gate?, up?, down?], block.stay());
        Some(Stacked { tensors, stay, made: Mutex::default() })
    }

    fn mlp_of(
        &self,
        stacked: &Stacked,
        expert: u32,
        compute: &Compute,
    ) -> Result<Arc<GatedMlp>, EngineError> {
        let mut made = stacked.made.lock().expect("no panics while held");
        if let Some(mlp) = made.get(&expert) {
            return Ok(Arc::clone(mlp));
        }
        let [gate, up, down] = &stacked.tensors;
        let linear = |name: &str, all: &RawTensor, inputs: usize, outputs: usize| {
            let name = format!("{}.{name}", self.under);
            let one = layer_of(&name, all, expert as usize)?;
            let weight = Weight::Rows(parts::matrix(&name, &one, outputs, inputs)?);
            Ok::<_, EngineError>(Linear::new(weight, None, compute.product(stacked.stay)))
        };
        let [gate_name, up_name, down_name] = self.names;
        let mlp = Arc::new(GatedMlp {
            gate: linear(gate_name, gate, self.hidden, self.intermediate)?,
            up: linear(up_name, up, self.hidden, self.intermediate)?,
            down: linear(down_name, down, self.intermediate, self.hidden)?,
            activation: self.activation,
        });
        made.insert(expert, Arc::clone(&mlp));
        Ok(mlp)
    }

    fn mlp(&self, block: u32, expert: u32, parts: &Parts<'_>) -> Result<GatedMlp, EngineError> {
        let [gate, up, down] = self.names;
        let alone = parts.under(&format!("layers.{block}.{}.{expert}", self.under));
        // A decoder that was saved alone has no root.
        let expert = match alone.has(&format!("{gate}.weight")) {
            true => alone,
            false => parts.under(&format!("model.layers.{block}.{}.{expert}", self.under)),
        };
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

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::engine::kernels::{Float, Matrix};

    fn mlp() -> GatedMlp {
        let linear = || {
            let one = Bytes::copy_from_slice(&1f32.to_le_bytes());
            let weight = Weight::Rows(Matrix::new(Float::F32, 1, 1, vec![one]).unwrap());
            Linear::new(weight, None, Compute::on_host(false).product(false))
        };
        GatedMlp { gate: linear(), up: linear(), down: linear(), activation: Activation::Silu }
    }

    #[test]
    fn an_expert_is_made_once_as_long_as_it_stays() {
        let kept = KeptExperts::default();
        let group = Group::Expert { stack: Stack::Decoder, layer: 1, expert: 2 };
        let tensors = |resident| Arc::new(Tensors { resident, ..Tensors::default() });
        let made = |tensors: &Arc<Tensors>| {
            let mut made = false;
            let make = || {
                made = true;
                Ok(mlp())
            };
            kept.of(&group, tensors, make).unwrap();
            made
        };
        let (first, second, passing) = (tensors(true), tensors(true), tensors(false));
        assert!(made(&first) && !made(&first));
        assert!(made(&second) && !made(&second), "the same expert, come again");
        assert!(made(&passing) && made(&passing));
        kept.forget();
        assert!(!made(&second));
        drop(second);
        kept.forget();
        assert!(kept.0.lock().unwrap().is_empty());
    }
}

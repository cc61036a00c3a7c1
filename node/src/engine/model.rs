//! One pass over a model whose weights arrive while it runs.
//!
//! Groups are visited in order: asked for, made into a layer, computed with, dropped. A layer is
//! kept only if its weights stay in memory anyway. Which groups those are, and that the next ones
//! are on their way, is the business of [`Weights`].

use std::{collections::HashMap, sync::Arc};

use candle_core::{Device, Tensor};
use surf_chunker::{Group, Stack};
use surf_kernels::team::Team;
use tokio::time::Instant;

use super::{
    EngineError,
    arch::{Architecture, Layer, Shape, Step, Tables},
    cache::KvCache,
    compute::Compute,
    experts::KeptExperts,
    gguf, host,
    memory::{self, Working},
    parts,
    parts::Parts,
    pass::{Entry, Pass, Span},
    stored::Stored,
};
use crate::{
    journal::{Event, Journal},
    weights::{Tensors, Weights, WeightsError},
};

/// Times that a pass is run before it fails because its weights changed on the disk each time. Each time
/// costs a pass, and fetching what changed; a disk that does this again and again is of no use.
const TRIES_MAX: usize = 4;

/// A model, and the layers of it that stay.
#[derive(Debug)]
pub(crate) struct Model {
    architecture: Box<dyn Architecture>,
    steps: Vec<Step>,
    weights: Arc<dyn Weights>,
    journal: Arc<Journal>,
    compute: Compute,
    working: Working,
    stored: Stored,
    team: Team,
    kept: HashMap<Group, Kept>,
    experts: Arc<KeptExperts>,
}

/// A layer whose weights are resident, and those weights: as long as they are the same, so is it.
#[derive(Debug)]
struct Kept {
    tensors: Arc<Tensors>,
    layer: Arc<dyn Layer>,
}

/// The layers of the head, with their steps.
type Heads = Vec<(usize, Arc<dyn Layer>)>;

/// One sequence's part in a pass.
#[derive(Debug)]
pub(crate) struct Input<'a> {
    /// Its new tokens, and what it has seen before.
    pub(crate) entry: Entry<'a>,
    /// Which logits are wanted.
    pub(crate) want: Want,
}

/// Which of a pass's tokens need logits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Want {
    /// None: the prompt goes on.
    Nothing,
    /// What follows the last token.
    Last,
    /// What follows each token.
    All,
}

impl Model {
    /// A model of this structure; fails if the manifest lacks one of its groups.
    pub(crate) fn new(
        architecture: Box<dyn Architecture>,
        weights: Arc<dyn Weights>,
        journal: Arc<Journal>,
        compute: Compute,
        working: Working,
    ) -> Result<Self, EngineError> {
        let steps = architecture.steps();
        for step in &steps {
            if weights.checkpoint().group(&step.group).is_none() {
                return Err(EngineError::NoGroup(step.group.clone()));
            }
        }
        let team = Team::new(memory::threads())
            .map_err(|error| EngineError::Device(format!("no threads to compute with: {error}")))?;
        let (stored, kept, experts) = (Stored::default(), HashMap::new(), Arc::default());
        Ok(Self { architecture, steps, weights, journal, compute, working, stored, team, kept, experts })
    }

    /// The same, of weights that are stored like this.
    pub(crate) fn stored(self, stored: Stored) -> Self {
        Self { stored, ..self }
    }

    /// Sizes.
    pub(crate) fn shape(&self) -> Shape {
        self.architecture.shape()
    }

    /// Where the tokens of a row stand when it is run whole; `mask` says which of them count.
    pub(crate) fn positions(&self, tokens: &[u32], mask: &[bool]) -> Vec<u32> {
        self.architecture.positions(tokens, mask)
    }

    /// Has the next passes computed in f32 throughout, or as configured.
    pub(crate) fn set_exact(&self, exact: bool) {
        self.compute.set_exact(exact);
    }

    /// What it holds beside weights.
    pub(crate) fn working(&self) -> &Working {
        &self.working
    }

    /// Runs the new tokens of all sequences through the model, and adds them to their caches. Calls `told`
    /// with the number of a sequence and logits, for each of its positions that are wanted, in order.
    ///
    /// After an error the caches are as before.
    pub(crate) fn forward(
        &mut self,
        inputs: Vec<Input<'_>>,
        told: &mut dyn FnMut(usize, &[f32]),
    ) -> Result<(), EngineError> {
        let (mut entries, mut wanted, mut whose, mut first) = (Vec::new(), Vec::new(), Vec::new(), 0);
        // Keys and values of what was encoded are made in the first pass over it.
        let mut rows = 0;
        for (at, Input { entry, want }) in inputs.into_iter().enumerate() {
            let end = first + entry.tokens.len() as u32;
            let some = match want {
                Want::Nothing => end..end,
                Want::Last => end - 1..end,
                Want::All => first..end,
            };
            whose.extend(some.clone().map(|_| at));
            wanted.extend(some);
            rows = rows.max(entry.source.as_ref().map_or(0, |source| source.unseen()));
            entries.push(entry);
            first = end;
        }
        let _more = self.working.beyond(rows.max(first as usize))?;
        let weights = Arc::clone(&self.weights);
        let mut pass = Pass::new(entries, &*weights);
        pass.wanted = wanted;
        let x = self.run(Stack::Decoder, &mut pass)?;
        let mut whose = whose.into_iter();
        self.head(x, &mut pass, &mut |logits| told(whose.next().unwrap_or_default(), logits))?;
        for span in &mut pass.spans {
            span.cache.advance(span.rows.len());
            span.source.as_mut().into_iter().for_each(|source| source.complete());
        }
        Ok(())
    }

    /// Runs whole rows, each of tokens and their positions, through the encoder. Returns the last
    /// hidden states of each, by tokens.
    pub(crate) fn encode(&mut self, rows: &[(&[u32], &[u32])]) -> Result<Vec<Tensor>, EngineError> {
        // An encoder sees everything at once, and keeps nothing.
        let nothing = self.shape().cache.nothing();
        let mut caches: Vec<KvCache> = rows.iter().map(|_| KvCache::new(nothing)).collect();
        let entry = |(&(tokens, positions), cache)| {
            let positions = Some(positions);
            Entry { tokens, positions, cache, source: None }
        };
        let tokens = rows.iter().map(|(tokens, _)| tokens.len()).sum();
        let _more = self.working.beyond(tokens)?;
        let weights = Arc::clone(&self.weights);
        let mut pass = Pass::new(rows.iter().zip(&mut caches).map(entry), &*weights);
        let hidden = self.run(Stack::Encoder, &mut pass)?;
        let part = |span: &Span<'_>| hidden.narrow(0, span.rows.start, span.rows.len());
        Ok(pass.spans.iter().map(part).collect::<Result<_, _>>()?)
    }

    /// All steps of one stage but the head, once more if weights turn out to have changed meanwhile on the
    /// disk. Returns the hidden states of all tokens.
    fn run(&mut self, stage: Stack, pass: &mut Pass<'_>) -> Result<Tensor, EngineError> {
        for _ in 0..TRIES_MAX {
            let result = self.steps(stage, pass);
            // Also of a failure: it may be the wrong weights' fault.
            if self.weights.settle(true) {
                return result;
            }
            pass.distances = None;
            pass.next = None;
        }
        Err(WeightsError::Unsettled.into())
    }

    fn steps(&mut self, stage: Stack, pass: &mut Pass<'_>) -> Result<Tensor, EngineError> {
        self.experts.forget();
        pass.experts = Arc::clone(&self.experts);
        let mut tables = TableRows { weights: &*self.weights, kept: &self.kept };
        let mut x = self.architecture.embed(&mut tables, pass)?;
        for at in 0..self.steps.len() {
            if self.steps[at].stage() == stage && !self.steps[at].head {
                let layer = self.layer(at)?;
                pass.next = self.next(at)?;
                x = self.step(at, &*layer, &x, pass)?;
            }
        }
        Ok(x)
    }

    /// The head, for the tokens of `x` whose logits are wanted: as many together as there is memory for.
    fn head(
        &mut self,
        x: Tensor,
        pass: &mut Pass<'_>,
        told: &mut dyn FnMut(&[f32]),
    ) -> Result<(), EngineError> {
        if pass.wanted.is_empty() {
            return Ok(());
        }
        let mut layers = self.head_layers()?;
        let vocab = self.shape().vocab;
        let together = self.working.logits_together(pass.tokens.len());
        let wanted = std::mem::take(&mut pass.wanted);
        let (mut parts, mut tries) = (wanted.chunks(together).peekable(), 0);
        while let Some(some) = parts.peek() {
            let some = Tensor::from_slice(some, some.len(), &Device::Cpu)?;
            let computed = layers
                .iter()
                .try_fold(x.index_select(&some, 0)?, |x, (at, layer)| self.step(*at, &**layer, &x, pass));
            // Nobody is told before it is known that the weights were right.
            if self.weights.settle(parts.len() == 1) {
                let logits = computed?;
                host::read(&logits, |logits| logits.chunks_exact(vocab).for_each(&mut *told))?;
                (_, tries) = (parts.next(), 0);
                continue;
            }
            tries += 1;
            if tries == TRIES_MAX {
                return Err(WeightsError::Unsettled.into());
            }
            layers = self.head_layers()?;
        }
        Ok(())
    }

    fn head_layers(&mut self) -> Result<Heads, EngineError> {
        let heads: Vec<usize> = (0..self.steps.len()).filter(|&at| self.steps[at].head).collect();
        heads.into_iter().map(|at| Ok((at, self.layer(at)?))).collect()
    }

    /// Step `at`, which is `layer`.
    fn step(
        &self,
        at: usize,
        layer: &dyn Layer,
        x: &Tensor,
        pass: &mut Pass<'_>,
    ) -> Result<Tensor, EngineError> {
        let start = Instant::now();
        let y = self.team.install(|| layer.forward(x, pass))?;
        let took_us = u64::try_from(start.elapsed().as_micros()).unwrap_or(u64::MAX);
        self.journal.record(Event::GroupComputed { group: self.steps[at].group.to_string(), took_us });
        Ok(y)
    }

    /// The layer after step `at`, if its weights are here.
    fn next(&mut self, at: usize) -> Result<Option<Arc<dyn Layer>>, EngineError> {
        let Some(step) = self.steps.get(at + 1) else { return Ok(None) };
        match self.weights.ready(&step.group) {
            Some(tensors) => self.layer_of(at + 1, tensors).map(Some),
            None => Ok(None),
        }
    }

    /// The layer of step `at`.
    fn layer(&mut self, at: usize) -> Result<Arc<dyn Layer>, EngineError> {
        let tensors = self.weights.group(&self.steps[at].group)?;
        self.layer_of(at, tensors)
    }

    /// The layer of step `at`, from its weights or kept from earlier.
    fn layer_of(&mut self, at: usize, tensors: Arc<Tensors>) -> Result<Arc<dyn Layer>, EngineError> {
        let step = &self.steps[at];
        if let Some(kept) = self.kept.get(&step.group)
            && Arc::ptr_eq(&kept.tensors, &tensors)
        {
            return Ok(Arc::clone(&kept.layer));
        }
        let parts = Parts::new(&tensors, &self.compute).stored(self.stored);
        let layer = self.architecture.layer(step, &parts)?;
        let layer: Arc<dyn Layer> = Arc::from(layer);
        if tensors.resident {
            let kept = Kept { tensors, layer: Arc::clone(&layer) };
            self.kept.insert(step.group.clone(), kept);
        } else {
            self.kept.remove(&step.group);
        }
        Ok(layer)
    }
}

/// Rows of tables: from a group that is kept, else asked for by row.
struct TableRows<'a> {
    weights: &'a dyn Weights,
    kept: &'a HashMap<Group, Kept>,
}

impl Tables for TableRows<'_> {
    fn rows(&mut self, tensor: &str, rows: &[u32], cols: usize) -> Result<Tensor, EngineError> {
        let manifest = self.weights.checkpoint();
        let tensor = &*gguf::stored_name(tensor, |name| manifest.tensor(name).is_some());
        // Before a row of it is asked for, which may be of any length.
        if let Some(entry) = manifest.tensor(tensor)
            && entry.shape.get(1..) != Some(&[cols as u64])
        {
            let reason = format!("is {:?}, not a table with rows of {cols}", entry.shape);
            return Err(EngineError::tensor(tensor, reason));
        }
        let mut values = Vec::with_capacity(rows.len() * cols);
        let kept = self.kept.get(&Group::Embed).and_then(|kept| kept.tensors.tensors.get(tensor));
        if let Some(raw) = kept {
            let table_rows = raw.shape.first().copied().unwrap_or(0);
            let table = parts::matrix(tensor, raw, table_rows, cols)?;
            for &row in rows {
                let read = table.read_row(row as usize, &mut values);
                read.ok_or_else(|| EngineError::tensor(tensor, format!("has no row {row}")))?;
            }
        } else {
            let raw = self.weights.rows(tensor, rows)?;
            let table = parts::matrix(tensor, &raw, rows.len(), cols)?;
            table.runs(rows.len()).iter().for_each(|run| run.with_f32(|run| values.extend_from_slice(run)));
        }
        host::tensor(values, rows.len(), cols)
    }
}

//! How the memory budget (`--memory`) is shared, and what a running model holds of it.
//!
//! Weights, keys and values, activations and results count. Weights that do not fit stream; the rest does
//! not, so a part of the budget is kept for it: what a full pass and a usual context take, at most a
//! quarter of the budget unless one token takes more. A model of which not even one token fits is refused
//! before anything is fetched.

use std::{ops::Range, sync::Arc};

use surf_chunker::{Checkpoint, Parameter};

use super::{
    EngineError,
    arch::Shape,
    budget::{MemoryBudget, Reservation, readable},
    widths::{PassSize, Widths},
};

/// Bytes beside weights that every model may hold, however small the budget: less would not make the
/// program smaller.
const BESIDE: u64 = 32 << 20;

/// Tokens of a usual context. Longer ones are served from what weights leave.
const CONTEXT: usize = 4096;

/// Tokens in one pass, at most. A pass costs the weights once, whatever it computes, so prompts run in
/// large batches; but everyone else waits for it.
pub(super) const PASS_TOKENS_MAX: usize = 512;

/// Tokens that any encoder sees at once, at most: more than one is made for.
const ROWS_MAX: usize = 1 << 24;

/// Tokens that a sequence has room for when it begins, at least.
const STEP: usize = 64;

/// Tokens whose logits are computed together where there is room: as many as there are sequences in a pass. The head
/// is read once for all of them.
const LOGITS_TOGETHER: usize = 16;

/// How a memory budget is shared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shares {
    /// Bytes for weights, those that stream included.
    pub weights: u64,
    /// Bytes for everything else.
    pub work: u64,
}

/// What of a model's weights matters here.
#[derive(Clone, Debug, Default)]
pub(crate) struct WeightSizes {
    /// Bytes of all tensors.
    total: u64,
    /// Bytes of the largest group.
    largest: u64,
    /// Bytes of a group that must be copied, because rows are in several chunks: the most, and of which
    /// tensor.
    copied: Option<(u64, String)>,
}

/// What a running model holds beside weights.
#[derive(Debug)]
pub(crate) struct Working {
    budget: Arc<MemoryBudget>,
    widths: Arc<Widths>,
    threads: usize,
    /// Tokens that any sequence can have.
    keys: usize,
    /// Tokens in one pass.
    rows: usize,
    /// What such a pass takes, for as long as the model is loaded.
    pass: Reservation,
}

impl WeightSizes {
    /// Of the model that `manifest` describes.
    pub(crate) fn of(manifest: &Checkpoint) -> Self {
        let mut sizes = Self::default();
        for entry in manifest.groups() {
            let (mut size, mut copied, mut largest) = (0u64, 0u64, None::<&Parameter>);
            for &at in &entry.tensors {
                let tensor = &manifest.tensors()[at as usize];
                size = size.saturating_add(tensor.size);
                if !is_in_whole_rows(manifest, tensor) {
                    copied = copied.saturating_add(tensor.size);
                    largest = largest.filter(|largest| tensor.size <= largest.size).or(Some(tensor));
                }
            }
            sizes.total = sizes.total.saturating_add(size);
            sizes.largest = sizes.largest.max(size);
            if let Some(tensor) = largest
                && sizes.copied.as_ref().is_none_or(|(most, _)| *most < copied)
            {
                sizes.copied = Some((copied, tensor.name.to_string()));
            }
        }
        sizes
    }

    fn copied(&self) -> u64 {
        self.copied.as_ref().map_or(0, |(bytes, _)| *bytes)
    }
}

/// Whether each piece of `tensor` is whole rows of it, so that they need not be put together.
fn is_in_whole_rows(manifest: &Checkpoint, tensor: &Parameter) -> bool {
    let rows = tensor.shape.first().copied().unwrap_or(1).max(1);
    let row = (tensor.size / rows).max(1);
    let whole = |range: Range<u32>| u64::from(range.end - range.start).is_multiple_of(row);
    manifest.tensor_pieces(tensor).all(|piece| whole(piece.range))
}

impl Shares {
    /// How `memory` bytes are shared for a model of this `shape`. Fails if one token does not fit.
    pub(crate) fn new(
        shape: &Shape,
        widths: &Widths,
        sizes: &WeightSizes,
        memory: u64,
        threads: usize,
    ) -> Result<Self, EngineError> {
        let context = shape.context.clamp(1, CONTEXT);
        // Within the ring, copies are weights like others.
        let copied = sizes.copied().saturating_sub(memory / 2);
        let of = |rows, keys| {
            let pass = widths.pass_bytes(PassSize { rows, keys, threads });
            pass.saturating_add(shape.cache.bytes(keys)).saturating_add(copied)
        };
        let (least, usual) = (of(1, 1), of(PASS_TOKENS_MAX, context));
        // The smallest ring holds the largest group, or half of the budget where that is more.
        let ring = sizes.largest.min(memory / 2);
        let allowed = BESIDE.saturating_add(memory - ring);
        if allowed < least {
            let cause = match &sizes.copied {
                Some((bytes, name)) if least / 2 < copied.min(*bytes) => {
                    format!("rows of the tensor {name:?} are in several chunks")
                }
                _ if least / 2 < shape.cache.bytes(1) => format!(
                    "{} layers keep {} of each token",
                    shape.cache.blocks,
                    readable(shape.cache.token_bytes())
                ),
                _ => format!("in config.json, {}", widths.cause(threads)),
            };
            return Err(EngineError::TooWide { cause, needed: least, allowed, memory });
        }
        let kept = usual.saturating_sub(BESIDE).min(memory / 4).max(least.saturating_sub(BESIDE));
        let weights = memory.saturating_sub(kept);
        let work = BESIDE.saturating_add(memory - sizes.total.min(weights));
        Ok(Self { weights, work: work.saturating_sub(copied) })
    }
}

impl Working {
    /// In `work` bytes. Fails if that is too little for one token and its sequence.
    pub(crate) fn new(shape: &Shape, widths: Widths, work: u64, threads: usize) -> Result<Self, EngineError> {
        let budget = MemoryBudget::new(work);
        let affordable = work / shape.cache.token_bytes().max(1);
        let keys = shape.context.min(usize::try_from(affordable).unwrap_or(usize::MAX)).max(1);
        let bytes = |rows| widths.pass_bytes(PassSize { rows, keys, threads });
        // An encoder keeps nothing, so all may be a pass. Others must have room to begin.
        let beside = |tokens| work.saturating_sub(shape.cache.bytes(tokens));
        let most = beside(first_step(shape));
        let half = if shape.cache.token_bytes() == 0 { work } else { most.min(work / 2) };
        let rows = largest(PASS_TOKENS_MAX, |rows| bytes(rows) <= half);
        let several = widths.pass_bytes_with(PassSize { rows, keys, threads }, LOGITS_TOGETHER);
        let reserve = |bytes, most| if bytes <= most { budget.reserve(bytes) } else { None };
        // With few tokens, scores are few as well.
        let short = widths.pass_bytes(PassSize { rows, keys: first_step(shape), threads });
        let pass = reserve(several, half).or_else(|| reserve(bytes(rows), most));
        let pass = pass.or_else(|| reserve(short, beside(1)));
        let pass = pass.ok_or_else(|| EngineError::TooWide {
            cause: format!("in config.json, {}", widths.cause(threads)),
            needed: short.saturating_add(work - beside(1)),
            allowed: work,
            memory: work,
        })?;
        Ok(Self { budget, widths: Arc::new(widths), threads, keys, rows, pass })
    }

    /// What a pass takes.
    pub(crate) fn widths(&self) -> Arc<Widths> {
        Arc::clone(&self.widths)
    }

    /// Where keys and values and results are reserved.
    pub(crate) fn budget(&self) -> &Arc<MemoryBudget> {
        &self.budget
    }

    /// Tokens that one pass may have.
    pub(crate) fn rows(&self) -> usize {
        self.rows
    }

    /// Tokens that one pass can have if nothing else is reserved.
    pub(crate) fn rows_alone(&self) -> usize {
        let bytes = |rows| self.widths.pass_bytes(PassSize { rows, keys: self.keys, threads: self.threads });
        let all = self.pass.bytes().saturating_add(self.budget.left());
        largest(ROWS_MAX, |rows| bytes(rows) <= all)
    }

    /// Tokens whose logits may be there together, in a pass of so many `rows`.
    pub(crate) fn logits_together(&self, rows: usize) -> usize {
        self.widths.logits_together(rows, self.pass.bytes())
    }

    /// What a pass of so many `rows` takes beyond what is reserved for passes, if it takes more.
    pub(crate) fn beyond(&self, rows: usize) -> Result<Option<Reservation>, EngineError> {
        if rows <= self.rows {
            return Ok(None);
        }
        let needed = self.widths.pass_bytes(PassSize { rows, keys: self.keys, threads: self.threads });
        let more = self.budget.reserve(needed.saturating_sub(self.pass.bytes()));
        more.map(Some).ok_or_else(|| {
            let what = format!("a pass over {rows} tokens");
            EngineError::no_memory(what, needed, self.pass.bytes() + self.budget.left())
        })
    }
}

/// The largest of `1..=most` for which `fits` holds, where it holds up to some number; at least 1.
fn largest(most: usize, fits: impl Fn(usize) -> bool) -> usize {
    let (mut good, mut bad) = (1, most + 1);
    while good + 1 < bad {
        let middle = good.midpoint(bad);
        if fits(middle) { good = middle } else { bad = middle }
    }
    good
}

/// Tokens that a sequence of one has room for.
fn first_step(shape: &Shape) -> usize {
    stepped(1).min(shape.context.max(1))
}

/// Tokens that are reserved together for a sequence of `seen`: a quarter more, so that what grew is seldom
/// moved, and little of it is in vain.
pub(crate) fn stepped(seen: usize) -> usize {
    seen.saturating_add((seen / 4).max(STEP))
}

/// Threads that a model will compute with.
pub(crate) fn threads() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

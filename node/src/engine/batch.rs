//! Whole rows of tokens at once, padded and masked as transformers' `forward` takes them.
//!
//! What the mask hides is left out, not computed and masked: a token that is not there is not seen.
//! The rest keeps the positions that it has in its row.

use std::sync::Arc;

use candle_core::Tensor;

use super::{
    EngineError,
    arch::{Kind, Shape},
    budget::Reservation,
    cache::KvCache,
    host,
    model::{Input, Model, Want},
    pass::Entry,
    source::Source,
};

/// One row of a batch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Row {
    /// Token ids, padding included.
    pub tokens: Vec<u32>,
    /// Which of them count; all, if it is not said.
    pub mask: Option<Vec<bool>>,
    /// What the decoder has generated so far, its start token included, if the model encodes first.
    pub decoder: Option<Vec<u32>>,
}

/// What a model makes of a row.
#[derive(Clone, Debug, PartialEq)]
pub struct Output {
    /// What the numbers are.
    pub what: What,
    /// Numbers for each position.
    pub width: usize,
    /// By positions; zeros at those that do not count.
    pub values: Vec<f32>,
    /// Memory that they take, until this is dropped.
    pub(crate) held: Held,
}

/// A reservation that copies of its owner share.
#[derive(Clone, Debug, Default)]
pub(crate) struct Held {
    _memory: Option<Arc<Reservation>>,
}

impl PartialEq for Held {
    /// What it costs makes no difference.
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

/// What can be computed of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    /// How likely each token is to follow.
    Logits,
    /// A vector of each token.
    HiddenState,
}

impl What {
    /// What transformers calls it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Logits => "logits",
            Self::HiddenState => "last_hidden_state",
        }
    }
}

impl From<Vec<u32>> for Row {
    fn from(tokens: Vec<u32>) -> Self {
        Self { tokens, mask: None, decoder: None }
    }
}

impl Row {
    /// Whether it makes sense for a model of this shape. Its tokens are checked elsewhere.
    pub(crate) fn check(&self, shape: Shape) -> Result<(), EngineError> {
        let refused = |reason: &str| Err(EngineError::Request(reason.to_owned()));
        if let Some(mask) = &self.mask {
            if mask.len() != self.tokens.len() {
                return refused("attention_mask is not as long as input_ids");
            }
            if !mask.contains(&true) {
                return refused("attention_mask hides all tokens of a row");
            }
        }
        match (shape.kind, &self.decoder) {
            (Kind::Seq2Seq { .. }, None) => {
                refused("the model has an encoder and a decoder; give it decoder_input_ids too")
            }
            (Kind::Causal | Kind::Encoder { .. }, Some(_)) => {
                refused("decoder_input_ids are for models with an encoder and a decoder; this is none")
            }
            _ => Ok(()),
        }
    }

    /// How many positions there are results for, and how many numbers for each, at most.
    pub(crate) fn size(&self, shape: Shape) -> (usize, usize) {
        match shape.kind {
            Kind::Causal => (self.tokens.len(), shape.vocab),
            Kind::Encoder { width } => (self.tokens.len(), width),
            Kind::Seq2Seq { .. } => (self.decoder.as_ref().map_or(0, Vec::len), shape.vocab),
        }
    }
}

/// The tokens of a row that count.
#[derive(Default)]
struct Kept {
    tokens: Vec<u32>,
    positions: Vec<u32>,
    /// Where in the row they are.
    places: Vec<usize>,
    /// How long the row is.
    length: usize,
}

/// Bytes that [`run`] takes beside weights: results, and keys and values of the rows that are run together.
pub(crate) fn bytes(model: &Model, rows: &[Row]) -> u64 {
    let shape = model.shape();
    let results = rows.iter().map(|row| result_bytes(row, shape)).fold(0, u64::saturating_add);
    let together = together(rows, model.working().rows());
    let most = together.map(|rows| rows.iter().map(|row| kept_bytes(row, shape)).sum()).max();
    results.saturating_add(most.unwrap_or(0))
}

/// Bytes of what is given back for `row`.
pub(crate) fn result_bytes(row: &Row, shape: Shape) -> u64 {
    let (positions, width) = row.size(shape);
    (positions as u64).saturating_mul((width * size_of::<f32>()) as u64)
}

/// Bytes of what is kept of `row` while it is run.
pub(crate) fn kept_bytes(row: &Row, shape: Shape) -> u64 {
    let (width, decoded) = match shape.kind {
        Kind::Seq2Seq { width, .. } => (width, row.decoder.as_ref().map_or(0, Vec::len)),
        Kind::Encoder { width } => (width, 0),
        Kind::Causal => (0, 0),
    };
    let hidden = (row.tokens.len() * width * size_of::<f32>()) as u64;
    hidden + shape.cache.bytes(row.tokens.len()) + shape.cache.bytes(decoded)
}

/// `rows` in runs of at most `tokens` tokens, or of one row.
fn together(rows: &[Row], tokens: usize) -> impl Iterator<Item = &[Row]> {
    let mut rest = rows;
    std::iter::from_fn(move || {
        let mut sum = rest.first()?.tokens.len();
        let fits = |row: &&Row| {
            sum += row.tokens.len();
            sum <= tokens
        };
        let (some, after) = rest.split_at(1 + rest[1..].iter().take_while(fits).count());
        rest = after;
        Some(some)
    })
}

/// Runs `rows`, which were checked, in passes of bounded size.
pub(crate) fn run(model: &mut Model, rows: &[Row], what: What) -> Result<Vec<Output>, EngineError> {
    let needed = bytes(model, rows);
    let budget = Arc::clone(model.working().budget());
    let mut memory = budget.reserve(needed).ok_or_else(|| {
        EngineError::no_memory(format!("computing {} rows", rows.len()), needed, budget.left())
    })?;
    let shape = model.shape();
    let mut outputs = Vec::with_capacity(rows.len());
    for rows in together(rows, model.working().rows()) {
        let computed = match what {
            What::HiddenState => hidden_states(model, rows)?,
            What::Logits => logits(model, rows)?,
        };
        for (row, mut output) in rows.iter().zip(computed) {
            output.held = Held { _memory: memory.split(result_bytes(row, shape)).map(Arc::new) };
            outputs.push(output);
        }
    }
    Ok(outputs)
}

/// The last hidden states of `rows`.
fn hidden_states(model: &mut Model, rows: &[Row]) -> Result<Vec<Output>, EngineError> {
    let kept: Vec<Kept> = rows.iter().map(|row| Kept::of(row, model)).collect();
    let hidden = encode(model, &kept)?;
    let output = |(hidden, kept): (Tensor, &Kept)| {
        let (_, width) = hidden.dims2()?;
        let mut output = kept.output(What::HiddenState, width);
        host::read(&hidden, |values| {
            values.chunks_exact(width).enumerate().for_each(|(at, values)| kept.put(&mut output, at, values));
        })?;
        Ok(output)
    };
    hidden.into_iter().zip(&kept).map(output).collect()
}

/// The logits of `rows`.
fn logits(model: &mut Model, rows: &[Row]) -> Result<Vec<Output>, EngineError> {
    let shape = model.shape();
    let kept: Vec<Kept> = rows.iter().map(|row| Kept::of(row, model)).collect();
    let mut running = Vec::with_capacity(rows.len());
    if let Kind::Seq2Seq { .. } = shape.kind {
        for (row, hidden) in rows.iter().zip(encode(model, &kept)?) {
            let tokens = row.decoder.as_deref().unwrap_or_default();
            let source = Some(Source::new(hidden, shape.cache)?);
            // A decoder has no padding.
            let places =
                Kept { places: (0..tokens.len()).collect(), length: tokens.len(), ..Kept::default() };
            running.push(Running::new(model, tokens, None, source, places));
        }
    } else {
        for mut kept in kept {
            let tokens = std::mem::take(&mut kept.tokens);
            let positions = Some(std::mem::take(&mut kept.positions));
            running.push(Running::new(model, tokens, positions, None, kept));
        }
    }
    decode(model, &mut running)?;
    Ok(running.into_iter().map(|running| running.output).collect())
}

/// A row on its way through a decoder.
struct Running {
    tokens: Vec<u32>,
    positions: Option<Vec<u32>>,
    cache: KvCache,
    source: Option<Source>,
    places: Kept,
    /// Positions of which the logits are there.
    done: usize,
    output: Output,
}

impl Running {
    fn new(
        model: &Model,
        tokens: impl Into<Vec<u32>>,
        positions: Option<Vec<u32>>,
        source: Option<Source>,
        places: Kept,
    ) -> Self {
        let (shape, tokens) = (model.shape(), tokens.into());
        let mut cache = KvCache::new(shape.cache);
        cache.grow(tokens.len());
        let output = places.output(What::Logits, shape.vocab);
        Self { tokens, positions, cache, source, places, done: 0, output }
    }
}

/// What the encoder makes of each row.
fn encode(model: &mut Model, rows: &[Kept]) -> Result<Vec<Tensor>, EngineError> {
    let pass: Vec<(&[u32], &[u32])> = rows.iter().map(|row| (&*row.tokens, &*row.positions)).collect();
    model.encode(&pass)
}

fn decode(model: &mut Model, rows: &mut [Running]) -> Result<(), EngineError> {
    loop {
        let mut room = model.working().rows();
        let (mut inputs, mut results) = (Vec::new(), Vec::new());
        for row in &mut *rows {
            let seen = row.cache.len();
            let part = seen..row.tokens.len().min(seen + room);
            room -= part.len();
            if part.is_empty() {
                continue;
            }
            let tokens = &row.tokens[part.clone()];
            let positions = row.positions.as_ref().map(|positions| &positions[part]);
            let (cache, source) = (&mut row.cache, row.source.as_mut());
            inputs.push(Input { entry: Entry { tokens, positions, cache, source }, want: Want::All });
            results.push((&row.places, &mut row.done, &mut row.output));
        }
        if inputs.is_empty() {
            return Ok(());
        }
        model.forward(inputs, &mut |at, logits| {
            let (places, done, output) = &mut results[at];
            places.put(output, **done, logits);
            **done += 1;
        })?;
    }
}

impl Kept {
    fn of(row: &Row, model: &Model) -> Self {
        let length = row.tokens.len();
        let all = || vec![true; length];
        let mask = row.mask.clone().unwrap_or_else(all);
        let positions = model.positions(&row.tokens, &mask);
        let places: Vec<usize> = (0..length).filter(|&at| mask[at]).collect();
        let those = |of: &[u32]| places.iter().map(|&at| of[at]).collect();
        Self { tokens: those(&row.tokens), positions: those(&positions), places, length }
    }

    /// Zeros for all positions of the row.
    fn output(&self, what: What, width: usize) -> Output {
        Output { what, width, values: vec![0.0; self.length * width], held: Held::default() }
    }

    /// Puts `values`, of the token with this number among those that count, where they belong.
    fn put(&self, output: &mut Output, at: usize, values: &[f32]) {
        if let Some(&place) = self.places.get(at) {
            output.values[place * values.len()..(place + 1) * values.len()].copy_from_slice(values);
        }
    }
}

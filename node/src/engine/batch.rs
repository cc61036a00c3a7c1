//! Whole rows of tokens at once, padded and masked as transformers' `forward` takes them.
//!
//! What the mask hides is left out, not computed and masked: a token that is not there is not seen.
//! The rest keeps the positions that it has in its row.

use candle_core::Tensor;

use super::{
    EngineError,
    actor::PASS_TOKENS_MAX,
    arch::{Kind, Shape},
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
struct Kept {
    tokens: Vec<u32>,
    positions: Vec<u32>,
    /// Where in the row they are.
    places: Vec<usize>,
    /// How long the row is.
    length: usize,
}

/// Runs `rows`, which were checked, in passes of bounded size.
pub(crate) fn run(model: &mut Model, rows: &[Row], what: What) -> Result<Vec<Output>, EngineError> {
    let shape = model.shape();
    let kept: Vec<Kept> = rows.iter().map(|row| Kept::of(row, model)).collect();
    let encodes = what == What::HiddenState || matches!(shape.kind, Kind::Seq2Seq { .. });
    let hidden = if encodes { encode(model, &kept)? } else { Vec::new() };
    if what == What::HiddenState {
        return hidden.iter().zip(&kept).map(|(hidden, kept)| kept.spread(what, hidden)).collect();
    }
    let cache = || KvCache::new(shape.cache);
    let mut running = Vec::with_capacity(rows.len());
    if encodes {
        for (row, hidden) in rows.iter().zip(hidden) {
            let tokens = row.decoder.as_deref().unwrap_or_default();
            let source = Some(Source::new(hidden, shape.cache)?);
            running.push(Running { tokens, positions: None, cache: cache(), source, logits: Vec::new() });
        }
    } else {
        running.extend(kept.iter().map(|kept| {
            let (tokens, positions) = (&*kept.tokens, Some(&*kept.positions));
            Running { tokens, positions, cache: cache(), source: None, logits: Vec::new() }
        }));
    }
    decode(model, &mut running)?;
    let logits = running.into_iter().map(|running| running.logits);
    let (width, what) = (shape.vocab, What::Logits);
    let output = |(values, kept): (Vec<f32>, &Kept)| Output {
        what,
        width,
        values: if encodes { values } else { kept.spread_values(width, &values) },
    };
    Ok(logits.zip(&kept).map(output).collect())
}

/// A row on its way through a decoder.
struct Running<'a> {
    tokens: &'a [u32],
    positions: Option<&'a [u32]>,
    cache: KvCache,
    source: Option<Source>,
    logits: Vec<f32>,
}

/// What the encoder makes of each row: as many rows in a pass as it should have, or one that is longer.
fn encode(model: &mut Model, rows: &[Kept]) -> Result<Vec<Tensor>, EngineError> {
    let mut hidden = Vec::with_capacity(rows.len());
    while let Some(next) = rows.get(hidden.len()) {
        let mut tokens = next.tokens.len();
        let fits = |row: &&Kept| {
            tokens += row.tokens.len();
            tokens <= PASS_TOKENS_MAX
        };
        let others = rows[hidden.len() + 1..].iter().take_while(fits);
        let pass = std::iter::once(next).chain(others).map(|row| (&*row.tokens, &*row.positions));
        let pass: Vec<(&[u32], &[u32])> = pass.collect();
        hidden.extend(model.encode(&pass)?);
    }
    Ok(hidden)
}

fn decode(model: &mut Model, rows: &mut [Running<'_>]) -> Result<(), EngineError> {
    loop {
        let mut room = PASS_TOKENS_MAX;
        let (mut inputs, mut results) = (Vec::new(), Vec::new());
        for row in &mut *rows {
            let seen = row.cache.len();
            let part = seen..row.tokens.len().min(seen + room);
            room -= part.len();
            if part.is_empty() {
                continue;
            }
            let tokens = &row.tokens[part.clone()];
            let positions = row.positions.map(|positions| &positions[part]);
            let (cache, source) = (&mut row.cache, row.source.as_mut());
            inputs.push(Input { entry: Entry { tokens, positions, cache, source }, want: Want::All });
            results.push(&mut row.logits);
        }
        if inputs.is_empty() {
            return Ok(());
        }
        for (result, more) in results.into_iter().zip(model.forward(inputs)?) {
            result.extend(more);
        }
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

    fn spread(&self, what: What, values: &Tensor) -> Result<Output, EngineError> {
        let (_, width) = values.dims2()?;
        let values = host::read(values, |values| self.spread_values(width, values))?;
        Ok(Output { what, width, values })
    }

    /// `values` where they belong in the row.
    fn spread_values(&self, width: usize, values: &[f32]) -> Vec<f32> {
        let mut spread = vec![0.0; self.length * width];
        for (values, &place) in values.chunks_exact(width).zip(&self.places) {
            spread[place * width..(place + 1) * width].copy_from_slice(values);
        }
        spread
    }
}

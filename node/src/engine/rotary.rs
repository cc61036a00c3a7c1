//! Rotary position embeddings: each pair of a head's elements is turned by an angle that grows with
//! the position, fast for the first pairs and slowly for the last.
//!
//! The variants differ only in those speeds, and in a scale that some put on cosines and sines;
//! `scaling.rs` works both out from the configuration. For a few the speeds depend on how long the
//! sequence is, so whoever asks for [`Turns`] says so.

mod scaling;

#[cfg(test)]
mod tests;

use std::{borrow::Cow, ops::Range};

use self::scaling::{Scaled, Settings};
use super::{EngineError, fields::Fields};

/// Positions that are told apart. Beyond it, f32 has no room for their digits.
const CONTEXT_MAX: f64 = 16_777_216.0;

/// How the pairs of one head are turned.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Rotary {
    speeds: Speeds,
    /// On cosines and sines.
    scale: f32,
    pairing: Pairing,
    /// Tokens up to which it was made to go, where that is told apart from the model's context.
    reach: Option<f64>,
}

/// Which two elements of a head are turned together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Pairing {
    /// Element `i` with `i + pairs`, as transformers does.
    #[default]
    Halves,
    /// Element `2i` with `2i + 1`, as the first Llama and DeepSeek do.
    Neighbours,
}

/// How a family of models writes its rotary settings.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Spelling<'a> {
    /// The field with the base of the speeds, and what it is where nothing is said.
    pub(crate) theta: (&'a str, f64),
    /// The field with the share of a head that is turned, and what it is where nothing is said.
    pub(crate) share: (&'a str, f64),
    /// Whose settings these are, where each type of layer has its own: `rope_parameters` holds one
    /// object for each.
    pub(crate) layer_type: Option<&'a str>,
    /// Whether `rope_scaling` counts.
    pub(crate) scaled: bool,
    /// What `original_max_position_embeddings` is where it is not said beside the other sizes.
    pub(crate) original: Option<f64>,
    /// How many names this family has for `longrope`.
    pub(crate) longrope: &'a [&'a str],
    pub(crate) pairing: Pairing,
}

/// Angular speeds of a head's pairs.
#[derive(Clone, Debug, PartialEq)]
enum Speeds {
    /// The same for every sequence.
    Always(Vec<f32>),
    /// The second for sequences of more than so many tokens.
    Beyond(Vec<f32>, usize, Vec<f32>),
    /// Falling with the length, from `context` tokens on.
    Falling { theta: f64, size: usize, factor: f64, context: f64 },
}

/// Cosines and sines for some positions.
#[derive(Clone, Debug)]
pub(crate) struct Turns {
    cos: Vec<f32>,
    sin: Vec<f32>,
    pairs: usize,
    pairing: Pairing,
}

impl Spelling<'_> {
    /// That of Llama, and of most others.
    pub(crate) const DEFAULT: Spelling<'static> = Spelling {
        theta: ("rope_theta", 10_000.0),
        share: ("partial_rotary_factor", 1.0),
        layer_type: None,
        scaled: true,
        original: None,
        longrope: &["longrope"],
        pairing: Pairing::Halves,
    };
}

impl Default for Spelling<'_> {
    fn default() -> Self {
        Self::DEFAULT
    }
}

impl Rotary {
    /// From `rope_parameters`, as transformers 5 writes it, or from `rope_theta` and `rope_scaling`,
    /// for heads of `head_dim`, in the words of a family.
    pub(crate) fn read(
        fields: &Fields<'_>,
        head_dim: usize,
        spelling: &Spelling<'_>,
    ) -> Result<Self, EngineError> {
        let Scaled { speeds, scale, reach } = Settings::read(fields, head_dim, spelling)?.scaled()?;
        // As DeepSeek says it, and GGUF does for Llama.
        let pairing = match fields.flag("rope_interleave")? {
            Some(true) => Pairing::Neighbours,
            Some(false) => Pairing::Halves,
            None => spelling.pairing,
        };
        Ok(Self { speeds, scale: scale as f32, pairing, reach })
    }

    /// How many tokens there may be, if a model says that it is made for `context`.
    pub(crate) fn context(&self, context: usize) -> usize {
        self.reach.map_or(context, |reach| context.max(reach.min(CONTEXT_MAX) as usize))
    }

    /// Cosines and sines for runs of positions, each in a sequence of so many tokens.
    pub(crate) fn turns(&self, runs: impl IntoIterator<Item = (Range<usize>, usize)>) -> Turns {
        let (mut cos, mut sin, mut pairs) = (Vec::new(), Vec::new(), 0);
        for (positions, length) in runs {
            let speeds = self.speeds.of(length);
            pairs = speeds.len();
            for at in positions {
                for speed in &*speeds {
                    let (s, c) = (at as f32 * speed).sin_cos();
                    cos.push(c * self.scale);
                    sin.push(s * self.scale);
                }
            }
        }
        Turns { cos, sin, pairs, pairing: self.pairing }
    }
}

impl Speeds {
    /// For a sequence of `length` tokens.
    fn of(&self, length: usize) -> Cow<'_, [f32]> {
        match self {
            Self::Always(speeds) => Cow::Borrowed(speeds),
            Self::Beyond(_, limit, long) if *limit < length => Cow::Borrowed(long),
            Self::Beyond(short, ..) => Cow::Borrowed(short),
            Self::Falling { theta, size, factor, context } => {
                let stretch = factor * (length as f64).max(*context) / context - (factor - 1.0);
                let theta = theta * stretch.powf(*size as f64 / (*size as f64 - 2.0));
                Cow::Owned(narrow(scaling::geometric(theta, *size)))
            }
        }
    }
}

fn narrow(speeds: Vec<f64>) -> Vec<f32> {
    speeds.into_iter().map(|speed| speed as f32).collect()
}

impl Turns {
    /// Turns `x`, tokens by heads by `head_dim`, in place.
    pub(crate) fn apply(&self, x: &mut [f32], heads: usize, head_dim: usize) {
        if self.pairs == 0 {
            return;
        }
        let turns = self.cos.chunks_exact(self.pairs).zip(self.sin.chunks_exact(self.pairs));
        for (token, (cos, sin)) in x.chunks_exact_mut(heads * head_dim).zip(turns) {
            for head in token.chunks_exact_mut(head_dim) {
                let turns = cos.iter().zip(sin);
                match self.pairing {
                    Pairing::Halves => {
                        let (first, rest) = head.split_at_mut(self.pairs);
                        for ((a, b), (cos, sin)) in first.iter_mut().zip(rest).zip(turns) {
                            (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
                        }
                    }
                    Pairing::Neighbours => {
                        for ([a, b], (cos, sin)) in head.as_chunks_mut::<2>().0.iter_mut().zip(turns) {
                            (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
                        }
                    }
                }
            }
        }
    }
}

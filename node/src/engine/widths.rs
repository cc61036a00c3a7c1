//! How much memory a pass takes beside weights, keys and values. Pure arithmetic on the sizes that a
//! configuration says.
//!
//! A layer is some stages, one after the other: attention, a feed-forward part, the projection to logits.
//! What one stage computed is gone when the next begins, so the widest stage counts. The numbers are
//! bounds: each counts what the code of its stage holds at the same time, and a little more.

use super::attention::{QUERIES_MAX, SCORES_MAX};

/// Elements of the hidden state that a layer holds for each token, in hidden states: what came in, its
/// norm, the sum, its norm, and what is made of them on the way.
const HIDDEN: u64 = 8;

/// Elements into which each thread widens weights where there are many tokens.
const WIDENED: u64 = 1 << 16;

/// Rows of weights that each thread widens where there are few tokens, and with rows this long.
const WIDENED_ROWS: u64 = 4;

/// Columns that each thread widens of a weight that is stored the other way round.
const WIDENED_COLUMNS: u64 = 16;

/// Elements for each logit that choosing a token takes beside the logits: a candidate's number and its
/// probability in f64.
const CANDIDATE: u64 = 4;

/// Bytes of an element.
const ELEMENT: u64 = 4;

/// What a pass of one model takes.
#[derive(Clone, Debug)]
pub(crate) struct Widths {
    hidden: u64,
    vocab: u64,
    stages: Vec<Stage>,
    /// Bytes that stay, whatever a pass is about.
    fixed: u64,
}

/// What one part of a layer holds, in elements.
#[derive(Clone, Debug, Default)]
pub(crate) struct Stage {
    /// What the configuration says that makes it so wide.
    pub(crate) cause: String,
    /// For each token.
    pub(crate) row: u64,
    /// For each thread.
    pub(crate) thread: u64,
    /// Rows of scores for each token that a thread may hold together; 0 where there are none.
    pub(crate) heads: u64,
}

/// How large a pass is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PassSize {
    /// Tokens in it.
    pub(crate) rows: usize,
    /// Tokens that any of its sequences has, those of this pass included.
    pub(crate) keys: usize,
    /// Threads that compute it.
    pub(crate) threads: usize,
}

impl Widths {
    /// Of a model with these stages. `vocab` is 0 where there are no logits.
    pub(crate) fn new(hidden: usize, vocab: usize, stages: Vec<Stage>) -> Self {
        Self { hidden: hidden as u64, vocab: vocab as u64, stages, fixed: 0 }
    }

    /// The same, with so many bytes that stay, whatever a pass is about.
    pub(crate) fn with_fixed(self, bytes: u64) -> Self {
        Self { fixed: bytes, ..self }
    }

    /// Bytes of a pass of this size. The logits of one token fit into it.
    pub(crate) fn pass_bytes(&self, size: PassSize) -> u64 {
        self.pass_bytes_with(size, 1)
    }

    /// Bytes of a pass of this size, into which the logits of so many tokens fit.
    pub(crate) fn pass_bytes_with(&self, size: PassSize, logits: usize) -> u64 {
        let widest = self.stages.iter().map(|stage| stage.elements(size)).max().unwrap_or(0);
        self.bytes(size.rows, widest.max(self.logits(logits as u64)))
    }

    /// Tokens whose logits fit together into `bytes`, in a pass of so many `rows`; at least one.
    pub(crate) fn logits_together(&self, rows: usize, bytes: u64) -> usize {
        let left = bytes.saturating_sub(self.bytes(rows, self.vocab.saturating_mul(CANDIDATE)));
        let each = (self.logits(2) - self.logits(1)).saturating_mul(ELEMENT).max(1);
        usize::try_from(left / each).unwrap_or(usize::MAX).max(1)
    }

    /// What makes a pass over one token as wide as it is.
    pub(crate) fn cause(&self, threads: usize) -> String {
        let size = PassSize { rows: 1, keys: 1, threads };
        let widest = self.stages.iter().max_by_key(|stage| stage.elements(size));
        match widest.filter(|stage| self.logits(1) < stage.elements(size)) {
            Some(stage) => stage.cause.clone(),
            None => format!("vocab_size is {}", self.vocab),
        }
    }

    fn bytes(&self, rows: usize, stage: u64) -> u64 {
        let hidden = (rows as u64).saturating_mul(HIDDEN * self.hidden);
        hidden.saturating_add(stage).saturating_mul(ELEMENT).saturating_add(self.fixed)
    }

    /// Elements that the logits of so many tokens take: twice, because they are put in order or capped, and
    /// what choosing takes.
    fn logits(&self, rows: u64) -> u64 {
        let each = 2 * self.vocab + 4 * self.hidden;
        rows.saturating_mul(each).saturating_add(CANDIDATE * self.vocab)
    }
}

impl Stage {
    /// Attention over keys and values that each token leaves: `query` and `kv` elements of all heads
    /// together, of which `group` query heads share each key head.
    pub(crate) fn attention(
        cause: String,
        hidden: usize,
        [query, kv]: [usize; 2],
        head_dim: usize,
        group: usize,
    ) -> Self {
        let [hidden, query, kv, dim] = [hidden, query, kv, head_dim].map(|size| size as u64);
        Self {
            cause,
            row: 5 * query + 4 * kv + 2 * hidden + 4 * dim,
            thread: WIDENED_ROWS * hidden.max(query),
            heads: group as u64,
        }
    }

    /// A feed-forward part with `inner` elements between its products.
    pub(crate) fn feed_forward(cause: String, hidden: usize, inner: usize) -> Self {
        let [hidden, inner] = [hidden, inner].map(|size| size as u64);
        let thread = WIDENED_ROWS * hidden.max(inner);
        Self { cause, row: 4 * inner + 3 * hidden, thread, ..Self::default() }
    }

    /// The same, of weights that are stored the other way round, the longest of them with `rows` rows.
    pub(crate) fn by_columns(self, rows: usize) -> Self {
        Self { thread: self.thread.max(WIDENED_COLUMNS * rows as u64), ..self }
    }

    fn elements(&self, size: PassSize) -> u64 {
        let [rows, keys] = [size.rows, size.keys].map(|size| size as u64);
        let widened = if WIDENED_ROWS < rows { self.thread.max(WIDENED) } else { self.thread };
        let rows_of_scores = rows.min(QUERIES_MAX as u64).saturating_mul(self.heads);
        let scores = rows_of_scores.saturating_mul(keys).min((SCORES_MAX as u64).max(keys));
        let threads = widened.saturating_add(scores).saturating_mul(size.threads as u64);
        rows.saturating_mul(self.row).saturating_add(threads)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn size(rows: usize, keys: usize, threads: usize) -> PassSize {
        PassSize { rows, keys, threads }
    }

    fn widths(inner: usize, vocab: usize) -> Widths {
        let attention = Stage::attention("heads".to_owned(), 8, [8, 8], 4, 1);
        Widths::new(8, vocab, vec![attention, Stage::feed_forward("inner".to_owned(), 8, inner)])
    }

    #[test]
    fn the_widest_stage_counts() {
        let (narrow, wide) = (widths(64, 16), widths(1 << 20, 16));
        let one = size(1, 1, 2);
        assert!(narrow.pass_bytes(one) < 8 << 10);
        // Four elements for each token and four for each of two threads.
        assert!((48 << 20..49 << 20).contains(&wide.pass_bytes(one)), "{}", wide.pass_bytes(one));
        assert_eq!((narrow.cause(2), wide.cause(2)), ("inner".to_owned(), "inner".to_owned()));
        let vocab = widths(64, 1 << 22);
        assert!((96 << 20..97 << 20).contains(&vocab.pass_bytes(one)), "{}", vocab.pass_bytes(one));
        assert_eq!(vocab.cause(2), "vocab_size is 4194304");
        assert_eq!(narrow.clone().with_fixed(99).pass_bytes(one), narrow.pass_bytes(one) + 99);
    }

    #[test]
    fn it_grows_with_tokens_and_scores_do_not_grow_without_bound() {
        let widths = widths(64, 16);
        assert!(widths.pass_bytes(size(10, 1, 1)) < widths.pass_bytes(size(20, 1, 1)));
        let scores =
            |rows, keys| widths.pass_bytes(size(rows, keys, 1)) - widths.pass_bytes(size(rows, 0, 1));
        assert!(scores(1, 1000) <= 4000);
        assert!(scores(512, 1 << 16) <= 4 * SCORES_MAX as u64);
        assert!(scores(512, 1 << 20) <= 4 << 20);
    }

    #[test]
    fn logits_come_as_many_together_as_fit() {
        let widths = widths(64, 1 << 20);
        let bytes = widths.pass_bytes(size(16, 16, 1));
        assert_eq!(widths.logits_together(16, bytes), 1);
        assert_eq!(widths.logits_together(16, bytes + (25 << 20)), 3 + 1);
        assert_eq!(widths.logits_together(16, 0), 1, "one goes in any case");
        assert!(512 <= widths.logits_together(512, 1 << 33));
    }
}

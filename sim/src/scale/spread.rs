//! How chunks spread through a crowd, in rounds: in each, every node gives one chunk and takes one. Pure.
//!
//! Who wants chunks asks those that it knows, in an order of the dice, and takes what it finds to be
//! rarest; what it got in a round it gives from the next round on. So a round is the time that one chunk
//! takes over one link, if nothing is lost between: how much longer it is, the real code says.

use std::mem;

use rand::{RngExt, seq::SliceRandom};
use rand_chacha::ChaCha8Rng;

/// A crowd that starts together: one who has everything, and many who have nothing.
#[derive(Clone, Copy, Debug)]
pub struct Crowd {
    /// Nodes that want the model.
    pub nodes: usize,
    /// Chunks in it.
    pub chunks: usize,
    /// Others that each knows.
    pub neighbours: usize,
}

/// What a crowd took.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rounds {
    /// Until half of the nodes had everything.
    pub half: u32,
    /// Until all had.
    pub all: u32,
    /// Chunks that the seed gave.
    pub seed_gave: u64,
}

/// More than any crowd takes that makes progress.
const ROUNDS_MAX: u32 = 1 << 20;

impl Crowd {
    /// Lets chunks spread until everyone has all.
    pub fn spread(&self, dice: &mut ChaCha8Rng) -> Rounds {
        Spreading::new(*self, dice).run(dice)
    }
}

struct Spreading {
    crowd: Crowd,
    words: usize,
    /// Bits of the chunks that each node has; the seed is the last.
    has: Vec<u64>,
    missing: Vec<usize>,
    known: Vec<u32>,
    copies: Vec<u32>,
    gave: Vec<bool>,
}

impl Spreading {
    fn new(crowd: Crowd, dice: &mut ChaCha8Rng) -> Self {
        let Crowd { nodes, chunks, neighbours } = crowd;
        let words = chunks.div_ceil(64);
        let mut has = vec![0; (nodes + 1) * words];
        (0..chunks).for_each(|at| has[nodes * words + at / 64] |= 1 << (at % 64));
        let all = nodes + 1;
        let known = (0..nodes).flat_map(|me| {
            let few = neighbours >= nodes;
            let count = if few { nodes } else { neighbours };
            let mut others = Vec::with_capacity(count);
            for nth in 0..count {
                let other = if few { (me + 1 + nth) % all } else { dice.random_range(0..all) };
                others.push(if other == me { nodes as u32 } else { other as u32 });
            }
            others
        });
        let known = known.collect();
        let (missing, copies) = (vec![chunks; nodes], vec![1; chunks]);
        Self { crowd, words, has, missing, known, copies, gave: vec![false; all] }
    }

    fn run(mut self, dice: &mut ChaCha8Rng) -> Rounds {
        let nodes = self.crowd.nodes;
        let mut wanting: Vec<usize> = (0..nodes).collect();
        let mut rounds = Rounds { half: 0, all: 0, seed_gave: 0 };
        let mut came: Vec<(usize, usize)> = Vec::new();
        while !wanting.is_empty() && rounds.all < ROUNDS_MAX {
            rounds.all += 1;
            self.gave.fill(false);
            wanting.shuffle(dice);
            for &node in &wanting {
                if let Some((giver, chunk)) = self.find(node, dice) {
                    self.gave[giver] = true;
                    // Counted at once, so that others take other chunks in the same round.
                    self.copies[chunk] += 1;
                    came.push((node, chunk));
                }
            }
            rounds.seed_gave += u64::from(self.gave[nodes]);
            for (node, chunk) in mem::take(&mut came) {
                self.has[node * self.words + chunk / 64] |= 1 << (chunk % 64);
                self.missing[node] -= 1;
            }
            wanting.retain(|&node| self.missing[node] != 0);
            if rounds.half == 0 && wanting.len() * 2 <= nodes {
                rounds.half = rounds.all;
            }
        }
        rounds
    }

    /// Somebody who has not given yet in this round, and the rarest chunk that `node` may get there.
    fn find(&self, node: usize, dice: &mut ChaCha8Rng) -> Option<(usize, usize)> {
        let count = self.known.len() / self.crowd.nodes;
        let known = &self.known[node * count..][..count];
        let start = dice.random_range(0..count);
        let turned = known[start..].iter().chain(&known[..start]).map(|&other| other as usize);
        turned.filter(|&other| !self.gave[other]).find_map(|other| {
            let useful = (0..self.words).flat_map(|word| {
                let mut bits = self.has[other * self.words + word] & !self.has[node * self.words + word];
                std::iter::from_fn(move || {
                    let bit = (bits != 0).then(|| bits.trailing_zeros() as usize)?;
                    bits &= bits - 1;
                    Some(word * 64 + bit)
                })
            });
            useful.min_by_key(|&chunk| (self.copies[chunk], dice.random::<u32>())).map(|chunk| (other, chunk))
        })
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;

    use super::*;

    #[test]
    fn a_crowd_takes_little_longer_than_one() {
        let spread = |nodes| {
            let crowd = Crowd { nodes, chunks: 64, neighbours: 40 };
            crowd.spread(&mut ChaCha8Rng::seed_from_u64(1))
        };
        assert_eq!(spread(1), Rounds { half: 64, all: 64, seed_gave: 64 });
        let many = spread(1000).all;
        // Nobody can have the last chunk before it has left the seed, nor pass on before it has.
        assert!((64 + 9..2 * 64).contains(&many), "{many} rounds");
    }
}

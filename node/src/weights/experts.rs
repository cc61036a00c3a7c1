//! Routed experts: fetched when a router has chosen them, kept by use.
//!
//! A token visits a few of many experts, and which ones is only known when it gets there. Those that
//! are chosen are all asked for at once; those that are guessed to be chosen next are asked for behind
//! them. What stays in memory is what was used most, lately ([`Uses`]); what is not worth keeping
//! passes through, one computing and one coming.

use std::{
    cmp::Ordering,
    collections::{BTreeSet, HashMap, HashSet, VecDeque},
    sync::{Arc, Mutex, MutexGuard},
};

use serde::Serialize;

use super::{
    ahead::{Shared, Wish},
    held::{Loaded, Slot},
};
use crate::source::Urgency;

/// Passes after which a use counts half as much.
const HALF_LIFE: f64 = 64.0;

/// Half lives after which all scores are made smaller, long before they leave the range of numbers.
const RESCALED: f64 = 512.0;

/// The routed experts of a model, as far as they are here.
#[derive(Debug)]
pub(super) struct Experts {
    shared: Arc<Shared>,
    /// Bytes of those that stay.
    budget: u64,
    book: Mutex<Book>,
}

#[derive(Debug, Default)]
struct Book {
    held: HashMap<usize, Expert>,
    /// Bytes of those held that stay.
    bytes: u64,
    uses: Uses,
    /// What stays and was not chosen, by what it is worth: the first may go first.
    may_go: BTreeSet<(Worth, usize)>,
    /// What is held and does not stay.
    passing: HashSet<usize>,
    /// What will be asked for.
    chosen: HashSet<usize>,
    /// Those of them that are not held yet, in the order in which they will be asked for.
    queue: VecDeque<usize>,
    /// The same, to be looked up.
    queued: HashSet<usize>,
    /// Chunks wished for, until their expert is loaded.
    wishes: HashMap<usize, Wish>,
    /// What was guessed for the next block.
    guessed: HashSet<usize>,
    stats: ExpertStats,
}

/// An expert in memory, or on its way there.
#[derive(Debug)]
struct Expert {
    slot: Arc<Slot>,
    stays: bool,
    /// Nobody has taken it yet.
    new: bool,
}

/// What happened to routed experts so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ExpertStats {
    /// Bytes of those that stay in memory.
    pub kept_bytes: u64,
    /// Bytes that may.
    pub kept_bytes_max: u64,
    /// Times that one was asked for and had stayed.
    pub hits: u64,
    /// Times that one was asked for and had to be loaded.
    pub misses: u64,
    /// Experts that were guessed to be chosen next.
    pub guessed: u64,
    /// Those of them that were chosen then.
    pub guessed_right: u64,
    /// Bytes of experts that were fetched for a guess, and not chosen then.
    pub guessed_wrong_bytes: u64,
}

impl Experts {
    /// None is here yet.
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        let budget = shared.plan.experts_kept();
        Self { shared, budget, book: Mutex::default() }
    }

    /// What happened so far.
    pub(super) fn stats(&self) -> ExpertStats {
        let book = self.book();
        ExpertStats { kept_bytes: book.bytes, kept_bytes_max: self.budget, ..book.stats }
    }

    /// Says that `chosen`, experts of one block, will be asked for, in this order.
    pub(super) fn expect(&self, chosen: Vec<usize>) {
        let (now, round) = self.now();
        let mut book = self.book();
        let book = &mut *book;
        book.choose(&chosen, round);
        book.queue = chosen.into_iter().filter(|group| !book.held.contains_key(group)).collect();
        book.queued = book.queue.iter().copied().collect();
        for &group in &book.queue {
            let wish = self.shared.wish(group, now);
            book.wishes.extend(wish.map(|wish| (group, wish)));
        }
        self.fill(book, now);
    }

    /// Says that `guessed`, experts of the block after that, may be chosen then.
    pub(super) fn guess(&self, guessed: &[usize]) {
        let soon = self.shared.held().soon();
        let mut book = self.book();
        for &group in guessed {
            let wish = match book.held.contains_key(&group) {
                true => None,
                false => self.shared.wish(group, soon),
            };
            book.stats.guessed += u64::from(book.guessed.insert(group));
            book.wishes.extend(wish.map(|wish| (group, wish)));
        }
    }

    /// The tensors of `group`, and whether they had stayed. Blocks until they are here.
    pub(super) fn take(&self, group: usize) -> (Loaded, bool) {
        let (now, _) = self.now();
        let (slot, hit) = {
            let mut book = self.book();
            let (slot, hit) = match book.held.get_mut(&group) {
                Some(expert) => (Arc::clone(&expert.slot), !std::mem::replace(&mut expert.new, false)),
                None => (self.shared.start(group, now, false), false),
            };
            match hit {
                true => book.stats.hits += 1,
                false => book.stats.misses += 1,
            }
            (slot, hit)
        };
        let loaded = self.shared.runtime.block_on(slot.wait());
        let (now, _) = self.now();
        let mut book = self.book();
        let book = &mut *book;
        book.wishes.remove(&group);
        if book.queued.remove(&group)
            && let Some(at) = book.queue.iter().position(|other| *other == group)
        {
            book.queue.remove(at);
        }
        if book.held.get(&group).is_some_and(|expert| !expert.stays || loaded.is_err()) {
            book.drop(group, &self.shared);
        }
        self.fill(book, now);
        (loaded, hit)
    }

    /// Lets go of what is not a copy of our own.
    pub(super) fn let_go(&self) {
        self.book().held.retain(|_, expert| expert.stays);
    }

    /// Lets go of everything.
    pub(super) fn close(&self) {
        *self.book() = Book::default();
    }

    /// Starts to load what will be asked for next, as far as there is room.
    fn fill(&self, book: &mut Book, now: Urgency) {
        while let Some(&group) = book.queue.front() {
            let stays = book.make_room(group, self.budget, &self.shared);
            // Beside the one that computes, one may come that will not stay.
            if !stays && !book.passing.is_empty() {
                return;
            }
            book.queue.pop_front();
            book.queued.remove(&group);
            let slot = self.shared.start(group, now, stays);
            book.held.insert(group, Expert { slot, stays, new: true });
            if !stays {
                book.passing.insert(group);
            }
        }
    }

    /// How urgent what is wanted at once is, and in which pass. Takes the lock of what is held: not to be called with the
    /// book open.
    fn now(&self) -> (Urgency, u64) {
        let held = self.shared.held();
        (held.now(), held.round())
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().expect("no panics while held")
    }
}

impl Book {
    /// Notes that `chosen` will be asked for in pass `round`, and lets go of what only passed through. Costs
    /// no more than these and those before them, however many are held.
    fn choose(&mut self, chosen: &[usize], round: u64) {
        for group in std::mem::take(&mut self.chosen) {
            if self.held.get(&group).is_some_and(|expert| expert.stays) {
                self.may_go.insert((self.uses.worth(group), group));
            }
        }
        self.chosen = chosen.iter().copied().collect();
        self.judge();
        for &group in chosen {
            self.may_go.remove(&(self.uses.worth(group), group));
        }
        let rescaled = chosen.iter().filter(|&&group| self.uses.count(group, round)).count();
        if rescaled != 0 {
            let others = std::mem::take(&mut self.may_go);
            self.may_go = others.into_iter().map(|(_, group)| (self.uses.worth(group), group)).collect();
        }
        self.passing.drain().for_each(|group| _ = self.held.remove(&group));
    }

    /// Compares what was guessed with what was chosen, and no longer wishes for the rest.
    fn judge(&mut self) {
        for group in self.guessed.drain() {
            if self.chosen.contains(&group) {
                self.stats.guessed_right += 1;
            } else if let Some(wish) = self.wishes.remove(&group) {
                self.stats.guessed_wrong_bytes += wish.arrived();
            }
        }
    }

    /// Makes room for `group` to stay, if it is worth more than what would have to go. What was chosen
    /// beside it is.
    fn make_room(&mut self, group: usize, budget: u64, shared: &Shared) -> bool {
        let (size, mine) = (shared.plan.size(group), (self.uses.worth(group), group));
        let mut going = Vec::new();
        let mut free = budget.saturating_sub(self.bytes);
        for &(_, other) in self.may_go.iter().take_while(|other| **other < mine) {
            if size <= free {
                break;
            }
            free += shared.plan.size(other);
            going.push(other);
        }
        if free < size {
            return false;
        }
        going.into_iter().for_each(|other| self.drop(other, shared));
        self.bytes += size;
        true
    }

    fn drop(&mut self, group: usize, shared: &Shared) {
        self.passing.remove(&group);
        self.may_go.remove(&(self.uses.worth(group), group));
        if self.held.remove(&group).is_some_and(|expert| expert.stays) {
            self.bytes -= shared.plan.size(group);
        }
    }
}

/// How much each group is used: every use counts one, and half as much some passes later. (Least
/// frequently used with ageing; new uses are counted for more instead of old ones for less.)
#[derive(Debug, Default)]
struct Uses {
    scores: HashMap<usize, f64>,
    /// The pass at which a use counts one.
    since: u64,
}

impl Uses {
    /// Counts a use of `group` in pass `round`. Says whether what all others are worth has changed as well.
    fn count(&mut self, group: usize, round: u64) -> bool {
        let age = |since| round.saturating_sub(since) as f64 / HALF_LIFE;
        let rescaled = RESCALED < age(self.since);
        if rescaled {
            let factor = (-age(self.since)).exp2();
            self.scores.values_mut().for_each(|score| *score *= factor);
            self.since = round;
        }
        *self.scores.entry(group).or_default() += age(self.since).exp2();
        rescaled
    }

    /// What `group` is worth.
    fn worth(&self, group: usize) -> Worth {
        Worth(self.scores.get(&group).copied().unwrap_or(0.0))
    }
}

/// A score, in order.
#[derive(Clone, Copy, Debug)]
struct Worth(f64);

impl PartialEq for Worth {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Worth {}

impl PartialOrd for Worth {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Worth {
    fn cmp(&self, other: &Self) -> Ordering {
        self.0.total_cmp(&other.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_uses_count_less() {
        let mut uses = Uses::default();
        (0..3).for_each(|round| _ = uses.count(1, round));
        uses.count(2, 100);
        assert!(uses.worth(2) < uses.worth(1));
        uses.count(2, 101);
        assert!(uses.worth(1) < uses.worth(2));
        assert!(uses.worth(7) < uses.worth(1), "what was never used is worth least");
    }

    #[test]
    fn scores_stay_numbers() {
        let mut uses = Uses::default();
        for round in (0..10_000_000).step_by(10_000) {
            uses.count(round as usize % 3, round);
        }
        assert!(uses.scores.values().all(|score| score.is_finite()));
        uses.count(5, 10_000_000);
        assert!(uses.worth(0) < uses.worth(5));
    }
}

//! What happened lately, by key: as many entries as there is room for, the oldest go first.

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use tokio::time::Instant;

#[derive(Debug)]
pub(super) struct Recent<K, V> {
    entries: BTreeMap<K, (Instant, u64, V)>,
    /// In the order in which they were put here. A key that came again is here more than once, and
    /// only the last counts.
    order: VecDeque<(u64, K)>,
    count: u64,
    most: usize,
}

impl<K: Ord + Copy, V> Recent<K, V> {
    /// Room for `most`.
    pub(super) fn new(most: usize) -> Self {
        Self { entries: BTreeMap::new(), order: VecDeque::new(), count: 0, most }
    }

    pub(super) fn insert(&mut self, key: K, value: V, now: Instant) {
        self.count += 1;
        self.entries.insert(key, (now, self.count, value));
        self.order.push_back((self.count, key));
        if self.most < self.order.len()
            && let Some((count, key)) = self.order.pop_front()
            && self.entries.get(&key).is_some_and(|entry| entry.1 == count)
        {
            self.entries.remove(&key);
        }
    }

    pub(super) fn remove(&mut self, key: &K) {
        self.entries.remove(key);
    }

    pub(super) fn value(&self, key: &K) -> Option<&V> {
        self.entries.get(key).map(|entry| &entry.2)
    }

    /// How long ago it was put here.
    pub(super) fn age(&self, key: &K, now: Instant) -> Option<Duration> {
        self.entries.get(key).map(|entry| now.saturating_duration_since(entry.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_oldest_go_first_and_what_came_again_is_new() {
        let now = Instant::now();
        let mut recent = Recent::new(3);
        for (key, value) in [(1, 'a'), (2, 'b'), (1, 'c'), (3, 'd')] {
            recent.insert(key, value, now);
        }
        assert_eq!([1, 2, 3].map(|key| recent.value(&key).copied()), [Some('c'), Some('b'), Some('d')]);
        recent.insert(4, 'e', now);
        assert_eq!([1, 2, 3].map(|key| recent.value(&key).copied()), [Some('c'), None, Some('d')]);
        recent.remove(&3);
        assert_eq!(recent.age(&3, now), None);
        assert_eq!(recent.age(&4, now + Duration::from_secs(2)), Some(Duration::from_secs(2)));
        for key in 0..1000 {
            recent.insert(key % 2, 'x', now);
        }
        assert!(recent.order.len() <= 3 && recent.entries.len() <= 3);
    }
}

//! Who said where that they have what, as the DHT's records tell it. Pure.

use std::collections::BTreeMap;

use surf_node::fetch::Key;

/// All records. Nobody is struck off for having gone or having thought better of it: records live for an hour or
/// more, and runs are shorter.
#[derive(Debug)]
pub(super) struct Records {
    /// The first of a key stay, as in the node's own store of records.
    providers_max: usize,
    providers: BTreeMap<Key, Vec<usize>>,
}

impl Records {
    pub(super) fn new(providers_max: usize) -> Self {
        Self { providers_max, providers: BTreeMap::new() }
    }

    /// `node` says that it has this.
    pub(super) fn add(&mut self, node: usize, key: Key) {
        let providers = self.providers.entry(key).or_default();
        if providers.len() < self.providers_max && !providers.contains(&node) {
            providers.push(node);
        }
    }

    /// Who is said to have `key`.
    pub(super) fn providers(&self, key: &Key) -> &[usize] {
        self.providers.get(key).map_or(&[], Vec::as_slice)
    }
}

#[cfg(test)]
mod tests {
    use surf_protocol::ChunkId;

    use super::*;

    #[test]
    fn the_first_of_a_key_stay() {
        let [a, b] = [b"a", b"b"].map(|name| Key::Chunk(ChunkId::of(name)));
        let mut records = Records::new(2);
        [0, 0, 1, 2].into_iter().for_each(|node| _ = records.add(node, a));
        assert_eq!((records.providers(&a), records.providers(&b)), (&[0, 1][..], &[][..]));
    }
}

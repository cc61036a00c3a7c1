//! Who said where that they have what, as the DHT's records tell it. Pure.

use std::collections::BTreeMap;

use surf_node::fetch::Key;

/// All records. Nobody is struck off for having gone or having thought better of it: records live for an hour or
/// more, and runs are shorter.
#[derive(Debug, Default)]
pub(super) struct Records {
    providers: BTreeMap<Key, Vec<usize>>,
}

impl Records {
    /// `node` says that it has this.
    pub(super) fn add(&mut self, node: usize, key: Key) {
        let providers = self.providers.entry(key).or_default();
        if !providers.contains(&node) {
            providers.push(node);
        }
    }

    /// Who is said to have `key`.
    pub(super) fn providers(&self, key: &Key) -> &[usize] {
        self.providers.get(key).map_or(&[], Vec::as_slice)
    }
}

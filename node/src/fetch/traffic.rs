//! Where every byte came from.

use std::{collections::BTreeMap, fmt};

use surf_protocol::NodeId;

/// A place that bytes come from.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Source {
    /// A peer.
    Peer(NodeId),
    /// A folder, bucket or web server, in words.
    Origin(String),
}

impl fmt::Display for Source {
    /// A peer id, or an origin's name.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Peer(id) => id.fmt(f),
            Self::Origin(name) => f.write_str(name),
        }
    }
}

/// Bytes that came for one model since the node started.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Verified bytes, by where they came from.
    pub verified: BTreeMap<Source, u64>,
    /// Bytes that came and were of no use: wrong, broken off, or here already.
    pub wasted: u64,
    /// Of those, bytes that somebody else sent sooner.
    pub duplicate: u64,
    /// Chunks that came and could not be kept, and why the last one could not.
    pub unkept: Option<String>,
}

impl Traffic {
    /// Verified bytes from everywhere.
    pub fn fetched(&self) -> u64 {
        self.verified.values().sum()
    }

    /// What has come since `earlier`.
    pub fn since(&self, earlier: &Self) -> Self {
        let before = |source| earlier.verified.get(source).copied().unwrap_or(0);
        let grown = self.verified.iter().map(|(source, bytes)| (source.clone(), bytes - before(source)));
        Self {
            verified: grown.filter(|(_, bytes)| *bytes != 0).collect(),
            wasted: self.wasted - earlier.wasted,
            duplicate: self.duplicate - earlier.duplicate,
            unkept: self.unkept.clone().filter(|_| self.unkept != earlier.unkept),
        }
    }

    pub(super) fn verified(&mut self, from: Source, bytes: u64) {
        *self.verified.entry(from).or_default() += bytes;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_difference_leaves_out_what_did_not_grow() {
        let (a, b) = (Source::Peer(NodeId([1; 32])), Source::Origin("s3".to_owned()));
        let mut traffic = Traffic::default();
        traffic.verified(a, 5);
        let earlier = traffic.clone();
        traffic.verified(b.clone(), 7);
        traffic.wasted += 1;
        let since = traffic.since(&earlier);
        assert_eq!((since.fetched(), since.wasted), (7, 1));
        assert_eq!(since.verified, BTreeMap::from([(b, 7)]));
    }
}

//! How many messages the DHT costs this node: counted where they happen, read from anywhere.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use libp2p::kad::{InboundRequest, QueryStats};

/// The counters. They only grow.
#[derive(Debug, Default)]
pub(super) struct Meter {
    announced: AtomicU64,
    keys: AtomicU64,
    asked: AtomicU64,
    answered: AtomicU64,
}

/// What the DHT has cost a node so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Load {
    /// Messages for announcing: those that this node sent, and the answers to them.
    pub announcing: u64,
    /// Keys that were announced with those.
    pub keys: u64,
    /// Messages for everything else that this node asked, and the answers to them.
    pub asking: u64,
    /// Messages of others to this node, and its answers to them.
    pub answering: u64,
}

impl Meter {
    pub(super) fn read(&self) -> Load {
        Load {
            announcing: self.announced.load(Relaxed),
            keys: self.keys.load(Relaxed),
            asking: self.asked.load(Relaxed),
            answering: self.answered.load(Relaxed),
        }
    }

    /// A key was announced at this cost.
    pub(super) fn announced(&self, messages: u32) {
        self.keys.fetch_add(1, Relaxed);
        self.announced.fetch_add(messages.into(), Relaxed);
    }

    /// Something else was asked at this cost.
    pub(super) fn asked(&self, messages: u32) {
        self.asked.fetch_add(messages.into(), Relaxed);
    }

    /// Somebody else asked or told something. Providers are told without an answer.
    pub(super) fn answered(&self, request: &InboundRequest) {
        let messages = if matches!(request, InboundRequest::AddProvider { .. }) { 1 } else { 2 };
        self.answered.fetch_add(messages, Relaxed);
    }
}

/// Messages that a query has sent and received. That a provider is told without an answer is not taken off, so
/// for announcements this is a little more than it was.
pub(super) fn messages(stats: &QueryStats) -> u32 {
    stats.num_requests() + stats.num_successes()
}

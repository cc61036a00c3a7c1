//! How the fetching of one model stands: what the explanation of a slow download is made from.

use std::time::Duration;

use surf_protocol::{ModelId, NodeId};
use tokio::time::Instant;

use super::Schedule;
use crate::fetch::Route;

/// How the fetching of one model stands.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Outlook {
    /// Chunks wanted.
    pub wanted: usize,
    /// Of those, chunks that somebody has been asked for.
    pub asked: usize,
    /// Of those that nobody has been asked for, chunks that nobody known has.
    pub lost: usize,
    /// Chunks wanted that only one peer has, and the peer that has most of them.
    pub sole: Option<(NodeId, usize)>,
    /// Who says that it has some of the model; ordered by id.
    pub holders: Vec<Holder>,
}

/// A peer that says that it has some of a model.
#[derive(Clone, Debug, PartialEq)]
pub struct Holder {
    /// Who.
    pub peer: NodeId,
    /// By which way it is reached.
    pub route: Route,
    /// Bytes per second that it has given lately, once there was something to measure.
    pub rate: Option<u64>,
    /// Chunks that it has been asked for.
    pub asked: usize,
    /// Whether it has all of the model.
    pub complete: bool,
    /// What is thought of it.
    pub state: HolderState,
}

/// What is thought of a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HolderState {
    /// It is asked.
    Good,
    /// It failed or was busy, and is left alone for so long.
    Paused(Duration),
    /// It stalled; for so long it is asked only for what nobody else has.
    Stalled(Duration),
    /// It has failed so often that nobody counts on it. It is tried again all the same.
    Useless,
}

impl Schedule {
    /// How the fetching of `model` stands.
    pub fn outlook(&self, model: ModelId, now: Instant) -> Outlook {
        let wants = || self.wants.values().filter(|want| want.model == model);
        let mut sole: std::collections::BTreeMap<NodeId, usize> = Default::default();
        let mut lost = 0;
        for want in wants() {
            let mut holders = self.holders(want);
            match (holders.next(), holders.next()) {
                (None, _) if want.flights.is_empty() => lost += 1,
                (Some(only), None) => *sole.entry(only).or_default() += 1,
                _ => (),
            }
        }
        let holders = self.claims.get(&model).into_iter().flatten().filter(|(_, has)| 0 < has.count());
        Outlook {
            wanted: self.wanted(model),
            asked: wants().filter(|want| !want.flights.is_empty()).count(),
            lost,
            sole: sole.into_iter().max_by_key(|(id, count)| (*count, std::cmp::Reverse(*id))),
            holders: holders.map(|(&id, has)| self.holder(id, has.is_full(), now)).collect(),
        }
    }

    fn holder(&self, id: NodeId, complete: bool, now: Instant) -> Holder {
        let peer = &self.peers[&id];
        let state = match (peer.blacklisted_until(now), peer.paused_until(now)) {
            _ if !peer.is_counted_on() => HolderState::Useless,
            (Some(until), _) => HolderState::Stalled(until - now),
            (None, Some(until)) => HolderState::Paused(until - now),
            (None, None) => HolderState::Good,
        };
        Holder {
            peer: id,
            route: peer.link.route,
            rate: peer.rate().map(|rate| rate as u64),
            asked: peer.flights.len(),
            complete,
            state,
        }
    }
}

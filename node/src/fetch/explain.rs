//! Why a download is slow, or does not move at all. Pure.
//!
//! A download that is as fast as its peers needs no explanation and gets none.

use std::fmt;

use surf_protocol::NodeId;

use super::{Holder, HolderState, Route, Standing};

/// Chunks that only one peer has are worth a word when they are at least this share of what is left.
const SOLE_SHARE: f64 = 0.5;

/// What a download is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// It looks for someone who has the rest.
    Looking,
    /// Chunks come, or have been asked for.
    Fetching,
    /// Somebody is known to have the rest, but cannot be asked now.
    Waiting,
    /// Nothing is left to fetch.
    Done,
}

/// What slows a download down, the worst first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// Nobody who can be reached has anything of it.
    NobodyHasIt,
    /// Nobody who can be reached has so many chunks.
    Lost(usize),
    /// All of so many peers have stalled, failed, or are busy.
    NobodyAnswers(usize),
    /// So many chunks are only at this peer, which cannot be asked now.
    SoleHolderAway(usize, NodeId),
    /// This node lets in no more than so many bytes per second.
    Limited(u64),
    /// So many of so many peers have stalled.
    Stalled(usize, usize),
    /// So many chunks come from an origin, because no peer has them.
    FromOrigin(usize),
    /// So many of so many peers are reached through a third one.
    Relayed(usize, usize),
    /// So many chunks are only at this peer, though there are others.
    SoleHolder(usize, NodeId),
}

/// What a download is doing, and what slows it down. `limit`: bytes per second that this node's own limit lets in, if
/// something waits for it.
pub fn explain(standing: &Standing, limit: Option<u64>) -> (Phase, Option<Reason>) {
    let outlook = &standing.outlook;
    if outlook.wanted == 0 {
        return (Phase::Done, None);
    }
    let holders = &outlook.holders;
    let count = |which: fn(&&Holder) -> bool| holders.iter().filter(which).count();
    let good = |holder: &&Holder| holder.state == HolderState::Good || 0 < holder.asked;
    let moving = 0 < outlook.asked || 0 < standing.at_origin;
    let phase = match () {
        () if moving => Phase::Fetching,
        () if holders.is_empty() || outlook.lost == outlook.wanted => Phase::Looking,
        () => Phase::Waiting,
    };
    let away = |id: NodeId| holders.iter().any(|holder| holder.peer == id && !good(&holder));
    let (stalled, relayed) = (
        count(|holder| matches!(holder.state, HolderState::Stalled(_) | HolderState::Useless)),
        count(|holder| holder.route == Route::Relayed),
    );
    let reason = match outlook.sole {
        _ if 0 < standing.at_origin => Some(Reason::FromOrigin(outlook.lost)),
        _ if holders.is_empty() && standing.looking => None,
        _ if holders.is_empty() => Some(Reason::NobodyHasIt),
        _ if 0 < outlook.lost => Some(Reason::Lost(outlook.lost)),
        _ if count(good) == 0 => Some(Reason::NobodyAnswers(holders.len())),
        Some((peer, chunks)) if away(peer) => Some(Reason::SoleHolderAway(chunks, peer)),
        _ if limit.is_some() => limit.map(Reason::Limited),
        _ if 0 < stalled => Some(Reason::Stalled(stalled, holders.len())),
        _ if 0 < relayed => Some(Reason::Relayed(relayed, holders.len())),
        Some((peer, chunks)) if 1 < holders.len() && SOLE_SHARE * outlook.wanted as f64 <= chunks as f64 => {
            Some(Reason::SoleHolder(chunks, peer))
        }
        _ => None,
    };
    (phase, reason)
}

impl Phase {
    /// In one word.
    pub fn word(self) -> &'static str {
        match self {
            Self::Looking => "looking",
            Self::Fetching => "chunks",
            Self::Waiting => "waiting",
            Self::Done => "done",
        }
    }
}

impl Reason {
    /// For programs.
    pub fn code(&self) -> &'static str {
        match self {
            Self::NobodyHasIt => "nobody_has_it",
            Self::Lost(_) => "lost_chunks",
            Self::NobodyAnswers(_) => "nobody_answers",
            Self::SoleHolderAway(..) => "sole_holder_away",
            Self::Limited(_) => "own_limit",
            Self::Stalled(..) => "stalled_peers",
            Self::FromOrigin(_) => "from_origin",
            Self::Relayed(..) => "relayed_peers",
            Self::SoleHolder(..) => "sole_holder",
        }
    }
}

/// For people, without a full stop.
impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let chunks = |n: &usize| if *n == 1 { "1 chunk".to_owned() } else { format!("{n} chunks") };
        match self {
            Self::NobodyHasIt => f.write_str("nobody reachable has any of it"),
            Self::Lost(n) => write!(f, "nobody reachable has {}", chunks(n)),
            Self::NobodyAnswers(1) => f.write_str("the only peer that has it does not answer"),
            Self::NobodyAnswers(n) => write!(f, "none of {n} peers answers"),
            Self::SoleHolderAway(n, peer) => {
                write!(f, "waiting for the only holder of {}, {peer}", chunks(n))
            }
            Self::Limited(rate) => {
                write!(f, "held to {:.2} MB/s by this node's download limit", *rate as f64 / 1e6)
            }
            Self::Stalled(n, of) => write!(f, "{n} of {of} peers stalled"),
            Self::FromOrigin(n) => write!(f, "no peer has {}: from the origin", chunks(n)),
            Self::Relayed(n, of) => write!(f, "{n} of {of} peers relayed"),
            Self::SoleHolder(n, peer) => write!(f, "{} only at {peer}", chunks(n)),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::fetch::Outlook;

    fn holder(n: u8, state: HolderState) -> Holder {
        let peer = NodeId([n; 32]);
        Holder { peer, route: Route::Direct, rate: None, asked: 0, complete: true, state }
    }

    fn standing(wanted: usize, asked: usize, holders: Vec<Holder>) -> Standing {
        let outlook = Outlook { wanted, asked, holders, ..Outlook::default() };
        Standing { outlook, ..Standing::default() }
    }

    #[test]
    fn a_download_that_runs_is_not_explained() {
        assert_eq!(explain(&standing(0, 0, Vec::new()), None), (Phase::Done, None));
        let runs = standing(9, 4, vec![holder(1, HolderState::Good)]);
        assert_eq!(explain(&runs, None), (Phase::Fetching, None));
        let (_, reason) = explain(&runs, Some(500_000));
        assert_eq!(reason.unwrap().to_string(), "held to 0.50 MB/s by this node's download limit");
    }

    #[test]
    fn the_worst_is_said() {
        let stalled = HolderState::Stalled(Duration::from_secs(9));
        let peer = NodeId([1; 32]);
        let nobody = standing(9, 0, Vec::new());
        assert_eq!(explain(&nobody, None), (Phase::Looking, Some(Reason::NobodyHasIt)));
        assert_eq!(explain(&Standing { looking: true, ..nobody }, None), (Phase::Looking, None));
        let silent = standing(9, 0, vec![holder(1, stalled), holder(2, stalled)]);
        assert_eq!(explain(&silent, None), (Phase::Waiting, Some(Reason::NobodyAnswers(2))));
        let mut sole = standing(20, 6, vec![holder(1, stalled), holder(2, HolderState::Good)]);
        sole.outlook.sole = Some((peer, 14));
        let (_, reason) = explain(&sole, None);
        assert_eq!(reason, Some(Reason::SoleHolderAway(14, peer)));
        let text = reason.unwrap().to_string();
        assert!(text.starts_with("waiting for the only holder of 14 chunks, 12D3Koo"), "{text}");
        sole.outlook.lost = 3;
        assert_eq!(explain(&sole, None).1, Some(Reason::Lost(3)));
        let mut relayed = standing(9, 4, (0..3).map(|n| holder(n, HolderState::Good)).collect());
        relayed.outlook.holders.iter_mut().take(2).for_each(|holder| holder.route = Route::Relayed);
        assert_eq!(explain(&relayed, None).1.unwrap().to_string(), "2 of 3 peers relayed");
    }
}

//! Connecting to a peer that has several addresses, of which some may lead nowhere.
//!
//! The first has a little time for itself, then the next is tried beside it, and so on; who first
//! proves to be the peer wins.

use std::net::SocketAddr;

use futures::{StreamExt, stream::FuturesUnordered};
use quinn::VarInt;
use tokio::time::{Instant, sleep_until, timeout};

use super::{
    limits::{DIAL_STAGGER, DIAL_TIME_MAX},
    settings,
};
use crate::{
    fetch::{DialError, Peer},
    identity::Identity,
};

/// Addresses that are tried. A record has no more; this bounds what a caller can make us do.
const ADDRS_MAX: usize = 16;

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// A connection to `peer`, by whichever address answers first. At most `window` bytes may be on their way
/// to us.
pub(super) async fn dial(
    endpoint: &quinn::Endpoint,
    identity: &Identity,
    peer: &Peer,
    alpn: &[u8],
    window: VarInt,
) -> Result<quinn::Connection, DialError> {
    let racing = race(endpoint, identity, peer, alpn, window);
    timeout(DIAL_TIME_MAX, racing).await.unwrap_or_else(|_| {
        let addrs: Vec<_> = peer.addrs.iter().map(SocketAddr::to_string).collect();
        let cause = format!("no answer within {} s", DIAL_TIME_MAX.as_secs());
        Err(DialError::new(addrs.join(", "), cause))
    })
}

async fn race(
    endpoint: &quinn::Endpoint,
    identity: &Identity,
    peer: &Peer,
    alpn: &[u8],
    window: VarInt,
) -> Result<quinn::Connection, DialError> {
    let mut failure = DialError::new("nowhere", "no address is known");
    let mut rest = peer.addrs.iter().take(ADDRS_MAX);
    let mut running = FuturesUnordered::new();
    loop {
        match rest.next() {
            Some(&addr) => {
                running.push(async move { (addr, one(endpoint, identity, peer, addr, alpn, window).await) })
            }
            None if running.is_empty() => return Err(failure),
            None => {}
        }
        let next = Instant::now() + DIAL_STAGGER;
        tokio::select! {
            Some((addr, result)) = running.next() => match result {
                Ok(connection) => return Ok(connection),
                Err(cause) => failure = DialError::new(addr, cause),
            },
            () = sleep_until(next), if rest.len() != 0 => {}
        }
    }
}

async fn one(
    endpoint: &quinn::Endpoint,
    identity: &Identity,
    peer: &Peer,
    addr: SocketAddr,
    alpn: &[u8],
    window: VarInt,
) -> Result<quinn::Connection, BoxError> {
    let config = settings::dialling(identity.client_tls_for(peer.id, alpn)?, window);
    // The certificate names a key, not a host; the host name is a placeholder.
    Ok(endpoint.connect_with(config, addr, "surf")?.await?)
}

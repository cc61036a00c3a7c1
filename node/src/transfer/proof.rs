//! Proving the key of a private swarm: the first thing on a connection, right after the TLS handshake.
//!
//! Whoever dials opens a stream and sends its proof; whoever is dialled checks it, and only then answers
//! with its own. A proof is an HMAC over what TLS exports from this very connection, so it is of no use on
//! another; each side's is for that side, so it is of no use to the one who gets it. Until both are
//! checked no other stream is read and none is answered; whoever fails is disconnected without a word.

use std::sync::Arc;

use hmac::{Hmac, KeyInit, Mac};
use quinn::Connection;
use sha2::Sha256;
use surf_protocol::{
    NodeId,
    wire::{ALPN, ALPN_PRIVATE},
};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::timeout,
};

use super::{
    code,
    limits::{PROOF_TIME_MAX, UNPROVEN_MAX},
};
use crate::members::SwarmKey;

/// Bytes of a proof.
const PROOF_SIZE: usize = 32;

/// What TLS exports for us, and nobody else asks for: see RFC 5705.
const EXPORT_LABEL: &[u8] = b"EXPORTER surf private swarm 1";

/// What the two ends say, so that one cannot be taken for the other.
const DIALLER: &[u8] = b"surf private swarm 1: dialler";
const HOLDER: &[u8] = b"surf private swarm 1: holder";

/// Proves the key of our swarm, and has others prove it.
#[derive(Debug)]
pub(super) struct Prover {
    key: Key,
    me: NodeId,
    turns: Arc<Semaphore>,
}

/// The right to be a stranger. Given back when this is dropped.
#[derive(Debug)]
pub(super) struct Audience {
    prover: Arc<Prover>,
    _permit: OwnedSemaphorePermit,
}

/// There are too many strangers already.
#[derive(Debug)]
pub(super) struct Crowded;

/// The other end is not of our swarm, or nobody can tell.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unproven {
    #[error("the peer does not know the swarm key")]
    Wrong,
    #[error("the peer did not prove the swarm key within {} s", PROOF_TIME_MAX.as_secs())]
    Late,
    #[error("the peer does not let this node in: it has another swarm key, or a list of peers says so")]
    NotLetIn,
    #[error("the swarm key was not proven: {0}")]
    Broken(Box<dyn std::error::Error + Send + Sync>),
}

/// The protocol to speak, with and without a swarm key.
pub(super) fn alpn(prover: Option<&Prover>) -> &'static [u8] {
    if prover.is_some() { ALPN_PRIVATE } else { ALPN }
}

impl Prover {
    pub(super) fn new(key: &SwarmKey, me: NodeId) -> Self {
        Self { key: Key(key.of_data_plane()), me, turns: Arc::new(Semaphore::new(UNPROVEN_MAX)) }
    }

    /// Whether strangers should show that their addresses are their own before we work for them.
    pub(super) fn is_crowded(&self) -> bool {
        self.turns.available_permits() < UNPROVEN_MAX / 2
    }

    /// Room for one who has not proven anything yet.
    pub(super) fn audience(self: &Arc<Self>) -> Result<Audience, Crowded> {
        let permit = Arc::clone(&self.turns).try_acquire_owned().map_err(|_| Crowded)?;
        Ok(Audience { prover: Arc::clone(self), _permit: permit })
    }

    /// Proves ourselves to `peer`, which we have dialled, and has it prove itself. Closes the connection
    /// if that fails.
    pub(super) async fn introduce(&self, connection: &Connection, peer: NodeId) -> Result<(), Unproven> {
        let ends = Ends { dialler: self.me, holder: peer };
        bounded(connection, async {
            let exported = export(connection)?;
            let (mut send, mut recv) = connection.open_bi().await.map_err(broken)?;
            send.write_all(&self.key.proof(DIALLER, ends, &exported)).await.map_err(broken)?;
            send.finish().map_err(broken)?;
            let theirs = recv.read_to_end(PROOF_SIZE).await.map_err(broken)?;
            self.key.check(HOLDER, ends, &exported, &theirs)
        })
        .await
    }
}

impl Audience {
    /// Has `peer`, which has dialled us, prove that it is of our swarm, and then proves ourselves. Closes
    /// the connection if that fails.
    pub(super) async fn admit(self, connection: &Connection, peer: NodeId) -> Result<(), Unproven> {
        let key = &self.prover.key;
        let ends = Ends { dialler: peer, holder: self.prover.me };
        bounded(connection, async {
            let exported = export(connection)?;
            let (mut send, mut recv) = connection.accept_bi().await.map_err(broken)?;
            let theirs = recv.read_to_end(PROOF_SIZE).await.map_err(broken)?;
            key.check(DIALLER, ends, &exported, &theirs)?;
            send.write_all(&key.proof(HOLDER, ends, &exported)).await.map_err(broken)?;
            send.finish().map_err(broken)
        })
        .await
    }
}

/// Runs `exchange` for as long as it may take. If it fails, the connection ends without a word.
async fn bounded(
    connection: &Connection,
    exchange: impl Future<Output = Result<(), Unproven>>,
) -> Result<(), Unproven> {
    let proven = timeout(PROOF_TIME_MAX, exchange).await.unwrap_or(Err(Unproven::Late));
    proven.map_err(|error| match connection.close_reason() {
        Some(quinn::ConnectionError::ApplicationClosed(closed)) if closed.error_code == code::NOT_LET_IN => {
            Unproven::NotLetIn
        }
        _ => {
            connection.close(code::NOT_LET_IN, b"");
            error
        }
    })
}

/// Bytes that only the two ends of this connection know.
fn export(connection: &Connection) -> Result<[u8; PROOF_SIZE], Unproven> {
    let mut exported = [0; PROOF_SIZE];
    let done = connection.export_keying_material(&mut exported, EXPORT_LABEL, b"");
    done.map_err(|error| Unproven::Broken(format!("{error:?}").into()))?;
    Ok(exported)
}

fn broken(error: impl std::error::Error + Send + Sync + 'static) -> Unproven {
    Unproven::Broken(Box::new(error))
}

/// Who is at the two ends of a connection. What TLS exports does not depend on the dialler's certificate.
#[derive(Clone, Copy)]
struct Ends {
    dialler: NodeId,
    holder: NodeId,
}

/// The data plane's own key, derived from the swarm's.
struct Key([u8; 32]);

impl Key {
    fn proof(&self, side: &[u8], ends: Ends, exported: &[u8]) -> [u8; PROOF_SIZE] {
        self.mac(side, ends, exported).finalize().into_bytes().into()
    }

    /// In constant time.
    fn check(&self, side: &[u8], ends: Ends, exported: &[u8], proof: &[u8]) -> Result<(), Unproven> {
        self.mac(side, ends, exported).verify_slice(proof).map_err(|_| Unproven::Wrong)
    }

    fn mac(&self, side: &[u8], ends: Ends, exported: &[u8]) -> Hmac<Sha256> {
        let mac = Hmac::new_from_slice(&self.0).expect("HMAC takes keys of any size");
        // Each part but the first has one size, so the whole has one reading.
        [side, &ends.dialler.0, &ends.holder.0, exported].iter().fold(mac, |mac, part| mac.chain_update(part))
    }
}

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Key(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ENDS: Ends = Ends { dialler: NodeId([1; 32]), holder: NodeId([2; 32]) };

    /// These bytes are deployed: with others, members no longer let each other in. From Python's `hmac`.
    #[test]
    fn golden() {
        let proof = |side| hex::encode(Key([7; 32]).proof(side, ENDS, &[3; 32]));
        assert_eq!(proof(DIALLER), "a8927dc73f7a6d99d8ae73383d5e3b7d489fd9a3a27875ee34d257060add28aa");
        assert_eq!(proof(HOLDER), "a64d43404aa1bd2a578293845729bdb5cb745665fc8d982c145d8bd9c2484b4b");
    }

    #[test]
    fn a_proof_is_for_one_side_of_one_connection_of_two_nodes() {
        let key = Key([7; 32]);
        let proof = key.proof(DIALLER, ENDS, &[3; 32]);
        key.check(DIALLER, ENDS, &[3; 32], &proof).unwrap();
        let turned = Ends { dialler: ENDS.holder, holder: ENDS.dialler };
        assert!(key.check(HOLDER, ENDS, &[3; 32], &proof).is_err(), "an echo");
        assert!(key.check(HOLDER, turned, &[3; 32], &proof).is_err(), "an echo from the other direction");
        assert!(key.check(DIALLER, turned, &[3; 32], &proof).is_err(), "other nodes");
        assert!(key.check(DIALLER, ENDS, &[4; 32], &proof).is_err(), "another connection");
        assert!(Key([8; 32]).check(DIALLER, ENDS, &[3; 32], &proof).is_err(), "another key");
        for size in 0..PROOF_SIZE {
            assert!(key.check(DIALLER, ENDS, &[3; 32], &proof[..size]).is_err(), "{size} bytes of it");
        }
    }
}

//! Asking peers whose data plane cannot be dialled: the same frames, on a stream of the control plane.
//!
//! A stream is opened for each request. That the address of a peer leads nowhere is found out once and
//! remembered for a while; then it is tried again behind the requests, because a direct way is better.

pub(super) mod serving;
#[cfg(test)]
mod tests;

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use futures::{AsyncReadExt, AsyncWriteExt};
use surf_protocol::{
    NodeId,
    wire::{self, Refusal, Reply, Request},
};
use tokio::time::Instant;

use super::{
    body::{self, Wire},
    peers::{Passage, Peers, Side},
};
use crate::fetch::{
    Body, DialError, Duplex, Tunnel,
    rate::{Limiter, PIECE_MAX},
};

/// How long the addresses of a peer have for themselves before a tunnel is tried beside them. A peer that can
/// be dialled has answered by then, unless it is on the other side of the world.
pub(super) const HEAD_START: Duration = Duration::from_secs(1);

/// How long after its addresses led nowhere a peer is dialled again.
const DIRECT_AGAIN: Duration = Duration::from_secs(60);

/// How long an obstacle may be why something is missing.
const OBSTACLE_KEPT: Duration = Duration::from_secs(60);

/// Peers of which that is remembered.
const REMEMBERED_MAX: usize = 1024;

/// Whether a request asks for the bytes of chunks, which relays are not there for.
pub(super) fn is_bulk(request: &Request) -> bool {
    match request {
        Request::Chunk(_) | Request::Range { .. } => true,
        Request::Manifest(_) | Request::Have(_) => false,
    }
}

/// Asks through tunnels.
#[derive(Debug)]
pub(super) struct Tunnels {
    via: Arc<dyn Tunnel>,
    peers: Arc<Peers>,
    /// How much may come.
    down: Arc<Limiter>,
    /// Peers that answer through tunnels and could not be dialled; when to dial them again.
    undiallable: Mutex<HashMap<NodeId, Instant>>,
    /// Why chunks did not come lately, for whoever wonders.
    obstacle: Mutex<Option<(Instant, String)>>,
}

/// What is known of dialling a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Directly {
    /// Nothing: try.
    Try,
    /// It did not work, but that was a while ago: try again, and do not wait for it.
    Again,
    /// It did not work a moment ago.
    No,
}

type BoxError = Box<dyn std::error::Error + Send + Sync>;

impl Tunnels {
    pub(super) fn new(via: Arc<dyn Tunnel>, peers: Arc<Peers>, down: Arc<Limiter>) -> Self {
        Self { via, peers, down, undiallable: Mutex::default(), obstacle: Mutex::default() }
    }

    /// Whether to dial `peer`. Whoever is told [`Directly::Again`] is the only one for a while.
    pub(super) fn directly(&self, peer: NodeId) -> Directly {
        let (now, mut undiallable) = (Instant::now(), self.undiallable.lock().expect("no panics while held"));
        match undiallable.get_mut(&peer) {
            None => Directly::Try,
            Some(again) if *again <= now => {
                *again = now + DIRECT_AGAIN;
                Directly::Again
            }
            Some(_) => Directly::No,
        }
    }

    /// One request, and the head of its reply.
    pub(super) async fn ask(
        &self,
        peer: NodeId,
        request: Request,
    ) -> Result<Result<Body, Refusal>, DialError> {
        let bulk = is_bulk(&request);
        let opened = self.via.open(peer, bulk).await;
        let tunnelled = opened.inspect_err(|error| {
            self.forget(peer);
            if bulk {
                self.stumble(error.to_string());
            }
        })?;
        let addr = format!("{peer} ({})", tunnelled.link.route);
        let failed = |cause: String| DialError::new(&addr, cause);
        let passage = self.peers.passage(peer, Side::Dialled, tunnelled.link);
        let passage = passage.map_err(|unwanted| failed(unwanted.to_string()))?;
        let reading = Reading { stream: tunnelled.stream, passage, addr: addr.clone() };
        let asked = exchange(reading, &request, &self.down).await;
        let asked = asked.map_err(|error| failed(error.to_string()))?;
        self.remember(peer);
        if let Err(refusal @ Refusal::Relayed) = asked {
            self.stumble(failed(refusal.to_string()).to_string());
        }
        Ok(asked)
    }

    /// Why chunks did not come through tunnels lately, if so.
    pub(super) fn obstacle(&self) -> Option<String> {
        let obstacle = self.obstacle.lock().expect("no panics while held");
        obstacle.as_ref().filter(|(at, _)| at.elapsed() < OBSTACLE_KEPT).map(|(_, why)| why.clone())
    }

    fn stumble(&self, why: String) {
        *self.obstacle.lock().expect("no panics while held") = Some((Instant::now(), why));
    }

    fn remember(&self, peer: NodeId) {
        let (now, mut undiallable) = (Instant::now(), self.undiallable.lock().expect("no panics while held"));
        if REMEMBERED_MAX <= undiallable.len() {
            undiallable.retain(|_, again| now < *again);
        }
        if undiallable.len() < REMEMBERED_MAX {
            undiallable.entry(peer).or_insert(now + DIRECT_AGAIN);
        }
    }

    fn forget(&self, peer: NodeId) {
        self.undiallable.lock().expect("no panics while held").remove(&peer);
    }
}

async fn exchange(
    mut reading: Reading,
    request: &Request,
    down: &Arc<Limiter>,
) -> Result<Result<Body, Refusal>, BoxError> {
    let request = wire::encode_request(request);
    let stream = &mut reading.stream;
    stream.write_all(&request).await?;
    stream.close().await?;
    let mut size = [0];
    stream.read_exact(&mut size).await?;
    let mut header = vec![0; size[0].into()];
    stream.read_exact(&mut header).await?;
    reading.passage.moved(request.len(), 1 + header.len());
    Ok(match wire::decode_reply(&header)? {
        Reply::Refused(refusal) => Err(refusal),
        Reply::Found { size } => Ok(Body { size, pieces: body::pieces(reading, size, Arc::clone(down)) }),
    })
}

/// A stream on which a body comes.
struct Reading {
    stream: Box<dyn Duplex>,
    passage: Passage,
    addr: String,
}

impl Wire for Reading {
    async fn read(&mut self, most: usize) -> Result<Bytes, String> {
        let mut piece = BytesMut::zeroed(most.min(PIECE_MAX));
        let got = self.stream.read(&mut piece).await.map_err(|error| error.to_string())?;
        piece.truncate(got);
        self.passage.moved(0, got);
        Ok(piece.freeze())
    }

    fn addr(&self) -> String {
        self.addr.clone()
    }
}

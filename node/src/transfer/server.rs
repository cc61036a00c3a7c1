//! The half that answers: one task per connection, one per request, both bounded.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use bytes::Bytes;
use surf_protocol::{
    ChunkId, ModelId, NodeId,
    limits::{CHUNK_SIZE_MAX, HOLDINGS_SIZE_MAX, MANIFEST_SIZE_MAX, REQUEST_SIZE_MAX},
    range,
    wire::{self, Refusal, Reply, Request},
};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, timeout},
};
use tracing::{Instrument, debug, debug_span, warn};

use super::{
    code,
    limits::{DIAL_TIME_MAX, REQUEST_TIME_MAX, STALL, STALL_BYTES},
    peers::{Budget, Peers, Registered, Side, TooMuch, Welcome},
    proof::{Audience, Prover},
    turns::{PACE, Turn, Turns},
};
use crate::{
    fetch::{
        rate::{Limiter, PIECE_MAX},
        service,
    },
    identity::peer_of,
    source::{Library, SourceError, Telling},
};

/// Bytes that are handed to QUIC at once. It counts a piece as sent when all of it is acknowledged.
const PIECE: usize = 256 * 1024;

/// Answers peers out of a library.
#[derive(Debug)]
pub(super) struct Server {
    library: Arc<dyn Library>,
    peers: Arc<Peers>,
    /// Who is served, and who waits.
    turns: Arc<Turns>,
    /// How much may leave.
    up: Arc<Limiter>,
    /// In a private swarm: what those who come have to show.
    prover: Option<Arc<Prover>>,
    /// Proofs that are made at once. Each hashes a whole chunk, on one core.
    proofs: Semaphore,
}

/// A reply that can be sent.
pub(super) struct Answer {
    pub(super) body: Bytes,
    /// For as long as it is sent, if it needed one.
    pub(super) turn: Option<Turn>,
    /// The part of the peer's budget that it takes.
    pub(super) room: OwnedSemaphorePermit,
}

/// How sending a reply ended, other than well.
#[derive(Debug, thiserror::Error)]
enum Undelivered {
    #[error("the peer took nothing for {} s", STALL.as_secs())]
    Stalled,
    #[error("the peer no longer wants it")]
    Unwanted,
    #[error(transparent)]
    Broken(#[from] quinn::WriteError),
}

impl Server {
    pub(super) fn new(
        library: Arc<dyn Library>,
        peers: Arc<Peers>,
        up: Arc<Limiter>,
        prover: Option<Arc<Prover>>,
    ) -> Self {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Self { library, peers, turns: Arc::default(), up, prover, proofs: Semaphore::new(cores) }
    }

    pub(super) fn library(&self) -> &Arc<dyn Library> {
        &self.library
    }

    pub(super) fn peers(&self) -> &Arc<Peers> {
        &self.peers
    }

    pub(super) fn up(&self) -> &Arc<Limiter> {
        &self.up
    }

    /// Serves until the endpoint is closed.
    pub(super) async fn accept(self: Arc<Self>, endpoint: quinn::Endpoint) {
        while let Some(incoming) = endpoint.accept().await {
            let crowded = self.prover.as_ref().is_some_and(|prover| prover.is_crowded());
            match self.peers.welcome() {
                Welcome::Easy if !crowded => (),
                Welcome::Easy | Welcome::Proven if incoming.remote_address_validated() => (),
                Welcome::Easy | Welcome::Proven => {
                    // It may have moved on since; then there is nobody to tell.
                    let _ = incoming.retry();
                    continue;
                }
                Welcome::Not => {
                    incoming.refuse();
                    continue;
                }
            }
            let Ok(audience) = self.prover.as_ref().map(Prover::audience).transpose() else {
                incoming.refuse();
                continue;
            };
            let span = debug_span!("serving", remote = %incoming.remote_address());
            tokio::spawn(Arc::clone(&self).connection(incoming, audience).instrument(span));
        }
    }

    async fn connection(self: Arc<Self>, incoming: quinn::Incoming, audience: Option<Audience>) {
        let Some(registered) = self.handshake(incoming, audience).await else { return };
        let registered = Arc::new(registered);
        // How many streams there are at once is bounded by QUIC itself: see `settings`.
        while let Ok((send, recv)) = registered.connection.accept_bi().await {
            let stream = Arc::clone(&self).stream(send, recv, Arc::clone(&registered));
            tokio::spawn(stream.in_current_span());
        }
    }

    /// Who has come, if it is let in. In a private swarm nothing is read from it before, and no byte sent.
    async fn handshake(&self, incoming: quinn::Incoming, audience: Option<Audience>) -> Option<Registered> {
        let connecting = incoming.accept().ok()?;
        let connection = match timeout(DIAL_TIME_MAX, connecting).await {
            Ok(Ok(connection)) => connection,
            Ok(Err(error)) => {
                debug!(%error, "handshake failed");
                return None;
            }
            Err(_) => return None,
        };
        let id = peer_of(&connection)?;
        if let Err(unwanted) = self.peers.lets_in(id) {
            debug!(peer = %id, error = %unwanted, "connection closed");
            unwanted.close(&connection);
            return None;
        }
        if let Some(audience) = audience
            && let Err(error) = audience.admit(&connection, id).await
        {
            debug!(peer = %id, %error, "connection closed");
            return None;
        }
        match self.peers.register(id, Side::Accepted, connection) {
            Ok(registered) => Some(registered),
            Err(error) => {
                debug!(peer = %id, %error, "connection closed");
                None
            }
        }
    }

    async fn stream(
        self: Arc<Self>,
        mut send: quinn::SendStream,
        mut recv: quinn::RecvStream,
        registered: Arc<Registered>,
    ) {
        let Ok(Ok(bytes)) = timeout(REQUEST_TIME_MAX, recv.read_to_end(REQUEST_SIZE_MAX)).await else {
            let _ = send.reset(code::STALLED);
            return;
        };
        if let Ok(Request::Have(model)) = wire::decode_request(&bytes) {
            return self.tell(model, &mut send).await;
        }
        let answered = tokio::select! {
            answered = self.answer(&bytes, registered.id, &registered.budget) => answered,
            // Whoever waits for a turn leaves the queue.
            _ = send.stopped() => return,
        };
        let (reply, body, turn, _room) = match answered {
            Ok(Answer { body, turn, room }) => {
                (Reply::Found { size: body.len() as u64 }, body, turn, Some(room))
            }
            Err(refusal) => (Reply::Refused(refusal), Bytes::new(), None, None),
        };
        let header = wire::encode_reply(&reply).into();
        let held = AtomicBool::new(false);
        let writing = write(&mut send, header, body, &self.up, &held);
        match deliver(writing, turn.as_ref(), &registered, &held).await {
            Ok(()) => turn.into_iter().for_each(Turn::done),
            Err(error) => {
                debug!(%error, "reply not delivered");
                // Whatever is left of it need not be sent.
                let _ = send.reset(code::STALLED);
            }
        }
    }

    /// Tells a peer what is here of `model`, until it has heard enough.
    async fn tell(&self, model: ModelId, send: &mut quinn::SendStream) {
        let mut telling = Telling::new(Arc::clone(&self.library), model);
        let first = found(telling.next().await);
        let reply = first
            .as_ref()
            .map_or_else(|refusal| Reply::Refused(*refusal), |_| Reply::Found { size: wire::ENDLESS });
        let mut frame =
            [&wire::encode_reply(&reply)[..], first.as_deref().unwrap_or_default()].concat().into();
        loop {
            if !matches!(timeout(STALL, send.write_chunk(frame)).await, Ok(Ok(())))
                || matches!(reply, Reply::Refused(_))
            {
                // Finished or given up; it cannot fail for any other reason.
                let _ = send.finish();
                return;
            }
            frame = tokio::select! {
                next = telling.next() => match next {
                    Ok(Some(frame)) => frame,
                    Ok(None) | Err(_) => return drop(send.reset(code::DONE)),
                },
                _ = send.stopped() => return,
            };
        }
    }

    /// The answer to a request of `peer`, when it is its turn.
    pub(super) async fn answer(
        &self,
        request: &[u8],
        peer: NodeId,
        budget: &Budget,
    ) -> Result<Answer, Refusal> {
        let request = wire::decode_request(request).map_err(|_| Refusal::Malformed)?;
        let mut room = budget.take(size_max(&request)).await.map_err(|TooMuch| Refusal::Busy)?;
        let (body, turn) = match request {
            Request::Manifest(model) => (found(self.library.manifest(model).await)?, None),
            // These are told, by `tell`: there is no one answer.
            Request::Have(_) => return Err(Refusal::Malformed),
            Request::Chunk(id) => {
                let chunk = found(self.library.serve(id).await)?;
                // While it waits, it takes no more room than it has to.
                Budget::shrink(&mut room, chunk.len());
                let turn = self.turn(peer, Some(id), chunk.len()).await?;
                (chunk, turn)
            }
            Request::Range { id, range } => {
                let chunk = found(self.library.serve(id).await)?;
                let asked = range.end.saturating_sub(range.start).min(chunk.len() as u32);
                let turn = self.turn(peer, None, range::encoded_size_max(asked)).await?;
                let _one = self.proofs.acquire().await.expect("never closed");
                let proof = tokio::task::spawn_blocking(move || range::encode(&chunk, range)).await;
                (proof.map_err(|_| Refusal::Failed)?.map_err(|_| Refusal::Malformed)?.into(), turn)
            }
        };
        Budget::shrink(&mut room, body.len());
        Ok(Answer { body, turn, room })
    }

    /// Waits for the turn of `peer` to be sent `size` bytes, unless they are so few that they need none.
    async fn turn(&self, peer: NodeId, chunk: Option<ChunkId>, size: usize) -> Result<Option<Turn>, Refusal> {
        let size = size as u64;
        if size < service::QUEUED_MIN {
            return Ok(None);
        }
        self.turns.take(service::Request { peer, chunk, size }).await.map(Some)
    }
}

/// The most bytes that answering `request` can take.
fn size_max(request: &Request) -> usize {
    match request {
        Request::Manifest(_) => MANIFEST_SIZE_MAX,
        Request::Have(_) => HOLDINGS_SIZE_MAX,
        Request::Chunk(_) => CHUNK_SIZE_MAX,
        Request::Range { range, .. } => {
            let asked = range.end.saturating_sub(range.start).min(CHUNK_SIZE_MAX as u32);
            CHUNK_SIZE_MAX + range::encoded_size_max(asked)
        }
    }
}

pub(super) fn found<T>(result: Result<Option<T>, SourceError>) -> Result<T, Refusal> {
    match result {
        Ok(Some(found)) => Ok(found),
        Ok(None) => Err(Refusal::NotHere),
        Err(error) => {
            warn!(%error, "a peer was refused");
            Err(Refusal::Failed)
        }
    }
}

/// Waits until a whole reply is written, and says how far it is. Gives up on a peer that takes nothing.
async fn deliver(
    writing: impl Future<Output = Result<(), Undelivered>>,
    turn: Option<&Turn>,
    registered: &Registered,
    held: &AtomicBool,
) -> Result<(), Undelivered> {
    let left = || registered.connection.stats().udp_tx.bytes;
    let (mut before, mut since) = (left(), Instant::now());
    let metered = turn.map(|turn| (turn, registered.meter.begin(before)));
    let pace = if metered.is_some() { PACE } else { STALL };
    tokio::pin!(writing);
    loop {
        let done = timeout(pace, &mut writing).await;
        let now = left();
        if let Some((turn, metered)) = &metered {
            turn.sent(metered.since(now));
            if held.load(Ordering::Relaxed) {
                turn.held();
            }
        }
        if let Ok(done) = done {
            return done;
        }
        // Waiting for our own limit is no stall of the peer's.
        if STALL_BYTES <= now - before || held.load(Ordering::Relaxed) {
            (before, since) = (now, Instant::now());
        } else if STALL <= since.elapsed() {
            return Err(Undelivered::Stalled);
        }
    }
}

/// Writes a whole reply, as fast as `up` allows. `held` is true while it waits for that.
async fn write(
    send: &mut quinn::SendStream,
    header: Bytes,
    mut body: Bytes,
    up: &Arc<Limiter>,
    held: &AtomicBool,
) -> Result<(), Undelivered> {
    send.write_chunk(header).await?;
    while !body.is_empty() {
        // The library's own bytes, which are a mapped file: nothing is copied before encryption.
        let limited = up.rate().is_some();
        let piece = body.split_to(body.len().min(if limited { PIECE_MAX } else { PIECE }));
        if limited {
            held.store(true, Ordering::Relaxed);
            let mut place = up.queue(piece.len());
            tokio::select! {
                () = place.pass() => (),
                _ = send.stopped() => return Err(Undelivered::Unwanted),
            }
            held.store(false, Ordering::Relaxed);
        }
        send.write_chunk(piece).await?;
    }
    // Neither can fail: nobody else finishes or resets the stream.
    let _ = send.finish();
    match send.stopped().await {
        Ok(None) => Ok(()),
        Ok(Some(_)) | Err(_) => Err(Undelivered::Unwanted),
    }
}

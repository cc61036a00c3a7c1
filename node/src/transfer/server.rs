//! The half that answers: one task per connection, one per request, both bounded.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use surf_protocol::{
    ChunkId, ModelId, NodeId,
    limits::{MANIFEST_SIZE_MAX, REQUEST_SIZE_MAX},
    range,
    wire::{self, Refusal, Reply, Request},
};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, timeout},
};
use tracing::{Instrument, debug, debug_span, warn};

use super::{
    bodies::Bodies,
    budget::{Budget, Small, TooMuch},
    code,
    limits::{DIAL_TIME_MAX, REQUEST_TIME_MAX, STALL_BYTES, STALL_WANTED},
    peers::{Peers, Registered, Side, Welcome},
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

/// Manifests that are read and not counted yet.
const MANIFESTS_AT_ONCE: usize = 2;

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
    proofs: Arc<Semaphore>,
    /// Room for what is being sent.
    bodies: Bodies,
    /// Manifests that are read at once: how much room one takes is known only then.
    manifests: Semaphore,
}

/// A reply that can be sent.
pub(super) struct Answer {
    pub(super) body: Bytes,
    /// For as long as it is sent, if it needed one.
    pub(super) turn: Option<Turn>,
    /// What it takes of the peer's budget and of the room for bodies.
    pub(super) room: Room,
}

/// What a reply takes until it is sent.
#[derive(Debug)]
pub(super) struct Room {
    _budget: OwnedSemaphorePermit,
    _body: OwnedSemaphorePermit,
    /// If it needed no turn.
    small: Option<Small>,
}

impl Room {
    /// The peer has everything.
    pub(super) fn done(self) {
        self.small.into_iter().for_each(Small::taken);
    }
}

/// How sending a reply ended, other than well.
#[derive(Debug, thiserror::Error)]
enum Undelivered {
    #[error("the peer took nothing for {0:?}")]
    Stalled(Duration),
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
        let (proofs, manifests) = (Arc::new(Semaphore::new(cores)), Semaphore::new(MANIFESTS_AT_ONCE));
        let (turns, bodies) = (Arc::default(), Bodies::default());
        Self { library, peers, turns, up, prover, proofs, bodies, manifests }
    }

    pub(super) fn library(&self) -> &Arc<dyn Library> {
        &self.library
    }

    pub(super) fn peers(&self) -> &Arc<Peers> {
        &self.peers
    }

    pub(super) fn bodies(&self) -> &Bodies {
        &self.bodies
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
                // Whoever has shown its address may take the place of one that is of no use.
                Welcome::Crowded if !incoming.remote_address_validated() => {
                    let _ = incoming.retry();
                    continue;
                }
                Welcome::Crowded if self.peers.make_room() => (),
                Welcome::Crowded | Welcome::Not => {
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
            return self.tell(model, &registered.budget, &mut send).await;
        }
        let answered = async {
            let answered = self.answer(&bytes, registered.id, &registered.budget).await;
            if let Err(refusal) = answered {
                registered.budget.may_be_told(refusal).await;
            }
            answered
        };
        let answered = tokio::select! {
            answered = answered => answered,
            // Whoever waits for a turn leaves the queue.
            _ = send.stopped() => return,
        };
        let (reply, body, turn, room) = match answered {
            Ok(Answer { body, turn, room }) => {
                (Reply::Found { size: body.len() as u64 }, body, turn, Some(room))
            }
            Err(refusal) => (Reply::Refused(refusal), Bytes::new(), None, None),
        };
        let header = wire::encode_reply(&reply).into();
        let progress = Progress::default();
        let writing = write(&mut send, header, body, &self.up, &progress);
        match self.deliver(writing, turn.as_ref(), &registered, &progress).await {
            Ok(()) => {
                turn.into_iter().for_each(Turn::done);
                room.into_iter().for_each(Room::done);
            }
            Err(error) => {
                debug!(%error, "reply not delivered");
                // Whatever is left of it need not be sent.
                let _ = send.reset(code::STALLED);
            }
        }
    }

    /// Tells a peer what is here of `model`, until it has heard enough.
    async fn tell(&self, model: ModelId, budget: &Budget, send: &mut quinn::SendStream) {
        let told = budget.tell();
        let mut telling = Telling::new(Arc::clone(&self.library), model);
        let first = match &told {
            Ok(_) => found(telling.next().await),
            Err(TooMuch) => Err(Refusal::Busy),
        };
        if let Err(refusal) = first {
            budget.may_be_told(refusal).await;
        }
        let reply = first
            .as_ref()
            .map_or_else(|refusal| Reply::Refused(*refusal), |_| Reply::Found { size: wire::ENDLESS });
        let mut frame: Bytes =
            [&wire::encode_reply(&reply)[..], first.as_deref().unwrap_or_default()].concat().into();
        loop {
            // A frame is small where models are; the room for those of large ones is what bodies have.
            let Ok(room) = self.bodies.take(frame.len()).await else {
                return drop(send.reset(code::STALLED));
            };
            let written = timeout(self.bodies.patience(), send.write_chunk(frame)).await;
            drop(room);
            if !matches!(written, Ok(Ok(()))) || matches!(reply, Reply::Refused(_)) {
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
        budget: &Arc<Budget>,
    ) -> Result<Answer, Refusal> {
        match wire::decode_request(request).map_err(|_| Refusal::Malformed)? {
            Request::Manifest(model) => self.manifest(model, budget).await,
            // These are told, by `tell`: there is no one answer.
            Request::Have(_) => Err(Refusal::Malformed),
            Request::Chunk(id) => {
                let size = self.library.size(id).ok_or(Refusal::NotHere)?;
                let (turn, room) = self.room(peer, Some(id), size, budget).await?;
                let body = found(holding(turn.as_ref(), self.library.serve(id)).await)?;
                Ok(Answer { body, turn, room })
            }
            Request::Range { id, range } => {
                let size = self.library.size(id).ok_or(Refusal::NotHere)?;
                let asked = range.end.saturating_sub(range.start).min(size as u32);
                let (turn, room) = self.room(peer, None, range::encoded_size_max(asked), budget).await?;
                let body = holding(turn.as_ref(), self.proof(id, range)).await?;
                Ok(Answer { body, turn, room })
            }
        }
    }

    async fn proof(&self, id: ChunkId, range: std::ops::Range<u32>) -> Result<Bytes, Refusal> {
        let one = Arc::clone(&self.proofs).acquire_owned().await.map_err(|_| Refusal::Failed)?;
        let chunk = found(self.library.serve(id).await)?;
        let proof = tokio::task::spawn_blocking(move || {
            // Hashing goes on although its asker may leave.
            let _one = one;
            range::encode(&chunk, range)
        })
        .await;
        Ok(proof.map_err(|_| Refusal::Failed)?.map_err(|_| Refusal::Malformed)?.into())
    }

    async fn manifest(&self, model: ModelId, budget: &Arc<Budget>) -> Result<Answer, Refusal> {
        let mut of_peer = budget.take(MANIFEST_SIZE_MAX).await?;
        let one = self.manifests.acquire().await.map_err(|_| Refusal::Failed)?;
        let body = found(self.library.manifest(model).await)?;
        let room = self.bodies.take(body.len()).await?;
        drop(one);
        Budget::shrink(&mut of_peer, body.len());
        let small = if body.len() < SMALL { Some(budget.small().await?) } else { None };
        Ok(Answer { body, turn: None, room: Room { _budget: of_peer, _body: room, small } })
    }

    /// Waits until `peer` may be sent `size` bytes, and there is room for them. If they are few, they need no turn.
    async fn room(
        &self,
        peer: NodeId,
        chunk: Option<ChunkId>,
        size: usize,
        budget: &Arc<Budget>,
    ) -> Result<(Option<Turn>, Room), Refusal> {
        let of_peer = budget.take(size).await?;
        let small = if size < SMALL { Some(budget.small().await?) } else { None };
        let turn = self.turn(peer, chunk, size).await?;
        let body = holding(turn.as_ref(), self.bodies.take(size)).await?;
        Ok((turn, Room { _budget: of_peer, _body: body, small }))
    }

    /// Waits for the turn of `peer` to be sent `size` bytes, unless they are so few that they need none.
    async fn turn(&self, peer: NodeId, chunk: Option<ChunkId>, size: usize) -> Result<Option<Turn>, Refusal> {
        if size < SMALL {
            return Ok(None);
        }
        self.turns.take(service::Request { peer, chunk, size: size as u64 }).await.map(Some)
    }

    /// Waits until a whole reply is written, and says how far it is. Gives up on a peer that takes nothing, the sooner
    /// if others wait for the room.
    async fn deliver(
        &self,
        writing: impl Future<Output = Result<(), Undelivered>>,
        turn: Option<&Turn>,
        registered: &Registered,
        progress: &Progress,
    ) -> Result<(), Undelivered> {
        let left = || registered.connection.stats().udp_tx.bytes;
        let (mut before, mut since) = ((progress.written(), left()), Instant::now());
        let metered = turn.map(|turn| (turn, registered.meter.begin(before.1)));
        metered.iter().for_each(|(turn, _)| turn.held());
        let pace = if metered.is_some() { PACE } else { STALL_WANTED / 2 };
        tokio::pin!(writing);
        loop {
            let done = timeout(pace, &mut writing).await;
            let now = (progress.written(), left());
            if let Some((turn, metered)) = &metered {
                turn.sent(metered.since(now.1, now.0));
                if progress.is_held() {
                    turn.held();
                }
            }
            if let Ok(done) = done {
                return done;
            }
            // What this stream has been granted counts; once it is all written, what leaves the connection.
            let moved = match progress.is_written() {
                true => before.1 + STALL_BYTES <= now.1,
                false => before.0 < now.0,
            };
            let patience = self.bodies.patience();
            // Waiting for our own limit is no stall of the peer's.
            if moved || progress.is_held() {
                (before, since) = (now, Instant::now());
            } else if patience <= since.elapsed() {
                return Err(Undelivered::Stalled(patience));
            }
        }
    }
}

/// Answers of fewer bytes than this need no turn.
const SMALL: usize = service::QUEUED_MIN as usize;

/// How far a reply is.
#[derive(Debug, Default)]
struct Progress {
    /// Bytes that QUIC has accepted: no more than the peer has granted.
    written: AtomicU64,
    /// Whether that is all of it.
    all: AtomicBool,
    /// Whether it waits for a limit of ours.
    held: AtomicBool,
}

impl Progress {
    fn written(&self) -> u64 {
        self.written.load(Ordering::Relaxed)
    }

    fn is_written(&self) -> bool {
        self.all.load(Ordering::Relaxed)
    }

    fn is_held(&self) -> bool {
        self.held.load(Ordering::Relaxed)
    }
}

/// Waits for what is ours to do before anything can be sent. The peer whose turn it is does not wait for itself.
async fn holding<T>(turn: Option<&Turn>, work: impl Future<Output = T>) -> T {
    tokio::pin!(work);
    loop {
        if let Ok(done) = timeout(PACE, &mut work).await {
            return done;
        }
        turn.into_iter().for_each(Turn::held);
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

/// Writes a whole reply, as fast as `up` allows.
async fn write(
    send: &mut quinn::SendStream,
    header: Bytes,
    mut body: Bytes,
    up: &Arc<Limiter>,
    progress: &Progress,
) -> Result<(), Undelivered> {
    send.write_chunk(header).await?;
    while !body.is_empty() {
        // The library's own bytes: nothing is copied before encryption.
        let limited = up.rate().is_some();
        let mut piece = [body.split_to(body.len().min(if limited { PIECE_MAX } else { PIECE }))];
        if limited {
            progress.held.store(true, Ordering::Relaxed);
            let mut place = up.queue(piece[0].len());
            tokio::select! {
                () = place.pass() => (),
                _ = send.stopped() => return Err(Undelivered::Unwanted),
            }
            progress.held.store(false, Ordering::Relaxed);
        }
        while !piece[0].is_empty() {
            let written = send.write_chunks(&mut piece).await?;
            progress.written.fetch_add(written.bytes as u64, Ordering::Relaxed);
        }
    }
    progress.all.store(true, Ordering::Relaxed);
    // Neither can fail: nobody else finishes or resets the stream.
    let _ = send.finish();
    match send.stopped().await {
        Ok(None) => Ok(()),
        Ok(Some(_)) | Err(_) => Err(Undelivered::Unwanted),
    }
}

//! The half that answers: one task per connection, one per request, both bounded.

use std::sync::Arc;

use bytes::Bytes;
use surf_protocol::{
    limits::{BITMAP_SIZE_MAX, CHUNK_SIZE_MAX, MANIFEST_SIZE_MAX, REQUEST_SIZE_MAX},
    range,
    wire::{self, Refusal, Reply, Request},
};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{sleep, timeout},
};
use tracing::{Instrument, debug, debug_span, warn};

use super::{
    code,
    limits::{ACCEPTED_EASILY, ACCEPTED_MAX, DIAL_TIME_MAX, REQUEST_TIME_MAX, STALL, STALL_BYTES},
    peers::{Budget, Peers, Registered, Side, TooMuch},
};
use crate::{
    identity::peer_of,
    source::{Library, SourceError},
};

/// Bytes that are handed to QUIC at once. It counts a piece as sent when all of it is acknowledged.
const PIECE: usize = 256 * 1024;

/// Answers peers out of a library.
pub(super) struct Server {
    library: Arc<dyn Library>,
    peers: Arc<Peers>,
    /// Proofs that are made at once. Each hashes a whole chunk, on one core.
    proofs: Semaphore,
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
    pub(super) fn new(library: Arc<dyn Library>, peers: Arc<Peers>) -> Self {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Self { library, peers, proofs: Semaphore::new(cores) }
    }

    /// Serves until the endpoint is closed.
    pub(super) async fn accept(self: Arc<Self>, endpoint: quinn::Endpoint) {
        while let Some(incoming) = endpoint.accept().await {
            let accepted = self.peers.accepted();
            if ACCEPTED_MAX <= accepted {
                incoming.refuse();
                continue;
            }
            if ACCEPTED_EASILY <= accepted && !incoming.remote_address_validated() {
                // It may have moved on since; then there is nobody to tell.
                let _ = incoming.retry();
                continue;
            }
            let span = debug_span!("serving", remote = %incoming.remote_address());
            tokio::spawn(Arc::clone(&self).connection(incoming).instrument(span));
        }
    }

    async fn connection(self: Arc<Self>, incoming: quinn::Incoming) {
        let Some(registered) = self.handshake(incoming).await else { return };
        let registered = Arc::new(registered);
        // How many streams there are at once is bounded by QUIC itself: see `settings`.
        while let Ok((send, recv)) = registered.connection.accept_bi().await {
            let stream = Arc::clone(&self).stream(send, recv, Arc::clone(&registered));
            tokio::spawn(stream.in_current_span());
        }
    }

    async fn handshake(&self, incoming: quinn::Incoming) -> Option<Registered> {
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
        let answered = tokio::select! {
            answered = self.answer(&bytes, &registered.budget) => answered,
            _ = send.stopped() => return,
        };
        let (reply, body) = match &answered {
            Ok((body, _)) => (Reply::Found { size: body.len() as u64 }, body.clone()),
            Err(refusal) => (Reply::Refused(*refusal), Bytes::new()),
        };
        let header = wire::encode_reply(&reply).into();
        if let Err(error) = deliver(&mut send, header, body, &registered.connection).await {
            debug!(%error, "reply not delivered");
            // Whatever is left of it need not be sent.
            let _ = send.reset(code::STALLED);
        }
    }

    /// The body for a request, and the room it takes.
    async fn answer(
        &self,
        request: &[u8],
        budget: &Budget,
    ) -> Result<(Bytes, OwnedSemaphorePermit), Refusal> {
        let request = wire::decode_request(request).map_err(|_| Refusal::Malformed)?;
        let mut room = budget.take(size_max(&request)).await.map_err(|TooMuch| Refusal::Busy)?;
        let body = match request {
            Request::Manifest(model) => found(self.library.manifest(model).await)?,
            Request::Have(model) => wire::encode_bitmap(&found(self.library.have(model).await)?).into(),
            Request::Chunk(id) => found(self.library.serve(id).await)?,
            Request::Range { id, range } => {
                let chunk = found(self.library.serve(id).await)?;
                let _one = self.proofs.acquire().await.expect("never closed");
                let proof = tokio::task::spawn_blocking(move || range::encode(&chunk, range)).await;
                proof.map_err(|_| Refusal::Failed)?.map_err(|_| Refusal::Malformed)?.into()
            }
        };
        Budget::shrink(&mut room, body.len());
        Ok((body, room))
    }
}

/// The most bytes that answering `request` can take.
fn size_max(request: &Request) -> usize {
    match request {
        Request::Manifest(_) => MANIFEST_SIZE_MAX,
        Request::Have(_) => BITMAP_SIZE_MAX,
        Request::Chunk(_) => CHUNK_SIZE_MAX,
        Request::Range { range, .. } => {
            let asked = range.end.saturating_sub(range.start).min(CHUNK_SIZE_MAX as u32);
            CHUNK_SIZE_MAX + range::encoded_size_max(asked)
        }
    }
}

fn found<T>(result: Result<Option<T>, SourceError>) -> Result<T, Refusal> {
    match result {
        Ok(Some(found)) => Ok(found),
        Ok(None) => Err(Refusal::NotHere),
        Err(error) => {
            warn!(%error, "a peer was refused");
            Err(Refusal::Failed)
        }
    }
}

/// Sends a whole reply, and waits until the peer has it. Gives up on a peer that takes nothing.
async fn deliver(
    send: &mut quinn::SendStream,
    header: Bytes,
    body: Bytes,
    connection: &quinn::Connection,
) -> Result<(), Undelivered> {
    let mut sent = connection.stats().udp_tx.bytes;
    let writing = write(send, header, body);
    tokio::pin!(writing);
    loop {
        tokio::select! {
            done = &mut writing => return done,
            () = sleep(STALL) => {
                let now = connection.stats().udp_tx.bytes;
                if now - sent < STALL_BYTES {
                    return Err(Undelivered::Stalled);
                }
                sent = now;
            }
        }
    }
}

async fn write(send: &mut quinn::SendStream, header: Bytes, mut body: Bytes) -> Result<(), Undelivered> {
    send.write_chunk(header).await?;
    while !body.is_empty() {
        // The library's own bytes, which are a mapped file: nothing is copied before encryption.
        send.write_chunk(body.split_to(PIECE.min(body.len()))).await?;
    }
    // Neither can fail: nobody else finishes or resets the stream.
    let _ = send.finish();
    match send.stopped().await {
        Ok(None) => Ok(()),
        Ok(Some(_)) | Err(_) => Err(Undelivered::Unwanted),
    }
}

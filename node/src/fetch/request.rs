//! One request to one peer, to its end: verified bytes, or why not.
//!
//! Wrong bytes are the only lie: bytes that do not hash to what was asked. A size that disagrees with a manifest
//! says nothing about the peer, because the hash does not depend on what the manifest says.
//!
//! A peer that sends nothing for a while is given up, however much it has sent before: time is
//! counted from the last byte, not from the start, so a slow link is no stall.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures::StreamExt;
use surf_protocol::{
    Chunk, Manifest, ModelId, VerifiedRange,
    chunk::VerifyError,
    limits::{CHUNK_SIZE_MAX, MANIFEST_SIZE_MAX},
    manifest::{ChunkEntry, ManifestError},
    range,
    wire::{Refusal, Request},
};
use tokio::{
    runtime::{Handle, RuntimeFlavor},
    sync::Semaphore,
    task::spawn_blocking,
    time::timeout,
};

use super::{Body, DialError, Dialer, Peer, buffers::Buffers, holdings::Listening, schedule::Outcome};

/// What is smaller is checked where it arrives; another thread would cost more.
const INLINE_MAX: usize = 256 * 1024;

/// How long a peer may take to answer at all, on top of the time it may be silent: connecting and
/// finding the bytes are part of it.
const HEAD_EXTRA: Duration = Duration::from_secs(5);

/// Held while a manifest is checked, by the thread that does it.
static CHECKING: Semaphore = Semaphore::const_new(1);

/// Why a request failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum RequestError {
    #[error("{0}")]
    Refused(#[from] Refusal),
    #[error(transparent)]
    Dial(#[from] DialError),
    #[error("nothing came for {0:?}")]
    Stalled(Duration),
    /// What it said makes no sense. No bytes of it were used.
    #[error("{0}")]
    Malformed(String),
    /// The proof of a range does not fit the chunk as the manifest describes it: one of the two is wrong.
    #[error("a range that is not proven: {0}")]
    Unproven(String),
    /// The bytes are those that were asked for, and they are no manifest. No peer is to blame for that.
    #[error(transparent)]
    Unreadable(ManifestError),
    #[error("wrong bytes: {0}")]
    Lied(String),
}

impl RequestError {
    /// What it means for the peer.
    pub(super) fn outcome(&self) -> Outcome {
        match self {
            Self::Refused(Refusal::NotHere) | Self::Unreadable(_) => Outcome::NotHere,
            Self::Refused(Refusal::Elsewhere) => Outcome::Elsewhere,
            Self::Refused(Refusal::Busy) => Outcome::Busy,
            Self::Refused(Refusal::Failed | Refusal::Malformed) => Outcome::Refused,
            Self::Refused(Refusal::Relayed) | Self::Dial(DialError { barred: true, .. }) => Outcome::Barred,
            Self::Dial(_) => Outcome::Failed,
            // Whoever talks nonsense is avoided like one that talks nothing.
            Self::Stalled(_) | Self::Malformed(_) | Self::Unproven(_) => Outcome::Stalled,
            Self::Lied(_) => Outcome::Lied,
        }
    }
}

/// A failed request, with the bytes that came for nothing.
#[derive(Debug)]
pub(super) struct Failed {
    pub(super) error: RequestError,
    pub(super) wasted: u64,
}

/// Why bytes are not a manifest.
#[derive(Debug, thiserror::Error)]
pub(super) enum BadManifest {
    #[error("another manifest")]
    Other,
    #[error(transparent)]
    Unreadable(#[from] ManifestError),
}

/// The manifest in `bytes`, if they hash to `model` and it keeps the rules; or why not. Not trusted, and large
/// ones take a while: they are checked on another thread.
pub(super) async fn checked_manifest(model: ModelId, bytes: Bytes) -> Result<Manifest, BadManifest> {
    let len = bytes.len();
    // One at a time, also when nobody waits for it any more: each takes up to four times its size in memory.
    let turn = CHECKING.acquire().await;
    let check = move || {
        let _turn = turn;
        if ModelId::of(&bytes) != model {
            return Err(BadManifest::Other);
        }
        Manifest::decode(&bytes).map_err(BadManifest::Unreadable)
    };
    off_worker(len, check).await
}

impl<E: Into<RequestError>> From<E> for Failed {
    fn from(error: E) -> Self {
        Self { error: error.into(), wasted: 0 }
    }
}

/// Asks for peers' bytes.
#[derive(Clone, Debug)]
pub(super) struct Asker {
    pub(super) dialer: Arc<dyn Dialer>,
    /// How long a peer may send nothing.
    pub(super) stall: Duration,
    pub(super) buffers: Buffers,
}

impl Asker {
    /// A whole chunk, verified. `received` tells how many bytes have come so far. It may have another size than
    /// the manifest says; then the manifest is wrong.
    pub(super) async fn chunk(
        &self,
        peer: &Peer,
        chunk: ChunkEntry,
        received: &AtomicU64,
    ) -> Result<Chunk, Failed> {
        let body = self.head(peer, Request::Chunk(chunk.id)).await?;
        fits(&body, CHUNK_SIZE_MAX as u64)?;
        let bytes = self.collect(body, received).await?;
        let wasted = bytes.len() as u64;
        verify(chunk, bytes)
            .await
            .map_err(|error| Failed { error: RequestError::Lied(error.to_string()), wasted })
    }

    /// Some bytes of a chunk, verified.
    pub(super) async fn range(
        &self,
        peer: &Peer,
        chunk: ChunkEntry,
        range: std::ops::Range<u32>,
    ) -> Result<VerifiedRange, Failed> {
        let size_max = range::encoded_size_max(range.end.saturating_sub(range.start)) as u64;
        let request = Request::Range { id: chunk.id, range: range.clone() };
        let slice = self.bounded(peer, request, size_max).await?;
        VerifiedRange::verify(chunk.id, chunk.size, range, &slice).map_err(|error| Failed {
            error: RequestError::Unproven(error.to_string()),
            wasted: slice.len() as u64,
        })
    }

    /// A manifest that hashes to `model`, checked.
    pub(super) async fn manifest(&self, peer: &Peer, model: ModelId) -> Result<Manifest, Failed> {
        let bytes = self.bounded(peer, Request::Manifest(model), MANIFEST_SIZE_MAX as u64).await?;
        let wasted = bytes.len() as u64;
        checked_manifest(model, bytes).await.map_err(|why| match why {
            BadManifest::Other => Failed { error: RequestError::Lied(why.to_string()), wasted },
            BadManifest::Unreadable(error) => RequestError::Unreadable(error).into(),
        })
    }

    /// What the peer has of `manifest`, now and from now on.
    pub(super) async fn holdings(&self, peer: &Peer, manifest: &Manifest) -> Result<Listening, Failed> {
        let body = self.head(peer, Request::Have(manifest.id())).await?;
        Ok(Listening::new(body, manifest.chunks().len())?)
    }

    async fn bounded(&self, peer: &Peer, request: Request, size_max: u64) -> Result<Bytes, Failed> {
        let body = self.head(peer, request).await?;
        fits(&body, size_max)?;
        self.collect(body, &AtomicU64::default()).await
    }

    async fn head(&self, peer: &Peer, request: Request) -> Result<Body, RequestError> {
        let head = timeout(self.stall + HEAD_EXTRA, self.dialer.ask(peer, request)).await;
        Ok(head.map_err(|_| RequestError::Stalled(self.stall + HEAD_EXTRA))???)
    }

    /// All bytes of a body whose size has been checked.
    async fn collect(&self, mut body: Body, received: &AtomicU64) -> Result<Bytes, Failed> {
        let size = body.size as usize;
        // A manifest may be large; room for it is made as it comes, not as it is announced.
        let mut bytes = self.buffers.take(size.min(CHUNK_SIZE_MAX));
        let failed = |error, got: usize| Failed { error, wasted: got as u64 };
        while bytes.len() < size {
            match timeout(self.stall, body.pieces.next()).await {
                Err(_elapsed) => return Err(failed(RequestError::Stalled(self.stall), bytes.len())),
                Ok(Some(Ok(piece))) if bytes.len() + piece.len() <= size => {
                    bytes.extend(&piece);
                    received.store(bytes.len() as u64, Ordering::Relaxed);
                }
                Ok(Some(Ok(piece))) => {
                    let got = bytes.len() + piece.len();
                    let error = format!("{got} bytes came where {size} were announced");
                    return Err(failed(RequestError::Malformed(error), got));
                }
                Ok(Some(Err(error))) => return Err(failed(error.into(), bytes.len())),
                Ok(None) => {
                    let error = format!("it broke off after {} of {size} bytes", bytes.len());
                    return Err(failed(RequestError::Malformed(error), bytes.len()));
                }
            }
        }
        Ok(bytes.freeze())
    }
}

/// Whether a body is as small as it has to be.
fn fits(body: &Body, size_max: u64) -> Result<(), RequestError> {
    if body.size <= size_max {
        return Ok(());
    }
    Err(RequestError::Malformed(format!(
        "it announced {} bytes where at most {size_max} are right",
        body.size
    )))
}

async fn verify(chunk: ChunkEntry, bytes: Bytes) -> Result<Chunk, VerifyError> {
    off_worker(bytes.len(), move || Chunk::verify(chunk.id, bytes)).await
}

/// Does `work` on `len` bytes: large ones on a thread for it, so that the worker goes on meanwhile.
async fn off_worker<T: Send + 'static>(len: usize, work: impl FnOnce() -> T + Send + 'static) -> T {
    // In a runtime of one thread another would only make the order of events a matter of luck.
    let alone = Handle::current().runtime_flavor() == RuntimeFlavor::CurrentThread;
    if alone || len <= INLINE_MAX {
        return work();
    }
    spawn_blocking(work).await.expect("checking does not panic, and nobody aborts it")
}

//! The half that asks: one connection per peer, made when needed, kept while it is used.

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex, MutexGuard},
};

use futures::{
    FutureExt,
    future::{BoxFuture, Shared},
};
use surf_protocol::{
    NodeId,
    wire::{self, Refusal, Reply, Request},
};
use tokio::sync::oneshot;

use super::{
    PeerTraffic, body, dial,
    limits::UNUSED_MAX,
    peers::{Peers, Registered, Side},
};
use crate::{
    fetch::{Body, DialError, Dialer, Peer},
    identity::Identity,
};

/// Asks peers.
#[derive(Debug)]
pub struct Client {
    pool: Arc<Pool>,
}

struct Pool {
    endpoint: quinn::Endpoint,
    identity: Identity,
    peers: Arc<Peers>,
    slots: Mutex<HashMap<NodeId, Slot>>,
}

enum Slot {
    /// Being dialled, by a task of its own: whoever asked first may give up without harm to others.
    Dialling(Attempt),
    Open(Arc<Link>),
}

type Attempt = Shared<oneshot::Receiver<Result<Arc<Link>, DialError>>>;

/// A connection, kept by everyone who uses it.
#[derive(Debug)]
pub(super) struct Link {
    registered: Registered,
}

impl Client {
    pub(super) fn new(endpoint: quinn::Endpoint, identity: Identity, peers: Arc<Peers>) -> Self {
        Self { pool: Arc::new(Pool { endpoint, identity, peers, slots: Mutex::default() }) }
    }

    /// What has gone to and come from each peer; ordered by id.
    pub fn stats(&self) -> Vec<PeerTraffic> {
        self.pool.peers.traffic()
    }
}

impl Dialer for Client {
    fn ask(&self, peer: &Peer, request: Request) -> BoxFuture<'_, Result<Result<Body, Refusal>, DialError>> {
        let peer = peer.clone();
        Box::pin(async move {
            let link = self.pool.link(peer).await?;
            let addr = link.connection().remote_address();
            let asked = exchange(link, request).await;
            asked.map_err(|cause| DialError { addr: addr.to_string(), cause: cause.to_string() })
        })
    }

    fn ban(&self, peer: NodeId) {
        self.pool.peers.ban(peer);
    }
}

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// One request, and the head of its reply.
async fn exchange(link: Arc<Link>, request: Request) -> Result<Result<Body, Refusal>, BoxError> {
    let (mut send, mut recv) = link.connection().open_bi().await?;
    send.write_all(&wire::encode_request(&request)).await?;
    send.finish()?;
    let mut size = [0];
    recv.read_exact(&mut size).await?;
    let mut header = vec![0; size[0].into()];
    recv.read_exact(&mut header).await?;
    Ok(match wire::decode_reply(&header)? {
        Reply::Refused(refusal) => Err(refusal),
        Reply::Found { size } => Ok(Body { size, pieces: body::pieces(recv, size, link) }),
    })
}

impl Link {
    pub(super) fn connection(&self) -> &quinn::Connection {
        &self.registered.connection
    }
}

impl Pool {
    /// The connection to `peer`: the one there is, else a new one. Dialling one peer holds up nobody
    /// who wants another.
    async fn link(self: &Arc<Self>, peer: Peer) -> Result<Arc<Link>, DialError> {
        if self.peers.is_banned(peer.id) {
            return Err(DialError { addr: peer.id.to_string(), cause: "the peer is banned".to_owned() });
        }
        let attempt = {
            let mut slots = self.slots();
            match slots.get(&peer.id) {
                Some(Slot::Open(link)) if link.connection().close_reason().is_none() => {
                    return Ok(Arc::clone(link));
                }
                Some(Slot::Dialling(attempt)) => attempt.clone(),
                Some(Slot::Open(_)) | None => {
                    let (done, attempt) = oneshot::channel();
                    let attempt = attempt.shared();
                    slots.insert(peer.id, Slot::Dialling(attempt.clone()));
                    tokio::spawn(Arc::clone(self).dial(peer.clone(), done));
                    attempt
                }
            }
        };
        attempt.await.unwrap_or_else(|_| {
            Err(DialError { addr: peer.id.to_string(), cause: "the node is stopping".to_owned() })
        })
    }

    async fn dial(self: Arc<Self>, peer: Peer, done: oneshot::Sender<Result<Arc<Link>, DialError>>) {
        let dialled = dial::dial(&self.endpoint, &self.identity, &peer).await;
        let dialled = dialled.and_then(|connection| {
            let addr = connection.remote_address().to_string();
            let registered = self.peers.register(peer.id, Side::Dialled, connection);
            let registered = registered.map_err(|error| DialError { addr, cause: error.to_string() })?;
            Ok(Arc::new(Link { registered }))
        });
        match &dialled {
            Ok(link) => {
                self.slots().insert(peer.id, Slot::Open(Arc::clone(link)));
                tokio::spawn(Arc::clone(&self).watch(peer.id, Arc::clone(link)));
            }
            Err(error) => {
                tracing::debug!(peer = %peer.id, %error, "not connected");
                self.slots().remove(&peer.id);
            }
        }
        // Everyone who asked may have given up; the connection is there for the next.
        let _ = done.send(dialled);
    }

    /// Waits until `link` is closed, or closes it when nobody uses it any more.
    async fn watch(self: Arc<Self>, id: NodeId, link: Arc<Link>) {
        /// The slot and this task.
        const NOBODY: usize = 2;
        let mut unused = false;
        while tokio::time::timeout(UNUSED_MAX / 2, link.connection().closed()).await.is_err() {
            let used = NOBODY < Arc::strong_count(&link);
            if !used && unused {
                break;
            }
            unused = !used;
        }
        let mut slots = self.slots();
        if let Some(Slot::Open(other)) = slots.get(&id)
            && Arc::ptr_eq(other, &link)
        {
            slots.remove(&id);
        }
    }

    fn slots(&self) -> MutexGuard<'_, HashMap<NodeId, Slot>> {
        self.slots.lock().expect("no panics while held")
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool").field("peers", &self.peers).finish_non_exhaustive()
    }
}

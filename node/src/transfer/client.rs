//! The half that asks: one connection per peer, made when needed, kept while it is used.

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex, MutexGuard, OnceLock, Weak},
};

use futures::{
    FutureExt,
    future::{BoxFuture, Shared},
};
use surf_protocol::{
    NodeId,
    wire::{self, Refusal, Reply, Request},
};
use tokio::sync::{oneshot, watch};

use super::{
    PeerTraffic,
    body::{self, Quic},
    dial,
    limits::UNUSED_MAX,
    peers::{Peers, Registered, Side},
    proof::{self, Prover},
    settings,
    tunnel::{Directly, HEAD_START, Tunnels},
};
use crate::{
    fetch::{self, Body, DialError, Dialer, Peer, Tunnel, rate::Limiter},
    identity::Identity,
};

/// Asks peers.
#[derive(Debug)]
pub struct Client {
    pool: Arc<Pool>,
    tunnels: OnceLock<Tunnels>,
}

struct Pool {
    endpoint: quinn::Endpoint,
    identity: Identity,
    peers: Arc<Peers>,
    /// How much may come.
    down: Arc<Limiter>,
    prover: Option<Arc<Prover>>,
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
    pub(super) fn new(
        endpoint: quinn::Endpoint,
        identity: Identity,
        peers: Arc<Peers>,
        down: Arc<Limiter>,
        prover: Option<Arc<Prover>>,
    ) -> Self {
        tokio::spawn(keep_windows(Arc::downgrade(&peers), Arc::downgrade(&down), down.changes()));
        let pool = Arc::new(Pool { endpoint, identity, peers, down, prover, slots: Mutex::default() });
        Self { pool, tunnels: OnceLock::new() }
    }

    /// From now on, asks peers that cannot be dialled by way of `tunnel`.
    pub(super) fn tunnel(&self, tunnel: Arc<dyn Tunnel>) {
        // The first stays: there is one control plane.
        let (peers, down) = (Arc::clone(&self.pool.peers), Arc::clone(&self.pool.down));
        let _ = self.tunnels.set(Tunnels::new(tunnel, peers, down));
    }

    /// Why chunks of peers that cannot be dialled did not come lately, if so: the NAT, or a relay's owner.
    pub fn obstacle(&self) -> Option<String> {
        self.tunnels.get()?.obstacle()
    }

    async fn ask_directly(&self, peer: Peer, request: Request) -> Result<Result<Body, Refusal>, DialError> {
        let link = self.pool.link(peer).await?;
        let addr = link.connection().remote_address();
        let asked = exchange(link, request, &self.pool.down).await;
        asked.map_err(|cause| DialError::new(addr, cause))
    }

    async fn ask_either_way(
        &self,
        tunnels: &Tunnels,
        peer: Peer,
        request: Request,
    ) -> Result<Result<Body, Refusal>, DialError> {
        if !self.pool.is_open(peer.id) {
            // Dialling goes on behind, whoever waits for it.
            let dialling = self.pool.link(peer.clone());
            let tunnelled = match tunnels.directly(peer.id) {
                Directly::No => tunnels.ask(peer.id, request.clone()).await,
                Directly::Again => {
                    // Begins to dial, and leaves it at that.
                    let _ = dialling.now_or_never();
                    tunnels.ask(peer.id, request.clone()).await
                }
                Directly::Try => match tokio::time::timeout(HEAD_START, dialling).await {
                    Ok(Ok(_)) => return self.ask_directly(peer, request).await,
                    Ok(Err(_)) | Err(_) => tunnels.ask(peer.id, request.clone()).await,
                },
            };
            match tunnelled {
                Err(error) if self.pool.is_open(peer.id) || self.pool.is_dialling(peer.id) => {
                    tracing::debug!(%error, "not through a tunnel");
                }
                answered => return answered,
            }
        }
        self.ask_directly(peer, request).await
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
            match self.tunnels.get() {
                Some(tunnels) => self.ask_either_way(tunnels, peer, request).await,
                None => self.ask_directly(peer, request).await,
            }
        })
    }

    fn link(&self, peer: NodeId) -> Option<fetch::Link> {
        self.pool.peers.link(peer)
    }

    fn ban(&self, peer: NodeId) {
        self.pool.peers.ban(peer);
    }
}

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// One request, and the head of its reply.
async fn exchange(
    link: Arc<Link>,
    request: Request,
    down: &Arc<Limiter>,
) -> Result<Result<Body, Refusal>, BoxError> {
    let (mut send, mut recv) = link.connection().open_bi().await?;
    send.write_all(&wire::encode_request(&request)).await?;
    send.finish()?;
    let mut size = [0];
    recv.read_exact(&mut size).await?;
    let mut header = vec![0; size[0].into()];
    recv.read_exact(&mut header).await?;
    Ok(match wire::decode_reply(&header)? {
        Reply::Refused(refusal) => Err(refusal),
        Reply::Found { size } => {
            Ok(Body { size, pieces: body::pieces(Quic { recv, link }, size, Arc::clone(down)) })
        }
    })
}

/// Keeps what may be on its way to us in proportion to what we let in.
async fn keep_windows(peers: Weak<Peers>, down: Weak<Limiter>, mut changes: watch::Receiver<()>) {
    while changes.changed().await.is_ok() {
        let (Some(peers), Some(down)) = (peers.upgrade(), down.upgrade()) else { return };
        for connection in peers.dialled() {
            connection.set_receive_window(settings::receive_window(down.rate()));
        }
    }
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
        if let Err(unwanted) = self.peers.lets_in(peer.id) {
            return Err(DialError::new(peer.id, unwanted));
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
        attempt.await.unwrap_or_else(|_| Err(DialError::new(peer.id, "the node is stopping")))
    }

    fn is_open(&self, peer: NodeId) -> bool {
        matches!(self.slots().get(&peer), Some(Slot::Open(link)) if link.connection().close_reason().is_none())
    }

    fn is_dialling(&self, peer: NodeId) -> bool {
        matches!(self.slots().get(&peer), Some(Slot::Dialling(_)))
    }

    async fn dial(self: Arc<Self>, peer: Peer, done: oneshot::Sender<Result<Arc<Link>, DialError>>) {
        let dialled = self.connect(&peer).await;
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

    /// A connection with `peer` on which requests may be sent.
    async fn connect(&self, peer: &Peer) -> Result<Arc<Link>, DialError> {
        let prover = self.prover.as_deref();
        let window = settings::receive_window(self.down.rate());
        let alpn = proof::alpn(prover);
        let connection = dial::dial(&self.endpoint, &self.identity, peer, alpn, window).await?;
        let addr = connection.remote_address().to_string();
        let failed = |cause: &dyn std::error::Error| DialError::new(addr, cause);
        if let Some(prover) = prover
            && let Err(error) = prover.introduce(&connection, peer.id).await
        {
            return Err(failed(&error));
        }
        let registered = self.peers.register(peer.id, Side::Dialled, connection);
        Ok(Arc::new(Link { registered: registered.map_err(|error| failed(&error))? }))
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

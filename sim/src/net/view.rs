//! The network as one node sees it: its directory, its dialler, and what it keeps.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use bytes::Bytes;
use futures::{StreamExt, future::BoxFuture, stream};
use rand::{RngExt, seq::SliceRandom};
use surf_node::{
    fetch::{Body, DialError, Dialer, Directory, DirectoryError, Key, Link, Peer, Route},
    source::{ChunkSource, Keeper, SourceError, Telling},
};
use surf_protocol::{
    Bitmap, Chunk, ChunkId, ModelId, NodeId,
    manifest::ChunkEntry,
    range,
    wire::{ENDLESS, Holdings, Refusal, Request, encode_holdings},
};
use tokio::time::{Instant, sleep_until};

use super::{
    Manner, Net,
    announcing::Announcer,
    carry::{Path, gone},
    service::{Line, Turn},
    shelf::{Kept, Shelf},
};
use crate::trace::Event;

/// Bytes of a chunk that travel together, at most and at least: enough pieces that transfers share
/// links smoothly, few enough that a run is quick.
const PIECE_MAX: usize = 64 * 1024;
const PIECE_MIN: usize = 8 * 1024;
const PIECES_PER_CHUNK: usize = 32;

/// A request, or the head of a reply, with its packet.
const MESSAGE: usize = 120;

/// One life of one node, and everything outside it that the code under test talks to.
#[derive(Debug)]
pub struct View {
    pub(super) net: Arc<Net>,
    pub(super) me: usize,
    pub(super) id: NodeId,
    pub(super) life: u64,
    pub(super) shelf: Arc<Shelf>,
    pub(super) announcer: Announcer,
}

impl View {
    /// Who this is.
    pub fn id(&self) -> NodeId {
        self.id
    }

    /// What it keeps.
    pub fn shelf(&self) -> &Arc<Shelf> {
        &self.shelf
    }

    fn event(&self, event: Event) {
        self.net.state().trace.event(event);
    }

    fn number(&self, peer: NodeId) -> Option<usize> {
        self.net.state().numbers.get(&peer).copied()
    }
}

impl Directory for View {
    fn announce(&self, model: ModelId, keys: Vec<Key>) -> BoxFuture<'_, Result<(), DirectoryError>> {
        self.announcer.set(model, keys);
        Box::pin(async { Ok(()) })
    }

    fn providers(&self, key: Key) -> BoxFuture<'_, Result<Vec<Peer>, DirectoryError>> {
        Box::pin(async move {
            sleep_until(self.net.look_up_ends()).await;
            let mut state = self.net.state();
            let mut found = state.records.providers(&key).to_vec();
            let now = Instant::now();
            // Providers are met before they are named.
            found.retain(|&node| {
                let there = state.sites[node].is_here() && self.net.cut(&state, self.me, node, now).is_none();
                node != self.me && there
            });
            found.shuffle(&mut state.dice);
            found.truncate(self.net.weather.providers_max);
            state.trace.event(Event::LooksUp { node: self.me, found: found.len() });
            Ok(found
                .into_iter()
                .map(|node| Peer { id: state.sites[node].id, addrs: vec![addr(node)] })
                .collect())
        })
    }
}

impl Net {
    /// When a look-up that starts now is over.
    pub(super) fn look_up_ends(&self) -> Instant {
        Instant::now() + self.weather.look_up.mul_f64(self.state().dice.random_range(0.5..1.5))
    }
}

fn addr(node: usize) -> SocketAddr {
    let [.., high, low] = node.to_be_bytes();
    SocketAddr::from(([10, 0, high, low], 1))
}

impl Dialer for View {
    fn ask(&self, peer: &Peer, request: Request) -> BoxFuture<'_, Result<Result<Body, Refusal>, DialError>> {
        let peer = peer.id;
        Box::pin(async move {
            let Some(whom) = self.number(peer) else { return Err(gone(usize::MAX)) };
            let there = self.net.connect(self.me, self.life, whom).await?;
            let manner = self.net.state().sites[whom].place.manner;
            match request {
                Request::Have(model) => self.holdings(there, model, manner).await,
                Request::Manifest(model) => {
                    self.net.message(there, MESSAGE).await?;
                    let encoded = self.net.model.encoded().clone();
                    let known = model == self.net.model.manifest().id();
                    if known {
                        Ok(Ok(self.body(there, encoded, Manner::Honest, None, None)))
                    } else {
                        self.refused(there).await
                    }
                }
                Request::Range { id, range } => {
                    self.net.message(there, MESSAGE).await?;
                    let at = self.net.model.manifest().position(id);
                    let at = at.filter(|&at| self.net.shelf(whom).contains(at));
                    let bytes = at.and_then(|at| range::encode(self.net.model.chunk(at).bytes(), range).ok());
                    match bytes {
                        Some(bytes) => Ok(Ok(self.body(there, bytes.into(), Manner::Honest, None, None))),
                        None => self.refused(there).await,
                    }
                }
                Request::Chunk(id) => match self.net.model.manifest().position(id) {
                    Some(at) => self.chunk(there, at, manner).await,
                    None => self.refused(there).await,
                },
            }
        })
    }

    fn link(&self, peer: NodeId) -> Option<Link> {
        let peer = self.number(peer)?;
        let state = self.net.state();
        let [a, b] = [self.me, peer].map(|node| state.sites[node].place.region);
        let rtt = self.net.weather.round_trips[a][b];
        state.connected.contains(&(self.me, peer)).then_some(Link { route: Route::Direct, rtt })
    }

    fn ban(&self, peer: NodeId) {
        let Some(whom) = self.number(peer) else { return };
        self.net.state().sites[whom].banned_by += 1;
        self.event(Event::Bans { node: self.me, whom });
    }
}

/// Answers.
impl View {
    async fn refused(&self, there: Path) -> Result<Result<Body, Refusal>, DialError> {
        self.net.message(there.back(), MESSAGE).await?;
        Ok(Err(Refusal::NotHere))
    }

    async fn chunk(
        &self,
        there: Path,
        at: usize,
        manner: Manner,
    ) -> Result<Result<Body, Refusal>, DialError> {
        let whom = there.to;
        let open = Open::new(&self.net, self.me, whom, at);
        self.event(Event::Asks { node: self.me, whom, chunk: at });
        self.net.message(there, MESSAGE).await?;
        if let Err(what) = self.net.state().sites[self.me].ledger.check_open(at) {
            self.net.breach(Some(self.me), what);
        }
        let shelf = self.net.shelf(whom);
        let turn = match manner {
            Manner::Pretends => Err(Refusal::Busy),
            _ if !shelf.contains(at) => Err(Refusal::NotHere),
            _ => self.net.turn(whom, self.me, at).await,
        };
        match turn {
            Ok(turn) => {
                shelf.touch(at);
                let bytes = self.net.model.chunk(at).bytes().clone();
                // Its head comes with the first piece.
                Ok(Ok(self.body(there, bytes, manner, Some(turn), Some(open))))
            }
            Err(refusal) => {
                self.net.message(there.back(), MESSAGE).await?;
                self.event(Event::Refused { node: self.me, by: whom, chunk: at });
                Ok(Err(refusal))
            }
        }
    }

    /// What the other side tells about what it has, until it is gone.
    async fn holdings(
        &self,
        there: Path,
        model: ModelId,
        manner: Manner,
    ) -> Result<Result<Body, Refusal>, DialError> {
        self.net.message(there, MESSAGE).await?;
        let back = there.back();
        if manner == Manner::Pretends {
            let all = Bitmap::from_fn(self.net.model.chunks(), |_| true);
            let frame = Bytes::from(encode_holdings(&Holdings::All(all)));
            self.net.message(back, MESSAGE + frame.len()).await?;
            return Ok(Ok(Body {
                size: ENDLESS,
                pieces: stream::iter([Ok(frame)]).chain(stream::pending()).boxed(),
            }));
        }
        let mut telling = Telling::new(self.net.shelf(there.to), model);
        let Some(first) = telling.next().await.ok().flatten() else { return self.refused(there).await };
        self.net.message(back, MESSAGE + first.len()).await?;
        let net = Arc::clone(&self.net);
        let rest = stream::unfold((telling, net), move |(mut telling, net)| async move {
            let frame = tokio::select! {
                biased;
                () = net.departure(back.from, back.from_life) => return Some((Err(gone(back.from)), (telling, net))),
                frame = telling.next() => frame.ok()??,
            };
            let sent = net.message(back, frame.len()).await.map(|()| frame);
            Some((sent, (telling, net)))
        });
        Ok(Ok(Body { size: ENDLESS, pieces: stream::iter([Ok(first)]).chain(rest).boxed() }))
    }

    fn body(
        &self,
        there: Path,
        bytes: Bytes,
        manner: Manner,
        turn: Option<(Turn, Line)>,
        open: Option<Open>,
    ) -> Body {
        let size = bytes.len();
        let bytes = if manner == Manner::Lies { bytes.iter().map(|byte| !byte).collect() } else { bytes };
        let piece = (size / PIECES_PER_CHUNK).clamp(PIECE_MIN, PIECE_MAX);
        let count = size.div_ceil(piece);
        let (net, path) = (Arc::clone(&self.net), there.back());
        let window = net.window(path, piece);
        let (turn, mut line) = turn.unzip();
        let turn = turn.map(|turn| Arc::new(Mutex::new(turn)));
        let pieces = stream::iter(0..count).map(move |at| {
            let net = Arc::clone(&net);
            let bytes = bytes.slice(at * piece..size.min((at + 1) * piece));
            let line = if at + 1 == count { line.take() } else { None };
            let turn = turn.clone();
            async move {
                match manner {
                    Manner::Stalls if count / 2 <= at => std::future::pending().await,
                    Manner::HangsUp if count / 2 <= at => Err(gone(path.from)),
                    _ => net.piece(path, bytes, turn, line).await,
                }
            }
        });
        let pieces = pieces.buffered(window).scan((0, open), move |(came, open), piece| {
            *came += piece.as_ref().map_or(0, Bytes::len);
            if *came == size
                && let Some(open) = open.take()
            {
                open.came(manner);
            }
            std::future::ready(Some(piece))
        });
        Body { size: if manner == Manner::Boasts { 1 << 60 } else { size as u64 }, pieces: pieces.boxed() }
    }
}

/// A request for a chunk that is under way.
struct Open {
    net: Arc<Net>,
    node: usize,
    from: usize,
    chunk: usize,
}

impl Open {
    fn new(net: &Arc<Net>, node: usize, from: usize, chunk: usize) -> Self {
        net.state().sites[node].ledger.opened(chunk);
        Self { net: Arc::clone(net), node, from, chunk }
    }

    /// All its bytes are there.
    fn came(self, manner: Manner) {
        let Self { node, from, chunk, .. } = self;
        let mut state = self.net.state();
        state.trace.event(Event::Came { node, from, chunk });
        let ledger = &mut state.sites[node].ledger;
        let fine = if manner == Manner::Lies { ledger.lied_to(from) } else { ledger.came(chunk) };
        drop(state);
        if let Err(what) = fine {
            self.net.breach(Some(node), what);
        }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.net.state().sites[self.node].ledger.closed(self.chunk);
    }
}

impl ChunkSource for View {
    fn get(&self, chunk: ChunkEntry) -> BoxFuture<'_, Result<Option<Chunk>, SourceError>> {
        let at = self.net.model.manifest().position(chunk.id).filter(|&at| self.shelf.contains(at));
        Box::pin(async move { Ok(at.map(|at| self.net.model.chunk(at).clone())) })
    }
}

impl Keeper for View {
    fn get_in_place(&self, chunk: ChunkEntry) -> BoxFuture<'_, Result<Option<Chunk>, SourceError>> {
        self.get(chunk)
    }

    fn keep(&self, chunk: Chunk) -> BoxFuture<'_, Result<(), SourceError>> {
        let kept = self.kept(&chunk);
        Box::pin(async move { kept })
    }

    fn contains(&self, id: ChunkId) -> bool {
        self.net.model.manifest().position(id).is_some_and(|at| self.shelf.contains(at))
    }
}

impl View {
    fn kept(&self, chunk: &Chunk) -> Result<(), SourceError> {
        let node = self.me;
        let at = self.net.model.manifest().position(chunk.id());
        // The bytes themselves are compared: a hash would only say again what the node has said.
        let Some(at) = at.filter(|&at| self.net.model.chunk(at).bytes() == chunk.bytes()) else {
            self.net.breach(
                Some(node),
                format!("keeps {} bytes that are no chunk of the model", chunk.bytes().len()),
            );
            return Err(SourceError::failed("shelf", "not a chunk of the model"));
        };
        match self.shelf.keep(at) {
            Kept::For(gone) => {
                let mut state = self.net.state();
                for chunk in gone {
                    state.sites[node].ledger.lost(chunk);
                    state.trace.event(Event::Evicted { node, chunk });
                }
                state.trace.event(Event::Kept { node, chunk: at });
                drop(state);
                let (bytes, most) = self.shelf.bytes();
                if most < bytes {
                    self.net.breach(Some(node), format!("keeps {bytes} bytes where {most} are allowed"));
                }
                Ok(())
            }
            Kept::Full => {
                let mut state = self.net.state();
                state.sites[node].ledger.lost(at);
                state.trace.event(Event::NotKept { node, chunk: at });
                Err(SourceError::failed("shelf", "no room"))
            }
        }
    }
}

//! Real endpoints over real swarms on loopback, whose data planes cannot be dialled.

use std::net::{Ipv4Addr, SocketAddr};

use futures::{StreamExt, future::BoxFuture};
use surf_protocol::{Bitmap, Chunk, ChunkId, ModelId};
use tokio::{
    sync::{mpsc, watch},
    time::{sleep, timeout},
};

use super::{super::Endpoint, *};
use crate::{
    config,
    fetch::{Dialer, Incoming, Peer, Route},
    identity::Identity,
    members::Members,
    source::{Library, Memory, SourceError},
    swarm,
};

const LOOPBACK: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);
const SOON: Duration = Duration::from_secs(20);

struct Node {
    endpoint: Endpoint,
    swarm: swarm::Handle,
    addrs: Vec<String>,
    /// With an address at which nobody answers.
    peer: Peer,
}

/// A node that has `library`, and takes what comes through tunnels to have come by `route`.
async fn node(library: impl Library + 'static, through: &[String], route: Option<Route>) -> Node {
    let identity = Identity::generate();
    let endpoint = Endpoint::bind(
        &identity,
        &config::Transfer { listen: LOOPBACK, limits: config::Limits::default() },
        &Members::default(),
    )
    .unwrap();
    endpoint.serve(Arc::new(library)).unwrap();
    let nowhere = std::net::UdpSocket::bind(LOOPBACK).unwrap().local_addr().unwrap();
    let config = config::Swarm {
        listen: vec![LOOPBACK],
        bootstrap: through.to_vec(),
        mdns: false,
        relay: config::Relay::default(),
    };
    let (swarm, listening) = swarm::start(&identity, &config, &Members::default(), nowhere).await.unwrap();
    let (sender, incoming) = mpsc::channel(8);
    let mut from_swarm = swarm.incoming().unwrap();
    assert!(swarm.incoming().is_none());
    tokio::spawn(async move {
        while let Some(incoming) = from_swarm.recv().await {
            let route = route.unwrap_or(incoming.route);
            sender.send(Incoming { route, ..incoming }).await.unwrap();
        }
    });
    endpoint.tunnel(Arc::new(swarm.clone()), incoming, false);
    let peer = Peer { id: identity.node_id(), addrs: vec![nowhere] };
    Node { endpoint, swarm, addrs: listening.addrs, peer }
}

/// A holder and one who asks it.
async fn two(library: impl Library + 'static, route: Option<Route>) -> (Node, Node) {
    let holder = node(library, &[], route).await;
    let asker = node(Memory::default(), &holder.addrs[..1], None).await;
    let met = async {
        while asker.swarm.connected() == 0 {
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(SOON, met).await.unwrap();
    (holder, asker)
}

fn memory(chunks: &[Chunk]) -> Memory {
    let memory = Memory::default();
    chunks.iter().for_each(|chunk| memory.put(chunk.clone()));
    memory
}

async fn get(asker: &Node, peer: &Peer, request: Request) -> Result<Vec<u8>, String> {
    let asked = timeout(SOON, asker.endpoint.dialer().ask(peer, request)).await.expect("an answer in time");
    let body = asked.map_err(|error| error.to_string())?.map_err(|refusal| refusal.to_string())?;
    let (mut bytes, mut pieces) = (Vec::new(), body.pieces);
    while let Some(piece) = timeout(SOON, pieces.next()).await.expect("a body in time") {
        bytes.extend_from_slice(&piece.map_err(|error| error.to_string())?);
    }
    Ok(bytes)
}

fn chunk(seed: usize, size: usize) -> Chunk {
    Chunk::of((0..size).map(|at| (at / 7 + at * seed) as u8).collect::<Vec<_>>().into())
}

#[tokio::test(flavor = "multi_thread")]
async fn chunks_come_where_nobody_can_dial() {
    let chunks: Vec<_> = (0..20).map(|seed| chunk(seed, 300_000 + seed)).collect();
    let (holder, asker) = two(memory(&chunks), None).await;
    let all = chunks.iter().map(|chunk| get(&asker, &holder.peer, Request::Chunk(chunk.id())));
    for (bytes, chunk) in futures::future::join_all(all).await.into_iter().zip(&chunks) {
        assert!(bytes.unwrap() == chunk.bytes()[..]);
    }
    let here = get(&asker, &holder.peer, Request::Chunk(ChunkId::of(b"x"))).await;
    assert_eq!(here, Err(Refusal::NotHere.to_string()));
    let range = Request::Range { id: chunks[0].id(), range: 9..u32::MAX };
    assert_eq!(get(&asker, &holder.peer, range).await, Err(Refusal::Malformed.to_string()));

    let link = asker.endpoint.dialer().link(holder.peer.id).unwrap();
    assert_eq!(link.route, Route::Local);
    let (ours, theirs) = (asker.endpoint.stats(), holder.endpoint.stats());
    assert_eq!((ours[0].id, ours[0].addr, ours[0].connections), (holder.peer.id, None, 0));
    assert!(20 * 300_000 < ours[0].received && 20 * 300_000 < theirs[0].sent);
    let measured = async {
        while asker.endpoint.stats()[0].rate_down == 0 {
            sleep(Duration::from_millis(100)).await;
        }
    };
    timeout(SOON, measured).await.expect("the rate is measured");

    holder.endpoint.dialer().ban(asker.peer.id);
    get(&asker, &holder.peer, Request::Chunk(chunks[0].id())).await.expect_err("a banned peer gets nothing");
}

#[tokio::test(flavor = "multi_thread")]
async fn chunks_do_not_pass_through_a_relay_unless_allowed() {
    let one = chunk(1, 1000);
    let (holder, asker) = two(memory(std::slice::from_ref(&one)), Some(Route::Relayed)).await;
    let refused = get(&asker, &holder.peer, Request::Chunk(one.id())).await;
    assert_eq!(refused, Err(Refusal::Relayed.to_string()));
    let range = Request::Range { id: one.id(), range: 0..10 };
    assert_eq!(get(&asker, &holder.peer, range).await, Err(Refusal::Relayed.to_string()));
    let manifest = get(&asker, &holder.peer, Request::Manifest(ModelId::of(b"x"))).await;
    assert_eq!(manifest, Err(Refusal::NotHere.to_string()), "it was looked for");
}

/// Has one chunk of a model of two.
#[derive(Debug, Default)]
struct Half {
    changes: watch::Sender<u64>,
}

impl Library for Half {
    fn manifest(&self, _: ModelId) -> BoxFuture<'_, Result<Option<Bytes>, SourceError>> {
        Box::pin(async { Ok(None) })
    }

    fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    fn have(&self, _: ModelId) -> BoxFuture<'_, Result<Option<Bitmap>, SourceError>> {
        Box::pin(async { Ok(Some(Bitmap::from_fn(2, |at| at == 1))) })
    }

    fn size(&self, _: ChunkId) -> Option<usize> {
        None
    }

    fn serve(&self, _: ChunkId) -> BoxFuture<'_, Result<Option<Bytes>, SourceError>> {
        Box::pin(async { Ok(None) })
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_held_is_told_until_nobody_listens() {
    let (holder, asker) = two(Half::default(), None).await;
    let asked = asker.endpoint.dialer().ask(&holder.peer, Request::Have(ModelId::of(b"m"))).await;
    let mut body = asked.unwrap().unwrap();
    assert_eq!(body.size, wire::ENDLESS);
    let first = timeout(SOON, body.pieces.next()).await.unwrap().unwrap().unwrap();
    assert_eq!(first[4..], [0, 2, 1, 0b10]);
    timeout(SOON, body.pieces.next()).await.expect("something comes every few seconds").unwrap().unwrap();
    drop(body);
    let ended = async {
        while holder.endpoint.peers.link(asker.peer.id).is_some() {
            sleep(Duration::from_millis(100)).await;
        }
    };
    timeout(3 * SOON, ended).await.expect("the stream ends, and the tunnel is forgotten");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_nobody_knows_is_an_error_soon() {
    let (_holder, asker) = two(Half::default(), None).await;
    let stranger = Peer { id: Identity::generate().node_id(), addrs: Vec::new() };
    let error = get(&asker, &stranger, Request::Have(ModelId::of(b"m"))).await.unwrap_err();
    assert!(error.contains(&stranger.id.to_string()), "{error}");
}

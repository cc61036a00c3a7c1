//! Real endpoints on loopback, and some that misbehave.

mod limits;
mod private;

use std::{net::SocketAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use futures::{StreamExt, future::BoxFuture};
use surf_protocol::{
    Bitmap, Chunk, ChunkId, ModelId, VerifiedRange,
    limits::CHUNK_SIZE_MAX,
    wire::{self, Refusal, Reply, Request},
};
use tokio::{
    sync::watch,
    time::{Instant, timeout},
};

use super::*;
use crate::{
    fetch::{Body, DialError, Dialer, Peer},
    source::{Memory, SourceError},
};

const LOOPBACK: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 0);
const SOON: Duration = Duration::from_secs(20);

fn endpoint(identity: &Identity) -> Endpoint {
    member(identity, &Members::default())
}

fn member(identity: &Identity, members: &Members) -> Endpoint {
    let config = config::Transfer { listen: LOOPBACK, limits: config::Limits::default() };
    Endpoint::bind(identity, &config, members).unwrap()
}

fn client() -> Endpoint {
    endpoint(&Identity::generate())
}

/// A holder of chunks, and how it is dialled.
fn server(chunks: &[Chunk]) -> (Endpoint, Peer) {
    let memory = Memory::default();
    chunks.iter().for_each(|chunk| memory.put(chunk.clone()));
    serving(Arc::new(memory))
}

fn serving(library: Arc<dyn Library>) -> (Endpoint, Peer) {
    let identity = Identity::generate();
    let endpoint = endpoint(&identity);
    endpoint.serve(library).unwrap();
    let peer = Peer { id: identity.node_id(), addrs: vec![endpoint.local_addr()] };
    (endpoint, peer)
}

fn chunk(seed: usize, size: usize) -> Chunk {
    Chunk::of((0..size).map(|at| (at / 7 + at * seed) as u8).collect::<Vec<_>>().into())
}

async fn read(body: Body) -> Result<Vec<u8>, DialError> {
    let mut bytes = Vec::new();
    let mut pieces = body.pieces;
    while let Some(piece) = pieces.next().await {
        bytes.extend_from_slice(&piece?);
    }
    Ok(bytes)
}

async fn get(client: &Endpoint, peer: &Peer, request: Request) -> Result<Vec<u8>, String> {
    let asked = timeout(SOON, client.dialer().ask(peer, request)).await.expect("an answer in time");
    let body = asked.map_err(|error| error.to_string())?.map_err(|refusal| refusal.to_string())?;
    timeout(SOON, read(body)).await.expect("a body in time").map_err(|error| error.to_string())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_chunk_a_range_and_what_is_not_here() {
    let whole = chunk(3, CHUNK_SIZE_MAX);
    let (server, peer) = server(&[whole.clone(), chunk(1, 0)]);
    let client = client();
    let bytes = get(&client, &peer, Request::Chunk(whole.id())).await.unwrap();
    assert_eq!(Chunk::verify(whole.id(), bytes.into()).unwrap(), whole);
    assert_eq!(get(&client, &peer, Request::Chunk(chunk(1, 0).id())).await.unwrap(), b"");

    let range = 5_000_000..5_100_000;
    let asked = Request::Range { id: whole.id(), range: range.clone() };
    let proof = get(&client, &peer, asked).await.unwrap();
    let proven = VerifiedRange::verify(whole.id(), CHUNK_SIZE_MAX as u32, range.clone(), &proof).unwrap();
    assert_eq!(proven, VerifiedRange::of(&whole, range).unwrap());

    let impossible = Request::Range { id: whole.id(), range: 9..u32::MAX };
    for (request, refusal) in [
        (Request::Chunk(ChunkId::of(b"x")), Refusal::NotHere),
        (Request::Manifest(ModelId::of(b"x")), Refusal::NotHere),
        (Request::Have(ModelId::of(b"x")), Refusal::NotHere),
        (impossible, Refusal::Malformed),
    ] {
        assert_eq!(get(&client, &peer, request).await, Err(refusal.to_string()));
    }
    let (ours, theirs) = (client.stats(), server.stats());
    assert_eq!((ours.len(), theirs.len()), (1, 1));
    assert_eq!((ours[0].id, ours[0].connections), (peer.id, 1), "all on one connection");
    assert!(CHUNK_SIZE_MAX as u64 <= ours[0].received && ours[0].sent < ours[0].received / 10);
    assert!(CHUNK_SIZE_MAX as u64 <= theirs[0].sent && theirs[0].rtt.is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_can_be_impersonated() {
    let (_server, peer) = server(&[chunk(1, 10)]);
    let wrong = Peer { id: Identity::generate().node_id(), ..peer.clone() };
    let client = client();
    let error = get(&client, &wrong, Request::Chunk(chunk(1, 10).id())).await.unwrap_err();
    assert!(error.contains(&peer.addrs[0].to_string()), "{error}");
    get(&client, &peer, Request::Chunk(chunk(1, 10).id())).await.expect("the right one still answers");
}

#[tokio::test(flavor = "multi_thread")]
async fn hundreds_of_requests_at_once_share_one_connection() {
    let chunks: Vec<_> = (0..200).map(|seed| chunk(seed, 100_000 + seed)).collect();
    let (server, peer) = server(&chunks);
    let client = client();
    let all = chunks.iter().map(|chunk| get(&client, &peer, Request::Chunk(chunk.id())));
    for (bytes, chunk) in futures::future::join_all(all).await.into_iter().zip(&chunks) {
        assert!(bytes.unwrap() == chunk.bytes()[..]);
    }
    assert_eq!(server.stats()[0].connections, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_address_costs_little_and_holds_up_nobody_else() {
    let (_server, peer) = server(&[chunk(1, 10)]);
    let dead = std::net::UdpSocket::bind(LOOPBACK).unwrap();
    let dead_addr = dead.local_addr().unwrap();
    let slow = Peer { id: peer.id, addrs: vec![dead_addr, peer.addrs[0]] };
    let nobody = Peer { id: Identity::generate().node_id(), addrs: vec![dead_addr] };
    let client = client();
    let begin = Instant::now();
    let request = Request::Chunk(chunk(1, 10).id());
    let (hopeless, _) = tokio::join!(get(&client, &nobody, request.clone()), async {
        get(&client, &slow, request.clone()).await.unwrap();
        assert!(begin.elapsed() < Duration::from_secs(2), "{:?}", begin.elapsed());
    });
    assert!(hopeless.unwrap_err().contains("no answer"));
    assert!(begin.elapsed() < Duration::from_secs(8));
    let nowhere = Peer { id: nobody.id, addrs: Vec::new() };
    assert!(get(&client, &nowhere, request).await.unwrap_err().contains("no address"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_is_not_read_is_held_back_and_the_rest_goes_on() {
    let large = chunk(1, CHUNK_SIZE_MAX);
    let (small, first) = (chunk(2, 1000), chunk(3, 100_000));
    let (server, peer) = server(&[large.clone(), small.clone(), first.clone()]);
    let client = client();
    // Who has taken something may have several at a time.
    get(&client, &peer, Request::Chunk(first.id())).await.unwrap();
    let dialer = client.dialer();
    let mut unread = Vec::new();
    for _ in 0..4 {
        unread.push(dialer.ask(&peer, Request::Chunk(large.id())).await.unwrap().unwrap());
    }
    let mut held = 0;
    // Until no more comes.
    loop {
        tokio::time::sleep(Duration::from_millis(100)).await;
        match std::mem::replace(&mut held, client.stats()[0].received) {
            before if before == held && 0 < held => break,
            _ => (),
        }
    }
    assert!(held < 34 << 20, "{held} bytes came unasked");
    assert_eq!(get(&client, &peer, Request::Chunk(small.id())).await.unwrap(), small.bytes()[..]);
    for body in unread.drain(..3) {
        assert!(read(body).await.unwrap() == large.bytes()[..]);
    }
    drop(unread);
    assert_eq!(get(&client, &peer, Request::Chunk(small.id())).await.unwrap(), small.bytes()[..]);
    assert_eq!(server.stats()[0].connections, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_never_reads_is_cut_off() {
    let large = chunk(1, CHUNK_SIZE_MAX);
    let (_server, peer) = server(std::slice::from_ref(&large));
    let client = client();
    let dialer = client.dialer();
    let mut unread = Vec::new();
    for _ in 0..8 {
        unread.push(dialer.ask(&peer, Request::Chunk(large.id())).await.unwrap().unwrap());
    }
    // All that this peer may have outstanding is taken, so this waits until the others are cut off.
    let asked = timeout(SOON, dialer.ask(&peer, Request::Range { id: large.id(), range: 0..10 })).await;
    asked.expect("in time").unwrap().unwrap();
    // Those cut off first make room for the rest, which may live a little longer.
    let mut cut_off = 0;
    for body in unread {
        cut_off += usize::from(read(body).await.is_err());
    }
    assert!(0 < cut_off);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_banned_peer_is_neither_asked_nor_answered() {
    let held = chunk(1, 10);
    let (good, good_peer) = server(std::slice::from_ref(&held));
    let bad_identity = Identity::generate();
    let bad = endpoint(&bad_identity);
    let memory = Memory::default();
    memory.put(held.clone());
    bad.serve(Arc::new(memory)).unwrap();
    let bad_peer = Peer { id: bad_identity.node_id(), addrs: vec![bad.local_addr()] };
    let request = Request::Chunk(held.id());
    get(&bad, &good_peer, request.clone()).await.unwrap();
    get(&good, &bad_peer, request.clone()).await.unwrap();

    good.dialer().ban(bad_peer.id);
    assert!(get(&good, &bad_peer, request.clone()).await.unwrap_err().contains("banned"));
    assert!(get(&bad, &good_peer, request.clone()).await.is_err());
    get(&client(), &good_peer, request).await.expect("others are served");
}

/// A server that reads a request, and then does what `misbehave` says.
fn rogue<F>(
    misbehave: impl Fn(quinn::SendStream, quinn::Connection) -> F + Copy + Send + 'static,
) -> (quinn::Endpoint, Peer)
where
    F: Future<Output = ()> + Send + 'static,
{
    let identity = Identity::generate();
    let tls = identity.server_tls().unwrap();
    let config = quinn::ServerConfig::with_crypto(Arc::new(tls));
    let endpoint = quinn::Endpoint::server(config, LOOPBACK).unwrap();
    let peer = Peer { id: identity.node_id(), addrs: vec![endpoint.local_addr().unwrap()] };
    let accepting = endpoint.clone();
    tokio::spawn(async move {
        while let Some(incoming) = accepting.accept().await {
            let connection = incoming.await.unwrap();
            while let Ok((send, mut recv)) = connection.accept_bi().await {
                let connection = connection.clone();
                tokio::spawn(async move {
                    recv.read_to_end(1000).await.unwrap();
                    misbehave(send, connection).await;
                });
            }
        }
    });
    (endpoint, peer)
}

fn found(size: u64) -> Vec<u8> {
    wire::encode_reply(&Reply::Found { size })
}

#[tokio::test(flavor = "multi_thread")]
async fn misbehaving_servers_are_errors_not_hangs() {
    let client = client();
    let request = Request::Chunk(ChunkId::of(b"x"));
    let (_a, hangs_up) = rogue(|mut send, connection| async move {
        send.write_all(&[&found(1000)[..], &[0; 500]].concat()).await.unwrap();
        tokio::time::sleep(Duration::from_millis(50)).await;
        connection.close(0u32.into(), b"bye");
    });
    let (_b, ends_early) = rogue(|mut send, _| async move {
        send.write_all(&[&found(1000)[..], &[0; 500]].concat()).await.unwrap();
    });
    let (_c, resets) = rogue(|mut send, _| async move {
        send.write_all(&found(1000)).await.unwrap();
        send.reset(7u32.into()).unwrap();
    });
    let (_d, babbles) = rogue(|mut send, _| async move { send.write_all(&[255; 300]).await.unwrap() });
    let (_e, says_nothing) = rogue(|_, _| async {});
    for (peer, what) in [(hangs_up, "hangs up"), (ends_early, "ends early"), (resets, "resets")] {
        assert!(get(&client, &peer, request.clone()).await.is_err(), "{what}");
    }
    for (peer, what) in [(babbles, "babbles"), (says_nothing, "says nothing")] {
        assert!(get(&client, &peer, request.clone()).await.is_err(), "{what}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_claim_of_2_to_the_60_bytes_costs_nothing_and_a_longer_body_is_cut() {
    let client = client();
    let request = Request::Manifest(ModelId::of(b"x"));
    let (_a, boasts) = rogue(|mut send, _| async move {
        send.write_all(&found(1 << 60)).await.unwrap();
        // Until the asker has had enough.
        while send.write_all(&[0; 100_000]).await.is_ok() {}
    });
    let body = client.dialer().ask(&boasts, request.clone()).await.unwrap().unwrap();
    assert_eq!(body.size, 1 << 60);
    drop(body);
    let (_b, long) = rogue(|mut send, _| async move {
        send.write_all(&[&found(10)[..], &[7; 500]].concat()).await.unwrap();
    });
    assert_eq!(get(&client, &long, request).await.unwrap(), [7; 10]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_falls_silent_can_be_left() {
    let client = client();
    let (_a, stalls) = rogue(|mut send, _| async move {
        send.write_all(&[&found(1000)[..], &[0; 500]].concat()).await.unwrap();
        futures::future::pending().await
    });
    let body = client.dialer().ask(&stalls, Request::Chunk(ChunkId::of(b"x"))).await.unwrap().unwrap();
    let mut pieces = body.pieces;
    assert_eq!(pieces.next().await.unwrap().unwrap().len(), 500);
    assert!(timeout(Duration::from_millis(300), pieces.next()).await.is_err(), "there is no more");
    drop(pieces);
}

/// The first that `peer` tells about what it has of a model of ten chunks.
async fn told(client: &Endpoint, peer: &Peer, model: ModelId) -> Bitmap {
    let mut body = client.dialer().ask(peer, Request::Have(model)).await.unwrap().unwrap();
    assert_eq!(body.size, wire::ENDLESS);
    let frame = timeout(SOON, body.pieces.next()).await.unwrap().unwrap().unwrap();
    wire::decode_holdings(&frame[4..]).unwrap().after(&Bitmap::none(10)).unwrap()
}

/// A library whose disk hangs, to see whether others notice.
#[derive(Debug)]
struct Hangs;

impl Library for Hangs {
    fn manifest(&self, _: ModelId) -> BoxFuture<'_, Result<Option<Bytes>, SourceError>> {
        Box::pin(async { Err(SourceError::failed("disk", "broken")) })
    }
    fn changes(&self) -> watch::Receiver<u64> {
        watch::Sender::new(0).subscribe()
    }
    fn have(&self, _: ModelId) -> BoxFuture<'_, Result<Option<Bitmap>, SourceError>> {
        Box::pin(async { Ok(Some(Bitmap::none(10))) })
    }
    fn size(&self, _: ChunkId) -> Option<usize> {
        Some(CHUNK_SIZE_MAX)
    }
    fn serve(&self, _: ChunkId) -> BoxFuture<'_, Result<Option<Bytes>, SourceError>> {
        Box::pin(futures::future::pending())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn hanging_requests_do_not_stop_others_and_too_many_are_told_to_wait() {
    let (_server, peer) = serving(Arc::new(Hangs));
    let client = client();
    // Each takes 8 MiB of 64 MiB; the rest wait, and one too many is refused at once.
    let dialer = client.dialer();
    let mut asked: futures::stream::FuturesUnordered<_> =
        (0..60).map(|_| dialer.ask(&peer, Request::Chunk(ChunkId::of(b"x")))).collect();
    let refused = timeout(SOON, asked.next()).await.expect("somebody is refused").unwrap();
    assert_eq!(refused.unwrap().unwrap_err(), Refusal::Busy);
    drop(asked);
    let model = ModelId::of(b"x");
    let other = super::tests::client();
    assert_eq!(told(&other, &peer, model).await, Bitmap::none(10));
    assert_eq!(get(&other, &peer, Request::Manifest(model)).await, Err(Refusal::Failed.to_string()));
    told(&client, &peer, model).await;
}

#[tokio::test]
async fn a_port_in_use_is_named() {
    let taken = std::net::UdpSocket::bind(LOOPBACK).unwrap();
    let listen = taken.local_addr().unwrap();
    let config = config::Transfer { listen, limits: config::Limits::default() };
    let error = Endpoint::bind(&Identity::generate(), &config, &Members::default()).unwrap_err();
    assert!(error.to_string().contains(&listen.to_string()), "{error}");
}

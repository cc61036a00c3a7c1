//! Turns and limits between real endpoints.

use super::*;

const MIB: usize = 1 << 20;

/// Asks for `chunk`, and reads the body to its end. Returns the bytes and how long it took.
async fn timed(client: &Endpoint, peer: &Peer, chunk: &Chunk) -> (Vec<u8>, f64) {
    let begin = Instant::now();
    let bytes = get(client, peer, Request::Chunk(chunk.id())).await.unwrap();
    (bytes, begin.elapsed().as_secs_f64())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_limit_holds_for_all_peers_together_and_can_be_raised() {
    let chunks = [chunk(1, 4 * MIB), chunk(2, 4 * MIB), chunk(3, 4 * MIB)];
    let (server, peer) = server(&chunks);
    server.limits().up.set(Some(4 * MIB as u64));
    let (first, second) = (client(), client());
    let ((a, took_a), (b, took_b)) =
        tokio::join!(timed(&first, &peer, &chunks[0]), timed(&second, &peer, &chunks[1]));
    assert!(a == chunks[0].bytes()[..] && b == chunks[1].bytes()[..]);
    // 8 MiB at 4 MiB/s, less a burst; how much longer it takes is the machine's business.
    let took = took_a.max(took_b);
    assert!((1.7..8.).contains(&took), "{took} s");
    assert!(took_a.min(took_b) > 0.6 * took, "{took_a} s and {took_b} s are not the same");

    // What would take minutes is over soon when the limit goes.
    server.limits().up.set(Some(32 * 1024));
    let before = first.stats()[0].received;
    let first = Arc::new(first);
    let asking = Arc::clone(&first);
    let slow = tokio::spawn(async move { timed(&asking, &peer, &chunks[2]).await });
    while first.stats()[0].received <= before {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(!slow.is_finished());
    server.limits().up.set(None);
    timeout(SOON, slow).await.expect("in time").unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_download_limit_holds_the_peer_back_and_is_no_stall() {
    let large = chunk(1, 8 * MIB);
    let (server, peer) = server(std::slice::from_ref(&large));
    let client = client();
    client.limits().down.set(Some(16 * 1024));
    let mut body = client.dialer().ask(&peer, Request::Chunk(large.id())).await.unwrap().unwrap();
    let mut got = Vec::new();
    let begin = Instant::now();
    while begin.elapsed() < Duration::from_secs(2) {
        // Each piece may wait for seconds, and says so.
        let piece = timeout(Duration::from_secs(2), body.pieces.next()).await.expect("a sign of life");
        got.extend_from_slice(&piece.unwrap().unwrap());
    }
    assert!(got.len() <= 64 * 1024 + 3 * 16 * 1024, "{} bytes passed", got.len());
    let sent = server.stats()[0].sent;
    assert!(sent < MIB as u64, "the peer sent {sent} bytes that nobody may take");

    client.limits().down.set(Some(4 * MIB as u64));
    let begin = Instant::now();
    while got.len() < large.bytes().len() {
        let piece = timeout(SOON, body.pieces.next()).await.expect("in time");
        got.extend_from_slice(&piece.unwrap().unwrap());
    }
    assert!(got == large.bytes()[..]);
    let took = begin.elapsed().as_secs_f64();
    assert!((1.6..8.).contains(&took), "{took} s");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_limit_holds_while_peers_come_and_go() {
    let chunks: Vec<_> = (0..8).map(|seed| chunk(seed, MIB)).collect();
    let (server, peer) = server(&chunks);
    server.limits().up.set(Some(2 * MIB as u64));
    let begin = Instant::now();
    let leaving = chunks.iter().map(|chunk| {
        let (peer, client) = (peer.clone(), client());
        async move {
            let mut got = 0;
            while begin.elapsed() < Duration::from_secs(2) {
                let asked = client.dialer().ask(&peer, Request::Chunk(chunk.id())).await.unwrap();
                let Ok(mut body) = asked else { continue };
                // Leaves after a piece or a few.
                for _ in 0..3 {
                    if let Some(Ok(piece)) = body.pieces.next().await {
                        got += piece.len();
                    }
                }
            }
            got
        }
    });
    let got: usize = timeout(SOON, futures::future::join_all(leaving)).await.unwrap().iter().sum();
    let allowed = begin.elapsed().as_secs_f64() * 2. * MIB as f64 + 0.2 * MIB as f64;
    assert!((got as f64) < 1.1 * allowed, "{got} bytes where {allowed} are allowed");
    // Until it is known that the others left, this one may be sent to them.
    let last = client();
    let asked = async {
        while get(&last, &peer, Request::Chunk(chunks[0].id())).await.is_err() {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    timeout(SOON, asked).await.expect("served in the end");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_chunk_under_way_to_one_is_refused_to_another_while_all_are_busy() {
    let chunks: Vec<_> = (0..6).map(|seed| chunk(seed, CHUNK_SIZE_MAX)).collect();
    let (server, peer) = server(&chunks);
    let (first, second) = (client(), client());
    // Who has taken something may have several at a time.
    for client in [&first, &second] {
        get(client, &peer, Request::Chunk(chunks[5].id())).await.unwrap();
    }
    server.limits().up.set(Some(512 * 1024));
    let mut bodies = Vec::new();
    for chunk in &chunks[..4] {
        let asked = first.dialer().ask(&peer, Request::Chunk(chunk.id())).await.unwrap();
        bodies.push(asked.expect("a free slot"));
    }
    let ask = |chunk: &Chunk| get(&second, &peer, Request::Chunk(chunk.id()));
    assert_eq!(ask(&chunks[0]).await, Err(Refusal::Elsewhere.to_string()));
    // A few bytes of it need no turn.
    get(&second, &peer, Request::Range { id: chunks[0].id(), range: 0..10 }).await.unwrap();
    // What nobody has been given waits for its turn, and those who leave make room.
    let mut waits = Box::pin(ask(&chunks[4]));
    assert!(timeout(Duration::from_millis(300), &mut waits).await.is_err());
    drop(bodies);
    server.limits().up.set(None);
    waits.await.unwrap();
    get(&second, &peer, Request::Chunk(chunks[0].id())).await.expect("the first did not get it");
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_end_somewhere_and_some_are_left_for_us() {
    let held = chunk(1, 10);
    let request = Request::Chunk(held.id());
    let memory = Arc::new(Memory::default());
    memory.put(held.clone());
    let identity = Identity::generate();
    let limits = config::Limits { connections: config::Limits::CONNECTIONS_MIN, ..config::Limits::default() };
    let small =
        Endpoint::bind(&identity, &config::Transfer { listen: LOOPBACK, limits }, &Members::default())
            .unwrap();
    small.serve(memory).unwrap();
    let small_peer = Peer { id: identity.node_id(), addrs: vec![small.local_addr()] };
    let clients: Vec<_> = std::iter::repeat_with(client).take(10).collect();
    let mut served = 0;
    for client in &clients {
        served += usize::from(get(client, &small_peer, request.clone()).await.is_ok());
        let open: usize = small.stats().iter().map(|peer| peer.connections).sum();
        assert!(open <= 7, "three quarters of eight, and one that makes room: {open}");
    }
    assert!(6 <= served, "{served}");
    let (_other, other_peer) = server(std::slice::from_ref(&held));
    get(&small, &other_peer, request.clone()).await.expect("our own connections have room");
    // Nobody leaves; one that is of no use makes room.
    let asked = async {
        while get(&client(), &small_peer, request.clone()).await.is_err() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    timeout(SOON, asked).await.expect("somebody makes room");
    drop(clients);
}

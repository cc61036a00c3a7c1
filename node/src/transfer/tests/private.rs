//! Private swarms and lists of peers: who is answered, and what everybody else gets.

use surf_protocol::wire::{ALPN, ALPN_PRIVATE};

use super::*;
use crate::members::{Access, SwarmKey};

fn with(key: Option<&SwarmKey>, access: Access) -> Members {
    Members { key: key.cloned(), access }
}

/// A holder of one chunk.
fn holder(members: &Members) -> (Endpoint, Peer, Request) {
    let held = chunk(1, 100_000);
    let memory = Memory::default();
    memory.put(held.clone());
    let identity = Identity::generate();
    let endpoint = member(&identity, members);
    endpoint.serve(Arc::new(memory)).unwrap();
    let peer = Peer { id: identity.node_id(), addrs: vec![endpoint.local_addr()] };
    (endpoint, peer, Request::Chunk(held.id()))
}

#[tokio::test(flavor = "multi_thread")]
async fn members_are_served_and_nobody_else() {
    let keys = [Some(SwarmKey::generate()), Some(SwarmKey::generate()), None];
    for holding in &keys {
        let (holder, peer, request) = holder(&with(holding.as_ref(), Access::default()));
        for asking in &keys {
            let asker = member(&Identity::generate(), &with(asking.as_ref(), Access::default()));
            let got = get(&asker, &peer, request.clone()).await;
            assert_eq!(got.is_ok(), asking == holding, "{asking:?} at {holding:?}: {:?}", got.err());
            if holding.is_some() && asking.is_some() && asking != holding {
                assert!(got.unwrap_err().contains("another swarm key"));
            }
        }
        assert_eq!(holder.stats().len(), 1, "only the one that was served counts as a peer");
    }
}

/// Everything that a stranger gets after the handshake, on streams it opens and streams it is sent.
async fn stranger(peer: &Peer, alpn: &[u8], sends: &[&[u8]]) -> (usize, quinn::ConnectionError) {
    let identity = Identity::generate();
    let endpoint = quinn::Endpoint::client(LOOPBACK).unwrap();
    let tls = identity.client_tls_for(peer.id, alpn).unwrap();
    let config = quinn::ClientConfig::new(Arc::new(tls));
    let connecting = endpoint.connect_with(config, peer.addrs[0], "surf").unwrap();
    let connection = match connecting.await {
        Ok(connection) => connection,
        Err(error) => return (0, error),
    };
    let mut streams = Vec::new();
    for bytes in sends {
        let (mut send, recv) = connection.open_bi().await.unwrap();
        send.write_all(bytes).await.unwrap();
        send.finish().unwrap();
        streams.push((send, recv));
    }
    let error = timeout(SOON, connection.closed()).await.expect("strangers are hung up on");
    let mut received = 0;
    for (_, recv) in &mut streams {
        while let Ok(Some(piece)) = recv.read_chunk(usize::MAX, false).await {
            received += piece.bytes.len();
        }
    }
    (received, error)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_outsider_gets_no_byte_whatever_it_sends() {
    let key = SwarmKey::generate();
    let (_holder, peer, request) = holder(&with(Some(&key), Access::default()));
    let asked = wire::encode_request(&request);
    let tries: [&[&[u8]]; 5] = [
        &[],                               // says nothing: hung up on after a while
        &[&[]],                            // a proof of no bytes
        &[&[7; 32], &asked],               // a wrong one, and a request behind it
        &[&[7; 33]],                       // too long a one
        &[&asked, &asked, &asked, &asked], // no proof at all
    ];
    for sends in tries {
        let (received, error) = stranger(&peer, ALPN_PRIVATE, sends).await;
        let quinn::ConnectionError::ApplicationClosed(closed) = error else { panic!("{error}") };
        assert_eq!((received, closed.error_code, closed.reason.len()), (0, code::NOT_LET_IN, 0));
    }
    let (received, error) = stranger(&peer, ALPN, &[&asked]).await;
    assert!(received == 0 && matches!(error, quinn::ConnectionError::ConnectionClosed(_)), "{error}");
    let friend = member(&Identity::generate(), &with(Some(&key), Access::default()));
    get(&friend, &peer, request).await.expect("members are served all the while");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proof_opens_no_second_connection_and_an_echo_proves_nothing() {
    let key = SwarmKey::generate();
    // A holder without the key, which sends back what it gets.
    let identity = Identity::generate();
    let tls = identity.server_tls_for(ALPN_PRIVATE).unwrap();
    let config = quinn::ServerConfig::with_crypto(Arc::new(tls));
    let echo = quinn::Endpoint::server(config, LOOPBACK).unwrap();
    let peer = Peer { id: identity.node_id(), addrs: vec![echo.local_addr().unwrap()] };
    let (caught, mut proofs) = tokio::sync::mpsc::channel(1);
    tokio::spawn(async move {
        while let Some(incoming) = echo.accept().await {
            let connection = incoming.await.unwrap();
            let (mut send, mut recv) = connection.accept_bi().await.unwrap();
            let proof = recv.read_to_end(1000).await.unwrap();
            send.write_all(&proof).await.unwrap();
            send.finish().unwrap();
            caught.send(proof).await.unwrap();
            connection.closed().await;
        }
    });
    let asker = member(&Identity::generate(), &with(Some(&key), Access::default()));
    let error = get(&asker, &peer, Request::Chunk(ChunkId::of(b"x"))).await.unwrap_err();
    assert!(error.contains("does not know the swarm key"), "{error}");

    let proof = proofs.recv().await.unwrap();
    assert_eq!(proof.len(), 32, "the proof, and no request after it");
    let (_holder, peer, _) = holder(&with(Some(&key), Access::default()));
    assert_eq!(stranger(&peer, ALPN_PRIVATE, &[&proof]).await.0, 0, "a proof is for one connection");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_not_let_in_is_neither_asked_nor_answered() {
    let [friend, denied, unknown] = [(); 3].map(|()| Identity::generate());
    let access =
        Access { allow: [&friend, &denied].map(Identity::node_id).into(), deny: [denied.node_id()].into() };
    for key in [None, Some(SwarmKey::generate())] {
        let (holder, peer, request) = holder(&with(key.as_ref(), access.clone()));
        for (identity, let_in) in [(&friend, true), (&denied, false), (&unknown, false)] {
            let asker = member(identity, &with(key.as_ref(), Access::default()));
            let got = get(&asker, &peer, request.clone()).await;
            assert_eq!(got.is_ok(), let_in, "{:?}", got.err());
            asker.serve(Arc::new(Memory::default())).unwrap();
            let other = Peer { id: identity.node_id(), addrs: vec![asker.local_addr()] };
            let answer = get(&holder, &other, request.clone()).await.unwrap_err();
            let asked = answer == Refusal::NotHere.to_string();
            assert!(asked == let_in && (asked || answer.contains("do not let it in")), "{answer}");
            assert_eq!(holder.lets_in(identity.node_id()), let_in);
        }
    }
    let (holder, peer, request) = holder(&Members::default());
    get(&client(), &peer, request).await.unwrap();
    assert!(holder.lets_in(unknown.node_id()));
    holder.dialer().ban(unknown.node_id());
    assert!(!holder.lets_in(unknown.node_id()), "the banned neither");
}

#[tokio::test(flavor = "multi_thread")]
async fn strangers_do_not_take_the_places_of_members() {
    let key = SwarmKey::generate();
    let (_holder, peer, request) = holder(&with(Some(&key), Access::default()));
    let identity = Identity::generate();
    let silent = quinn::Endpoint::client(LOOPBACK).unwrap();
    let crowd = (0..super::super::limits::UNPROVEN_MAX / 2 + 20).map(|_| {
        let tls = identity.client_tls_for(peer.id, ALPN_PRIVATE).unwrap();
        silent.connect_with(quinn::ClientConfig::new(Arc::new(tls)), peer.addrs[0], "surf").unwrap()
    });
    let crowd = futures::future::join_all(crowd).await;
    assert!(crowd.iter().all(Result::is_ok));
    let friend = member(&Identity::generate(), &with(Some(&key), Access::default()));
    get(&friend, &peer, request).await.expect("there is room for a member");
    let hung_up = futures::future::join_all(crowd.iter().flatten().map(|stranger| stranger.closed()));
    timeout(SOON, hung_up).await.expect("the silent are hung up on");
}

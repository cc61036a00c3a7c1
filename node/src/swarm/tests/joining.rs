//! Joining, and coming back, whatever was at an address before; and two processes with one identity.

use super::*;

fn free_port() -> SocketAddr {
    std::net::UdpSocket::bind(LOOPBACK).unwrap().local_addr().unwrap()
}

/// Waits until `is_so`.
async fn until(what: &str, mut is_so: impl AsyncFnMut() -> bool) {
    let waiting = async {
        while !is_so().await {
            sleep(Duration::from_millis(50)).await;
        }
    };
    timeout(SOON, waiting).await.unwrap_or_else(|_| panic!("{what}"));
}

/// A node at `addr`, as soon as whoever was there has gone.
async fn node_at(identity: &Identity, addr: SocketAddr, bootstrap: &[String]) -> Node {
    let data = SocketAddr::from(([127, 0, 0, 1], 1111));
    let starting = async {
        loop {
            let started = start(identity, &settings(addr, bootstrap), &Members::default(), data).await;
            if let Ok((handle, listening)) = started {
                return Node { id: identity.node_id(), data, handle, addrs: listening.addrs };
            }
            sleep(Duration::from_millis(50)).await;
        }
    };
    timeout(SOON, starting).await.expect("the port is free soon")
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_where_another_answered_is_dialled_until_the_right_one_does() {
    let [right, wrong] = [Identity::generate(), Identity::generate()];
    let at = free_port();
    let id = right.node_id();
    for way in [format!("udp/{}/quic-v1", at.port()), format!("tcp/{}", at.port())] {
        let other = node_at(&wrong, at, &[]).await;
        let b = node(2222, &[format!("/ip4/127.0.0.1/{way}/p2p/{id}")]).await;
        until("the wrong one answers, and that is told", async || {
            let unreached = b.handle.reachable().await.unwrap().unreached;
            unreached.iter().any(|why| why.contains(&other.id.to_string()) && why.contains(&id.to_string()))
        })
        .await;
        assert_eq!(b.handle.connected(), 0);
        drop(other);
        let a = node_at(&right, at, &[]).await;
        b.wait_for_peers(1).await;
        assert_eq!(b.handle.peers().await[0].id, a.id);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_wrong_address_of_a_peer_spoils_none_of_the_others() {
    let a = node(1111, &[]).await;
    let other = node(3333, &[]).await;
    let misleading = other.addrs[0].replace(&other.id.to_string(), &a.id.to_string());
    let b = node(2222, &[misleading, a.addrs[1].clone()]).await;
    b.wait_for_peers(1).await;
    assert_eq!(b.handle.peers().await[0].id, a.id);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_named_nobody_finds_again_those_who_had_found_it() {
    let identity = Identity::generate();
    let at = free_port();
    let b = node(2222, &[]).await;
    let a = node_at(&identity, at, &b.addrs).await;
    a.announce(vec![model()]).await;
    b.find(model()).await;
    drop(a);
    until("it notices", async || b.handle.connected() == 0).await;
    let _a = node_at(&identity, at, &[]).await;
    b.wait_for_peers(1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_processes_with_one_identity_are_told_of_each_other() {
    let identity = Identity::generate();
    let b = node(2222, &[]).await;
    let one = node_of(&identity, LOOPBACK, 1111, &b.addrs[..1]).await;
    one.wait_for_peers(1).await;
    let alone = one.handle.reachable().await.unwrap();
    assert!(!alone.shared_identity);
    let two = node_of(&identity, LOOPBACK, 3333, &b.addrs[..1]).await;
    for twin in [&one, &two] {
        until("both are told", async || twin.handle.reachable().await.unwrap().shared_identity).await;
    }
    assert!(!b.handle.reachable().await.unwrap().shared_identity);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_twin_at_a_named_address_is_seen_and_ones_own_address_is_none() {
    let identity = Identity::generate();
    let one = node_of(&identity, LOOPBACK, 1111, &[]).await;
    let two = node_of(&identity, LOOPBACK, 3333, &one.addrs[..1]).await;
    until("it is seen", async || two.handle.reachable().await.unwrap().shared_identity).await;

    let at = free_port();
    let id = identity.node_id();
    let own = node_at(&identity, at, &[format!("/ip4/127.0.0.1/tcp/{}/p2p/{id}", at.port())]).await;
    let friend = node(2222, &own.addrs).await;
    friend.wait_for_peers(1).await;
    assert!(!own.handle.reachable().await.unwrap().shared_identity);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unspecified_ipv6_address_is_both_families_and_several_addresses_are_several() {
    if std::net::UdpSocket::bind("[::1]:0").is_err() {
        return; // This host has no IPv6.
    }
    let many = ["[::1]:0", "127.0.0.1:0"].map(|addr| addr.parse().unwrap()).to_vec();
    for listen in [vec!["[::]:0".parse().unwrap()], many] {
        let config = config::Swarm { listen, ..settings(LOOPBACK, &[]) };
        let data = SocketAddr::from(([0; 8], 5555));
        let (a, listening) = start(&Identity::generate(), &config, &Members::default(), data).await.unwrap();
        for (family, transport) in
            [("ip4/127.0.0.1", "udp"), ("ip4/127.0.0.1", "tcp"), ("ip6/::1", "udp"), ("ip6/::1", "tcp")]
        {
            let start = format!("/{family}/{transport}/");
            let addr = listening.addrs.iter().find(|addr| addr.starts_with(&start)).expect(&start);
            let any = if family.starts_with("ip4") { "127.0.0.1:0" } else { "[::1]:0" };
            let b =
                node_of(&Identity::generate(), any.parse().unwrap(), 2222, std::slice::from_ref(addr)).await;
            b.wait_for_peers(1).await;
        }
        let ports: std::collections::BTreeSet<_> = listening.addrs.iter().map(|addr| port_of(addr)).collect();
        assert_eq!(ports.len(), config.listen.len(), "{listening:?}");
        drop(a);
    }
    let taken = std::net::TcpListener::bind("[::1]:0").unwrap().local_addr().unwrap();
    let held = std::net::TcpListener::bind(taken).unwrap();
    let config = config::Swarm { listen: vec![LOOPBACK, taken], ..settings(LOOPBACK, &[]) };
    let error = start(&Identity::generate(), &config, &Members::default(), LOOPBACK).await.unwrap_err();
    assert!(error.to_string().contains(&taken.to_string()), "{error}");
    drop(held);
}

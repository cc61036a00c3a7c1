//! Real swarms on loopback.

use std::net::Ipv4Addr;

use surf_protocol::ChunkId;
use tokio::time::{sleep, timeout};

mod joining;
mod strangers;

use super::*;
use crate::members::{Access, SwarmKey};

const LOOPBACK: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);
const SOON: Duration = Duration::from_secs(60);

struct Node {
    id: NodeId,
    data: SocketAddr,
    handle: Handle,
    addrs: Vec<String>,
}

fn settings(listen: SocketAddr, bootstrap: &[String]) -> config::Swarm {
    let (listen, bootstrap) = (vec![listen], bootstrap.to_vec());
    config::Swarm { listen, bootstrap, mdns: false, relay: config::Relay::default() }
}

/// A node whose data plane pretends to be at `port`.
async fn node(port: u16, bootstrap: &[String]) -> Node {
    node_of(&Identity::generate(), LOOPBACK, port, bootstrap).await
}

async fn node_of(identity: &Identity, listen: SocketAddr, port: u16, bootstrap: &[String]) -> Node {
    member(identity, &Members::default(), listen, port, bootstrap).await
}

async fn member(
    identity: &Identity,
    members: &Members,
    listen: SocketAddr,
    port: u16,
    bootstrap: &[String],
) -> Node {
    let data = SocketAddr::from(([127, 0, 0, 1], port));
    let (handle, listening) = start(identity, &settings(listen, bootstrap), members, data).await.unwrap();
    Node { id: identity.node_id(), data, handle, addrs: listening.addrs }
}

impl Node {
    async fn announce(&self, keys: Vec<Key>) {
        self.handle.announce(ModelId::of(b"model"), keys).await.unwrap();
    }

    /// Asks until somebody has `key`.
    async fn find(&self, key: Key) -> Vec<Peer> {
        let asking = async {
            loop {
                let found = self.handle.providers(key).await.unwrap();
                if !found.is_empty() {
                    return found;
                }
                sleep(Duration::from_millis(20)).await;
            }
        };
        timeout(SOON, asking).await.expect("somebody has it")
    }

    /// Waits until it has tried to join through an address, in vain.
    async fn wait_for_failure(&self) {
        let waiting = async {
            while self.handle.reachable().await.unwrap().unreached.is_empty() {
                sleep(Duration::from_millis(10)).await;
            }
        };
        timeout(SOON, waiting).await.expect("it tries");
    }

    async fn wait_for_peers(&self, count: usize) {
        let waiting = async {
            while self.handle.connected() < count {
                sleep(Duration::from_millis(10)).await;
            }
        };
        timeout(SOON, waiting).await.expect("enough peers");
    }

    fn as_peer(&self) -> Peer {
        Peer { id: self.id, addrs: vec![self.data] }
    }
}

fn model() -> Key {
    Key::Model(ModelId::of(b"model"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_provider_is_found_through_somebody_else() {
    let a = node(1111, &[]).await;
    let b = node(2222, &a.addrs).await;
    let chunk = Key::Chunk(ChunkId::of(b"x"));
    a.announce(vec![model(), chunk]).await;
    b.wait_for_peers(1).await;
    let c = node(3333, &b.addrs).await;
    assert_eq!(c.find(model()).await, [a.as_peer()]);
    assert_eq!(c.find(chunk).await, [a.as_peer()]);
    assert_eq!(c.handle.providers(Key::Chunk(ChunkId::of(b"y"))).await.unwrap(), []);

    b.announce(vec![model()]).await;
    let both = async {
        while c.handle.providers(model()).await.unwrap().len() < 2 {
            sleep(Duration::from_millis(100)).await;
        }
    };
    timeout(SOON, both).await.expect("a new provider is found when the old answer is stale");
    // What a node has itself is nothing to fetch.
    assert_eq!(b.find(model()).await, [a.as_peer()]);

    let peers = c.handle.peers().await;
    assert_eq!(peers.len(), 2);
    let of_a = peers.iter().find(|peer| peer.id == a.id).unwrap();
    assert_eq!(of_a.data_addrs, [a.data]);
    assert!(of_a.addrs[0].starts_with("/ip4/127.0.0.1/"));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_announced_alone_is_known_to_the_first_who_comes() {
    let a = node(1111, &[]).await;
    a.announce(vec![model()]).await;
    let b = node(2222, &a.addrs[..1]).await;
    let begin = Instant::now();
    assert_eq!(b.find(model()).await, [a.as_peer()]);
    assert!(begin.elapsed() < Duration::from_secs(3), "{:?}", begin.elapsed());
    // Not only because it could ask `a` itself: the record has come to `b`, which tells others.
    drop(a);
    let c = node(3333, &b.addrs).await;
    c.wait_for_peers(1).await;
    let begin = Instant::now();
    c.handle.providers(model()).await.unwrap();
    assert!(begin.elapsed() < Duration::from_secs(8), "a dead provider hangs nobody: {:?}", begin.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn joining_before_the_other_is_there_and_after_it_was_gone() {
    let identity = Identity::generate();
    let port = std::net::UdpSocket::bind(LOOPBACK).unwrap().local_addr().unwrap();
    let id = identity.node_id();
    let bootstrap = [format!("/ip4/127.0.0.1/tcp/{}/p2p/{id}", port.port())];
    let b = node(2222, &bootstrap).await;
    b.wait_for_failure().await;
    let a = node_of(&identity, port, 1111, &[]).await;
    a.announce(vec![model()]).await;
    assert_eq!(b.find(model()).await, [a.as_peer()]);

    drop(a);
    let gone = async {
        while b.handle.connected() != 0 {
            sleep(Duration::from_millis(50)).await;
        }
    };
    timeout(SOON, gone).await.expect("b notices");
    let a = node_of(&identity, port, 4444, &[]).await;
    a.announce(vec![model()]).await;
    let back = async {
        while b.find(model()).await != [a.as_peer()] {
            sleep(Duration::from_millis(50)).await;
        }
    };
    timeout(SOON, back).await.expect("and finds it again, with its new data plane");
}

#[tokio::test(flavor = "multi_thread")]
async fn many_askers_share_a_look_up_and_thousands_of_keys_come_through() {
    let a = node(1111, &[]).await;
    let b = node(2222, &a.addrs).await;
    let keys: Vec<_> = (0..150u32).map(|n| Key::Chunk(ChunkId::of(&n.to_le_bytes()))).collect();
    a.announce(keys.clone()).await;
    for key in &keys {
        b.find(*key).await;
    }
    let all = keys.iter().cycle().take(3000).map(|key| b.handle.providers(*key));
    let found = timeout(SOON, futures::future::join_all(all)).await.expect("all are answered");
    assert!(found.into_iter().all(|peers| peers.unwrap() == [a.as_peer()]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_in_use_and_a_bad_address_are_named() {
    let udp = std::net::UdpSocket::bind(LOOPBACK).unwrap();
    let tcp = std::net::TcpListener::bind(LOOPBACK).unwrap();
    for listen in [udp.local_addr().unwrap(), tcp.local_addr().unwrap()] {
        let error = start(&Identity::generate(), &settings(listen, &[]), &Members::default(), LOOPBACK)
            .await
            .unwrap_err();
        assert!(matches!(error, ListenError::Address { addr, .. } if addr == listen));
        assert!(error.to_string().contains(&listen.to_string()), "{error}");
    }
    let a = node(1, &[]).await;
    let port: SocketAddr = SocketAddr::from(([127, 0, 0, 1], port_of(&a.addrs[0])));
    let error =
        start(&Identity::generate(), &settings(port, &[]), &Members::default(), LOOPBACK).await.unwrap_err();
    assert!(matches!(error, ListenError::Address { .. }), "another node's port: {error}");
    let bad = "/ip4/127.0.0.1/tcp/4001".to_owned();
    let error = start(&Identity::generate(), &settings(LOOPBACK, &[bad]), &Members::default(), LOOPBACK)
        .await
        .unwrap_err();
    assert!(error.to_string().contains("/ip4/127.0.0.1/tcp/4001"), "{error}");
    assert!(a.handle.dial("nonsense").await.is_err());
}

fn port_of(addr: &str) -> u16 {
    addr.split('/').nth(4).unwrap().parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn quic_and_tcp_on_one_port_and_either_will_do() {
    let a = node(1111, &[]).await;
    let [quic, tcp] = &a.addrs[..] else { panic!("{:?}", a.addrs) };
    assert!(quic.contains("/quic-v1/p2p/") && tcp.contains("/tcp/"));
    assert_eq!(port_of(quic), port_of(tcp));
    for addr in [quic, tcp] {
        let b = node(2222, &[]).await;
        b.handle.dial(addr).await.unwrap();
        b.wait_for_peers(1).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wildcard_is_told_as_real_addresses() {
    let any = SocketAddr::from(([0, 0, 0, 0], 0));
    let identity = Identity::generate();
    let data = SocketAddr::from(([0, 0, 0, 0], 5555));
    let (a, listening) = start(&identity, &settings(any, &[]), &Members::default(), data).await.unwrap();
    assert!(listening.addrs.iter().all(|addr| !addr.contains("0.0.0.0")), "{listening:?}");
    assert!(listening.addrs.last().unwrap().contains("127.0.0.1"), "loopback last: {listening:?}");
    a.announce(ModelId::of(b"model"), vec![model()]).await.unwrap();
    let b = node(2222, &listening.addrs[listening.addrs.len() - 1..]).await;
    let found = b.find(model()).await;
    assert_eq!(found[0].addrs[0], SocketAddr::from(([127, 0, 0, 1], 5555)), "where it was seen");
    assert!(found[0].addrs.iter().all(|addr| !addr.ip().is_unspecified()));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_task_ends_with_its_last_handle() {
    let a = node(1111, &[]).await;
    let b = node(2222, &a.addrs).await;
    b.wait_for_peers(1).await;
    let commands = a.handle.commands.downgrade();
    let port = SocketAddr::from(([127, 0, 0, 1], port_of(&a.addrs[0])));
    drop(a);
    let freed = async {
        while std::net::UdpSocket::bind(port).is_err() {
            sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(SOON, freed).await.expect("its port is free again");
    assert!(commands.upgrade().is_none());
}

fn members(key: Option<&SwarmKey>) -> Members {
    Members { key: key.cloned(), ..Members::default() }
}

async fn of(key: Option<&SwarmKey>, bootstrap: &[String]) -> Node {
    member(&Identity::generate(), &members(key), LOOPBACK, 1111, bootstrap).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_private_swarm_is_tcp_only_and_its_members_find_each_other() {
    let key = SwarmKey::generate();
    let a = of(Some(&key), &[]).await;
    let [tcp] = &a.addrs[..] else { panic!("{:?}", a.addrs) };
    assert!(tcp.starts_with("/ip4/127.0.0.1/tcp/"), "{tcp}");
    std::net::UdpSocket::bind(("127.0.0.1", port_of(tcp))).expect("nobody listens on UDP");
    a.announce(vec![model()]).await;
    let b = of(Some(&key), &a.addrs).await;
    b.wait_for_peers(1).await;
    let c = of(Some(&key), &b.addrs).await;
    assert_eq!(c.find(model()).await, [a.as_peer()]);

    let port = SocketAddr::from(([127, 0, 0, 1], port_of(tcp)));
    let taken = start(&Identity::generate(), &settings(port, &[]), &members(Some(&key)), LOOPBACK).await;
    assert!(matches!(taken.unwrap_err(), ListenError::Address { addr, .. } if addr == port));
    let quic = node(1, &[]).await.addrs.swap_remove(0);
    let asked = settings(LOOPBACK, std::slice::from_ref(&quic));
    let open = start(&Identity::generate(), &asked, &members(Some(&key)), LOOPBACK).await.unwrap_err();
    assert!(open.to_string().contains(&quic) && open.to_string().contains("TCP only"), "{open}");
}

#[tokio::test(flavor = "multi_thread")]
async fn swarms_of_different_keys_do_not_mix() {
    let keys = [Some(SwarmKey::generate()), Some(SwarmKey::generate()), None];
    for (ours, theirs) in [(0, 1), (0, 2), (2, 0)] {
        let a = of(keys[ours].as_ref(), &[]).await;
        let tcp = a.addrs.last().cloned().into_iter().collect::<Vec<_>>();
        let (outsider, friend) = (of(keys[theirs].as_ref(), &tcp).await, of(keys[ours].as_ref(), &tcp).await);
        friend.wait_for_peers(1).await;
        a.wait_for_peers(1).await;
        outsider.wait_for_failure().await;
        assert_eq!((outsider.handle.connected(), a.handle.connected()), (0, 1), "{ours} and {theirs}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_not_let_in_is_connected_in_neither_direction() {
    let [ours, friend, denied, unknown] = [(); 4].map(|()| Identity::generate());
    let access = Access {
        // Our own id changes nothing.
        allow: [&friend, &denied, &ours].map(Identity::node_id).into(),
        deny: [&denied, &ours].map(Identity::node_id).into(),
    };
    let members = Members { key: None, access };
    let a = member(&ours, &members, LOOPBACK, 1111, &[]).await;
    a.announce(vec![model()]).await;
    for other in [&denied, &unknown] {
        let other = node_of(other, LOOPBACK, 2222, &a.addrs).await;
        let error = a.handle.dial(&other.addrs[0]).await.unwrap_err();
        assert!(matches!(error, JoinError::Refused { .. }), "{error}");
        other.wait_for_failure().await;
        assert_eq!(a.handle.connected(), 0);
        // The other end may believe for a moment that it is connected, whenever it tries.
        assert_eq!(other.handle.providers(model()).await.unwrap(), []);
    }
    let friend = node_of(&friend, LOOPBACK, 3333, &a.addrs).await;
    assert_eq!(friend.find(model()).await, [a.as_peer()]);
    assert_eq!(a.handle.peers().await[0].id, friend.id);
}

//! Strangers that hold connections, finished and half finished, and keep nobody out.

use std::{collections::VecDeque, task::Poll};

use futures::{StreamExt, future::poll_fn};
use libp2p::{
    PeerId, Swarm, SwarmBuilder, identify, noise,
    swarm::{
        NetworkBehaviour, SwarmEvent,
        dial_opts::{DialOpts, PeerCondition},
    },
    tcp, yamux,
};

use super::*;

/// Connections that one identity may have with a node.
const EACH: usize = 8;

/// Says who it is and nothing else.
#[derive(NetworkBehaviour)]
struct Idle {
    identify: identify::Behaviour,
}

fn stranger() -> Swarm<Idle> {
    SwarmBuilder::with_new_identity()
        .with_tokio()
        .with_tcp(tcp::Config::default(), noise::Config::new, yamux::Config::default)
        .unwrap()
        .with_behaviour(|key| Idle {
            identify: identify::Behaviour::new(identify::Config::new("/surf/id/1".to_owned(), key.public())),
        })
        .unwrap()
        .with_swarm_config(|config| config.with_idle_connection_timeout(Duration::from_secs(600)))
        .build()
}

/// Connects to the node at `addr`, `EACH` times, and holds on to what it gets until it is dropped. Returns when all
/// have been tried.
async fn hold(mut swarm: Swarm<Idle>, addr: &str) -> tokio::task::JoinHandle<()> {
    let addr: Multiaddr = addr.parse().unwrap();
    let peer: PeerId = addrs::node(&addr).unwrap();
    for _ in 0..EACH {
        let opts = DialOpts::peer_id(peer).condition(PeerCondition::Always).addresses(vec![addr.clone()]);
        swarm.dial(opts.build()).unwrap();
    }
    let mut left = EACH;
    while left != 0 {
        match swarm.select_next_some().await {
            SwarmEvent::ConnectionEstablished { .. } | SwarmEvent::OutgoingConnectionError { .. } => {
                left -= 1
            }
            _ => {}
        }
    }
    tokio::spawn(poll_fn(move |cx| {
        while let Poll::Ready(Some(_)) = swarm.poll_next_unpin(cx) {}
        Poll::Pending
    }))
}

#[tokio::test(flavor = "multi_thread")]
async fn idle_connections_of_strangers_keep_nobody_out() {
    let a = node(1111, &[]).await;
    a.announce(vec![model()]).await;
    let old = node(2222, &a.addrs).await;
    assert_eq!(old.find(model()).await, [a.as_peer()]);
    let tcp = a.addrs.iter().find(|addr| addr.contains("/tcp/")).unwrap();
    let mut held = Vec::new();
    // More than there are places for, and all at the same address as the honest ones.
    for _ in 0..crowd::PLACES / EACH + 6 {
        held.push(timeout(SOON, hold(stranger(), tcp)).await.expect("each gets in"));
    }
    let new = node(3333, &a.addrs).await;
    assert_eq!(new.find(model()).await, [a.as_peer()]);
    assert!(a.handle.connected() <= crowd::PLACES / EACH + 8);
    let peers = a.handle.peers().await;
    assert!(peers.iter().any(|peer| peer.id == new.id), "it stays");
    assert!(peers.iter().any(|peer| peer.id == old.id), "and so does who was there before, and was of use");
    held.iter().for_each(tokio::task::JoinHandle::abort);
}

#[tokio::test(flavor = "multi_thread")]
async fn handshakes_that_are_never_finished_keep_nobody_out() {
    let a = node(1111, &[]).await;
    a.announce(vec![model()]).await;
    let tcp = a.addrs.iter().find(|addr| addr.contains("/tcp/")).unwrap();
    let at = SocketAddr::from(([127, 0, 0, 1], port_of(tcp)));
    let connect = move || std::net::TcpStream::connect(at).unwrap();
    let mut silent: VecDeque<_> = (0..3 * gate::PENDING_MAX).map(|_| connect()).collect();
    // Others come without end, so that it is not the handshakes' time limit that lets somebody in.
    let flood = tokio::spawn(async move {
        loop {
            silent.push_back(connect());
            silent.pop_front();
            sleep(Duration::from_millis(20)).await;
        }
    });
    let b = node(2222, std::slice::from_ref(tcp)).await;
    assert_eq!(b.find(model()).await, [a.as_peer()]);
    flood.abort();
}

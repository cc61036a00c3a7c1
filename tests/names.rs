//! Signed names between real nodes: set on one, understood by another wherever a model is accepted; and a
//! node that keeps and spreads old and forged records changes nothing.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

use std::{fs, time::Duration};

use futures::StreamExt;
use libp2p::{
    Multiaddr, PeerId, StreamProtocol, Swarm, identify,
    kad::{self, GetRecordOk, QueryResult, Quorum, Record, RecordKey, store::RecordStore},
    noise,
    swarm::{NetworkBehaviour, SwarmEvent},
    tcp, yamux,
};
use surf_node::{Node, api::PublishRequest, node::NodeError};
use surf_protocol::{FullName, SignedName};
use surf_tests::{Process, TestNode, config, start, tiny_surfer};
use tokio::{
    sync::mpsc,
    time::{sleep, timeout},
};

const SOON: Duration = Duration::from_secs(30);

/// A node of our DHT that keeps to none of its rules.
#[derive(NetworkBehaviour)]
struct Malicious {
    kad: kad::Behaviour<kad::store::MemoryStore>,
    identify: identify::Behaviour,
}

fn malicious() -> Swarm<Malicious> {
    let mut swarm = libp2p::SwarmBuilder::with_new_identity()
        .with_tokio()
        .with_tcp(tcp::Config::default(), noise::Config::new, yamux::Config::default)
        .unwrap()
        .with_behaviour(|key| {
            let me = key.public().to_peer_id();
            let config = kad::Config::new(StreamProtocol::new("/surf/kad/1"));
            let mut kad = kad::Behaviour::with_config(me, kad::store::MemoryStore::new(me), config);
            kad.set_mode(Some(kad::Mode::Server));
            let identify = identify::Config::new("/surf/id/1".to_owned(), key.public());
            Malicious { kad, identify: identify::Behaviour::new(identify) }
        })
        .unwrap()
        .with_swarm_config(|config| config.with_idle_connection_timeout(SOON))
        .build();
    swarm.listen_on("/ip4/127.0.0.1/tcp/0".parse().unwrap()).unwrap();
    swarm
}

fn tcp_addr(node: &Node) -> (PeerId, Multiaddr) {
    let text = node.listen().iter().find(|addr| addr.contains("/tcp/")).unwrap();
    let addr: Multiaddr = text.parse().unwrap();
    (node.peer_id().parse().unwrap(), addr)
}

/// Does what `swarm` has to do until `done` says what it was to find out.
async fn drive<T>(
    swarm: &mut Swarm<Malicious>,
    mut done: impl FnMut(SwarmEvent<MaliciousEvent>) -> Option<T>,
) -> T {
    let driving = async {
        loop {
            if let Some(found) = done(swarm.select_next_some().await) {
                return found;
            }
        }
    };
    timeout(SOON, driving).await.expect("the malicious node gets to do what it wants")
}

/// Connects to `nodes` until each knows it as one of the DHT.
async fn intrude(swarm: &mut Swarm<Malicious>, nodes: &[&Node]) {
    for node in nodes {
        let (peer, addr) = tcp_addr(node);
        swarm.behaviour_mut().kad.add_address(&peer, addr.clone());
        swarm.dial(addr).unwrap();
    }
    let mut left = nodes.len();
    drive(swarm, |event| {
        if let SwarmEvent::Behaviour(MaliciousEvent::Identify(identify::Event::Sent { .. })) = event {
            left -= 1;
        }
        (left == 0).then_some(())
    })
    .await;
}

fn key_of(full: &FullName) -> RecordKey {
    RecordKey::from([b"n", &full.key()[..]].concat())
}

/// The record that the DHT has of a name now.
async fn steal(swarm: &mut Swarm<Malicious>, full: &FullName) -> SignedName {
    swarm.behaviour_mut().kad.get_record(key_of(full));
    let value = drive(swarm, |event| match event {
        SwarmEvent::Behaviour(MaliciousEvent::Kad(kad::Event::OutboundQueryProgressed {
            result: QueryResult::GetRecord(Ok(GetRecordOk::FoundRecord(found))),
            ..
        })) => Some(found.record.value),
        _ => None,
    })
    .await;
    SignedName::decode(&value).unwrap()
}

/// Whether `node` itself answers with a record of a name.
async fn keeps(swarm: &mut Swarm<Malicious>, node: &Node, full: &FullName) -> bool {
    let (peer, _) = tcp_addr(node);
    let query = swarm.behaviour_mut().kad.get_record(key_of(full));
    let mut found = false;
    drive(swarm, |event| match event {
        SwarmEvent::Behaviour(MaliciousEvent::Kad(kad::Event::OutboundQueryProgressed {
            id,
            result: QueryResult::GetRecord(result),
            step,
            ..
        })) if id == query => {
            if let Ok(GetRecordOk::FoundRecord(record)) = result {
                found |= record.peer == Some(peer);
            }
            step.last.then_some(found)
        }
        _ => None,
    })
    .await
}

/// Keeps `value` under the key of `full`, and puts it to `nodes`.
async fn spread(swarm: &mut Swarm<Malicious>, full: &FullName, value: Vec<u8>, nodes: &[&Node]) {
    let record = Record::new(key_of(full), value);
    let kad = &mut swarm.behaviour_mut().kad;
    kad.store_mut().put(record.clone()).unwrap();
    let peers: Vec<PeerId> = nodes.iter().map(|node| tcp_addr(node).0).collect();
    kad.put_record_to(record, peers.into_iter(), Quorum::All);
    drive(swarm, |event| match event {
        SwarmEvent::Behaviour(MaliciousEvent::Kad(kad::Event::OutboundQueryProgressed {
            result: QueryResult::PutRecord(_),
            ..
        })) => Some(()),
        _ => None,
    })
    .await;
}

/// Answers whoever asks, from now on.
fn lurk(mut swarm: Swarm<Malicious>) -> tokio::task::JoinHandle<()> {
    tokio::spawn(async move { while swarm.next().await.is_some() {} })
}

/// A model of one file that says `what`. The folder must stay.
async fn publish(node: &Node, what: &str) -> (String, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("what.txt"), what).unwrap();
    let path = folder.path().to_str().unwrap().to_owned();
    let request = PublishRequest { path, copy: true, ..PublishRequest::default() };
    let published = node.publish(request, mpsc::channel(1).0).await.unwrap();
    (published.model, folder)
}

/// Asks until the answer is `model`: a new record takes a moment to be with everyone.
async fn means(node: &Node, name: &str, model: &str) -> u64 {
    let asking = async {
        loop {
            // Until it has spread, nobody may know it.
            match node.name(name).await {
                Ok(info) if info.model == model => return info.sequence,
                Ok(_) | Err(NodeError::NotFound(_)) => (),
                Err(error) => panic!("{name}: {error}"),
            }
            sleep(Duration::from_millis(100)).await;
        }
    };
    timeout(SOON, asking).await.unwrap_or_else(|_| panic!("{name} means {model}"))
}

/// A node in the folder of one that has just been dropped.
async fn restart(node: TestNode, bootstrap: &[String]) -> TestNode {
    let TestNode { node, dir } = node;
    node.stop().await;
    drop(node);
    let starting = async {
        loop {
            match Node::start(config(dir.path(), bootstrap, 0)).await {
                Ok(node) => return node,
                Err(_) => sleep(Duration::from_millis(100)).await,
            }
        }
    };
    let node = timeout(SOON, starting).await.expect("the folder is free soon");
    TestNode { node, dir }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_is_understood_elsewhere_and_old_or_forged_records_change_nothing() {
    let a = start(&[], 0).await;
    let b = start(a.node.listen(), 0).await;
    let c = start(b.node.listen(), 0).await;
    let (one, _one) = publish(&a.node, "one").await;
    let (two, _two) = publish(&a.node, "two").await;

    let set = a.node.set_name("story", &one).await.unwrap();
    assert_eq!((&set.model, &set.peer), (&one, &a.node.peer_id()));
    let name = format!("{}/story", a.node.peer_id());
    let first = means(&c.node, &name, &one).await;
    let pulled = c.node.pull(&name, mpsc::channel(1).0).await.unwrap();
    assert_eq!(pulled.model, one);
    c.node.pin(&name).await.unwrap();
    assert_eq!(b.node.pull(&name, mpsc::channel(1).0).await.unwrap().model, one);
    assert_eq!(b.node.model(&name).await.unwrap().info.model, one, "known without asking");

    let full: FullName = name.parse().unwrap();
    let mut enemy = malicious();
    intrude(&mut enemy, &[&a.node, &b.node, &c.node]).await;
    let old = steal(&mut enemy, &full).await;
    assert_eq!(old.name().sequence, first);

    a.node.set_name("story", &two).await.unwrap();
    let second = means(&c.node, &name, &two).await;
    assert!(first < second);

    // The old one again, and one that the enemy made of it and signed with nothing.
    let mut forged = old.encode();
    let end = forged.len() - 64;
    forged[end - 14] ^= 1;
    spread(&mut enemy, &full, forged, &[&a.node, &b.node, &c.node]).await;
    spread(&mut enemy, &full, old.encode(), &[&a.node, &b.node, &c.node]).await;
    let addr = enemy.listeners().next().unwrap().clone();
    let only_enemy = [addr.with(libp2p::multiaddr::Protocol::P2p(*enemy.local_peer_id())).to_string()];
    let _lurking = lurk(enemy);
    assert_eq!(means(&c.node, &name, &two).await, second);
    // One who has seen no record before hears both, and the later counts.
    let d = start(b.node.listen(), 0).await;
    assert_eq!(means(&d.node, &name, &two).await, second);
    assert_eq!(d.node.pull(&name, mpsc::channel(1).0).await.unwrap().model, two);

    // One who saw the later is not fooled when all others are gone, not even after a restart.
    a.node.stop().await;
    drop((a, b, d));
    let c = restart(c, &only_enemy).await;
    let connected = async {
        while c.node.peers().await.is_empty() {
            sleep(Duration::from_millis(50)).await;
        }
    };
    timeout(SOON, connected).await.expect("the enemy is there");
    for _ in 0..3 {
        let info = c.node.name(&name).await.unwrap();
        assert_eq!((&info.model, info.sequence), (&two, second));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_publisher_that_comes_back_goes_on_publishing() {
    let a = start(&[], 0).await;
    let (one, _one) = publish(&a.node, "one").await;
    let name = format!("{}/story", a.node.peer_id());
    let set = a.node.set_name("story", &one).await.unwrap();
    assert_eq!(a.node.name(&name).await.unwrap(), set, "its own names need no network");
    // Nobody was there to take it when it was set.
    let b = start(&[], 0).await;
    let c = start(b.node.listen(), 0).await;
    let a = restart(a, b.node.listen()).await;
    assert_eq!(a.node.name(&name).await.unwrap(), set);
    let known = async {
        while c.node.name(&name).await.is_err() {
            sleep(Duration::from_millis(100)).await;
        }
    };
    timeout(SOON, known).await.expect("it is put again");
    // `c` may have asked the publisher itself, a moment before that puts it.
    let full: FullName = name.parse().unwrap();
    let mut observer = malicious();
    intrude(&mut observer, &[&b.node]).await;
    let kept = async {
        while !keeps(&mut observer, &b.node, &full).await {
            sleep(Duration::from_millis(100)).await;
        }
    };
    timeout(SOON, kept).await.expect("it has come to b");
    // And `b` keeps it when the publisher has gone.
    a.node.stop().await;
    drop(a);
    let d = start(b.node.listen(), 0).await;
    assert_eq!(means(&d.node, &name, &one).await, set.sequence);
}

#[test]
fn the_commands_say_what_a_name_means_and_what_is_wrong_with_one() {
    let a = Process::join(&[], &[]);
    let b = Process::join(&[a.addr()], &[]);
    let published = a.done(&["publish", tiny_surfer().to_str().unwrap(), "--name", "surfer"]);
    let set = a.done(&["name", "set", "tiny", "surfer"]);
    assert_eq!((&set["name"], &set["model"]), (&"tiny".into(), &published["model"]));
    let name = format!("{}/tiny", a.ready["peer_id"].as_str().unwrap());
    let got = b.done(&["name", "get", &name]);
    assert_eq!(got, set);
    assert!(set["expires"].as_u64().unwrap() > set["sequence"].as_u64().unwrap());
    b.done(&["generate", &name, "-p", "Once", "--max-tokens", "2", "--temperature", "0"]);
    let out = tempfile::tempdir().unwrap();
    b.done(&["export", &name, out.path().to_str().unwrap()]);
    assert_eq!(b.done(&["models", &name])["model"], published["model"]);
    b.done(&["rm", &name]);

    let nobody = format!("{}/other", a.ready["peer_id"].as_str().unwrap());
    for (args, status, says) in [
        (vec!["name", "get", &nobody], 3, "nobody reachable knows the name"),
        (vec!["pull", &nobody], 3, "nobody reachable knows the name"),
        (vec!["pull", "org/tiny"], 3, "is not a peer id"),
        (vec!["name", "get", "org/tiny"], 1, "is not a peer id"),
        (vec!["name", "get", "tiny"], 1, "PEER/NAME"),
        (vec!["name", "get", &format!("{name}/x")], 1, "cannot be a name"),
        (vec!["name", "set", "a b", "surfer"], 1, "cannot be a name"),
        (vec!["name", "set", "x", "nothing-here"], 3, "nothing-here"),
    ] {
        let output = b.run(&args);
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(status), "{args:?}: {told}");
        assert!(told.contains(says), "{args:?}: {told}");
    }
}

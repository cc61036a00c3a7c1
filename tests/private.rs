//! A private swarm from outside and from inside: members share a model, and whoever has not the key, or is
//! on the list of those who are not let in, gets nothing, though it knows every address and speaks the
//! protocol.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Command, Output},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use serde_json::Value;
use surf_node::{
    config,
    fetch::{Dialer, Peer},
    identity::Identity,
    members::{Members, SwarmKey},
    swarm, transfer,
};
use surf_protocol::{
    ModelId, NodeId,
    wire::{self, ALPN, ALPN_PRIVATE, Request},
};
use surf_tests::{Process, program, tiny_surfer};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    time::{sleep, timeout},
};

/// What a node says on TCP before it has heard anything: the nonce of `pnet`, which is random.
const NONCE_SIZE: usize = 24;

const SOON: Duration = Duration::from_secs(30);
const ANY: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 0);

/// The program, without a node.
fn surf_node(args: &[&str]) -> Output {
    Command::new(program()).args(args).output().unwrap()
}

/// A new key in a file of `dir`, as a user makes it.
fn new_key(dir: &Path, name: &str) -> PathBuf {
    let path = dir.join(name);
    let made = surf_node(&["--json", "key", "new", "-o", path.to_str().unwrap()]);
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    path
}

fn join(key: &Path, bootstrap: &[&str]) -> Process {
    Process::join(bootstrap, &["--swarm-key", key.to_str().unwrap()])
}

/// A member that has published a model.
fn seed(key: &Path) -> (Process, String) {
    let seed = join(key, &[]);
    let published = seed.done(&["publish", tiny_surfer().to_str().unwrap()]);
    (seed, published["model"].as_str().unwrap().to_owned())
}

/// Who it is and where its data plane is.
fn holder(process: &Process) -> Peer {
    let id = NodeId::from_peer_id(process.ready["peer_id"].as_str().unwrap()).unwrap();
    Peer { id, addrs: vec![process.ready["transfer"].as_str().unwrap().parse().unwrap()] }
}

/// Where its control plane is.
fn control(process: &Process) -> SocketAddr {
    let addr: Vec<_> = process.addr().split('/').collect();
    assert_eq!((addr[1], addr[3]), ("ip4", "tcp"), "{}", process.addr());
    format!("{}:{}", addr[2], addr[4]).parse().unwrap()
}

#[test]
fn a_key_is_one_string_in_a_file_that_is_not_overwritten() {
    let dir = tempfile::tempdir().unwrap();
    let path = new_key(dir.path(), "swarm.key");
    let text = std::fs::read_to_string(&path).unwrap();
    let key: SwarmKey = text.parse().unwrap();
    assert_eq!(text, format!("{}\n", key.reveal()));
    let again = surf_node(&["key", "new", "-o", path.to_str().unwrap()]);
    let words = String::from_utf8(again.stderr).unwrap();
    assert_eq!((again.status.code(), again.stdout.len()), (Some(1), 0));
    assert!(words.contains("swarm.key is there already") && words.contains("hint: "), "{words}");
    assert_eq!(std::fs::read_to_string(&path).unwrap(), text);

    let [one, other] = [&["key", "new"][..], &["--json", "key", "new"]].map(|args| surf_node(args).stdout);
    let one: SwarmKey = String::from_utf8(one).unwrap().parse().unwrap();
    let other: Value = serde_json::from_slice(&other).unwrap();
    assert_ne!(other["key"].as_str().unwrap().parse(), Ok(one));

    for (text, mode, status, words) in [
        (text.replace("surf-key:", "surf-key:0"), 0o600, 2, "holds no swarm key"),
        (text.clone(), 0o644, 1, "chmod 600"),
    ] {
        use std::os::unix::fs::PermissionsExt;
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        let data = dir.path().join("data");
        let key = ["--data-dir", data.to_str().unwrap(), "--swarm-key", path.to_str().unwrap()];
        let refused = surf_node(&[&["join", "--listen", "127.0.0.1:0"][..], &key].concat());
        let said = String::from_utf8(refused.stderr).unwrap();
        assert_eq!(refused.status.code(), Some(status), "{said}");
        assert!(said.contains("swarm.key") && said.contains(words), "{said}");
    }
}

#[test]
fn members_share_a_model_and_others_do_not_even_see_them() {
    let dir = tempfile::tempdir().unwrap();
    let key = new_key(dir.path(), "swarm.key");
    let (seed, model) = seed(&key);
    let listen = seed.ready["listen"].as_array().unwrap();
    assert!(listen.iter().all(|addr| addr.as_str().unwrap().contains("/tcp/")), "{listen:?}");

    // One member is told by its settings file, with a path from where that is.
    let home = tempfile::tempdir().unwrap();
    std::fs::write(home.path().join("config.toml"), "swarm-key = \"swarm.key\"\n").unwrap();
    std::fs::copy(&key, home.path().join("swarm.key")).unwrap();
    let member = Process::join_in(home.path(), &[seed.addr()], &[]);
    let pulled = member.done(&["pull", &model]);
    assert_eq!(pulled["fetched_bytes"], pulled["bytes"], "{pulled}");
    assert_eq!(pulled["sources"][0]["peer"], seed.ready["peer_id"], "{pulled}");

    let other_key = new_key(dir.path(), "other.key");
    for outsider in [join(&other_key, &[seed.addr()]), Process::join(&[seed.addr()], &[])] {
        let refused = outsider.run(&["pull", &model]);
        assert_eq!(refused.status.code(), Some(3), "{}", String::from_utf8_lossy(&refused.stderr));
        assert_eq!(outsider.done(&["peers"]).as_array().unwrap().len(), 0);
    }
    let peers = seed.done(&["peers"]);
    assert_eq!(peers.as_array().unwrap().len(), 1, "only the member: {peers}");
}

#[test]
fn a_denied_peer_is_refused_though_it_has_the_key() {
    let dir = tempfile::tempdir().unwrap();
    let key = new_key(dir.path(), "swarm.key");
    let key_arg = ["--swarm-key", key.to_str().unwrap()];
    let denied_home = dir.path().join("denied");
    let id = surf_node(&["id", "--data-dir", denied_home.to_str().unwrap()]).stdout;
    let id = String::from_utf8(id).unwrap().trim().to_owned();
    let seed = Process::join(&[], &[&key_arg[..], &["--deny", &id]].concat());
    let published = seed.done(&["publish", tiny_surfer().to_str().unwrap()]);
    let model = published["model"].as_str().unwrap();

    let denied = Process::join_in(&denied_home, &[seed.addr()], &key_arg);
    assert_eq!(denied.ready["peer_id"], *id);
    assert_eq!(denied.run(&["pull", model]).status.code(), Some(3));
    let peers = seed.done(&["peers"]);
    assert_eq!(peers.as_array().unwrap().len(), 0, "{peers}");
    let friend = join(&key, &[seed.addr()]);
    let pulled = friend.done(&["pull", model]);
    assert_eq!(pulled["fetched_bytes"], pulled["bytes"], "{pulled}");
}

/// Bytes that a stranger gets on streams after the TLS handshake, having asked on many.
async fn asked_by_quic(holder: &Peer, alpn: &[u8], request: &[u8]) -> usize {
    let endpoint = quinn::Endpoint::client(ANY).unwrap();
    let tls = Identity::generate().client_tls_for(holder.id, alpn).unwrap();
    let config = quinn::ClientConfig::new(Arc::new(tls));
    let Ok(connection) = endpoint.connect_with(config, holder.addrs[0], "surf").unwrap().await else {
        return 0;
    };
    let mut received = 0;
    for bytes in [request, &[7; 32], request, request] {
        let Ok((mut send, mut recv)) = connection.open_bi().await else { break };
        if send.write_all(bytes).await.is_err() || send.finish().is_err() {
            break;
        }
        received += count(&mut recv).await;
    }
    tokio::select! {
        Ok(mut recv) = connection.accept_uni() => received += count(&mut recv).await,
        Ok(bytes) = connection.read_datagram() => received += bytes.len(),
        _ = connection.closed() => {}
        () = sleep(SOON) => panic!("a stranger is hung up on"),
    }
    received
}

async fn count(recv: &mut quinn::RecvStream) -> usize {
    let mut received = 0;
    while let Ok(Some(piece)) = timeout(SOON, recv.read_chunk(usize::MAX, true)).await.expect("no hang") {
        received += piece.bytes.len();
    }
    received
}

#[tokio::test(flavor = "multi_thread")]
async fn an_outsider_gets_no_byte_of_the_data_plane() {
    let dir = tempfile::tempdir().unwrap();
    let (seed, model) = seed(&new_key(dir.path(), "swarm.key"));
    let (holder, model): (Peer, ModelId) = (holder(&seed), model.parse().unwrap());
    let request = Request::Manifest(model);
    for alpn in [ALPN, ALPN_PRIVATE] {
        assert_eq!(asked_by_quic(&holder, alpn, &wire::encode_request(&request)).await, 0);
    }
    // The program's own client, without a key, with another, and with the right one.
    let right: SwarmKey = std::fs::read_to_string(dir.path().join("swarm.key")).unwrap().parse().unwrap();
    for (key, let_in) in [(None, false), (Some(SwarmKey::generate()), false), (Some(right), true)] {
        let members = Members { key, ..Members::default() };
        let config = config::Transfer { listen: ANY, limits: config::Limits::default() };
        let asker = transfer::Endpoint::bind(&Identity::generate(), &config, &members).unwrap();
        let asked = timeout(SOON, asker.dialer().ask(&holder, request.clone())).await.expect("no hang");
        assert_eq!(asked.is_ok(), let_in, "{:?}", asked.err());
    }
}

/// A relay of TCP connections to `to`, which counts the connections and the bytes that come back.
async fn counting(to: SocketAddr) -> (SocketAddr, Arc<[AtomicUsize; 2]>) {
    let listener = TcpListener::bind(ANY).await.unwrap();
    let addr = listener.local_addr().unwrap();
    let counts: Arc<[AtomicUsize; 2]> = Arc::default();
    let counting = Arc::clone(&counts);
    tokio::spawn(async move {
        while let Ok((near, _)) = listener.accept().await {
            let far = TcpStream::connect(to).await.unwrap();
            let ((mut near_in, mut near_out), (mut far_in, mut far_out)) =
                (near.into_split(), far.into_split());
            counting[0].fetch_add(1, Ordering::SeqCst);
            let counting = Arc::clone(&counting);
            tokio::spawn(async move {
                let mut piece = [0; 4096];
                while let Ok(size @ 1..) = far_in.read(&mut piece).await {
                    counting[1].fetch_add(size, Ordering::SeqCst);
                    if near_out.write_all(&piece[..size]).await.is_err() {
                        break;
                    }
                }
            });
            tokio::spawn(async move { tokio::io::copy(&mut near_in, &mut far_out).await });
        }
    });
    (addr, counts)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_outsider_gets_a_nonce_of_the_control_plane_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let seed = join(&new_key(dir.path(), "swarm.key"), &[]);
    let (control, id) = (control(&seed), holder(&seed).id);
    tokio::net::UdpSocket::bind(control).await.expect("nobody listens on UDP");

    // Both ends of pnet send 24 random bytes first; what follows is encrypted with the key and the other's.
    let says: [&[u8]; 5] = [b"", &[7], b"\x13/multistream/1.0.0\n\x07/noise\n", &[7; 24], &[7; 10_000]];
    let probes = says.map(async |says| {
        let mut probe = TcpStream::connect(control).await.unwrap();
        // The node may hang up before it has read all.
        let _ = probe.write_all(says).await;
        let mut answer = Vec::new();
        let _ = timeout(SOON, probe.read_to_end(&mut answer)).await.expect("strangers are hung up on");
        assert!(answer.len() <= NONCE_SIZE, "{} bytes after {}", answer.len(), says.len());
    });
    futures::future::join_all(probes).await;

    // Real libp2p, of an open swarm and of another private one.
    for key in [None, Some(SwarmKey::generate())] {
        let (relay, counts) = counting(control).await;
        let bootstrap = vec![format!("/ip4/127.0.0.1/tcp/{}/p2p/{id}", relay.port())];
        let config =
            config::Swarm { listen: vec![ANY], bootstrap, mdns: false, relay: config::Relay::default() };
        let members = Members { key, ..Members::default() };
        let (outsider, _) = swarm::start(&Identity::generate(), &config, &members, ANY).await.unwrap();
        let answered = async {
            while counts[1].load(Ordering::SeqCst) < NONCE_SIZE {
                sleep(Duration::from_millis(20)).await;
            }
        };
        timeout(SOON, answered).await.expect("it tries");
        let failed = async {
            while outsider.reachable().await.unwrap().unreached.is_empty() {
                sleep(Duration::from_millis(20)).await;
            }
        };
        timeout(SOON, failed).await.expect("it fails");
        let [connections, bytes] = [0, 1].map(|at| counts[at].load(Ordering::SeqCst));
        assert!(bytes <= connections * NONCE_SIZE, "{bytes} bytes on {connections} connections");
        assert_eq!(outsider.connected(), 0);
    }
    assert_eq!(seed.done(&["peers"]).as_array().unwrap().len(), 0);
}

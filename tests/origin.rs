//! What no peer has comes from an origin, and only then.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

use std::{
    fs,
    io::{Read, Write},
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use surf_node::{
    Node,
    api::{PublishRequest, Pulled},
    node::NodeError,
};
use surf_tests::{TestNode, config, fixture, start};
use tokio::sync::mpsc;
use url::Url;

/// How long what should happen within seconds may take on a machine that does other things.
const SOON: std::time::Duration = std::time::Duration::from_secs(200);

/// A node that joins through `bootstrap` and may ask `origin`.
async fn with_origin(bootstrap: &[String], origin: &Url) -> TestNode {
    let dir = tempfile::tempdir().unwrap();
    let mut config = config(dir.path(), bootstrap, 0);
    config.fetch.origins = vec![origin.clone()];
    TestNode { node: Node::start(config).await.unwrap(), dir }
}

/// Waits until `node` knows a peer.
async fn connected(node: &Node) {
    while node.peers().await.is_empty() {
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
}

async fn pull(node: &Node, model: &str) -> Result<Pulled, NodeError> {
    tokio::time::timeout(SOON, node.pull(model, mpsc::channel(1).0)).await.expect("it ends")
}

/// A node that has published the weights of a fixture, which lie in `folder`.
async fn publisher(folder: &Path) -> (TestNode, String) {
    fs::copy(fixture("llama").join("model.safetensors"), folder.join("model.safetensors")).unwrap();
    let seed = start(&[], 0).await;
    let path = folder.to_str().unwrap().to_owned();
    let request = PublishRequest { path, ..PublishRequest::default() };
    let model = seed.node.publish(request, mpsc::channel(1).0).await.unwrap().model;
    (seed, model)
}

/// Writes `model` to an origin in `folder`.
async fn sync(node: &Node, model: &str, folder: &Path) -> surf_node::api::OriginSynced {
    let url = Url::from_directory_path(folder).unwrap();
    node.origin_sync(model, url.as_str(), mpsc::channel(1).0).await.unwrap()
}

fn folder_url(folder: &Path) -> Url {
    Url::from_directory_path(folder).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn peers_go_before_the_origin_and_the_origin_before_giving_up() {
    let folder = tempfile::tempdir().unwrap();
    let (seed, model) = publisher(folder.path()).await;
    let origin = tempfile::tempdir().unwrap();
    sync(&seed.node, &model, origin.path()).await;
    let url = folder_url(origin.path());

    let first = with_origin(seed.node.listen(), &url).await;
    connected(&first.node).await;
    let pulled = pull(&first.node, &model).await.unwrap();
    assert!(pulled.sources.iter().all(|source| source.path == "local"), "{:?}", pulled.sources);
    drop(first);

    // The seed still has the manifest; the bytes are gone with the file.
    fs::write(folder.path().join("model.safetensors"), b"").unwrap();
    let begun = tokio::time::Instant::now();
    let second = with_origin(seed.node.listen(), &url).await;
    let pulled = pull(&second.node, &model).await.unwrap();
    println!("from the origin after {:?}", begun.elapsed());
    assert_eq!(pulled.fetched_bytes, pulled.bytes);
    assert!(pulled.sources.iter().any(|source| source.path == "origin"), "{:?}", pulled.sources);

    // Who has heard of the second would wait for its return.
    drop(second);
    let alone = async {
        while !seed.node.peers().await.is_empty() {
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(SOON, alone).await.expect("the seed notices that they have gone");
    println!("alone after {:?}", begun.elapsed());
    let lonely = start(seed.node.listen(), 0).await;
    let gone = pull(&lonely.node, &model).await;
    println!("given up after {:?}", begun.elapsed());
    assert!(matches!(gone, Err(NodeError::NotFound(_))), "{gone:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_without_any_peer_pulls_a_model_by_its_id() {
    let folder = tempfile::tempdir().unwrap();
    let (seed, model) = publisher(folder.path()).await;
    let origin = tempfile::tempdir().unwrap();
    let synced = sync(&seed.node, &model, origin.path()).await;
    assert_eq!((synced.new_chunks, synced.new_bytes), (synced.chunks, synced.bytes));
    drop(seed);

    let alone = with_origin(&[], &folder_url(origin.path())).await;
    let pulled = pull(&alone.node, &model).await.unwrap();
    assert_eq!(pulled.fetched_bytes, pulled.bytes);
    let out = tempfile::tempdir().unwrap();
    alone.node.export(&model, out.path(), mpsc::channel(1).0).await.unwrap();
    let published = fs::read(fixture("llama").join("model.safetensors")).unwrap();
    assert!(fs::read(out.path().join("model.safetensors")).unwrap() == published);

    // Synced again from there: nothing is written but what was damaged.
    let again = sync(&alone.node, &model, origin.path()).await;
    assert_eq!((again.new_chunks, again.chunks), (0, synced.chunks));
    let chunk = some_chunk(origin.path());
    let size = fs::metadata(&chunk).unwrap().len();
    fs::write(&chunk, vec![7; size as usize]).unwrap();
    let mended = sync(&alone.node, &model, origin.path()).await;
    assert_eq!((mended.new_chunks, mended.new_bytes), (1, size));
}

fn some_chunk(origin: &Path) -> PathBuf {
    let first = |dir: PathBuf| fs::read_dir(dir).unwrap().next().unwrap().unwrap().path();
    first(first(origin.join("chunks")))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_is_laid_out_as_an_origin() {
    let folder = tempfile::tempdir().unwrap();
    let (seed, model) = publisher(folder.path()).await;
    let holder = start(seed.node.listen(), 0).await;
    pull(&holder.node, &model).await.unwrap();
    drop(seed);
    let store = holder.dir.path().join("store");
    let alone = with_origin(&[], &folder_url(&store)).await;
    assert!(pull(&alone.node, &model).await.is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_of_the_origin_is_the_reason_that_is_given() {
    let model = format!("surf:{}", "ab".repeat(32));
    for (status, expected) in
        [(401, "(401)"), (403, "(403)"), (416, "(416)"), (429, "(429)"), (503, "(503)"), (404, "nobody")]
    {
        let alone = with_origin(&[], &refusing(status)).await;
        let refused = pull(&alone.node, &model).await;
        let Err(NodeError::NotFound(why)) = refused else { panic!("{status}: {refused:?}") };
        assert!(why.contains(expected) && !why.contains('\n'), "{status}: {why}");
    }
}

/// A web server that answers everything with `status`.
fn refusing(status: u16) -> Url {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = Url::parse(&format!("http://{}/", listener.local_addr().unwrap())).unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                let mut byte = [0];
                if stream.read_exact(&mut byte).is_err() {
                    break;
                }
                head.push(byte[0]);
            }
            let answer =
                format!("HTTP/1.1 {status} No\r\nContent-Length: 5\r\nConnection: close\r\n\r\nSorry");
            // The other side may have hung up.
            drop(stream.write_all(answer.as_bytes()));
        }
    });
    url
}

/// nginx with `root` as its folder, on `port`.
struct Nginx(Child);

impl Nginx {
    fn start(dir: &Path, root: &Path, port: u16) -> Option<Self> {
        let conf = format!(
            "daemon off; master_process off; error_log {0}/error.log; pid {0}/pid;\nevents {{}}\nhttp {{ access_log off; \
             client_body_temp_path {0}/b; proxy_temp_path {0}/p; fastcgi_temp_path {0}/f; uwsgi_temp_path {0}/u; \
             scgi_temp_path {0}/s; server {{ listen 127.0.0.1:{port}; root {1}; }} }}\n",
            dir.display(),
            root.display()
        );
        let path = dir.join("nginx.conf");
        fs::write(&path, conf).unwrap();
        let mut command = Command::new("nginx");
        command.arg("-c").arg(&path).arg("-e").arg(dir.join("error.log"));
        command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().ok().map(Self)
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        // It may have ended by itself.
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nginx_will_do_as_an_origin() {
    let folder = tempfile::tempdir().unwrap();
    let (seed, model) = publisher(folder.path()).await;
    let (origin, dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    sync(&seed.node, &model, origin.path()).await;
    drop(seed);
    let free = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = free.local_addr().unwrap().port();
    drop(free);
    // What nginx serves, its user must be able to read.
    #[cfg(unix)]
    fs::set_permissions(origin.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let Some(_nginx) = Nginx::start(dir.path(), origin.path(), port) else {
        eprintln!("skipped: nginx is not installed");
        return;
    };
    let url = Url::parse(&format!("http://127.0.0.1:{port}/")).unwrap();
    let alone = with_origin(&[], &url).await;
    // It may take nginx a moment to listen.
    let mut tries = 0;
    let pulled = loop {
        match pull(&alone.node, &model).await {
            Ok(pulled) => break pulled,
            Err(error) if tries == 10 => panic!("{error}"),
            Err(_) => tries += 1,
        }
    };
    assert_eq!(pulled.fetched_bytes, pulled.bytes);
    assert!(pulled.sources.iter().all(|source| source.path == "origin"), "{:?}", pulled.sources);
}

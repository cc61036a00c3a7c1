//! Folders and web servers, honest and not.

use std::{fs, net::SocketAddr};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};

use super::*;

fn chunk() -> Chunk {
    Chunk::of((0..100_000u32).map(|i| (i % 251) as u8).collect::<Vec<_>>().into())
}

fn entry(chunk: &Chunk) -> ChunkEntry {
    ChunkEntry { id: chunk.id(), size: chunk.bytes().len() as u32 }
}

fn words(result: Result<Option<Chunk>, SourceError>) -> String {
    result.expect_err("the bytes are not the chunk").to_string()
}

/// A web server that answers every request with `reply(path)`: real sockets, as little HTTP as will do.
async fn server(reply: impl Fn(&str) -> Vec<u8> + Send + Sync + 'static) -> Url {
    let listener = TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], 0))).await.unwrap();
    let url = Url::parse(&format!("http://{}/models/chunks", listener.local_addr().unwrap())).unwrap();
    let reply = Arc::new(reply);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let reply = Arc::clone(&reply);
            tokio::spawn(async move {
                let mut request = vec![];
                while !request.ends_with(b"\r\n\r\n") {
                    request.push(stream.read_u8().await.unwrap());
                }
                let request = String::from_utf8(request).unwrap();
                let path = request.split(' ').nth(1).unwrap();
                // The other side may hang up as soon as it has seen enough.
                let _ = stream.write_all(&reply(path)).await;
            });
        }
    });
    url
}

fn ok(length: usize, body: &[u8]) -> Vec<u8> {
    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n");
    [head.as_bytes(), body].concat()
}

#[tokio::test]
async fn a_folder_conforms() {
    let dir = tempfile::tempdir().unwrap();
    let folder = Object::open(&Url::from_directory_path(dir.path()).unwrap()).unwrap();
    let put = async |chunk: Chunk| fs::write(dir.path().join(chunk.id().to_hex()), chunk.bytes()).unwrap();
    crate::source::conformance::chunk_source(&folder, put).await;
}

#[tokio::test]
async fn damaged_files_in_a_folder_are_errors_not_chunks() {
    let dir = tempfile::tempdir().unwrap();
    let folder = Object::open(&Url::from_directory_path(dir.path()).unwrap()).unwrap();
    let chunk = chunk();
    let path = dir.path().join(chunk.id().to_hex());
    let mut bytes = chunk.bytes().to_vec();
    bytes[7] ^= 1;
    fs::write(&path, &bytes).unwrap();
    assert!(words(folder.get(entry(&chunk)).await).contains("asked for chunk"));
    fs::write(&path, &bytes[1..]).unwrap();
    assert!(words(folder.get(entry(&chunk)).await).contains("sent 99999 bytes"));
    fs::write(&path, [&bytes[..], b"more"].concat()).unwrap();
    assert!(words(folder.get(entry(&chunk)).await).contains("sent 100004 bytes"));
}

#[tokio::test]
async fn a_web_server_conforms() {
    let held = Arc::new(std::sync::Mutex::new(std::collections::HashMap::<String, Bytes>::new()));
    let served = Arc::clone(&held);
    let url = server(move |path| match served.lock().unwrap().get(path) {
        Some(bytes) => ok(bytes.len(), bytes),
        None => b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".to_vec(),
    });
    let origin = Object::open(&url.await).unwrap();
    let put = async |chunk: Chunk| {
        let path = format!("/models/chunks/{}", chunk.id().to_hex());
        held.lock().unwrap().insert(path, chunk.bytes().clone());
    };
    crate::source::conformance::chunk_source(&origin, put).await;
}

#[tokio::test]
async fn a_lying_server_is_refused() {
    let chunk = chunk();
    let wrong = vec![7; chunk.bytes().len()];
    let bytes = chunk.bytes().clone();
    let replies: Vec<(&str, Vec<u8>)> = vec![
        ("asked for chunk", ok(wrong.len(), &wrong)),
        ("sent 99999 bytes", ok(bytes.len() - 1, &bytes[1..])),
        // Nothing of the exabyte is waited for.
        ("sent 1152921504606846976 bytes", ok(1 << 60, &bytes)),
        ("http://127.0.0.1", ok(bytes.len(), &bytes[..50_000])),
        ("http://127.0.0.1", b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n".to_vec()),
        ("http://127.0.0.1", b"what?\r\n\r\n".to_vec()),
    ];
    for (expected, reply) in replies {
        let origin = Object::open(&server(move |_| reply.clone()).await).unwrap();
        let got = words(origin.get(entry(&chunk)).await);
        assert!(got.contains(expected), "{got}");
    }
}

#[tokio::test]
async fn a_server_that_is_not_there_could_not_tell() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = Url::parse(&format!("http://{}/", listener.local_addr().unwrap())).unwrap();
    drop(listener);
    let origin = Object::open(&url).unwrap();
    assert!(words(origin.get(entry(&chunk())).await).contains(url.as_str()));
}

#[test]
fn a_url_that_is_no_origin_is_refused_in_words() {
    let open = |url: &str| Object::open(&Url::parse(url).unwrap()).unwrap_err().to_string();
    assert!(open("ftp://host/x").contains("use a file://"));
    assert!(open("file://elsewhere/x").contains("this machine"));
    assert!(open("file:///does/not/exist").contains("file:///does/not/exist"));
}

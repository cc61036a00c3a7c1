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
    let url = Url::parse(&format!("http://{}/models", listener.local_addr().unwrap())).unwrap();
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
    let put = async |chunk: Chunk| {
        let path = dir.path().join(chunk_path(chunk.id()));
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, chunk.bytes()).unwrap();
    };
    crate::source::conformance::chunk_source(&folder, put).await;
}

#[tokio::test]
async fn damaged_files_in_a_folder_are_errors_not_chunks() {
    let dir = tempfile::tempdir().unwrap();
    let folder = Object::open(&Url::from_directory_path(dir.path()).unwrap()).unwrap();
    let chunk = chunk();
    let path = dir.path().join(chunk_path(chunk.id()));
    fs::create_dir_all(path.parent().unwrap()).unwrap();
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
        let path = format!("/models/{}", chunk_path(chunk.id()));
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
        ("http://127.0.0.1", b"what?\r\n\r\n".to_vec()),
    ];
    for (expected, reply) in replies {
        let origin = Object::open(&server(move |_| reply.clone()).await).unwrap();
        let got = words(origin.get(entry(&chunk)).await);
        assert!(got.contains(expected), "{got}");
    }
}

/// One sentence each, without the server's own page.
#[tokio::test]
async fn a_refusal_is_said_in_one_sentence() {
    for (status, expected) in [
        (401, "asks for credentials (401)"),
        (403, "forbids it (403)"),
        (416, "finds the range impossible (416)"),
        (418, "answers with HTTP status 418"),
        (429, "has too many requests (429)"),
        (500, "the origin fails (500)"),
        (503, "the origin fails (503)"),
    ] {
        let page = "<html>\n<h1>Sorry</h1>\n</html>";
        let head = format!("HTTP/1.1 {status} No\r\nContent-Length: {}\r\nConnection: close\r\n", page.len());
        let origin = Object::open(&server(move |_| format!("{head}\r\n{page}").into()).await).unwrap();
        let (chunk, model) = (chunk(), ModelId::of(b"a model"));
        for said in [
            words(origin.get(entry(&chunk)).await),
            origin.manifest(model).await.expect_err("it refuses").to_string(),
        ] {
            assert!(said.starts_with("http://127.0.0.1") && said.contains(expected), "{said}");
            assert!(!said.contains("Sorry") && !said.contains('\n') && said.len() < 200, "{said}");
        }
    }
}

#[tokio::test]
async fn a_manifest_is_read_up_to_its_limit() {
    let dir = tempfile::tempdir().unwrap();
    let folder = Object::open(&Url::from_directory_path(dir.path()).unwrap()).unwrap();
    let model = ModelId::of(b"a model");
    assert_eq!(folder.manifest(model).await.unwrap(), None);
    let path = dir.path().join(manifest_path(model));
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(&path, b"a model").unwrap();
    assert_eq!(folder.manifest(model).await.unwrap().unwrap(), b"a model"[..]);
    fs::File::create(&path).unwrap().set_len(MANIFEST_SIZE_MAX as u64 + 1).unwrap();
    let error = folder.manifest(model).await.unwrap_err().to_string();
    assert!(error.contains("which has at most"), "{error}");
}

#[test]
fn a_password_is_not_shown() {
    let origin = Object::open(&Url::parse("http://user:secret@127.0.0.1/x").unwrap()).unwrap();
    assert!(!origin.name().contains("secret") && !format!("{origin:?}").contains("secret"));
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

//! The outer layers of the RPC over real connections: who is let in, how errors look, how
//! connections end.

use std::{net::SocketAddr, time::Duration};

use axum::{
    body::Body,
    extract::State,
    routing::{get, post},
};
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::mpsc,
};

use super::*;
use crate::rpc::extract::Json;

/// A server with the outer layers and a few routes, stopped when dropped.
struct Server {
    addr: SocketAddr,
    stop: CancellationToken,
    ended: tokio::task::JoinHandle<()>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

async fn server(token: Option<&str>) -> Server {
    server_with(token, Router::new()).await
}

async fn server_with(token: Option<&str>, more: Router) -> Server {
    let config = config::Rpc { listen: "127.0.0.1:0".parse().unwrap(), token: token.map(str::to_owned) };
    let listener = bind(&config).await.unwrap();
    let router = Router::new()
        .route("/ping", get(|| async { "pong" }))
        .route("/healthz", get(surf::healthz))
        .route("/echo", post(|Json(value): Json<Value>| async { axum::Json(value) }))
        .route(
            "/panic",
            get(|| async {
                if true {
                    panic!("secret path")
                }
            }),
        )
        .merge(more);
    let (addr, stop) = (listener.addr(), CancellationToken::new());
    let watch = Watch { metrics: Metrics::default(), stop: stop.clone() };
    let router = wrap(router, listener.guard, watch);
    let ended = tokio::spawn(connections::run(listener.tcp, router, stop.clone()));
    Server { addr, stop, ended }
}

/// What is answered to `head`, in whose lines `HOST` stands for the server's address.
async fn ask(server: &Server, head: &str, body: &str) -> (u16, Value) {
    let mut stream = TcpStream::connect(server.addr).await.unwrap();
    let head = head.replace("HOST", &server.addr.to_string());
    let request = format!("{head}\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}", body.len());
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    (status, serde_json::from_str(body).unwrap_or_else(|_| body.into()))
}

#[tokio::test]
async fn hosts_and_origins_are_checked_on_every_route() {
    let server = server(None).await;
    let status = async |head: &str| ask(&server, head, "").await.0;
    assert_eq!(status("GET /ping HTTP/1.1\r\nhost: HOST").await, 200);
    assert_eq!(status("GET /ping HTTP/1.1\r\nhost: HOST\r\norigin: http://HOST").await, 200);
    assert_eq!(status("GET /ping HTTP/1.1\r\nhost: rebound.example").await, 403);
    assert_eq!(status("GET /nowhere HTTP/1.1\r\nhost: rebound.example").await, 403);
    assert_eq!(status("GET /healthz HTTP/1.1\r\nhost: rebound.example").await, 403);
    assert_eq!(status("POST /echo HTTP/1.1\r\nhost: HOST\r\norigin: https://evil.example").await, 403);
    assert_eq!(status("POST /echo HTTP/1.1\r\nhost: HOST\r\norigin: null").await, 403);
}

#[tokio::test]
async fn the_token_is_asked_for() {
    let server = server(Some("secret")).await;
    let (status, body) = ask(&server, "GET /ping HTTP/1.1\r\nhost: HOST", "").await;
    assert_eq!((status, &body["error"]["code"]), (401, &"unauthorized".into()));
    let head = |token: &str| format!("GET /ping HTTP/1.1\r\nhost: HOST\r\nauthorization: Bearer {token}");
    assert_eq!(ask(&server, &head("wrong"), "").await.0, 401);
    assert_eq!(ask(&server, &head("secret"), "").await, (200, "pong".into()));
    assert_eq!(ask(&server, "GET /healthz HTTP/1.1\r\nhost: HOST", "").await.0, 200);
}

#[tokio::test]
async fn every_error_has_the_same_shape_and_tells_nothing_inner() {
    let server = server(None).await;
    let large = format!("\"{}\"", "x".repeat(extract::JSON_SIZE_MAX));
    for (head, body, status, code) in [
        ("GET /nowhere", "", 404, "unknown_route"),
        ("GET /echo", "", 405, "method_not_allowed"),
        ("POST /echo", "{", 400, "invalid"),
        ("POST /echo", large.as_str(), 413, "too_large"),
        ("GET /panic", "", 500, "failed"),
    ] {
        let got = ask(&server, &format!("{head} HTTP/1.1\r\nhost: HOST"), body).await;
        let error = &got.1["error"];
        assert_eq!((got.0, error["code"].as_str()), (status, Some(code)), "{head}: {}", got.1);
        assert!(error["type"].is_string() && error["param"].is_null(), "{error}");
        assert!(!error["message"].as_str().unwrap().contains("secret"), "{error}");
    }
}

#[tokio::test]
async fn only_loopback_needs_no_token() {
    let bind_at = async |listen: &str, token: Option<&str>| {
        bind(&config::Rpc { listen: listen.parse().unwrap(), token: token.map(str::to_owned) }).await
    };
    let error = bind_at("0.0.0.0:0", None).await.unwrap_err();
    assert!(matches!(error, BindError::Exposed { .. }), "{error}");
    let listener = bind_at("0.0.0.0:0", Some("secret")).await.unwrap();
    assert_eq!(listener.url(), format!("http://127.0.0.1:{}", listener.addr().port()));
    let listener = bind_at("127.0.0.1:0", None).await.unwrap();
    assert_ne!(listener.addr().port(), 0);
    let error = bind_at(&listener.addr().to_string(), None).await.unwrap_err();
    let expected = format!("the RPC cannot listen on {}: another program listens there", listener.addr());
    assert_eq!(error.to_string(), expected);
}

/// Routes that never end their answers, and tell when they are asked and when nobody waits for them any more; and
/// `routes`.
fn endless(dropped: mpsc::Sender<&'static str>, routes: Router<mpsc::Sender<&'static str>>) -> Router {
    struct Tell(mpsc::Sender<&'static str>, &'static str);
    impl Tell {
        fn begin(to: mpsc::Sender<&'static str>, route: &'static str) -> Self {
            to.try_send("asked").unwrap();
            Self(to, route)
        }
    }
    impl Drop for Tell {
        fn drop(&mut self) {
            self.0.try_send(self.1).unwrap();
        }
    }
    async fn stream(State(dropped): State<mpsc::Sender<&'static str>>) -> Body {
        let tell = Tell::begin(dropped, "stream");
        Body::from_stream(futures::stream::unfold((tell, false), async |(tell, started)| {
            if started {
                std::future::pending::<()>().await;
            }
            Some((Ok::<_, std::convert::Infallible>("first"), (tell, true)))
        }))
    }
    async fn silence(State(dropped): State<mpsc::Sender<&'static str>>) {
        let _tell = Tell::begin(dropped, "silence");
        std::future::pending().await
    }
    routes.route("/stream", get(stream)).route("/silence", get(silence)).with_state(dropped)
}

#[tokio::test]
async fn what_a_client_asked_for_ends_when_it_goes_away() {
    let (dropped, mut ended) = mpsc::channel(2);
    let server = server_with(None, endless(dropped, Router::new())).await;
    for route in ["stream", "silence"] {
        let mut stream = TcpStream::connect(server.addr).await.unwrap();
        let request = format!("GET /{route} HTTP/1.1\r\nhost: {}\r\n\r\n", server.addr);
        stream.write_all(request.as_bytes()).await.unwrap();
        assert_eq!(ended.recv().await, Some("asked"));
        drop(stream);
        let told = tokio::time::timeout(Duration::from_secs(5), ended.recv()).await;
        assert_eq!(told, Ok(Some(route)));
    }
}

#[tokio::test]
async fn stopping_waits_for_nobody_for_long() {
    let (dropped, mut ended) = mpsc::channel(2);
    let mut server = server_with(None, endless(dropped, Router::new())).await;
    let mut stuck = TcpStream::connect(server.addr).await.unwrap();
    stuck.write_all(b"GET /silence HTTP/1.1\r\nhost: localhost\r\n\r\n").await.unwrap();
    let _idle = TcpStream::connect(server.addr).await.unwrap();
    assert_eq!(ended.recv().await, Some("asked"));
    server.stop.cancel();
    let ended = tokio::time::timeout(Duration::from_secs(10), &mut server.ended).await;
    ended.unwrap().unwrap();
}

/// Asks `request`, then a byte each tenth of a second, and gives what is answered once the server closes.
async fn drip(server: &Server, request: &str, byte: &[u8]) -> String {
    let stream = TcpStream::connect(server.addr).await.unwrap();
    let (mut reading, mut writing) = stream.into_split();
    writing.write_all(request.replace("HOST", &server.addr.to_string()).as_bytes()).await.unwrap();
    let dripping = async {
        while writing.write_all(byte).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        std::future::pending::<()>().await
    };
    let mut answer = Vec::new();
    tokio::select! {
        // A connection that is closed while bytes come in may be reset.
        _ = reading.read_to_end(&mut answer) => {}
        () = dripping => {}
    }
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test]
async fn clients_that_drip_or_take_nothing_are_cut_off() {
    let (dropped, mut ended) = mpsc::channel(2);
    let flood = Router::new().route(
        "/flood",
        get(|State(dropped): State<mpsc::Sender<&'static str>>| async move {
            struct Tell(mpsc::Sender<&'static str>);
            impl Drop for Tell {
                fn drop(&mut self) {
                    let _ = self.0.try_send("flood");
                }
            }
            let piece = axum::body::Bytes::from(vec![b'x'; 64 << 10]);
            Body::from_stream(futures::stream::unfold((Tell(dropped), piece), async |(tell, piece)| {
                Some((Ok::<_, std::convert::Infallible>(piece.clone()), (tell, piece)))
            }))
        }),
    );
    let server = server_with(None, endless(dropped, flood)).await;
    let head = "GET /ping HTTP/1.1\r\nhost: HOST\r\nx-slow: ";
    let body = "POST /echo HTTP/1.1\r\nhost: HOST\r\ncontent-length: 100000\r\n\r\n";
    let unread = async {
        let mut stream = TcpStream::connect(server.addr).await.unwrap();
        let request = format!("GET /flood HTTP/1.1\r\nhost: {}\r\n\r\n", server.addr);
        stream.write_all(request.as_bytes()).await.unwrap();
        let told = ended.recv().await;
        drop(stream);
        told
    };
    let all = async { tokio::join!(drip(&server, head, b"x"), drip(&server, body, b" "), unread) };
    let (head, body, unread) = tokio::time::timeout(Duration::from_secs(120), all).await.unwrap();
    assert!(!head.contains("pong"), "{head}");
    assert!(body.starts_with("HTTP/1.1 408"), "{body}");
    assert_eq!(unread, Some("flood"));
}

#[tokio::test]
async fn a_stop_answers_what_cannot_be_done_any_more() {
    let (dropped, mut ended) = mpsc::channel(2);
    let server = server_with(None, endless(dropped, Router::new())).await;
    let asking = ask(&server, "GET /silence HTTP/1.1\r\nhost: HOST", "");
    let stopping = async {
        assert_eq!(ended.recv().await, Some("asked"));
        server.stop.cancel();
    };
    let ((status, body), ()) = tokio::join!(asking, stopping);
    assert_eq!((status, &body["error"]["code"]), (503, &"stopping".into()));
}

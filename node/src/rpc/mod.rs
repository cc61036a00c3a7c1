//! The node over HTTP: OpenAI's API, what the commands use, and what watches the node.
//!
//! ```text
//!   connections   how many, how long, how they end     (`pace`: how slow a client may be)
//!   guard         who may ask                          (tokens, Host, Origin, Sec-Fetch-Site)
//!   extract       what is taken from a request          (bounded in size and time)
//!   openai        /v1/…                                 (generation, streamed; embeddings)
//!   surf          /surf/v1/…                            (everything else; `lines` for long work)
//!   chunk         /surf/v1/chunks/…
//!   forward       /surf/v1/forward
//!   metrics       /metrics
//!   work          what workers must not be kept with
//!   error         what went wrong, as an answer
//! ```
//!
//! The JSON of it all is in [`api`](crate::api). Whatever a client sends is bounded and answered in one shape; whoever goes away stops what it
//! asked for.

mod chunk;
mod connections;
pub mod error;
mod extract;
mod forward;
mod guard;
mod lines;
mod metrics;
mod openai;
mod pace;
mod surf;
#[cfg(test)]
mod tests;
mod work;

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    panic::AssertUnwindSafe,
    sync::Arc,
    time::Duration,
};

use axum::{
    Router,
    extract::{Request, State},
    http::{Method, StatusCode, Uri},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use futures::FutureExt;
use tokio::{net::TcpListener, sync::Semaphore};
use tokio_util::sync::CancellationToken;

use self::{
    error::{ApiError, code},
    guard::Guard,
    metrics::Metrics,
};
use crate::{config, node::Node};

/// A place where the RPC listens, and does not answer yet.
#[derive(Debug)]
pub struct Listener {
    tcp: TcpListener,
    addr: SocketAddr,
    guard: Guard,
}

/// The RPC cannot listen.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Anyone could drive the node.
    #[error("the RPC would listen on {addr}, where other machines reach it, without a token")]
    Exposed {
        /// Where it would listen.
        addr: SocketAddr,
    },
    /// The system refuses.
    #[error("the RPC cannot listen on {addr}: {}", words(.cause))]
    Listen {
        /// Where it would listen.
        addr: SocketAddr,
        /// Why the system refuses.
        cause: io::Error,
    },
}

impl Listener {
    /// Where it listens: the port is never 0.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Where clients on this machine find it.
    pub fn url(&self) -> String {
        let ip = match self.addr.ip() {
            IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
            IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
            ip => ip,
        };
        format!("http://{}", SocketAddr::new(ip, self.addr.port()))
    }
}

fn words(cause: &io::Error) -> String {
    match cause.kind() {
        io::ErrorKind::AddrInUse => "another program listens there".to_owned(),
        io::ErrorKind::AddrNotAvailable => "this machine has no such address".to_owned(),
        _ => cause.to_string(),
    }
}

/// Starts to listen as `config` says. Connections wait until [`serve`] is called.
pub async fn bind(config: &config::Rpc) -> Result<Listener, BindError> {
    let addr = config.listen;
    if !addr.ip().is_loopback() && config.token.is_none() {
        return Err(BindError::Exposed { addr });
    }
    let tcp = TcpListener::bind(addr).await;
    let bound = tcp.and_then(|tcp| tcp.local_addr().map(|addr| (tcp, addr)));
    let (tcp, addr) = bound.map_err(|cause| BindError::Listen { addr, cause })?;
    Ok(Listener { tcp, addr, guard: Guard::new(config.token.as_deref()) })
}

/// Answers for `node` until `stop` is cancelled, and then until the answers that are under way are
/// done, but not for long.
pub async fn serve(listener: Listener, node: Node, stop: CancellationToken) {
    let app = App {
        node,
        url: listener.url(),
        started_unix: clock_unix(),
        metrics: Metrics::default(),
        large: Arc::new(Semaphore::new(1)),
        stop: stop.clone(),
    };
    let watch = Watch { metrics: app.metrics.clone(), stop: stop.clone() };
    let router = wrap(routes().with_state(app), listener.guard, watch);
    connections::run(listener.tcp, router, stop).await;
}

/// What every handler has at hand.
#[derive(Clone, Debug)]
struct App {
    node: Node,
    /// Where the RPC is.
    url: String,
    /// When it started, in seconds since 1970.
    started_unix: u64,
    metrics: Metrics,
    /// Places for requests with a large body.
    large: Arc<Semaphore>,
    /// Cancelled when the node is to stop.
    stop: CancellationToken,
}

/// How long whole answers may take after the node was told to stop.
const STOP_GRACE: Duration = Duration::from_secs(1);

/// What every answer passes.
#[derive(Clone, Debug)]
struct Watch {
    metrics: Metrics,
    stop: CancellationToken,
}

/// Seconds since 1970.
#[expect(clippy::disallowed_methods, reason = "a date to show; nothing is decided by it")]
fn clock_unix() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    now.map_or(0, |since| since.as_secs())
}

fn routes() -> Router<App> {
    let surf = Router::new()
        .route("/status", get(surf::status))
        .route("/limits", get(surf::limits).post(surf::limit))
        .route("/peers", get(surf::peers))
        .route("/models", get(surf::models))
        .route("/models/{*id}", get(surf::model))
        .route("/events", get(surf::events))
        .route("/chunks/{id}", get(chunk::chunk))
        .route("/publish", post(surf::publish))
        .route("/pull", post(surf::pull))
        .route("/export", post(surf::export))
        .route("/origin/sync", post(surf::origin_sync))
        .route("/pin", post(surf::pin))
        .route("/unpin", post(surf::unpin))
        .route("/rm", post(surf::rm))
        .route("/gc", post(surf::gc))
        .route("/verify", post(surf::verify))
        .route("/name", post(surf::set_name))
        .route("/name/{*name}", get(surf::name))
        .route("/resolve", post(surf::resolve))
        .route("/check", post(surf::check))
        .route("/forward", post(forward::forward));
    Router::new()
        .route("/v1/models", get(openai::models))
        .route("/v1/models/{*id}", get(openai::model))
        .route("/v1/completions", post(openai::completions))
        .route("/v1/chat/completions", post(openai::chat_completions))
        .route("/v1/embeddings", post(openai::embeddings))
        .nest("/surf/v1", surf)
        .route("/metrics", get(metrics::metrics))
        .route("/healthz", get(surf::healthz))
        .route("/readyz", get(surf::readyz))
}

/// Puts around `router` what holds for every route.
fn wrap(router: Router, guard: Guard, watching: Watch) -> Router {
    router
        .fallback(unknown_route)
        .method_not_allowed_fallback(unknown_method)
        .layer(middleware::from_fn_with_state(guard, guard::check))
        .layer(middleware::from_fn_with_state(watching, watch))
}

/// Counts the answer, and gives one even if a handler panics or the node stops.
async fn watch(State(watching): State<Watch>, request: Request, next: Next) -> Response {
    let Watch { metrics, stop } = watching;
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let stopped = async {
        stop.cancelled().await;
        tokio::time::sleep(STOP_GRACE).await;
    };
    let answered = tokio::select! {
        biased;
        answered = AssertUnwindSafe(next.run(request)).catch_unwind() => answered,
        () = stopped => Ok(ApiError::stopping().into_response()),
    };
    let response = answered.unwrap_or_else(|_| {
        ApiError::failed(format!("this is a bug in surf-node: {method} {path} ended without an answer"))
            .into_response()
    });
    metrics.answered(response.status());
    tracing::debug!(%method, path, status = response.status().as_u16(), "answered");
    response
}

async fn unknown_route(uri: Uri) -> ApiError {
    let message = format!("the node has no route {}", uri.path());
    ApiError::new(StatusCode::NOT_FOUND, code::UNKNOWN_ROUTE, message)
}

async fn unknown_method(method: Method, uri: Uri) -> ApiError {
    let message = format!("{} does not understand {method}", uri.path());
    ApiError::new(StatusCode::METHOD_NOT_ALLOWED, code::METHOD_NOT_ALLOWED, message)
}

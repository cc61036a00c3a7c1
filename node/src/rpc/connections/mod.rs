//! Connections of the RPC: how many, who has a place, and how they end.
//!
//! - `place`: who has a place, and who loses it to whom. Pure.
//! - `watched`: streams and bodies that tell their place what the client does.

mod place;
mod watched;

use std::{convert::Infallible, sync::Arc, time::Duration};

use axum::{
    Router,
    body::Body,
    http::{HeaderValue, Request, StatusCode, header},
    response::{IntoResponse, Response},
};
use hyper::{
    body::Incoming,
    server::conn::http1,
    service::{Service, service_fn},
};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use tokio::{
    net::{TcpListener, TcpStream},
    time::Instant,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use self::{
    place::{Kind, PLACES, Place, Places},
    watched::{Answering, Asking, Watched},
};
use super::error::{ApiError, code};

/// What may be asked in a place for probes.
const PROBES: &[&str] = &["/healthz", "/readyz", "/metrics"];

/// Bytes of answers that the system keeps for a client. Enough for a fast line, and little enough that it
/// shows soon if a client takes nothing.
const SEND_BUFFER: usize = 256 << 10;

/// Bytes in the head of a request, and of an answer that waits to be written.
const BUFFER_SIZE_MAX: usize = 64 << 10;

/// How long answers may go on after the node was told to stop.
const STOP_TIME: Duration = Duration::from_secs(2);

/// How long to wait when the system has no more file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Answers requests with `router` until `stop` is cancelled, then until those that are being
/// answered are done, but not for long.
pub(super) async fn run(listener: TcpListener, router: Router, stop: CancellationToken) {
    let places = Arc::new(Places::default());
    let tracker = TaskTracker::new();
    loop {
        let accepted = tokio::select! {
            biased;
            () = stop.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, _)) => {
                let Some(place) = places.enter(Instant::now()) else { continue };
                let (router, places, stop) = (router.clone(), Arc::clone(&places), stop.clone());
                tracker.spawn(async move {
                    answer(stream, router, &places, &place, stop).await;
                    places.leave(&place);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "the RPC could not accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    drop(listener);
    tracker.close();
    tracker.wait().await;
}

async fn answer(
    stream: TcpStream,
    router: Router,
    places: &Arc<Places>,
    place: &Arc<Place>,
    stop: CancellationToken,
) {
    // Tokens are sent one by one; none should wait for the next.
    let _ = stream.set_nodelay(true);
    let _ = socket2::SockRef::from(&stream).set_send_buffer_size(SEND_BUFFER);
    let is_probe = place.kind() == Kind::Probe;
    let service = service_fn(|request: Request<Incoming>| {
        one(request, router.clone(), Arc::clone(places), Arc::clone(place))
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        // The stream knows better: an answer that is still being taken is no delay.
        .header_read_timeout(None)
        .max_buf_size(BUFFER_SIZE_MAX)
        .keep_alive(!is_probe)
        .serve_connection(TokioIo::new(Watched::new(stream, Arc::clone(place))), service);
    tokio::pin!(connection);
    // How a connection ends is its client's affair.
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = place.lost.cancelled() => {
            tracing::debug!("an RPC connection made room for another");
            Ok(())
        }
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            tokio::time::timeout(STOP_TIME, connection).await.unwrap_or(Ok(()))
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "an RPC connection broke off");
    }
}

/// Answers one request.
async fn one(
    request: Request<Incoming>,
    router: Router,
    places: Arc<Places>,
    place: Arc<Place>,
) -> Result<Response, Infallible> {
    place.asked();
    let response = if PROBES.contains(&request.uri().path()) || places.widen(&place, Instant::now()) {
        let asking = |body| Body::new(Asking { body, place: Arc::clone(&place) });
        TowerToHyperService::new(router).call(request.map(asking)).await?
    } else {
        crowded()
    };
    Ok(response.map(|body| Body::new(Answering { body, place })))
}

/// The answer to what has no place.
fn crowded() -> Response {
    let message = format!("all {PLACES} connections are taken; try again later");
    let mut response = ApiError::new(StatusCode::SERVICE_UNAVAILABLE, code::BUSY, message).into_response();
    response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
    response
}

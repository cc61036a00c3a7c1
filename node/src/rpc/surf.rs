//! The routes under `/surf/v1`: what the commands of this program use. Thin: each says what to hand
//! to the node, and how its answer is written.

use std::sync::Arc;

use axum::{
    Json,
    extract::{RawQuery, Request, State},
    http::StatusCode,
    response::{IntoResponse, Response},
};

use super::{
    App,
    error::{ApiError, code},
    extract::{self, Params, Tail},
    lines,
    work::aside,
};
use crate::api::{
    CheckRequest, Checked, ExportRequest, Freed, Health, Limits, LimitsRequest, LookUpRequest, ModelDetail,
    ModelInfo, ModelRequest, NameInfo, NameRequest, NoRequest, OriginSyncRequest, PeerView, PublishRequest,
    Status, VerifyRequest,
};

/// Bytes in a file of recorded outputs. Those of a few prompts of any model are far below this.
const EXPECTED_SIZE_MAX: usize = 512 * 1024 * 1024;

/// `GET /surf/v1/status`
pub(super) async fn status(State(app): State<App>) -> Json<Status> {
    let mut status = app.node.status().await;
    status.rpc.clone_from(&app.url);
    Json(status)
}

/// `GET /surf/v1/limits`
pub(super) async fn limits(State(app): State<App>) -> Json<Limits> {
    Json(app.node.limits())
}

/// `POST /surf/v1/limits`
pub(super) async fn limit(
    State(app): State<App>,
    body: extract::Json<LimitsRequest>,
) -> Result<Json<Limits>, ApiError> {
    Ok(Json(app.node.limit(&body.0)?))
}

/// `GET /surf/v1/peers`
pub(super) async fn peers(State(app): State<App>) -> Json<Vec<PeerView>> {
    Json(app.node.peers().await)
}

/// `GET /surf/v1/models`
pub(super) async fn models(State(app): State<App>) -> Json<Vec<ModelInfo>> {
    Json(app.node.models().await)
}

/// `GET /surf/v1/models/{id}`
pub(super) async fn model(State(app): State<App>, Tail(name): Tail) -> Result<Json<ModelDetail>, ApiError> {
    Ok(Json(app.node.model(&name).await?))
}

/// `GET /surf/v1/events`
pub(super) async fn events(State(app): State<App>) -> Result<Response, ApiError> {
    aside(move || Ok(Json(app.node.journal().entries()).into_response())).await
}

/// `POST /surf/v1/publish`
pub(super) async fn publish(State(app): State<App>, body: extract::Json<PublishRequest>) -> Response {
    let stop = app.stop.clone();
    lines::answer(&stop, |progress| async move { app.node.publish(body.0, progress).await })
}

/// `POST /surf/v1/pull`
pub(super) async fn pull(State(app): State<App>, body: extract::Json<ModelRequest>) -> Response {
    let stop = app.stop.clone();
    lines::answer(&stop, |progress| async move { app.node.pull(&body.0.model, progress).await })
}

/// `POST /surf/v1/export`
pub(super) async fn export(State(app): State<App>, body: extract::Json<ExportRequest>) -> Response {
    let (stop, ExportRequest { model, dir }) = (app.stop.clone(), body.0);
    lines::answer(&stop, |progress| async move { app.node.export(&model, dir.as_ref(), progress).await })
}

/// `POST /surf/v1/origin/sync`
pub(super) async fn origin_sync(State(app): State<App>, body: extract::Json<OriginSyncRequest>) -> Response {
    let (stop, OriginSyncRequest { model, url }) = (app.stop.clone(), body.0);
    lines::answer(&stop, |progress| async move { app.node.origin_sync(&model, &url, progress).await })
}

/// `POST /surf/v1/verify`
pub(super) async fn verify(State(app): State<App>, body: extract::Json<VerifyRequest>) -> Response {
    let VerifyRequest { model, repair } = body.0;
    let stop = app.stop.clone();
    lines::answer(&stop, |progress| async move { app.node.verify(model.as_deref(), repair, progress).await })
}

/// `POST /surf/v1/pin`
pub(super) async fn pin(
    State(app): State<App>,
    body: extract::Json<ModelRequest>,
) -> Result<Json<Freed>, ApiError> {
    app.node.pin(&body.0.model).await?;
    Ok(Json(Freed::default()))
}

/// `POST /surf/v1/unpin`
pub(super) async fn unpin(
    State(app): State<App>,
    body: extract::Json<ModelRequest>,
) -> Result<Json<Freed>, ApiError> {
    app.node.unpin(&body.0.model).await?;
    Ok(Json(Freed::default()))
}

/// `POST /surf/v1/rm`
pub(super) async fn rm(
    State(app): State<App>,
    body: extract::Json<ModelRequest>,
) -> Result<Json<Freed>, ApiError> {
    Ok(Json(app.node.remove(&body.0.model).await?))
}

/// `POST /surf/v1/gc`
pub(super) async fn gc(State(app): State<App>, _: extract::Json<NoRequest>) -> Result<Json<Freed>, ApiError> {
    Ok(Json(app.node.gc().await?))
}

/// `POST /surf/v1/name`
pub(super) async fn set_name(
    State(app): State<App>,
    body: extract::Json<NameRequest>,
) -> Result<Json<NameInfo>, ApiError> {
    Ok(Json(app.node.set_name(&body.0.name, &body.0.model).await?))
}

/// `GET /surf/v1/name/{peer}/{name}`
pub(super) async fn name(State(app): State<App>, Tail(name): Tail) -> Result<Json<NameInfo>, ApiError> {
    Ok(Json(app.node.peek_name(&name).await?))
}

/// `POST /surf/v1/resolve`: the same, and remembered.
pub(super) async fn resolve(
    State(app): State<App>,
    body: extract::Json<LookUpRequest>,
) -> Result<Json<NameInfo>, ApiError> {
    Ok(Json(app.node.name(&body.0.name).await?))
}

/// `POST /surf/v1/check?model=…&tolerance=…`, with the file of recorded outputs as the body.
pub(super) async fn check(
    State(app): State<App>,
    Params(query): Params<CheckRequest>,
    request: Request,
) -> Result<Json<Checked>, ApiError> {
    if !(0.0..).contains(&query.tolerance) {
        return Err(ApiError::param("tolerance", "tolerance is a number from 0"));
    }
    // One such body at a time: each may be large.
    let place = Arc::clone(&app.large).try_acquire_owned();
    let _place = place.map_err(|_| {
        ApiError::new(StatusCode::TOO_MANY_REQUESTS, code::BUSY, "another check is running; try again later")
    })?;
    let expected = extract::read(request, EXPECTED_SIZE_MAX).await?;
    Ok(Json(app.node.check(&query.model, expected, query.tolerance).await?))
}

/// `GET /healthz`: the node is there.
pub(super) async fn healthz() -> &'static str {
    "ok\n"
}

/// `GET /readyz`: the node can serve. With `?verbose`, a line for each part.
pub(super) async fn readyz(State(app): State<App>, RawQuery(query): RawQuery) -> Response {
    let mut health = app.node.health().await;
    if app.stop.is_cancelled() {
        health.push(Health { part: "node", state: Err("it is stopping".to_owned()) });
    }
    let verbose =
        query.is_some_and(|query| query.split('&').any(|part| part.split('=').next() == Some("verbose")));
    let said = health.iter().filter_map(|Health { part, state }| match state {
        Ok(how) => verbose.then(|| format!("[+] {part}: {how}\n")),
        Err(why) => Some(format!("[-] {part}: {why}\n")),
    });
    let said: String = said.collect();
    match health.iter().all(|health| health.state.is_ok()) {
        true if verbose => format!("{said}ok\n").into_response(),
        true => "ok\n".into_response(),
        false => (StatusCode::SERVICE_UNAVAILABLE, said).into_response(),
    }
}

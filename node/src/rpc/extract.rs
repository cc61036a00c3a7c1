//! What handlers take from a request: bounded in size and in time, and refused in our own words.

use axum::{
    body::{BodyDataStream, Bytes},
    extract::{FromRequest, FromRequestParts, Path, Query, Request},
    http::{StatusCode, header, request::Parts},
};
use bytes::BytesMut;
use futures::StreamExt;
use serde::de::DeserializeOwned;
use tokio::time::{Instant, timeout};

use super::{
    error::{ApiError, code},
    pace::{PATIENCE, Pace},
    work::{INLINE_MAX, aside},
};

/// Bytes in a body of JSON. A prompt that fills a context of half a million tokens is below this.
pub(super) const JSON_SIZE_MAX: usize = 4 * 1024 * 1024;

/// Bytes to read and forget of a body that is too large.
const DISCARD_SIZE_MAX: usize = 16 * 1024 * 1024;

/// A body of JSON. An empty one counts as `{}`. The content type does not matter.
#[derive(Debug)]
pub(super) struct Json<T>(pub(super) T);

/// The rest of the path, percent-decoded.
#[derive(Debug)]
pub(super) struct Tail(pub(super) String);

/// The query, parsed.
#[derive(Debug)]
pub(super) struct Params<T>(pub(super) T);

impl<T: DeserializeOwned + Send + 'static, S: Sync> FromRequest<S> for Json<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, _: &S) -> Result<Self, ApiError> {
        let bytes = read(request, JSON_SIZE_MAX).await?;
        if bytes.len() <= INLINE_MAX {
            parse(&bytes).map(Self)
        } else {
            aside(move || parse(&bytes).map(Self)).await
        }
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Tail {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let path = Path::<String>::from_request_parts(parts, state).await;
        path.map(|Path(tail)| Self(tail)).map_err(|error| ApiError::invalid(error.body_text()))
    }
}

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for Params<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let query = Query::<T>::from_request_parts(parts, state).await;
        query.map(|Query(params)| Self(params)).map_err(|error| ApiError::invalid(error.body_text()))
    }
}

/// The body of `request`, if it has no more than `size_max` bytes and keeps coming.
pub(super) async fn read(request: Request, size_max: usize) -> Result<Bytes, ApiError> {
    let said =
        request.headers().get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok());
    let mut pieces = Pieces { body: request.into_body().into_data_stream(), pace: Pace::default() };
    let mut bytes = BytesMut::new();
    if said.is_some_and(|said: usize| size_max < said) {
        pieces.discard().await;
        return Err(too_large(size_max));
    }
    while let Some(piece) = pieces.next().await? {
        if size_max - bytes.len() < piece.len() {
            pieces.discard().await;
            return Err(too_large(size_max));
        }
        bytes.extend_from_slice(&piece);
    }
    Ok(bytes.freeze())
}

/// A body as it comes.
struct Pieces {
    body: BodyDataStream,
    pace: Pace,
}

impl Pieces {
    /// The next piece. `None`: that was all.
    async fn next(&mut self) -> Result<Option<Bytes>, ApiError> {
        let now = Instant::now();
        self.pace.wait(now);
        let piece = timeout(self.pace.left(now), self.body.next()).await.map_err(|_| {
            let message = format!("the body made next to no progress for {} s", PATIENCE.as_secs());
            ApiError::new(StatusCode::REQUEST_TIMEOUT, code::TIMEOUT, message)
        })?;
        let piece = piece.transpose().map_err(|_| ApiError::invalid("the body broke off"))?;
        self.pace.moved(piece.as_ref().map_or(0, Bytes::len), Instant::now());
        Ok(piece)
    }

    /// Reads on for a while: a client that is cut off while it sends never reads why.
    async fn discard(&mut self) {
        let mut left = DISCARD_SIZE_MAX;
        while let Ok(Some(piece)) = self.next().await {
            match left.checked_sub(piece.len()) {
                Some(rest) => left = rest,
                None => return,
            }
        }
    }
}

fn too_large(size_max: usize) -> ApiError {
    let message = format!("the body is larger than {size_max} bytes");
    ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, code::TOO_LARGE, message)
}

fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, ApiError> {
    let bytes = if bytes.is_empty() { b"{}" } else { bytes };
    serde_json::from_slice(bytes).map_err(|error| {
        let (words, message) = (error.to_string(), format!("the body is not as expected: {error}"));
        let field = ["unknown field `", "missing field `", "duplicate field `"]
            .iter()
            .find_map(|start| words.strip_prefix(start)?.split('`').next());
        match field {
            Some(field) => ApiError::param(field, message),
            None => ApiError::invalid(message),
        }
    })
}

#[cfg(test)]
mod tests {
    use axum::body::Body;

    use super::*;

    fn request(body: impl Into<Body>) -> Request {
        Request::builder().body(body.into()).unwrap()
    }

    #[tokio::test]
    async fn a_body_is_bounded_whether_or_not_it_says_its_size() {
        assert_eq!(read(request("12345"), 5).await.unwrap(), "12345");
        let pieces = || futures::stream::iter(["123", "456"].map(Ok::<_, std::io::Error>));
        assert_eq!(read(request(Body::from_stream(pieces())), 6).await.unwrap(), "123456");
        let error = read(request(Body::from_stream(pieces())), 5).await.unwrap_err();
        assert_eq!(error.status, StatusCode::PAYLOAD_TOO_LARGE);
        let mut lie = request("1");
        lie.headers_mut().insert(header::CONTENT_LENGTH, "9999999".parse().unwrap());
        assert_eq!(read(lie, 5).await.unwrap_err().status, StatusCode::PAYLOAD_TOO_LARGE);
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_stalls_is_given_up() {
        let never = Body::from_stream(futures::stream::pending::<Result<Bytes, std::io::Error>>());
        assert_eq!(read(request(never), 5).await.unwrap_err().status, StatusCode::REQUEST_TIMEOUT);
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_drips_is_given_up_and_a_slow_one_is_not() {
        let drip = |piece: &'static [u8], count: usize| {
            let pieces = futures::stream::iter(0..count).then(move |_| async move {
                tokio::time::sleep(std::time::Duration::from_secs(1)).await;
                Ok::<_, std::io::Error>(piece)
            });
            request(Body::from_stream(pieces))
        };
        let start = Instant::now();
        let error = read(drip(b"x", 100), 1000).await.unwrap_err();
        assert_eq!(error.status, StatusCode::REQUEST_TIMEOUT);
        assert!(start.elapsed() < std::time::Duration::from_secs(30));
        assert_eq!(read(drip(&[b' '; 8192], 100), 1 << 20).await.unwrap().len(), 819_200);
    }

    #[test]
    fn what_is_not_json_is_refused_with_its_place() {
        let error = parse::<crate::api::PublishRequest>(b"").unwrap_err();
        assert!(error.message.contains("missing field `path`"), "{}", error.message);
        let error = parse::<crate::api::ModelRequest>(br#"{"model":"x","modle":"y"}"#).unwrap_err();
        assert_eq!(error.param.as_deref(), Some("modle"), "{}", error.message);
        assert!(parse::<serde_json::Value>(&b"[".repeat(100_000)).is_err());
    }
}

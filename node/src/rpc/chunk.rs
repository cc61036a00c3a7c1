//! One chunk's bytes, or a range of them.

use std::ops::Range;

use axum::{
    body::Bytes,
    extract::State,
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use surf_protocol::ChunkId;

use super::{App, error::ApiError, extract::Tail};

/// `GET /surf/v1/chunks/{id}`
pub(super) async fn chunk(
    State(app): State<App>,
    Tail(id): Tail,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let id = ChunkId::from_hex(&id)
        .ok_or_else(|| ApiError::invalid(format!("{id:?} is no chunk id: 64 hexadecimal digits")))?;
    let bytes = app.node.chunk(id).await?;
    let bytes =
        bytes.ok_or_else(|| ApiError::not_found(format!("chunk {} is not on this node", id.to_hex())))?;
    let range = headers.get(header::RANGE).and_then(|range| range.to_str().ok());
    let mut response = ranged(bytes, range);
    let etag = HeaderValue::from_str(&format!("\"{}\"", id.to_hex())).expect("hexadecimal digits");
    response.headers_mut().insert(header::ETAG, etag);
    // A chunk is named by its bytes, so it never changes.
    let forever = HeaderValue::from_static("private, max-age=31536000, immutable");
    response.headers_mut().insert(header::CACHE_CONTROL, forever);
    Ok(response)
}

/// What a `Range` header asks for.
#[derive(Debug, PartialEq)]
enum Asked {
    /// Everything: there is no range, or one that is not understood or not a single one.
    Whole,
    Part(Range<usize>),
    /// Nothing that is there.
    Outside,
}

fn ranged(bytes: Bytes, range: Option<&str>) -> Response {
    let size = bytes.len();
    let kind = (header::CONTENT_TYPE, "application/octet-stream".to_owned());
    let unit = (header::ACCEPT_RANGES, "bytes".to_owned());
    match range.map_or(Asked::Whole, |range| asked(range, size)) {
        Asked::Whole => ([kind, unit], bytes).into_response(),
        Asked::Part(range) => {
            let place = format!("bytes {}-{}/{size}", range.start, range.end - 1);
            let headers = [kind, unit, (header::CONTENT_RANGE, place)];
            (StatusCode::PARTIAL_CONTENT, headers, bytes.slice(range)).into_response()
        }
        Asked::Outside => {
            let error = ApiError::new(
                StatusCode::RANGE_NOT_SATISFIABLE,
                super::error::code::INVALID,
                format!("the chunk has {size} bytes"),
            );
            ([(header::CONTENT_RANGE, format!("bytes */{size}"))], error).into_response()
        }
    }
}

fn asked(range: &str, size: usize) -> Asked {
    let number =
        |text: &str| text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse::<u64>().ok()).flatten();
    let parts = range.strip_prefix("bytes=").map(str::trim).and_then(|range| range.split_once('-'));
    let size = size as u64;
    let (start, end) = match parts {
        Some(("", last)) => match number(last) {
            Some(count) => (size.saturating_sub(count), size),
            None => return Asked::Whole,
        },
        Some((first, "")) => match number(first) {
            Some(first) => (first, size),
            None => return Asked::Whole,
        },
        Some((first, last)) => match (number(first), number(last)) {
            (Some(first), Some(last)) if first <= last => (first, size.min(last.saturating_add(1))),
            _ => return Asked::Whole,
        },
        None => return Asked::Whole,
    };
    if start < end { Asked::Part(start as usize..end as usize) } else { Asked::Outside }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_those_of_rfc_9110() {
        for (range, expected) in [
            ("bytes=0-0", Asked::Part(0..1)),
            ("bytes=2-5", Asked::Part(2..6)),
            ("bytes=2-", Asked::Part(2..10)),
            ("bytes=-3", Asked::Part(7..10)),
            ("bytes=-30", Asked::Part(0..10)),
            ("bytes=9-18446744073709551615", Asked::Part(9..10)),
            ("bytes=10-", Asked::Outside),
            ("bytes=10-11", Asked::Outside),
            ("bytes=-0", Asked::Outside),
            ("bytes=5-2", Asked::Whole),
            ("bytes=0-1,3-4", Asked::Whole),
            ("bytes=-", Asked::Whole),
            ("bytes=+1-2", Asked::Whole),
            ("lines=0-1", Asked::Whole),
            ("", Asked::Whole),
        ] {
            assert_eq!(asked(range, 10), expected, "{range}");
        }
        assert_eq!(asked("bytes=0-", 0), Asked::Outside);
    }

    #[tokio::test]
    async fn a_part_says_where_it_stands() {
        let response = ranged(Bytes::from_static(b"0123456789"), Some("bytes=2-4"));
        assert_eq!(response.status(), 206);
        assert_eq!(response.headers()["content-range"], "bytes 2-4/10");
        assert_eq!(axum::body::to_bytes(response.into_body(), 100).await.unwrap(), "234");
        let response = ranged(Bytes::from_static(b"0123456789"), Some("bytes=10-"));
        assert_eq!(
            (response.status().as_u16(), &response.headers()["content-range"]),
            (416, &"bytes */10".parse().unwrap())
        );
    }
}

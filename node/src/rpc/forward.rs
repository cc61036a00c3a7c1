//! One pass over given tokens, answered in numbers: `POST /surf/v1/forward`.
//!
//! The answer is a safetensors file written as it is sent: logits of many tokens are large, so no
//! more than one row of them is held twice.

use std::convert::Infallible;

use axum::{
    body::{Body, Bytes},
    extract::State,
    http::header,
    response::{IntoResponse, Response},
};
use futures::stream;
use serde::Deserialize;
use serde_json::json;

use super::{App, error::ApiError, extract::Json};
use crate::engine::Logits;

/// What to run.
#[derive(Debug, Deserialize)]
pub(super) struct ForwardRequest {
    model: String,
    /// Rows of token ids, all of one length; or a single row.
    input_ids: Rows,
    /// Which tokens count: all must. Padded batches are not understood.
    attention_mask: Option<Rows>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Rows {
    One(Vec<u32>),
    Many(Vec<Vec<u32>>),
}

impl Rows {
    fn into_rows(self) -> Vec<Vec<u32>> {
        match self {
            Rows::One(row) => vec![row],
            Rows::Many(rows) => rows,
        }
    }
}

/// `POST /surf/v1/forward`
pub(super) async fn forward(
    State(app): State<App>,
    Json(request): Json<ForwardRequest>,
) -> Result<Response, ApiError> {
    let (model, rows) = check(request)?;
    let length = rows[0].len();
    let logits = app.node.forward(&model, rows).await?;
    answer(length, logits)
}

/// The model and the rows, if they are a batch that can be run.
fn check(request: ForwardRequest) -> Result<(String, Vec<Vec<u32>>), ApiError> {
    let rows = request.input_ids.into_rows();
    let length = rows.first().map_or(0, Vec::len);
    if length == 0 || rows.iter().any(|row| row.len() != length) {
        return Err(ApiError::param("input_ids", "input_ids is rows of token ids, all of one length"));
    }
    let masked = request.attention_mask.map(Rows::into_rows);
    if masked.is_some_and(|mask| mask.iter().flatten().any(|counts| *counts == 0)) {
        return Err(ApiError::param("attention_mask", "attention_mask hides tokens, which is not supported"));
    }
    Ok((request.model, rows))
}

/// Logits of rows of `length` tokens, as a safetensors file.
fn answer(length: usize, logits: Vec<Logits>) -> Result<Response, ApiError> {
    let vocab = logits.first().map_or(0, |row| row.vocab);
    if logits.iter().any(|row| row.vocab != vocab || row.values.len() != length * vocab) {
        return Err(ApiError::failed("the model gave logits of another shape than the input"));
    }
    let description = description([logits.len(), length, vocab]);
    let size = description.len() + 4 * logits.len() * length * vocab;
    let rows =
        logits.into_iter().map(|row| row.values.iter().flat_map(|logit| logit.to_le_bytes()).collect());
    let pieces = std::iter::once(description).chain(rows).map(Ok::<Bytes, Infallible>);
    let headers = [
        (header::CONTENT_TYPE, "application/octet-stream".to_owned()),
        (header::CONTENT_LENGTH, size.to_string()),
    ];
    Ok((headers, Body::from_stream(stream::iter(pieces))).into_response())
}

/// What stands before the data of a safetensors file with one tensor: the length of the description,
/// and the description.
fn description(shape: [usize; 3]) -> Bytes {
    let size: usize = 4 * shape.iter().product::<usize>();
    let mut text = json!({"logits": {"dtype": "F32", "shape": shape, "data_offsets": [0, size]}}).to_string();
    // The data begins at a multiple of 8.
    text.push_str(&" ".repeat(text.len().next_multiple_of(8) - text.len()));
    let length = text.len() as u64;
    [&length.to_le_bytes()[..], text.as_bytes()].concat().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checked(body: serde_json::Value) -> Result<Vec<Vec<u32>>, Option<String>> {
        check(serde_json::from_value(body).unwrap()).map(|(_, rows)| rows).map_err(|error| error.param)
    }

    #[test]
    fn a_batch_is_rectangular() {
        let model = "m";
        let batch = |input_ids: serde_json::Value| {
            checked(serde_json::json!({"model": model, "input_ids": input_ids}))
        };
        assert_eq!(batch(serde_json::json!([1, 2])), Ok(vec![vec![1, 2]]));
        assert_eq!(batch(serde_json::json!([[1, 2], [3, 4]])), Ok(vec![vec![1, 2], vec![3, 4]]));
        for bad in [serde_json::json!([]), serde_json::json!([[]]), serde_json::json!([[1], [2, 3]])] {
            assert_eq!(batch(bad), Err(Some("input_ids".into())));
        }
        let hidden = serde_json::json!({"model": model, "input_ids": [1, 2], "attention_mask": [0, 1]});
        assert_eq!(checked(hidden), Err(Some("attention_mask".into())));
    }

    #[tokio::test]
    async fn logits_read_back() {
        let row = |values: &[f32]| Logits { vocab: 3, values: values.to_vec() };
        let logits = vec![row(&[0.0, 1.0, 2.0]), row(&[3.0, 4.0, -5.5])];
        let response = answer(1, logits.clone()).unwrap();
        let said = response.headers()["content-length"].to_str().unwrap().to_owned();
        let bytes = axum::body::to_bytes(response.into_body(), 10_000).await.unwrap();
        assert_eq!(said, bytes.len().to_string());
        let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        let tensor = tensors.tensor("logits").unwrap();
        assert_eq!((tensor.dtype(), tensor.shape()), (safetensors::Dtype::F32, &[2, 1, 3][..]));
        assert_eq!(tensor.data()[20..], (-5.5f32).to_le_bytes());
        assert!(answer(2, logits).is_err());
    }
}

//! One pass over given tokens, answered in numbers: `POST /surf/v1/forward`.
//!
//! The answer is a safetensors file written as it is sent: logits of many tokens are large, so only a
//! small piece of them is held twice.

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

use super::{App, error::ApiError, extract::Json, work::aside};
use crate::engine::{Output, Row};

/// Numbers that are written at once. More would keep a worker of the runtime for too long.
const PIECE: usize = 16 << 10;

/// What to run.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ForwardRequest {
    model: String,
    /// Rows of token ids, all of one length; or a single row.
    input_ids: Rows,
    /// Which of them count: 1, or 0 for padding.
    attention_mask: Option<Rows>,
    /// For models that encode first: what was generated so far, in as many rows.
    decoder_input_ids: Option<Rows>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged, expecting = "rows of token ids, numbers from 0 to 4294967295")]
enum Rows {
    One(Vec<u32>),
    Many(Vec<Vec<u32>>),
}

impl Rows {
    /// The rows, if they are all of one length, which is not 0.
    fn batch(self, name: &str) -> Result<Vec<Vec<u32>>, ApiError> {
        let rows = match self {
            Rows::One(row) => vec![row],
            Rows::Many(rows) => rows,
        };
        let length = rows.first().map_or(0, Vec::len);
        if length == 0 || rows.iter().any(|row| row.len() != length) {
            return Err(ApiError::param(name, format!("{name} is rows of numbers, all of one length")));
        }
        Ok(rows)
    }
}

/// `POST /surf/v1/forward`
pub(super) async fn forward(
    State(app): State<App>,
    Json(request): Json<ForwardRequest>,
) -> Result<Response, ApiError> {
    let (model, rows) = aside(move || check(request)).await?;
    let row = &rows[0];
    let length = row.decoder.as_ref().unwrap_or(&row.tokens).len();
    let outputs = app.node.forward(&model, rows).await?;
    answer(length, outputs)
}

/// The model and the rows, if they are a batch that can be run.
fn check(request: ForwardRequest) -> Result<(String, Vec<Row>), ApiError> {
    let batch = |name, rows: Option<Rows>| rows.map(|rows| rows.batch(name)).transpose();
    let tokens = request.input_ids.batch("input_ids")?;
    let masks = batch("attention_mask", request.attention_mask)?;
    let decoders = batch("decoder_input_ids", request.decoder_input_ids)?;
    let same_length = |masks: &Vec<Vec<u32>>| masks[0].len() == tokens[0].len();
    if masks.as_ref().is_some_and(|masks| masks.len() != tokens.len() || !same_length(masks)) {
        return Err(ApiError::param("attention_mask", "attention_mask has not the shape of input_ids"));
    }
    if decoders.as_ref().is_some_and(|decoders| decoders.len() != tokens.len()) {
        let message = "decoder_input_ids has not as many rows as input_ids";
        return Err(ApiError::param("decoder_input_ids", message));
    }
    let row = |(at, tokens): (usize, Vec<u32>)| {
        let mask = masks.as_ref().map(|masks| masks[at].iter().map(|&counts| counts != 0).collect());
        Row { tokens, mask, decoder: decoders.as_ref().map(|decoders| decoders[at].clone()) }
    };
    Ok((request.model, tokens.into_iter().enumerate().map(row).collect()))
}

/// What was computed of rows of `length` tokens, as a safetensors file.
fn answer(length: usize, outputs: Vec<Output>) -> Result<Response, ApiError> {
    let (name, width) = outputs.first().map_or(("logits", 0), |row| (row.what.name(), row.width));
    if outputs.iter().any(|row| row.width != width || row.values.len() != length * width) {
        return Err(ApiError::failed("the model gave results of another shape than the input"));
    }
    let description = description(name, [outputs.len(), length, width]);
    let size = description.len() + 4 * outputs.len() * length * width;
    let pieces = std::iter::once(description).chain(outputs.into_iter().flat_map(pieces));
    let pieces = pieces.map(Ok::<Bytes, Infallible>);
    let headers = [
        (header::CONTENT_TYPE, "application/octet-stream".to_owned()),
        (header::CONTENT_LENGTH, size.to_string()),
    ];
    Ok((headers, Body::from_stream(stream::iter(pieces))).into_response())
}

/// The numbers of `output` as bytes, piece by piece.
fn pieces(output: Output) -> impl Iterator<Item = Bytes> {
    let starts = (0..output.values.len()).step_by(PIECE);
    starts.map(move |at| {
        let numbers = &output.values[at..output.values.len().min(at + PIECE)];
        numbers.iter().flat_map(|value| value.to_le_bytes()).collect()
    })
}

/// What stands before the data of a safetensors file with one tensor: the length of the description,
/// and the description.
fn description(name: &str, shape: [usize; 3]) -> Bytes {
    let size: usize = 4 * shape.iter().product::<usize>();
    let mut text = json!({name: {"dtype": "F32", "shape": shape, "data_offsets": [0, size]}}).to_string();
    // The data begins at a multiple of 8.
    text.push_str(&" ".repeat(text.len().next_multiple_of(8) - text.len()));
    let length = text.len() as u64;
    [&length.to_le_bytes()[..], text.as_bytes()].concat().into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::What;

    fn checked(body: serde_json::Value) -> Result<Vec<Row>, Option<String>> {
        check(serde_json::from_value(body).unwrap()).map(|(_, rows)| rows).map_err(|error| error.param)
    }

    #[test]
    fn a_batch_is_rectangular() {
        let model = "m";
        let batch = |input_ids: serde_json::Value| {
            checked(serde_json::json!({"model": model, "input_ids": input_ids}))
        };
        let rows = |rows: &[[u32; 2]]| Ok(rows.iter().map(|row| Row::from(row.to_vec())).collect());
        assert_eq!(batch(serde_json::json!([1, 2])), rows(&[[1, 2]]));
        assert_eq!(batch(serde_json::json!([[1, 2], [3, 4]])), rows(&[[1, 2], [3, 4]]));
        for bad in [serde_json::json!([]), serde_json::json!([[]]), serde_json::json!([[1], [2, 3]])] {
            assert_eq!(batch(bad), Err(Some("input_ids".into())));
        }
        let with = |more: serde_json::Value| {
            let mut body = serde_json::json!({"model": model, "input_ids": [[1, 2], [3, 4]]});
            body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            checked(body)
        };
        let masked = with(serde_json::json!({"attention_mask": [[0, 1], [1, 1]]})).unwrap();
        assert_eq!(masked[0].mask, Some(vec![false, true]));
        let decoding = with(serde_json::json!({"decoder_input_ids": [[0, 5, 6], [0, 7, 8]]})).unwrap();
        assert_eq!(decoding[1].decoder, Some(vec![0, 7, 8]));
        for (name, bad) in [
            ("attention_mask", serde_json::json!([0, 1])),
            ("attention_mask", serde_json::json!([[0], [1]])),
            ("decoder_input_ids", serde_json::json!([[0]])),
            ("decoder_input_ids", serde_json::json!([[0], [0, 1]])),
        ] {
            assert_eq!(with(serde_json::json!({ name: bad })), Err(Some(name.into())));
        }
    }

    #[tokio::test]
    async fn logits_read_back() {
        let row = |values: &[f32]| Output {
            what: What::Logits,
            width: 3,
            values: values.to_vec(),
            held: Default::default(),
        };
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

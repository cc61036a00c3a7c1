//! Texts as vectors: `POST /v1/embeddings`.

use axum::{
    extract::State,
    response::{IntoResponse, Response},
};
use serde_json::{Map, Value};

use super::{
    fields::{BodyFields, Route},
    request::prompts,
};
use crate::{
    api::{Embedding, EmbeddingUsage, Embeddings, Vector},
    engine::{self, Embedded, Prompt},
    rpc::{App, error::ApiError, extract::Json, work::aside},
};

/// Texts of one request, as in OpenAI's API.
const TEXTS_MAX: usize = 2048;

/// A request that makes sense.
#[derive(Debug)]
struct Wanted {
    model: String,
    texts: Vec<Prompt>,
    /// Whether vectors are written as the base64 of their bytes.
    base64: bool,
    /// How many elements of each vector to keep.
    dimensions: Option<usize>,
}

/// `POST /v1/embeddings`
pub(in crate::rpc) async fn embeddings(
    State(app): State<App>,
    Json(body): Json<Map<String, Value>>,
) -> Result<Response, ApiError> {
    let wanted = aside(move || Wanted::parse(body)).await?;
    let embedded = app.node.embed(&wanted.model, &wanted.texts).await?;
    aside(move || wanted.answer(embedded).map(|answer| axum::Json(answer).into_response())).await
}

impl Wanted {
    fn parse(body: Map<String, Value>) -> Result<Self, ApiError> {
        let mut fields = BodyFields::new(Route::Embed, body)?;
        let model: String = fields.required("model")?;
        let texts = prompts(&mut fields, "input")?;
        if TEXTS_MAX < texts.len() {
            return Err(ApiError::param("input", format!("input is at most {TEXTS_MAX} texts")));
        }
        let format: Option<String> = fields.optional("encoding_format")?;
        let base64 = match format.as_deref() {
            None | Some("float") => false,
            Some("base64") => true,
            Some(_) => {
                return Err(ApiError::param("encoding_format", "encoding_format is float or base64"));
            }
        };
        Ok(Self { model, texts, base64, dimensions: fields.within("dimensions", 1, usize::MAX)? })
    }

    fn answer(self, embedded: Embedded) -> Result<Embeddings, ApiError> {
        let width = embedded.vectors.first().map_or(0, Vec::len);
        if let Some(dimensions) = self.dimensions.filter(|&dimensions| width < dimensions) {
            let message = format!("dimensions is {dimensions}; the model's vectors have {width}");
            return Err(ApiError::param("dimensions", message));
        }
        let written = |mut vector: Vec<f32>| {
            if let Some(dimensions) = self.dimensions.filter(|&dimensions| dimensions < width) {
                vector.truncate(dimensions);
                engine::normalize(&mut vector);
            }
            if !self.base64 {
                return Vector::Floats(vector);
            }
            let bytes: Vec<u8> = vector.iter().flat_map(|element| element.to_le_bytes()).collect();
            Vector::Base64(base64(&bytes))
        };
        let entry = |(index, vector): (usize, Vec<f32>)| {
            let object = "embedding".to_owned();
            Embedding { object, index, embedding: written(vector) }
        };
        Ok(Embeddings {
            object: "list".to_owned(),
            data: embedded.vectors.into_iter().enumerate().map(entry).collect(),
            usage: EmbeddingUsage { prompt_tokens: embedded.tokens, total_tokens: embedded.tokens },
            model: self.model,
        })
    }
}

/// `bytes` in letters (RFC 4648).
fn base64(bytes: &[u8]) -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for three in bytes.chunks(3) {
        let byte = |at: usize| u32::from(three.get(at).copied().unwrap_or(0));
        let bits = byte(0) << 16 | byte(1) << 8 | byte(2);
        for at in 0..4 {
            let letter = LETTERS[(bits >> (18 - 6 * at) & 63) as usize];
            text.push(if at <= three.len() { char::from(letter) } else { '=' });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn parse(more: Value) -> Result<Wanted, ApiError> {
        let mut body = json!({"model": "m", "input": ["a", "b"]});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        Wanted::parse(body.as_object().unwrap().clone())
    }

    fn answered(more: Value) -> Value {
        let vectors = vec![vec![3.0, 4.0, 12.0], vec![0.1, 0.0, -1.0]];
        let embedded = Embedded { vectors, tokens: 7 };
        serde_json::to_value(parse(more).unwrap().answer(embedded).unwrap()).unwrap()
    }

    #[test]
    fn an_answer_is_as_openai_documents_it() {
        let answer = answered(json!({"user": "me"}));
        let entry = |index: usize, embedding: Value| json!({"object": "embedding", "index": index, "embedding": embedding});
        let vectors: [Value; 2] = [json!([3.0, 4.0, 12.0]), json!([0.1f32, 0.0, -1.0])];
        let [first, second] = vectors;
        let expected = json!({
            "object": "list", "model": "m", "data": [entry(0, first), entry(1, second)],
            "usage": {"prompt_tokens": 7, "total_tokens": 7},
        });
        assert_eq!(answer, expected);
        let letters = answered(json!({"encoding_format": "base64"}));
        assert_eq!(letters["data"][0]["embedding"], "AABAQAAAgEAAAEBB");
        let cut = answered(json!({"dimensions": 2}));
        assert_eq!(cut["data"][0]["embedding"], json!([0.6f32, 0.8f32]));
    }

    #[test]
    fn texts_may_be_tokens_and_nonsense_is_named() {
        let texts = |input: Value| format!("{:?}", parse(json!({ "input": input })).unwrap().texts);
        assert_eq!(texts(json!("x")), r#"[Text("x")]"#);
        assert_eq!(texts(json!([1, 2])), "[Tokens([1, 2])]");
        assert_eq!(texts(json!([[1], [2]])), "[Tokens([1]), Tokens([2])]");
        for (name, value) in [
            ("input", json!([])),
            ("input", json!([[]])),
            ("input", json!(3)),
            ("input", json!(vec!["x"; 2049])),
            ("encoding_format", json!("hex")),
            ("normalize", json!(false)),
            ("unknown", json!(1)),
            ("dimensions", json!(0)),
        ] {
            let error = parse(json!({ name: value.clone() })).unwrap_err();
            assert_eq!(error.param.as_deref(), Some(name), "{value}");
        }
        let wide = parse(json!({"dimensions": 4})).unwrap();
        let error = wide.answer(Embedded { vectors: vec![vec![0.0; 3]], tokens: 1 }).unwrap_err();
        assert_eq!(error.param.as_deref(), Some("dimensions"));
    }

    /// The test vectors of RFC 4648.
    #[test]
    fn base64_is_the_standard_s() {
        for (bytes, text) in [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foob", "Zm9vYg==")]
        {
            assert_eq!(base64(bytes.as_bytes()), text);
        }
    }
}

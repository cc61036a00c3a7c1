//! `embed`: texts as vectors.

use clap::Args;
use serde_json::json;

use super::{Context, error::CliError};
use crate::api::{EmbedResult, Embeddings, Vector};

/// Turn texts into vectors, a line of numbers for each
#[derive(Debug, Args)]
pub(crate) struct Embed {
    /// Model id, a prefix of one, an alias, or PEER/NAME
    model: String,
    /// The texts
    #[arg(required = true, value_name = "TEXT")]
    texts: Vec<String>,
}

impl Embed {
    pub(crate) async fn run(self, context: &Context) -> Result<(), CliError> {
        let body = json!({"model": self.model, "input": self.texts});
        let answer: Embeddings = context.client()?.post(&["v1", "embeddings"], &body).await?;
        let vectors = answer.data.into_iter().map(|entry| match entry.embedding {
            Vector::Floats(vector) => Ok(vector),
            Vector::Base64(_) => {
                Err(CliError::failed("the node wrote vectors in letters, which were not asked for"))
            }
        });
        let result = EmbedResult { data: vectors.collect::<Result<_, _>>()? };
        context.output.result(&result, lines)
    }
}

/// One line for each vector, its numbers with spaces between.
fn lines(result: &EmbedResult) -> String {
    let line = |vector: &Vec<f32>| {
        let numbers: Vec<String> = vector.iter().map(f32::to_string).collect();
        numbers.join(" ") + "\n"
    };
    result.data.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_a_line() {
        let result = EmbedResult { data: vec![vec![0.1, -2.0], vec![3.5, 1e-3]] };
        assert_eq!(lines(&result), "0.1 -2\n3.5 0.001\n");
    }
}

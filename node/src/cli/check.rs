//! `check`: does a model compute what it computed elsewhere?

use std::path::PathBuf;

use clap::Args;

use super::{Context, error::CliError, human};
use crate::api::{Checked, TOLERANCE_DEFAULT};

/// Run recorded inputs and compare with the recorded outputs
#[derive(Debug, Args)]
pub(crate) struct Check {
    /// Model id, a prefix of one, an alias, or PEER/NAME
    model: String,
    /// File of recorded inputs and outputs, in safetensors
    expected: PathBuf,
    /// Largest relative error that passes
    #[arg(long, default_value_t = TOLERANCE_DEFAULT, value_parser = tolerance)]
    tolerance: f64,
}

impl Check {
    pub(crate) async fn run(self, context: &Context) -> Result<(), CliError> {
        let expected = tokio::fs::read(&self.expected).await.map_err(|error| {
            CliError::failed(format!("{} cannot be read: {error}", self.expected.display()))
        })?;
        let query = [("model", self.model.as_str()), ("tolerance", &self.tolerance.to_string())];
        let checked: Checked = context.client()?.upload(&["surf", "v1", "check"], &query, expected).await?;
        context.output.result(&checked, words)?;
        if checked.pass {
            return Ok(());
        }
        let message = format!("{} does not compute what {} says", self.model, self.expected.display());
        Err(CliError::failed(message))
    }
}

fn words(checked: &Checked) -> String {
    let share = |share: Option<f64>| {
        share.map_or("not recorded".to_owned(), |share| format!("{:.2}%", share * 100.0))
    };
    human::pairs(&[
        ("result", if checked.pass { "pass" } else { "fail" }.to_owned()),
        ("compared", format!("{} numbers", checked.compared)),
        ("largest error", format!("{:.3e}", checked.max_abs_err)),
        ("as a share", format!("{:.3e}", checked.max_rel_err)),
        ("same best token", share(checked.argmax_agree)),
        ("same greedy text", share(checked.greedy_agree)),
    ])
}

fn tolerance(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(tolerance) if (0.0..).contains(&tolerance) => Ok(tolerance),
        _ => Err(format!("{text:?} is not a number from 0, such as 1e-3")),
    }
}

//! What the node keeps: `pin`, `unpin`, `rm`, `gc`, `verify`.

use clap::Args;

use super::{Context, error::CliError, human, progress::Progress};
use crate::api::{Amount, Freed, ModelRequest, Verified, VerifyRequest};

/// Keep a model's chunks, whatever the cache size
#[derive(Debug, Args)]
pub(crate) struct Pin {
    /// Model id, a prefix of one, an alias, or PEER/NAME
    model: String,
}

/// Let a model's chunks go when room is needed
#[derive(Debug, Args)]
pub(crate) struct Unpin {
    /// Model id, a prefix of one, an alias, or PEER/NAME
    model: String,
}

/// Forget a model, and remove the chunks that no other model needs
#[derive(Debug, Args)]
pub(crate) struct Rm {
    /// Model id, a prefix of one, an alias, or PEER/NAME
    model: String,
}

/// Remove chunks that no model needs
#[derive(Debug, Args)]
pub(crate) struct Gc {}

/// Hash chunks again, to find those that went bad on disk
#[derive(Debug, Args)]
pub(crate) struct Verify {
    /// Model id, a prefix of one, an alias, or PEER/NAME; everything, if left out
    model: Option<String>,
    /// Fetch bad chunks again
    #[arg(long)]
    repair: bool,
}

impl Pin {
    pub(crate) async fn run(self, context: &Context) -> Result<(), CliError> {
        let freed: Freed = of_model(context, "pin", &self.model).await?;
        context.output.result(&freed, |_| format!("{} is pinned", self.model))
    }
}

impl Unpin {
    pub(crate) async fn run(self, context: &Context) -> Result<(), CliError> {
        let freed: Freed = of_model(context, "unpin", &self.model).await?;
        context.output.result(&freed, |_| format!("{} is no longer pinned", self.model))
    }
}

impl Rm {
    pub(crate) async fn run(self, context: &Context) -> Result<(), CliError> {
        let freed: Freed = of_model(context, "rm", &self.model).await?;
        context.output.result(&freed, words)
    }
}

impl Gc {
    pub(crate) async fn run(self, context: &Context) -> Result<(), CliError> {
        let nothing = serde_json::json!({});
        let freed: Freed = context.client()?.post(&["surf", "v1", "gc"], &nothing).await?;
        context.output.result(&freed, words)
    }
}

impl Verify {
    pub(crate) async fn run(self, context: &Context) -> Result<(), CliError> {
        // Of all models together, some may be meant to be incomplete.
        let whole = self.model.is_some();
        let request = VerifyRequest { model: self.model, repair: self.repair };
        let mut progress = Progress::new(&context.output, "verifying");
        let on_progress = |Amount { bytes, total }| {
            progress.bytes(bytes, total, "");
            Ok(())
        };
        let verified: Verified =
            context.client()?.work(&["surf", "v1", "verify"], &request, on_progress).await?;
        drop(progress);
        context.output.result(&verified, |Verified { checked, bad, repaired, missing }| {
            format!("{checked} chunks checked, {bad} bad, {repaired} repaired, {missing} not here")
        })?;
        let lost = verified.bad.saturating_sub(verified.repaired);
        let whole = whole && verified.missing != 0;
        match lost {
            0 if whole => {
                let missing = verified.missing;
                Err(CliError::failed(format!(
                    "the model is incomplete: {missing} of its chunks are not here"
                ))
                .hint("fetch them with `surf-node pull`"))
            }
            0 => Ok(()),
            _ => {
                let error = CliError::failed(format!("{lost} chunks were bad and are no longer kept"));
                Err(error.hint("`surf-node pull` fetches them again, when somebody has them"))
            }
        }
    }
}

async fn of_model(context: &Context, verb: &str, model: &str) -> Result<Freed, CliError> {
    let request = ModelRequest { model: model.to_owned() };
    context.client()?.post(&["surf", "v1", verb], &request).await
}

fn words(freed: &Freed) -> String {
    format!("{} freed", human::bytes(freed.freed_bytes))
}

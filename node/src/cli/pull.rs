//! `pull`: fetches all of a model.

use clap::Args;

use super::{
    Context,
    error::CliError,
    human::{self, Align},
    progress::Progress,
};
use crate::api::{ModelRequest, PullEvent, PullProgress, Pulled};

/// Fetch all of a model
#[derive(Debug, Args)]
pub(crate) struct Pull {
    /// Model id, a prefix of one, an alias, or PEER/NAME
    model: String,
}

impl Pull {
    pub(crate) async fn run(self, context: &Context) -> Result<(), CliError> {
        let output = &context.output;
        let mut progress = Progress::new(output, "pulling");
        let on_progress = |step: PullProgress| {
            if output.json {
                return output.object(&PullEvent::Progress(step));
            }
            progress.bytes(step.bytes, step.total, &aside(&step));
            Ok(())
        };
        let request = ModelRequest { model: self.model };
        let pulled = context.client()?.work(&["surf", "v1", "pull"], &request, on_progress).await?;
        drop(progress);
        if output.json { output.object(&PullEvent::Done(pulled)) } else { output.text(&words(&pulled)) }
    }
}

/// What is said beside how far it is: how fast, from how many, until when; and why not faster.
fn aside(step: &PullProgress) -> String {
    let mut text = String::new();
    if 0 < step.rate {
        let sending = step.sources.iter().filter(|source| 0 < source.asked).count().max(1);
        let peers = if sending == 1 { "1 peer".to_owned() } else { format!("{sending} peers") };
        text += &format!(" · {}/s from {peers}", human::bytes(step.rate));
        text += &step.eta_s.map(|eta| format!(" · {} left", human::seconds(eta as f64))).unwrap_or_default();
    } else if step.phase == "looking" || step.phase == "manifest" {
        text += " · looking for peers that have it";
    }
    text += &step.note.as_ref().map(|note| format!(" · {note}")).unwrap_or_default();
    text
}

fn words(pulled: &Pulled) -> String {
    let rate = (pulled.fetched_bytes as f64 / pulled.seconds.max(1e-3)) as u64;
    let mut text = format!(
        "{}\n{} here; {} fetched in {} ({}/s)",
        pulled.model,
        human::bytes(pulled.bytes),
        human::bytes(pulled.fetched_bytes),
        human::seconds(pulled.seconds),
        human::bytes(rate),
    );
    if 0 < pulled.wasted_bytes {
        text += &format!(", {} in vain", human::bytes(pulled.wasted_bytes));
    }
    text.push('\n');
    if !pulled.sources.is_empty() {
        let rows: Vec<_> = pulled
            .sources
            .iter()
            .map(|source| [source.peer.clone(), source.path.clone(), human::bytes(source.bytes)])
            .collect();
        text += &human::table([("FROM", Align::Left), ("PATH", Align::Left), ("BYTES", Align::Right)], &rows);
    }
    text
}

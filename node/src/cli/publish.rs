//! `publish`: makes a model of a folder or file.

use std::path::PathBuf;

use clap::Args;

use super::{Context, absolute, error::CliError, human, progress::Progress};
use crate::{
    api::{PublishPhase, PublishProgress, PublishRequest, Published, Quantized},
    publish::Kind,
};

/// Cut a model into chunks, index and announce it
#[derive(Debug, Args)]
pub(crate) struct Publish {
    /// Folder of a Hugging Face repository, or a single file, on the node's machine
    path: PathBuf,
    /// Name for the model on this node
    #[arg(long)]
    name: Option<String>,
    /// Let the name move, if it means another model
    #[arg(long, requires = "name")]
    force: bool,
    /// Copy the bytes into the node's store, rather than read them where they are
    #[arg(long)]
    copy: bool,
    /// Follow links that leave the folder
    #[arg(long)]
    follow_links: bool,
    /// Quantise the weights first, and measure what that costs
    #[arg(long, value_name = "KIND", ignore_case = true, value_parser = Kind::names())]
    quantize: Option<String>,
    /// Do not measure what quantising costs
    #[arg(long, requires = "quantize")]
    no_measure: bool,
}

impl Publish {
    pub(crate) async fn run(self, context: &Context) -> Result<(), CliError> {
        let request = PublishRequest {
            path: absolute(&self.path)?,
            name: self.name,
            force: self.force,
            copy: self.copy,
            follow_links: self.follow_links,
            quantize: self.quantize,
            no_measure: self.no_measure,
        };
        let mut shown = PublishPhase::Publishing;
        let mut progress = Progress::new(&context.output, verb(shown));
        let on_progress = |PublishProgress { phase, amount }| {
            if phase != shown {
                shown = phase;
                progress = Progress::new(&context.output, verb(shown));
            }
            progress.bytes(amount.bytes, amount.total, "");
            Ok(())
        };
        let published: Published =
            context.client()?.work(&["surf", "v1", "publish"], &request, on_progress).await?;
        drop(progress);
        published.notices.iter().for_each(|notice| context.output.note(notice));
        context.output.result(&published, words)
    }
}

fn verb(phase: PublishPhase) -> &'static str {
    match phase {
        PublishPhase::Quantizing => "quantizing",
        PublishPhase::Publishing => "publishing",
        PublishPhase::Measuring => "measuring",
    }
}

fn words(published: &Published) -> String {
    let Published { model, files, tensors, groups, chunks, new_chunks, .. } = published;
    let name = published.name.as_ref().map(|name| format!(" as {name}")).unwrap_or_default();
    let quantized = published.quantized.as_ref().map(quantized).unwrap_or_default();
    format!(
        "{model}\npublished{name}: {files} files, {tensors} tensors in {groups} groups, {chunks} chunks ({}), {new_chunks} of them new ({}){quantized}",
        human::bytes(published.bytes),
        human::bytes(published.new_bytes),
    )
}

fn quantized(quantized: &Quantized) -> String {
    let Quantized { kind, tensors, bytes_before, bytes_after, quality, unmeasured } = quantized;
    let mut text = format!(
        "\nquantised to {kind}: {tensors} tensors; {} instead of {} ({})",
        human::bytes(*bytes_after),
        human::bytes(*bytes_before),
        human::percent(*bytes_after, *bytes_before),
    );
    if let Some(quality) = quality {
        text += &format!(
            "\non {} tokens of English: mean KL divergence {:.5}, perplexity {:.3} instead of {:.3}",
            quality.tokens, quality.kl_divergence, quality.perplexity, quality.perplexity_before,
        );
    } else if let Some(why) = unmeasured {
        text += &format!("\nnot measured: {why}");
    }
    text
}

//! `publish`: makes a model of a folder or file.

use std::path::PathBuf;

use clap::Args;

use super::{Context, absolute, error::CliError, human, progress::Progress};
use crate::api::{Amount, PublishRequest, Published};

/// Cut a model into chunks, index and announce it
#[derive(Debug, Args)]
pub(crate) struct Publish {
    /// Folder of a Hugging Face repository, or a single file, on the node's machine
    path: PathBuf,
    /// Name for the model on this node
    #[arg(long)]
    name: Option<String>,
    /// Copy the bytes into the node's store, rather than read them where they are
    #[arg(long)]
    copy: bool,
    /// Follow links that leave the folder
    #[arg(long)]
    follow_links: bool,
}

impl Publish {
    pub(crate) async fn run(self, context: &Context) -> Result<(), CliError> {
        let request = PublishRequest {
            path: absolute(&self.path)?,
            name: self.name,
            copy: self.copy,
            follow_links: self.follow_links,
        };
        let mut progress = Progress::new(&context.output, "publishing");
        let on_progress = |Amount { bytes, total }| {
            progress.bytes(bytes, total, "");
            Ok(())
        };
        let published = context.client()?.work(&["surf", "v1", "publish"], &request, on_progress).await?;
        drop(progress);
        context.output.result(&published, words)
    }
}

fn words(published: &Published) -> String {
    let Published { model, files, tensors, groups, chunks, new_chunks, .. } = published;
    let name = published.name.as_ref().map(|name| format!(" as {name}")).unwrap_or_default();
    format!(
        "{model}\npublished{name}: {files} files, {tensors} tensors in {groups} groups, {chunks} chunks ({}), {new_chunks} of them new ({})",
        human::bytes(published.bytes),
        human::bytes(published.new_bytes),
    )
}

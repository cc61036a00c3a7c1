//! `export`: writes a model's files as they were.

use std::path::PathBuf;

use clap::Args;

use super::{Context, absolute, error::CliError, human, progress::Progress};
use crate::api::{Amount, ExportRequest, Exported};

/// Write a model's files, byte for byte as they were published
#[derive(Debug, Args)]
pub(crate) struct Export {
    /// Model id, a prefix of one, an alias, or PEER/NAME
    model: String,
    /// Folder to write to, on the node's machine
    dir: PathBuf,
}

impl Export {
    pub(crate) async fn run(self, context: &Context) -> Result<(), CliError> {
        let dir = absolute(&self.dir)?;
        let request = ExportRequest { model: self.model, dir: dir.clone() };
        let mut progress = Progress::new(&context.output, "exporting");
        let on_progress = |Amount { bytes, total }| {
            progress.bytes(bytes, total, "");
            Ok(())
        };
        let exported = context.client()?.work(&["surf", "v1", "export"], &request, on_progress).await?;
        drop(progress);
        context.output.result(&exported, |exported: &Exported| {
            format!("{} files ({}) are in {dir}", exported.files, human::bytes(exported.bytes))
        })
    }
}

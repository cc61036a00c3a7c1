//! `origin sync`: writes a model where nodes without peers can find it.

use clap::{Args, Subcommand};
use url::Url;

use super::{Context, absolute, error::CliError, human, progress::Progress};
use crate::api::{Amount, OriginSyncRequest, OriginSynced};

/// Keep models in folders that web servers serve, for nodes that find no peer
#[derive(Debug, Args)]
pub(crate) struct Origin {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Write a model's chunks and manifest to a folder; what is there already is checked and kept
    ///
    /// A web server that serves the folder is an origin: `join --origin http://HOST/PATH/`.
    Sync(Sync),
}

#[derive(Debug, Args)]
struct Sync {
    /// Model id, a prefix of one, an alias, or PEER/NAME
    model: String,
    /// Folder on the node's machine: a path or a file:// URL
    url: String,
}

impl Origin {
    pub(crate) async fn run(self, context: &Context) -> Result<(), CliError> {
        let Command::Sync(Sync { model, url }) = self.command;
        let url = folder_url(&url)?;
        let request = OriginSyncRequest { model, url: url.clone() };
        let mut progress = Progress::new(&context.output, "syncing");
        let on_progress = |Amount { bytes, total }| {
            progress.bytes(bytes, total, "");
            Ok(())
        };
        let path = ["surf", "v1", "origin", "sync"];
        let synced = context.client()?.work(&path, &request, on_progress).await?;
        drop(progress);
        context.output.result(&synced, |synced: &OriginSynced| {
            let (all, new) = (human::bytes(synced.bytes), human::bytes(synced.new_bytes));
            format!("{} chunks ({all}) are in {url}; {new} of them are new", synced.chunks)
        })
    }
}

/// `text` as a URL: a path is made absolute, since the node has a working directory of its own.
fn folder_url(text: &str) -> Result<String, CliError> {
    if text.contains("://") {
        return Ok(text.to_owned());
    }
    let path = absolute(text.as_ref())?;
    let url = Url::from_file_path(&path).map_err(|()| CliError::failed(format!("{path} is not a path")))?;
    Ok(url.to_string())
}

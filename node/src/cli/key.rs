//! `key new`: makes the key of a private swarm. Needs no node that runs, and tells none.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use serde_json::json;

use super::{Context, error::CliError};
use crate::{members::SwarmKey, secret::SecretError};

/// Make the key of a private swarm
#[derive(Debug, Subcommand)]
pub(crate) enum Key {
    New(New),
}

/// Make a new key and print it: one line, to be shared with the other nodes of the swarm and nobody else
///
/// Every node gets it as a file that only its user can read: surf-node join --swarm-key FILE
#[derive(Debug, Args)]
pub(crate) struct New {
    /// Write it to this new file, for nobody else to read, instead of printing it
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,
}

impl Key {
    pub(crate) fn run(self, context: &Context) -> Result<(), CliError> {
        let Self::New(New { output: file }) = self;
        let key = SwarmKey::generate();
        let Some(file) = file else {
            return context.output.result(&json!({ "key": key.reveal() }), |_| key.reveal());
        };
        key.save_new(&file).map_err(|error| match &error {
            SecretError::Io { cause, .. } if cause.kind() == std::io::ErrorKind::AlreadyExists => {
                CliError::failed(format!("{} is there already", file.display())).hint(
                    "a key that is in use should not be lost; choose another file, or move it away first",
                )
            }
            _ => CliError::failed(error.to_string()),
        })?;
        let name = file.display().to_string();
        context.output.result(&json!({ "file": name }), |_| name.clone())
    }
}

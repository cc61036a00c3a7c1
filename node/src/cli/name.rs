//! `name`: publishes a signed name, and finds out what one means.

use clap::{Args, Subcommand};

use super::{Context, error::CliError};
use crate::api::{LookUpRequest, NameInfo, NameRequest};

/// Publish a name for a model, or find out what a published name means
#[derive(Debug, Args)]
pub(crate) struct Name {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Publish a name, signed by this node; it means no other model from then on
    Set {
        /// The name: letters, digits and - _ . :
        name: String,
        /// Model id, a prefix of one, an alias, or PEER/NAME
        model: String,
    },
    /// Say which model a published name means
    Get {
        /// Who published it, and the name
        #[arg(value_name = "PEER/NAME")]
        name: String,
    },
}

impl Name {
    pub(crate) async fn run(self, context: &Context) -> Result<(), CliError> {
        let client = context.client()?;
        let info: NameInfo = match self.command {
            Command::Set { name, model } => {
                client.post(&["surf", "v1", "name"], &NameRequest { name, model }).await?
            }
            Command::Get { name } => client.post(&["surf", "v1", "resolve"], &LookUpRequest { name }).await?,
        };
        if let Some(before) = &info.moved_from {
            context.output.note(&format!("the name meant {before} before"));
        }
        context.output.result(&info, |info| format!("{}\n{}/{}", info.model, info.peer, info.name))
    }
}

//! `id`: who this node is. Needs no node that runs.

use std::path::PathBuf;

use clap::Args;

use super::{Context, error::CliError, settings};
use crate::{identity::Identity, node::KEY_FILE};

/// Print the node's own peer id, making its key if there is none
#[derive(Debug, Args)]
pub(crate) struct Id {
    /// Folder of the node [default: $SURF_HOME, else the platform's folder for data]
    #[arg(long, env = "SURF_DATA_DIR", value_name = "DIR")]
    data_dir: Option<PathBuf>,
}

impl Id {
    pub(crate) fn run(self, context: &Context) -> Result<(), CliError> {
        let dir = settings::data_dir(self.data_dir.as_deref())?;
        let made = std::fs::create_dir_all(&dir);
        made.map_err(|error| {
            CliError::failed(format!("the folder {} cannot be made: {error}", dir.display()))
        })?;
        let identity = Identity::load_or_create(&dir.join(KEY_FILE));
        let identity = identity.map_err(|error| CliError::failed(error.to_string()))?;
        let peer_id = identity.node_id().to_string();
        context.output.result(&serde_json::json!({ "peer_id": peer_id }), |_| peer_id.clone())
    }
}

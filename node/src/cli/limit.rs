//! `limit`: shows and changes how much may move.

use clap::Args;

use super::{Context, error::CliError, human};
use crate::{
    api::{Limits, LimitsRequest},
    config::Rate,
};

/// Show how much may move each second, or change it until the node stops
#[derive(Debug, Args)]
pub(crate) struct Limit {
    /// Most that is sent to peers, such as 20Mbit or 4MiB; none: no limit
    #[arg(long, value_name = "RATE|none", value_parser = rate)]
    up: Option<String>,
    /// Most that is taken from peers
    #[arg(long, value_name = "RATE|none", value_parser = rate)]
    down: Option<String>,
    /// Most that is taken from origins
    #[arg(long, value_name = "RATE|none", value_parser = rate)]
    origin: Option<String>,
}

impl Limit {
    pub(crate) async fn run(self, context: &Context) -> Result<(), CliError> {
        let request = LimitsRequest { up: self.up, down: self.down, origin: self.origin };
        let path = ["surf", "v1", "limits"];
        let client = context.client()?;
        let limits: Limits = match request == LimitsRequest::default() {
            true => client.fetch(&path).await?,
            false => client.post(&path, &request).await?,
        };
        context.output.result(&limits, |limits| human::pairs(&facts(limits)))
    }
}

/// The limits in words.
pub(super) fn facts(limits: &Limits) -> Vec<(&'static str, String)> {
    let words = |rate: Option<u64>| {
        rate.map_or_else(|| "no limit".to_owned(), |rate| format!("{}/s", human::bytes(rate)))
    };
    vec![
        ("to peers", words(limits.up)),
        ("from peers", words(limits.down)),
        ("from origins", words(limits.origin)),
        ("connections", limits.connections.to_string()),
    ]
}

fn rate(text: &str) -> Result<String, String> {
    match text {
        "none" => Ok(text.to_owned()),
        _ => text.parse::<Rate>().map(|_| text.to_owned()).map_err(|error| format!("{error}, nor none")),
    }
}

//! The commands. `join` and `demo` run nodes; all others but `key`, `id` and `completions` talk to one
//! that runs already, over its RPC, like any other program could.
//!
//! Results go to stdout, everything else to stderr; with `--json`, results are one object per line.

mod cache;
mod check;
mod client;
mod completions;
mod demo;
mod embed;
mod error;
mod export;
mod generate;
mod human;
mod id;
mod join;
mod key;
mod limit;
mod lists;
mod logging;
mod machine;
mod name;
mod origin;
mod output;
mod progress;
mod publish;
mod pull;
mod settings;
mod stream;
#[cfg(test)]
mod tests;

use std::path::PathBuf;

use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand, builder::Resettable};

pub use self::error::{CliError, Exit, quieten_panics, report};
use self::{client::Client, output::Output};

/// Where a node's RPC is unless told otherwise.
pub const RPC_DEFAULT: &str = "http://127.0.0.1:8471";

/// Where help lists what every command understands.
const HEADING: &str = "Options of every command";

/// A peer-to-peer swarm node for model weights.
#[derive(Debug, Parser)]
#[command(
    name = "surf-node",
    version,
    max_term_width = 100,
    propagate_version = true,
    args_override_self = true
)]
pub struct Cli {
    #[command(flatten)]
    globals: Globals,
    #[command(subcommand)]
    command: Command,
}

/// What every command understands.
#[derive(Clone, Debug, Default, Args)]
pub(crate) struct Globals {
    /// Where the node's RPC is [default: http://127.0.0.1:8471]. For `join`: the IP:PORT at which it
    /// is to be; port 0 picks one
    #[arg(long, global = true, help_heading = HEADING, env = "SURF_RPC", value_name = "URL")]
    pub(crate) rpc: Option<String>,
    /// File with the token that the RPC asks for
    #[arg(long, global = true, help_heading = HEADING, env = "SURF_RPC_TOKEN", value_name = "FILE")]
    pub(crate) rpc_token: Option<PathBuf>,
    /// Write results as JSON, one object per line
    #[arg(long, global = true, help_heading = HEADING)]
    pub(crate) json: bool,
    /// Write nothing but results and errors
    #[arg(long, short, global = true, help_heading = HEADING, conflicts_with = "verbose")]
    pub(crate) quiet: bool,
    /// Tell more; twice: much more
    #[arg(long, short, global = true, help_heading = HEADING, action = clap::ArgAction::Count)]
    pub(crate) verbose: u8,
}

#[derive(Debug, Subcommand)]
enum Command {
    Join(Box<join::Join>),
    Publish(publish::Publish),
    Pull(pull::Pull),
    Export(export::Export),
    Origin(origin::Origin),
    Generate(generate::Generate),
    Embed(embed::Embed),
    Check(check::Check),
    Models(lists::Models),
    Peers(lists::Peers),
    Status(lists::Status),
    Limit(limit::Limit),
    Pin(cache::Pin),
    Unpin(cache::Unpin),
    Rm(cache::Rm),
    Gc(cache::Gc),
    Verify(cache::Verify),
    Name(name::Name),
    Demo(demo::Demo),
    #[command(subcommand)]
    Key(key::Key),
    Id(id::Id),
    Completions(completions::Completions),
}

impl Cli {
    /// What the program was called with. Ends it if that makes no sense, and when help was wanted.
    pub fn read() -> Self {
        let matches = unset_if_empty(Self::command()).get_matches();
        Self::from_arg_matches(&matches).unwrap_or_else(|error| error.exit())
    }

    /// Runs the command to its end.
    pub async fn run(self) -> Result<(), CliError> {
        let context = Context { output: Output::new(&self.globals), globals: self.globals };
        if !matches!(self.command, Command::Join(_)) {
            logging::for_commands(&context.globals);
        }
        match self.command {
            Command::Join(command) => command.run(&context).await,
            Command::Publish(command) => command.run(&context).await,
            Command::Pull(command) => command.run(&context).await,
            Command::Export(command) => command.run(&context).await,
            Command::Origin(command) => command.run(&context).await,
            Command::Generate(command) => command.run(&context).await,
            Command::Embed(command) => command.run(&context).await,
            Command::Check(command) => command.run(&context).await,
            Command::Models(command) => command.run(&context).await,
            Command::Peers(command) => command.run(&context).await,
            Command::Status(command) => command.run(&context).await,
            Command::Limit(command) => command.run(&context).await,
            Command::Pin(command) => command.run(&context).await,
            Command::Unpin(command) => command.run(&context).await,
            Command::Rm(command) => command.run(&context).await,
            Command::Gc(command) => command.run(&context).await,
            Command::Verify(command) => command.run(&context).await,
            Command::Name(command) => command.run(&context).await,
            Command::Demo(command) => command.run(&context).await,
            Command::Key(command) => command.run(&context),
            Command::Id(command) => command.run(&context),
            Command::Completions(command) => command.run(&context),
        }
    }
}

/// `command`, for which an environment variable without text is as good as none.
fn unset_if_empty(command: clap::Command) -> clap::Command {
    let is_empty =
        |arg: &clap::Arg| arg.get_env().and_then(std::env::var_os).is_some_and(|text| text.is_empty());
    let command = command.mut_args(|arg| if is_empty(&arg) { arg.env(Resettable::Reset) } else { arg });
    command.mut_subcommands(unset_if_empty)
}

/// What every command has at hand.
#[derive(Debug)]
pub(crate) struct Context {
    pub(crate) globals: Globals,
    pub(crate) output: Output,
}

impl Context {
    /// The node to talk to.
    fn client(&self) -> Result<Client, CliError> {
        let url = self.globals.rpc.as_deref().unwrap_or(RPC_DEFAULT);
        let token = self.globals.rpc_token.as_deref().map(settings::read_token).transpose()?;
        Client::new(url, token)
    }
}

/// `path` from the root of the file system, as text: the node has a working directory of its own.
fn absolute(path: &std::path::Path) -> Result<String, CliError> {
    let path = std::path::absolute(path)
        .map_err(|error| CliError::failed(format!("{} is not a path: {error}", path.display())))?;
    path.into_os_string().into_string().map_err(|path| {
        CliError::failed(format!("{} is not UTF-8, so the node cannot be told of it", path.display()))
    })
}

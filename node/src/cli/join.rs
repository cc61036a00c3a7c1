//! `join`: runs a node until it is told to stop.

use std::path::PathBuf;

use clap::Args;
use serde::Serialize;
use tokio_util::sync::CancellationToken;

use super::{
    Context,
    error::CliError,
    human, logging, machine,
    settings::{self, Machine, Settings},
};
use crate::{
    config::Config,
    node::{Node, StartError},
    rpc,
    swarm::ListenError,
};

/// Run a node until SIGINT or SIGTERM; a second signal stops at once
///
/// Each option is also a key of the same name in DATA_DIR/config.toml, and an environment variable.
/// A flag goes before the environment, that before the file.
#[derive(Debug, Args)]
pub(crate) struct Join {
    /// Folder for everything the node keeps [default: $SURF_HOME, else the platform's folder for data]
    #[arg(long, env = "SURF_DATA_DIR", value_name = "DIR")]
    data_dir: Option<PathBuf>,
    #[command(flatten)]
    settings: Settings,
}

/// The node is up.
#[derive(Debug, Serialize)]
#[serde(tag = "event", rename = "ready")]
struct Ready {
    peer_id: String,
    listen: Vec<String>,
    transfer: String,
    rpc: String,
    data_dir: String,
}

impl Join {
    #[cfg(test)]
    pub(super) fn settings(&self) -> &Settings {
        &self.settings
    }

    pub(crate) async fn run(self, context: &Context) -> Result<(), CliError> {
        let stop = stop_on_signals()?;
        let data_dir = settings::data_dir(self.data_dir.as_deref())?;
        let globals = &context.globals;
        let flags =
            Settings { rpc: globals.rpc.clone(), rpc_token: globals.rpc_token.clone(), ..self.settings };
        let settings = flags.or(Settings::read(&data_dir)?);
        logging::for_node(globals, settings.log.unwrap_or_default());
        let config = settings.resolve(data_dir.clone(), look_around(&data_dir))?;
        let listener = rpc::bind(&config.rpc).await.map_err(unbound)?;
        // Being told to stop while starting must not wait for the start.
        let node = tokio::select! {
            node = start(config) => node?,
            () = stop.cancelled() => return Ok(()),
        };
        let status = node.status().await;
        let ready = Ready {
            peer_id: status.peer_id,
            listen: status.listen,
            transfer: status.transfer,
            rpc: listener.url(),
            data_dir: data_dir.display().to_string(),
        };
        context.output.result(&ready, words)?;
        rpc::serve(listener, node.clone(), stop).await;
        node.stop().await;
        Ok(())
    }
}

async fn start(config: Config) -> Result<Node, CliError> {
    Node::start(config).await.map_err(|error| {
        let failed = CliError::failed(error.to_string());
        match error {
            StartError::Listen(ListenError::Address { .. }) => {
                failed.hint("choose another place with --listen IP:PORT; port 0 picks a free one")
            }
            StartError::Bind(_) => {
                failed.hint("choose another place with --transfer IP:PORT; port 0 picks a free one")
            }
            _ => failed,
        }
    })
}

fn look_around(data_dir: &std::path::Path) -> Machine {
    let free = machine::disk_free(data_dir).ok();
    let disk = free.map(|free| free.saturating_add(machine::disk_used(&settings::store_dir(data_dir))));
    Machine { memory: machine::memory(), disk }
}

fn unbound(error: rpc::BindError) -> CliError {
    let hint = match &error {
        rpc::BindError::Exposed { .. } => "give it a token with --rpc-token FILE, or listen on 127.0.0.1",
        rpc::BindError::Listen { .. } => "choose another place with --rpc IP:PORT; port 0 picks a free one",
    };
    CliError::failed(error.to_string()).hint(hint)
}

fn words(ready: &Ready) -> String {
    let mut facts = vec![
        ("peer", ready.peer_id.clone()),
        ("rpc", ready.rpc.clone()),
        ("transfer", ready.transfer.clone()),
        ("data", ready.data_dir.clone()),
    ];
    facts.extend(ready.listen.iter().map(|addr| ("listen", addr.clone())));
    format!("ready\n{}", human::pairs(&facts))
}

/// A token that the first SIGINT or SIGTERM cancels. The second ends the program.
fn stop_on_signals() -> Result<CancellationToken, CliError> {
    let failed = |error| CliError::failed(format!("signals cannot be listened for: {error}"));
    end_at_the_second_signal().map_err(failed)?;
    let mut signals = signals().map_err(failed)?;
    let stop = CancellationToken::new();
    let stopping = stop.clone();
    tokio::spawn(async move {
        signals.next().await;
        stopping.cancel();
        signals.next().await;
        std::process::exit(1);
    });
    Ok(stop)
}

/// By the signal handler itself, whatever the threads of the program are busy with.
#[cfg(unix)]
fn end_at_the_second_signal() -> std::io::Result<()> {
    use signal_hook::{
        consts::{SIGINT, SIGTERM},
        flag,
    };
    let asked = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        // Handlers run in the order in which they were registered: look first, note after.
        flag::register_conditional_shutdown(signal, 1, std::sync::Arc::clone(&asked))?;
        flag::register(signal, std::sync::Arc::clone(&asked))?;
    }
    Ok(())
}

#[cfg(not(unix))]
fn end_at_the_second_signal() -> std::io::Result<()> {
    Ok(())
}

#[cfg(unix)]
struct Signals {
    interrupt: tokio::signal::unix::Signal,
    terminate: tokio::signal::unix::Signal,
}

#[cfg(unix)]
fn signals() -> std::io::Result<Signals> {
    use tokio::signal::unix::{SignalKind, signal};
    Ok(Signals { interrupt: signal(SignalKind::interrupt())?, terminate: signal(SignalKind::terminate())? })
}

#[cfg(unix)]
impl Signals {
    async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}

#[cfg(not(unix))]
struct Signals;

#[cfg(not(unix))]
fn signals() -> std::io::Result<Signals> {
    Ok(Signals)
}

#[cfg(not(unix))]
impl Signals {
    async fn next(&mut self) {
        // It cannot be listened for: then nobody can send it either.
        if tokio::signal::ctrl_c().await.is_err() {
            std::future::pending().await
        }
    }
}

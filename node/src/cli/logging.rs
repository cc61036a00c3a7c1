//! What the parts of the node log goes to stderr, as text or as JSON. It has colours only on a terminal, and
//! not if `NO_COLOR` is set.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

use super::{Globals, settings::LogFormat};

/// For commands that run a node.
pub(crate) fn for_node(globals: &Globals, format: LogFormat) {
    let level = match (globals.quiet, globals.verbose) {
        (true, _) => "error",
        // Kademlia warns of a node that has nobody to ask yet, which every first node is.
        (false, 0) => "warn,libp2p_kad=error,surf_node=info",
        (false, 1) => "info,surf_node=debug",
        (false, _) => "debug,sled=info,surf_node=trace",
    };
    start(level, format);
}

/// For commands that talk to one: nothing, unless more is wanted.
pub(crate) fn for_commands(globals: &Globals) {
    match globals.verbose {
        0 => {}
        1 => start("warn,surf_node=debug", LogFormat::Text),
        _ => start("debug,surf_node=trace", LogFormat::Text),
    }
}

/// `RUST_LOG`, where it is set, says it better than we do.
fn start(level: &str, format: LogFormat) {
    let said = std::env::var("RUST_LOG").ok().filter(|said| !said.trim().is_empty());
    let filter = said.and_then(|said| EnvFilter::try_new(said).ok()).unwrap_or_else(|| EnvFilter::new(level));
    let is_set = |name: &str| std::env::var_os(name).is_some_and(|text| !text.is_empty());
    let colours = std::io::stderr().is_terminal() && !is_set("NO_COLOR");
    let log =
        tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(colours);
    // A second log is refused; the first, of whoever runs us, is as good.
    let _ = match format {
        LogFormat::Text => log.try_init(),
        LogFormat::Json => log.json().with_ansi(false).try_init(),
    };
}

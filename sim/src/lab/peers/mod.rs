//! Programs that move a file, each with the settings that serve it best: our own, and those that it is
//! compared with. They run on hosts of the network and reach nothing else.

pub mod libtorrent;
pub mod ours;
pub mod rqbit;
pub mod sendme;
pub mod web;

use std::{
    fmt::Debug,
    path::{Path, PathBuf},
    time::Duration,
};

use futures::future::BoxFuture;

use super::{
    Options,
    arena::{Arena, Run},
};
use crate::bench::Failed;

/// How long a program may take until it says that it is ready.
pub(crate) const READY: Duration = Duration::from_secs(60);

/// A program that moves a file.
///
/// - `distribute` starts what it needs on the seeds first and puts the clock of [`Arena::measure`]
///   around what the receivers do, and nothing else. Processes that receivers leave running all the
///   time (ours, libtorrent's) are started before; those that run once are started in it.
/// - All that it starts ends when the future is dropped.
pub trait Program: Debug {
    /// What it is called in tables.
    fn name(&self) -> String;

    /// How many seeds it can take from at once.
    fn seeds_max(&self) -> usize;

    /// Brings the file from the seeds to the receivers, once.
    fn distribute<'a>(&'a self, arena: &'a Arena<'a>) -> BoxFuture<'a, Result<Run, Failed>>;
}

/// Our own program, and then those to compare with that are here. Says which are not.
pub fn all(options: &Options) -> Vec<Box<dyn Program>> {
    let mut programs: Vec<Box<dyn Program>> = vec![Box::new(ours::Ours::new(&options.program))];
    for (name, found) in others(options) {
        if options.compare.as_ref().is_some_and(|wanted| !wanted.iter().any(|wanted| wanted == name)) {
            continue;
        }
        match found {
            Ok(program) => programs.push(program),
            Err(error) => eprintln!("{name} is left out: {error}"),
        }
    }
    programs
}

type Found = Result<Box<dyn Program>, Failed>;

fn others(options: &Options) -> [(&'static str, Found); 4] {
    let peers = options.peers.as_deref();
    let found = |program: Result<_, Failed>| program;
    [
        ("nginx", found(web::Web::find(peers).map(|program| Box::new(program) as _))),
        ("libtorrent", found(libtorrent::Libtorrent::find(peers).map(|program| Box::new(program) as _))),
        ("sendme", found(sendme::Sendme::find(peers).map(|program| Box::new(program) as _))),
        ("rqbit", found(rqbit::Rqbit::find(peers).map(|program| Box::new(program) as _))),
    ]
}

/// The program `name`, in `dir` or its folder `bin`, or in `PATH`.
pub(crate) fn find(name: &str, dir: Option<&Path>) -> Result<PathBuf, Failed> {
    let near = dir.into_iter().flat_map(|dir| [dir.join(name), dir.join("bin").join(name)]);
    let path = std::env::var_os("PATH").unwrap_or_default();
    // Debian keeps servers where only root's PATH leads.
    let system = std::env::split_paths(&path).chain([PathBuf::from("/usr/sbin")]).map(|dir| dir.join(name));
    let found = near.chain(system).find(|path| path.is_file());
    let found = found.ok_or_else(|| Failed(format!("there is no {name} in --peers or PATH")))?;
    Ok(found.canonicalize()?)
}

/// Waits for `ready`, but not for ever.
pub(crate) async fn soon<T>(what: &str, ready: impl Future<Output = Result<T, Failed>>) -> Result<T, Failed> {
    let late = |_| Failed(format!("{what} was not ready after {} s", READY.as_secs()));
    tokio::time::timeout(READY, ready).await.map_err(late)?
}

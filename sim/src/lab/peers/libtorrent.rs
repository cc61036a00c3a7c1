//! libtorrent through its Python binding: everyone is told of everyone, so no tracker is needed.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::Arc,
};

use futures::{
    FutureExt,
    future::{BoxFuture, try_join_all},
};

use super::{Program, find, soon};
use crate::{
    bench::Failed,
    lab::{
        arena::{Arena, Run},
        measure::{Meter, Role},
        process::Process,
    },
};

/// What a Python runs.
const DRIVER: &str = include_str!("libtorrent.py");

/// libtorrent, as a path to a Python that has it.
#[derive(Debug)]
pub struct Libtorrent(PathBuf);

impl Libtorrent {
    /// A Python that has libtorrent, in `dir`, a virtual environment beside or in it, or `PATH`.
    pub fn find(dir: Option<&Path>) -> Result<Self, Failed> {
        let near =
            dir.into_iter().flat_map(|dir| ["venv", "../venv"].map(|name| dir.join(name).join("bin/python")));
        // The path of a virtual environment's Python is what tells it where its packages are.
        let system = ["python", "python3"].into_iter().filter_map(|name| find(name, dir).ok());
        let has = |python: &PathBuf| {
            let mut command = Command::new(python);
            command.args(["-c", "import libtorrent"]).stdout(Stdio::null()).stderr(Stdio::null());
            command.status().is_ok_and(|status| status.success())
        };
        let found = near.chain(system).find(has);
        found.map(Self).ok_or_else(|| Failed("no Python in --peers or PATH has libtorrent".to_owned()))
    }

    async fn take_part_everywhere(&self, arena: &Arena<'_>) -> Result<Run, Failed> {
        let torrent = self.torrent(arena)?;
        let mut seeds = Vec::new();
        for &host in &arena.seeds {
            let mut seed = self.start(arena, host, &arena.payload.folder, &torrent).await?;
            seed.say("go").await?;
            soon("libtorrent", seed.line_with("done")).await?;
            seeds.push(seed);
        }
        let mut receivers = Vec::new();
        for &host in &arena.receivers {
            let folder = arena.folder("libtorrent", host)?;
            receivers.push(self.start(arena, host, &folder, &torrent).await?);
        }
        let of = |list: &[Process], role| list.iter().map(|one| (one.pid(), role)).collect::<Vec<_>>();
        let programs = [of(&seeds, Role::Sends), of(&receivers, Role::Receives)].concat();
        let work = async |meter: Arc<Meter>| {
            let all = receivers.iter_mut().map(async |receiver| {
                receiver.say("go").await?;
                let line = receiver.line_with("done").await?;
                let wasted = line.rsplit(' ').next().and_then(|word| word.parse::<u64>().ok());
                Ok::<_, Failed>((meter.elapsed(), wasted.unwrap_or(0)))
            });
            let done = try_join_all(all).await?;
            let wasted = done.iter().map(|(_, wasted)| wasted).sum();
            Ok((done.into_iter().map(|(at, _)| at).collect(), Some(wasted)))
        };
        arena.measure(&self.name(), &programs, work).await
    }

    /// A torrent of the file of `arena`.
    pub(crate) fn torrent(&self, arena: &Arena<'_>) -> Result<PathBuf, Failed> {
        let dir = arena.lab.folder("libtorrent")?;
        fs::write(dir.join("driver.py"), DRIVER)?;
        let torrent = dir.join("payload.torrent");
        let mut command = Command::new(&self.0);
        command.arg(dir.join("driver.py")).arg("make").arg(arena.payload.file()).arg(&torrent);
        let output = command.output()?;
        if !output.status.success() {
            return Err(Failed::to("make a torrent", String::from_utf8_lossy(&output.stderr).trim()));
        }
        Ok(torrent)
    }

    async fn start(
        &self,
        arena: &Arena<'_>,
        host: usize,
        folder: &Path,
        torrent: &Path,
    ) -> Result<Process, Failed> {
        let mut command = arena.network.command(host, &self.0);
        command.arg(torrent.with_file_name("driver.py")).arg("run");
        command.arg(arena.network.address(host).to_string()).arg(folder).arg(torrent);
        let others = arena.seeds.iter().chain(&arena.receivers).filter(|&&other| other != host);
        command.args(others.map(|&other| arena.network.address(other).to_string()));
        let log = torrent.with_file_name(format!("libtorrent-{host}.log"));
        let mut process = Process::start(command, &log)?;
        soon("libtorrent", process.line_with("ready")).await?;
        Ok(process)
    }
}

impl Program for Libtorrent {
    fn name(&self) -> String {
        "libtorrent".to_owned()
    }

    fn seeds_max(&self) -> usize {
        usize::MAX
    }

    fn distribute<'a>(&'a self, arena: &'a Arena<'a>) -> BoxFuture<'a, Result<Run, Failed>> {
        self.take_part_everywhere(arena).boxed()
    }
}

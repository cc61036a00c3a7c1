//! rqbit: everyone is told of everyone by `--initial-peers`.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use futures::{
    FutureExt,
    future::{BoxFuture, try_join_all},
};

use super::{Program, find, libtorrent::Libtorrent};
use crate::{
    bench::Failed,
    lab::{
        arena::{Arena, Run},
        measure::{Meter, Role},
        process::Process,
    },
};

/// Where it listens.
const PORT: u16 = 4240;

/// How long a seed has to hash what it has.
const HASHED: std::time::Duration = std::time::Duration::from_secs(4);

/// How often a receiver's state is looked at.
const LOOK: std::time::Duration = std::time::Duration::from_millis(50);

/// rqbit, as a path to it, and what makes torrents for it.
#[derive(Debug)]
pub struct Rqbit {
    program: PathBuf,
    maker: Libtorrent,
}

impl Rqbit {
    /// rqbit, if it is here. Its torrents are made by libtorrent, so that both move the same pieces.
    pub fn find(dir: Option<&Path>) -> Result<Self, Failed> {
        Ok(Self { program: find("rqbit", dir)?, maker: Libtorrent::find(dir)? })
    }

    async fn take_part_everywhere(&self, arena: &Arena<'_>) -> Result<Run, Failed> {
        let torrent = self.maker.torrent(arena)?;
        let mut seeds = Vec::new();
        for &host in &arena.seeds {
            seeds.push(self.start(arena, host, &arena.payload.folder, &torrent)?);
        }
        tokio::time::sleep(HASHED).await;
        let programs: Vec<_> = seeds.iter().map(|seed| (seed.pid(), Role::Sends)).collect();
        let work = async |meter: Arc<Meter>| {
            let all = arena.receivers.iter().map(async |&host| {
                let folder = arena.folder("rqbit", host)?;
                let process = self.start(arena, host, &folder, &torrent)?;
                meter.watch(process.pid(), Role::Receives);
                let at = finished(arena, host).await.map(|()| meter.elapsed())?;
                // It goes on to give to the others.
                Ok::<_, Failed>((at, process))
            });
            let done = try_join_all(all).await?;
            Ok((done.into_iter().map(|(at, _)| at).collect(), None))
        };
        arena.measure(&self.name(), &programs, work).await
    }

    fn start(
        &self,
        arena: &Arena<'_>,
        host: usize,
        folder: &Path,
        torrent: &Path,
    ) -> Result<Process, Failed> {
        let mut command = arena.network.command(host, &self.program);
        command.args(["--disable-dht", "--disable-lsd", "--disable-trackers", "--ipv4-only"]);
        command.args(["--disable-upnp-port-forward", "--http-api-listen-addr", "127.0.0.1:3030"]);
        command.args(["--listen-ip", &arena.network.address(host).to_string()]);
        command.args(["--listen-port", &PORT.to_string(), "download", "--overwrite", "--output-folder"]);
        let others = arena.seeds.iter().chain(&arena.receivers).filter(|&&other| other != host);
        let others: Vec<_> =
            others.map(|&other| format!("{}:{PORT}", arena.network.address(other))).collect();
        command.arg(folder).args(["--initial-peers", &others.join(",")]).arg(torrent);
        // It keeps state in the user's folder otherwise.
        let home = arena.folder("rqbit-home", host)?;
        command.env("HOME", &home).env("XDG_DATA_HOME", &home).env("XDG_CACHE_HOME", &home);
        Process::start(command, &home.join("rqbit.log"))
    }
}

/// Returns when the rqbit on `host` has everything.
async fn finished(arena: &Arena<'_>, host: usize) -> Result<(), Failed> {
    loop {
        tokio::time::sleep(LOOK).await;
        let addr = std::net::SocketAddr::from(([127, 0, 0, 1], 3030));
        let Ok(stream) = arena.network.connect(host, addr) else { continue };
        let answer = crate::lab::process::fetch(stream, "/torrents/0/stats/v1").await;
        if answer.is_ok_and(|stats| stats["finished"] == true) {
            return Ok(());
        }
    }
}

impl Program for Rqbit {
    fn name(&self) -> String {
        "rqbit".to_owned()
    }

    fn seeds_max(&self) -> usize {
        usize::MAX
    }

    fn distribute<'a>(&'a self, arena: &'a Arena<'a>) -> BoxFuture<'a, Result<Run, Failed>> {
        self.take_part_everywhere(arena).boxed()
    }
}

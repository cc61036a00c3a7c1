//! nginx, and aria2 that fetches from it; where several seeds have the file, from all of them.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use futures::{
    FutureExt,
    future::{BoxFuture, try_join_all},
};

use super::{Program, find};
use crate::{
    bench::Failed,
    lab::{
        arena::{Arena, Run},
        measure::{Meter, Role},
        process::Process,
    },
};

/// Where nginx listens.
const PORT: u16 = 8080;

/// How long nginx is given to listen.
const LISTEN: Duration = Duration::from_millis(300);

/// A web server, and a client for it.
#[derive(Debug)]
pub struct Web {
    nginx: PathBuf,
    client: PathBuf,
}

impl Web {
    /// nginx and aria2, if they are here.
    pub fn find(dir: Option<&Path>) -> Result<Self, Failed> {
        Ok(Self { nginx: find("nginx", dir)?, client: find("aria2c", dir)? })
    }

    /// nginx and curl: one plain copy, as fast as the link allows.
    pub fn plain(dir: Option<&Path>) -> Result<Self, Failed> {
        Ok(Self { nginx: find("nginx", dir)?, client: find("curl", dir)? })
    }

    fn is_plain(&self) -> bool {
        self.client.file_name().is_some_and(|name| name == "curl")
    }

    async fn download_everywhere(&self, arena: &Arena<'_>) -> Result<Run, Failed> {
        let mut servers = Vec::new();
        for &host in &arena.seeds {
            servers.push(self.serve(arena, host)?);
        }
        tokio::time::sleep(LISTEN).await;
        let programs: Vec<_> = servers.iter().map(|server| (server.pid(), Role::Sends)).collect();
        let download = async |meter: Arc<Meter>| {
            let all = arena.receivers.iter().map(async |&host| {
                self.download(arena, host, &meter).await?;
                Ok::<_, Failed>(meter.elapsed())
            });
            Ok((try_join_all(all).await?, None))
        };
        let run = arena.measure(&self.name(), &programs, download).await?;
        Ok(run)
    }

    /// One process without workers, so that all it uses is seen.
    fn serve(&self, arena: &Arena<'_>, host: usize) -> Result<Process, Failed> {
        let dir = arena.folder("nginx", host)?;
        let place = dir.display();
        let temporary = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
            .map(|kind| format!("{kind}_temp_path {place}/{kind};"))
            .join(" ");
        let settings = format!(
            "user root; daemon off; master_process off; pid {place}/pid; error_log {place}/error.log;\n\
             events {{ worker_connections 512; }}\n\
             http {{ access_log off; sendfile on; tcp_nopush on; {temporary}\n\
             server {{ listen {}:{PORT}; root {}; }} }}\n",
            arena.network.address(host),
            arena.payload.folder.display()
        );
        let file = dir.join("nginx.conf");
        fs::write(&file, settings)?;
        let mut command = arena.network.command(host, &self.nginx);
        command.arg("-c").arg(&file).arg("-p").arg(&dir);
        Process::start(command, &dir.join("nginx.log"))
    }

    async fn download(&self, arena: &Arena<'_>, host: usize, meter: &Meter) -> Result<(), Failed> {
        let dir = arena.folder("aria2", host)?;
        let mut command = arena.network.command(host, &self.client);
        let url =
            |&seed: &usize| format!("http://{}:{PORT}/{}", arena.network.address(seed), arena.payload.name);
        if self.is_plain() {
            command.args(["--silent", "--fail", "--output"]).arg(dir.join(&arena.payload.name));
            command.args(arena.seeds.iter().map(url).take(1));
        } else {
            let connections = arena.seeds.len().max(4).to_string();
            command.args(["--no-conf", "--quiet", "--file-allocation=none", "--min-split-size=1M"]);
            command.args(["--split", &connections, "--max-connection-per-server=4", "--dir"]).arg(&dir);
            command.args(arena.seeds.iter().map(url));
        }
        let mut client = Process::start(command, &dir.join("client.log"))?;
        meter.watch(client.pid(), Role::Receives);
        client.end().await?;
        let got = fs::metadata(dir.join(&arena.payload.name))?.len();
        if got != arena.payload.size {
            return Err(Failed(format!("{} wrote {got} bytes", self.client.display())));
        }
        Ok(())
    }
}

impl Program for Web {
    fn name(&self) -> String {
        let client = if self.is_plain() { "curl" } else { "aria2" };
        format!("nginx + {client}")
    }

    fn seeds_max(&self) -> usize {
        if self.is_plain() { 1 } else { usize::MAX }
    }

    fn distribute<'a>(&'a self, arena: &'a Arena<'a>) -> BoxFuture<'a, Result<Run, Failed>> {
        self.download_everywhere(arena).boxed()
    }
}

//! iroh's sendme, without relay servers: the ticket holds the sender's addresses.

use std::{
    fs,
    path::{Path, PathBuf},
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

/// sendme, as a path to it.
#[derive(Debug)]
pub struct Sendme(PathBuf);

impl Sendme {
    /// sendme, if it is here.
    pub fn find(dir: Option<&Path>) -> Result<Self, Failed> {
        Ok(Self(find("sendme", dir)?))
    }

    async fn receive_everywhere(&self, arena: &Arena<'_>) -> Result<Run, Failed> {
        let (sender, ticket) = soon("sendme", self.send(arena)).await?;
        let receive = async |meter: Arc<Meter>| {
            let all = arena.receivers.iter().map(async |&host| {
                self.receive(arena, host, &ticket, &meter).await?;
                Ok::<_, Failed>(meter.elapsed())
            });
            Ok((try_join_all(all).await?, None))
        };
        let run = arena.measure(&self.name(), &[(sender.pid(), Role::Sends)], receive).await;
        drop(sender);
        run
    }

    /// Starts the sender. Returns it with its ticket.
    async fn send(&self, arena: &Arena<'_>) -> Result<(Process, String), Failed> {
        let host = arena.seeds[0];
        // Both may be on one host.
        let dir = arena.folder("sendme-send", host)?;
        let mut command = arena.network.command(host, &self.0);
        command.args(["send", "--no-progress", "--relay", "disabled", "--ticket-type", "addresses"]);
        command.args(["--magic-ipv4-addr", &format!("{}:4919", arena.network.address(host))]);
        command.arg(arena.payload.file()).current_dir(&dir);
        let mut sender = Process::start(command, &dir.join("sendme.log"))?;
        let line = sender.line_with("sendme receive ").await?;
        let ticket = line.rsplit(' ').next().unwrap_or_default().trim().to_owned();
        Ok((sender, ticket))
    }

    async fn receive(
        &self,
        arena: &Arena<'_>,
        host: usize,
        ticket: &str,
        meter: &Meter,
    ) -> Result<(), Failed> {
        let dir = arena.folder("sendme", host)?;
        let mut command = arena.network.command(host, &self.0);
        command.args(["receive", "--no-progress", "--relay", "disabled"]);
        command.args(["--magic-ipv4-addr", &format!("{}:4920", arena.network.address(host))]);
        command.arg(ticket).current_dir(&dir);
        let mut receiver = Process::start(command, &dir.join("sendme.log"))?;
        meter.watch(receiver.pid(), Role::Receives);
        receiver.end().await?;
        let got = fs::metadata(dir.join(&arena.payload.name))?.len();
        if got != arena.payload.size {
            return Err(Failed(format!("sendme wrote {got} bytes")));
        }
        Ok(())
    }
}

impl Program for Sendme {
    fn name(&self) -> String {
        "sendme".to_owned()
    }

    fn seeds_max(&self) -> usize {
        1
    }

    fn distribute<'a>(&'a self, arena: &'a Arena<'a>) -> BoxFuture<'a, Result<Run, Failed>> {
        self.receive_everywhere(arena).boxed()
    }
}

//! `surf-node`: a node on every host, which stays; the clock runs from the pull.

use std::path::PathBuf;

use futures::{
    FutureExt,
    future::{BoxFuture, try_join_all},
};

use super::Program;
use crate::{
    bench::Failed,
    lab::{
        arena::{Arena, Run},
        figures::SETTLE,
        measure::Role,
        process::Node,
    },
};

/// Our own program.
#[derive(Debug)]
pub struct Ours {
    program: PathBuf,
}

impl Ours {
    /// As a path to `surf-node`.
    pub fn new(program: &std::path::Path) -> Self {
        Self { program: program.to_owned() }
    }

    async fn pull_everywhere(&self, arena: &Arena<'_>) -> Result<Run, Failed> {
        let (seeds, receivers, model) = self.start(arena).await?;
        let of = |nodes: &[Node], role| nodes.iter().map(|node| (node.pid(), role)).collect::<Vec<_>>();
        let programs = [of(&seeds, Role::Sends), of(&receivers, Role::Receives)].concat();
        let pull = async |meter: std::sync::Arc<crate::lab::measure::Meter>| {
            let pulls = receivers.iter().map(async |node| {
                let pulled = node.pull(arena.network, &model, |_| ()).await?;
                let wasted = pulled["wasted_bytes"].as_u64().unwrap_or(0);
                Ok::<_, Failed>((meter.elapsed(), wasted))
            });
            let pulled = try_join_all(pulls).await?;
            let wasted = pulled.iter().map(|(_, wasted)| wasted).sum();
            Ok((pulled.into_iter().map(|(at, _)| at).collect(), Some(wasted)))
        };
        arena.measure(&self.name(), &programs, pull).await
    }

    async fn start(&self, arena: &Arena<'_>) -> Result<(Vec<Node>, Vec<Node>, String), Failed> {
        let network = arena.network;
        let join = async |host: usize, through: &[String]| {
            let dir = arena.folder("surf-node", host)?;
            Node::join(network, host, &self.program, &dir, through, &[]).await
        };
        let first = join(arena.seeds[0], &[]).await?;
        let through = [first.addr.clone()];
        let mut seeds = vec![first];
        for &host in &arena.seeds[1..] {
            seeds.push(join(host, &through).await?);
        }
        let mut model = String::new();
        for seed in &seeds {
            model = seed.publish(network, &arena.payload.folder).await?;
        }
        let mut receivers = Vec::new();
        for &host in &arena.receivers {
            receivers.push(join(host, &through).await?);
        }
        tokio::time::sleep(SETTLE).await;
        Ok((seeds, receivers, model))
    }
}

impl Program for Ours {
    fn name(&self) -> String {
        "surf-node".to_owned()
    }

    fn seeds_max(&self) -> usize {
        usize::MAX
    }

    fn distribute<'a>(&'a self, arena: &'a Arena<'a>) -> BoxFuture<'a, Result<Run, Failed>> {
        self.pull_everywhere(arena).boxed()
    }
}

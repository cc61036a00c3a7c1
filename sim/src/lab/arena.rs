//! The job that every program is put to: some hosts have a file, others want it, and one clock tells
//! when each of them has it.

use std::{path::PathBuf, sync::Arc, time::Duration};

use serde::Serialize;

use super::{
    Lab, Payload,
    measure::{Measured, Meter, Role},
    net::{Network, Traffic},
};
use crate::bench::Failed;

/// How long a run may take, in times of what one copy takes, and at least.
const PATIENCE: (f64, Duration) = (30.0, Duration::from_secs(120));

/// How often to look whether half of the file has come.
const LOOK: Duration = Duration::from_millis(20);

/// Hosts, a file, and who has it.
#[derive(Clone, Debug)]
pub struct Arena<'a> {
    /// The lab.
    pub lab: &'a Lab,
    /// The network.
    pub network: &'a Arc<Network>,
    /// Hosts that have the file.
    pub seeds: Vec<usize>,
    /// Hosts that want it.
    pub receivers: Vec<usize>,
    /// The file.
    pub payload: &'a Payload,
    /// A host on which everything is killed when the first receiver has half of the file.
    pub dies: Option<usize>,
}

/// What a program did in a run.
#[derive(Clone, Debug, Serialize)]
pub struct Run {
    /// Which.
    pub program: String,
    /// Seconds until all receivers had the file.
    pub seconds: f64,
    /// Seconds until each of them had it.
    pub done: Vec<f64>,
    /// Bytes that left the seeds' links, in copies of the file.
    pub origin_copies: f64,
    /// CPU seconds of the programs on the seeds, all together.
    pub cpu_sending_s: f64,
    /// CPU seconds of those on the receivers, all together.
    pub cpu_receiving_s: f64,
    /// The most memory of any program on a seed, mapped files aside.
    pub memory_sending: u64,
    /// The most memory of any on a receiver.
    pub memory_receiving: u64,
    /// Bytes that came in vain, all receivers together, where the program tells.
    pub wasted: Option<u64>,
    /// What each link carried.
    pub traffic: Vec<Traffic>,
    /// Seconds, and the bytes that had come to the receivers by then, on average.
    pub curve: Vec<(f64, u64)>,
}

impl Arena<'_> {
    /// A new folder for what `program` writes on `host`.
    pub fn folder(&self, program: &str, host: usize) -> Result<PathBuf, Failed> {
        self.lab.folder(&format!("{program}-{host}"))
    }

    /// Measures `work`, which returns when each receiver had the file, and the wasted bytes if it knows
    /// them. `programs` run already; `work` tells the meter of others.
    pub async fn measure<W>(
        &self,
        program: &str,
        programs: &[(u32, Role)],
        work: impl FnOnce(Arc<Meter>) -> W,
    ) -> Result<Run, Failed>
    where
        W: Future<Output = Result<(Vec<f64>, Option<u64>), Failed>>,
    {
        let meter = Arc::new(Meter::start(self.network, programs));
        let work = work(Arc::clone(&meter));
        let worked = tokio::select! {
            worked = tokio::time::timeout(self.patience(), work) => worked,
            never = self.kill_half_way(&meter) => match never {},
        };
        let late = |_| Failed(format!("{program} was not done after {:.0} s", meter.elapsed()));
        let (done, wasted) = worked.map_err(late)??;
        let meter = Arc::into_inner(meter).ok_or_else(|| Failed("the meter is in use".to_owned()))?;
        Ok(self.run(program, done, wasted, meter.finish()))
    }

    fn patience(&self) -> Duration {
        let (times, least) = PATIENCE;
        let bits = self.lab.options.rate.bits_per_s();
        let one = if bits == 0 { 0.0 } else { self.payload.size as f64 * 8.0 / bits as f64 };
        Duration::from_secs_f64(one * times).max(least)
    }

    async fn kill_half_way(&self, meter: &Meter) -> std::convert::Infallible {
        let Some(victim) = self.dies else { return std::future::pending().await };
        while meter.traffic(self.receivers[0]).received < self.payload.size / 2 {
            tokio::time::sleep(LOOK).await;
        }
        self.network.kill(victim);
        std::future::pending().await
    }

    fn run(&self, program: &str, done: Vec<f64>, wasted: Option<u64>, measured: Measured) -> Run {
        let of = |role: Role| measured.usage.iter().filter(move |usage| usage.role == role);
        let cpu = |role| of(role).map(|usage| usage.cpu_s).sum();
        let memory = |role| of(role).map(|usage| usage.memory).max().unwrap_or(0);
        let origin: u64 = self.seeds.iter().map(|&host| measured.traffic[host].sent).sum();
        let receivers = self.receivers.len().max(1) as u64;
        let average =
            |received: &Vec<u64>| self.receivers.iter().map(|&host| received[host]).sum::<u64>() / receivers;
        Run {
            program: program.to_owned(),
            seconds: done.iter().copied().fold(0.0, f64::max),
            done,
            origin_copies: origin as f64 / self.payload.size as f64,
            cpu_sending_s: cpu(Role::Sends),
            cpu_receiving_s: cpu(Role::Receives),
            memory_sending: memory(Role::Sends),
            memory_receiving: memory(Role::Receives),
            wasted,
            curve: measured.curve.iter().map(|(at, received)| (*at, average(received))).collect(),
            traffic: measured.traffic,
        }
    }
}

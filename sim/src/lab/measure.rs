//! What a run took: time, bytes over each link, CPU time and memory of each program. Looked at ten
//! times a second by one thread, so that looking costs little.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use serde::Serialize;
use tokio::time::Instant;

use super::net::{Network, Traffic};
use crate::bench::process::{cpu_seconds, resident};

/// How often links and programs are looked at.
const LOOK: Duration = Duration::from_millis(100);

/// What a program does in a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// It had everything when the run began.
    Sends,
    /// It had nothing.
    Receives,
}

/// What a program has used.
#[derive(Clone, Debug, Serialize)]
pub struct Usage {
    /// What it did.
    pub role: Role,
    /// CPU seconds from the start of the run.
    pub cpu_s: f64,
    /// The most bytes of memory it was seen to hold, mapped files aside.
    pub memory: u64,
}

/// What a run took.
#[derive(Clone, Debug, Serialize)]
pub struct Measured {
    /// Seconds.
    pub seconds: f64,
    /// What each link carried.
    pub traffic: Vec<Traffic>,
    /// What each program used.
    pub usage: Vec<Usage>,
    /// Seconds, and the bytes that each link had carried to its host by then.
    #[serde(skip)]
    pub curve: Vec<(f64, Vec<u64>)>,
}

/// A run that is being measured.
#[derive(Debug)]
pub struct Meter {
    started: Instant,
    seen: Arc<Seen>,
    looking: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Seen {
    network: Arc<Network>,
    started: Instant,
    before: Vec<Traffic>,
    programs: Mutex<BTreeMap<u32, Program>>,
    curve: Mutex<Vec<(f64, Vec<u64>)>>,
    over: AtomicBool,
}

#[derive(Clone, Copy, Debug)]
struct Program {
    role: Role,
    cpu_before: f64,
    cpu: f64,
    memory: u64,
}

impl Meter {
    /// Measures from now on.
    pub fn start(network: &Arc<Network>, programs: &[(u32, Role)]) -> Self {
        let started = Instant::now();
        let seen = Arc::new(Seen {
            network: Arc::clone(network),
            started,
            before: (0..network.hosts()).map(|host| network.traffic(host)).collect(),
            programs: Mutex::default(),
            curve: Mutex::default(),
            over: AtomicBool::new(false),
        });
        let mut meter = Self { started, looking: None, seen };
        programs.iter().for_each(|&(pid, role)| meter.watch(pid, role));
        let seen = Arc::clone(&meter.seen);
        meter.looking = Some(std::thread::spawn(move || {
            while !seen.over.load(Ordering::Relaxed) {
                seen.look();
                std::thread::park_timeout(LOOK);
            }
        }));
        meter
    }

    /// Measures a program too, that has begun since.
    pub fn watch(&self, pid: u32, role: Role) {
        let cpu = cpu_seconds(pid);
        let program = Program { role, cpu_before: cpu, cpu, memory: 0 };
        self.seen.programs.lock().unwrap_or_else(PoisonError::into_inner).insert(pid, program);
    }

    /// Seconds since the start.
    pub fn elapsed(&self) -> f64 {
        self.started.elapsed().as_secs_f64()
    }

    /// What the link of `host` has carried since the start.
    pub fn traffic(&self, host: usize) -> Traffic {
        self.seen.traffic(host)
    }

    /// Ends the measuring.
    pub fn finish(mut self) -> Measured {
        let seconds = self.elapsed();
        self.seen.look();
        self.stop();
        let seen = &self.seen;
        let programs = seen.programs.lock().unwrap_or_else(PoisonError::into_inner);
        let usage = programs.values().map(|program| Usage {
            role: program.role,
            cpu_s: program.cpu - program.cpu_before,
            memory: program.memory,
        });
        Measured {
            seconds,
            traffic: (0..seen.before.len()).map(|host| seen.traffic(host)).collect(),
            usage: usage.collect(),
            curve: seen.curve.lock().unwrap_or_else(PoisonError::into_inner).clone(),
        }
    }

    fn stop(&mut self) {
        self.seen.over.store(true, Ordering::Relaxed);
        if let Some(looking) = self.looking.take() {
            looking.thread().unpark();
            drop(looking.join());
        }
    }
}

/// The thread must not hold the network after the meter is gone, or it would not be removed.
impl Drop for Meter {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Seen {
    fn traffic(&self, host: usize) -> Traffic {
        let (now, before) = (self.network.traffic(host), self.before[host]);
        Traffic {
            sent: now.sent.saturating_sub(before.sent),
            received: now.received.saturating_sub(before.received),
        }
    }

    fn look(&self) {
        let at = self.started.elapsed().as_secs_f64();
        let received = (0..self.before.len()).map(|host| self.traffic(host).received).collect();
        self.curve.lock().unwrap_or_else(PoisonError::into_inner).push((at, received));
        let mut programs = self.programs.lock().unwrap_or_else(PoisonError::into_inner);
        for (&pid, program) in programs.iter_mut() {
            // What has ended uses nothing any more, and what it used stands.
            program.cpu = cpu_seconds(pid).max(program.cpu);
            program.memory = resident(pid).max(program.memory);
        }
    }
}

//! What a process has used, as Linux's `/proc` tells.

use std::{
    fs,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

/// Ticks per second of the times in `/proc/PID/stat`: fixed at 100 for user space.
const TICKS: f64 = 100.0;

/// How often memory is looked at.
const LOOK: Duration = Duration::from_millis(10);

/// CPU seconds that process `pid` has used, in user space and kernel. 0 where that cannot be told.
pub fn cpu_seconds(pid: u32) -> f64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The second field is the name in brackets, which may hold anything.
    let fields = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    let ticks = fields.split_whitespace().skip(11).take(2).filter_map(|field| field.parse::<f64>().ok());
    ticks.sum::<f64>() / TICKS
}

/// Bytes of memory that process `pid` holds for itself: resident, mapped files aside.
pub fn resident(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let field = |name: &str| -> u64 {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        line.and_then(|line| line.trim().trim_end_matches(" kB").parse().ok()).unwrap_or(0)
    };
    (field("RssAnon:") + field("RssShmem:")) * 1024
}

/// Watches the memory of a process on a thread of its own.
#[derive(Debug)]
pub struct Watch {
    peak: Arc<AtomicU64>,
    over: Arc<AtomicBool>,
    watching: Option<JoinHandle<()>>,
}

impl Watch {
    /// Watches process `pid` from now on.
    pub fn start(pid: u32) -> Self {
        let (peak, over) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let watching = std::thread::spawn({
            let (peak, over) = (Arc::clone(&peak), Arc::clone(&over));
            move || {
                while !over.load(Ordering::Relaxed) {
                    peak.fetch_max(resident(pid), Ordering::Relaxed);
                    std::thread::park_timeout(LOOK);
                }
            }
        });
        Self { peak, over, watching: Some(watching) }
    }

    /// The most that [`resident`] was.
    pub fn peak(mut self) -> u64 {
        self.over.store(true, Ordering::Relaxed);
        if let Some(watching) = self.watching.take() {
            watching.thread().unpark();
            drop(watching.join());
        }
        self.peak.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_busy_process_uses_time_and_memory() {
        let watch = Watch::start(std::process::id());
        let block = vec![1u8; 64 << 20];
        let before = cpu_seconds(std::process::id());
        let mut sum = 0u64;
        while cpu_seconds(std::process::id()) - before < 0.05 {
            sum = block.iter().map(|&byte| u64::from(byte)).sum::<u64>().wrapping_add(sum);
        }
        assert!(sum > 0);
        assert!(watch.peak() > 64 << 20);
    }
}

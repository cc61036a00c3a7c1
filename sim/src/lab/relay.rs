//! Delay, jitter and loss between two hosts, in user space: packets come out of a `tun` device, wait,
//! and go back in, or do not. So every protocol feels them alike, and nobody has to be told of it.
//!
//! Runs as a process of its own on a host between the two; see
//! [`Network::detour`](super::net::Network::detour). Packets never overtake each other.

use std::{
    fs::{File, OpenOptions},
    io::{self, Read, Write},
    sync::mpsc::{Receiver, SyncSender, sync_channel},
    time::Duration,
};

use clap::Args;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rustix::ioctl;
use tokio::time::Instant;

use super::{net::Network, process::Process};
use crate::bench::Failed;

/// Packets under way. At 1 Gbit/s and 100 ms there are 8,300 full ones.
const PACKETS_MAX: usize = 16_384;

/// Bytes in a packet: no link in here carries more.
const PACKET_SIZE_MAX: usize = 9_000;

/// How the relay treats packets.
#[derive(Clone, Copy, Debug, PartialEq, Args)]
pub struct Manner {
    /// Milliseconds that every packet waits, each way.
    #[arg(long, default_value_t = 0.0)]
    pub delay_ms: f64,
    /// Milliseconds that a packet may wait longer, evenly spread.
    #[arg(long, default_value_t = 0.0)]
    pub jitter_ms: f64,
    /// The share of packets that are lost.
    #[arg(long, default_value_t = 0.0)]
    pub loss: f64,
    /// Decides which.
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
}

/// Starts a relay on the host `middle` of `network`, and leads packets between `left` and `right`
/// through it. Ends when dropped.
pub fn start(
    network: &Network,
    (middle, left, right): (usize, usize, usize),
    manner: Manner,
    this: &std::path::Path,
    log: &std::path::Path,
) -> Result<Process, Failed> {
    network.detour(middle, left, right)?;
    let mut command = network.command(middle, this);
    command.args(["lab", "relay", "--delay-ms", &manner.delay_ms.to_string()]);
    command.args(["--jitter-ms", &manner.jitter_ms.to_string(), "--loss", &manner.loss.to_string()]);
    command.args(["--seed", &manner.seed.to_string()]);
    Process::start(command, log)
}

/// Relays until it is killed.
pub fn run(manner: &Manner) -> Result<(), Failed> {
    let device = attach("tun0").map_err(|error| Failed::to("take packets from tun0", error))?;
    let mut back = device.try_clone()?;
    let (send, receive) = sync_channel(PACKETS_MAX);
    println!("ready");
    std::thread::scope(|scope| {
        scope.spawn(move || deliver(&receive, |packet| back.write(packet).map(drop)));
        take(device, send, *manner)
    })?;
    Ok(())
}

/// A packet, and when it goes on.
type Waiting = (Instant, Vec<u8>);

fn take(mut device: File, send: SyncSender<Waiting>, manner: Manner) -> io::Result<()> {
    let mut fate = Fate::new(manner);
    let mut packet = [0; PACKET_SIZE_MAX];
    loop {
        let size = device.read(&mut packet)?;
        let Some(wait) = fate.of_next() else { continue };
        // A full queue drops, as routers do.
        let _ = send.try_send((Instant::now() + wait, packet[..size].to_vec()));
    }
}

fn deliver(receive: &Receiver<Waiting>, mut back: impl FnMut(&[u8]) -> io::Result<()>) {
    while let Ok((due, packet)) = receive.recv() {
        while let Some(left) = due.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) {
            std::thread::park_timeout(left);
        }
        // A device without room drops, as routers do.
        drop(back(&packet));
    }
}

/// What becomes of packets, by seeded dice.
#[derive(Debug)]
struct Fate {
    manner: Manner,
    dice: ChaCha8Rng,
}

impl Fate {
    fn new(manner: Manner) -> Self {
        Self { manner, dice: ChaCha8Rng::seed_from_u64(manner.seed) }
    }

    /// How long the next packet waits; `None` if it is lost.
    fn of_next(&mut self) -> Option<Duration> {
        let mut roll = || f64::from(self.dice.next_u32()) / (f64::from(u32::MAX) + 1.0);
        let (lost, later) = (roll() < self.manner.loss, roll());
        let wait = self.manner.delay_ms + later * self.manner.jitter_ms;
        (!lost).then(|| Duration::from_secs_f64(wait / 1e3))
    }
}

/// What the kernel wants to know of a `tun` device: `struct ifreq`.
#[repr(C)]
struct Wanted {
    name: [u8; 16],
    flags: u16,
    rest: [u8; 22],
}

/// Packets as IP sees them, without a header of the device: `IFF_TUN | IFF_NO_PI`.
const PLAIN_PACKETS: u16 = 0x1001;

/// `_IOW('T', 202, int)`, which takes a `struct ifreq`, whatever its name says.
const TUNSETIFF: ioctl::Opcode = ioctl::opcode::write::<i32>(b'T', 202);

#[allow(unsafe_code, reason = "a tun device is had by an ioctl only")]
fn attach(name: &str) -> io::Result<File> {
    let device = OpenOptions::new().read(true).write(true).open("/dev/net/tun")?;
    let mut wanted = Wanted { name: [0; 16], flags: PLAIN_PACKETS, rest: [0; 22] };
    wanted.name[..name.len().min(15)].copy_from_slice(&name.as_bytes()[..name.len().min(15)]);
    // SAFETY: the kernel reads and writes one `struct ifreq`, which has the 40 bytes of `Wanted`.
    unsafe { ioctl::ioctl(&device, ioctl::Updater::<TUNSETIFF, Wanted>::new(&mut wanted)) }?;
    Ok(device)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_are_lost_and_wait_as_told() {
        let manner = Manner { delay_ms: 25.0, jitter_ms: 10.0, loss: 0.01, seed: 7 };
        let mut fate = Fate::new(manner);
        let fates: Vec<_> = (0..100_000).map(|_| fate.of_next()).collect();
        let lost = fates.iter().filter(|fate| fate.is_none()).count();
        assert!((900..1100).contains(&lost), "{lost}");
        let (least, most) = (Duration::from_millis(25), Duration::from_millis(35));
        assert!(fates.iter().flatten().all(|wait| least <= *wait && *wait <= most));
        let mut again = Fate::new(manner);
        assert!(fates.iter().all(|fate| *fate == again.of_next()), "the same seed is the same fate");
    }

    #[test]
    fn packets_stay_in_order() {
        let (send, receive) = sync_channel(4);
        for (wait, packet) in [(3, 0), (0, 1), (1, 2)] {
            let due = Instant::now() + Duration::from_millis(wait);
            send.send((due, vec![packet])).unwrap();
        }
        drop(send);
        let mut seen = Vec::new();
        deliver(&receive, |packet| {
            seen.extend_from_slice(packet);
            Ok(())
        });
        assert_eq!(seen, [0, 1, 2]);
    }

    #[test]
    fn the_device_is_asked_for_in_the_kernels_layout() {
        assert_eq!(size_of::<Wanted>(), 40);
        assert_eq!(std::mem::offset_of!(Wanted, flags), 16);
        assert_eq!(TUNSETIFF, 0x4004_54ca);
    }
}

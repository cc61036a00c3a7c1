//! A network on this machine: one namespace for each host, joined by a bridge, every link shaped in
//! both directions by `tc tbf`.
//!
//! The bridge has no address and no way out, so nothing that runs in there reaches anything else.
//! Names carry the id of this process, so networks stand side by side. When a [`Network`] is dropped,
//! whatever still runs in it is killed and all of it is removed; what a killed lab left behind is
//! removed by the next one.

use std::{
    fmt, fs,
    io::{self, Write},
    net::{Ipv4Addr, SocketAddr},
    path::Path,
    process::{Command, Stdio},
    str::FromStr,
    sync::atomic::{AtomicU8, Ordering},
};

use rustix::{
    process::{Pid, Signal},
    thread::{LinkNameSpaceType, move_into_link_name_space},
};
use tokio::net::TcpStream;

use crate::bench::Failed;

/// What names of this lab begin with. Interfaces have names of at most 15 characters.
const PREFIX: &str = "sl";

/// Where `ip netns` keeps namespaces.
const NAMESPACES: &str = "/run/netns";

/// Hosts in one network: their addresses come from one /24.
pub const HOSTS_MAX: usize = 200;

/// Networks of this process so far.
static NETWORKS: AtomicU8 = AtomicU8::new(0);

/// What a link carries in each direction, as `tc` writes it: `100mbit`; `0` is unshaped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rate {
    text: String,
    bits: u64,
}

impl Rate {
    /// Bits per second; 0 is unshaped.
    pub fn bits_per_s(&self) -> u64 {
        self.bits
    }
}

impl FromStr for Rate {
    type Err = Failed;

    fn from_str(text: &str) -> Result<Self, Failed> {
        let end = text.find(|letter: char| !letter.is_ascii_digit()).unwrap_or(text.len());
        let (number, unit) = text.split_at(end);
        let scale = match unit {
            "kbit" => 1_000,
            "mbit" => 1_000_000,
            "gbit" => 1_000_000_000,
            "" if number == "0" => 0,
            _ => return Err(Failed(format!("{text:?} is no rate: write 100mbit, or 0 for none"))),
        };
        let number: u64 = number.parse().map_err(|error| Failed::to(&format!("read {text:?}"), error))?;
        Ok(Self { text: text.to_owned(), bits: number.saturating_mul(scale) })
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.bits == 0 { "no limit" } else { &self.text })
    }
}

/// Bytes that went over the link of a host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Traffic {
    /// Bytes that the host sent.
    pub sent: u64,
    /// Bytes that came to it.
    pub received: u64,
}

/// Hosts 0, 1, … and what joins them. Removed when dropped.
#[derive(Debug)]
pub struct Network {
    tag: String,
    hosts: usize,
}

impl Network {
    /// Makes a network of `hosts` hosts whose links carry `rate`.
    pub fn up(hosts: usize, rate: &Rate) -> Result<Self, Failed> {
        if HOSTS_MAX < hosts {
            return Err(Failed(format!("{hosts} hosts are more than the {HOSTS_MAX} of one network")));
        }
        check_means()?;
        sweep();
        let letter = char::from(b'a' + NETWORKS.fetch_add(1, Ordering::Relaxed) % 26);
        let network = Self { tag: format!("{PREFIX}{}{letter}", std::process::id()), hosts };
        // From here on `drop` removes whatever was made.
        let bridge = network.bridge();
        let mut lines = vec![format!("link add {bridge} type bridge"), format!("link set {bridge} up")];
        for host in 0..hosts {
            let (space, link) = (network.namespace(host), network.link(host));
            lines.push(format!("netns add {space}"));
            lines.push(format!("link add {link} type veth peer name eth0 netns {space}"));
            lines.push(format!("link set {link} master {bridge} up"));
        }
        batch("ip", &[], &lines)?;
        for host in 0..hosts {
            let inside = [
                "link set lo up".to_owned(),
                format!("addr add {}/24 dev eth0", network.address(host)),
                "link set eth0 up".to_owned(),
            ];
            batch("ip", &["-n", &network.namespace(host)], &inside)?;
            network.shape(host, rate)?;
        }
        Ok(network)
    }

    /// What the names of its namespaces and links begin with.
    pub fn name(&self) -> &str {
        &self.tag
    }

    /// How many hosts it has.
    pub fn hosts(&self) -> usize {
        self.hosts
    }

    /// The address of a host.
    pub fn address(&self, host: usize) -> Ipv4Addr {
        Ipv4Addr::new(10, 99, 0, u8::try_from(host + 1).unwrap_or(u8::MAX))
    }

    /// Lets the link of `host` carry `rate` from now on.
    pub fn shape(&self, host: usize, rate: &Rate) -> Result<(), Failed> {
        let (space, link) = (self.namespace(host), self.link(host));
        for (place, device) in [(&["-n", &*space][..], "eth0"), (&[], &*link)] {
            if rate.bits == 0 {
                // There may be none to delete, which is as good.
                drop(batch("tc", place, &[format!("qdisc del dev {device} root")]));
            } else {
                // A burst holds two of the largest packets that the host builds; the queue holds 100 ms.
                let queue = format!("rate {} burst 128kb latency 100ms", rate.text);
                batch("tc", place, &[format!("qdisc replace dev {device} root tbf {queue}")])?;
            }
        }
        Ok(())
    }

    /// Cuts the link of `host`, without telling anybody.
    pub fn cut(&self, host: usize) -> Result<(), Failed> {
        batch("ip", &[], &[format!("link set {} down", self.link(host))])
    }

    /// Joins it again.
    pub fn heal(&self, host: usize) -> Result<(), Failed> {
        batch("ip", &[], &[format!("link set {} up", self.link(host))])
    }

    /// Kills everything that runs on `host`, as `kill -9` does.
    pub fn kill(&self, host: usize) {
        signal_all(&self.namespace(host), Signal::KILL);
    }

    /// Stops everything that runs on `host`, as a lid that is closed does.
    pub fn sleep(&self, host: usize) {
        signal_all(&self.namespace(host), Signal::STOP);
    }

    /// Lets it go on.
    pub fn wake(&self, host: usize) {
        signal_all(&self.namespace(host), Signal::CONT);
    }

    /// What the link of `host` has carried since the network was made.
    pub fn traffic(&self, host: usize) -> Traffic {
        // What the host sent is what its other end received.
        let count = |name: &str| {
            let path = format!("/sys/class/net/{}/statistics/{name}", self.link(host));
            fs::read_to_string(path).ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0)
        };
        Traffic { sent: count("rx_bytes"), received: count("tx_bytes") }
    }

    /// A command that runs on `host`. Its process is the program itself.
    pub fn command(&self, host: usize, program: impl AsRef<Path>) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.namespace(host)]).arg(program.as_ref());
        command
    }

    /// Connects to `addr` from `host`.
    pub fn connect(&self, host: usize, addr: SocketAddr) -> Result<TcpStream, Failed> {
        let space = fs::File::open(Path::new(NAMESPACES).join(self.namespace(host)))?;
        // A thread lives in a namespace, and a socket in that of the thread that made it.
        let connecting = std::thread::spawn(move || -> io::Result<std::net::TcpStream> {
            use std::os::fd::AsFd;
            move_into_link_name_space(space.as_fd(), Some(LinkNameSpaceType::Network))?;
            std::net::TcpStream::connect(addr)
        });
        let stream = connecting.join().map_err(|_| Failed(format!("cannot connect to {addr}")))?;
        let stream = stream.map_err(|error| Failed::to(&format!("connect to {addr}"), error))?;
        stream.set_nonblocking(true)?;
        Ok(TcpStream::from_std(stream)?)
    }

    /// Makes packets between `left` and `right` pass the host `middle`, through a device `tun0` there.
    /// A program on `middle` reads packets from it and writes them back when they should go on.
    pub fn detour(&self, middle: usize, left: usize, right: usize) -> Result<(), Failed> {
        let space = self.namespace(middle);
        let script = "echo 1 > /proc/sys/net/ipv4/ip_forward; \
             for name in all eth0 default; do \
               echo 0 > /proc/sys/net/ipv4/conf/$name/send_redirects; \
               echo 0 > /proc/sys/net/ipv4/conf/$name/rp_filter; \
             done; \
             ip tuntap add dev tun0 mode tun && ip link set tun0 up txqueuelen 4000 && \
             echo 0 > /proc/sys/net/ipv4/conf/tun0/rp_filter && \
             ip route add default dev tun0 table 100 && ip rule add iif eth0 lookup 100 pref 100";
        quietly(self.command(middle, "sh").args(["-c", script]), &format!("make a detour in {space}"))?;
        for (from, to) in [(left, right), (right, left)] {
            let line = format!("route add {}/32 via {}", self.address(to), self.address(middle));
            batch("ip", &["-n", &self.namespace(from)], &[line])?;
        }
        Ok(())
    }

    fn namespace(&self, host: usize) -> String {
        format!("{}{host}", self.tag)
    }

    fn link(&self, host: usize) -> String {
        format!("{}v{host}", self.tag)
    }

    fn bridge(&self) -> String {
        format!("{}b", self.tag)
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        let spaces: Vec<String> = (0..self.hosts).map(|host| self.namespace(host)).collect();
        spaces.iter().for_each(|space| signal_all(space, Signal::KILL));
        let links = (0..self.hosts).map(|host| format!("link del {}", self.link(host)));
        let spaces = spaces.iter().map(|space| format!("netns del {space}"));
        let lines: Vec<String> = links.chain(spaces).chain([format!("link del {}", self.bridge())]).collect();
        // What was never made cannot be removed.
        drop(batch("ip", &["-force"], &lines));
    }
}

/// Removes what labs left behind whose process is gone.
pub fn sweep() {
    let Ok(entries) = fs::read_dir(NAMESPACES) else { return };
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let (mut lines, mut tags) = (Vec::new(), std::collections::BTreeSet::new());
    for name in names {
        let Some((tag, host)) = left_behind(&name) else { continue };
        signal_all(&name, Signal::KILL);
        lines.push(format!("link del {tag}v{host}"));
        lines.push(format!("netns del {name}"));
        tags.insert(tag.to_owned());
    }
    lines.extend(tags.iter().map(|tag| format!("link del {tag}b")));
    if !lines.is_empty() {
        drop(batch("ip", &["-force"], &lines));
    }
}

/// The tag and the host in the name of a namespace, if it is of a lab whose process is gone.
fn left_behind(name: &str) -> Option<(&str, &str)> {
    let rest = name.strip_prefix(PREFIX)?;
    let at = rest.find(|letter: char| !letter.is_ascii_digit())?;
    let pid: u32 = rest[..at].parse().ok()?;
    let host = &rest[at + 1..];
    let ours = rest.as_bytes()[at].is_ascii_lowercase() && host.parse::<usize>().is_ok();
    let gone = !Path::new(&format!("/proc/{pid}")).exists();
    (ours && gone).then(|| (&name[..PREFIX.len() + at + 1], host))
}

fn check_means() -> Result<(), Failed> {
    if !rustix::process::geteuid().is_root() {
        return Err(Failed("the lab makes network namespaces, which takes root; run it as root".to_owned()));
    }
    for (program, flag) in [("ip", "-V"), ("tc", "-V")] {
        let found = Command::new(program).arg(flag).stdout(Stdio::null()).stderr(Stdio::null()).status();
        if found.is_err() {
            return Err(Failed(format!("the lab needs `{program}`, which is not here; install iproute2")));
        }
    }
    Ok(())
}

fn signal_all(namespace: &str, signal: Signal) {
    let Ok(output) = Command::new("ip").args(["netns", "pids", namespace]).output() else { return };
    for pid in String::from_utf8_lossy(&output.stdout).lines() {
        if let Some(pid) = pid.trim().parse().ok().and_then(Pid::from_raw) {
            // It may have ended by itself.
            let _ = rustix::process::kill_process(pid, signal);
        }
    }
}

/// Runs `lines` as a batch of `ip` or `tc`.
fn batch(program: &str, args: &[&str], lines: &[String]) -> Result<(), Failed> {
    let what = format!("run `{program} {}`", lines.first().map_or("", String::as_str));
    let mut child = Command::new(program)
        .args(args)
        .args(["-batch", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| Failed::to(&what, error))?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all((lines.join("\n") + "\n").as_bytes())?;
    }
    succeeded(&child.wait_with_output()?, &what)
}

fn quietly(command: &mut Command, what: &str) -> Result<(), Failed> {
    let output = command.output().map_err(|error| Failed::to(what, error))?;
    succeeded(&output, what)
}

fn succeeded(output: &std::process::Output, what: &str) -> Result<(), Failed> {
    if output.status.success() {
        return Ok(());
    }
    Err(Failed::to(what, String::from_utf8_lossy(&output.stderr).trim()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_those_of_tc() {
        for (text, bits) in
            [("100mbit", 100_000_000), ("25mbit", 25_000_000), ("1gbit", 1_000_000_000), ("0", 0)]
        {
            assert_eq!(text.parse::<Rate>().unwrap().bits_per_s(), bits);
        }
        for text in ["", "mbit", "100", "100MB", "-1mbit", "1e9kbit", "99999999999999999999mbit"] {
            assert!(text.parse::<Rate>().is_err(), "{text}");
        }
    }

    #[test]
    fn only_what_a_lab_left_is_swept() {
        let gone = u32::MAX;
        let name = format!("sl{gone}b12");
        assert_eq!(left_behind(&name), Some((&*format!("sl{gone}b"), "12")));
        let alive = format!("sl{}a0", std::process::id());
        for name in [&*alive, "sl", "slow1", "sl1x", "lab0", "sl99999999999a1", "prv0"] {
            assert_eq!(left_behind(name), None, "{name}");
        }
    }
}

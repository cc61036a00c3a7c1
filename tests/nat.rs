//! Nodes behind NAT share a model. The internet is a bridge in a network namespace of Linux, where a node that
//! everyone can reach runs too; each of the others is in a namespace behind one that is its NAT box, made by
//! nftables as home routers are: addresses are translated, and what nobody asked for is dropped. Both homes
//! have the same private addresses, as homes do. Where this cannot be made, the tests say so and are skipped.

use std::{process::Command, time::Duration};

use serde_json::Value;
use surf_tests::{Process, tiny_surfer};
use tokio::time::Instant;

/// How long meeting and pulling may take: AutoNAT and a relay, on a busy machine.
const SOON: Duration = Duration::from_secs(90);

const RELAY: &str = "198.51.100.1";
const HOMES: [(&str, &str); 2] = [("a", "198.51.100.2"), ("b", "198.51.100.3")];

/// An internet with a relay and two homes. Gone when dropped.
struct World {
    name: &'static str,
}

impl World {
    fn make(name: &'static str) -> Option<Self> {
        let world = Self { name };
        world.build().or_else(|| {
            eprintln!("skipped: NAT boxes cannot be made here (root, iproute2 and nftables are needed)");
            None
        })?;
        Some(world)
    }

    fn build(&self) -> Option<()> {
        let net = self.space("net");
        ip(&["netns", "add", &net])?;
        inside(&net, "ip link set lo up && ip link add br0 type bridge && ip link set br0 up")?;
        inside(&net, &format!("ip addr add {RELAY}/24 dev br0"))?;
        for (home, public) in HOMES {
            let (host, nat) = (self.space(home), self.space(&format!("nat-{home}")));
            ip(&["netns", "add", &host])?;
            ip(&["netns", "add", &nat])?;
            ip(&["link", "add", "wan", "netns", &nat, "type", "veth", "peer", "name", home, "netns", &net])?;
            ip(&[
                "link", "add", "lan", "netns", &nat, "type", "veth", "peer", "name", "eth0", "netns", &host,
            ])?;
            inside(&net, &format!("ip link set dev {home} master br0 up"))?;
            inside(&nat, &format!("ip addr add {public}/24 dev wan && ip link set wan up"))?;
            inside(&nat, "ip addr add 192.168.1.1/24 dev lan && ip link set lan up && ip link set lo up")?;
            inside(&nat, "echo 1 > /proc/sys/net/ipv4/ip_forward")?;
            inside(&nat, &format!("nft '{ROUTER}'"))?;
            inside(&host, "ip addr add 192.168.1.2/24 dev eth0 && ip link set eth0 up && ip link set lo up")?;
            inside(&host, "ip route add default via 192.168.1.1")?;
        }
        Some(())
    }

    /// From now on, nothing goes between the homes but through the relay.
    fn divide(&self) {
        for ((home, _), (_, other)) in [(HOMES[0], HOMES[1]), (HOMES[1], HOMES[0])] {
            let rule = format!("add rule ip home forward ip daddr {other} drop");
            inside(&self.space(&format!("nat-{home}")), &format!("nft '{rule}'")).expect("nft adds a rule");
        }
    }

    fn space(&self, name: &str) -> String {
        format!("surf-nat-{}-{name}", self.name)
    }

    /// A node that everyone can reach, and how to join through it.
    fn relay(&self, extra: &[&str]) -> (Process, String) {
        let relay = Process::join_in_namespace(&self.space("net"), &[&["--no-mdns"], extra].concat());
        let addr = format!("/ip4/{RELAY}/udp/8470/quic-v1/p2p/{}", peer(&relay));
        (relay, addr)
    }

    fn node(&self, home: &str, relay: &str, extra: &[&str]) -> Process {
        let extra = [&["--no-mdns", "--bootstrap", relay], extra].concat();
        Process::join_in_namespace(&self.space(home), &extra)
    }
}

/// What nobody asked for is dropped before it can take a port that a way through will need.
const ROUTER: &str = "
table ip home {
    chain translate { type nat hook postrouting priority srcnat; oifname wan masquerade; }
    chain input {
        type filter hook input priority filter; policy accept;
        iifname wan ct state established,related accept
        iifname wan drop
    }
    chain forward {
        type filter hook forward priority filter; policy accept;
        iifname wan ct state established,related accept
        iifname wan drop
    }
}";

impl Drop for World {
    fn drop(&mut self) {
        for name in ["net", "a", "b", "nat-a", "nat-b"] {
            ip(&["netns", "del", &self.space(name)]);
        }
    }
}

fn ip(args: &[&str]) -> Option<()> {
    let output = Command::new("ip").args(args).output().ok()?;
    output.status.success().then_some(())
}

fn inside(space: &str, script: &str) -> Option<()> {
    ip(&["netns", "exec", space, "sh", "-c", script])
}

fn peer(node: &Process) -> &str {
    node.ready["peer_id"].as_str().expect("a peer id")
}

/// The peers of a node that are reached by `path`.
fn by(node: &Process, path: &str) -> Vec<Value> {
    let peers = node.done(&["peers"]);
    peers.as_array().expect("a list").iter().filter(|peer| peer["path"] == path).cloned().collect()
}

/// Waits until the node can be met through `relay`.
fn wait_for_a_place(node: &Process, relay: &Process) {
    let begin = Instant::now();
    loop {
        let reach = &node.done(&["status"])["reach"];
        if reach["relays"][0] == peer(relay) {
            assert_eq!(reach["outlook"], "private");
            return;
        }
        assert!(begin.elapsed() < SOON, "no place at a relay: {reach}");
        std::thread::park_timeout(Duration::from_millis(200));
    }
}

fn publish(node: &Process) -> String {
    let folder = tiny_surfer();
    let published = node.done(&["publish", folder.to_str().expect("UTF-8")]);
    published["model"].as_str().expect("a model id").to_owned()
}

/// Pulls until somebody has been found who has it.
fn pull(node: &Process, model: &str) -> Value {
    let begin = Instant::now();
    loop {
        let output = node.run(&["pull", model]);
        if output.status.success() {
            let text = String::from_utf8(output.stdout).expect("UTF-8");
            return serde_json::from_str(text.lines().last().expect("a result")).expect("JSON");
        }
        assert!(begin.elapsed() < SOON, "{}", String::from_utf8_lossy(&output.stderr));
    }
}

#[test]
fn two_homes_open_a_way_through_their_nats() {
    let Some(world) = World::make("p") else { return };
    let (relay, addr) = world.relay(&[]);
    let a = world.node("a", &addr, &[]);
    let b = world.node("b", &addr, &[]);
    wait_for_a_place(&a, &relay);
    assert_eq!(relay.done(&["status"])["reach"]["relaying"], true);
    let model = publish(&a);
    let pulled = pull(&b, &model);
    assert_eq!(pulled["sources"][0]["path"], "punched", "{pulled}");
    assert_eq!(pulled["sources"][0]["peer"], peer(&a));
    assert_eq!(by(&b, "punched").len(), 1, "{}", b.done(&["peers"]));
}

#[test]
fn where_no_way_can_be_opened_chunks_pass_through_a_relay_only_if_all_agree() {
    let Some(world) = World::make("r") else { return };
    world.divide();
    let (relay, addr) = world.relay(&[]);
    let (a, mut b) = (world.node("a", &addr, &[]), world.node("b", &addr, &[]));
    wait_for_a_place(&a, &relay);
    let model = publish(&a);
    // The manifest may come through the relay; the chunks may not.
    let output = b.run(&["pull", &model]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && said.contains("relay"), "{said}");
    assert_eq!(by(&b, "relayed").len(), 1, "{}", b.done(&["peers"]));

    // The relay's owner does not agree.
    b.kill();
    let mut b = world.node("b", &addr, &["--relay-bulk"]);
    let output = b.run(&["pull", &model]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && said.contains("owner"), "{said}");
    drop((relay, a));
    b.kill();

    let (relay, addr) = world.relay(&["--relay-bulk"]);
    let a = world.node("a", &addr, &["--relay-bulk"]);
    let b = world.node("b", &addr, &["--relay-bulk"]);
    wait_for_a_place(&a, &relay);
    let model = publish(&a);
    let pulled = pull(&b, &model);
    assert_eq!(pulled["sources"][0]["path"], "relayed", "{pulled}");
}

//! Nodes on one network find each other without being told of each other. The network is two namespaces
//! of Linux, joined by a cable; where those cannot be made, the test says so and is skipped.

use std::process::Command;

use surf_tests::{Process, text, tiny_surfer};

const ENDS: [(&str, &str); 2] = [("surf-test-a", "10.77.0.1/24"), ("surf-test-b", "10.77.0.2/24")];

/// Two namespaces with a cable between them. Gone when dropped.
struct Cable;

impl Cable {
    fn lay() -> Option<Self> {
        let cable = Self;
        for (namespace, _) in ENDS {
            ip(&["netns", "add", namespace])?;
        }
        let [(a, _), (b, _)] = ENDS;
        ip(&["link", "add", "eth0", "netns", a, "type", "veth", "peer", "name", "eth0", "netns", b])?;
        for (namespace, addr) in ENDS {
            ip(&["-n", namespace, "addr", "add", addr, "dev", "eth0"])?;
            ip(&["-n", namespace, "link", "set", "lo", "up"])?;
            ip(&["-n", namespace, "link", "set", "eth0", "up"])?;
            ip(&["-n", namespace, "route", "add", "default", "dev", "eth0"])?;
        }
        Some(cable)
    }
}

impl Drop for Cable {
    fn drop(&mut self) {
        for (namespace, _) in ENDS {
            ip(&["netns", "del", namespace]);
        }
    }
}

fn ip(args: &[&str]) -> Option<()> {
    let output = Command::new("ip").args(args).output().ok()?;
    output.status.success().then_some(())
}

#[test]
fn neighbours_find_each_other_and_share_a_model() {
    let Some(_cable) = Cable::lay() else {
        eprintln!("skipped: network namespaces cannot be made here (root and iproute2 are needed)");
        return;
    };
    let [a, b] = ENDS.map(|(namespace, _)| Process::join_in_namespace(namespace, &[]));
    let folder = tiny_surfer();
    let published = a.done(&["publish", folder.to_str().expect("UTF-8")]);
    let model = published["model"].as_str().expect("a model id");
    let story = ["generate", model, "-p", "Once upon a time", "--max-tokens", "16", "--temperature", "0"];
    assert_eq!(text(&b.lines(&story)), text(&a.lines(&story)));
    let peers = b.done(&["peers"]);
    assert_eq!((&peers[0]["path"], peers.as_array().map(Vec::len)), (&"lan".into(), Some(1)), "{peers}");
}

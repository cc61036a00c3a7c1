//! Exporting with the real program: file systems of other systems, and a node that is killed meanwhile.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop")]
#![allow(clippy::disallowed_methods, reason = "real programs are waited for, by the real clock")]

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use surf_tests::{Process, tiny_surfer};

/// How long anything may take that should happen soon, on a machine that is busy with other things.
const SOON: Duration = Duration::from_secs(60);

fn partials(dir: &Path) -> usize {
    let Ok(entries) = fs::read_dir(dir) else { return 0 };
    entries
        .filter(|entry| entry.as_ref().unwrap().file_name().to_string_lossy().starts_with(".surf-"))
        .count()
}

#[test]
fn a_killed_node_leaves_nothing_that_the_next_export_does_not_remove() {
    let a = Process::join(&[], &[]);
    let folder = tempfile::tempdir().unwrap();
    let bytes: Vec<u8> = (0..12u32 << 20).map(|at| (at.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    fs::write(folder.path().join("large.bin"), &bytes).unwrap();
    let published = a.done(&["publish", folder.path().to_str().unwrap()]);
    let model = published["model"].as_str().unwrap().to_owned();
    let (data, out) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let out = out.path().join("out");
    let mut b = Process::join_in(data.path(), &[a.addr()], &["--down", "1MiB"]);
    let mut exporting = Command::new(surf_tests::program())
        .args(["--rpc", b.rpc(), "export", &model])
        .arg(&out)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let start = Instant::now();
    while partials(&out) == 0 {
        assert!(start.elapsed() < SOON, "nothing is written");
        std::thread::sleep(Duration::from_millis(20));
    }
    b.kill();
    exporting.wait().unwrap();
    assert_eq!((partials(&out), out.join("large.bin").exists()), (1, false));
    let b = Process::join_in(data.path(), &[a.addr()], &[]);
    b.done(&["export", &model, out.to_str().unwrap()]);
    assert_eq!(partials(&out), 0);
    assert!(fs::read(out.join("large.bin")).unwrap() == bytes);
}

/// A small exFAT, mounted through FUSE, and gone when dropped.
struct ExFat {
    device: String,
    mount: PathBuf,
    _dir: tempfile::TempDir,
}

fn done(program: &str, args: &[&str]) -> Option<String> {
    let output = Command::new(program).args(args).stderr(Stdio::null()).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

impl ExFat {
    /// `None` where the system has no such thing, or we may not mount.
    fn new() -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let (image, mount) = (dir.path().join("image"), dir.path().join("mount"));
        fs::create_dir(&mount).unwrap();
        fs::File::create(&image).unwrap().set_len(64 << 20).unwrap();
        done("mkfs.exfat", &[image.to_str()?])?;
        let device = done("losetup", &["-f", "--show", image.to_str()?])?;
        let exfat = Self { device, mount, _dir: dir };
        done("mount.exfat-fuse", &[&exfat.device, exfat.mount.to_str()?])?;
        let is_mounted = || {
            let mounts = fs::read_to_string("/proc/mounts").unwrap_or_default();
            mounts.contains(&*exfat.mount.to_string_lossy())
        };
        let start = Instant::now();
        while !is_mounted() {
            if SOON < start.elapsed() {
                return None;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Some(exfat)
    }
}

impl Drop for ExFat {
    fn drop(&mut self) {
        drop(done("umount", &[&self.mount.to_string_lossy()]));
        drop(done("losetup", &["-d", &self.device]));
    }
}

#[test]
fn file_systems_without_hard_links_do() {
    let Some(exfat) = ExFat::new() else {
        eprintln!("skipped: this needs root, exfat-fuse and exfatprogs");
        return;
    };
    let node = Process::join(&[], &[]);
    node.done(&["publish", tiny_surfer().to_str().unwrap(), "--name", "surfer"]);
    let out = exfat.mount.join("out");
    for _ in 0..2 {
        node.done(&["export", "surfer", out.to_str().unwrap()]);
    }
    for entry in fs::read_dir(tiny_surfer()).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap();
        assert!(fs::read(&path).unwrap() == fs::read(out.join(name)).unwrap(), "{name:?}");
    }
    assert_eq!(partials(&out), 0);
    let folder = tempfile::tempdir().unwrap();
    for name in ["CON", "x:stream"] {
        fs::write(folder.path().join(name), "x").unwrap();
        let published = node.done(&["publish", folder.path().to_str().unwrap()]);
        let model = published["model"].as_str().unwrap();
        let refused = node.run(&["export", model, exfat.mount.join("windows").to_str().unwrap()]);
        let said = String::from_utf8_lossy(&refused.stderr);
        assert!(refused.status.code() == Some(1) && said.contains(name), "{said}");
        let plain = tempfile::tempdir().unwrap();
        node.done(&["export", model, plain.path().join("out").to_str().unwrap()]);
        fs::remove_file(folder.path().join(name)).unwrap();
    }
}

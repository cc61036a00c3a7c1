//! How much memory and disk this machine has, for sizes that are written as a share of it.

use std::{fs, io, path::Path};

/// Bytes of memory that this program may have, used or not. `None` where the system does not tell.
pub(crate) fn memory() -> Option<u64> {
    let total = memory_total(&fs::read_to_string("/proc/meminfo").ok()?)?;
    // A container sees the whole machine, and is killed when it takes more than its part.
    let limit = fs::read_to_string("/sys/fs/cgroup/memory.max").ok();
    Some(limit.and_then(|limit| limit.trim().parse().ok()).map_or(total, |limit: u64| limit.min(total)))
}

/// Bytes that the file system of `dir` has free for this user. `dir` need not be there yet.
pub(crate) fn disk_free(dir: &Path) -> io::Result<u64> {
    let there = dir.ancestors().find(|dir| dir.exists()).unwrap_or(Path::new("."));
    let there = if there.as_os_str().is_empty() { Path::new(".") } else { there };
    free(there)
}

#[cfg(unix)]
fn free(dir: &Path) -> io::Result<u64> {
    let stat = rustix::fs::statvfs(dir)?;
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
}

#[cfg(not(unix))]
fn free(_: &Path) -> io::Result<u64> {
    Err(io::ErrorKind::Unsupported.into())
}

/// Bytes in the files under `dir`, none if it is not there.
pub(crate) fn disk_used(dir: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(dir) else { return 0 };
    let sizes = entries.flatten().map(|entry| match entry.metadata() {
        Ok(metadata) if metadata.is_dir() => disk_used(&entry.path()),
        Ok(metadata) => metadata.len(),
        Err(_) => 0,
    });
    sizes.sum()
}

fn memory_total(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_read_from_what_linux_writes() {
        assert_eq!(memory_total("MemTotal:       16384256 kB\nMemFree: 1 kB\n"), Some(16_384_256 * 1024));
        assert_eq!(memory_total("MemFree: 1 kB\n"), None);
    }

    #[test]
    fn a_folder_that_is_not_there_yet_has_the_room_of_its_parent() {
        let dir = tempfile::tempdir().unwrap();
        assert!(0 < disk_free(&dir.path().join("not/yet")).unwrap());
        fs::create_dir(dir.path().join("a")).unwrap();
        fs::write(dir.path().join("a/b"), b"12345").unwrap();
        fs::write(dir.path().join("c"), b"678").unwrap();
        assert_eq!(disk_used(dir.path()), 8);
        assert_eq!(disk_used(&dir.path().join("not")), 0);
    }
}

//! A disk that is full, or nearly: a small file system of our own, where the system lets us have one.

use std::process::Command;

use super::*;

/// A file system in memory, as long as it lives.
struct Small {
    dir: TempDir,
}

impl Small {
    /// Mounts one. `None`, said aloud, where that is not allowed.
    fn mount(options: &str) -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", options, "tmpfs"]).arg(dir.path());
        match mount.output() {
            Ok(output) if output.status.success() => Some(Self { dir }),
            failed => {
                println!("skipped: no file system can be mounted here: {failed:?}");
                None
            }
        }
    }

    /// Waits until the threads of stores that were here have let go.
    async fn forbid_writing(&self) {
        let remounted = async {
            loop {
                let mut remount = Command::new("mount");
                remount.args(["-o", "remount,ro"]).arg(self.dir.path());
                if remount.output().unwrap().status.success() {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(60), remounted).await.expect("nobody writes any more");
    }

    fn store(&self) -> Store {
        open(&self.dir.path().join("store"))
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        drop(Command::new("umount").arg("--lazy").arg(self.dir.path()).output());
    }
}

const LARGE: usize = 500_000;

#[tokio::test]
async fn the_last_of_the_disk_is_left_to_others() {
    let Some(disk) = Small::mount("size=32m") else { return };
    let store = disk.store();
    for seed in 0..100 {
        assert!(store.put(sized(seed, LARGE)).await.unwrap());
    }
    room::settled(&store, &disk.dir.path().join("store")).await;
    let (usage, total) = (store.usage(), 32 << 20);
    let free = usage.free.unwrap();
    assert!(total / 20 <= free && free < total / 3, "{usage:?}");
    assert!(usage.low - LARGE as u64 <= usage.used && usage.used <= usage.high, "{usage:?}");
    assert!(usage.high < total && total < usage.quota);
    assert_eq!(read(&store, &sized(99, LARGE)).await, Some(sized(99, LARGE)));

    // The user fills the disk: the cache gives way.
    let users = disk.dir.path().join("users");
    fs::write(&users, vec![1; (free - total / 40) as usize]).unwrap();
    store.put(sized(100, LARGE)).await.unwrap();
    room::settled(&store, &disk.dir.path().join("store")).await;
    let later = store.usage();
    assert!(later.used < usage.used && total / 20 <= later.free.unwrap(), "{later:?}");

    // Nothing may go: an error that says so, and nothing is lost.
    let held: Vec<_> = (0..=100).map(|seed| sized(seed, LARGE)).filter(|c| store.contains(c.id())).collect();
    let lease = store.lease(held.iter().map(Chunk::id));
    fs::write(disk.dir.path().join("more"), vec![1; (later.free.unwrap() - total / 40) as usize]).unwrap();
    let error = store.put(sized(101, LARGE)).await.unwrap_err();
    assert!(matches!(error, StoreError::NearlyFull { .. }), "{error}");
    assert!(error.to_string().contains("nearly full"), "{error}");
    for chunk in &held {
        assert_eq!(read(&store, chunk).await.as_ref(), Some(chunk));
    }
    drop(lease);
    store.put(sized(101, LARGE)).await.unwrap();
}

#[tokio::test]
async fn a_disk_that_is_full_all_at_once_costs_the_oldest_and_a_second_try() {
    // Bytes are free, but no more files can be made: writing fails without warning. Folders are files
    // too, and stay.
    let Some(disk) = Small::mount("size=64m,nr_inodes=340") else { return };
    let store = disk.store();
    let chunks: Vec<_> = (0..600).map(chunk).collect();
    put_all(&store, &chunks).await;
    let left = held(&store, &chunks);
    let kept = left.iter().filter(|here| **here).count();
    assert!((40..90).contains(&kept), "{kept}");
    assert!(left[599] && !left[0]);
    drop(store);

    let store = disk.store();
    assert_eq!(held(&store, &chunks), left);
    let leases: Vec<_> = (0..1000).map(|seed| store.lease([chunk(seed).id()])).collect();
    let mut more = (600..1000).map(chunk);
    let error = loop {
        if let Err(error) = store.put(more.next().unwrap()).await {
            break error;
        }
    };
    assert!(matches!(error, StoreError::Disk { .. }), "{error}");
    assert_eq!(held(&store, &chunks), left, "nothing is lost");
    assert_eq!(fs::read_dir(disk.dir.path().join("store/incoming")).unwrap().count(), 0);
    // A manifest is small, but needs a file as well.
    let manifest = model(&[&chunks]);
    let error = store.put_manifest(&manifest).await.unwrap_err();
    assert!(matches!(error, StoreError::Disk { .. }), "{error}");
    assert!(store.models().is_empty());
    drop(leases);
    store.put_manifest(&manifest).await.unwrap();
    assert!(store.put(more.next().unwrap()).await.unwrap());
}

#[tokio::test]
async fn a_store_on_a_full_disk_opens_and_serves_what_is_there() {
    for (options, then) in [("size=8m", "full"), ("size=8m", "read-only")] {
        let Some(disk) = Small::mount(options) else { return };
        let chunks: Vec<_> = (0..5).map(|seed| sized(seed, LARGE)).collect();
        let manifest = model(&[&chunks[..4]]);
        let store = disk.store();
        put_all(&store, &chunks).await;
        store.put_manifest(&manifest).await.unwrap();
        store.pin(manifest.id()).await.unwrap();
        drop(store);
        // No room for an index, either.
        fs::remove_dir_all(disk.dir.path().join("store/index")).unwrap();
        fs::remove_dir(disk.dir.path().join("store/incoming")).unwrap();
        if then == "full" {
            fill(&disk.dir.path().join("users"));
        } else {
            disk.forbid_writing().await;
        }
        let store = disk.store();
        assert!(store.models()[0].pinned, "{then}");
        for chunk in &chunks {
            assert_eq!(store.serve(chunk.id()).await.unwrap().unwrap(), chunk.bytes(), "{then}");
        }
        let error = store.put(sized(9, LARGE)).await.unwrap_err().to_string();
        assert!(!error.is_empty(), "{then}");
        assert_eq!(store.verify(None, |_, _| ()).await.unwrap().bad, vec![], "{then}");
    }
}

/// Writes until nothing more can be written, not even an empty folder's block.
fn fill(path: &Path) {
    use std::io::Write;
    let mut file = fs::File::create(path).unwrap();
    while file.write(&[1; 4096]).is_ok_and(|written| 0 < written) {}
}

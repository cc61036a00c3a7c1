//! How much of the disk is free, and how much of that stays free.

use std::{io, path::Path};

/// What stays free on a disk: enough for a system to log, update and be used.
const RESERVE_MIN: u64 = 1 << 30;

/// The same, as a part of a large disk: file systems get slow when they are fuller.
const RESERVE_PARTS: u64 = 100;

/// But no more than this part of a small disk, which would be useless otherwise.
const RESERVE_PARTS_MAX: u64 = 20;

/// The room on the disk that holds the store, at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Space {
    /// Bytes that this user may still write.
    pub(super) free: u64,
    /// Bytes of them that are left to others.
    pub(super) reserve: u64,
}

impl Space {
    /// Of a system that does not tell. Then a full disk is noticed when writing fails.
    pub(super) const UNKNOWN: Self = Self { free: u64::MAX, reserve: 0 };

    /// The room on the disk that holds `dir`.
    pub(super) fn at(dir: &Path) -> Self {
        match measured(dir) {
            Ok((free, total)) => Self { free, reserve: reserve(total) },
            Err(error) => {
                tracing::debug!(dir = %dir.display(), %error, "the system does not tell what is free");
                Self::UNKNOWN
            }
        }
    }

    /// How far files that take `used` bytes of the disk now may grow.
    pub(super) fn limit(self, used: u64) -> u64 {
        used.saturating_add(self.free).saturating_sub(self.reserve)
    }
}

fn reserve(total: u64) -> u64 {
    RESERVE_MIN.max(total / RESERVE_PARTS).min(total / RESERVE_PARTS_MAX)
}

#[cfg(unix)]
fn measured(dir: &Path) -> io::Result<(u64, u64)> {
    let stat = rustix::fs::statvfs(dir)?;
    Ok((stat.f_bavail.saturating_mul(stat.f_frsize), stat.f_blocks.saturating_mul(stat.f_frsize)))
}

#[cfg(not(unix))]
fn measured(_: &Path) -> io::Result<(u64, u64)> {
    Err(io::ErrorKind::Unsupported.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hundredth_stays_free_at_least_a_gibibyte_but_little_of_a_small_disk() {
        assert_eq!(reserve(1 << 40), (1 << 40) / 100);
        assert_eq!(reserve(50 << 30), 1 << 30);
        assert_eq!(reserve(32 << 20), (32 << 20) / 20);
    }

    #[test]
    fn the_limit_is_what_is_used_and_free_without_the_reserve() {
        let space = Space { free: 100, reserve: 30 };
        assert_eq!((space.limit(0), space.limit(500)), (70, 570));
        assert_eq!(Space { free: 10, reserve: 30 }.limit(5), 0, "the reserve is used up already");
        assert_eq!(Space::UNKNOWN.limit(7), u64::MAX);
    }

    #[cfg(unix)]
    #[test]
    fn this_system_tells() {
        let space = Space::at(Path::new("/"));
        assert!(space != Space::UNKNOWN && 0 < space.reserve);
    }
}

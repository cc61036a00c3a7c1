//! Names of files that would do harm where they are written.
//!
//! Manifests come from strangers. A manifest holds no path that leaves its folder; what is left are names that
//! terminals take for commands, and those that Windows, or a file system made for it, takes for something else.

use std::os::fd::AsFd;

/// Names of devices on Windows, with any extension.
const DEVICES: &[&str] = &["aux", "con", "conin$", "conout$", "nul", "prn"];

/// The same, each with a digit behind it.
const NUMBERED: &[&str] = &["com", "lpt"];
const DIGITS: &[char] = &['0', '1', '2', '3', '4', '5', '6', '7', '8', '9', '¹', '²', '³'];

/// Characters that a name on Windows cannot have. What follows a colon there is another stream of the file.
const NOT_ON_WINDOWS: &[char] = &['"', '*', ':', '<', '>', '?', '|'];

/// What `statfs` says of FAT, exFAT, NTFS (two drivers) and Windows' shares.
#[cfg(target_os = "linux")]
const OF_WINDOWS: &[u64] = &[0x4d44, 0x2011_bab0, 0x5346_544e, 0x7366_746e, 0xff53_4d42, 0xfe53_4d42];

/// What `statfs` says of FUSE. Where that is on a disk, it is exFAT or NTFS.
#[cfg(target_os = "linux")]
const FUSE: u64 = 0x6573_5546;

/// Whether the file system of `folder` takes names as Windows does.
#[cfg(target_os = "linux")]
pub(super) fn is_of_windows(folder: impl AsFd) -> bool {
    let folder = folder.as_fd();
    let on_disk = || rustix::fs::fstat(folder).is_ok_and(|stat| rustix::fs::major(stat.st_dev) != 0);
    rustix::fs::fstatfs(folder).is_ok_and(|stat| match stat.f_type as u64 {
        FUSE => on_disk(),
        kind => OF_WINDOWS.contains(&kind),
    })
}

/// Whether the file system of `folder` takes names as Windows does.
#[cfg(not(target_os = "linux"))]
pub(super) fn is_of_windows(_: impl AsFd) -> bool {
    cfg!(windows)
}

/// Why a file at `path` of a manifest would do harm, if it would. `windows`: where names are taken as Windows does.
pub(in crate::publish) fn harm(path: &str, windows: bool) -> Option<&'static str> {
    if path.contains(char::is_control) {
        return Some("control characters in a name, which a terminal would obey");
    }
    let part = |part: &str| {
        let stem = part.split('.').next().unwrap_or(part).trim_end().to_lowercase();
        let is_digit = |text: &str| text.chars().count() == 1 && text.contains(DIGITS);
        let numbered = |name: &&str| stem.strip_prefix(*name).is_some_and(is_digit);
        if DEVICES.contains(&stem.as_str()) || NUMBERED.iter().any(numbered) {
            Some("the name of a device on Windows")
        } else if part.contains(NOT_ON_WINDOWS) {
            Some("characters that no name on Windows has")
        } else if part.ends_with(['.', ' ']) {
            Some("a dot or space at the end, which Windows leaves out")
        } else {
            None
        }
    };
    if windows { path.split('/').find_map(part) } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn terminals_are_not_commanded() {
        for path in ["a\u{1b}[2Jb", "a\nb", "sub/\u{7f}", "\u{9b}31m"] {
            assert!(harm(path, false).is_some(), "{path:?}");
        }
    }

    #[test]
    fn windows_devices_and_streams_are_refused_where_they_are_such() {
        for path in [
            "CON",
            "con.txt",
            "sub/Nul.json",
            "COM1",
            "lpt9.bin",
            "COM¹",
            "x:stream",
            "a?",
            "end.",
            "end /x",
            "aux .t",
        ] {
            assert!(harm(path, true).is_some(), "{path}");
            assert!(harm(path, false).is_none(), "{path}");
        }
        for path in
            ["config.json", "console", "com", "com10", "nulls/aux_loss.bin", "Grüße 波.txt", ".hidden"]
        {
            assert!(harm(path, true).is_none(), "{path}");
        }
    }
}

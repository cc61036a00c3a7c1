//! How much memory the program holds, as its allocator counts it: what tells a leak from fragments and caches.

/// Bytes that the allocator has given out and not got back. `None` where it does not tell.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
pub fn live_bytes() -> Option<u64> {
    // SAFETY: `mallinfo2` takes nothing and only reads the allocator's own counts, under its locks.
    #[expect(unsafe_code, reason = "glibc counts what nobody else can tell")]
    let counts = unsafe { libc::mallinfo2() };
    // Blocks within arenas, and large ones that are mapped one by one.
    Some(counts.uordblks as u64 + counts.hblkhd as u64)
}

/// Bytes that the allocator has given out and not got back. `None` where it does not tell.
#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
pub fn live_bytes() -> Option<u64> {
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_held_counts_until_it_is_given_back() {
        const BLOCK: usize = 256 << 20;
        let Some(before) = live_bytes() else { return };
        let block = std::hint::black_box(vec![1u8; BLOCK]);
        let held = live_bytes().unwrap();
        drop(block);
        let after = live_bytes().unwrap();
        // Other tests use memory beside this one.
        assert!(
            before + BLOCK as u64 / 2 < held && after + BLOCK as u64 / 2 < held,
            "{before} {held} {after}"
        );
    }
}

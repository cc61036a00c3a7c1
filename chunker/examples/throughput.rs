//! Cuts a folder and says how fast, and in how much memory. Compare with `sha256sum` on the same files:
//!
//! `cargo run --release -p surf-chunker --example throughput -- FOLDER`

#![allow(clippy::disallowed_methods, reason = "measures real time")]

use std::{error::Error, path::Path, time::Instant};

use surf_chunker::{Options, Sink, cut};
use surf_protocol::Chunk;

struct Nothing;

impl Sink for Nothing {
    fn chunk(&self, _: &Chunk, _: &Path, _: u64) -> Result<(), Box<dyn Error + Send + Sync>> {
        Ok(())
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let path = std::env::args_os().nth(1).ok_or("name a folder")?;
    let start = Instant::now();
    let manifest = cut(Path::new(&path), &Options::default(), &Nothing)?;
    let seconds = start.elapsed().as_secs_f64();
    let bytes: u64 = manifest.files().iter().map(|file| file.size).sum();
    let speed = bytes as f64 / 1e6 / seconds;
    println!("{} {manifest:?}: {bytes} bytes in {seconds:.2} s, {speed:.0} MB/s", manifest.id());
    // Linux says what the peak was.
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    status.lines().filter(|line| line.starts_with("VmHWM")).for_each(|line| println!("{line}"));
    Ok(())
}

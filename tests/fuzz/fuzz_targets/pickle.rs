//! See `pickle` in `targets.rs`.
#![no_main]

#[allow(dead_code, reason = "each program needs one of them")]
#[path = "../targets.rs"]
mod targets;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| targets::pickle(bytes));

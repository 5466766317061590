//! `fuzz::run` on the target `entry`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz::run("entry", data));

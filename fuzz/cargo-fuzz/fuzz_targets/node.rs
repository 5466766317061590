//! `fuzz::run` on the target `node`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz::run("node", data));

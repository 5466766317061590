//! `fuzz::run` on the target `manifest`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz::run("manifest", data));

//! `fuzz::run` on the target `definition`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz::run("definition", data));

//! `fuzz::run` on the target `name`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz::run("name", data));

//! `fuzz::run` on the target `store_format`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz::run("store_format", data));

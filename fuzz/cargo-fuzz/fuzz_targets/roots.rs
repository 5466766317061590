//! `fuzz::run` on the target `roots`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz::run("roots", data));

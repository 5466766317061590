//! `fuzz::run` on the target `image`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz::run("image", data));

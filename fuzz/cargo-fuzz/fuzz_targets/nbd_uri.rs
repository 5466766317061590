//! `fuzz::run` on the target `nbd_uri`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz::run("nbd_uri", data));

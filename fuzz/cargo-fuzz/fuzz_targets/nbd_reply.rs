//! `fuzz::run` on the target `nbd_reply`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz::run("nbd_reply", data));

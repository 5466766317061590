//! `fuzz::run` on the target `nbd_state`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz::run("nbd_state", data));

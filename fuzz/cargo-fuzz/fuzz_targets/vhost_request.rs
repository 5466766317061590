//! `fuzz::run` on the target `vhost_request`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz::run("vhost_request", data));

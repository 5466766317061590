//! `fuzz::run` on the target `vhost_message`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz::run("vhost_message", data));

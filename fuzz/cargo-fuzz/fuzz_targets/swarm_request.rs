//! `fuzz::run` on the target `swarm_request`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz::run("swarm_request", data));

//! `fuzz::run` on the target `swarm_reply`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz::run("swarm_reply", data));

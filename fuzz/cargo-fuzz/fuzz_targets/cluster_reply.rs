//! `fuzz::run` on the target `cluster_reply`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz::run("cluster_reply", data));

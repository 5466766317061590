//! `fuzz::run` on the target `cluster_request`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz::run("cluster_request", data));

//! `fuzz::run` on the target `cluster_frames`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz::run("cluster_frames", data));

//! `fuzz::run` on the target `cluster_settings`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz::run("cluster_settings", data));

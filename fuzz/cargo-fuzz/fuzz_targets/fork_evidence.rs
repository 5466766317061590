//! `fuzz::run` on the target `fork_evidence`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz::run("fork_evidence", data));

//! `fuzz::run` on the target `pack_record`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz::run("pack_record", data));

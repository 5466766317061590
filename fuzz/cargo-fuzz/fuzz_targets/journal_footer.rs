//! `fuzz::run` on the target `journal_footer`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz::run("journal_footer", data));

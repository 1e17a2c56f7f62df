//! Fuzzes [`assay_fuzz::ek_file`].
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| assay_fuzz::ek_file(bytes));

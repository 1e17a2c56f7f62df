//! Fuzzes [`assay_fuzz::ek_list`].
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| assay_fuzz::ek_list(bytes));

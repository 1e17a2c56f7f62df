//! Fuzzes [`assay_fuzz::sequences`].
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| assay_fuzz::sequences(bytes));

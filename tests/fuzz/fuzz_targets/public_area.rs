//! Fuzzes [`assay_fuzz::public_area`].
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| assay_fuzz::public_area(bytes));

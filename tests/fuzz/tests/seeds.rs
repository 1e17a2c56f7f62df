//! Plays the seeds of every target, and the golden values of the CA. A fuzzer begins with these.

use std::fs;
use std::path::Path;

// `cargo xtask fuzz` builds this test from instrumented crates. Their counters call functions of
// libFuzzer.
use libfuzzer_sys as _;

type Target = fn(&[u8]);

#[test]
fn nothing_is_wrong_with_any_seed() {
    let targets: [(&str, Target); 7] = [
        ("wire", assay_fuzz::wire),
        ("ek_certificate", assay_fuzz::ek_certificate),
        ("ek_file", assay_fuzz::ek_file),
        ("public_area", assay_fuzz::public_area),
        ("ek_list", assay_fuzz::ek_list),
        ("token", assay_fuzz::token),
        ("sequences", assay_fuzz::sequences),
    ];
    for (name, target) in targets {
        let mut count = 0;
        for directory in [format!("seeds/{name}"), "../../ca-core/tests/golden".into()] {
            let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join(directory);
            for file in fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()) {
                if file.is_file() {
                    target(&fs::read(file).unwrap());
                    count += 1;
                }
            }
        }
        assert!(count > 30, "{name}: the golden values are there");
    }
}

//! What the documents name exists.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Result, ensure};
use assay_tests::run;

/// In these documents, a name of five words or more is a test: it shows that what stands beside it
/// holds.
#[test]
fn every_test_that_a_document_names_exists() -> Result<()> {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let files = run(Command::new("git").args(["ls-files"]).current_dir(&workspace))?;
    let (mut named, mut written) = (BTreeSet::new(), BTreeSet::new());
    for file in String::from_utf8(files.stdout)?.lines() {
        let read = || fs::read_to_string(workspace.join(file));
        if ["docs/threat-model.md", "docs/mqtt.md"].contains(&file) {
            named.extend(read()?.split('`').filter(|it| is_a_test(it)).map(str::to_owned));
        } else if file.ends_with(".rs") {
            let content = read()?;
            let functions = content.split("fn ").skip(1);
            let name = |it: &str| it.split(|c: char| !is_of_a_name(c)).next().map(str::to_owned);
            written.extend(functions.filter_map(name));
        }
    }
    ensure!(named.len() > 100, "the documents name {} tests", named.len());
    let missing: Vec<_> = named.difference(&written).collect();
    ensure!(missing.is_empty(), "no such tests: {missing:?}");
    Ok(())
}

fn is_a_test(name: &str) -> bool {
    name.chars().all(is_of_a_name) && name.matches('_').count() >= 4
}

fn is_of_a_name(c: char) -> bool {
    c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_'
}

//! The core links no standard library, and neither do its dependencies.

use std::fs;
use std::path::Path;
use std::process::Command;

/// A crate without `std` that has a panic handler of its own cannot be compiled together with a
/// crate that links `std`, whose panic handler would be a second one (E0152).
#[test]
fn core_and_its_dependencies_build_without_std() {
    let core = Path::new(env!("CARGO_MANIFEST_DIR"));
    let check = Path::new(env!("CARGO_TARGET_TMPDIR")).join("no-std");
    let outcome = |krate: &str, dependency: &str| {
        let directory = check.join(krate);
        fs::create_dir_all(directory.join("src")).unwrap();
        let manifest = format!(
            "[package]\nname = \"{krate}\"\nedition = \"2024\"\n\n\
             [dependencies]\n{dependency}\n\n[workspace]\n"
        );
        fs::write(directory.join("Cargo.toml"), manifest).unwrap();
        fs::copy(core.join("../../Cargo.lock"), directory.join("Cargo.lock")).unwrap();
        fs::write(directory.join("src/lib.rs"), SOURCE).unwrap();
        // It has a target directory of its own, because another cargo may hold the usual one.
        Command::new(env!("CARGO"))
            .args(["check", "--quiet", "--manifest-path"])
            .arg(directory.join("Cargo.toml"))
            .env("CARGO_TARGET_DIR", check.join("target"))
            .output()
            .unwrap()
    };
    let path = core.display();
    let without = outcome(
        "without",
        &format!("it = {{ package = \"assay-device-core\", path = \"{path}\" }}"),
    );
    assert!(without.status.success(), "{}", String::from_utf8_lossy(&without.stderr));

    // The check notices a crate that does link `std`.
    let with =
        outcome("with", "it = { package = \"thiserror\", version = \"2\", features = [\"std\"] }");
    let said = String::from_utf8_lossy(&with.stderr);
    assert!(!with.status.success() && said.contains("E0152"), "{said}");
}

const SOURCE: &str = "#![no_std]
extern crate it;

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
";

//! `cargo xtask install`: Debian packages.

use std::path::Path;
use std::process::Command;

use anyhow::{Result, bail};

use crate::show;

/// Installs what building and tests need.
pub(crate) fn install() -> Result<()> {
    install_missing(&[FOR_DEMO, FOR_TESTS].concat())
}

/// Installs what the demo needs, and none of the services that tests use.
pub(crate) fn install_for_demo() -> Result<()> {
    install_missing(FOR_DEMO)
}

/// Installs what making Debian packages and trying them needs.
pub(crate) fn install_for_packages() -> Result<()> {
    install_missing(FOR_PACKAGES)
}

/// Installs what making stand-ins for base images needs.
pub(crate) fn install_for_images() -> Result<()> {
    install_missing(FOR_IMAGES)
}

/// Prints what is missing before it installs it.
fn install_missing(packages: &[(&str, &str)]) -> Result<()> {
    let missing: Vec<_> = packages.iter().filter(|(package, _)| !is_installed(package)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    println!("Missing Debian packages:");
    for (package, purpose) in &missing {
        println!("  {package:<20} {purpose}");
    }
    let names: Vec<_> = missing.iter().map(|(package, _)| *package).collect();
    let by_hand = format!("apt-get install {}", names.join(" "));
    if !Path::new("/usr/bin/apt-get").exists() {
        bail!("this is not Debian; install what corresponds to `{by_hand}` by hand");
    }
    println!("Installing them: {by_hand}");
    show(apt_get()?.arg("update"))?;
    show(apt_get()?.args(["install", "--yes", "--no-install-recommends"]).args(names))
}

fn apt_get() -> Result<Command> {
    let mut command = as_root("env")?;
    command.args(["DEBIAN_FRONTEND=noninteractive", "apt-get"]);
    Ok(command)
}

/// `program` as root: through sudo, unless we are root.
pub(crate) fn as_root(program: &str) -> Result<Command> {
    if is_root()? {
        return Ok(Command::new(program));
    }
    let mut command = Command::new("sudo");
    command.arg(program);
    Ok(command)
}

/// Whether this process may install packages by itself.
pub(crate) fn is_root() -> Result<bool> {
    Ok(Command::new("id").arg("-u").output()?.stdout.trim_ascii() == b"0")
}

fn is_installed(package: &str) -> bool {
    // Without dpkg, every package counts as missing.
    let status = Command::new("dpkg-query")
        .args(["--show", "--showformat=${db:Status-Status}", package])
        .output();
    status.is_ok_and(|output| output.stdout == b"installed")
}

/// The C compiler for SQLite, ring and AWS-LC is not listed: a machine that links Rust programs has
/// it.
const FOR_DEMO: &[(&str, &str)] = &[
    ("openssl", "an independent judge of certificates, for tests and demo"),
    ("swtpm", "software TPMs, for tests and demo"),
    ("swtpm-tools", "makes their endorsement certificates"),
    ("tpm2-tools", "an independent user of TPMs, for tests and demo"),
];

const FOR_TESTS: &[(&str, &str)] = &[
    ("age", "opens encrypted backups without us, for tests"),
    ("dbus-daemon", "the message bus of tpm2-abrmd, for tests"),
    ("g++", "builds libFuzzer, for the fuzz targets"),
    ("git", "reads the commit that a build names, for tests"),
    ("libfaketime", "sets the clock of a process, for tests"),
    ("libnginx-mod-stream", "lets nginx pass MQTT on, for tests"),
    ("libtpm2-pkcs11-1", "lets PKCS #11 use a TPM's keys, for tests"),
    ("libtpm2-pkcs11-tools", "puts keys there, for tests"),
    ("libtss2-dev", "the agent's second way to a TPM, for tests"),
    ("libtss2-tcti-tabrmd0", "connects libtss2 to tpm2-abrmd, for tests"),
    ("mosquitto", "a broker that is not ours, for tests"),
    ("mosquitto-clients", "MQTT clients that are not ours, for tests"),
    ("nginx-light", "a TLS client that is not ours, for tests"),
    ("node-mqtt", "the MQTT client of Node-RED, for tests"),
    ("opensc", "signs by PKCS #11, for tests"),
    ("pkg-config", "finds libtss2 where the agent is built with it"),
    ("postgresql-15", "the store for many workers, for tests"),
    ("python3-paho-mqtt", "another MQTT client that is not ours, for tests"),
    ("haproxy", "a balancer in front of the broker, for tests"),
    ("softhsm2", "PKCS #11 tokens in software, for tests"),
    ("tpm2-abrmd", "a user-space resource manager, for tests"),
    ("tpm2-openssl", "lets OpenSSL use a TPM's keys, for tests"),
];

const FOR_PACKAGES: &[(&str, &str)] = &[
    ("debootstrap", "a fresh Debian machine in a folder, to try packages on"),
    ("dpkg-dev", "finds what packages depend on"),
    ("systemd-container", "boots that machine"),
];

const FOR_IMAGES: &[(&str, &str)] =
    &[("debootstrap", "a Debian root file system, where no registry can be reached")];

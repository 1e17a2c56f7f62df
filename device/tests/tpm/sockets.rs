//! The ways to reach software TPMs that other tests do not use.

use std::net::TcpListener;
use std::process::{Child, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use assay_device::tpm::{EkKind, HierarchyPasswords, IkKind, SignatureScheme, Tpm, Tpm2};
use assay_tests::{daemon, spawn};
use tempfile::TempDir;

use crate::{IK, a_tpm, open};

#[test]
fn tpm_on_a_unix_socket_is_used() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let socket = directory.path().join("sock");
    let path = socket.display();
    let emulator = Emulator::start(directory, &format!("type=unixio,path={path}"))?;
    let deadline = Instant::now() + Duration::from_secs(10);
    while !socket.exists() {
        ensure!(Instant::now() < deadline, "swtpm makes no socket");
        thread::sleep(Duration::from_millis(1));
    }
    emulator.assert_usable(&format!("swtpm:path={path}"))
}

#[test]
fn tpm_that_closes_after_each_response_is_used() -> Result<()> {
    let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
    let emulator =
        Emulator::start(tempfile::tempdir()?, &format!("type=tcp,port={port},disconnect"))?;
    emulator.assert_usable(&format!("swtpm:host=127.0.0.1,port={port}"))
}

#[test]
fn others_use_the_tpm_between_two_calls() -> Result<()> {
    let swtpm = a_tpm();
    let (mut one, mut other) = (open(&swtpm), open(&swtpm));
    one.create_identity_key(IkKind::P256, IK)?;
    for _ in 0..3 {
        other.sign(IK, SignatureScheme::EcdsaSha256, &[7; 32])?;
        one.endorsement_key(EkKind::P256)?;
        swtpm.tpm2(&["getrandom", "8"])?;
    }
    Ok(())
}

/// swtpm with one channel only. It is killed when this value is dropped.
struct Emulator {
    process: Child,
    _directory: TempDir,
}

impl Emulator {
    fn start(directory: TempDir, server: &str) -> Result<Self> {
        let mut command = daemon("swtpm")?;
        command.args([
            "socket",
            "--tpm2",
            "--flags",
            "not-need-init,startup-clear",
            "--server",
            server,
        ]);
        command.arg("--tpmstate").arg(format!("dir={}", directory.path().display()));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        Ok(Self { process: spawn(command)?, _directory: directory })
    }

    fn assert_usable(&self, tcti: &str) -> Result<()> {
        let mut tpm = Tpm2::new(tcti.parse()?, HierarchyPasswords::default());
        let deadline = Instant::now() + Duration::from_secs(10);
        while tpm.identity_key(IkKind::P256, IK).is_err() {
            ensure!(Instant::now() < deadline, "swtpm does not answer at {tcti}");
            thread::sleep(Duration::from_millis(1));
        }
        let ek = tpm.endorsement_key(EkKind::P256)?;
        let ik = tpm.create_identity_key(IkKind::P256, IK)?;
        assert!(!tpm.sign(IK, SignatureScheme::EcdsaSha256, &[7; 32])?.is_empty());
        let mut again = Tpm2::new(tcti.parse()?, HierarchyPasswords::default());
        assert_eq!(again.identity_key(IkKind::P256, IK)?, Some(ik));
        assert_eq!(again.endorsement_key(EkKind::P256)?, ek);
        Ok(())
    }
}

impl Drop for Emulator {
    fn drop(&mut self) {
        _ = self.process.kill();
        _ = self.process.wait();
    }
}

//! TPMs that die, hang, or still hold what a killed process left.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use anyhow::Result;
use assay_device::tpm::{
    EkKind, HierarchyPasswords, IkKind, SignatureScheme, Tpm, Tpm2, TpmError, TpmThread,
};
use assay_tests::Swtpm;

use crate::proxy::Proxy;
use crate::{IK, a_tpm, assert_nothing_loaded, open, vendor};

#[test]
fn tpm_that_died_and_came_back_is_used_again() -> Result<()> {
    let mut swtpm = a_tpm();
    let mut tpm = open(&swtpm);
    let ik = tpm.create_identity_key(IkKind::P256, IK)?;
    swtpm.kill()?;
    let error = tpm.sign(IK, SignatureScheme::EcdsaSha256, &[7; 32]).unwrap_err();
    assert!(matches!(error, TpmError::Unreachable { .. }), "{error}");
    swtpm.start()?;
    assert_eq!(tpm.identity_key(IkKind::P256, IK)?, Some(ik));
    tpm.sign(IK, SignatureScheme::EcdsaSha256, &[7; 32])?;
    assert_nothing_loaded(&swtpm)
}

#[test]
fn absent_tpm_is_an_error_that_says_where_it_was_looked_for() -> Result<()> {
    let mut swtpm = a_tpm();
    let mut tpm = open(&swtpm);
    swtpm.kill()?;
    let error = tpm.endorsement_key(EkKind::P256).unwrap_err();
    assert!(error.to_string().contains(&swtpm.tcti()), "{error}");
    Ok(())
}

#[test]
fn file_in_place_of_a_tpm_is_left_as_it_is() -> Result<()> {
    let file = tempfile::NamedTempFile::new()?;
    std::fs::write(file.path(), "not a TPM")?;
    let tcti = format!("device:{}", file.path().display()).parse()?;
    let error =
        Tpm2::new(tcti, HierarchyPasswords::default()).endorsement_key(EkKind::P256).unwrap_err();
    assert!(matches!(error, TpmError::Unreachable { .. }), "{error}");
    assert_eq!(std::fs::read(file.path())?, b"not a TPM");
    Ok(())
}

#[test]
fn hung_tpm_times_out_and_is_not_asked_again() -> Result<()> {
    let swtpm = a_tpm();
    let limit = Duration::from_millis(500);
    let tpm = TpmThread::start(open(&swtpm), limit);
    tpm.call("making the EK", |tpm| tpm.endorsement_key(EkKind::P256))?;
    swtpm.pause()?;
    let started = Instant::now();
    let error = tpm.call("making the EK", |tpm| tpm.endorsement_key(EkKind::P256)).unwrap_err();
    assert_eq!(error, TpmError::TimedOut { operation: "making the EK", limit });
    assert!(started.elapsed() < limit * 4);
    let error =
        tpm.clone().call("making the EK", |tpm| tpm.endorsement_key(EkKind::P256)).unwrap_err();
    assert_eq!(error, TpmError::Abandoned);
    swtpm.resume()?;
    Ok(())
}

#[test]
fn what_a_killed_process_left_loaded_is_flushed() -> Result<()> {
    let swtpm = vendor().device(assay_tests::EkKind::Rsa2048, 0)?;
    swtpm.tpm2(&["createek", "-G", "ecc", "-c", "ek.ctx"])?;
    swtpm.tpm2(&["createek", "-G", "ecc", "-c", "ek.ctx"])?;
    swtpm.tpm2(&["createek", "-G", "rsa", "-c", "ek.ctx"])?;
    for session_type in [HMAC_SESSION, POLICY_SESSION, POLICY_SESSION] {
        start_session(&swtpm, session_type)?;
    }
    assert_eq!(swtpm.transient_handles()?.len(), 3);
    assert_eq!(swtpm.loaded_sessions()?.len(), 3);
    let mut tpm = open(&swtpm);
    tpm.create_identity_key(IkKind::P256, IK)?;
    assert_nothing_loaded(&swtpm)
}

#[test]
fn what_a_lost_response_left_loaded_is_flushed_by_the_next_call() -> Result<()> {
    let swtpm = a_tpm();
    let all = {
        let proxy = Proxy::with_limit(&swtpm, usize::MAX)?;
        through(&proxy)?.create_identity_key(IkKind::P256, IK)?;
        proxy.commands()
    };
    swtpm.tpm2(&["evictcontrol", "-c", &format!("{IK:#x}")])?;
    for lost in 0..all {
        let proxy = Proxy::losing_response(&swtpm, lost)?;
        let mut tpm = through(&proxy)?;
        // The result does not count: the command may be sent again, and the TPM may then refuse
        // what it has already done.
        _ = tpm.create_identity_key(IkKind::P256, IK);
        let made = tpm.identity_key(IkKind::P256, IK)?;
        assert_nothing_loaded(&swtpm)?;
        if made.is_some() {
            swtpm.tpm2(&["evictcontrol", "-c", &format!("{IK:#x}")])?;
        }
    }
    Ok(())
}

fn through(proxy: &Proxy) -> Result<Tpm2> {
    Ok(Tpm2::new(proxy.tcti().parse()?, HierarchyPasswords::default()))
}

#[test]
fn objects_of_others_are_not_flushed() -> Result<()> {
    let swtpm = a_tpm();
    swtpm.tpm2(&["createprimary", "-C", "n", "-G", "aes128", "-c", "theirs.ctx"])?;
    let theirs = swtpm.transient_handles()?;
    assert_eq!(theirs.len(), 1);
    open(&swtpm).endorsement_key(EkKind::P256)?;
    assert_eq!(swtpm.transient_handles()?, theirs);
    Ok(())
}

/// TPM2_StartAuthSession (TPM 2.0 Part 3, 11.1) by hand, because tpm2-tools leave no session
/// loaded.
fn start_session(swtpm: &Swtpm, session_type: u8) -> Result<()> {
    let mut command = vec![0x80, 0x01, 0, 0, 0, 0, 0, 0, 0x01, 0x76];
    command.extend([0x40, 0, 0, 0x07, 0x40, 0, 0, 0x07]); // no tpmKey, no bind
    command.extend([0, 16]);
    command.extend([7; 16]); // nonceCaller
    command.extend([0, 0]); // no encryptedSalt
    command.extend([session_type, 0, 0x10, 0, 0x0B]); // no symmetric, SHA-256
    command[5] = u8::try_from(command.len())?;
    let mut socket = TcpStream::connect(("127.0.0.1", swtpm.port()))?;
    socket.write_all(&command)?;
    let mut head = [0; 10];
    socket.read_exact(&mut head)?;
    assert_eq!(head[6..], [0; 4], "TPM_RC_SUCCESS");
    Ok(())
}

/// TPM_SE (TPM 2.0 Part 2, 6.11).
const HMAC_SESSION: u8 = 0;
const POLICY_SESSION: u8 = 1;

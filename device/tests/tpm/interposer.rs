//! An attacker between CPU and TPM, who reads and changes what passes.

use anyhow::Result;
use assay_device::tpm::{
    EkKind, HierarchyPasswords, IkKind, ParentKind, Tpm, Tpm2, TpmError, WrappedKey,
};
use assay_tests::{Swtpm, Tap, agent_tcti};

use crate::activation::{SECRET, make_credential};
use crate::nv::{CERTIFICATE, redefine};
use crate::proxy::Proxy;
use crate::shared_key::KEY;
use crate::wrap::{INNER_KEY, wrap};
use crate::{
    EKS, IK, assert_nothing_loaded, name_of, open, open_with_passwords, passwords, told, vendor,
};

#[test]
fn interposer_reads_no_password_and_no_secret() -> Result<()> {
    for (kind, made_as) in EKS {
        let mut swtpm = vendor().device(made_as, 0)?;
        swtpm.set_passwords(OWNER, ENDORSEMENT)?;
        let tap = Tap::before_tpm(swtpm.port())?;
        let mut tpm = at(tap.port(), passwords(OWNER, ENDORSEMENT))?;
        tpm.ek_certificates(kind)?;
        use_every_secret(&swtpm, &mut tpm, kind)?;
        assert_silent_about_secrets(&tap);
        assert_nothing_loaded(&swtpm)?;
    }
    Ok(())
}

#[test]
fn interposer_reads_no_secret_where_there_are_no_passwords() -> Result<()> {
    for (kind, made_as) in EKS {
        let swtpm = vendor().device(made_as, 0)?;
        let tap = Tap::before_tpm(swtpm.port())?;
        use_every_secret(&swtpm, &mut at(tap.port(), HierarchyPasswords::default())?, kind)?;
        assert_silent_about_secrets(&tap);
        assert_nothing_loaded(&swtpm)?;
    }
    Ok(())
}

#[test]
fn wrong_password_is_not_on_the_bus_either() -> Result<()> {
    let mut swtpm = vendor().device(assay_tests::EkKind::P256, 0)?;
    swtpm.set_passwords(OWNER, ENDORSEMENT)?;
    let tap = Tap::before_tpm(swtpm.port())?;
    let mut tpm = at(tap.port(), passwords("a wrong guess", "another wrong guess"))?;
    tpm.endorsement_key(EkKind::P256).unwrap_err();
    tpm.create_identity_key(IkKind::P256, IK).unwrap_err();
    assert_eq!(tap.heard(b"wrong guess"), 0);
    assert_silent_about_secrets(&tap);
    assert_nothing_loaded(&swtpm)
}

#[test]
fn certificate_that_only_the_owner_may_read_is_read_without_showing_the_password() -> Result<()> {
    let mut swtpm = vendor().device(assay_tests::EkKind::P256, 0)?;
    let certificate = swtpm.ek_certificate(assay_tests::EkKind::P256)?;
    redefine(&swtpm, CERTIFICATE, "ownerread", &certificate)?;
    swtpm.set_passwords(OWNER, ENDORSEMENT)?;
    let tap = Tap::before_tpm(swtpm.port())?;
    let mut tpm = at(tap.port(), passwords(OWNER, ENDORSEMENT))?;
    assert_eq!(tpm.ek_certificates(EkKind::P256)?, [certificate]);
    assert_silent_about_secrets(&tap);
    assert_nothing_loaded(&swtpm)
}

#[test]
fn secret_that_an_interposer_altered_is_refused() -> Result<()> {
    for (kind, made_as) in EKS {
        let swtpm = vendor().device(made_as, 0)?;
        let (ek, ik) = {
            let mut tpm = open(&swtpm);
            (tpm.endorsement_key(kind)?.unwrap(), tpm.create_identity_key(IkKind::P256, IK)?)
        };
        let (blob, seed) = make_credential(&swtpm, &ek.bytes, &name_of(&ik), SECRET)?;
        // The first byte of the encrypted secret: it follows the header, the size of the
        // parameters, and the size of the secret.
        let proxy = Proxy::altering_response(&swtpm, ACTIVATE_CREDENTIAL, 10 + 4 + 2)?;
        let mut tpm = Tpm2::new(proxy.tcti().parse()?, HierarchyPasswords::default());
        let error = tpm.activate(kind, IK, &blob, &seed).unwrap_err();
        assert!(matches!(error, TpmError::BadResponse { .. }), "{kind}: {error}");
        assert_eq!(open(&swtpm).activate(kind, IK, &blob, &seed)?.as_slice(), SECRET, "{kind}");
        assert_nothing_loaded(&swtpm)?;
    }
    Ok(())
}

#[test]
fn password_is_kept_from_a_tpm_with_another_ek() -> Result<()> {
    let mut swtpm = vendor().device(assay_tests::EkKind::P256, 0)?;
    let id = open(&swtpm).endorsement_key(EkKind::P256)?.unwrap().key.id();
    swtpm.set_passwords(OWNER, "")?;
    let mut tpm = open_with_passwords(&swtpm, OWNER, "");
    tpm.expect_ek(EkKind::P256, [7; 32]);
    let error = tpm.create_identity_key(IkKind::P256, IK).unwrap_err();
    assert!(matches!(error, TpmError::OtherEk { .. }), "{error}");
    assert!(told(error.clone()).contains("--state"), "{error}");
    tpm.expect_ek(EkKind::P256, id);
    tpm.create_identity_key(IkKind::P256, IK)?;
    assert_nothing_loaded(&swtpm)
}

#[test]
fn ek_that_takes_a_password_to_make_is_no_reason_to_refuse() -> Result<()> {
    let mut swtpm = vendor().device(assay_tests::EkKind::P256, 0)?;
    swtpm.set_passwords(OWNER, ENDORSEMENT)?;
    let mut tpm = open_with_passwords(&swtpm, OWNER, ENDORSEMENT);
    tpm.expect_ek(EkKind::P256, [7; 32]);
    tpm.create_identity_key(IkKind::P256, IK)?;
    assert_nothing_loaded(&swtpm)
}

#[test]
fn credential_is_opened_with_the_ek_that_was_shown_and_no_other() -> Result<()> {
    let swtpm = vendor().device(assay_tests::EkKind::P384, 0)?;
    let mut tpm = open(&swtpm);
    let shown = tpm.endorsement_key(EkKind::P384)?.unwrap();
    let ik = tpm.create_identity_key(IkKind::P256, IK)?;
    std::fs::write(swtpm.work_dir().join("policy"), POLICY_B_SHA384)?;
    let create =
        ["createprimary", "-C", "o", "-G", "ecc384:aes256cfb", "-g", "sha384", "-a", EK_ATTRIBUTES];
    swtpm.tpm2(&["evictcontrol", "-C", "o", "-c", "0x81010016"])?;
    swtpm.tpm2(&[&create[..], &["-L", "policy", "-c", "other.ctx"]].concat())?;
    swtpm.tpm2(&["evictcontrol", "-C", "o", "-c", "other.ctx", "0x81010016"])?;
    swtpm.tpm2(&["flushcontext", "-t"])?;
    let other = open(&swtpm).endorsement_key(EkKind::P384)?.unwrap();
    assert_ne!(other, shown);
    let (blob, seed) = make_credential(&swtpm, &other.bytes, &name_of(&ik), SECRET)?;
    let error = tpm.activate(EkKind::P384, IK, &blob, &seed).unwrap_err();
    assert!(matches!(error, TpmError::OtherEk { .. }), "{error}");
    assert_nothing_loaded(&swtpm)
}

/// Everything that the agent does with a password or a secret.
fn use_every_secret(swtpm: &Swtpm, tpm: &mut Tpm2, kind: EkKind) -> Result<()> {
    let ek = tpm.endorsement_key(kind)?.unwrap();
    let ik = tpm.create_identity_key(IkKind::P256, IK)?;
    let (blob, seed) = make_credential(swtpm, &ek.bytes, &name_of(&ik), SECRET)?;
    assert_eq!(tpm.activate(kind, IK, &blob, &seed)?.as_slice(), SECRET);

    let parent = tpm.parent(ParentKind::P256)?.unwrap();
    let wrapped = match kind {
        EkKind::P256 => wrap(&KEY, &ek, &parent),
        // The credential for other kinds of EK is made by tpm2-tools.
        _ => {
            let (credential_blob, encrypted_seed) =
                make_credential(swtpm, &ek.bytes, &name_of(&parent), &INNER_KEY)?;
            let ek = tpm.endorsement_key(EkKind::P256)?.unwrap();
            WrappedKey { credential_blob, encrypted_seed, ..wrap(&KEY, &ek, &parent) }
        }
    };
    let opened = tpm.open_hmac_key(kind, ParentKind::P256, &wrapped)?;
    tpm.keep_hmac_key(ParentKind::P256, crate::HMAC_KEY, &opened, None)?;
    Ok(())
}

fn assert_silent_about_secrets(tap: &Tap) {
    assert_ne!(tap.heard(&START_AUTH_SESSION), 0, "the tap hears nothing");
    for secret in [OWNER.as_bytes(), ENDORSEMENT.as_bytes(), SECRET, &INNER_KEY, &KEY] {
        assert_eq!(tap.heard(secret), 0, "{}", String::from_utf8_lossy(secret));
    }
    // A listener can compute the HMACs and the encryption of such a session, or try passwords on
    // them.
    let unsalted = tap.heard(&[&START_AUTH_SESSION[..], &NO_KEY].concat());
    assert_eq!(
        unsalted,
        tap.heard(&BARE_POLICY),
        "a session without a salt that is not for a policy alone"
    );
}

fn at(port: u16, passwords: HierarchyPasswords) -> Result<Tpm2> {
    Ok(Tpm2::new(agent_tcti(port).parse()?, passwords))
}

const EK_ATTRIBUTES: &str =
    "fixedtpm|fixedparent|sensitivedataorigin|userwithauth|adminwithpolicy|restricted|decrypt";
/// TCG EK Credential Profile 2.5, B.6.4.
const POLICY_B_SHA384: [u8; 48] = [
    0xB2, 0x6E, 0x7D, 0x28, 0xD1, 0x1A, 0x50, 0xBC, 0x53, 0xD8, 0x82, 0xBC, 0xF5, 0xFD, 0x3A, 0x1A,
    0x07, 0x41, 0x48, 0xBB, 0x35, 0xD3, 0xB4, 0xE4, 0xCB, 0x1C, 0x0A, 0xD9, 0xBD, 0xE4, 0x19, 0xCA,
    0xCB, 0x47, 0xBA, 0x09, 0x69, 0x96, 0x46, 0x15, 0x0F, 0x9F, 0xC0, 0x00, 0xF3, 0xF8, 0x0E, 0x12,
];
const OWNER: &str = "correct horse";
const ENDORSEMENT: &str = "battery staple";
/// TPM_CC (TPM 2.0 Part 2, 6.5.2).
const START_AUTH_SESSION: [u8; 4] = [0, 0, 0x01, 0x76];
const ACTIVATE_CREDENTIAL: [u8; 4] = [0, 0, 0x01, 0x47];
/// The end of TPM2_StartAuthSession's parameters (TPM 2.0 Part 3, 11.1): no salt, TPM_SE_POLICY,
/// nothing to encrypt with, SHA-256.
const BARE_POLICY: [u8; 7] = [0, 0, 0x01, 0x00, 0x10, 0x00, 0x0B];
/// TPM_RH_NULL.
const NO_KEY: [u8; 4] = [0x40, 0, 0, 0x07];

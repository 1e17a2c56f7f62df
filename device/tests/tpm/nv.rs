//! Every way in which a manufacturer leaves EK certificates in NV memory, with and without
//! passwords.

use std::fs;

use anyhow::Result;
use assay_device::tpm::{EkKind, IkKind, Tpm, TpmError};
use assay_device::{EkChoice, endorsement_keys};
use assay_tests::Swtpm;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, KeyPair};

use crate::{IK, a_tpm, assert_nothing_loaded, open, open_with_passwords, told};

#[test]
fn issuers_that_continue_over_successive_indices_are_read_whole() -> Result<()> {
    let swtpm = a_tpm();
    let issuers = [an_issuer("lower")?, an_issuer("upper")?];
    let all = [&issuers.concat()[..], &[0xFF; 40]].concat();
    // In three indices, cut within the first and within the second certificate.
    let third = all.len() / 3;
    for (number, part) in
        [&all[..third], &all[third..2 * third], &all[2 * third..]].into_iter().enumerate()
    {
        define(&swtpm, 0x01C0_0100 + number as u32, "authread", part)?;
    }
    let certificates = open(&swtpm).ek_certificates(EkKind::P256)?;
    assert_eq!(certificates[1..], issuers);
    Ok(())
}

#[test]
fn certificate_that_only_the_owner_may_read_is_read_with_the_owners_password() -> Result<()> {
    let mut swtpm = a_tpm();
    let certificate = swtpm.ek_certificate(assay_tests::EkKind::P256)?;
    redefine(&swtpm, CERTIFICATE, "ownerread", &certificate)?;
    assert_eq!(open(&swtpm).ek_certificates(EkKind::P256)?, std::slice::from_ref(&certificate));
    swtpm.set_passwords("owner-secret", "")?;
    assert_eq!(
        open_with_passwords(&swtpm, "owner-secret", "").ek_certificates(EkKind::P256)?,
        [certificate]
    );
    let error = open(&swtpm).ek_certificates(EkKind::P256).unwrap_err();
    assert!(matches!(error, TpmError::Unreadable { index: CERTIFICATE }), "{error}");
    assert!(told(error.clone()).contains("--owner-auth-file"), "{error}");
    Ok(())
}

#[test]
fn certificate_that_nobody_may_read_is_done_without_and_the_way_out_named() -> Result<()> {
    let swtpm = a_tpm();
    let certificate = swtpm.ek_certificate(assay_tests::EkKind::P256)?;
    redefine(&swtpm, CERTIFICATE, "ppread", &certificate)?;
    let error = open(&swtpm).ek_certificates(EkKind::P256).unwrap_err();
    assert!(told(error.clone()).contains("--ek-certificate"), "{error}");
    let limit = std::time::Duration::from_secs(30);
    for choice in [EkChoice::Auto, EkChoice::Kind(EkKind::P256)] {
        let tcti = swtpm.tcti().parse()?;
        let eks = endorsement_keys(tcti, Default::default(), limit, Some(choice), &mut |_, _| ())?;
        assert!(eks[0].kind == EkKind::P256 && eks[0].certificate.is_none(), "{eks:?}");
    }
    assert_nothing_loaded(&swtpm)
}

#[test]
fn issuer_that_nobody_may_read_is_done_without() -> Result<()> {
    let swtpm = a_tpm();
    let issuer = an_issuer("upper")?;
    define(&swtpm, 0x01C0_0100, "ppread", &an_issuer("lower")?)?;
    define(&swtpm, 0x01C0_0101, "authread", &issuer)?;
    assert_eq!(open(&swtpm).ek_certificates(EkKind::P256)?[1..], [issuer]);
    Ok(())
}

/// The expected EK is made by tpm2_createprimary, because tpm2_createek 5.4 makes another EK from
/// the same nonce each time.
#[test]
fn ek_is_made_from_the_template_and_the_nonce_in_nv_memory() -> Result<()> {
    let nonce = b"a nonce of a manufacturer";
    for (kind, algorithm, nonce_index) in [
        (EkKind::P256, "ecc256:aes128cfb", 0x01C0_000B),
        (EkKind::Rsa2048, "rsa2048:aes128cfb", 0x01C0_0003),
    ] {
        let swtpm = a_tpm();
        let usual = open(&swtpm).endorsement_key(kind)?.unwrap();
        define(&swtpm, nonce_index + 1, "authread", &template(&usual.bytes, kind))?;
        assert_eq!(
            open(&swtpm).endorsement_key(kind)?.unwrap(),
            usual,
            "{kind}: the default template"
        );
        define(&swtpm, nonce_index, "authread", nonce)?;
        let made = open(&swtpm).endorsement_key(kind)?.unwrap();
        assert_ne!(made, usual, "{kind}");

        // TPMU_PUBLIC_ID as tpm2-tss has it in memory: each size, followed by a buffer for the
        // longest key.
        let field = |size: u16, room: usize, contents: &[u8]| {
            let mut buffer = contents.to_vec();
            buffer.resize(room, 0);
            [&size.to_ne_bytes(), &buffer[..]].concat()
        };
        let unique = match kind {
            EkKind::P256 => [field(32, 128, nonce), field(32, 128, &[])].concat(),
            // The tool takes 512 bytes at most.
            _ => field(256, 256, nonce),
        };
        fs::write(swtpm.work_dir().join("unique"), unique)?;
        fs::write(swtpm.work_dir().join("policy"), crate::keys::POLICY_A_SHA256)?;
        let create =
            ["createprimary", "-C", "e", "-G", algorithm, "-a", crate::keys::EK_ATTRIBUTES];
        swtpm.tpm2(&[&create[..], &["-L", "policy", "-u", "unique", "-c", "ek.ctx"]].concat())?;
        swtpm.tpm2(&["readpublic", "-c", "ek.ctx", "-f", "tss", "-o", "ek.pub"])?;
        assert_eq!(fs::read(swtpm.work_dir().join("ek.pub"))?[2..], made.bytes, "{kind}");
    }
    Ok(())
}

#[test]
fn ik_is_made_though_the_persistent_srk_has_a_password() -> Result<()> {
    let swtpm = a_tpm();
    let attributes =
        "fixedtpm|fixedparent|sensitivedataorigin|userwithauth|noda|restricted|decrypt";
    swtpm.tpm2(&[
        "createprimary",
        "-C",
        "o",
        "-G",
        "ecc",
        "-c",
        "srk.ctx",
        "-a",
        attributes,
        "-p",
        "secret",
    ])?;
    swtpm.tpm2(&["evictcontrol", "-C", "o", "-c", "srk.ctx", "0x81000001"])?;
    swtpm.tpm2(&["flushcontext", "-t"])?;
    let ik = open(&swtpm).create_identity_key(IkKind::P256, IK)?;
    assert_eq!(open(&swtpm).identity_key(IkKind::P256, IK)?, Some(ik));
    assert_nothing_loaded(&swtpm)
}

/// The template that gives an EK: its public area with zeros in place of the key.
fn template(public: &[u8], kind: EkKind) -> Vec<u8> {
    let unique = if kind == EkKind::P256 { 2 * (2 + 32) } else { 2 + 256 };
    let (head, tail) = public.split_at(public.len() - unique);
    let zeros = if kind == EkKind::P256 {
        [&[0, 32][..], &[0; 32], &[0, 32], &[0; 32]].concat()
    } else {
        [&tail[..2], &[0; 256]].concat()
    };
    [head, &zeros].concat()
}

fn an_issuer(name: &str) -> Result<Vec<u8>> {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    Ok(params.self_signed(&KeyPair::generate()?)?.der().to_vec())
}

pub(crate) fn redefine(swtpm: &Swtpm, index: u32, readers: &str, contents: &[u8]) -> Result<()> {
    swtpm.tpm2(&["nvundefine", "-C", "p", &format!("{index:#x}")])?;
    define(swtpm, index, readers, contents)
}

fn define(swtpm: &Swtpm, index: u32, readers: &str, contents: &[u8]) -> Result<()> {
    fs::write(swtpm.work_dir().join("contents"), contents)?;
    let (index, size) = (&format!("{index:#x}"), &contents.len().to_string());
    let attributes = &format!("ppwrite|writedefine|no_da|platformcreate|{readers}");
    swtpm.tpm2(&["nvdefine", index, "-C", "p", "-s", size, "-a", attributes])?;
    swtpm.tpm2(&["nvwrite", index, "-C", "p", "-i", "contents"])?;
    Ok(())
}

/// The NV index of the certificate for the EK of template L-2.
pub(crate) const CERTIFICATE: u32 = 0x01C0_000A;

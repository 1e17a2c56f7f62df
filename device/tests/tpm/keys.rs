//! Endorsement and identity keys.

use anyhow::Result;
use assay_device::tpm::{EkKind, IkKind, PublicKey, SignatureScheme, Tpm, TpmError};
use ring::digest::{SHA256, SHA384, digest};
use ring::signature::{self, UnparsedPublicKey, VerificationAlgorithm};
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::{
    EKS, IK, a_tpm, assert_nothing_loaded, name_of, open, open_with_passwords, told, vendor,
};

#[test]
fn ek_by_template_is_the_key_in_its_certificate() -> Result<()> {
    for (kind, made_as) in EKS {
        let swtpm = vendor().device(made_as, 0)?;
        let mut tpm = open(&swtpm);
        let certificates = tpm.ek_certificates(kind)?;
        let (rest, certificate) = X509Certificate::from_der(&certificates[0])?;
        assert!(rest.is_empty(), "{kind}: the certificate is cut at its end");
        let ek = tpm.endorsement_key(kind)?.unwrap();
        assert_eq!(ek.key.subject_public_key_info(), certificate.public_key().raw, "{kind}");
    }
    Ok(())
}

#[test]
fn ek_made_by_template_is_the_persistent_one() -> Result<()> {
    for (kind, made_as) in EKS {
        let mut swtpm = vendor().device(made_as, 0)?;
        let before = open(&swtpm).endorsement_key(kind)?;
        swtpm.clear()?;
        assert_eq!(swtpm.persistent_handles()?, [0; 0]);
        assert_eq!(open(&swtpm).endorsement_key(kind)?, before, "{kind}");
    }
    Ok(())
}

#[test]
fn persistent_object_off_template_is_not_taken_for_the_ek() -> Result<()> {
    let mut swtpm = vendor().device(assay_tests::EkKind::Rsa2048, 0)?;
    let ek = open(&swtpm).endorsement_key(EkKind::Rsa2048)?;
    swtpm.clear()?;
    swtpm.tpm2(&["createprimary", "-C", "e", "-G", "rsa2048", "-c", "primary.ctx"])?;
    swtpm.tpm2(&["evictcontrol", "-C", "o", "-c", "primary.ctx", "0x81010001"])?;
    swtpm.tpm2(&["flushcontext", "-t"])?;
    assert_eq!(open(&swtpm).endorsement_key(EkKind::Rsa2048)?, ek);
    Ok(())
}

#[test]
fn legacy_ek_is_that_of_an_empty_unique_field_and_never_the_certified_one() -> Result<()> {
    let mut swtpm = vendor().device(assay_tests::EkKind::Rsa2048, 0)?;
    let certified = open(&swtpm).endorsement_key(EkKind::Rsa2048)?.unwrap();
    let legacy = open(&swtpm).endorsement_key(EkKind::LegacyDps)?.unwrap();
    assert_eq!(open(&swtpm).ek_certificates(EkKind::LegacyDps)?, Vec::<Vec<u8>>::new());
    swtpm.clear()?;
    persist_legacy_ek(&swtpm)?;
    swtpm.tpm2(&["readpublic", "-c", "0x81010001", "-f", "tss", "-o", "legacy.public"])?;
    assert_eq!(legacy.bytes, std::fs::read(swtpm.work_dir().join("legacy.public"))?[2..]);
    // Both EKs are found, with and without a certificate that tells which of the two is persistent.
    for _ in 0..2 {
        assert_eq!(open(&swtpm).endorsement_key(EkKind::Rsa2048)?.as_ref(), Some(&certified));
        assert_eq!(open(&swtpm).endorsement_key(EkKind::LegacyDps)?.as_ref(), Some(&legacy));
        swtpm.tpm2(&["nvundefine", "-C", "p", "0x01c00002"]).ok();
    }
    assert_nothing_loaded(&swtpm)
}

#[test]
fn persistent_legacy_ek_is_used_where_the_certificate_tells_it_apart() -> Result<()> {
    let mut swtpm = vendor().device(assay_tests::EkKind::Rsa2048, 0)?;
    let legacy = open(&swtpm).endorsement_key(EkKind::LegacyDps)?;
    swtpm.clear()?;
    persist_legacy_ek(&swtpm)?;
    // The TPM can make no key any more, but has the persistent one.
    swtpm.set_passwords("owner-secret", "endorsement-secret")?;
    assert_eq!(open(&swtpm).endorsement_key(EkKind::LegacyDps)?, legacy);
    assert!(matches!(
        open(&swtpm).endorsement_key(EkKind::Rsa2048),
        Err(TpmError::WrongPassword { .. })
    ));
    Ok(())
}

/// Makes an EK as Azure's C SDK does: tpm2_createprimary leaves `unique` empty.
fn persist_legacy_ek(swtpm: &assay_tests::Swtpm) -> Result<()> {
    std::fs::write(swtpm.work_dir().join("policy"), POLICY_A_SHA256)?;
    let create = [
        "createprimary",
        "-C",
        "e",
        "-G",
        "rsa2048:aes128cfb",
        "-g",
        "sha256",
        "-a",
        EK_ATTRIBUTES,
    ];
    swtpm.tpm2(&[&create[..], &["-L", "policy", "-c", "ek.ctx"]].concat())?;
    swtpm.tpm2(&["evictcontrol", "-C", "o", "-c", "ek.ctx", "0x81010001"])?;
    swtpm.tpm2(&["flushcontext", "-t"])?;
    Ok(())
}

#[test]
fn tpm_without_ek_certificate_has_an_ek_all_the_same() -> Result<()> {
    let swtpm = assay_tests::Swtpm::without_ek_certificate()?;
    let mut tpm = open(&swtpm);
    for kind in EkKind::ALL {
        assert_eq!(tpm.ek_certificates(kind)?, Vec::<Vec<u8>>::new());
        assert!(tpm.endorsement_key(kind)?.is_some(), "{kind}");
    }
    Ok(())
}

#[test]
fn ik_is_kept_and_found_again_under_the_same_name() -> Result<()> {
    for kind in IkKind::ALL {
        let swtpm = a_tpm();
        let mut tpm = open(&swtpm);
        assert_eq!(tpm.identity_key(kind, IK)?, None);
        let created = tpm.create_identity_key(kind, IK)?;
        let found = open(&swtpm).identity_key(kind, IK)?.unwrap();
        assert_eq!(name_of(&found), name_of(&created), "{kind}");
        assert!(swtpm.persistent_handles()?.contains(&IK));
        assert_nothing_loaded(&swtpm)?;
        let printed = swtpm.tpm2(&["readpublic", "-c", &format!("{IK:#x}")])?;
        let name: String = name_of(&created).iter().map(|byte| format!("{byte:02x}")).collect();
        assert!(String::from_utf8(printed.stdout)?.contains(&name), "{kind}");
    }
    Ok(())
}

#[test]
fn key_is_removed_only_if_it_is_the_one_that_was_meant() -> Result<()> {
    let swtpm = a_tpm();
    let mut tpm = open(&swtpm);
    let ours = tpm.create_identity_key(IkKind::P256, IK)?;
    let other = tpm.create_identity_key(IkKind::P256, IK + 1)?;
    tpm.remove_key(IK, &other.bytes)?;
    assert_eq!(tpm.identity_key(IkKind::P256, IK)?, Some(ours.clone()));
    tpm.remove_key(IK, &ours.bytes)?;
    tpm.remove_key(IK, &ours.bytes)?;
    assert_eq!(tpm.identity_key(IkKind::P256, IK)?, None);
    assert_eq!(tpm.identity_key(IkKind::P256, IK + 1)?, Some(other));
    assert_nothing_loaded(&swtpm)
}

#[test]
fn ik_survives_a_power_cycle() -> Result<()> {
    let mut swtpm = a_tpm();
    let created = open(&swtpm).create_identity_key(IkKind::P256, IK)?;
    swtpm.restart()?;
    assert_eq!(open(&swtpm).identity_key(IkKind::P256, IK)?, Some(created));
    Ok(())
}

#[test]
fn cleared_tpm_has_no_ik_and_makes_another() -> Result<()> {
    let mut swtpm = a_tpm();
    let mut tpm = open(&swtpm);
    let before = tpm.create_identity_key(IkKind::P256, IK)?;
    swtpm.clear()?;
    assert_eq!(tpm.identity_key(IkKind::P256, IK)?, None);
    assert_ne!(tpm.create_identity_key(IkKind::P256, IK)?, before);
    Ok(())
}

#[test]
fn occupied_handle_is_refused_with_advice_and_left_alone() -> Result<()> {
    let swtpm = a_tpm();
    swtpm.tpm2(&["createprimary", "-C", "o", "-G", "ecc", "-c", "primary.ctx"])?;
    swtpm.tpm2(&["evictcontrol", "-C", "o", "-c", "primary.ctx", "0x81000200"])?;
    swtpm.tpm2(&["flushcontext", "-t"])?;
    let before = swtpm.tpm2(&["readpublic", "-c", "0x81000200"])?.stdout;
    let error = open(&swtpm).identity_key(IkKind::P256, IK).unwrap_err();
    assert!(matches!(error, TpmError::HandleOccupied { handle: IK, .. }), "{error}");
    assert!(told(error.clone()).contains("tpm2_evictcontrol -c 0x81000200"), "{error}");
    assert!(told(error.clone()).contains("--ik-handle"), "{error}");
    assert_eq!(swtpm.tpm2(&["readpublic", "-c", "0x81000200"])?.stdout, before);
    Ok(())
}

#[test]
fn key_with_a_password_at_the_handle_is_refused_with_advice() -> Result<()> {
    let swtpm = a_tpm();
    swtpm.tpm2(&["createprimary", "-C", "o", "-G", "ecc", "-c", "srk.ctx"])?;
    swtpm.tpm2(&["flushcontext", "-t"])?;
    let create = [
        "create",
        "-C",
        "srk.ctx",
        "-G",
        "ecc256:ecdsa-sha256",
        "-a",
        SIGNER_ATTRIBUTES,
        "-p",
        "secret",
    ];
    swtpm.tpm2(&[&create[..], &["-u", "ik.pub", "-r", "ik.priv"]].concat())?;
    swtpm.tpm2(&["flushcontext", "-t"])?;
    swtpm.tpm2(&["load", "-C", "srk.ctx", "-u", "ik.pub", "-r", "ik.priv", "-c", "ik.ctx"])?;
    swtpm.tpm2(&["flushcontext", "-t"])?;
    swtpm.tpm2(&["evictcontrol", "-C", "o", "-c", "ik.ctx", "0x81000200"])?;
    swtpm.tpm2(&["flushcontext", "-t"])?;
    let mut tpm = open(&swtpm);
    assert!(
        tpm.identity_key(IkKind::P256, IK)?.is_some(),
        "nothing but its password tells it from an identity key"
    );
    let error = tpm.sign(IK, SignatureScheme::EcdsaSha256, &[7; 32]).unwrap_err();
    assert!(matches!(error, TpmError::KeyWithPassword { handle: IK, .. }), "{error}");
    assert!(told(error.clone()).contains("--ik-handle"), "{error}");
    assert_nothing_loaded(&swtpm)
}

#[test]
fn ik_of_another_kind_is_not_taken() -> Result<()> {
    let swtpm = a_tpm();
    let mut tpm = open(&swtpm);
    tpm.create_identity_key(IkKind::P384, IK)?;
    let error = tpm.identity_key(IkKind::P256, IK).unwrap_err();
    assert!(error.to_string().contains("an identity key of kind p-384"), "{error}");
    Ok(())
}

#[test]
fn ik_is_made_under_the_persistent_srk_if_there_is_one() -> Result<()> {
    let swtpm = a_tpm();
    swtpm.tpm2(&[
        "createprimary",
        "-C",
        "o",
        "-G",
        "rsa2048",
        "-c",
        "srk.ctx",
        "-a",
        SRK_ATTRIBUTES,
    ])?;
    swtpm.tpm2(&["evictcontrol", "-C", "o", "-c", "srk.ctx", "0x81000001"])?;
    swtpm.tpm2(&["flushcontext", "-t"])?;
    let mut tpm = open(&swtpm);
    tpm.create_identity_key(IkKind::P256, IK)?;
    swtpm.tpm2(&["readpublic", "-c", "0x81000001", "-q", "srk.qname"])?;
    // The qualified name of a key is the hash of its parent's and its own name (TPM 2.0 Part 1,
    // 16).
    swtpm.tpm2(&["readpublic", "-c", "0x81000200", "-q", "ik.qname", "-n", "ik.name"])?;
    let read = |file: &str| std::fs::read(swtpm.work_dir().join(file));
    let hash = digest(&SHA256, &[read("srk.qname")?, read("ik.name")?].concat());
    assert_eq!(read("ik.qname")?, [&[0, 0x0B], hash.as_ref()].concat());
    Ok(())
}

#[test]
fn unusable_persistent_srk_is_passed_over() -> Result<()> {
    let swtpm = a_tpm();
    swtpm.tpm2(&[
        "createprimary",
        "-C",
        "o",
        "-G",
        "ecc:ecdsa",
        "-c",
        "signer.ctx",
        "-a",
        SIGNER_ATTRIBUTES,
    ])?;
    swtpm.tpm2(&["evictcontrol", "-C", "o", "-c", "signer.ctx", "0x81000001"])?;
    swtpm.tpm2(&["flushcontext", "-t"])?;
    open(&swtpm).create_identity_key(IkKind::P256, IK)?;
    assert_nothing_loaded(&swtpm)
}

#[test]
fn signatures_verify_with_other_software() -> Result<()> {
    let message = b"what the device says";
    let cases: [(IkKind, SignatureScheme, &dyn VerificationAlgorithm); 4] = [
        (IkKind::P256, SignatureScheme::EcdsaSha256, &signature::ECDSA_P256_SHA256_ASN1),
        (IkKind::P384, SignatureScheme::EcdsaSha384, &signature::ECDSA_P384_SHA384_ASN1),
        (IkKind::Rsa2048, SignatureScheme::RsaPkcs1Sha256, &signature::RSA_PKCS1_2048_8192_SHA256),
        (IkKind::Rsa2048, SignatureScheme::RsaPssSha256, &signature::RSA_PSS_2048_8192_SHA256),
    ];
    for (kind, scheme, algorithm) in cases {
        let swtpm = a_tpm();
        let mut tpm = open(&swtpm);
        let key = tpm.create_identity_key(kind, IK)?.key;
        let hash = if scheme == SignatureScheme::EcdsaSha384 { &SHA384 } else { &SHA256 };
        // There are enough rounds to get an r or s with a leading zero byte, and one with the
        // highest bit set.
        let rounds = if matches!(key, PublicKey::Rsa(_)) { 3 } else { 300 };
        for round in 0..rounds {
            let message = [&message[..], &[(round % 256) as u8, (round / 256) as u8]].concat();
            let signature = tpm.sign(IK, scheme, digest(hash, &message).as_ref())?;
            UnparsedPublicKey::new(algorithm, key.subject_public_key())
                .verify(&message, &signature)
                .unwrap_or_else(|_| panic!("{scheme:?}, round {round}"));
        }
    }
    Ok(())
}

#[test]
fn nothing_stays_loaded_after_any_operation() -> Result<()> {
    let swtpm = a_tpm();
    let mut tpm = open(&swtpm);
    let persistent_before = swtpm.persistent_handles()?;
    for round in 0..30 {
        let kind = EkKind::ALL[round % 2];
        tpm.ek_certificates(kind)?;
        assert_nothing_loaded(&swtpm)?;
        tpm.endorsement_key(kind)?;
        assert_nothing_loaded(&swtpm)?;
        let handle = IK + u32::try_from(round)?;
        tpm.identity_key(IkKind::P256, handle)?;
        tpm.create_identity_key(IkKind::P256, handle)?;
        assert_nothing_loaded(&swtpm)?;
        tpm.sign(handle, SignatureScheme::EcdsaSha256, &[7; 32])?;
        assert_nothing_loaded(&swtpm)?;
        tpm.activate(kind, handle, &[0; 68], &[0; 256]).unwrap_err();
        assert_nothing_loaded(&swtpm)?;
        swtpm.tpm2(&["evictcontrol", "-C", "o", "-c", &format!("{handle:#x}")])?;
    }
    assert_eq!(swtpm.persistent_handles()?, persistent_before);
    Ok(())
}

#[test]
fn hierarchies_with_passwords_are_used_with_them() -> Result<()> {
    let mut swtpm = a_tpm();
    swtpm.set_passwords("owner-secret", "endorsement-secret")?;
    let mut tpm = open_with_passwords(&swtpm, "owner-secret", "endorsement-secret");
    tpm.ek_certificates(EkKind::P256)?;
    assert!(tpm.endorsement_key(EkKind::P256)?.is_some());
    tpm.create_identity_key(IkKind::P256, IK)?;
    assert_nothing_loaded(&swtpm)
}

#[test]
fn wrong_password_is_named_and_not_printed() -> Result<()> {
    let mut swtpm = a_tpm();
    swtpm.set_passwords("owner-secret", "endorsement-secret")?;
    let mut tpm = open_with_passwords(&swtpm, "wrong-guess", "wrong-guess");
    let errors = [
        ("endorsement", tpm.endorsement_key(EkKind::P256).unwrap_err()),
        ("owner", tpm.create_identity_key(IkKind::P256, IK).unwrap_err()),
    ];
    for (expected, error) in errors {
        assert!(
            matches!(error, TpmError::WrongPassword { hierarchy, .. } if hierarchy == expected),
            "{error}"
        );
        assert!(!error.to_string().contains("wrong-guess"), "{error}");
    }
    assert_nothing_loaded(&swtpm)
}

const SRK_ATTRIBUTES: &str =
    "fixedtpm|fixedparent|sensitivedataorigin|userwithauth|noda|restricted|decrypt";
const SIGNER_ATTRIBUTES: &str = "fixedtpm|fixedparent|sensitivedataorigin|userwithauth|noda|sign";
pub(crate) const EK_ATTRIBUTES: &str =
    "fixedtpm|fixedparent|sensitivedataorigin|adminwithpolicy|restricted|decrypt";
/// PolicySecret(TPM_RH_ENDORSEMENT) (TCG EK Credential Profile 2.5, B.6.2).
pub(crate) const POLICY_A_SHA256: [u8; 32] = [
    0x83, 0x71, 0x97, 0x67, 0x44, 0x84, 0xB3, 0xF8, 0x1A, 0x90, 0xCC, 0x8D, 0x46, 0xA5, 0xD7, 0x24,
    0xFD, 0x52, 0xD7, 0x6E, 0x06, 0x52, 0x0B, 0x64, 0xF2, 0xA1, 0xDA, 0x1B, 0x33, 0x14, 0x69, 0xAA,
];

//! TPM2_ActivateCredential, with credentials that tpm2-tools made.

use anyhow::Result;
use assay_device::tpm::{EkKind, IkKind, Tpm, TpmError};
use assay_tests::Swtpm;

use crate::{EKS, IK, assert_nothing_loaded, name_of, open, open_with_passwords, vendor};

pub(crate) const SECRET: &[u8; 32] = b"a ticket, thirty-two bytes long.";

#[test]
fn credential_of_tpm2_makecredential_opens() -> Result<()> {
    for (kind, made_as) in EKS {
        let swtpm = vendor().device(made_as, 0)?;
        let mut tpm = open(&swtpm);
        let ek = tpm.endorsement_key(kind)?.unwrap();
        let ik = tpm.create_identity_key(IkKind::P256, IK)?;
        let (blob, seed) = make_credential(&swtpm, &ek.bytes, &name_of(&ik), SECRET)?;
        assert_eq!(tpm.activate(kind, IK, &blob, &seed)?.as_slice(), SECRET, "{kind}");
        assert_nothing_loaded(&swtpm)?;
    }
    Ok(())
}

#[test]
fn ek_that_was_made_before_the_tpm_was_reset_is_made_again() -> Result<()> {
    for (kind, made_as) in EKS {
        let mut swtpm = vendor().device(made_as, 0)?;
        let mut tpm = open(&swtpm);
        let ek = tpm.endorsement_key(kind)?.unwrap();
        let ik = tpm.create_identity_key(IkKind::P256, IK)?;
        let (blob, seed) = make_credential(&swtpm, &ek.bytes, &name_of(&ik), SECRET)?;
        swtpm.restart()?;
        for _ in 0..2 {
            assert_eq!(tpm.activate(kind, IK, &blob, &seed)?.as_slice(), SECRET, "{kind}");
            assert_nothing_loaded(&swtpm)?;
        }
    }
    Ok(())
}

#[test]
fn credential_for_another_name_does_not_open() -> Result<()> {
    for (kind, made_as) in EKS {
        let swtpm = vendor().device(made_as, 0)?;
        let mut tpm = open(&swtpm);
        let ek = tpm.endorsement_key(kind)?.unwrap();
        let mut name = name_of(&tpm.create_identity_key(IkKind::P256, IK)?);
        name[33] ^= 1;
        let (blob, seed) = make_credential(&swtpm, &ek.bytes, &name, SECRET)?;
        let error = tpm.activate(kind, IK, &blob, &seed).unwrap_err();
        assert!(matches!(error, TpmError::Refused { .. }), "{kind}: {error}");
        assert_nothing_loaded(&swtpm)?;
    }
    Ok(())
}

#[test]
fn credential_for_another_tpm_does_not_open() -> Result<()> {
    let swtpm = vendor().device(assay_tests::EkKind::P256, 0)?;
    let other = vendor().device(assay_tests::EkKind::P256, 1)?;
    let mut tpm = open(&swtpm);
    let ik = tpm.create_identity_key(IkKind::P256, IK)?;
    let ek = open(&other).endorsement_key(EkKind::P256)?.unwrap();
    let (blob, seed) = make_credential(&other, &ek.bytes, &name_of(&ik), SECRET)?;
    assert!(matches!(tpm.activate(EkKind::P256, IK, &blob, &seed), Err(TpmError::Refused { .. })));
    Ok(())
}

#[test]
fn credential_opens_with_an_endorsement_password() -> Result<()> {
    for (kind, made_as) in EKS {
        let mut swtpm = vendor().device(made_as, 0)?;
        swtpm.set_passwords("owner-secret", "endorsement-secret")?;
        let mut tpm = open_with_passwords(&swtpm, "owner-secret", "endorsement-secret");
        let ek = tpm.endorsement_key(kind)?.unwrap();
        let ik = tpm.create_identity_key(IkKind::P256, IK)?;
        let (blob, seed) = make_credential(&swtpm, &ek.bytes, &name_of(&ik), SECRET)?;
        assert_eq!(tpm.activate(kind, IK, &blob, &seed)?.as_slice(), SECRET, "{kind}");
    }
    Ok(())
}

#[test]
fn wrong_endorsement_password_is_named_at_activation() -> Result<()> {
    let mut swtpm = vendor().device(assay_tests::EkKind::Rsa2048, 0)?;
    let mut tpm = open(&swtpm);
    tpm.create_identity_key(IkKind::P256, IK)?;
    swtpm.set_passwords("owner-secret", "endorsement-secret")?;
    let error = tpm.activate(EkKind::Rsa2048, IK, &[0; 68], &[0; 256]).unwrap_err();
    assert!(matches!(error, TpmError::WrongPassword { hierarchy: "endorsement", .. }), "{error}");
    assert_nothing_loaded(&swtpm)
}

/// Contents of the TPM2B_ID_OBJECT and the TPM2B_ENCRYPTED_SECRET that tpm2-tools make for an EK
/// and a Name.
pub(crate) fn make_credential(
    swtpm: &Swtpm,
    ek_public: &[u8],
    name: &[u8],
    secret: &[u8],
) -> Result<(Vec<u8>, Vec<u8>)> {
    let file = |name: &str| swtpm.work_dir().join(name);
    std::fs::write(
        file("ek.pub"),
        [&u16::try_from(ek_public.len())?.to_be_bytes(), ek_public].concat(),
    )?;
    std::fs::write(file("secret"), secret)?;
    let name: String = name.iter().map(|byte| format!("{byte:02x}")).collect();
    swtpm.tpm2(&[
        "makecredential",
        "-T",
        "none",
        "-u",
        "ek.pub",
        "-s",
        "secret",
        "-n",
        &name,
        "-o",
        "credential",
    ])?;
    // Magic and version, then the two TPM2B (tpm2-tools, lib/files.c).
    let contents = std::fs::read(file("credential"))?;
    let sized = |at: usize| usize::from(u16::from_be_bytes([contents[at], contents[at + 1]]));
    let (blob, seed) = (8, 8 + 2 + sized(8));
    Ok((
        contents[blob + 2..blob + 2 + sized(blob)].to_vec(),
        contents[seed + 2..seed + 2 + sized(seed)].to_vec(),
    ))
}

//! The files an operator may enrol an EK from.

use assay_ca_core::{EkFileError, EkIdentity, RecognisedAs};
use data_encoding::BASE64;

use crate::fixture::*;

fn pem(label: &str, der: &[u8]) -> Vec<u8> {
    format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", BASE64.encode(der)).into_bytes()
}

#[test]
fn every_form_is_recognised_as_the_same_ek() {
    let vendor = Vendor::new("Acme");
    for kind in ["rsa2048", "rsa3072", "p256", "p384"] {
        let ek = SoftwareEk::golden(kind);
        let certificate = vendor.certify(&ek.key(), |_| ())[0].to_vec();
        let spki = ek.key().spki();
        let forms = [
            (RecognisedAs::CertificatePem, pem("CERTIFICATE", &certificate)),
            (RecognisedAs::CertificateDer, certificate),
            (RecognisedAs::PublicKeyPem, pem("PUBLIC KEY", &spki)),
            (RecognisedAs::PublicKeyDer, spki),
            (RecognisedAs::Tpm2bPublic, golden(&format!("software-{kind}.tpm2b"))),
            (RecognisedAs::TpmtPublic, ek.area.encode()),
        ];
        for (form, file) in forms {
            let in_base64 = BASE64.encode(&file);
            let (recognised, identity) = EkIdentity::recognise(&file).unwrap();
            assert_eq!((recognised, identity.ek_id), (form, ek.key().ek_id()), "{kind}");
            if !file.starts_with(b"-----BEGIN") {
                let broken_in_two = format!("{}\r\n{}\n", &in_base64[..64], &in_base64[64..]);
                for text in [in_base64, broken_in_two] {
                    assert_eq!(EkIdentity::recognise(text.as_bytes()).unwrap(), (form, identity.clone()), "{kind}");
                }
            }
            let is_certificate = matches!(form, RecognisedAs::CertificatePem | RecognisedAs::CertificateDer);
            assert_eq!(identity.certificate.is_some(), is_certificate);
            let is_area = matches!(form, RecognisedAs::Tpm2bPublic | RecognisedAs::TpmtPublic);
            assert_eq!(identity.template.is_some(), is_area);
        }
    }
}

#[test]
fn certificate_of_swtpm_is_summarised() {
    let (_, identity) = EkIdentity::recognise(&golden("ek-rsa2048.der")).unwrap();
    let summary = identity.certificate.unwrap();
    assert_eq!(summary.issuer, "CN=swtpm-localca");
    assert_eq!(summary.tpm.unwrap().manufacturer, "id:00001014");
    assert_eq!(identity.key, "RSA-2048");
}

#[test]
fn area_off_template_is_refused() {
    let mut area = golden_area("ek-p256");
    area.attributes.0 ^= 2;
    assert!(matches!(EkIdentity::recognise(&area.encode()), Err(EkFileError::Area(_))));
    assert!(matches!(EkIdentity::recognise(&area.encode_sized()), Err(EkFileError::Area(_))));
    let ik = golden("ik-p256.tpm2b");
    assert!(matches!(EkIdentity::recognise(&ik), Err(EkFileError::Area(_))));
}

#[test]
fn weak_key_is_refused() {
    let mut key = SoftwareEk::golden("rsa2048").key();
    let assay_ca_core::key::PublicKey::Rsa { exponent, .. } = &mut key else { unreachable!() };
    *exponent = 3;
    assert!(matches!(EkIdentity::recognise(&key.spki()), Err(EkFileError::Weak(_))));
}

#[test]
fn key_that_no_template_fits_is_refused() {
    let mut key = SoftwareEk::golden("rsa3072").key();
    let assay_ca_core::key::PublicKey::Rsa { modulus, .. } = &mut key else { unreachable!() };
    modulus.drain(1..65);
    assert!(matches!(EkIdentity::recognise(&key.spki()), Err(EkFileError::NoTemplate { .. })));
}

#[test]
fn only_an_uncertified_rsa_2048_ek_may_be_of_azures_sdks() {
    let check = |file: &[u8]| EkIdentity::recognise(file).unwrap().1.check_azure_sdk();
    let key = SoftwareEk::golden("rsa2048").key();
    check(&key.spki()).unwrap();
    check(&golden("ek-rsa2048.tpm2b")).unwrap();
    assert_eq!(check(&golden("ek-rsa2048.der")), Err(EkFileError::CertifiedEk));
    for other in ["ek-p256.tpm2b", "ek-p384.tpm2b", "ek-rsa3072.tpm2b"] {
        assert!(matches!(check(&golden(other)), Err(EkFileError::NoAzureSdk { .. })), "{other}");
    }
    let p256 = SoftwareEk::golden("p256").key();
    assert!(matches!(check(&p256.spki()), Err(EkFileError::NoAzureSdk { .. })));
}

#[test]
fn other_files_are_refused() {
    for file in [&b""[..], b"\0", b"EK", &[0x30, 0x03, 1, 2, 3], &[0; 100]] {
        assert!(EkIdentity::recognise(file).is_err());
    }
    let private = golden("software-p256.pem");
    assert_eq!(EkIdentity::recognise(&private), Err(EkFileError::OtherPem));
}

//! The files from which an operator may enrol an EK.

use assay_ca_core::{ContainerError, EkFileError, EkIdentity, RecognisedAs, certificates_in};
use data_encoding::BASE64;
use rcgen::ExtendedKeyUsagePurpose;

use crate::fixture::*;
use crate::forge::{oid, tlv};

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
                    assert_eq!(
                        EkIdentity::recognise(text.as_bytes()).unwrap(),
                        (form, identity.clone()),
                        "{kind}"
                    );
                }
            }
            let is_certificate =
                matches!(form, RecognisedAs::CertificatePem | RecognisedAs::CertificateDer);
            assert_eq!(identity.certificate.is_some(), is_certificate);
            let is_area = matches!(form, RecognisedAs::Tpm2bPublic | RecognisedAs::TpmtPublic);
            assert_eq!(identity.template.is_some(), is_area);
        }
    }
}

#[test]
fn device_id_of_the_derived_form_is_only_for_the_ek_that_it_follows_from() {
    let [own, other] = ["p256", "rsa2048"].map(|kind| {
        let (_, identity) = EkIdentity::recognise(&SoftwareEk::golden(kind).key().spki()).unwrap();
        identity
    });
    own.may_be_named(own.derived_device_id.clone()).unwrap();
    own.may_be_named("pump-17".parse().unwrap()).unwrap();
    let refusal = own.may_be_named(other.derived_device_id.clone()).unwrap_err();
    assert!(matches!(refusal, EkFileError::DeviceIdOfAnotherEk { .. }), "{refusal}");
    // The device id that the device gets, and that Azure's tools print.
    let vendor = Vendor::new("Acme");
    let device = Device::with_ek(&vendor, SoftwareEk::golden("p256"));
    assert_eq!(device.evidence().ek.derived_device_id(), own.derived_device_id);
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
    let check = |file: &[u8]| EkIdentity::recognise(file).unwrap().1.of_azure_sdk().map(drop);
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
    let error = EkIdentity::recognise(&private).unwrap_err();
    assert_eq!(error, EkFileError::Container(ContainerError::OtherPem("PRIVATE KEY".into())));
}

/// Kind F, and what mails, Windows and OpenSSL do to PEM.
#[test]
fn a_certificate_is_found_whatever_is_around_it() {
    let vendor = Vendor::new("Acme");
    let ek = SoftwareEk::golden("rsa2048");
    let chain = vendor.certify(&ek.key(), |_| ());
    let certificate = chain[0].to_vec();
    let text = String::from_utf8(pem("CERTIFICATE", &certificate)).unwrap();
    let utf16 = |unit: fn(u16) -> [u8; 2], text: &str| {
        text.encode_utf16().flat_map(unit).collect::<Vec<u8>>()
    };
    let base64 = BASE64.encode(&certificate);
    let base64url = base64.replace('+', "-").replace('/', "_");
    let unpadded = base64url.trim_end_matches('=');
    let padded = |filler: &[u8]| [&certificate[..], filler].concat();
    let json = |certificate: &str| {
        format!("{{\"pubhash\":\"x\",\"certificate\":\"{certificate}\"}}").into_bytes()
    };
    let mut trusted = certificate.clone();
    trusted.extend(tlv(0x30, &tlv(0x0C, b"what OpenSSL trusts it for")));
    let as_pem = [
        [&b"\xEF\xBB\xBF"[..], text.as_bytes()].concat(),
        [&b"\xFF\xFE"[..], &utf16(u16::to_le_bytes, &text)].concat(),
        [&b"\xFE\xFF"[..], &utf16(u16::to_be_bytes, &text)].concat(),
        utf16(u16::to_le_bytes, &text),
        text.lines().map(|line| format!("    {line}\r\n")).collect::<String>().into_bytes(),
        text.replace('\n', " ").into_bytes(),
        format!("Subject: EK\n\n{text}\nregards").into_bytes(),
        pem("TRUSTED CERTIFICATE", &trusted),
        pem("X509 CERTIFICATE", &certificate),
        [text.as_bytes(), &pem("CERTIFICATE", &chain[1])].concat(),
        [&pem("CERTIFICATE", &chain[1])[..], text.as_bytes()].concat(),
    ];
    let in_pkcs7 = pkcs7(&[chain[1].to_vec(), certificate.clone()]);
    let forms = as_pem.into_iter().map(|file| (RecognisedAs::CertificatePem, file)).chain([
        (RecognisedAs::CertificateDer, base64url.clone().into_bytes()),
        (RecognisedAs::CertificateDer, unpadded.as_bytes().to_vec()),
        (RecognisedAs::CertificateDer, base64.trim_end_matches('=').as_bytes().to_vec()),
        (RecognisedAs::CertificatePadded, padded(&[0; 100])),
        (RecognisedAs::CertificatePadded, padded(&[0xFF; 7])),
        (RecognisedAs::CertificatePadded, padded(&[0x11; 188])),
        (RecognisedAs::CertificatePadded, padded(b"left from before")),
        (RecognisedAs::CertificatePkcs7, in_pkcs7.clone()),
        (RecognisedAs::CertificatePkcs7, pem("PKCS7", &in_pkcs7)),
        (RecognisedAs::CertificateJson, json(&base64url.replace('=', "%3D"))),
        (RecognisedAs::CertificateJson, json(unpadded)),
        (RecognisedAs::CertificateJson, json(&text.replace('\n', "\\n"))),
    ]);
    for (position, (form, file)) in forms.enumerate() {
        let (recognised, identity) =
            EkIdentity::recognise(&file).unwrap_or_else(|error| panic!("{position}: {error}"));
        assert_eq!((recognised, identity.ek_id), (form, ek.key().ek_id()), "{position}");
    }
    for broken in [
        &b"{}"[..],
        b"{\"certificate\":7}",
        &json("AAAA"),
        b"-----BEGIN CERTIFICATE-----\nAAAA",
        b"-----BEGIN ",
    ] {
        assert!(EkIdentity::recognise(broken).is_err());
    }
}

#[test]
fn rsa_keys_in_pkcs1_are_recognised() {
    let key = SoftwareEk::golden("rsa2048").key();
    let spki = key.spki();
    // The content of the bit string, after its header, the 15 bytes of the algorithm and the outer
    // header.
    let pkcs1 = &spki[4 + 15 + 5..];
    for file in [pkcs1.to_vec(), pem("RSA PUBLIC KEY", pkcs1), BASE64.encode(pkcs1).into_bytes()] {
        let (form, identity) = EkIdentity::recognise(&file).unwrap();
        assert_eq!((form, identity.ek_id), (RecognisedAs::PublicKeyPkcs1, key.ek_id()));
    }
}

#[test]
fn certificates_for_other_uses_are_no_eks() {
    let vendor = Vendor::new("Acme");
    let key = SoftwareEk::golden("p256").key();
    for usages in
        [vec![], vec![ExtendedKeyUsagePurpose::ServerAuth], vec![ExtendedKeyUsagePurpose::Any]]
    {
        let certificate = &vendor.certify(&key, |params| params.extended_key_usages = usages)[0];
        let error = EkIdentity::recognise(certificate).unwrap_err();
        assert!(matches!(error, EkFileError::OtherUse { .. }), "{error}");
    }
}

#[test]
fn a_file_with_two_eks_is_refused_rather_than_half_read() {
    let vendor = Vendor::new("Acme");
    let both = ["p256", "rsa2048"].map(|kind| {
        pem("CERTIFICATE", &vendor.certify(&SoftwareEk::golden(kind).key(), |_| ())[0])
    });
    assert_eq!(EkIdentity::recognise(&both.concat()), Err(EkFileError::SeveralEks { count: 2 }));
}

#[test]
fn a_bundle_gives_all_its_certificates() {
    let vendor = Vendor::new("Acme");
    let both = [vendor.root.to_vec(), vendor.intermediate.to_vec()];
    for file in [
        both.concat(),
        pkcs7(&both),
        pem("PKCS7", &pkcs7(&both)),
        both.map(|der| pem("CERTIFICATE", &der)).concat(),
    ] {
        assert_eq!(
            certificates_in(&file).unwrap(),
            [vendor.root.clone(), vendor.intermediate.clone()]
        );
    }
    assert_eq!(certificates_in(b"nothing"), Err(ContainerError::NoCertificate));
    let hundreds: Vec<_> = (0..300).map(|_| vendor.root.to_vec()).collect();
    assert_eq!(certificates_in(&pkcs7(&hundreds)).unwrap().len(), 300, "longer than 64 KiB");
}

/// What `openssl crl2pkcs7 -nocrl` makes of certificates.
fn pkcs7(certificates: &[Vec<u8>]) -> Vec<u8> {
    let data = oid(&[0x2A, 0x86, 0x48, 0x86, 0xF7, 0x0D, 0x01, 0x07, 0x01]);
    let signed = [
        tlv(2, &[1]),
        tlv(0x31, &[]),
        tlv(0x30, &data),
        tlv(0xA0, &certificates.concat()),
        tlv(0x31, &[]),
    ];
    let signed_data = oid(&[0x2A, 0x86, 0x48, 0x86, 0xF7, 0x0D, 0x01, 0x07, 0x02]);
    tlv(0x30, &[signed_data, tlv(0xA0, &tlv(0x30, &signed.concat()))].concat())
}

//! Every check, and the problem that a device gets if it fails the check.

use assay_ca_core::key::{PublicKey, SoundKey, WeakKey};
use assay_ca_core::tpm::algorithms::{AlgorithmId, CurveId};
use assay_ca_core::tpm::public::{AreaKey, ObjectAttributes, PublicArea, Scheme};
use assay_ca_core::tpm::template::AreaRefused;
use assay_ca_core::{
    AnchorError, Assurance, BoundKey, Enrolment, Evidence, Records, Registration, Rejection,
    TrustedEk, VendorCertificate, due_device_id,
};
use assay_wire::{Bundle, EkId, EkPublic, ProblemCode};
use rcgen::{BasicConstraints, CertificateParams, CustomExtension, ExtendedKeyUsagePurpose, IsCa};
use time::Duration;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::fixture::*;

fn code<T: std::fmt::Debug>(result: Result<T, Rejection>) -> ProblemCode {
    result.unwrap_err().problem().code
}

/// The code for a device of a trusted vendor whose EK certificate was changed.
fn code_for_certificate(change: impl FnOnce(&mut CertificateParams)) -> ProblemCode {
    let vendor = Vendor::new("Acme");
    let mut device = Device::of(&vendor);
    device.ek_certificates = vendor.certify(&device.ek.key(), change);
    code(Ca::trusting(&vendor).trust(&device, None))
}

/// The code for an enrolled device with this EK area and no certificate.
fn code_for_ek(area: PublicArea) -> ProblemCode {
    let vendor = Vendor::new("Acme");
    let mut device = Device::of(&vendor);
    device.ek.area = area;
    device.ek_certificates.clear();
    // Enrolled, so that only the area can be refused.
    code(Ca::trusting(&vendor).trust(&device, Some(&enrolled())))
}

fn check_ik(area: PublicArea, csr: Vec<u8>) -> Result<BoundKey, Rejection> {
    let mut device = Device::of(&Vendor::new("Acme"));
    (device.ik_area, device.csr) = (area, csr);
    BoundKey::verify(&Evidence::parse(device.request())?)
}

mod ek_trust {
    use super::*;

    #[test]
    fn ek_with_a_vendor_certificate_is_trusted() {
        let vendor = Vendor::new("Acme");
        for kind in ["rsa2048", "rsa3072", "p256", "p384"] {
            let device = Device::with_ek(&vendor, SoftwareEk::golden(kind));
            let ek = Ca::trusting(&vendor).trust(&device, None).unwrap();
            assert_eq!(ek.assurance(), Assurance::VendorCertificate);
            assert_eq!(ek.ek_id(), device.ek.key().ek_id());
        }
    }

    #[test]
    fn ek_without_certificate_or_enrolment_is_refused() {
        let vendor = Vendor::new("Acme");
        let mut device = Device::of(&vendor);
        device.ek_certificates.clear();
        assert_eq!(code(Ca::trusting(&vendor).trust(&device, None)), ProblemCode::EkNotEnrolled);
    }

    #[test]
    fn ek_of_a_vendor_nobody_trusts_is_refused() {
        let device = Device::of(&Vendor::new("Impostor"));
        // Even if it uses the name of a trusted vendor.
        for trusted in ["Acme", "Impostor"] {
            let ca = Ca::trusting(&Vendor::new(trusted));
            assert_eq!(code(ca.trust(&device, None)), ProblemCode::EkCertificateUntrusted);
        }
    }

    #[test]
    fn ek_chain_that_brings_its_own_root_is_refused() {
        let impostor = Vendor::new("Impostor");
        let mut device = Device::of(&impostor);
        device.ek_certificates.push(impostor.root);
        let ca = Ca::trusting(&Vendor::new("Acme"));
        assert_eq!(code(ca.trust(&device, None)), ProblemCode::EkCertificateUntrusted);
    }

    #[test]
    fn ek_certificate_that_expired_is_refused() {
        let code = code_for_certificate(|params| params.not_after = now() - Duration::SECOND);
        assert_eq!(code, ProblemCode::EkCertificateExpired);
    }

    #[test]
    fn ek_certificate_that_is_not_yet_valid_is_refused() {
        let code = code_for_certificate(|params| params.not_before = now() + Duration::SECOND);
        assert_eq!(code, ProblemCode::EkCertificateExpired);
    }

    #[test]
    fn ek_certificate_of_an_expired_intermediate_is_refused() {
        let vendor = Vendor::new("Acme")
            .with_intermediate(|params| params.not_after = now() - Duration::SECOND);
        let device = Device::of(&vendor);
        assert_eq!(
            code(Ca::trusting(&vendor).trust(&device, None)),
            ProblemCode::EkCertificateExpired
        );
    }

    #[test]
    fn ek_certificate_for_another_key_is_refused_even_if_the_ek_is_enrolled() {
        let vendor = Vendor::new("Acme");
        let mut device = Device::of(&vendor);
        device.ek_certificates = Device::of(&vendor).ek_certificates;
        for enrolment in [None, Some(&enrolled())] {
            assert_eq!(
                code(Ca::trusting(&vendor).trust(&device, enrolment)),
                ProblemCode::EkCertificateMismatch
            );
        }
    }

    #[test]
    fn ek_certificate_with_a_forged_signature_is_refused() {
        let vendor = Vendor::new("Acme");
        let mut device = Device::of(&vendor);
        let mut forged = device.ek_certificates[0].to_vec();
        *forged.last_mut().unwrap() ^= 1;
        device.ek_certificates[0] = forged.into();
        assert_eq!(
            code(Ca::trusting(&vendor).trust(&device, None)),
            ProblemCode::EkCertificateUntrusted
        );
    }

    #[test]
    fn ek_certificate_that_is_a_ca_is_refused() {
        let code =
            code_for_certificate(|params| params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained));
        assert_eq!(code, ProblemCode::EkCertificateInvalid);
    }

    #[test]
    fn ek_certificate_without_extended_key_usage_is_refused() {
        let code = code_for_certificate(|params| params.extended_key_usages.clear());
        assert_eq!(code, ProblemCode::EkCertificateInvalid);
    }

    #[test]
    fn ek_certificate_with_empty_extended_key_usage_is_refused() {
        let code = code_for_certificate(|params| {
            params.extended_key_usages.clear();
            params
                .custom_extensions
                .push(CustomExtension::from_oid_content(&[2, 5, 29, 37], vec![0x30, 0]));
        });
        assert_eq!(code, ProblemCode::EkCertificateInvalid);
    }

    #[test]
    fn ek_certificate_for_another_use_is_refused() {
        for usage in [ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::Any] {
            let vendor = Vendor::new("Acme");
            let mut device = Device::of(&vendor);
            device.ek_certificates =
                vendor.certify(&device.ek.key(), |params| params.extended_key_usages = vec![usage]);
            let refusal = Ca::trusting(&vendor).trust(&device, None).unwrap_err();
            assert_eq!(refusal.code(), ProblemCode::EkCertificateInvalid);
            assert!(refusal.to_string().contains("lacks tcg-kp-EKCertificate"), "{refusal}");
        }
    }

    #[test]
    fn ek_certificate_that_names_no_tpm_is_refused() {
        let code = code_for_certificate(|params| params.custom_extensions.clear());
        assert_eq!(code, ProblemCode::EkCertificateInvalid);
        let all = [(1, "id:41434D45"), (2, "Model 7"), (3, "id:00010002")];
        for missing in 0..all.len() {
            let mut attributes = all.to_vec();
            attributes.remove(missing);
            let code = code_for_certificate(|params| {
                params.custom_extensions = vec![tpm_alt_name(&attributes)]
            });
            assert_eq!(
                code,
                ProblemCode::EkCertificateInvalid,
                "without attribute {}",
                missing + 1
            );
        }
    }

    #[test]
    fn ek_certificate_with_an_unknown_critical_extension_is_refused() {
        let code = code_for_certificate(|params| {
            let mut extension = CustomExtension::from_oid_content(&[1, 2, 3, 4], vec![5, 0]);
            extension.set_criticality(true);
            params.custom_extensions.push(extension);
        });
        assert_eq!(code, ProblemCode::EkCertificateInvalid);
    }

    #[test]
    fn ek_certificate_that_is_none_is_refused() {
        let vendor = Vendor::new("Acme");
        let mut device = Device::of(&vendor);
        for garbage in [&b""[..], b"certificate", &[&device.ek_certificates[0][..], &[0]].concat()]
        {
            device.ek_certificates[0] = garbage.to_vec().into();
            assert_eq!(
                code(Ca::trusting(&vendor).trust(&device, None)),
                ProblemCode::EkCertificateInvalid
            );
        }
    }

    #[test]
    fn ek_chain_that_is_too_long_is_refused() {
        let mut vendor = Vendor::new("Acme");
        let intermediates = vendor.lengthen(6);
        let device = Device::of(&vendor);
        let anchors = trusting(intermediates.into_iter().chain([vendor.root.clone()]));
        let mut ca = Ca::trusting(&vendor);
        ca.anchors = anchors;
        let mut leaf_only = device;
        leaf_only.ek_certificates.truncate(1);
        assert_eq!(code(ca.trust(&leaf_only, None)), ProblemCode::EkCertificateUntrusted);
    }

    #[test]
    fn ek_chain_may_be_completed_by_configured_intermediates() {
        let mut vendor = Vendor::new("Acme");
        let intermediates = vendor.lengthen(4);
        let mut device = Device::of(&vendor);
        device.ek_certificates.truncate(1);
        let mut ca = Ca::trusting(&vendor);
        assert_eq!(code(ca.trust(&device, None)), ProblemCode::EkCertificateUntrusted);
        ca.anchors = trusting(intermediates.into_iter().chain([vendor.root.clone()]));
        ca.trust(&device, None).unwrap();
    }

    #[test]
    fn configured_intermediate_must_be_valid_whenever_it_is_used() {
        let vendor = Vendor::new("Acme")
            .with_intermediate(|params| params.not_after = now() + Duration::SECOND);
        let mut device = Device::of(&vendor);
        device.ek_certificates.truncate(1);
        let anchors = trusting([vendor.root.clone(), vendor.intermediate.clone()]);
        let verify_at = |now| TrustedEk::verify(&device.evidence().ek, &anchors, None, now);
        verify_at(now()).unwrap();
        assert_eq!(
            code(verify_at(now() + Duration::seconds(2))),
            ProblemCode::EkCertificateExpired
        );
    }

    /// The signature over a configured intermediate is remembered, but only for the signed bytes.
    #[test]
    fn signature_of_a_configured_intermediate_vouches_for_nothing_else() {
        let (vendor, forger) = (Vendor::new("Acme"), Vendor::new("Acme"));
        let (_, genuine) = X509Certificate::from_der(&vendor.intermediate).unwrap();
        let (_, forged) = X509Certificate::from_der(&forger.intermediate).unwrap();
        let signed = forged.tbs_certificate.as_ref();
        let signature = &vendor.intermediate[genuine.tbs_certificate.as_ref().len() + HEADER..];
        let length = u16::try_from(signed.len() + signature.len()).unwrap().to_be_bytes();
        let forged = [&[0x30, 0x82], &length[..], signed, signature].concat();
        assert!(X509Certificate::from_der(&forged).unwrap().0.is_empty());

        let mut device = Device::of(&forger);
        device.ek_certificates[1] = forged.into();
        let mut ca = Ca::trusting(&vendor);
        ca.anchors = trusting([vendor.root.clone(), vendor.intermediate.clone()]);
        assert_eq!(code(ca.trust(&device, None)), ProblemCode::EkCertificateUntrusted);
    }

    /// Tag and length of a certificate of more than 255 bytes.
    const HEADER: usize = 4;

    #[test]
    fn ek_certificate_by_the_root_itself_is_trusted() {
        let vendor = Vendor::new("Acme");
        let mut device = Device::of(&vendor);
        device.ek_certificates = vendor.certify_by_root(&device.ek.key());
        Ca::trusting(&vendor).trust(&device, None).unwrap();
    }

    #[test]
    fn configured_intermediate_without_its_root_is_trusted_for_nothing() {
        let vendor = Vendor::new("Acme");
        let anchors = trusting([vendor.intermediate.clone()]);
        let result = TrustedEk::verify(&Device::of(&vendor).evidence().ek, &anchors, None, now());
        assert_eq!(code(result), ProblemCode::EkCertificateUntrusted);
    }

    #[test]
    fn anchors_are_ca_certificates_that_signed_themselves() {
        let vendor = Vendor::new("Acme");
        let leaf = Device::of(&vendor).ek_certificates[0].clone();
        assert!(matches!(
            VendorCertificate::read(&leaf),
            Err(AnchorError::NoIssuer { .. } | AnchorError::NoName)
        ));
        assert!(matches!(VendorCertificate::read(b"garbage"), Err(AnchorError::Unreadable { .. })));
        let mut forged = vendor.root.to_vec();
        *forged.last_mut().unwrap() ^= 1;
        assert!(matches!(VendorCertificate::read(&forged), Err(AnchorError::NotSelfSigned { .. })));
    }

    #[test]
    fn enrolled_ek_needs_no_certificate_a_vendor_vouches_for() {
        let vendor = Vendor::new("Acme");
        let mut device = Device::of(&Vendor::new("Impostor"));
        let ca = Ca::trusting(&vendor);
        assert_eq!(
            ca.trust(&device, Some(&enrolled())).unwrap().assurance(),
            Assurance::EnrolmentList
        );
        device.ek_certificates.clear();
        assert_eq!(
            ca.trust(&device, Some(&enrolled())).unwrap().assurance(),
            Assurance::EnrolmentList
        );
        let certified = Device::of(&vendor);
        assert_eq!(
            ca.trust(&certified, Some(&enrolled())).unwrap().assurance(),
            Assurance::VendorCertificate
        );
    }
}

mod ek_template {
    use super::*;

    const KINDS: [&str; 4] = ["rsa2048", "rsa3072", "p256", "p384"];

    #[test]
    fn ek_off_template_in_any_attribute_is_refused() {
        for kind in KINDS {
            for bit in 0..32 {
                let mut area = golden_area(&format!("ek-{kind}"));
                area.attributes.0 ^= 1 << bit;
                assert_eq!(code_for_ek(area), ProblemCode::EkOffTemplate, "{kind}, bit {bit}");
            }
        }
    }

    #[test]
    fn ek_off_template_in_any_byte_of_its_policy_is_refused() {
        for kind in KINDS {
            let golden = golden_area(&format!("ek-{kind}"));
            for byte in 0..golden.auth_policy.len() {
                let mut area = golden.clone();
                area.auth_policy[byte] ^= 1;
                assert_eq!(code_for_ek(area), ProblemCode::EkOffTemplate, "{kind}, byte {byte}");
            }
            assert_eq!(
                code_for_ek(PublicArea { auth_policy: vec![], ..golden }),
                ProblemCode::EkOffTemplate
            );
        }
    }

    #[test]
    fn ek_off_template_in_its_hash_is_refused() {
        for kind in KINDS {
            for hash in
                [AlgorithmId::SHA1, AlgorithmId::SHA256, AlgorithmId::SHA384, AlgorithmId::SHA512]
            {
                let golden = golden_area(&format!("ek-{kind}"));
                if hash != golden.name_alg {
                    let area = PublicArea { name_alg: hash, ..golden };
                    assert_eq!(code_for_ek(area), ProblemCode::EkOffTemplate, "{kind}, {hash}");
                }
            }
        }
    }

    #[test]
    fn ek_off_template_in_its_symmetric_is_refused() {
        for kind in KINDS {
            let golden = golden_area(&format!("ek-{kind}"));
            let symmetric = golden.symmetric.unwrap();
            let mut other_width = symmetric;
            other_width.key_bits = 384 - symmetric.key_bits;
            let mut other_mode = symmetric;
            other_mode.mode = AlgorithmId(0x0042);
            for symmetric in [None, Some(other_width), Some(other_mode)] {
                let area = PublicArea { symmetric, ..golden.clone() };
                assert_eq!(code_for_ek(area), ProblemCode::EkOffTemplate, "{kind}, {symmetric:?}");
            }
        }
    }

    #[test]
    fn ek_off_template_in_its_scheme_is_refused() {
        for kind in KINDS {
            let golden = golden_area(&format!("ek-{kind}"));
            let algorithm = match golden.key {
                AreaKey::Rsa { .. } => AlgorithmId::OAEP,
                AreaKey::Ecc { .. } => AlgorithmId::ECDH,
            };
            let scheme = Some(Scheme { algorithm, hash: Some(golden.name_alg) });
            assert_eq!(
                code_for_ek(PublicArea { scheme, ..golden }),
                ProblemCode::EkOffTemplate,
                "{kind}"
            );
        }
    }

    #[test]
    fn ek_off_template_in_its_kdf_is_refused() {
        let mut area = golden_area("ek-p256");
        let AreaKey::Ecc { kdf, .. } = &mut area.key else { unreachable!() };
        *kdf = Some(Scheme {
            algorithm: AlgorithmId::KDF1_SP800_56A,
            hash: Some(AlgorithmId::SHA256),
        });
        assert_eq!(code_for_ek(area), ProblemCode::EkOffTemplate);
    }

    #[test]
    fn ek_on_another_curve_or_of_another_size_is_refused() {
        let mut area = golden_area("ek-p256");
        let AreaKey::Ecc { curve, .. } = &mut area.key else { unreachable!() };
        *curve = CurveId(0x0010);
        assert_eq!(code_for_ek(area), ProblemCode::EkOffTemplate);

        let mut area = golden_area("ek-rsa3072");
        let AreaKey::Rsa { key_bits, .. } = &mut area.key else { unreachable!() };
        *key_bits = 4096;
        assert_eq!(code_for_ek(area), ProblemCode::EkOffTemplate);

        // A shorter key than the area states, then a longer one.
        let mut area = golden_area("ek-rsa3072");
        let AreaKey::Rsa { modulus, .. } = &mut area.key else { unreachable!() };
        modulus[0] &= 0x7F;
        assert_eq!(code_for_ek(area), ProblemCode::EkOffTemplate);
        let PublicKey::Rsa { modulus, .. } = golden_area("ek-rsa3072").public_key().unwrap() else {
            unreachable!()
        };
        assert_eq!(
            code_for_ek(with_modulus(golden_area("ek-rsa2048"), &modulus)),
            ProblemCode::EkOffTemplate
        );
    }

    #[test]
    fn ek_that_spells_out_the_default_exponent_is_refused() {
        let mut area = golden_area("ek-rsa2048");
        let AreaKey::Rsa { exponent, .. } = &mut area.key else { unreachable!() };
        *exponent = 65537;
        assert_eq!(code_for_ek(area), ProblemCode::EkOffTemplate);
    }

    /// Every bit before the key itself.
    #[test]
    fn ek_area_changed_in_any_bit_is_refused() {
        for kind in KINDS {
            let golden = golden_area(&format!("ek-{kind}"));
            let unique = match &golden.key {
                AreaKey::Rsa { modulus, .. } => modulus.len(),
                AreaKey::Ecc { x, y, .. } => x.len() + 2 + y.len(),
            };
            let encoded = golden.encode();
            for bit in 0..8 * (encoded.len() - unique) {
                let mut changed = encoded.clone();
                changed[bit / 8] ^= 1 << (bit % 8);
                let refusal = match PublicArea::parse(&changed) {
                    Ok(area) => code_for_ek(area),
                    Err(_) => continue,
                };
                assert!(
                    matches!(refusal, ProblemCode::EkOffTemplate | ProblemCode::EkWeak),
                    "{kind}, bit {bit}"
                );
            }
        }
    }

    #[test]
    fn ek_area_that_cannot_be_read_is_malformed() {
        let device = Device::of(&Vendor::new("Acme"));
        let area = device.ek.area.encode();
        for bytes in [&b"public area"[..], &area[..100], &[&area[..], &[0]].concat()] {
            let request =
                Bundle { ek_public: bytes.to_vec().try_into().unwrap(), ..device.request() };
            assert_eq!(code(Evidence::parse(request)), ProblemCode::Malformed);
        }
    }

    #[test]
    fn ek_that_is_neither_rsa_nor_ecc_is_refused() {
        const TPM_ALG_KEYEDHASH: [u8; 2] = [0, 8];
        let device = Device::of(&Vendor::new("Acme"));
        let mut area = device.ek.area.encode();
        area[..2].copy_from_slice(&TPM_ALG_KEYEDHASH);
        let request = Bundle { ek_public: area.try_into().unwrap(), ..device.request() };
        assert_eq!(code(Evidence::parse(request)), ProblemCode::EkOffTemplate);
    }

    fn in_brief(device: &Device, index: u32) -> Result<Evidence, Rejection> {
        Evidence::parse(Bundle { ek_public: EkPublic::OfCertificate(index), ..device.request() })
    }

    #[test]
    fn ek_in_brief_is_that_of_its_certificate_on_the_template_of_the_index() {
        let vendor = Vendor::new("Acme");
        for (kind, index) in [
            ("rsa2048", 0x01C0_0002),
            ("p256", 0x01C0_000A),
            ("p384", 0x01C0_0016),
            ("rsa3072", 0x01C0_001C),
        ] {
            let device = Device::with_ek(&vendor, SoftwareEk::golden(kind));
            let (brief, full) = (in_brief(&device, index).unwrap(), device.evidence());
            assert_eq!(format!("{:?}", brief.ek), format!("{:?}", full.ek), "{kind}");
        }
        for (kind, index) in [("rsa2048", 0x01C0_0012), ("p256", 0x01C0_0014)] {
            let mut device = Device::with_ek(&vendor, SoftwareEk::golden(kind));
            let brief = in_brief(&device, index).unwrap();
            device.ek.area = on_high_range(device.ek.area);
            assert_eq!(
                format!("{:?}", brief.ek),
                format!("{:?}", device.evidence().ek),
                "{kind}, high range"
            );
        }
    }

    #[test]
    fn ek_in_brief_on_a_template_that_is_unknown_or_for_other_keys_is_refused() {
        let device = Device::of(&Vendor::new("Acme"));
        for index in [0, 0x01C0_0003, 0x01C0_0002, 0x01C0_0016, u32::MAX] {
            assert_eq!(code(in_brief(&device, index)), ProblemCode::EkOffTemplate, "{index:#x}");
        }
    }

    #[test]
    fn ek_in_brief_without_a_readable_certificate_is_refused() {
        let mut device = Device::of(&Vendor::new("Acme"));
        for certificates in [vec![], vec![vec![0x30, 0].into()]] {
            device.ek_certificates = certificates;
            assert_eq!(code(in_brief(&device, 0x01C0_000A)), ProblemCode::EkCertificateInvalid);
        }
    }

    #[test]
    fn weak_ek_in_brief_is_refused() {
        let vendor = Vendor::new("Acme");
        let mut device = Device::with_ek(&vendor, SoftwareEk::golden("rsa2048"));
        let PublicKey::Rsa { mut modulus, exponent } = device.ek.key() else { unreachable!() };
        *modulus.last_mut().unwrap() ^= 1;
        device.ek_certificates = vendor.certify(&PublicKey::Rsa { modulus, exponent }, |_| ());
        let evidence = in_brief(&device, 0x01C0_0002).unwrap();
        let trusted = TrustedEk::verify(&evidence.ek, &Ca::trusting(&vendor).anchors, None, now());
        assert_eq!(code(trusted), ProblemCode::EkWeak);
    }

    #[test]
    fn refusal_names_the_attribute_and_both_values() {
        let vendor = Vendor::new("Acme");
        let mut device = Device::of(&vendor);
        device.ek.area.attributes.0 ^= ObjectAttributes::FIXED_TPM.0;
        let refusal = Ca::trusting(&vendor).trust(&device, None).unwrap_err().to_string();
        for part in ["objectAttributes (fixedTPM)", "0x000300b0", "0x000300b2", "EK L-2 (P-256)"] {
            assert!(refusal.contains(part), "{refusal}");
        }
    }
}

mod weak_keys {
    use super::*;

    fn roca() -> Vec<u8> {
        data_encoding::HEXLOWER.decode(golden("roca-rsa2048.hex").trim_ascii()).unwrap()
    }

    fn moduli() -> [(Vec<u8>, WeakKey); 3] {
        let PublicKey::Rsa { modulus, .. } = golden_area("ek-rsa2048").public_key().unwrap() else {
            unreachable!()
        };
        let (mut even, mut short) = (modulus.clone(), modulus);
        *even.last_mut().unwrap() &= 0xFE;
        short[0] &= 0x7F;
        let bits = 2048 - short[0].leading_zeros() as usize;
        [
            (roca(), WeakKey::Roca),
            (even, WeakKey::EvenModulus),
            (short, WeakKey::ShortModulus { bits }),
        ]
    }

    #[test]
    fn ek_with_a_weak_modulus_is_refused() {
        for (modulus, weakness) in moduli() {
            let area = with_modulus(golden_area("ek-rsa2048"), &modulus);
            assert_eq!(SoundKey::new(area.public_key().unwrap()), Err(weakness));
            assert_eq!(code_for_ek(area), ProblemCode::EkWeak);
        }
    }

    #[test]
    fn ek_of_rsa_1024_is_refused() {
        let mut area = golden_area("ek-rsa2048");
        let AreaKey::Rsa { key_bits, modulus, .. } = &mut area.key else { unreachable!() };
        *key_bits = 1024;
        modulus.truncate(128);
        assert_eq!(code_for_ek(area), ProblemCode::EkWeak);
    }

    #[test]
    fn ek_with_exponent_3_is_refused() {
        let mut area = golden_area("ek-rsa2048");
        let AreaKey::Rsa { exponent, .. } = &mut area.key else { unreachable!() };
        *exponent = 3;
        assert_eq!(code_for_ek(area), ProblemCode::EkWeak);
    }

    #[test]
    fn ek_off_its_curve_is_refused() {
        for kind in ["p256", "p384"] {
            let golden = golden_area(&format!("ek-{kind}"));
            let AreaKey::Ecc { x, y, .. } = &golden.key else { unreachable!() };
            let zero = vec![0; x.len()];
            let one_more = {
                let mut y = y.clone();
                y[20] ^= 1;
                y
            };
            for (x, y) in [(x, &one_more), (&zero, &zero), (x, &zero)] {
                let area = with_point(golden.clone(), &[&[4], &x[..], y].concat());
                assert_eq!(code_for_ek(area), ProblemCode::EkWeak);
            }
        }
    }

    /// A point of P-256 whose coordinates lack their leading zeros, or have one too many, is not in
    /// a canonical area.
    #[test]
    fn ek_with_coordinates_of_another_width_is_refused() {
        let golden = golden_area("ek-p256");
        let resized = |change: fn(&mut Vec<u8>)| {
            let mut area = golden.clone();
            let AreaKey::Ecc { x, .. } = &mut area.key else { unreachable!() };
            change(x);
            area
        };
        assert_eq!(
            code_for_ek(resized(|x| {
                x.remove(0);
            })),
            ProblemCode::EkWeak
        );
        assert_eq!(code_for_ek(resized(|x| x.insert(0, 0))), ProblemCode::EkWeak);
    }

    #[test]
    fn ik_that_is_weak_is_refused() {
        for (modulus, _) in moduli() {
            let area = with_modulus(golden_area("ik-rsa2048"), &modulus);
            assert_eq!(code(check_ik(area, vec![])), ProblemCode::IkWeak);
        }
        let mut area = golden_area("ik-rsa2048");
        let AreaKey::Rsa { exponent, .. } = &mut area.key else { unreachable!() };
        *exponent = 3;
        assert_eq!(code(check_ik(area, vec![])), ProblemCode::IkWeak);
        let off_curve = with_point(golden_area("ik-p256"), &[4; 65]);
        assert_eq!(code(check_ik(off_curve, vec![])), ProblemCode::IkWeak);
    }
}

mod ik {
    use super::*;

    #[test]
    fn ik_on_template_is_bound() {
        for (area, ik) in [p256_ik(), p384_ik(), rsa_ik()] {
            let bound = check_ik(area, csr(&ik)).unwrap();
            assert_eq!(bound.spki(), rcgen::PublicKeyData::subject_public_key_info(&ik));
        }
    }

    #[test]
    fn ik_off_template_in_any_attribute_is_refused() {
        for make in [p256_ik, p384_ik, rsa_ik] {
            for bit in 0..32 {
                let (mut area, ik) = make();
                area.attributes.0 ^= 1 << bit;
                assert_eq!(code(check_ik(area, csr(&ik))), ProblemCode::IkOffTemplate, "bit {bit}");
            }
        }
    }

    #[test]
    fn ik_without_fixed_tpm_is_refused_by_name() {
        let (mut area, ik) = p256_ik();
        area.attributes.0 ^= ObjectAttributes::FIXED_TPM.0;
        let Err(Rejection::IkOffTemplate(AreaRefused::OffTemplate {
            field, expected, found, ..
        })) = check_ik(area, csr(&ik))
        else {
            panic!("accepted, or refused for another reason");
        };
        assert_eq!(
            (&field[..], &expected[..], &found[..]),
            ("objectAttributes (fixedTPM)", "0x00040472", "0x00040470")
        );
    }

    #[test]
    fn ik_with_a_policy_is_refused() {
        let (mut area, ik) = p256_ik();
        area.auth_policy = vec![0; 32];
        assert_eq!(code(check_ik(area, csr(&ik))), ProblemCode::IkOffTemplate);
    }

    #[test]
    fn ik_with_another_hash_scheme_or_symmetric_is_refused() {
        for make in [p256_ik, p384_ik, rsa_ik] {
            let (golden, ik) = make();
            for name_alg in [AlgorithmId::SHA1, AlgorithmId::SHA384, AlgorithmId::SHA512] {
                let area = PublicArea { name_alg, ..golden.clone() };
                assert_eq!(code(check_ik(area, csr(&ik))), ProblemCode::IkOffTemplate);
            }
            let symmetric = golden_area("ek-p256").symmetric;
            let area = PublicArea { symmetric, ..golden.clone() };
            assert_eq!(code(check_ik(area, csr(&ik))), ProblemCode::IkOffTemplate);
            let scheme = match golden.scheme {
                Some(_) => None,
                None => {
                    Some(Scheme { algorithm: AlgorithmId::RSAPSS, hash: Some(AlgorithmId::SHA256) })
                }
            };
            let area = PublicArea { scheme, ..golden };
            assert_eq!(code(check_ik(area, csr(&ik))), ProblemCode::IkOffTemplate);
        }
    }

    #[test]
    fn csr_for_another_key_is_refused() {
        let ((area, _), (_, other)) = (p256_ik(), p256_ik());
        assert_eq!(code(check_ik(area, csr(&other))), ProblemCode::CsrKeyMismatch);
        let ((area, _), (_, other)) = (p256_ik(), rsa_ik());
        assert_eq!(code(check_ik(area, csr(&other))), ProblemCode::CsrKeyMismatch);
    }

    #[test]
    fn csr_with_a_bad_signature_is_refused() {
        for (area, ik) in [p256_ik(), p384_ik(), rsa_ik()] {
            let mut csr = csr(&ik);
            *csr.last_mut().unwrap() ^= 1;
            assert_eq!(code(check_ik(area, csr)), ProblemCode::CsrSignatureInvalid);
        }
    }

    #[test]
    fn csr_with_another_signature_algorithm_is_refused() {
        let (area, ik) = p256_ik();
        // Writes ecdsa-with-SHA1 (1.2.840.10045.4.1) where the request has ecdsa-with-SHA256.
        let (sha256, sha1) = (data(b"06082a8648ce3d040302"), data(b"06082a8648ce3d040101"));
        let mut csr = csr(&ik);
        let at = csr.windows(sha256.len()).rposition(|window| window == sha256).unwrap();
        csr[at..at + sha1.len()].copy_from_slice(&sha1);
        let refusal = check_ik(area, csr).unwrap_err();
        assert_eq!(refusal.code(), ProblemCode::CsrInvalid);
        assert!(
            refusal.to_string().contains("its signature algorithm 1.2.840.10045.4.1"),
            "{refusal}"
        );
    }

    fn data(hex: &[u8]) -> Vec<u8> {
        data_encoding::HEXLOWER.decode(hex).unwrap()
    }

    /// Outside of the signed part, there is only one spelling.
    #[test]
    fn csr_that_is_not_der_is_refused() {
        let (area, ik) = p256_ik();
        let mut csr = csr(&ik);
        // The signature's BIT STRING says that its last bit is unused.
        let (_, parsed) = X509CertificationRequest::from_der(&csr).unwrap();
        let at = csr.len() - parsed.signature_value.data.len() - 1;
        csr[at] = 1;
        assert_eq!(code(check_ik(area, csr)), ProblemCode::CsrInvalid);
    }

    #[test]
    fn csr_that_is_none_is_refused() {
        let (area, ik) = p256_ik();
        for csr in [vec![], b"request".to_vec(), [csr(&ik), vec![0]].concat()] {
            assert_eq!(code(check_ik(area.clone(), csr)), ProblemCode::CsrInvalid);
        }
    }
}

mod admission {
    use super::*;

    const OTHER: [u8; 32] = [7; 32];

    fn registered(device_id: &str) -> Option<Registration> {
        Some(Registration {
            device_id: device_id.parse().unwrap(),
            certificate: None,
            recent_certificates: 0,
        })
    }

    fn named(device_id: &str) -> Option<Enrolment> {
        Some(Enrolment { device_id: Some(device_id.parse().unwrap()), ..Enrolment::default() })
    }

    #[test]
    fn device_gets_the_id_derived_from_its_ek() {
        let vendor = Vendor::new("Acme");
        let mut device = Device::of(&vendor);
        device.ek.area = golden_area("software-p256");
        device.ek_certificates = vendor.certify(&device.ek.key(), |_| ());
        let admitted = Ca::trusting(&vendor).admit(&device, &nothing_on_record()).unwrap();
        use sha2::Digest;
        let digest = sha2::Sha256::digest(golden("software-p256.tpm2b"));
        let expected = data_encoding::BASE32_NOPAD.encode(&digest).to_lowercase();
        assert_eq!(admitted.device_id().as_str(), expected);
        // The device may also ask for this id.
        Ca::trusting(&vendor).admit(&device.asking_for(&expected), &nothing_on_record()).unwrap();
    }

    /// An EK certificate is not secret, and vouches only for the key. So another template must not
    /// make another device of the same EK.
    #[test]
    fn ek_has_one_derived_id_whichever_template_it_is_shown_on() {
        let vendor = Vendor::new("Acme");
        for kind in ["rsa2048", "p256"] {
            let mut device = Device::with_ek(&vendor, SoftwareEk::golden(kind));
            let ca = Ca::trusting(&vendor);
            let low = ca.admit(&device, &nothing_on_record()).unwrap();
            device.ek.area = on_high_range(device.ek.area);
            let high = ca.admit(&device, &nothing_on_record()).unwrap();
            assert_eq!(low.device_id(), high.device_id(), "{kind}");
        }
    }

    #[test]
    fn device_gets_the_id_of_its_enrolment_and_keeps_that_of_its_registration() {
        let vendor = Vendor::new("Acme");
        let device = Device::of(&vendor);
        let mut records = Records { enrolment: named("pump-1"), ..nothing_on_record() };
        assert_eq!(
            Ca::trusting(&vendor).admit(&device, &records).unwrap().device_id().as_str(),
            "pump-1"
        );
        records.registration = registered("pump-0");
        assert_eq!(
            Ca::trusting(&vendor).admit(&device, &records).unwrap().device_id().as_str(),
            "pump-0"
        );
        let derived = device.evidence().ek.derived_device_id();
        let due =
            due_device_id(&derived, records.enrolment.as_ref(), records.registration.as_ref());
        assert_eq!(due.as_str(), "pump-0");
    }

    #[test]
    fn disabled_device_is_refused() {
        let vendor = Vendor::new("Acme");
        let device = Device::of(&vendor);
        let stranger = Records { disabled: true, ..nothing_on_record() };
        let enrolled = Records { enrolment: Some(enrolled()), ..stranger.clone() };
        let registered = Records { registration: registered("pump-1"), ..stranger.clone() };
        for records in [stranger, enrolled, registered] {
            assert_eq!(
                code(Ca::trusting(&vendor).admit(&device, &records)),
                ProblemCode::DeviceDisabled
            );
        }
    }

    #[test]
    fn device_id_of_another_ek_is_refused() {
        let vendor = Vendor::new("Acme");
        let device = Device::of(&vendor).asking_for("pump-1");
        // Even if an enrolment grants it.
        let id_holder = Some(EkId::from(OTHER));
        let records = Records { id_holder, enrolment: named("pump-1"), ..nothing_on_record() };
        assert_eq!(
            code(Ca::trusting(&vendor).admit(&device, &records)),
            ProblemCode::DeviceIdTaken
        );
    }

    #[test]
    fn nobody_learns_whether_another_has_a_device_id() {
        let vendor = Vendor::new("Acme");
        let device = Device::of(&vendor).asking_for("pump-1");
        let refusal = |id_holder| {
            let records = Records { id_holder, ..nothing_on_record() };
            Ca::trusting(&vendor).admit(&device, &records).unwrap_err()
        };
        assert_eq!(refusal(Some(EkId::from(OTHER))), refusal(None));
        assert_eq!(refusal(None).code(), ProblemCode::DeviceIdNotEnrolled);
    }

    #[test]
    fn device_may_hold_its_own_id() {
        let vendor = Vendor::new("Acme");
        let device = Device::of(&vendor).asking_for("pump-1");
        let id_holder = Some(device.evidence().ek.ek_id());
        let records =
            Records { registration: registered("pump-1"), id_holder, ..nothing_on_record() };
        Ca::trusting(&vendor).admit(&device, &records).unwrap();
    }

    #[test]
    fn ek_under_a_second_id_is_refused() {
        let vendor = Vendor::new("Acme");
        let device = Device::of(&vendor).asking_for("pump-2");
        for id_holder in [None, Some(EkId::from(OTHER))] {
            let records =
                Records { registration: registered("pump-1"), id_holder, ..nothing_on_record() };
            assert_eq!(
                code(Ca::trusting(&vendor).admit(&device, &records)),
                ProblemCode::EkRegistered
            );
        }
    }

    #[test]
    fn ek_that_is_not_on_record_is_refused_if_another_of_its_tpm_is() {
        let vendor = Vendor::new("Acme");
        let device = Device::of(&vendor);
        let admit = |records: Records| Ca::trusting(&vendor).admit(&device, &records);
        let other = Records { other_ek: Some(EkId::from(OTHER)), ..nothing_on_record() };
        assert_eq!(code(admit(other.clone())), ProblemCode::OtherEkOnRecord);
        admit(Records { enrolment: Some(enrolled()), ..other.clone() }).unwrap();
        admit(Records { registration: registered("pump-1"), ..other.clone() }).unwrap();
        assert_eq!(code(admit(Records { disabled: true, ..other })), ProblemCode::DeviceDisabled);
    }

    #[test]
    fn device_id_that_no_enrolment_grants_is_refused() {
        let vendor = Vendor::new("Acme");
        let device = Device::of(&vendor).asking_for("pump-2");
        for enrolment in [None, Some(enrolled()), named("pump-1")] {
            let records = Records { enrolment, ..nothing_on_record() };
            assert_eq!(
                code(Ca::trusting(&vendor).admit(&device, &records)),
                ProblemCode::DeviceIdNotEnrolled
            );
        }
    }
}

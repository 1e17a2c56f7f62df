//! What is in a device certificate, and what is not.

use std::time::Duration as StdDuration;

use assay_ca_core::{
    Assurance, Authority, Fault, ISSUING_LIFETIME, Issued, Issuer, IssuerError, Prepared, Profile,
    Proven, Readmitted, Records,
};
use assay_wire::Identity;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, UnixTime};
use sha2::{Digest, Sha256};
use time::{Duration, OffsetDateTime};
use webpki::{EndEntityCert, KeyUsage};
use x509_parser::prelude::{FromDer, GeneralName, ParsedExtension, X509Certificate};

use crate::fixture::*;

fn readmitted(ca: &mut Ca, device: &Device, records: &Records) -> Readmitted {
    let challenge = ca.challenge(device, records).unwrap();
    Readmitted::decide(ca.prove(&device.answer(&challenge)).unwrap(), records).unwrap()
}

fn issue_at(
    ca: &mut Ca,
    device: &Device,
    records: &Records,
    time: OffsetDateTime,
) -> Issued<Proven> {
    let readmitted = readmitted(ca, device, records);
    let prepared = Prepared::<Proven>::new(
        readmitted,
        &Profile::default(),
        ca.issuers.current(now()),
        time,
        &mut ca.rng,
    )
    .unwrap();
    Issued::<Proven>::sign(prepared).unwrap()
}

fn issue() -> (Ca, Device, Issued<Proven>) {
    let vendor = Vendor::new("Acme");
    let (mut ca, device) = (Ca::trusting(&vendor), Device::of(&vendor));
    let issued = issue_at(&mut ca, &device, &nothing_on_record(), now());
    (ca, device, issued)
}

fn verify(
    ca: &Ca,
    leaf: &[u8],
    usage: KeyUsage,
    time: OffsetDateTime,
) -> Result<(), webpki::Error> {
    let anchor = webpki::anchor_from_trusted_cert(&ca.root)?;
    let chain = ca.issuers.current(now()).chain(leaf).unwrap();
    let intermediates: Vec<_> =
        chain[1..].iter().map(|der| CertificateDer::from(der.to_vec())).collect();
    let time =
        UnixTime::since_unix_epoch(StdDuration::from_secs(time.unix_timestamp().unsigned_abs()));
    let leaf = CertificateDer::from(leaf);
    let end_entity = EndEntityCert::try_from(&leaf)?;
    end_entity
        .verify_for_usage(
            webpki::ALL_VERIFICATION_ALGS,
            &[anchor],
            &intermediates,
            time,
            usage,
            None,
            None,
        )
        .map(drop)
}

#[test]
fn chain_verifies_for_clients_only() {
    let (ca, _, issued) = issue();
    verify(&ca, issued.der(), KeyUsage::client_auth(), now()).unwrap();
    verify(&ca, issued.der(), KeyUsage::server_auth(), now()).unwrap_err();
}

#[test]
fn every_kind_of_ik_is_certified() {
    let vendor = Vendor::new("Acme");
    let mut ca = Ca::trusting(&vendor);
    for (area, ik) in [p256_ik(), p384_ik(), rsa_ik()] {
        let mut device = Device::of(&vendor);
        (device.ik_area, device.csr) = (area, csr(&ik));
        let issued = issue_at(&mut ca, &device, &nothing_on_record(), now());
        let (_, certificate) = X509Certificate::from_der(issued.der()).unwrap();
        assert_eq!(
            certificate.public_key().raw,
            rcgen::PublicKeyData::subject_public_key_info(&ik)
        );
        verify(&ca, issued.der(), KeyUsage::client_auth(), now()).unwrap();
    }
}

#[test]
fn profile_decides_and_the_csr_does_not() {
    let (_, device, issued) = issue();
    let (_, certificate) = X509Certificate::from_der(issued.der()).unwrap();
    let device_id = device.evidence().ek.derived_device_id();
    assert_eq!(issued.facts().device_id, device_id);
    assert_eq!(certificate.subject().to_string(), format!("CN={device_id}"));
    assert!(!certificate.is_ca());
    let usage = certificate.key_usage().unwrap().unwrap().value;
    assert!(usage.digital_signature());
    assert!(!usage.key_cert_sign());
    let extended = certificate.extended_key_usage().unwrap().unwrap().value;
    assert!(extended.client_auth);
    assert!(!extended.server_auth);
    let names = &certificate.subject_alternative_name().unwrap().unwrap().value.general_names;
    assert!(!names.iter().any(|name| matches!(name, GeneralName::DNSName(_))));
    let identifiers = certificate.extensions().iter().filter(|extension| {
        let parsed = extension.parsed_extension();
        matches!(
            parsed,
            ParsedExtension::AuthorityKeyIdentifier(_) | ParsedExtension::SubjectKeyIdentifier(_)
        )
    });
    assert_eq!(identifiers.count(), 2);
}

#[test]
fn record_agrees_with_the_certificate() {
    let (_, device, issued) = issue();
    let (_, certificate) = X509Certificate::from_der(issued.der()).unwrap();
    assert_eq!(certificate.raw_serial(), issued.facts().serial);
    assert_eq!(certificate.validity().not_before.to_datetime(), issued.facts().not_before);
    assert_eq!(certificate.validity().not_after.to_datetime(), issued.facts().not_after);
    assert_eq!(Sha256::digest(certificate.public_key().raw)[..], issued.facts().ik_id);
    assert_eq!(issued.facts().ek_id, device.ek.key().ek_id());
}

#[test]
fn identity_reads_back() {
    let (ca, _, issued) = issue();
    let expected =
        Identity::Device { scope: ca.scope, device_id: issued.facts().device_id.clone() };
    assert_eq!(identity_in(issued.der()), expected);
}

/// TCG TPM 2.0 Keys for Device Identity and Attestation 1.0, 8.
#[test]
fn hardware_is_named_after_the_ek_certificate() {
    let (_, device, issued) = issue();
    let ek_certificate = &device.ek_certificates[0];
    let (_, ek) = X509Certificate::from_der(ek_certificate).unwrap();
    let authority =
        ek.extensions().iter().find_map(|extension| match extension.parsed_extension() {
            ParsedExtension::AuthorityKeyIdentifier(identifier) => {
                identifier.key_identifier.as_ref()
            }
            _ => None,
        });
    let upper = |bytes: &[u8]| data_encoding::HEXUPPER.encode(bytes);
    let serial = format!("41434D45:{}:{}", upper(authority.unwrap().0), upper(ek.raw_serial()));
    let digest = upper(&Sha256::digest(ek_certificate));
    let [hardware, permanent] = other_names(&issued);
    // HardwareModuleName { hwType tcg-tpm20, hwSerialNum }; PermanentIdentifier { value, assigner
    // ekPermIdSha256 }.
    assert!(hardware.starts_with(&[0x30, hardware.len() as u8 - 2, 6, 5, 0x67, 0x81, 5, 1, 2, 4]));
    assert!(hardware.ends_with(serial.as_bytes()));
    assert_eq!(permanent[2..4], [0x0C, 64]);
    assert_eq!(permanent[4..68], *digest.as_bytes());
    assert_eq!(permanent[68..], [6, 5, 0x67, 0x81, 5, 12, 1]);
}

#[test]
fn hardware_of_an_enrolled_ek_is_named_after_the_key() {
    let vendor = Vendor::new("Acme");
    // The EK certificate is untrusted, so nothing from it may be in the device's certificate.
    let (mut ca, device) = (Ca::trusting(&vendor), Device::of(&Vendor::new("Impostor")));
    let records = Records { enrolment: Some(enrolled()), ..nothing_on_record() };
    let issued = issue_at(&mut ca, &device, &records, now());
    assert_eq!(issued.facts().assurance, Assurance::EnrolmentList);
    let [hardware, permanent] = other_names(&issued);
    assert!(hardware.ends_with(device.ek.key().ek_id().as_bytes()));
    let digest = Sha256::digest([b"EkPubkey", &device.ek.key().spki()[..]].concat());
    assert_eq!(permanent[4..68], *data_encoding::HEXUPPER.encode(&digest).as_bytes());
}

/// The values of the two otherNames, in their order.
fn other_names(issued: &Issued<Proven>) -> [Vec<u8>; 2] {
    let (_, certificate) = X509Certificate::from_der(issued.der()).unwrap();
    let names = certificate.subject_alternative_name().unwrap().unwrap();
    let values: Vec<(String, Vec<u8>)> = names
        .value
        .general_names
        .iter()
        .filter_map(|name| match name {
            // The value is in an explicit [0], with a short length (below 128 bytes) or a long one.
            GeneralName::OtherName(oid, value) => {
                let header = if value[1] & 0x80 == 0 { 2 } else { 3 };
                Some((oid.to_id_string(), value[header..].to_vec()))
            }
            _ => None,
        })
        .collect();
    let [(first, hardware), (second, permanent)] = &values[..] else { panic!("{values:?}") };
    assert_eq!((&first[..], &second[..]), ("1.3.6.1.5.5.7.8.4", "1.3.6.1.5.5.7.8.3"));
    [hardware.clone(), permanent.clone()]
}

#[test]
fn policy_tells_how_the_ek_was_trusted() {
    let vendor = Vendor::new("Acme");
    let (mut ca, mut device) = (Ca::trusting(&vendor), Device::of(&vendor));
    let by_vendor = policy(&issue_at(&mut ca, &device, &nothing_on_record(), now()));
    device.ek_certificates.clear();
    let records = Records { enrolment: Some(enrolled()), ..nothing_on_record() };
    let by_list = policy(&issue_at(&mut ca, &device, &records, now()));
    // The content bytes of 2.25.17810284399213771715162782413901505794, and one arc below.
    let arc = data_encoding::HEXLOWER.decode(b"699ae691b4a5caea9ef3a1ebb8d4fc8bceca02").unwrap();
    assert_eq!(by_vendor, [&arc[..], &[1]].concat());
    assert_eq!(by_list, [&arc[..], &[2]].concat());
}

fn policy(issued: &Issued<Proven>) -> Vec<u8> {
    let (_, certificate) = X509Certificate::from_der(issued.der()).unwrap();
    certificate
        .extensions()
        .iter()
        .find_map(|extension| match extension.parsed_extension() {
            ParsedExtension::CertificatePolicies(policies) => {
                Some(policies[0].policy_id.as_bytes().to_vec())
            }
            _ => None,
        })
        .unwrap()
}

#[test]
fn serials_are_positive_sort_by_time_and_differ() {
    let vendor = Vendor::new("Acme");
    let (mut ca, device) = (Ca::trusting(&vendor), Device::of(&vendor));
    let mut seen = std::collections::BTreeSet::new();
    for _ in 0..50 {
        let readmitted = readmitted(&mut ca, &device, &nothing_on_record());
        let prepared = Prepared::<Proven>::new(
            readmitted,
            &Profile::default(),
            ca.issuers.current(now()),
            now(),
            &mut ca.rng,
        )
        .unwrap();
        let serial = prepared.serial();
        assert_eq!(serial[..6], [&[0x40], &now().unix_timestamp().to_be_bytes()[3..]].concat());
        assert!(seen.insert(serial));
    }
}

#[test]
fn validity_is_that_of_the_profile() {
    let vendor = Vendor::new("Acme");
    let (mut ca, device) = (Ca::trusting(&vendor), Device::of(&vendor));
    let later = now() + Duration::days(1) + Duration::milliseconds(1);
    let readmitted = readmitted(&mut ca, &device, &nothing_on_record());
    let profile = Profile::new(Duration::days(30), Duration::minutes(10)).unwrap();
    let prepared = Prepared::<Proven>::new(
        readmitted,
        &profile,
        ca.issuers.current(now()),
        later,
        &mut ca.rng,
    )
    .unwrap();
    let issued = Issued::<Proven>::sign(prepared).unwrap();
    assert_eq!(issued.facts().not_before, now() + Duration::days(1) - Duration::minutes(10));
    assert_eq!(issued.facts().not_after, now() + Duration::days(31));
}

#[test]
fn certificate_does_not_outlive_the_issuing_ca() {
    let vendor = Vendor::new("Acme");
    let (mut ca, device) = (Ca::trusting(&vendor), Device::of(&vendor));
    let issuing_ends = now() + ISSUING_LIFETIME;
    let issued = issue_at(&mut ca, &device, &nothing_on_record(), issuing_ends - Duration::days(1));
    assert_eq!(issued.facts().not_after, issuing_ends);

    let readmitted = readmitted(&mut ca, &device, &nothing_on_record());
    let late = Prepared::<Proven>::new(
        readmitted,
        &Profile::default(),
        ca.issuers.current(now()),
        issuing_ends,
        &mut ca.rng,
    );
    assert!(matches!(late, Err(Fault::IssuerExpired { .. })));
}

#[test]
fn certificate_is_not_older_than_the_issuing_ca() {
    let vendor = Vendor::new("Acme");
    let (mut ca, device) = (Ca::trusting(&vendor), Device::of(&vendor));
    let profile = Profile::new(Duration::days(30), Profile::MAX_BACKDATE).unwrap();
    let readmitted = readmitted(&mut ca, &device, &nothing_on_record());
    let prepared = Prepared::<Proven>::new(
        readmitted,
        &profile,
        ca.issuers.current(now()),
        now(),
        &mut ca.rng,
    )
    .unwrap();
    let issued = Issued::<Proven>::sign(prepared).unwrap();
    assert_eq!(issued.facts().not_before, now() - Duration::hours(1));
}

#[test]
fn issuer_is_a_ca_with_its_own_key() {
    let mut rng = CountingRng::new();
    let root = Authority::root("Test", now(), &mut rng).unwrap();
    let (one, two) = (
        root.issuing("Test", now(), &mut rng).unwrap(),
        root.issuing("Test", now(), &mut rng).unwrap(),
    );
    let leaf = one.worker(assay_ca_core::LEAF_LIFETIME, now(), &mut rng).unwrap();
    let issuer = |certificate: &str, key: &str| Issuer::from_pem(certificate, key).map(drop);
    let (one, two) = (one.to_pem(), two.to_pem());
    assert_eq!(issuer(&one.certificate, &one.key), Ok(()));
    assert_eq!(issuer(&one.certificate, &two.key), Err(IssuerError::KeyMismatch));
    assert_eq!(issuer(&leaf.certificate, &leaf.key), Err(IssuerError::NotACa));
    assert_eq!(issuer("", &one.key), Err(IssuerError::UnreadableCertificate));
    assert_eq!(issuer(&one.certificate, ""), Err(IssuerError::UnreadableKey));
}

#[test]
fn issuer_is_believed_under_the_root_that_signed_it_while_it_is_valid() {
    let mut rng = CountingRng::new();
    let [root, other] = [(); 2].map(|()| Authority::root("Test", now(), &mut rng).unwrap());
    let issuing = root.issuing("Test", now(), &mut rng).unwrap().to_pem();
    let der = |authority: &Authority| {
        CertificateDer::from_pem_slice(authority.to_pem().certificate.as_bytes()).unwrap()
    };
    let issuer = || Issuer::from_pem(&issuing.certificate, &issuing.key).unwrap();
    issuer().under(&[der(&root)]).unwrap();
    issuer().under(&[der(&other), der(&root)]).unwrap();
    // With the same name, but another key.
    assert_eq!(issuer().under(&[der(&other)]).unwrap_err(), IssuerError::OtherRoot);
    assert_eq!(issuer().under(&[]).unwrap_err(), IssuerError::OtherRoot);
    assert_eq!(
        issuer().under(&[CertificateDer::from(vec![0x30])]).unwrap_err(),
        IssuerError::UnreadableRoot
    );
    issuer().valid_at(now() + ISSUING_LIFETIME).unwrap();
    for time in [now() - Duration::DAY, now() + ISSUING_LIFETIME + Duration::SECOND] {
        let refused = issuer().valid_at(time).unwrap_err();
        assert!(matches!(refused, IssuerError::NotValid { .. }), "{refused}");
    }
}

#[test]
fn issuer_knows_what_it_has_signed() {
    let (ca, _, issued) = issue();
    assert!(ca.issuers.current(now()).has_signed(issued.der()));
    let mut rng = CountingRng::new();
    // With the same name, but another key.
    let other = Authority::root("Test", now(), &mut rng)
        .unwrap()
        .issuing("Test", now(), &mut rng)
        .unwrap()
        .to_pem();
    let other = Issuer::from_pem(&other.certificate, &other.key).unwrap();
    assert!(!other.has_signed(issued.der()) && !other.has_signed(b"no certificate"));
}

/// The identity in the only URI of a certificate.
pub(crate) fn identity_in(leaf: &[u8]) -> Identity {
    let (_, leaf) = X509Certificate::from_der(leaf).unwrap();
    let names = leaf.subject_alternative_name().unwrap().unwrap().value;
    let mut uris = names.general_names.iter().filter_map(|name| match name {
        GeneralName::URI(uri) => Some(*uri),
        _ => None,
    });
    let uri = uris.next().unwrap();
    assert_eq!(uris.next(), None);
    uri.parse().unwrap()
}

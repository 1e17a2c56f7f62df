//! The certificates that set a CA up.

use assay_ca_core::{
    Authority, ConfigurationSigner, ISSUING_LIFETIME, Issuer, KeyAndCertificate, LEAF_LIFETIME,
    NewRoot, NotANewRoot, THROW_AWAY_PREFIX,
};
use assay_wire::{
    Bytes, Configuration, Identity, IdentityName, MAX_CONFIGURATION, SignedConfiguration,
};
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED, UnparsedPublicKey};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, CustomExtension, DnType,
    ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose, SanType,
};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use time::Duration;
use webpki::{EndEntityCert, KeyUsage};
use x509_parser::prelude::{FromDer, ParsedExtension, X509Certificate, X509Extension};

use crate::certificate::identity_in;
use crate::fixture::*;

fn der(pair: &KeyAndCertificate) -> CertificateDer<'static> {
    CertificateDer::from_pem_slice(pair.certificate.as_bytes()).unwrap()
}

fn verify(
    root: &Authority,
    issuing: &Authority,
    leaf: &CertificateDer<'_>,
    usage: KeyUsage,
) -> bool {
    leads_to(root, &[der(&issuing.to_pem())], leaf, usage)
}

fn leads_to(
    root: &Authority,
    intermediates: &[CertificateDer<'_>],
    leaf: &CertificateDer<'_>,
    usage: KeyUsage,
) -> bool {
    let root = der(&root.to_pem());
    let anchor = webpki::anchor_from_trusted_cert(&root).unwrap();
    let time = UnixTime::since_unix_epoch(std::time::Duration::from_secs(
        now().unix_timestamp().unsigned_abs(),
    ));
    EndEntityCert::try_from(leaf)
        .unwrap()
        .verify_for_usage(
            webpki::ALL_VERIFICATION_ALGS,
            &[anchor],
            intermediates,
            time,
            usage,
            None,
            None,
        )
        .is_ok()
}

/// A root, the next one, and the certificate by which the first vouches for it.
fn two_roots(rng: &mut CountingRng) -> (Authority, Authority, CertificateDer<'static>) {
    let old = Authority::root("Test", now(), rng).unwrap();
    let (new, cross) = old.next_root(now(), rng).unwrap();
    let cross = CertificateDer::from_pem_slice(cross.as_bytes()).unwrap();
    (old, new, cross)
}

#[test]
fn who_trusts_the_old_root_alone_verifies_by_the_cross_certificate_what_the_new_one_certified() {
    let mut rng = CountingRng::new();
    let (old, new, cross) = two_roots(&mut rng);
    let service = new.next_service(now(), &mut rng).unwrap();
    let names = ["broker.example".to_owned()];
    let leaf = der(&service.server(&names, LEAF_LIFETIME, now(), &mut rng).unwrap());
    let (usage, own) = (KeyUsage::server_auth, der(&service.to_pem()));
    assert!(leads_to(&old, &[own.clone(), cross.clone()], &leaf, usage()));
    assert!(leads_to(&new, &[own.clone(), cross], &leaf, usage()));
    assert!(leads_to(&new, std::slice::from_ref(&own), &leaf, usage()));
    assert!(!leads_to(&old, &[own], &leaf, usage()));
}

#[test]
fn next_root_has_a_name_of_its_own_and_ends_for_others_with_the_old_one() {
    let mut rng = CountingRng::new();
    let (old, new, cross) = two_roots(&mut rng);
    let [old, new] = [old, new].map(|root| der(&root.to_pem()));
    let [first, next, crossed] =
        [&old, &new, &cross].map(|der| X509Certificate::from_der(der).unwrap().1);
    assert_ne!(first.subject(), next.subject());
    assert_eq!(next.subject(), crossed.subject());
    assert!(crossed.validity().not_after <= first.validity().not_after);
    assert_eq!(NewRoot::check(&new, &cross, &old).unwrap().cross(), &*cross);
}

#[test]
fn only_what_the_old_root_certified_as_a_new_root_is_one() {
    let mut rng = CountingRng::new();
    let (old, new, cross) = two_roots(&mut rng);
    let (stranger, other, strange) = two_roots(&mut rng);
    let issuing = old.issuing("Test", now(), &mut rng).unwrap();
    let [old, new, stranger, other, issuing] =
        [old, new, stranger, other, issuing].map(|it| der(&it.to_pem()));
    let refused =
        |new: &[u8], cross: &[u8], old: &[u8]| NewRoot::check(new, cross, old).unwrap_err();
    assert_eq!(refused(&other, &cross, &old), NotANewRoot::AnotherRoot);
    assert_eq!(refused(&new, &strange, &old), NotANewRoot::AnotherRoot);
    assert_eq!(refused(&new, &cross, &stranger), NotANewRoot::NotSignedByTheOld);
    assert_eq!(refused(&new, &new, &old), NotANewRoot::NotCertifiedAsOne);
    assert_eq!(refused(&issuing, &issuing, &old), NotANewRoot::NotSelfSigned);
    assert_eq!(refused(&cross, &cross, &old), NotANewRoot::NotSelfSigned);
    assert_eq!(refused(&new, &[7], &old), NotANewRoot::Unreadable);
}

/// `SEQUENCE { SEQUENCE { OID } }` of the policy of new roots (docs/protocol.md, *A new root*).
const NEW_ROOT_POLICIES: &[u8] = &[
    0x30, 0x18, 0x30, 0x16, 0x06, 0x14, 0x69, 0x9A, 0xE6, 0x91, 0xB4, 0xA5, 0xCA, 0xEA, 0x9E, 0xF3,
    0xA1, 0xEB, 0xB8, 0xD4, 0xFC, 0x8B, 0xCE, 0xCA, 0x02, 0x03,
];

/// A device would refuse them, and nobody would notice until it cannot follow.
#[test]
fn new_root_is_one_only_if_nothing_limits_it_and_while_both_its_certificates_are_valid() {
    type Change = fn(&mut CertificateParams);
    let unchanged: Change = |_| {};
    let made = |of_root: Change, of_cross: Change| {
        let params = |name: &str| {
            let mut params = CertificateParams::default();
            params.distinguished_name.push(DnType::CommonName, name);
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
            params.not_before = now() - Duration::DAY;
            params.not_after = now() + Duration::DAY;
            params
        };
        let old =
            CertifiedIssuer::self_signed(params("old"), KeyPair::generate().unwrap()).unwrap();
        let (key, mut root, mut cross) =
            (KeyPair::generate().unwrap(), params("new"), params("new"));
        // certificatePolicies.
        cross.custom_extensions =
            vec![CustomExtension::from_oid_content(&[2, 5, 29, 32], NEW_ROOT_POLICIES.to_vec())];
        of_root(&mut root);
        of_cross(&mut cross);
        let root = root.self_signed(&key).unwrap();
        NewRoot::check(root.der(), cross.signed_by(&key, &old).unwrap().der(), old.der())
    };
    assert!(made(unchanged, unchanged).unwrap().valid_at(now()).is_ok());
    let limits: [Change; 4] = [
        |it| it.is_ca = IsCa::ExplicitNoCa,
        |it| it.is_ca = IsCa::Ca(BasicConstraints::Constrained(1)),
        |it| it.key_usages = vec![KeyUsagePurpose::CrlSign],
        |it| it.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth],
    ];
    for limit in limits {
        assert_eq!(made(limit, unchanged), Err(NotANewRoot::Limited));
        assert_eq!(made(unchanged, limit), Err(NotANewRoot::Limited));
    }
    let others: [Change; 2] =
        [|it| it.not_before = now() + Duration::HOUR, |it| it.not_after = now() - Duration::HOUR];
    for other in others {
        for made in [made(other, unchanged), made(unchanged, other)] {
            let refused = made.unwrap().valid_at(now());
            assert!(matches!(refused, Err(NotANewRoot::NotValid { .. })), "{refused:?}");
        }
    }
    let long: Change = |it| {
        let comment = CustomExtension::from_oid_content(&[2, 5, 4, 13], vec![0x0c, 0x00]);
        it.custom_extensions.extend(std::iter::repeat_n(comment, 500));
    };
    assert_eq!(made(unchanged, long), Err(NotANewRoot::TooLong));
}

#[test]
fn server_is_certified_for_its_names() {
    let mut rng = CountingRng::new();
    let root = Authority::root("Test", now(), &mut rng).unwrap();
    let service = root.service("Test", now(), &mut rng).unwrap();
    let names = ["broker.example", "127.0.0.1", "::1"].map(str::to_owned);
    let leaf = der(&service.server(&names, LEAF_LIFETIME, now(), &mut rng).unwrap());
    assert!(verify(&root, &service, &leaf, KeyUsage::server_auth()));
    assert!(!verify(&root, &service, &leaf, KeyUsage::client_auth()));
    let end_entity = EndEntityCert::try_from(&leaf).unwrap();
    for name in names {
        let name = ServerName::try_from(name).unwrap();
        end_entity.verify_is_valid_for_subject_name(&name).unwrap();
    }
    let other = ServerName::try_from("other.example").unwrap();
    end_entity.verify_is_valid_for_subject_name(&other).unwrap_err();
}

/// An attacker who steals the issuing CA's key, which is in use all day, must not pass for a
/// broker.
#[test]
fn what_the_issuing_ca_signs_passes_for_no_server() {
    let mut rng = CountingRng::new();
    let root = Authority::root("Test", now(), &mut rng).unwrap();
    let issuing = root.issuing("Test", now(), &mut rng).unwrap();
    let leaf = der(&issuing
        .server(&["broker.example".to_owned()], LEAF_LIFETIME, now(), &mut rng)
        .unwrap());
    assert!(!verify(&root, &issuing, &leaf, KeyUsage::server_auth()));
}

/// For verifiers that look at the usage of the leaf alone: here it says what they want.
#[test]
fn issuing_ca_certifies_no_ip_address_and_any_device_id() {
    let mut rng = CountingRng::new();
    let root = Authority::root("Test", now(), &mut rng).unwrap();
    let issuing = root.issuing("Test", now(), &mut rng).unwrap();
    let pair = issuing.to_pem();
    let key = KeyPair::from_pem(&pair.key).unwrap();
    let signer = rcgen::Issuer::from_ca_cert_der(&der(&pair), key).unwrap();
    let accepted = |name: SanType, common_name: &str| {
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![name];
        params.distinguished_name.push(DnType::CommonName, common_name);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        params.not_before = now();
        params.not_after = now() + Duration::DAY;
        let leaf = params.signed_by(&KeyPair::generate().unwrap(), &signer).unwrap();
        verify(&root, &issuing, leaf.der(), KeyUsage::client_auth())
    };
    for address in ["127.0.0.1", "255.255.255.255", "0.0.0.1", "::1", "2001:db8::1"] {
        assert!(!accepted(SanType::IpAddress(address.parse().unwrap()), "x"), "{address}");
    }
    for id in ["pump-17", "pump.site.17", "broker.example.com", "pump_17:a"] {
        let uri = format!("urn:assay:device:default:{id}");
        assert!(accepted(SanType::URI(uri.try_into().unwrap()), id), "{id}");
    }
}

#[test]
fn roles_read_back_from_their_certificates() {
    let mut rng = CountingRng::new();
    let root = Authority::root("Test", now(), &mut rng).unwrap();
    let service = root.service("Test", now(), &mut rng).unwrap();
    let worker = service.worker(LEAF_LIFETIME, now(), &mut rng).unwrap();
    let operator = service.operator(LEAF_LIFETIME, now(), &mut rng).unwrap();
    let name: IdentityName = "n".repeat(IdentityName::MAX).parse().unwrap();
    let backend = service.backend(&name, LEAF_LIFETIME, now(), &mut rng).unwrap();
    for (identity, pair) in [
        (Identity::Worker, worker),
        (Identity::Operator, operator),
        (Identity::Backend { name }, backend),
    ] {
        let leaf = der(&pair);
        let (_, parsed) = X509Certificate::from_der(&leaf).unwrap();
        let name = parsed.subject().iter_common_name().next().unwrap().as_str().unwrap();
        assert!(name.parse::<assay_wire::DeviceId>().is_err(), "{name} could be a device");
        assert!(name.len() <= 64, "RFC 5280 Appendix A, ub-common-name");
        assert!(verify(&root, &service, &leaf, KeyUsage::client_auth()));
        assert!(!verify(&root, &service, &leaf, KeyUsage::server_auth()));
        assert_eq!(identity_in(&leaf), identity);
    }
}

#[test]
fn identity_is_certified_for_the_time_that_was_asked_for_but_never_beyond_its_ca() {
    let mut rng = CountingRng::new();
    let root = Authority::root("Test", now(), &mut rng).unwrap();
    let made = root.service("Test", now(), &mut rng).unwrap();
    let pem = made.to_pem();
    let read = Authority::from_pem(&pem.certificate, &pem.key).unwrap();
    let late = now() + ISSUING_LIFETIME - Duration::days(10);
    for service in [made, read] {
        for (at, lifetime, end) in [
            (now(), Duration::days(7), now() + Duration::days(7)),
            (late, Duration::days(7), late + Duration::days(7)),
            (late, LEAF_LIFETIME, now() + ISSUING_LIFETIME),
        ] {
            let leaf = der(&service.operator(lifetime, at, &mut rng).unwrap());
            let (_, parsed) = X509Certificate::from_der(&leaf).unwrap();
            assert_eq!(parsed.validity().not_after.timestamp(), end.unix_timestamp());
        }
    }
}

#[test]
fn device_that_does_not_exist_is_one_for_ten_minutes_and_no_relying_party_takes_it_for_proven() {
    let mut rng = CountingRng::new();
    let root = Authority::root("Test", now(), &mut rng).unwrap();
    let issuing = root.issuing("Test", now(), &mut rng).unwrap();
    let scope: assay_wire::Scope = "default".parse().unwrap();
    let pair = issuing.to_pem();
    let issuer = Issuer::from_pem(&pair.certificate, &pair.key).unwrap();
    let (id, pair) = issuer.throw_away_device(&scope, now(), &mut rng).unwrap();
    assert!(id.as_str().starts_with(THROW_AWAY_PREFIX));
    let leaf = der(&pair);
    assert!(verify(&root, &issuing, &leaf, KeyUsage::client_auth()));
    assert_eq!(
        identity_in(&leaf),
        Identity::Device { scope: scope.clone(), device_id: id.clone() }
    );
    let (_, parsed) = X509Certificate::from_der(&leaf).unwrap();
    assert_eq!(
        parsed.validity().not_after.timestamp(),
        (now() + Duration::minutes(10)).unix_timestamp()
    );
    let policies = |extension: &X509Extension<'_>| {
        matches!(extension.parsed_extension(), ParsedExtension::CertificatePolicies(_))
    };
    assert!(!parsed.extensions().iter().any(policies));
    assert_eq!(parsed.subject_alternative_name().unwrap().unwrap().value.general_names.len(), 1);

    let (other, ended) = issuer.throw_away_device(&scope, now() - Duration::DAY, &mut rng).unwrap();
    assert!(other != id && !verify(&root, &issuing, &der(&ended), KeyUsage::client_auth()));
}

#[test]
fn cas_below_the_root_certify_leaves_only() {
    let mut rng = CountingRng::new();
    let root = Authority::root("Test", now(), &mut rng).unwrap();
    for ca in [
        root.issuing("Test", now(), &mut rng).unwrap(),
        root.service("Test", now(), &mut rng).unwrap(),
    ] {
        let certificate = der(&ca.to_pem());
        let (_, parsed) = X509Certificate::from_der(&certificate).unwrap();
        let constraints = parsed.basic_constraints().unwrap().unwrap().value;
        assert_eq!((constraints.ca, constraints.path_len_constraint), (true, Some(0)));
    }
}

/// RFC 9052 §4.4, with the worker's key as its certificate has it.
#[test]
fn a_worker_signs_a_configuration_and_nobody_elses_key_is_taken_for_its() {
    let mut rng = CountingRng::new();
    let root = Authority::root("Test", now(), &mut rng).unwrap();
    let service = root.service("Test", now(), &mut rng).unwrap();
    let mut worker = || {
        let pair = service.worker(LEAF_LIFETIME, now(), &mut rng).unwrap();
        let key = PrivatePkcs8KeyDer::from_pem_slice(pair.key.as_bytes()).unwrap();
        (der(&pair), key)
    };
    let ((certificate, key), (other, _)) = (worker(), worker());
    let chain = [certificate.clone(), der(&service.to_pem())];
    let signer = ConfigurationSigner::new(&chain, key.secret_pkcs8_der()).unwrap();
    let configuration = Configuration {
        scope: "default".parse().unwrap(),
        device_id: "pump-1".parse().unwrap(),
        revision: 7,
        document: Some(Bytes::try_from(vec![b'x'; MAX_CONFIGURATION]).unwrap()),
    };
    let signed = SignedConfiguration::decode(&signer.sign(&configuration).unwrap()).unwrap();
    assert_eq!(Configuration::decode(&signed.payload), Ok(configuration));
    let in_chain: Vec<_> = signed.chain.iter().map(|der| der.to_vec()).collect();
    assert_eq!(in_chain, chain.map(|der| der.to_vec()));
    let (_, leaf) = X509Certificate::from_der(&certificate).unwrap();
    let point = &leaf.public_key().subject_public_key.data;
    UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, point)
        .verify(&SignedConfiguration::signed(&signed.payload), &signed.signature)
        .unwrap();

    assert!(ConfigurationSigner::new(&[other], key.secret_pkcs8_der()).is_err());
    assert!(ConfigurationSigner::new(&[], key.secret_pkcs8_der()).is_err());
}

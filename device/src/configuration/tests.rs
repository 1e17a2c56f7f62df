use assay_wire::Bytes;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    PKCS_ECDSA_P256_SHA256, SanType,
};
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair};
use rustls::pki_types::UnixTime;
use std::time::Duration;

use super::*;

const WORKER: &str = "urn:assay:worker";

/// A CA with a root, and a worker whose certificate has this identity.
struct Ca {
    root: CertifiedIssuer<'static, KeyPair>,
    roots: RootCertStore,
}

struct Signer {
    key: KeyPair,
    certificate: Vec<u8>,
}

impl Ca {
    fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
        let root = CertifiedIssuer::self_signed(params, key).unwrap();
        let mut roots = RootCertStore::empty();
        roots.add(root.der().clone()).unwrap();
        Self { root, roots }
    }

    fn signer(&self, identity: &str) -> Signer {
        self.signer_until(identity, 2_000)
    }

    /// With a certificate that is valid now.
    fn signer_for_years(&self, identity: &str) -> Signer {
        self.signer_until(identity, 4_000_000_000)
    }

    fn signer_until(&self, identity: &str, not_after: i64) -> Signer {
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![SanType::URI(identity.try_into().unwrap())];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        params.not_before = time::OffsetDateTime::from_unix_timestamp(1_000).unwrap();
        params.not_after = time::OffsetDateTime::from_unix_timestamp(not_after).unwrap();
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
        let certificate = params.signed_by(&key, &self.root).unwrap().der().to_vec();
        Signer { key, certificate }
    }

    fn verify_at(&self, signed: &[u8], now: u64) -> Result<u64, ConfigurationError> {
        let (scope, device) = ("default".parse().unwrap(), "pump-1".parse().unwrap());
        let now = UnixTime::since_unix_epoch(Duration::from_secs(now));
        VerifiedConfiguration::verify(signed, &self.roots, |_| now, &scope, &device)
            .map(|verified| verified.0.revision)
    }

    fn verify(&self, signed: &[u8]) -> Result<u64, ConfigurationError> {
        self.verify_at(signed, 1_500)
    }
}

impl Signer {
    fn sign(&self, payload: &[u8]) -> SignedConfiguration {
        let random = SystemRandom::new();
        let key = EcdsaKeyPair::from_pkcs8(
            &ECDSA_P256_SHA256_FIXED_SIGNING,
            &self.key.serialize_der(),
            &random,
        )
        .unwrap();
        let signature = key.sign(&random, &SignedConfiguration::signed(payload)).unwrap();
        SignedConfiguration {
            chain: vec![self.certificate.clone().try_into().unwrap()].try_into().unwrap(),
            payload: payload.to_vec(),
            signature: signature.as_ref().try_into().unwrap(),
        }
    }
}

fn of(scope: &str, device: &str, revision: u64, document: &str) -> Configuration {
    Configuration {
        scope: scope.parse().unwrap(),
        device_id: device.parse().unwrap(),
        revision,
        document: Some(Bytes::try_from(document.as_bytes()).unwrap()),
    }
}

fn good() -> Vec<u8> {
    of("default", "pump-1", 7, "{}").encode()
}

#[test]
fn configuration_that_a_worker_signed_for_this_device_is_taken() {
    let ca = Ca::new();
    assert_eq!(ca.verify(&ca.signer(WORKER).sign(&good()).encode()), Ok(7));
}

#[test]
fn configuration_of_anybody_but_a_worker_is_refused() {
    let ca = Ca::new();
    for other in ["urn:assay:operator", "urn:assay:default:device:pump-1", "urn:example:worker"] {
        let refused = ca.verify(&ca.signer(other).sign(&good()).encode());
        assert_eq!(refused, Err(ConfigurationError::NotAWorker(other.into())));
    }
}

#[test]
fn configuration_of_another_cas_worker_is_refused() {
    let signed = Ca::new().signer(WORKER).sign(&good()).encode();
    let refused = Ca::new().verify(&signed);
    assert!(
        matches!(refused, Err(ConfigurationError::Signer(AnswerError::Path(_)))),
        "{refused:?}"
    );
}

#[test]
fn configuration_is_taken_only_while_its_signers_certificate_is_valid() {
    let ca = Ca::new();
    let signed = ca.signer(WORKER).sign(&good()).encode();
    let early = ca.verify_at(&signed, 999);
    assert!(matches!(early, Err(ConfigurationError::Signer(AnswerError::NotYetValid { .. }))));
    let late = ca.verify_at(&signed, 2_001);
    assert!(matches!(late, Err(ConfigurationError::Signer(AnswerError::Expired { .. }))));
}

#[test]
fn configuration_altered_in_any_byte_is_refused() {
    let ca = Ca::new();
    let signed = ca.signer(WORKER).sign(&good());
    for at in 0..signed.payload.len() {
        let mut payload = signed.payload.clone();
        payload[at] ^= 1;
        let forged = SignedConfiguration { payload, ..signed.clone() };
        assert_eq!(ca.verify(&forged.encode()), Err(ConfigurationError::Signature), "{at}");
    }
    let mut forged = signed.clone();
    forged.signature[63] ^= 1;
    assert_eq!(ca.verify(&forged.encode()), Err(ConfigurationError::Signature));
    // Another worker's certificate beside the signature.
    let forged = SignedConfiguration { chain: ca.signer(WORKER).sign(b"").chain, ..signed };
    assert_eq!(ca.verify(&forged.encode()), Err(ConfigurationError::Signature));
}

#[test]
fn configuration_for_another_device_or_scope_is_refused() {
    let ca = Ca::new();
    for (scope, device) in [("default", "pump-2"), ("other", "pump-1")] {
        let signed = ca.signer(WORKER).sign(&of(scope, device, 7, "{}").encode());
        let refused = ca.verify(&signed.encode());
        assert!(matches!(refused, Err(ConfigurationError::OtherDevice { .. })), "{refused:?}");
    }
}

#[test]
fn signature_of_something_else_is_no_configuration() {
    let ca = Ca::new();
    let refused = ca.verify(&ca.signer(WORKER).sign(b"\x83\x01\x02\x03").encode());
    assert!(matches!(refused, Err(ConfigurationError::Unreadable(_))), "{refused:?}");
}

/// A device at this time, with a clock, that keeps what comes.
fn keep(
    ca: &Ca,
    state: &StateDirectory,
    signed: Vec<u8>,
) -> Result<Option<u64>, ConfigurationError> {
    let (scope, device_id) = ("default".parse().unwrap(), "pump-1".parse().unwrap());
    let received = ReceivedConfiguration { signed, scope, device_id, not_after: 0 };
    super::keep(&received, state, &ca.roots, &Clock::new(true, &[])).unwrap()
}

#[test]
fn revision_of_more_than_a_day_ahead_is_refused() {
    let verified = |revision| VerifiedConfiguration(of("default", "pump-1", revision, "{}"));
    assert!(verified(1_500_999_999).no_later_than(1_500).is_ok());
    for revision in [1_501_000_000, u64::MAX] {
        let refused = verified(revision).no_later_than(1_500).unwrap_err();
        let from = revision / MICROSECONDS;
        assert_eq!(refused, ConfigurationError::FromLater { revision, from, latest: 1_500 });
        assert!(refused.to_string().ends_with("none of later than 1970-01-01T00:25:00Z"));
    }
}

#[test]
fn forged_revision_is_passed_by_the_operators_next_one_a_day_later() {
    let (ca, directory) = (Ca::new(), tempfile::tempdir().unwrap());
    let state = StateDirectory::open(&directory.path().join("state")).unwrap();
    let worker = ca.signer_for_years(WORKER);
    let signed = |revision, document| {
        worker.sign(&of("default", "pump-1", revision, document).encode()).encode()
    };
    let refused = keep(&ca, &state, signed(u64::MAX, "\"forged\""));
    assert!(matches!(refused, Err(ConfigurationError::FromLater { .. })), "{refused:?}");

    // Kept while the clock was far ahead, or by an earlier version of this program.
    state.keep_configuration(&signed(u64::MAX, "\"forged\"")).unwrap();
    let now = Clock::new(true, &[]).now().as_secs();
    let newest = (now + 86_300) * MICROSECONDS;
    assert_eq!(keep(&ca, &state, signed(newest, "{}")), Ok(Some(newest)));
    let older = keep(&ca, &state, signed(newest - 1, "[]"));
    assert!(matches!(older, Err(ConfigurationError::Older { .. })), "{older:?}");
}

#[test]
fn older_revision_is_refused_and_the_same_one_changes_nothing() {
    let verified =
        |revision, document| VerifiedConfiguration(of("default", "pump-1", revision, document));
    let stored = verified(7, "{}");
    assert_eq!(verified(8, "[]").is_newer_than(&stored), Ok(true));
    assert_eq!(verified(7, "{}").is_newer_than(&stored), Ok(false));
    let older = |revision| Err(ConfigurationError::Older { revision, stored: 7 });
    assert_eq!(verified(6, "{}").is_newer_than(&stored), older(6));
    assert_eq!(verified(7, "[]").is_newer_than(&stored), older(7));
}

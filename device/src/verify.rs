//! Verifies the paths of certificates from any source.

use assay_device_core::{AnswerError, DeviceCertificate, VerifiedPath, rfc3339};
use assay_wire::Scope;
use rustls::RootCertStore;
use rustls::pki_types::{CertificateDer, UnixTime};
use webpki::{EndEntityCert, KeyUsage};
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::times::{is_more_than_a_day, since_1970};
use crate::tpm::{PublicKey, id_of_key};

/// Checks a chain, leaf first: the chain leads to a pinned root and is valid at `now`, and the leaf
/// is for TLS clients, was issued for `key`, and names the same device of `scope` in common name
/// and URI.
///
/// It does not check whether the certificate was revoked. The broker does that, at every
/// connection. `renew_at` is when the CA said that it is to be renewed.
pub(crate) fn device_certificate(
    chain: Vec<CertificateDer<'static>>,
    renew_at: Option<u64>,
    roots: &RootCertStore,
    key: &PublicKey,
    scope: &Scope,
    now: UnixTime,
) -> Result<DeviceCertificate, AnswerError> {
    let path = path(&chain, roots, now)?;
    DeviceCertificate::check(chain, path, renew_at, &key.id(), scope)
}

/// Verifies that a chain, leaf first, leads to a pinned root at `now`, for TLS client
/// authentication (RFC 5280 §6.1): for
/// [`Action::VerifyPath`](assay_device_core::Action::VerifyPath).
///
/// It establishes nothing about whom the certificate is for;
/// [`DeviceCertificate::check`] does that.
pub fn path(
    chain: &[CertificateDer<'_>],
    roots: &RootCertStore,
    now: UnixTime,
) -> Result<VerifiedPath, AnswerError> {
    let (leaf, issuers) =
        chain.split_first().ok_or_else(|| AnswerError::Unreadable("there is none".into()))?;
    let certificate = EndEntityCert::try_from(leaf)
        .map_err(|error| AnswerError::Unreadable(error.to_string()))?;
    let algorithms = rustls::crypto::ring::default_provider().signature_verification_algorithms;
    certificate
        .verify_for_usage(
            algorithms.all,
            &roots.roots,
            issuers,
            now,
            KeyUsage::client_auth(),
            None,
            None,
        )
        .map_err(no_path)?;
    let parsed = parse(leaf)?;
    // webpki accepts a certificate without the extension for every usage.
    let is_for_clients =
        matches!(parsed.extended_key_usage(), Ok(Some(usage)) if usage.value.client_auth);
    Ok(VerifiedPath {
        key_id: id_of_key(certificate.subject_public_key_info().as_ref()),
        is_for_clients,
        common_name: common_name(&parsed),
        uris: certificate.valid_uri_names().map(str::to_owned).collect(),
        serial: serial(&parsed),
        not_before: since_1970(parsed.validity().not_before),
        not_after: since_1970(parsed.validity().not_after),
    })
}

/// The subjectPublicKey of a certificate (RFC 5280 §4.1.2.7).
pub(crate) fn public_key(leaf: &[u8]) -> Result<Vec<u8>, AnswerError> {
    Ok(parse(leaf)?.public_key().subject_public_key.data.to_vec())
}

fn no_path(error: webpki::Error) -> AnswerError {
    match error {
        webpki::Error::CertNotValidYet { time, not_before } => {
            AnswerError::NotYetValid { clock: time.as_secs(), not_before: not_before.as_secs() }
        }
        webpki::Error::CertExpired { time, not_after } => {
            AnswerError::Expired { clock: time.as_secs(), not_after: not_after.as_secs() }
        }
        error => AnswerError::Path(error.to_string()),
    }
}

/// What a certificate says of itself. Nobody has verified it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Summary {
    /// The common name of its subject; empty if it has none.
    pub common_name: String,
    /// Its serial number, lower-case hexadecimal, two digits a byte.
    pub serial: String,
    /// From when it is valid, e.g. `2026-11-22T20:08:40Z`.
    pub not_before: String,
    /// Until when it is valid, in the same form.
    pub not_after: String,
    /// How long it is still valid by this device's clock, in seconds; 0 if it has ended.
    pub seconds_left: u64,
    /// When the device renews it, in the form of the other times.
    pub renew_at: String,
    /// Whether that time has come, by this device's clock.
    pub is_due: bool,
    /// Whether it is valid now, by this device's clock.
    pub validity: Validity,
}

/// Whether a certificate is valid by this device's clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Validity {
    /// The clock is more than a day before the certificate's first moment, so the clock is wrong.
    NotYet,
    /// The certificate can be used.
    Valid,
    /// The clock is past the certificate's last moment.
    Expired,
}

/// `renew_at` is when the CA said that it is to be renewed.
pub(crate) fn summary(
    certificate: &[u8],
    renew_at: Option<u64>,
    now: UnixTime,
) -> Result<Summary, AnswerError> {
    Ok(summary_of(&parse(certificate)?, renew_at, now))
}

/// Which certificate it is, and when it counts, in seconds since 1970. Nobody has verified it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Period {
    pub(crate) serial: String,
    pub(crate) not_before: u64,
    pub(crate) not_after: u64,
    pub(crate) renew_at: u64,
}

/// `renew_at` is when the CA said that it is to be renewed.
pub(crate) fn period(certificate: &[u8], renew_at: Option<u64>) -> Result<Period, AnswerError> {
    Ok(period_of(&parse(certificate)?, renew_at))
}

fn period_of(certificate: &X509Certificate<'_>, renew_at: Option<u64>) -> Period {
    let validity = certificate.validity();
    let [not_before, not_after] = [validity.not_before, validity.not_after].map(since_1970);
    let renew_at = assay_device_core::renew_at(renew_at, not_before, not_after);
    Period { serial: serial(certificate), not_before, not_after, renew_at }
}

fn summary_of(certificate: &X509Certificate<'_>, renew_at: Option<u64>, now: UnixTime) -> Summary {
    let Period { serial, not_before, not_after, renew_at } = period_of(certificate, renew_at);
    Summary {
        common_name: common_name(certificate),
        serial,
        not_before: rfc3339(not_before),
        not_after: rfc3339(not_after),
        seconds_left: not_after.saturating_sub(now.as_secs()),
        renew_at: rfc3339(renew_at),
        is_due: renew_at <= now.as_secs(),
        validity: match now.as_secs() {
            now if is_more_than_a_day(now, not_before) => Validity::NotYet,
            now if now > not_after => Validity::Expired,
            _ => Validity::Valid,
        },
    }
}

fn common_name(certificate: &X509Certificate<'_>) -> String {
    let mut names = certificate.subject().iter_common_name();
    names.next().and_then(|name| name.as_str().ok()).unwrap_or_default().into()
}

fn serial(certificate: &X509Certificate<'_>) -> String {
    data_encoding::HEXLOWER.encode(certificate.raw_serial())
}

fn parse(certificate: &[u8]) -> Result<X509Certificate<'_>, AnswerError> {
    match X509Certificate::from_der(certificate) {
        Ok((_, certificate)) => Ok(certificate),
        Err(error) => Err(AnswerError::Unreadable(error.to_string())),
    }
}

/// The arc of Assay's certificate policies, 2.25.17810284399213771715162782413901505794, in DER
/// without its header. The number is too long for most ways of printing an object identifier.
pub(crate) const POLICIES: [u8; 19] = [
    0x69, 0x9a, 0xe6, 0x91, 0xb4, 0xa5, 0xca, 0xea, 0x9e, 0xf3, 0xa1, 0xeb, 0xb8, 0xd4, 0xfc, 0x8b,
    0xce, 0xca, 0x02,
];

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use rcgen::{
        BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, SanType,
    };
    use rcgen::{DistinguishedName, ExtendedKeyUsagePurpose as Usage};

    use super::*;

    /// A CA, a device's key, and the contents of a good certificate. Each test changes one thing.
    struct Case {
        ca: CertifiedIssuer<'static, KeyPair>,
        roots: RootCertStore,
        key: KeyPair,
        params: CertificateParams,
        scope: Scope,
        now: UnixTime,
    }

    impl Case {
        fn new() -> Self {
            let mut params = CertificateParams::default();
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            let ca = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
            let mut roots = RootCertStore::empty();
            roots.add(ca.der().clone()).unwrap();
            let mut params = CertificateParams::default();
            params.distinguished_name = named("pump-17");
            params.subject_alt_names = vec![uri("urn:assay:device:default:pump-17")];
            params.extended_key_usages = vec![Usage::ClientAuth];
            let key = KeyPair::generate().unwrap();
            Self { ca, roots, key, params, scope: "default".parse().unwrap(), now: UnixTime::now() }
        }

        fn check(&self) -> Result<DeviceCertificate, AnswerError> {
            let certificate = self.params.signed_by(&self.key, &self.ca).unwrap();
            let chain = vec![certificate.der().clone()];
            self.check_chain(chain)
        }

        fn check_chain(
            &self,
            chain: Vec<CertificateDer<'static>>,
        ) -> Result<DeviceCertificate, AnswerError> {
            let key = public(&self.key);
            device_certificate(chain, None, &self.roots, &key, &self.scope, self.now)
        }
    }

    fn named(name: &str) -> DistinguishedName {
        let mut subject = DistinguishedName::new();
        subject.push(DnType::CommonName, name);
        subject
    }

    fn uri(uri: &str) -> SanType {
        SanType::URI(uri.try_into().unwrap())
    }

    fn public(key: &KeyPair) -> PublicKey {
        let point = key.public_key_raw();
        PublicKey::P256(point[1..33].try_into().unwrap(), point[33..].try_into().unwrap())
    }

    #[test]
    fn good_certificate_is_accepted_and_read() {
        let mut case = Case::new();
        case.params.serial_number = Some(vec![0x0A, 0xFF].into());
        case.params.not_after = rcgen::date_time_ymd(2099, 2, 3);
        let certificate = case.check().unwrap();
        assert_eq!(certificate.device_id.as_str(), "pump-17");
        assert_eq!(
            (certificate.serial.as_str(), certificate.not_after.as_str()),
            ("0aff", "2099-02-03T00:00:00Z")
        );
    }

    #[test]
    fn certificate_of_another_root_is_refused() {
        let case = Case { roots: Case::new().roots, ..Case::new() };
        assert!(matches!(case.check(), Err(AnswerError::Path(_))));
    }

    #[test]
    fn expired_certificate_is_refused() {
        let mut case = Case::new();
        case.params.not_after = rcgen::date_time_ymd(2020, 1, 1);
        assert!(matches!(case.check(), Err(AnswerError::Expired { not_after: 1_577_836_800, .. })));
        case.now = UnixTime::since_unix_epoch(Duration::from_secs(1_500_000_000));
        case.check().unwrap();
    }

    #[test]
    fn certificate_from_the_future_is_refused_and_the_clock_is_named() {
        let mut case = Case::new();
        case.params.not_before = rcgen::date_time_ymd(2020, 1, 1);
        for (behind, exit_code) in [(86_400, 7), (86_401, 3)] {
            case.now = UnixTime::since_unix_epoch(Duration::from_secs(1_577_836_800 - behind));
            let error = crate::Error::from(case.check().unwrap_err());
            assert_eq!(error.exit_code(), exit_code, "{error}");
            assert!(error.to_string().contains("this device's clock"), "{error}");
            assert!(error.to_string().contains("2020-01-01T00:00:00Z"), "{error}");
        }
    }

    #[test]
    fn certificate_without_client_usage_is_refused() {
        let mut case = Case::new();
        case.params.extended_key_usages.clear();
        assert_eq!(case.check().unwrap_err(), AnswerError::NotForClients);
        case.params.extended_key_usages = vec![Usage::ServerAuth];
        assert!(case.check().is_err());
    }

    #[test]
    fn certificate_for_another_key_is_refused() {
        let case = Case::new();
        let certificate = case.params.signed_by(&KeyPair::generate().unwrap(), &case.ca).unwrap();
        let chain = vec![certificate.der().clone()];
        assert_eq!(case.check_chain(chain).unwrap_err(), AnswerError::OtherKey);
    }

    #[test]
    fn certificate_that_does_not_name_one_device_of_the_scope_is_refused() {
        let good = uri("urn:assay:device:default:pump-17");
        for (name, uris) in [
            ("pump-17", vec![]),
            ("pump-17", vec![uri("urn:assay:device:other:pump-17")]),
            ("pump-17", vec![uri("urn:assay:device:default:pump-18")]),
            ("pump-17", vec![good.clone(), uri("urn:assay:operator")]),
            ("pump-18", vec![good.clone()]),
            ("pump 17", vec![good]),
        ] {
            let mut case = Case::new();
            case.params.distinguished_name = named(name);
            case.params.subject_alt_names = uris;
            let outcome = case.check();
            assert!(matches!(outcome, Err(AnswerError::OtherDevice { .. })), "{name}: {outcome:?}");
        }
    }

    #[test]
    fn empty_chain_and_garbage_are_refused() {
        let case = Case::new();
        for chain in [vec![], vec![vec![0x30, 0].into()]] {
            let outcome = case.check_chain(chain);
            assert!(matches!(outcome, Err(AnswerError::Unreadable(_))), "{outcome:?}");
        }
    }
}

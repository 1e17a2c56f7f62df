//! What a certificate must be before this device uses it, whoever handed it over.

use assay_wire::{DeviceId, Scope};
use rustls::RootCertStore;
use rustls::pki_types::{CertificateDer, UnixTime};
use webpki::{EndEntityCert, KeyUsage};
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::clock::{is_more_than_a_day, rfc3339, since_1970};
use crate::tpm::{PublicKey, TpmError};

/// The device's certificate and its issuers, found to be good for this device's identity key.
#[derive(Clone, Debug)]
pub struct DeviceCertificate {
    /// The device's certificate, then its issuers, without the root.
    pub chain: Vec<CertificateDer<'static>>,
    /// The name of the device in it.
    pub device_id: DeviceId,
    /// The provisioning domain in it.
    pub scope: Scope,
    /// Its serial number, lower-case hexadecimal, two digits a byte.
    pub serial: String,
    /// Until when it is valid, e.g. `2027-02-20T20:08:40Z`.
    pub not_after: String,
}

/// Why the CA's answer cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AnswerError {
    /// The challenge was not made for this TPM's EK and IK.
    #[error("the TPM cannot open the challenge, so it was not made for its EK and IK: {0}")]
    Challenge(TpmError),
    /// What the challenge holds is no ticket.
    #[error("the challenge holds {0} bytes where a ticket has 32")]
    TicketLength(usize),
    /// What the TPM took from the credential beside a sealed certificate is no key for it.
    #[error("the credential holds {0} bytes where the key of a sealed certificate has 32")]
    SealKeyLength(usize),
    /// The sealed certificate was made for another claim, EK or IK, or altered.
    #[error(
        "the sealed certificate cannot be opened: it was made for another device or request, or \
         altered on its way"
    )]
    Seal,
    /// The confirmation was answered by somebody else than the CA that sealed the certificate.
    #[error(
        "the receipt is not the one of the CA that sealed the certificate: the confirmation did \
         not reach it"
    )]
    Receipt,
    /// The HMAC key was not made for this TPM's EK and parent.
    #[error("the TPM cannot load the key: {0}")]
    SharedKey(TpmError),
    /// An answer to another question.
    #[error("the CA answered with a {found} where a {wanted} was due")]
    OutOfTurn {
        /// What was asked for.
        wanted: &'static str,
        /// What came.
        found: &'static str,
    },
    /// The certificate cannot be read.
    #[error("unreadable certificate: {0}")]
    Unreadable(String),
    /// A certificate of the chain is not valid yet by this device's clock.
    #[error("a certificate in it is valid only from {}; this device's clock says {}", rfc3339(*not_before), rfc3339(*clock))]
    NotYetValid {
        /// What the clock says, in seconds since 1970.
        clock: u64,
        /// The first moment of the certificate, likewise.
        not_before: u64,
    },
    /// A certificate of the chain is no longer valid by this device's clock.
    #[error("a certificate in it ended on {}; this device's clock says {}", rfc3339(*not_after), rfc3339(*clock))]
    Expired {
        /// What the clock says, in seconds since 1970.
        clock: u64,
        /// The last moment of the certificate, likewise.
        not_after: u64,
    },
    /// There is no valid path from the certificate to our root.
    #[error("no valid path from the certificate to the pinned root: {0}")]
    Path(String),
    /// The certificate is not for TLS clients.
    #[error("the certificate lacks the extended key usage clientAuth")]
    NotForClients,
    /// The certificate is for another key.
    #[error("the certificate is for another key than this device's identity key")]
    OtherKey,
    /// The certificate, or the key, is for another device.
    #[error("the answer names {found:?} where {wanted:?} is due")]
    OtherDevice {
        /// The URI or name that was expected.
        wanted: String,
        /// What is there.
        found: String,
    },
}

/// Checks a chain, leaf first: path to a pinned root, validity at `now`, usable for TLS clients,
/// issued for `key`, and naming one device of `scope` in common name and URI.
///
/// It does not ask whether the certificate was revoked; the broker does, at every connection.
pub(crate) fn device_certificate(
    chain: Vec<CertificateDer<'static>>,
    roots: &RootCertStore,
    key: &PublicKey,
    scope: &Scope,
    now: UnixTime,
) -> Result<DeviceCertificate, AnswerError> {
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
    if certificate.subject_public_key_info().as_ref() != key.subject_public_key_info() {
        return Err(AnswerError::OtherKey);
    }

    let parsed = parse(leaf)?;
    // webpki lets a certificate without the extension pass for every usage.
    if !matches!(parsed.extended_key_usage(), Ok(Some(usage)) if usage.value.client_auth) {
        return Err(AnswerError::NotForClients);
    }
    let Summary { common_name, serial, not_after, .. } = summary_of(&parsed, now);
    let Ok(device_id) = common_name.parse::<DeviceId>() else {
        return Err(AnswerError::OtherDevice { wanted: "a device id".into(), found: common_name });
    };
    let wanted = format!("urn:assay:device:{scope}:{device_id}");
    let uris: Vec<_> = certificate.valid_uri_names().collect();
    if uris != [wanted.as_str()] {
        return Err(AnswerError::OtherDevice { wanted, found: uris.join(", ") });
    }
    Ok(DeviceCertificate { device_id, scope: scope.clone(), serial, not_after, chain })
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

/// Whether the CA speaks of the device that is meant.
pub(crate) fn device_id(wanted: &DeviceId, found: &DeviceId) -> Result<(), AnswerError> {
    if wanted == found {
        return Ok(());
    }
    Err(AnswerError::OtherDevice { wanted: wanted.to_string(), found: found.to_string() })
}

/// What people want to know of a certificate, whether it is good or not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Summary {
    /// The common name of its subject; empty if it has none.
    pub common_name: String,
    /// Its serial number, lower-case hexadecimal, two digits a byte.
    pub serial: String,
    /// From when it is valid, e.g. `2026-11-22T20:08:40Z`.
    pub not_before: String,
    /// Until when it is valid, likewise.
    pub not_after: String,
    /// Whether it is now, by this device's clock.
    pub validity: Validity,
}

/// What this device's clock says of a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Validity {
    /// It is more than a day before the certificate's first moment, so the clock is wrong.
    NotYet,
    /// The certificate can be used.
    Valid,
    /// It is past the certificate's last moment.
    Expired,
}

pub(crate) fn summary(certificate: &[u8], now: UnixTime) -> Result<Summary, AnswerError> {
    Ok(summary_of(&parse(certificate)?, now))
}

fn summary_of(certificate: &X509Certificate<'_>, now: UnixTime) -> Summary {
    let common_name =
        certificate.subject().iter_common_name().next().and_then(|name| name.as_str().ok());
    let [not_before, not_after] = {
        let validity = certificate.validity();
        [validity.not_before, validity.not_after].map(since_1970)
    };
    Summary {
        common_name: common_name.unwrap_or_default().into(),
        serial: data_encoding::HEXLOWER.encode(certificate.raw_serial()),
        not_before: rfc3339(not_before),
        not_after: rfc3339(not_after),
        validity: match now.as_secs() {
            now if is_more_than_a_day(now, not_before) => Validity::NotYet,
            now if now > not_after => Validity::Expired,
            _ => Validity::Valid,
        },
    }
}

fn parse(certificate: &[u8]) -> Result<X509Certificate<'_>, AnswerError> {
    match X509Certificate::from_der(certificate) {
        Ok((_, certificate)) => Ok(certificate),
        Err(error) => Err(AnswerError::Unreadable(error.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use rcgen::{
        BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, SanType,
    };
    use rcgen::{DistinguishedName, ExtendedKeyUsagePurpose as Usage};

    use super::*;

    /// A CA, a device's key, and what a good certificate for it says; tests change one thing.
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
            device_certificate(chain, &self.roots, &public(&self.key), &self.scope, self.now)
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
        let outcome =
            device_certificate(chain, &case.roots, &public(&case.key), &case.scope, case.now);
        assert_eq!(outcome.unwrap_err(), AnswerError::OtherKey);
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
            let outcome =
                device_certificate(chain, &case.roots, &public(&case.key), &case.scope, case.now);
            assert!(matches!(outcome, Err(AnswerError::Unreadable(_))), "{outcome:?}");
        }
    }
}

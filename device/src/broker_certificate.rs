//! Verifies the broker's certificate, and says what is wrong with it.

use std::fmt;
use std::sync::Arc;

use assay_device_core::rfc3339;
use assay_wire::{MAX_SHOWN, printable};
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, OtherError, RootCertStore,
    SignatureScheme,
};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use crate::clock::Clock;
use crate::error::{Error, Setting};
use crate::times::is_more_than_a_day;

/// A TLS configuration that trusts `roots` alone and shows no certificate.
pub(crate) fn server_authenticated_tls(
    roots: RootCertStore,
    clock: Clock,
) -> Result<ClientConfig, Error> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = assay_mqtt::tls_config(provider, roots.clone(), None);
    let mut config = config.map_err(|error| Error::Internal(error.to_string()))?;
    judge_by(&mut config, roots, clock)?;
    Ok(config)
}

/// Makes `config` verify the broker by `roots`, at the time of `clock`.
pub(crate) fn judge_by(
    config: &mut ClientConfig,
    roots: RootCertStore,
    clock: Clock,
) -> Result<(), Error> {
    let provider = Arc::clone(config.crypto_provider());
    let rules: Arc<dyn ServerCertVerifier> =
        match WebPkiServerVerifier::builder_with_provider(roots.into(), provider).build() {
            Ok(rules) => rules,
            // A device without a root needs no broker: it only uses its TPM, e.g. to sign tokens.
            Err(_) => return Ok(()),
        };
    config.dangerous().set_certificate_verifier(Arc::new(Judge { rules, clock }));
    Ok(())
}

/// rustls's own rules, at the device's own time.
#[derive(Debug)]
struct Judge {
    rules: Arc<dyn ServerCertVerifier>,
    clock: Clock,
}

impl ServerCertVerifier for Judge {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let now = self.clock.at([end_entity].into_iter().chain(intermediates));
        self.rules
            .verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
            .map_err(|error| match error {
                rustls::Error::InvalidCertificate(rule) => {
                    let fault = BrokerCertificateFault::new(rule, end_entity, server_name);
                    CertificateError::Other(OtherError(Arc::new(fault))).into()
                }
                error => error,
            })
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.rules.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.rules.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.rules.supported_verify_schemes()
    }
}

/// Why the broker's certificate was not accepted, and the texts in it, which nobody has verified.
#[derive(Debug)]
pub(crate) struct BrokerCertificateFault {
    rule: CertificateError,
    wanted: String,
    subject: String,
    issuer: String,
    names: String,
}

impl BrokerCertificateFault {
    fn new(rule: CertificateError, certificate: &[u8], wanted: &ServerName<'_>) -> Self {
        let certificate =
            X509Certificate::from_der(certificate).ok().map(|(_, certificate)| certificate);
        let of = |name: fn(&X509Certificate<'_>) -> String| {
            certificate.as_ref().map(name).unwrap_or_default()
        };
        Self {
            rule,
            wanted: wanted.to_str().into_owned(),
            subject: of(|certificate| certificate.subject().to_string()),
            issuer: of(|certificate| certificate.issuer().to_string()),
            names: of(names),
        }
    }

    /// The error for people; `None` if the fault may pass by itself.
    pub(crate) fn lasting(&self) -> Option<Error> {
        use CertificateError::{ExpiredContext, NotValidForNameContext, NotValidYetContext};
        let setting = match &self.rule {
            NotValidYetContext { time, not_before } => {
                let (now, from) = (time.as_secs(), not_before.as_secs());
                let evidence =
                    format!("the broker's certificate is valid only from {}", rfc3339(from));
                return is_more_than_a_day(now, from).then(|| Error::wrong_clock(now, &evidence));
            }
            ExpiredContext { .. } => Setting::BrokerCertificateOrClock,
            CertificateError::UnknownIssuer | CertificateError::BadSignature => Setting::CaRoot,
            NotValidForNameContext { .. } => Setting::BrokerName,
            _ => Setting::BrokerCertificate,
        };
        Some(Error::Misconfigured { found: self.to_string(), setting })
    }
}

impl fmt::Display for BrokerCertificateFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        use CertificateError::{ExpiredContext, NotValidForNameContext, NotValidYetContext};
        let Self { rule, wanted, subject, issuer, names } = self;
        match rule {
            NotValidYetContext { time, not_before } => write!(
                f,
                "the broker's certificate is valid only from {}; this device's clock says {}",
                rfc3339(not_before.as_secs()),
                rfc3339(time.as_secs())
            ),
            ExpiredContext { time, not_after } => write!(
                f,
                "the broker's certificate ended on {}; this device's clock says {}",
                rfc3339(not_after.as_secs()),
                rfc3339(time.as_secs())
            ),
            CertificateError::UnknownIssuer | CertificateError::BadSignature => write!(
                f,
                "the broker's certificate ({}, issued by {}) does not lead to the pinned root",
                printable(subject, MAX_SHOWN),
                printable(issuer, MAX_SHOWN)
            ),
            NotValidForNameContext { .. } => {
                write!(
                    f,
                    "the broker's certificate is for {}, not for {wanted}",
                    printable(names, MAX_SHOWN)
                )
            }
            rule => write!(f, "the broker's certificate cannot be used: {rule}"),
        }
    }
}

impl std::error::Error for BrokerCertificateFault {}

/// The DNS names and addresses of a certificate.
fn names(certificate: &X509Certificate<'_>) -> String {
    let names = certificate.subject_alternative_name().ok().flatten();
    let names = names.iter().flat_map(|names| &names.value.general_names);
    let mut names: Vec<_> = names.filter_map(name).collect();
    let more = names.len().saturating_sub(MAX_NAMES);
    names.truncate(MAX_NAMES);
    match more {
        0 if names.is_empty() => "no name".into(),
        0 => names.join(", "),
        more => format!("{} and {more} more", names.join(", ")),
    }
}

fn name(name: &GeneralName<'_>) -> Option<String> {
    match name {
        GeneralName::DNSName(name) => Some((*name).to_owned()),
        GeneralName::IPAddress(address) => match *address {
            [a, b, c, d] => Some(std::net::Ipv4Addr::new(*a, *b, *c, *d).to_string()),
            address => {
                Some(std::net::Ipv6Addr::from(<[u8; 16]>::try_from(address).ok()?).to_string())
            }
        },
        _ => None,
    }
}

/// As many names as one line has room for.
const MAX_NAMES: usize = 5;

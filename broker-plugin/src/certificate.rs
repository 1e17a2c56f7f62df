//! Reads whom a client certificate speaks for.

use std::time::{Duration, SystemTime};

use assay_wire::Identity;
use sha2::{Digest, Sha256};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

/// A certificate that a client has shown in its TLS handshake.
///
/// TLS has established that its path leads to the CA's root, that it is valid now, and that the
/// client has its key. The [register](crate::doorkeeper::Register) knows whether the CA still
/// stands by it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientCertificate {
    /// Whom it names.
    pub identity: Identity,
    /// The content octets of its serial number (RFC 5280 §4.1.2.2), big-endian.
    pub serial: Vec<u8>,
    /// The SHA-256 digest of the whole certificate. Somebody who stole the issuing key can make
    /// other certificates with this serial number, but none with this digest.
    pub sha256: [u8; 32],
    /// The end of its validity (RFC 5280 §4.1.2.5), to the second.
    pub not_after: SystemTime,
}

impl ClientCertificate {
    /// Reads a certificate in DER whose path, dates and key TLS has verified. It verifies nothing.
    ///
    /// # Errors
    /// The certificate cannot be read, or speaks for nobody.
    pub fn new(der: &[u8]) -> Result<Self, NoIdentity> {
        let certificate = parse(der)?;
        // A time before 1970 is as long past as 1970.
        let not_after = u64::try_from(certificate.validity().not_after.timestamp()).unwrap_or(0);
        Ok(Self {
            identity: named_by(&certificate)?,
            serial: certificate.raw_serial().to_vec(),
            sha256: Sha256::digest(der).into(),
            not_after: SystemTime::UNIX_EPOCH + Duration::from_secs(not_after),
        })
    }
}

/// Reads the identity from a certificate in DER whose path TLS has verified: the one URI in its
/// subject alternative name (RFC 5280 §4.2.1.6) that begins with [`Identity::PREFIX`].
///
/// # Errors
/// The certificate cannot be read, or speaks for nobody. One with several such URIs speaks for
/// nobody.
pub fn identity(der: &[u8]) -> Result<Identity, NoIdentity> {
    named_by(&parse(der)?)
}

fn parse(der: &[u8]) -> Result<X509Certificate<'_>, NoIdentity> {
    match X509Certificate::from_der(der) {
        Ok((_, certificate)) => Ok(certificate),
        Err(_) => Err(NoIdentity::Unreadable),
    }
}

fn named_by(certificate: &X509Certificate<'_>) -> Result<Identity, NoIdentity> {
    let names = certificate.subject_alternative_name().map_err(|_| NoIdentity::Unreadable)?;
    let names = names.map_or(&[][..], |names| &names.value.general_names);
    let mut ours = names.iter().filter_map(|name| match name {
        GeneralName::URI(uri) if uri.starts_with(Identity::PREFIX) => Some(*uri),
        _ => None,
    });
    match (ours.next(), ours.next()) {
        (Some(uri), None) => uri.parse().map_err(|_| NoIdentity::Unknown { uri: uri.to_owned() }),
        (None, _) => Err(NoIdentity::None),
        (Some(_), Some(_)) => Err(NoIdentity::Several),
    }
}

/// Why a certificate speaks for nobody.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)] // each variant's message is its documentation
pub enum NoIdentity {
    #[error("the certificate cannot be read")]
    Unreadable,
    #[error("the certificate has no URI that begins with {}", Identity::PREFIX)]
    None,
    #[error("the certificate has several URIs that begin with {}", Identity::PREFIX)]
    Several,
    #[error("{uri} names neither a device nor a role")]
    Unknown { uri: String },
}

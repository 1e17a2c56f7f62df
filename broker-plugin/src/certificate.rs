//! Whom a client certificate speaks for.

use assay_wire::Identity;
use sha2::{Digest, Sha256};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

/// What a client has shown in its TLS handshake.
///
/// TLS has established that the certificate leads to the root and is valid, and that the client has its key. Whether it
/// is on record is for the [doorkeeper](crate::embedded::Admit) to find out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientCertificate {
    /// The content octets of its serial number (RFC 5280 §4.1.2.2), big-endian.
    pub serial: Vec<u8>,
    /// Of the whole certificate. A stolen issuing key makes other certificates with this serial number, but none with this
    /// digest.
    pub sha256: [u8; 32],
}

impl ClientCertificate {
    /// Takes a certificate in DER, whose path TLS has verified; `None` if it cannot be read.
    pub fn new(der: &[u8]) -> Option<Self> {
        let (_, certificate) = X509Certificate::from_der(der).ok()?;
        Some(Self { serial: certificate.raw_serial().to_vec(), sha256: Sha256::digest(der).into() })
    }
}

/// Reads the identity from a certificate in DER, whose path TLS has verified: the one URI of ours in its subject
/// alternative name (RFC 5280 §4.2.1.6).
///
/// # Errors
/// It cannot be read, or speaks for nobody. One with several URIs of ours speaks for nobody.
pub fn identity(der: &[u8]) -> Result<Identity, NoIdentity> {
    let (_, certificate) = X509Certificate::from_der(der).map_err(|_| NoIdentity::Unreadable)?;
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

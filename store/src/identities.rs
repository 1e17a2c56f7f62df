//! Identities, who are no devices: brokers, workers, operators and backends, what backends may do,
//! and which certificates are good.

use assay_wire::{Identity, Rights};
use sha2::{Digest, Sha256};
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::certificates::CertificateStatus;
use crate::error::StoreError;

/// What an identity is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IdentityRole {
    /// Shows a server's certificate.
    Broker,
    /// Answers requests.
    Worker,
    /// Watches devices, and sends them commands.
    Operator,
    /// Reads and sends what its rights say.
    Backend,
}

impl IdentityRole {
    /// Its name, on record and for people.
    pub fn name(self) -> &'static str {
        match self {
            Self::Broker => "broker",
            Self::Worker => "worker",
            Self::Operator => "operator",
            Self::Backend => "backend",
        }
    }

    /// The role with this name.
    pub(crate) fn read(name: &str) -> Result<Self, StoreError> {
        [Self::Broker, Self::Worker, Self::Operator, Self::Backend]
            .into_iter()
            .find(|role| role.name() == name)
            .ok_or_else(|| StoreError::unreadable(format!("{name:?} is no role")))
    }

    /// The role, and the name if the certificate has one. `None` for a device's certificate.
    pub(crate) fn of(identity: &Identity) -> Option<(Self, Option<&str>)> {
        match identity {
            Identity::Device { .. } => None,
            Identity::Operator => Some((Self::Operator, None)),
            Identity::Worker => Some((Self::Worker, None)),
            Identity::Backend { name } => Some((Self::Backend, Some(name.as_str()))),
        }
    }
}

/// An identity that is put on record, with its first certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewIdentity {
    /// What operators call it.
    pub name: String,
    /// What it is.
    pub role: IdentityRole,
    /// What it may do, if it is a backend; nothing otherwise.
    pub rights: Rights,
    /// Its certificate.
    pub certificate: IdentityCertificate,
}

/// A certificate of an identity, as it is put on record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdentityCertificate {
    pub(crate) sha256: [u8; 32],
    pub(crate) serial: Vec<u8>,
    pub(crate) not_after: i64,
}

impl IdentityCertificate {
    /// SHA-256 of the certificate.
    pub fn sha256(&self) -> &[u8; 32] {
        &self.sha256
    }

    /// When it expires, in seconds since 1970.
    pub fn not_after(&self) -> i64 {
        self.not_after
    }

    /// Reads a certificate in DER. `None` if it cannot be read. Verifies nothing.
    pub fn read(der: &[u8]) -> Option<Self> {
        let (_, certificate) = X509Certificate::from_der(der).ok()?;
        Some(Self {
            sha256: Sha256::digest(der).into(),
            serial: certificate.raw_serial().to_vec(),
            not_after: certificate.validity().not_after.timestamp(),
        })
    }
}

/// An identity on record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdentityRow {
    /// What operators call it.
    pub name: String,
    /// What it is.
    pub role: IdentityRole,
    /// What it may do, if it is a backend.
    pub rights: Rights,
    /// Its certificates, oldest first. It has one at least.
    pub certificates: Vec<IdentityCertificateRow>,
}

impl IdentityRow {
    /// The identity with each of its certificates.
    pub fn certificates_of(&self) -> impl Iterator<Item = (&Self, &IdentityCertificateRow)> {
        self.certificates.iter().map(move |certificate| (self, certificate))
    }

    /// Whether this is one of its certificates, in DER.
    pub fn has(&self, certificate: &[u8]) -> bool {
        let sha256 = <[u8; 32]>::from(Sha256::digest(certificate));
        self.certificates.iter().any(|it| it.sha256 == sha256)
    }

    /// The newest certificate that is not revoked. `None` if the identity is revoked.
    pub fn newest(&self) -> Option<&IdentityCertificateRow> {
        self.certificates.iter().rev().find(|certificate| certificate.revoked_at.is_none())
    }
}

/// A certificate of an identity.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdentityCertificateRow {
    /// SHA-256 of the certificate.
    pub sha256: [u8; 32],
    /// Its serial number.
    pub serial: Vec<u8>,
    /// When it was issued, in seconds since 1970.
    pub issued_at: i64,
    /// When it expires, in seconds since 1970.
    pub not_after: i64,
    /// When it was revoked, in seconds since 1970; `None` if it was not.
    pub revoked_at: Option<i64>,
}

/// Which certificates of an identity. A digest is a certificate's SHA-256.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Which<'d> {
    /// All of them.
    Every,
    /// All but one.
    EveryBut(&'d [u8; 32]),
    /// One.
    Only(&'d [u8; 32]),
}

impl Which<'_> {
    /// The digest that is excepted, and the one that alone is meant.
    pub(crate) fn digests(&self) -> [Option<&[u8; 32]>; 2] {
        match self {
            Self::Every => [None, None],
            Self::EveryBut(sha256) => [Some(*sha256), None],
            Self::Only(sha256) => [None, Some(*sha256)],
        }
    }
}

/// What became of another certificate for an identity.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Renewed {
    /// It is on record. Those of before are good as long as they were.
    Done,
    /// There is no such identity.
    Unknown,
    /// Every certificate of the identity is revoked, and so is the identity.
    Revoked,
}

/// What an identity is let in by, from columns.
pub(crate) fn status(
    found: Option<(Option<i64>, String, String)>,
) -> Result<(CertificateStatus, Rights), StoreError> {
    Ok(match found {
        None => (CertificateStatus::Unknown, Rights::default()),
        Some((None, publish, subscribe)) => {
            (CertificateStatus::Active, rights(&publish, &subscribe)?)
        }
        Some((Some(_), ..)) => (CertificateStatus::Revoked, Rights::default()),
    })
}

/// The rights in two columns.
pub(crate) fn rights(publish: &str, subscribe: &str) -> Result<Rights, StoreError> {
    Rights::new(publish.split_whitespace(), subscribe.split_whitespace())
        .map_err(StoreError::unreadable)
}

/// Rights as two columns have them: filters with spaces in between. No filter has a space.
pub(crate) fn columns(rights: &Rights) -> [String; 2] {
    [
        rights.publish().collect::<Vec<_>>().join(" "),
        rights.subscribe().collect::<Vec<_>>().join(" "),
    ]
}

/// Joins the rows of identities and their certificates. Both are in order, and those of one
/// identity follow each other.
pub(crate) fn joined(
    rows: impl IntoIterator<Item = (String, String, [String; 2], IdentityCertificateRow)>,
) -> Result<Vec<IdentityRow>, StoreError> {
    let mut joined = Vec::<IdentityRow>::new();
    for (name, role, [publish, subscribe], certificate) in rows {
        match joined.last_mut().filter(|last| last.name == name) {
            Some(last) => last.certificates.push(certificate),
            None => joined.push(IdentityRow {
                name,
                role: IdentityRole::read(&role)?,
                rights: rights(&publish, &subscribe)?,
                certificates: vec![certificate],
            }),
        }
    }
    Ok(joined)
}

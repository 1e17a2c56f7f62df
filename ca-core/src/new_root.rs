//! A root that another machine made: the first of a CA, or a new one and the certificate with which
//! the old one certifies it.

use rustls_pki_types::CertificateDer;
use time::OffsetDateTime;
use x509_parser::extensions::ParsedExtension;
use x509_parser::prelude::X509Certificate;

use crate::x509::parse_certificate;
use crate::{oid, rfc3339};

/// The root that a CA begins with, which may certify any other CA.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FirstRoot(CertificateDer<'static>);

impl FirstRoot {
    /// Checks that this certificate is self-signed, is of a CA that may certify any other, and is
    /// valid at this time. That it is the right one, nobody can see but who compares its
    /// fingerprint.
    ///
    /// # Errors
    /// It is not like this.
    pub fn check(der: CertificateDer<'static>, now: OffsetDateTime) -> Result<Self, NotANewRoot> {
        let root = parse_certificate(&der).ok_or(NotANewRoot::Unreadable)?;
        if !is_signed_by(&root, &root) {
            return Err(NotANewRoot::NotSelfSigned);
        }
        if !may_certify_any_ca(&root) {
            return Err(NotANewRoot::Limited);
        }
        let validity = root.validity();
        let (not_before, not_after) =
            (validity.not_before.to_datetime(), validity.not_after.to_datetime());
        if !(not_before..=not_after).contains(&now) {
            return Err(NotANewRoot::NotValid { time: now, not_before, not_after });
        }
        Ok(Self(der))
    }

    /// The certificate.
    pub fn certificate(&self) -> &CertificateDer<'static> {
        &self.0
    }
}

/// A new root that the old one certified: *newWithOld* (RFC 4210 §4.4).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewRoot {
    cross: assay_wire::CertificateDer,
    /// When both certificates are valid.
    validity: (OffsetDateTime, OffsetDateTime),
}

impl NewRoot {
    /// Checks that `new` is self-signed, and that `old` certified it in `cross` as a new root: the
    /// two have the same name and key, both are of a CA that may certify any other (RFC 5280 §6.1.4
    /// (k), (m), (n)), and `old` signed `cross`, which has the policy that says so (RFC 5280 §6.1.3
    /// (a)(1), (4)). A device checks the same of `cross`. Does not check when they are valid:
    /// [`valid_at`](Self::valid_at) does.
    ///
    /// # Errors
    /// They are not like this.
    pub fn check(new: &[u8], cross: &[u8], old: &[u8]) -> Result<Self, NotANewRoot> {
        let parse = |der| parse_certificate(der).ok_or(NotANewRoot::Unreadable);
        let [root, crossed, signer] = [parse(new)?, parse(cross)?, parse(old)?];
        if !is_signed_by(&root, &root) {
            return Err(NotANewRoot::NotSelfSigned);
        }
        let is_same = crossed.subject().as_raw() == root.subject().as_raw()
            && crossed.public_key().raw == root.public_key().raw;
        if !is_same {
            return Err(NotANewRoot::AnotherRoot);
        }
        if ![&root, &crossed].into_iter().all(may_certify_any_ca) {
            return Err(NotANewRoot::Limited);
        }
        if !says_new_root(&crossed) {
            return Err(NotANewRoot::NotCertifiedAsOne);
        }
        if !is_signed_by(&crossed, &signer) {
            return Err(NotANewRoot::NotSignedByTheOld);
        }
        let [root, crossed] = [&root, &crossed].map(|it| it.validity());
        let not_before = root.not_before.max(crossed.not_before).to_datetime();
        let not_after = root.not_after.min(crossed.not_after).to_datetime();
        let cross = cross.try_into().map_err(|_| NotANewRoot::TooLong)?;
        Ok(Self { cross, validity: (not_before, not_after) })
    }

    /// The same, if both certificates are valid at this time (RFC 5280 §6.1.3 (a)(2)): a device
    /// does not pin the new root otherwise.
    ///
    /// # Errors
    /// They are not.
    pub fn valid_at(self, time: OffsetDateTime) -> Result<Self, NotANewRoot> {
        let (not_before, not_after) = self.validity;
        if (not_before..=not_after).contains(&time) {
            return Ok(self);
        }
        Err(NotANewRoot::NotValid { time, not_before, not_after })
    }

    /// The certificate with which the old root certifies the new one, in DER.
    pub fn cross(&self) -> &[u8] {
        &self.cross
    }
}

fn is_signed_by(certificate: &X509Certificate<'_>, signer: &X509Certificate<'_>) -> bool {
    certificate.issuer().as_raw() == signer.subject().as_raw()
        && certificate.verify_signature(Some(signer.public_key())).is_ok()
}

/// Whether nothing in its certificate limits what a CA certifies.
fn may_certify_any_ca(certificate: &X509Certificate<'_>) -> bool {
    let constraints = certificate.basic_constraints().ok().flatten().map(|it| it.value);
    let usage = certificate.key_usage().ok().flatten().map(|it| it.value);
    constraints.is_some_and(|it| it.ca && it.path_len_constraint.is_none())
        && usage.is_some_and(|it| it.key_cert_sign())
        && matches!(certificate.extended_key_usage(), Ok(None))
}

fn says_new_root(certificate: &X509Certificate<'_>) -> bool {
    certificate.extensions().iter().any(|extension| {
        matches!(extension.parsed_extension(), ParsedExtension::CertificatePolicies(policies)
            if policies.iter().any(|policy| policy.policy_id.as_bytes() == oid::NEW_ROOT))
    })
}

/// Why this is not a new root.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)] // each variant's message is its documentation
pub enum NotANewRoot {
    #[error("a certificate of a root cannot be read")]
    Unreadable,
    #[error("the new root is not self-signed")]
    NotSelfSigned,
    #[error("the cross certificate is for another root")]
    AnotherRoot,
    #[error("the cross certificate does not certify a new root")]
    NotCertifiedAsOne,
    #[error("a certificate limits what the new root may certify, as that of no root does")]
    Limited,
    #[error("the old root did not sign the cross certificate")]
    NotSignedByTheOld,
    #[error("the cross certificate is too long for a reply to a device")]
    TooLong,
    #[error(
        "the new root is not valid at {}: it is valid from {} to {}",
        rfc3339(time),
        rfc3339(not_before),
        rfc3339(not_after)
    )]
    NotValid { time: OffsetDateTime, not_before: OffsetDateTime, not_after: OffsetDateTime },
}

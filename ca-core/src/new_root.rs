//! A new root, and the certificate with which the old one certifies it.

use x509_parser::extensions::ParsedExtension;
use x509_parser::prelude::X509Certificate;

use crate::oid;
use crate::x509::parse_certificate;

/// A new root that the old one certified: *newWithOld* (RFC 4210 §4.4).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewRoot {
    cross: Vec<u8>,
}

impl NewRoot {
    /// Checks that `new` is self-signed, and that `old` certified it in `cross` as a new root: the
    /// two have the same name and key, and `old` signed `cross`, which has the policy that says so
    /// (RFC 5280 §6.1.3 (a)(1), (4)). Does not check when they are valid.
    ///
    /// # Errors
    /// They are not like this.
    pub fn check(new: &[u8], cross: &[u8], old: &[u8]) -> Result<Self, NotANewRoot> {
        let parse = |der| parse_certificate(der).ok_or(NotANewRoot::Unreadable);
        let [root, crossed, signer] = [parse(new)?, parse(cross)?, parse(old)?];
        let is_signed_by = |certificate: &X509Certificate<'_>, signer: &X509Certificate<'_>| {
            certificate.issuer().as_raw() == signer.subject().as_raw()
                && certificate.verify_signature(Some(signer.public_key())).is_ok()
        };
        if !is_signed_by(&root, &root) {
            return Err(NotANewRoot::NotSelfSigned);
        }
        let is_same = crossed.subject().as_raw() == root.subject().as_raw()
            && crossed.public_key().raw == root.public_key().raw;
        if !is_same {
            return Err(NotANewRoot::AnotherRoot);
        }
        let constraints = crossed.basic_constraints().ok().flatten().map(|it| it.value.clone());
        let is_unlimited = constraints.is_some_and(|it| it.ca && it.path_len_constraint.is_none());
        if !is_unlimited || !says_new_root(&crossed) {
            return Err(NotANewRoot::NotCertifiedAsOne);
        }
        if !is_signed_by(&crossed, &signer) {
            return Err(NotANewRoot::NotSignedByTheOld);
        }
        Ok(Self { cross: cross.to_vec() })
    }

    /// The certificate with which the old root certifies the new one, in DER.
    pub fn cross(&self) -> &[u8] {
        &self.cross
    }
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
    #[error("the old root did not sign the cross certificate")]
    NotSignedByTheOld,
}

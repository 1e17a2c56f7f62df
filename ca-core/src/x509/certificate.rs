//! A certificate, read once into everything that decisions need.

use std::collections::BTreeSet;

use assay_wire::printable;
use time::OffsetDateTime;
use x509_parser::certificate::X509CertificateParser;
use x509_parser::nom::Parser;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::name::{MAX_SHOWN, Name};
use super::policies::Policies;
use super::signature::{SignatureAlgorithm, Unsupported, VerifyingKey};
use crate::der::{Element, Reader, tag};
use crate::key::NO_UNUSED_BITS;
use crate::oid::{self, extension};

/// A certificate. Its signature covers everything that is kept here, except the signature itself.
///
/// Does not establish that anybody trusted signed it.
#[derive(Clone, Debug)]
pub(crate) struct Certificate {
    /// The TBSCertificate in DER, which is the signed part. It identifies the certificate. The
    /// whole certificate does not, because anybody who forwards an ECDSA signature can change it.
    tbs: Vec<u8>,
    signature: Vec<u8>,
    algorithm: Result<SignatureAlgorithm, Unsupported>,
    pub(crate) key: Result<VerifyingKey, Unsupported>,
    pub(crate) spki: Vec<u8>,
    pub(crate) serial: Vec<u8>,
    pub(crate) issuer: Name,
    pub(crate) subject: Name,
    pub(crate) not_before: OffsetDateTime,
    pub(crate) not_after: OffsetDateTime,
    pub(crate) extensions: Extensions,
}

/// The content of the extensions that this crate understands.
#[derive(Clone, Debug, Default)]
pub(crate) struct Extensions {
    pub(crate) subject_key_id: Option<Vec<u8>>,
    pub(crate) authority_key_id: Option<Vec<u8>>,
    pub(crate) is_ca: bool,
    pub(crate) path_length: Option<u32>,
    /// keyCertSign, if there is a keyUsage.
    pub(crate) may_sign_certificates: Option<bool>,
    pub(crate) ek_usage: EkUsage,
    pub(crate) alt_names: Vec<AltName>,
    pub(crate) policies: Policies,
    pub(crate) name_constraints: Option<NameConstraints>,
    /// Where its issuer's certificate is, according to the certificate.
    pub(crate) issuer_at: Option<String>,
    /// A critical extension that this crate does not understand.
    pub(crate) unknown_critical: Option<String>,
}

/// What extendedKeyUsage (RFC 5280 §4.2.1.12) says about use as an EK certificate.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum EkUsage {
    /// The extension is absent.
    #[default]
    Unsaid,
    /// It has `tcg-kp-EKCertificate`.
    Named,
    /// It has `anyExtendedKeyUsage` instead.
    Any,
    /// It is for other uses only.
    Excluded,
}

/// A GeneralName (RFC 5280 §4.2.1.6).
#[derive(Clone, Debug)]
pub(crate) enum AltName {
    /// In DER. A name is read where it is compared, after the signature over it was verified.
    Directory(Vec<u8>),
    /// A name of another form, by its tag.
    Other(u8),
}

/// RFC 5280 §4.2.1.10.
#[derive(Clone, Debug, Default)]
pub(crate) struct NameConstraints {
    pub(crate) permitted: Vec<AltName>,
    pub(crate) excluded: Vec<AltName>,
}

impl Certificate {
    /// Reads an X.509 certificate in DER.
    ///
    /// Outside of the signed part, only the value of the signature can vary: the outer algorithm
    /// must equal the signed one (RFC 5280 §4.1.1.2), and lengths and padding have only one form.
    pub(crate) fn read(der: &[u8]) -> Result<Self, Unreadable> {
        let (tbs, signature) = take_apart(der)?;
        let mut parser = X509CertificateParser::new().with_deep_parse_extensions(false);
        let Ok((&[], parsed)) = parser.parse(der) else { return Err(Unreadable::NoCertificate) };
        Ok(Self {
            tbs: tbs.to_vec(),
            signature: signature.to_vec(),
            algorithm: SignatureAlgorithm::read(&parsed.signature_algorithm),
            key: VerifyingKey::read(parsed.public_key()),
            spki: parsed.public_key().raw.to_vec(),
            serial: parsed.raw_serial().to_vec(),
            issuer: Name::of(parsed.issuer()).ok_or(Unreadable::LongName)?,
            subject: Name::of(parsed.subject()).ok_or(Unreadable::LongName)?,
            not_before: parsed.validity().not_before.to_datetime(),
            not_after: parsed.validity().not_after.to_datetime(),
            extensions: Extensions::read(&parsed)?,
        })
    }

    /// Whether both are the same certificate, even if their signatures differ.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        self.tbs == other.tbs
    }

    /// Whether its subject and its issuer are the same name (RFC 5280 §6.1).
    pub(crate) fn is_self_issued(&self) -> bool {
        self.subject == self.issuer
    }

    /// Whether `issuer` may be the issuer of this certificate, by name and by key identifier (RFC
    /// 5280 §4.2.1.1). This proves nothing.
    pub(crate) fn names_as_issuer(&self, issuer: &Self) -> bool {
        let by_key = match (&self.extensions.authority_key_id, &issuer.extensions.subject_key_id) {
            (Some(authority), Some(subject)) => authority == subject,
            _ => true,
        };
        by_key && self.issuer == issuer.subject && !issuer.subject.is_empty()
    }

    /// Whether the issuer's key and the algorithm of the signature are accepted, and fit each
    /// other.
    pub(crate) fn can_be_signed_by(&self, issuer: &Self) -> Result<bool, Unsupported> {
        Ok(issuer.key.clone()?.fits(self.algorithm.clone()?))
    }

    /// Its signature algorithm, if accepted.
    pub(crate) fn signature_algorithm(&self) -> &Result<SignatureAlgorithm, Unsupported> {
        &self.algorithm
    }

    /// Whether the issuer's key signed it. This costs one check of a signature.
    pub(crate) fn is_signed_by(&self, issuer: &Self) -> bool {
        match (&issuer.key, &self.algorithm) {
            (Ok(key), Ok(algorithm)) => key.verifies(*algorithm, &self.tbs, &self.signature),
            _ => false,
        }
    }
}

/// Why this crate does not read a certificate.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Unreadable {
    #[error("it is not an X.509 certificate in DER")]
    NoCertificate,
    #[error(
        "somebody changed it on its way: outside of the signed part it is not in DER, or it names \
         another signature algorithm"
    )]
    Changed,
    #[error("its subject or issuer is longer than any vendor's name")]
    LongName,
    #[error("its extension {0} is malformed, or longer than any vendor's")]
    Extension(String),
    #[error("it has the extension {0} twice")]
    Twice(String),
}

/// Parses a certificate that we made ourselves, or that the caller checks. Establishes nothing
/// about it.
pub(crate) fn parse_certificate(der: &[u8]) -> Option<X509Certificate<'_>> {
    match X509Certificate::from_der(der) {
        Ok((&[], certificate)) => Some(certificate),
        _ => None,
    }
}

/// The TBSCertificate with its header, and the signature.
fn take_apart(der: &[u8]) -> Result<(&[u8], &[u8]), Unreadable> {
    let mut outer = Reader::new(Reader::only(tag::SEQUENCE, der).ok_or(Unreadable::NoCertificate)?);
    let mut apart = || {
        let tbs = outer.next()?;
        let algorithm = outer.next()?;
        let (unused_bits, signature) = outer.take(tag::BIT_STRING)?.split_first()?;
        let mut signed = Reader::new(tbs.content);
        if signed.is_at(tag::CONTEXT_0) {
            signed.next()?;
        }
        signed.take(tag::INTEGER)?;
        let is_canonical = *unused_bits == NO_UNUSED_BITS
            && outer.is_empty()
            && signed.next()?.whole == algorithm.whole
            && tbs.tag == tag::SEQUENCE;
        is_canonical.then_some((tbs.whole, signature))
    };
    apart().ok_or(Unreadable::Changed)
}

impl Extensions {
    fn read(certificate: &X509Certificate<'_>) -> Result<Self, Unreadable> {
        let (mut extensions, mut seen) = (Self::default(), BTreeSet::new());
        for extension in certificate.extensions() {
            let id = extension.oid.as_bytes();
            if !seen.insert(id) {
                return Err(Unreadable::Twice(name_of(id)));
            }
            let is_understood = extensions
                .take(id, extension.value)
                .ok_or_else(|| Unreadable::Extension(name_of(id)))?;
            if extension.critical && !is_understood && extensions.unknown_critical.is_none() {
                extensions.unknown_critical = Some(name_of(id));
            }
        }
        Ok(extensions)
    }

    /// Takes over what one extension says. `None` if it is malformed, false if it is not
    /// understood.
    fn take(&mut self, id: &[u8], value: &[u8]) -> Option<bool> {
        match id {
            extension::SUBJECT_KEY_IDENTIFIER => {
                self.subject_key_id = Some(Reader::only(tag::OCTET_STRING, value)?.to_vec());
            }
            extension::AUTHORITY_KEY_IDENTIFIER => {
                let mut fields = Reader::new(Reader::only(tag::SEQUENCE, value)?);
                // Issuer and serial number may follow. They tell nothing that the issuer's name
                // does not.
                self.authority_key_id = if fields.is_at(tag::PRIMITIVE_0) {
                    fields.take(tag::PRIMITIVE_0).map(<[u8]>::to_vec)
                } else {
                    None
                };
            }
            extension::BASIC_CONSTRAINTS => {
                (self.is_ca, self.path_length) = basic_constraints(value)?
            }
            extension::KEY_USAGE => {
                let (_, bits) = Reader::only(tag::BIT_STRING, value)?.split_first()?;
                self.may_sign_certificates =
                    Some(bits.first().is_some_and(|bits| bits & KEY_CERT_SIGN != 0));
            }
            extension::EXTENDED_KEY_USAGE => self.ek_usage = ek_usage(value)?,
            extension::SUBJECT_ALT_NAME => {
                self.alt_names = general_names(Reader::only(tag::SEQUENCE, value)?)?
            }
            extension::CERTIFICATE_POLICIES => self.policies.policies = Some(policies(value)?),
            extension::POLICY_MAPPINGS => self.policies.mappings = mappings(value)?,
            extension::POLICY_CONSTRAINTS => {
                let mut fields = Reader::new(Reader::only(tag::SEQUENCE, value)?);
                let mut field = |tag| {
                    if fields.is_at(tag) {
                        Some(Some(unsigned(fields.take(tag)?)?))
                    } else {
                        Some(None)
                    }
                };
                self.policies.require_explicit = field(tag::PRIMITIVE_0)?;
                self.policies.inhibit_mapping = field(tag::PRIMITIVE_1)?;
                fields.is_empty().then_some(())?;
            }
            extension::INHIBIT_ANY_POLICY => {
                self.policies.inhibit_any = Some(unsigned(Reader::only(tag::INTEGER, value)?)?);
            }
            extension::NAME_CONSTRAINTS => {
                self.name_constraints = Some(NameConstraints::read(value)?)
            }
            // Says where to ask whether the certificate is revoked. The CA asks nobody, which the
            // documentation states, so this extension changes nothing.
            extension::CRL_DISTRIBUTION_POINTS => {}
            oid::AUTHORITY_INFORMATION_ACCESS => {
                self.issuer_at = issuer_at(value);
                return Some(false);
            }
            _ => return Some(false),
        }
        Some(true)
    }
}

impl NameConstraints {
    fn read(value: &[u8]) -> Option<Self> {
        let mut fields = Reader::new(Reader::only(tag::SEQUENCE, value)?);
        let mut subtrees = |tag| {
            if !fields.is_at(tag) {
                return Some(Vec::new());
            }
            let (mut list, mut bases) = (Reader::new(fields.take(tag)?), Vec::new());
            while !list.is_empty() {
                // `minimum` is 0 and thus absent, `maximum` is absent (RFC 5280 §4.2.1.10).
                let mut base = general_names(list.take(tag::SEQUENCE)?)?;
                bases.push(base.pop().filter(|_| base.is_empty())?);
                is_short(&bases)?;
            }
            Some(bases)
        };
        let constraints =
            Self { permitted: subtrees(tag::CONTEXT_0)?, excluded: subtrees(tag::CONTEXT_1)? };
        let is_empty = constraints.permitted.is_empty() && constraints.excluded.is_empty();
        (fields.is_empty() && !is_empty).then_some(constraints)
    }
}

/// `cA` and `pathLenConstraint` (RFC 5280 §4.2.1.9). Some vendors write `cA` even if it is FALSE,
/// its default.
fn basic_constraints(value: &[u8]) -> Option<(bool, Option<u32>)> {
    let mut fields = Reader::new(Reader::only(tag::SEQUENCE, value)?);
    let is_ca = match fields.is_at(tag::BOOLEAN) {
        true => match fields.take(tag::BOOLEAN)? {
            [0xFF] => true,
            [0] => false,
            _ => return None,
        },
        false => false,
    };
    let path_length =
        if fields.is_empty() { None } else { Some(unsigned(fields.take(tag::INTEGER)?)?) };
    fields.is_empty().then_some((is_ca, path_length))
}

fn ek_usage(value: &[u8]) -> Option<EkUsage> {
    let mut list = Reader::new(Reader::only(tag::SEQUENCE, value)?);
    let mut usages = vec![list.take(tag::OID)?];
    while !list.is_empty() {
        usages.push(list.take(tag::OID)?);
        is_short(&usages)?;
    }
    Some(if usages.contains(&oid::EK_CERTIFICATE) {
        EkUsage::Named
    } else if usages.contains(&oid::ANY_EXTENDED_KEY_USAGE) {
        EkUsage::Any
    } else {
        EkUsage::Excluded
    })
}

fn general_names(names: &[u8]) -> Option<Vec<AltName>> {
    let (mut list, mut names) = (Reader::new(names), Vec::new());
    while !list.is_empty() {
        let Element { tag, content, .. } = list.next()?;
        names.push(match tag {
            tag::DIRECTORY_NAME => AltName::Directory(content.to_vec()),
            other => AltName::Other(other),
        });
        is_short(&names)?;
    }
    Some(names)
}

fn policies(value: &[u8]) -> Option<BTreeSet<Vec<u8>>> {
    let (mut list, mut policies) = (Reader::new(Reader::only(tag::SEQUENCE, value)?), Vec::new());
    while !list.is_empty() {
        policies.push(Reader::new(list.take(tag::SEQUENCE)?).take(tag::OID)?.to_vec());
        is_short(&policies)?;
    }
    Some(policies.into_iter().collect())
}

/// Bounds what a stranger makes the CA keep before a signature is verified.
fn is_short<T>(list: &[T]) -> Option<()> {
    (list.len() <= MAX_LIST).then_some(())
}

fn mappings(value: &[u8]) -> Option<Vec<(Vec<u8>, Vec<u8>)>> {
    let (mut list, mut mappings) = (Reader::new(Reader::only(tag::SEQUENCE, value)?), Vec::new());
    while !list.is_empty() {
        let mut pair = Reader::new(list.take(tag::SEQUENCE)?);
        let (from, to) = (pair.take(tag::OID)?.to_vec(), pair.take(tag::OID)?.to_vec());
        mappings.push(pair.is_empty().then_some((from, to))?);
        is_short(&mappings)?;
    }
    Some(mappings)
}

/// The first URI of `id-ad-caIssuers` (RFC 5280 §4.2.2.1), for people to read.
fn issuer_at(value: &[u8]) -> Option<String> {
    let mut list = Reader::new(Reader::only(tag::SEQUENCE, value)?);
    while !list.is_empty() {
        let mut description = Reader::new(list.take(tag::SEQUENCE)?);
        if description.take(tag::OID)? == oid::CA_ISSUERS
            && let Some(uri) = description.take(tag::URI)
        {
            return Some(printable(&String::from_utf8_lossy(uri), MAX_SHOWN));
        }
    }
    None
}

/// A count of certificates; `None` if it is negative or not minimal. A number that is too large for
/// the type becomes the type's largest number.
fn unsigned(content: &[u8]) -> Option<u32> {
    match content {
        [] | [0x80..=0xFF, ..] | [0, 0..=0x7F, ..] => None,
        [0, rest @ ..] | rest => {
            let number = rest.iter().try_fold(0u32, |number, byte| {
                number.checked_mul(256)?.checked_add(u32::from(*byte))
            });
            Some(number.unwrap_or(u32::MAX))
        }
    }
}

/// An extension's name for people.
fn name_of(id: &[u8]) -> String {
    let known = match id {
        extension::SUBJECT_KEY_IDENTIFIER => "subjectKeyIdentifier",
        extension::AUTHORITY_KEY_IDENTIFIER => "authorityKeyIdentifier",
        extension::BASIC_CONSTRAINTS => "basicConstraints",
        extension::KEY_USAGE => "keyUsage",
        extension::EXTENDED_KEY_USAGE => "extendedKeyUsage",
        extension::SUBJECT_ALT_NAME => "subjectAltName",
        extension::CERTIFICATE_POLICIES => "certificatePolicies",
        extension::POLICY_MAPPINGS => "policyMappings",
        extension::POLICY_CONSTRAINTS => "policyConstraints",
        extension::INHIBIT_ANY_POLICY => "inhibitAnyPolicy",
        extension::NAME_CONSTRAINTS => "nameConstraints",
        extension::CRL_DISTRIBUTION_POINTS => "cRLDistributionPoints",
        oid::AUTHORITY_INFORMATION_ACCESS => "authorityInfoAccess",
        other => return oid::dotted(other),
    };
    format!("{known} ({})", oid::dotted(id))
}

/// `keyCertSign` in the first byte of a keyUsage (RFC 5280 §4.2.1.3).
const KEY_CERT_SIGN: u8 = 0x04;
/// The most entries of a list in an extension. Vendors' lists have up to four.
const MAX_LIST: usize = 64;

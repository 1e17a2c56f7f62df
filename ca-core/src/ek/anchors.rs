//! What an operator trusts: TPM vendors' CA certificates, and the search for a path from an EK
//! certificate to one of them.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use rustls_pki_types::CertificateDer;
use time::OffsetDateTime;

use crate::ek::ca_key::CaKey;
use crate::x509::{Broken, Certificate, Name, Purpose, Rule, Unsupported, check_path};

/// The TPM vendors' CA certificates that an operator has. They are read once, for all EK
/// certificates that are checked against them.
#[derive(Clone, Debug, Default)]
pub struct TrustAnchors {
    known: Vec<Known>,
    /// Positions in `known`. Vendors have hundreds of certificates, and a path needs few.
    by_subject: BTreeMap<Name, Vec<usize>>,
}

#[derive(Clone, Debug)]
struct Known {
    vendor: VendorCertificate,
    /// Positions of the certificates that signed it. The signatures are verified once, when the
    /// certificates are read: a signature depends only on the key and the message, so it need not
    /// be verified again for every EK. Validity and constraints depend on more, and are checked for
    /// every EK.
    issuers: Vec<usize>,
}

impl TrustAnchors {
    /// Joins certificates that were read one by one.
    pub fn new(certificates: impl IntoIterator<Item = VendorCertificate>) -> Self {
        let mut anchors = Self::default();
        for vendor in certificates {
            anchors
                .by_subject
                .entry(vendor.certificate.subject.clone())
                .or_default()
                .push(anchors.known.len());
            anchors.known.push(Known { vendor, issuers: Vec::new() });
        }
        for at in 0..anchors.known.len() {
            let certificate = &anchors.known[at].vendor.certificate;
            let signed = |issuer: &usize| {
                *issuer != at
                    && certificate.is_signed_by(&anchors.known[*issuer].vendor.certificate)
            };
            anchors.known[at].issuers =
                anchors.named_as_issuer_of(certificate).filter(signed).collect();
        }
        anchors
    }

    /// Finds the path from an EK certificate to an anchor (RFC 5280 §6.1), through the operator's
    /// certificates and those that were sent.
    ///
    /// A stranger chooses what is sent, so the work is bounded. A certificate is tried as an issuer
    /// only if its name and key identifier fit. Repeated and self-issued certificates are dropped.
    /// Signatures are verified before the rules for paths are checked, and at most
    /// [`MAX_SIGNATURES`] are verified.
    pub(crate) fn find_path(
        &self,
        leaf: &Certificate,
        sent: &[CertificateDer<'_>],
        now: OffsetDateTime,
    ) -> Result<VendorPath, NoPath> {
        Search::new(self, leaf, Purpose::BeEk, sent, now).run()
    }

    /// Finds the path from a CA's certificate to an anchor. The certificate may be an anchor
    /// itself.
    ///
    /// # Errors
    /// No path to an EK can use the certificate, so it counts for nothing.
    pub fn check_ca(
        &self,
        vendor: &VendorCertificate,
        now: OffsetDateTime,
    ) -> Result<VendorPath, NoPath> {
        let is_same = |known: &&Known| known.vendor.is_same(vendor);
        let mut same =
            self.known.iter().filter(is_same).filter_map(|known| known.vendor.role.allowances());
        match same.next() {
            Some(allowances) => {
                let (subjects, keys) = (vec![vendor.subject()], vec![vendor.ca_key()]);
                Ok(VendorPath { subjects, keys, allowances })
            }
            None => Search::new(self, &vendor.certificate, Purpose::Issue, &[], now).run(),
        }
    }

    /// Whether any anchor allows EK certificates to lack this.
    pub(crate) fn may_allow(&self, missing: Allowances) -> bool {
        self.known.iter().any(|known| {
            known.vendor.role.allowances().is_some_and(|allowances| allowances.cover(missing))
        })
    }

    fn named_as_issuer_of<'a>(
        &'a self,
        certificate: &'a Certificate,
    ) -> impl Iterator<Item = usize> + 'a {
        let named = self.by_subject.get(&certificate.issuer).map_or(&[][..], Vec::as_slice);
        named
            .iter()
            .copied()
            .filter(|at| certificate.names_as_issuer(&self.known[*at].vendor.certificate))
    }
}

/// A CA's certificate that an operator has, read and fit to issue. Does not establish that it can
/// be trusted: the operator decides that.
#[derive(Clone, Debug)]
pub struct VendorCertificate {
    certificate: Certificate,
    role: Role,
}

/// What a [`VendorCertificate`] is good for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// It signed itself, and the operator trusts it.
    Root,
    /// Another CA signed it. It helps to build paths, and counts for nothing without its issuer.
    Issuer,
    /// The operator trusts it, no matter who signed it. EK certificates under it may lack what the
    /// allowances name.
    Anchor(Allowances),
}

impl Role {
    /// What an anchor lets EK certificates lack; `None` for an issuer, because it is not an anchor.
    fn allowances(self) -> Option<Allowances> {
        match self {
            Self::Root => Some(Allowances::default()),
            Self::Anchor(allowances) => Some(allowances),
            Self::Issuer => None,
        }
    }

    /// Whether adding a certificate again, as `other`, changes its role: it becomes an anchor, or
    /// an anchor with other allowances.
    pub fn becomes(self, other: Self) -> bool {
        self != other && matches!(other, Self::Anchor(_))
    }
}

impl VendorCertificate {
    /// Reads a CA's certificate, and finds out whether it is a root: whether its own key signed it.
    ///
    /// # Errors
    /// No path to an EK could ever use it.
    pub fn read(der: &[u8]) -> Result<Self, AnchorError> {
        let certificate = fit_to_issue(der)?;
        let subject = || certificate.subject.to_string();
        if let Err(reason) = certificate.signature_algorithm() {
            return Err(AnchorError::SignatureUnsupported {
                subject: subject(),
                reason: reason.to_string(),
            });
        }
        let role = match certificate.is_self_issued() {
            true if !certificate.is_signed_by(&certificate) => {
                return Err(AnchorError::NotSelfSigned { subject: subject() });
            }
            true => Role::Root,
            false => Role::Issuer,
        };
        Ok(Self { certificate, role })
    }

    /// Reads a certificate that is trusted, no matter who signed it. EK certificates under it may
    /// lack what the allowances name.
    ///
    /// # Errors
    /// No path to an EK could ever use it.
    pub fn read_anchor(der: &[u8], allowances: Allowances) -> Result<Self, AnchorError> {
        Ok(Self { certificate: fit_to_issue(der)?, role: Role::Anchor(allowances) })
    }

    /// Whether both are the same certificate, whatever differs outside of the signed part.
    pub fn is_same(&self, other: &Self) -> bool {
        self.certificate.is_same(&other.certificate)
    }

    /// Its role in paths.
    pub fn role(&self) -> Role {
        self.role
    }

    /// Its subject, as text for people.
    pub fn subject(&self) -> String {
        self.certificate.subject.to_string()
    }

    /// Its issuer, as text for people.
    pub fn issuer(&self) -> String {
        self.certificate.issuer.to_string()
    }

    /// The kind of its key, e.g. `ECC P-521`.
    pub fn key(&self) -> String {
        self.certificate.key.as_ref().map_or_else(ToString::to_string, ToString::to_string)
    }

    /// Its key, by which a group names it.
    pub fn ca_key(&self) -> CaKey {
        CaKey::of_spki(&self.certificate.spki)
    }

    /// When it expires. The expiry of an anchor is not checked.
    pub fn not_after(&self) -> OffsetDateTime {
        self.certificate.not_after
    }
}

/// Reads a certificate that a path to an EK may use, no matter who signed it.
fn fit_to_issue(der: &[u8]) -> Result<Certificate, AnchorError> {
    let certificate = Certificate::read(der)
        .map_err(|error| AnchorError::Unreadable { reason: error.to_string() })?;
    if certificate.subject.is_empty() {
        return Err(AnchorError::NoName);
    }
    let refused = |reason: &dyn fmt::Display| AnchorError::NoIssuer {
        subject: certificate.subject.to_string(),
        reason: reason.to_string(),
    };
    certificate.check_issuer().map_err(|rule| refused(&rule))?;
    certificate.key.as_ref().map_err(|unsupported| refused(unsupported))?;
    Ok(certificate)
}

/// What EK certificates under an anchor may lack: by default nothing. Each allowance relies on a
/// promise of the CA's owner.
///
/// `Display` writes the names with commas between them, and `FromStr` reads that.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Allowances {
    /// The whole extended key usage, and so `tcg-kp-EKCertificate`.
    pub ek_usage: bool,
    /// Manufacturer, model and version of the TPM in the subject alternative name.
    pub tpm_attributes: bool,
}

impl Allowances {
    /// Whether this allows everything in `missing`.
    pub(crate) fn cover(self, missing: Self) -> bool {
        (self.ek_usage || !missing.ek_usage) && (self.tpm_attributes || !missing.tpm_attributes)
    }
}

impl fmt::Display for Allowances {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = [(self.ek_usage, EK_USAGE), (self.tpm_attributes, TPM_ATTRIBUTES)];
        let names: Vec<_> =
            names.into_iter().filter_map(|(is_allowed, name)| is_allowed.then_some(name)).collect();
        f.write_str(&names.join(","))
    }
}

impl FromStr for Allowances {
    type Err = UnknownAllowance;

    fn from_str(text: &str) -> Result<Self, UnknownAllowance> {
        let mut allowances = Self::default();
        for name in text.split(',').filter(|name| !name.is_empty()) {
            match name {
                EK_USAGE => allowances.ek_usage = true,
                TPM_ATTRIBUTES => allowances.tpm_attributes = true,
                other => return Err(UnknownAllowance(other.to_owned())),
            }
        }
        Ok(allowances)
    }
}

/// The text is not the name of an allowance.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is neither {EK_USAGE} nor {TPM_ATTRIBUTES}")]
pub struct UnknownAllowance(String);

/// The path from an EK certificate to an anchor: every signature on it was verified, and every rule
/// holds.
///
/// Does not establish what the EK certificate is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VendorPath {
    subjects: Vec<String>,
    keys: Vec<CaKey>,
    allowances: Allowances,
}

impl VendorPath {
    /// Subjects of the issuers: first the EK certificate's issuer, last the anchor.
    pub fn issuers(&self) -> &[String] {
        &self.subjects
    }

    /// The keys of the issuers, in the same order.
    pub(crate) fn keys(&self) -> &[CaKey] {
        &self.keys
    }

    /// What an EK certificate whose path ends at this anchor may lack.
    pub fn allowances(&self) -> Allowances {
        self.allowances
    }
}

/// Why a certificate cannot be a TPM vendor's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)] // each variant's message is its documentation
pub enum AnchorError {
    #[error("{reason}")]
    Unreadable { reason: String },
    #[error("its subject is empty, so no certificate can name it as its issuer")]
    NoName,
    #[error("{subject} {reason}")]
    NoIssuer { subject: String, reason: String },
    #[error(
        "{subject} {reason}; if the CA itself deserves trust, use `assay trust add --anchor`, \
         which does not check who signed the certificate"
    )]
    SignatureUnsupported { subject: String, reason: String },
    #[error("{subject} names itself as its issuer, but its own key did not sign it")]
    NotSelfSigned { subject: String },
}

/// Why no path leads from a certificate to an anchor: the attempt that came closest.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct NoPath(pub(crate) Reason);

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Reason {
    #[error(
        "{certificate} was issued by {issuer}. No certificate of that CA{} is trusted or was sent{}; `assay trust add` adds one",
        if *.by_key { " with the right key" } else { "" },
        .found_at.as_ref().map_or_else(String::new, |uri| format!(" (one should be at {uri})"))
    )]
    NoIssuer { certificate: String, issuer: String, by_key: bool, found_at: Option<String> },
    #[error("{certificate} names itself as its issuer, and is not trusted")]
    SelfIssued { certificate: String },
    #[error(
        "{certificate} has an issuer that is already in the path, and no other issuer is known"
    )]
    Circle { certificate: String },
    #[error("{certificate} names {issuer} as its issuer, but no known key of {issuer} signed it")]
    NotSigned { certificate: String, issuer: String },
    #[error("{certificate} {reason}")]
    Unsupported { certificate: String, reason: Unsupported },
    #[error("{certificate} {rule}")]
    Broken { certificate: String, is_ek_certificate: bool, rule: Rule },
    #[error(
        "there are more than {MAX_INTERMEDIATES} CAs between the EK certificate and any trusted CA"
    )]
    TooLong,
    #[error(
        "more than {MAX_SIGNATURES} signatures would have to be verified to find a path; send \
         only the issuers that the EK certificate needs"
    )]
    TooMuchWork,
}

/// A certificate that a path may go through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Node {
    /// Where the path begins.
    Leaf,
    /// It was sent with the leaf.
    Sent(usize),
    /// It is one of the operator's.
    Known(usize),
}

struct Search<'a> {
    anchors: &'a TrustAnchors,
    leaf: &'a Certificate,
    purpose: Purpose,
    sent: Vec<Certificate>,
    now: OffsetDateTime,
    /// Results of verified signatures: the certificate, the key, and whether the signature is good.
    verified: Vec<(Node, Vec<u8>, bool)>,
    furthest: Failure,
}

/// The failure that came closest to a path. Of two, the one with the greater first two fields came
/// closer.
struct Failure {
    is_whole_path: bool,
    depth: usize,
    reason: Option<Reason>,
}

impl<'a> Search<'a> {
    fn new(
        anchors: &'a TrustAnchors,
        leaf: &'a Certificate,
        purpose: Purpose,
        sent: &[CertificateDer<'_>],
        now: OffsetDateTime,
    ) -> Self {
        let mut usable: Vec<Certificate> = Vec::new();
        // A certificate that cannot be read, is repeated or is self-issued cannot help. It is
        // ignored, because there may be a path without it.
        for certificate in sent.iter().filter_map(|der| Certificate::read(der).ok()) {
            let is_known = |other: &Certificate| other.is_same(&certificate);
            let mut known = anchors.known.iter().map(|known| &known.vendor.certificate);
            let is_new = !is_known(leaf) && !usable.iter().any(is_known) && !known.any(is_known);
            if is_new && !certificate.is_self_issued() {
                usable.push(certificate);
            }
        }
        let furthest = Failure { is_whole_path: false, depth: 0, reason: None };
        Self { anchors, leaf, purpose, sent: usable, now, verified: Vec::new(), furthest }
    }

    fn run(mut self) -> Result<VendorPath, NoPath> {
        self.climb(&mut vec![Node::Leaf]).ok_or_else(|| {
            let issuer = || self.leaf.issuer.to_string();
            let nothing =
                || Reason::NotSigned { certificate: self.called(Node::Leaf), issuer: issuer() };
            NoPath(self.furthest.reason.clone().unwrap_or_else(nothing))
        })
    }

    /// Extends a path to an anchor. The last certificate of `path` is not an anchor.
    fn climb(&mut self, path: &mut Vec<Node>) -> Option<VendorPath> {
        let top = *path.last()?;
        if let Err(reason) = self.certificate(top).signature_algorithm().clone() {
            self.fail(false, path.len(), |search| Reason::Unsupported {
                certificate: search.called(top),
                reason,
            });
            return None;
        }
        let issuers = self.named_as_issuer_of(top);
        if issuers.is_empty() {
            self.fail(false, path.len(), |search| search.no_issuer(top));
        }
        for issuer in issuers {
            if path.contains(&issuer) {
                self.fail(false, path.len(), |search| Reason::Circle {
                    certificate: search.called(top),
                });
                continue;
            }
            if !self.is_signed_by(top, issuer, path.len()) {
                continue;
            }
            if let Some(allowances) = self.trust(issuer) {
                match self.check(issuer, path) {
                    Ok(()) => return Some(self.found(path, issuer, allowances)),
                    Err(broken) => self.fail(true, path.len(), |_| broken),
                }
            }
            if path.len() > MAX_INTERMEDIATES {
                self.fail(false, path.len(), |_| Reason::TooLong);
                continue;
            }
            path.push(issuer);
            if let Some(found) = self.climb(path) {
                return Some(found);
            }
            path.pop();
        }
        None
    }

    /// Anchors come first, because a path can end there. Then come the operator's other
    /// certificates, because their own signatures are verified already. Those that were sent come
    /// last.
    fn named_as_issuer_of(&self, node: Node) -> Vec<Node> {
        let certificate = self.certificate(node);
        let mut known: Vec<_> =
            self.anchors.named_as_issuer_of(certificate).map(Node::Known).collect();
        known.sort_by_key(|node| self.trust(*node).is_none());
        let sent = (0..self.sent.len())
            .filter(|at| certificate.names_as_issuer(&self.sent[*at]))
            .map(Node::Sent);
        known.extend(sent);
        known
    }

    /// Verifies a signature, unless it was verified before or cannot be good.
    fn is_signed_by(&mut self, node: Node, issuer: Node, depth: usize) -> bool {
        if let (Node::Known(at), Node::Known(issuer)) = (node, issuer) {
            return self.anchors.known[at].issuers.contains(&issuer);
        }
        let (certificate, by) = (self.certificate(node), self.certificate(issuer));
        if let Err(rule) = by.check_issuer() {
            self.fail(false, depth, |search| Reason::Broken {
                certificate: search.called(issuer),
                is_ek_certificate: false,
                rule,
            });
            return false;
        }
        match certificate.can_be_signed_by(by) {
            Ok(true) => {}
            Ok(false) => return false,
            Err(reason) => {
                self.fail(false, depth, |search| Reason::Unsupported {
                    certificate: search.called(issuer),
                    reason,
                });
                return false;
            }
        }
        if let Some((.., is_good)) =
            self.verified.iter().find(|(whose, key, _)| *whose == node && *key == by.spki)
        {
            return *is_good;
        }
        if self.verified.len() == MAX_SIGNATURES {
            self.fail(true, 0, |_| Reason::TooMuchWork);
            return false;
        }
        let is_good = certificate.is_signed_by(by);
        let key = by.spki.clone();
        if !is_good {
            self.fail(false, depth, |search| {
                let issuer = search.certificate(node).issuer.to_string();
                Reason::NotSigned { certificate: search.called(node), issuer }
            });
        }
        self.verified.push((node, key, is_good));
        is_good
    }

    fn check(&self, anchor: Node, path: &[Node]) -> Result<(), Reason> {
        let certificates: Vec<_> = path.iter().rev().map(|node| self.certificate(*node)).collect();
        check_path(self.certificate(anchor), &certificates, self.purpose, self.now).map_err(
            |Broken { position, rule }| {
                let whose =
                    position.checked_sub(1).map_or(anchor, |below| path[path.len() - 1 - below]);
                let is_ek_certificate = whose == Node::Leaf && self.purpose == Purpose::BeEk;
                Reason::Broken { certificate: self.called(whose), is_ek_certificate, rule }
            },
        )
    }

    fn found(&self, path: &[Node], anchor: Node, allowances: Allowances) -> VendorPath {
        let issuers = path[1..].iter().chain([&anchor]).map(|node| self.certificate(*node));
        VendorPath {
            subjects: issuers.clone().map(|issuer| issuer.subject.to_string()).collect(),
            keys: issuers.map(|issuer| CaKey::of_spki(&issuer.spki)).collect(),
            allowances,
        }
    }

    fn no_issuer(&self, node: Node) -> Reason {
        let (certificate, called) = (self.certificate(node), self.called(node));
        if certificate.is_self_issued() {
            return Reason::SelfIssued { certificate: called };
        }
        let others = self.anchors.by_subject.contains_key(&certificate.issuer);
        Reason::NoIssuer {
            certificate: called,
            issuer: certificate.issuer.to_string(),
            by_key: others || self.sent.iter().any(|sent| sent.subject == certificate.issuer),
            found_at: certificate.extensions.issuer_at.clone(),
        }
    }

    /// Remembers a failure if none came closer before. Only then makes its text, because strangers
    /// choose the names in it.
    fn fail(&mut self, is_whole_path: bool, depth: usize, reason: impl FnOnce(&Self) -> Reason) {
        let Failure { is_whole_path: was_whole, depth: was, reason: known } = &self.furthest;
        if known.is_none() || (is_whole_path, depth) > (*was_whole, *was) {
            self.furthest = Failure { is_whole_path, depth, reason: Some(reason(self)) };
        }
    }

    fn certificate(&self, node: Node) -> &Certificate {
        match node {
            Node::Leaf => self.leaf,
            Node::Sent(at) => &self.sent[at],
            Node::Known(at) => &self.anchors.known[at].vendor.certificate,
        }
    }

    fn trust(&self, node: Node) -> Option<Allowances> {
        match node {
            Node::Known(at) => self.anchors.known[at].vendor.role.allowances(),
            Node::Leaf | Node::Sent(_) => None,
        }
    }

    /// The name of a certificate in text for people.
    fn called(&self, node: Node) -> String {
        match (node, self.purpose) {
            (Node::Leaf, Purpose::BeEk) => "the EK certificate".to_owned(),
            _ => format!("the certificate of {}", self.certificate(node).subject),
        }
    }
}

const EK_USAGE: &str = "ek-usage";
const TPM_ATTRIBUTES: &str = "tpm-attributes";
/// The most CAs between an EK certificate and an anchor. Vendors have one or two.
const MAX_INTERMEDIATES: usize = 6;
/// The most signatures that are verified for one request of a stranger. A path of the greatest
/// length, with all its certificates sent, takes seven.
const MAX_SIGNATURES: usize = 8;

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use rcgen::{
        BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    };

    use super::*;

    struct Ca(Issuer<'static, KeyPair>);

    impl Ca {
        fn new(name: &str) -> Self {
            Self(Issuer::new(params(name), KeyPair::generate().unwrap()))
        }

        fn certified_by(&self, issuer: &Self, name: &str) -> CertificateDer<'static> {
            params(name).signed_by(self.0.key(), &issuer.0).unwrap().into()
        }

        fn root(&self, name: &str) -> CertificateDer<'static> {
            params(name).self_signed(self.0.key()).unwrap().into()
        }

        fn leaf(&self) -> CertificateDer<'static> {
            CertificateParams::default()
                .signed_by(&KeyPair::generate().unwrap(), &self.0)
                .unwrap()
                .into()
        }
    }

    fn params(name: &str) -> CertificateParams {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        params
    }

    fn trusting<'a>(
        certificates: impl IntoIterator<Item = &'a CertificateDer<'static>>,
    ) -> TrustAnchors {
        TrustAnchors::new(certificates.into_iter().map(|der| VendorCertificate::read(der).unwrap()))
    }

    fn now() -> OffsetDateTime {
        OffsetDateTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000)
    }

    /// The path that was found, and how many signatures were verified for it.
    fn search(
        anchors: &TrustAnchors,
        leaf: &CertificateDer<'static>,
        sent: &[CertificateDer<'static>],
    ) -> (Option<VendorPath>, usize) {
        let leaf = Certificate::read(leaf).unwrap();
        let mut search = Search::new(anchors, &leaf, Purpose::BeEk, sent, now());
        let found = search.climb(&mut vec![Node::Leaf]);
        (found, search.verified.len())
    }

    #[test]
    fn as_many_signatures_are_verified_as_the_path_has_that_only_the_sender_can_show() {
        let [root, upper, lower] = ["root", "upper", "lower"].map(Ca::new);
        let (root_der, upper_der, lower_der) = (
            root.root("root"),
            upper.certified_by(&root, "upper"),
            lower.certified_by(&upper, "lower"),
        );
        let leaf = lower.leaf();
        let everything = trusting([&root_der, &lower_der, &upper_der]);
        assert!(
            matches!(search(&everything, &leaf, &[]), (Some(_), 1)),
            "the operator's own are remembered"
        );
        let sent = [upper_der.clone(), lower_der.clone()];
        assert!(matches!(search(&trusting([&root_der]), &leaf, &sent), (Some(_), 3)));
        assert!(
            matches!(search(&everything, &leaf, &sent), (Some(_), 1)),
            "what is sent besides costs nothing"
        );
        assert!(matches!(search(&trusting([&root_der, &upper_der]), &leaf, &sent), (Some(_), 2)));
    }

    #[test]
    fn signature_of_a_configured_issuer_is_verified_when_it_is_read() {
        let (root, other, issuer) = (Ca::new("root"), Ca::new("root"), Ca::new("issuer"));
        let anchors = trusting([&root.root("root"), &issuer.certified_by(&other, "issuer")]);
        assert_eq!(search(&anchors, &issuer.leaf(), &[]).0, None);
    }

    #[test]
    fn duplicates_and_self_issued_certificates_cost_nothing() {
        let (root, issuer, stranger) = (Ca::new("root"), Ca::new("issuer"), Ca::new("root"));
        let certified = issuer.certified_by(&stranger, "issuer");
        let sent =
            [&stranger.root("root"), &certified, &certified, &stranger.root("root"), &certified]
                .map(Clone::clone);
        // The leaf's signature, and the issuer's, which is not by the trusted root of that name.
        assert_eq!(search(&trusting([&root.root("root")]), &issuer.leaf(), &sent), (None, 2));
        assert!(matches!(
            search(&trusting([&stranger.root("root")]), &issuer.leaf(), &sent),
            (Some(_), 2)
        ));
    }

    #[test]
    fn a_ca_with_several_certificates_costs_one_signature() {
        let (root, old, issuer) = (Ca::new("root"), Ca::new("old"), Ca::new("issuer"));
        let sent = [issuer.certified_by(&old, "issuer"), issuer.certified_by(&root, "issuer")];
        assert!(matches!(
            search(&trusting([&root.root("root")]), &issuer.leaf(), &sent),
            (Some(_), 2)
        ));
    }

    /// Five junk issuers with the name of a trusted root used to cost a worker 50 ms.
    #[test]
    fn junk_issuers_cost_no_more_signatures_than_the_limit() {
        let (root, other) = (Ca::new("root"), Ca::new("other"));
        let anchors = trusting([&root.root("root")]);
        let junk: Vec<_> = (0..5).map(|_| Ca::new("root").certified_by(&other, "root")).collect();
        let (found, signatures) = search(&anchors, &Ca::new("root").leaf(), &junk);
        assert!(found.is_none() && signatures <= 6, "{signatures}");

        // Several keys for each name, so that every certificate might be the issuer of every other
        // one.
        let (a, b): (Vec<_>, Vec<_>) =
            ((0..3).map(|_| Ca::new("a")).collect(), (0..2).map(|_| Ca::new("b")).collect());
        let signed_by_b = a.iter().enumerate().map(|(at, ca)| ca.certified_by(&b[at % 2], "a"));
        let signed_by_a = b.iter().map(|ca| ca.certified_by(&a[2], "b"));
        let sent: Vec<_> = signed_by_b.chain(signed_by_a).collect();
        for leaf in [a[0].leaf(), a[2].leaf(), Ca::new("a").leaf()] {
            let (found, signatures) = search(&anchors, &leaf, &sent);
            assert!(found.is_none() && signatures <= MAX_SIGNATURES, "{signatures}");
        }
    }

    #[test]
    fn search_ends_at_the_limit_of_signatures_and_says_so() {
        let same_names: Vec<_> = (0..12).map(|_| Ca::new("root")).collect();
        let ders: Vec<_> = same_names.iter().map(|ca| ca.root("root")).collect();
        let anchors = trusting(&ders);
        let leaf = Ca::new("root").leaf();
        assert!(matches!(search(&anchors, &leaf, &[]), (None, MAX_SIGNATURES)));
        let said = anchors.find_path(&Certificate::read(&leaf).unwrap(), &[], now()).unwrap_err();
        assert_eq!(said.0, Reason::TooMuchWork);
    }

    /// A stranger can change an ECDSA signature. That does not make another certificate.
    #[test]
    fn certificates_are_told_apart_by_what_is_signed() {
        let ca = Ca::new("root");
        let der = ca.certified_by(&Ca::new("other"), "issuer").to_vec();
        let mut changed = der.clone();
        *changed.last_mut().unwrap() ^= 1;
        let [one, other] = [der, changed].map(|der| Certificate::read(&der).unwrap());
        assert!(one.is_same(&other));
    }

    #[test]
    fn allowances_read_back_as_they_are_written() {
        for (ek_usage, tpm_attributes) in
            [(false, false), (true, false), (false, true), (true, true)]
        {
            let allowances = Allowances { ek_usage, tpm_attributes };
            assert_eq!(allowances.to_string().parse(), Ok(allowances));
        }
        assert!("everything".parse::<Allowances>().is_err());
    }
}

//! The roots that a device trusts: those that it was given, and new ones that these certified.

use std::path::Path;

use assay_device_core::{Pinning, rfc3339};
use rustls::RootCertStore;
use rustls::pki_types::{CertificateDer, UnixTime};
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::{FromDer, ParsedExtension};

use crate::der::split_sequence;
use crate::error::Error;
use crate::state::{self, StateDirectory};
use crate::times::since_1970;
use crate::verify::POLICIES;

/// The roots that this device was given, and those of its state directory that they lead to. The
/// state directory gives no trust by itself: if the device is given other roots, those that only
/// the old ones certified are no longer trusted.
///
/// # Errors
/// A root cannot be read, or the state directory cannot.
pub(crate) fn trusted(
    given: &[CertificateDer<'static>],
    state: &Path,
) -> Result<RootCertStore, Error> {
    let mut store = RootCertStore::empty();
    for root in given.iter().chain(&pinned(given, state)?) {
        store
            .add(root.clone())
            .map_err(|error| Error::Usage(format!("unusable CA root certificate: {error}")))?;
    }
    Ok(store)
}

/// The new roots of a state directory that lead to the roots that the device was given. The old
/// root may have expired since: then only a root that is pinned already replaces it.
///
/// # Errors
/// The state directory cannot be read.
pub(crate) fn pinned(
    given: &[CertificateDer<'static>],
    state: &Path,
) -> Result<Vec<CertificateDer<'static>>, Error> {
    let mut roots = given.to_vec();
    for root in state::roots(state)?.into_iter().take(MAX_PINNED) {
        if NewRoot::certified_by(&root, &roots).is_ok() {
            roots.push(root);
        }
    }
    Ok(roots.split_off(given.len()))
}

/// Pins a root beside those that are trusted, if one of them certified it and its certificate is
/// valid now.
///
/// # Errors
/// The state directory cannot be read or written. A root that is refused is no error.
pub(crate) fn pin(
    root: &CertificateDer<'static>,
    given: &[CertificateDer<'static>],
    state: &StateDirectory,
    now: UnixTime,
) -> Result<Pinning, Error> {
    let pinned = pinned(given, state.path())?;
    let trusted = [given, &pinned].concat();
    let new = NewRoot::certified_by(root, &trusted).and_then(|new| new.valid_at(now));
    let new = match new {
        Ok(new) => new,
        Err(refusal) => return Ok(Pinning::Refused(refusal.to_string())),
    };
    if trusted.iter().any(|known| new.is(known)) {
        return Ok(Pinning::Known);
    }
    if pinned.len() >= MAX_PINNED {
        return Ok(Pinning::Refused(Refusal::TooMany.to_string()));
    }
    state.store_roots(&[&pinned[..], std::slice::from_ref(root)].concat())?;
    Ok(Pinning::New(new.name()))
}

/// The name of a root, for people.
pub(crate) fn name_of(root: &[u8]) -> String {
    X509Certificate::from_der(root).map_or_else(|_| "?".into(), |(_, it)| it.subject().to_string())
}

/// A root that an older root certified as a new root (RFC 4210 §4.4: *newWithOld*): it may take the
/// older one's place.
struct NewRoot<'a>(X509Certificate<'a>);

impl<'a> NewRoot<'a> {
    /// Checks that `root` is the certificate of a CA that may certify other CAs (RFC 5280 §6.1.4
    /// (k), (m), (n)), that it says that it is a new root, and that one of `roots` signed it (RFC
    /// 5280 §6.1.3 (a)(1), (4)).
    ///
    /// No issuing or service CA passes for a root, whoever brings its certificate: a root signs
    /// their certificates too, but never with the policy that says this.
    fn certified_by(root: &'a [u8], roots: &[CertificateDer<'_>]) -> Result<Self, Refusal> {
        let (rest, parsed) = X509Certificate::from_der(root).map_err(|_| Refusal::Unreadable)?;
        if !rest.is_empty() {
            return Err(Refusal::Unreadable);
        }
        let constraints = parsed.basic_constraints().map_err(|_| Refusal::Unreadable)?;
        let constraints = constraints.filter(|it| it.value.ca).ok_or(Refusal::NotACa)?;
        let usage = parsed.key_usage().map_err(|_| Refusal::Unreadable)?;
        if constraints.value.path_len_constraint.is_some()
            || usage.is_none_or(|usage| !usage.value.key_cert_sign())
            || !matches!(parsed.extended_key_usage(), Ok(None))
        {
            return Err(Refusal::Limited);
        }
        if !says_new_root(&parsed) {
            return Err(Refusal::NotANewRoot);
        }
        if !roots.iter().any(|signer| is_signed_by(root, &parsed, signer)) {
            return Err(Refusal::NotSigned);
        }
        Ok(Self(parsed))
    }

    /// Checks that it is valid at this time (RFC 5280 §6.1.3 (a)(2)).
    fn valid_at(self, now: UnixTime) -> Result<Self, Refusal> {
        let validity = self.0.validity();
        let [from, until] = [validity.not_before, validity.not_after].map(since_1970);
        if (from..=until).contains(&now.as_secs()) {
            return Ok(self);
        }
        Err(Refusal::NotValid { from, until, clock: now.as_secs() })
    }

    /// Whether it has the name and the key of this root, which is all that a trust anchor consists
    /// of (RFC 5280 §6.1.1 (d)).
    fn is(&self, root: &[u8]) -> bool {
        X509Certificate::from_der(root).is_ok_and(|(_, root)| {
            root.subject().as_raw() == self.0.subject().as_raw()
                && root.public_key().raw == self.0.public_key().raw
        })
    }

    fn name(&self) -> String {
        self.0.subject().to_string()
    }
}

/// Whether the policy of new roots is in a certificate (docs/protocol.md, *A new root*).
fn says_new_root(certificate: &X509Certificate<'_>) -> bool {
    certificate.extensions().iter().any(|extension| {
        let ParsedExtension::CertificatePolicies(policies) = extension.parsed_extension() else {
            return false;
        };
        policies
            .iter()
            .any(|policy| policy.policy_id.as_bytes().strip_prefix(&POLICIES) == Some(&NEW_ROOT))
    })
}

/// Whether `signer` signed the certificate, which names it as its issuer.
fn is_signed_by(der: &[u8], certificate: &X509Certificate<'_>, signer: &[u8]) -> bool {
    let verified = || {
        let (_, signer) = X509Certificate::from_der(signer).ok()?;
        let is_named = certificate.issuer().as_raw() == signer.subject().as_raw();
        if !is_named || certificate.signature_value.unused_bits != 0 {
            return None;
        }
        // Certificate ::= SEQUENCE { tbsCertificate, signatureAlgorithm, signatureValue }
        let (message, rest) = split_sequence(content(der)?)?;
        let (signature_algorithm, _) = split_sequence(rest)?;
        // SubjectPublicKeyInfo ::= SEQUENCE { algorithm, subjectPublicKey }
        let (key_algorithm, _) = split_sequence(content(signer.public_key().raw)?)?;
        let identifiers = (content(signature_algorithm)?, content(key_algorithm)?);
        let known = rustls::crypto::ring::default_provider().signature_verification_algorithms;
        let mut algorithms = known.all.iter().filter(|algorithm| {
            let (signature, key) = (algorithm.signature_alg_id(), algorithm.public_key_alg_id());
            (signature.as_ref(), key.as_ref()) == identifiers
        });
        let key = &signer.public_key().subject_public_key.data;
        let signature = &certificate.signature_value.data;
        algorithms
            .any(|algorithm| algorithm.verify_signature(key, message, signature).is_ok())
            .then_some(())
    };
    verified().is_some()
}

/// What is in a SEQUENCE.
fn content(sequence: &[u8]) -> Option<&[u8]> {
    let length_bytes = match *sequence.get(1)? {
        short if short < 0x80 => 0,
        long => usize::from(long & 0x7F),
    };
    split_sequence(sequence)?.0.get(2 + length_bytes..)
}

/// Why a root is not pinned.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
enum Refusal {
    #[error("its certificate cannot be read")]
    Unreadable,
    #[error("its certificate is not that of a CA")]
    NotACa,
    #[error("its certificate limits what it may certify, as that of no root does")]
    Limited,
    #[error("its certificate does not say that it is a new root")]
    NotANewRoot,
    #[error("no pinned root signed its certificate")]
    NotSigned,
    #[error(
        "its certificate is valid from {} to {}, and this device's clock says {}",
        rfc3339(*from),
        rfc3339(*until),
        rfc3339(*clock)
    )]
    NotValid { from: u64, until: u64, clock: u64 },
    #[error("{MAX_PINNED} new roots are pinned already; give the device the root with --ca-root")]
    TooMany,
}

/// The last arc of the policy that says that a certificate is that of a new root.
const NEW_ROOT: [u8; 1] = [3];
/// How many new roots a device pins. Each is in use for years; the limit is for what has to be
/// verified whenever the device signs in.
const MAX_PINNED: usize = 4;

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use rcgen::{
        BasicConstraints, CertificateParams, CertifiedIssuer, CustomExtension, DnType,
        ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose,
    };

    use super::*;

    type Root = CertifiedIssuer<'static, KeyPair>;

    fn params(name: &str) -> CertificateParams {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        params.not_before = rcgen::date_time_ymd(2026, 1, 1);
        params.not_after = rcgen::date_time_ymd(2030, 1, 1);
        params
    }

    /// certificatePolicies with one policy of this last arc.
    fn policy(arc: u8) -> CustomExtension {
        let id = [&POLICIES[..], &[arc]].concat();
        let oid = [&[0x06, id.len() as u8], &id[..]].concat();
        let inner = crate::der::sequence(&[&crate::der::sequence(&[&oid])]);
        CustomExtension::from_oid_content(&[2, 5, 29, 32], inner)
    }

    fn new_root(name: &str) -> CertificateParams {
        let mut params = params(name);
        params.custom_extensions = vec![policy(3)];
        params
    }

    fn root(name: &str) -> Root {
        CertifiedIssuer::self_signed(params(name), KeyPair::generate().unwrap()).unwrap()
    }

    fn signed(params: CertificateParams, signer: &Root) -> CertificateDer<'static> {
        params.signed_by(&KeyPair::generate().unwrap(), signer).unwrap().der().clone()
    }

    fn now() -> UnixTime {
        UnixTime::since_unix_epoch(Duration::from_secs(1_800_000_000))
    }

    /// A device that was given one root.
    struct Case {
        old: Root,
        given: Vec<CertificateDer<'static>>,
        state: StateDirectory,
        _directory: tempfile::TempDir,
    }

    impl Case {
        fn new() -> Self {
            let (old, directory) = (root("old"), tempfile::tempdir().unwrap());
            let state = StateDirectory::open(&directory.path().join("state")).unwrap();
            Self { given: vec![old.der().clone()], old, state, _directory: directory }
        }

        fn pin(&self, root: &CertificateDer<'static>) -> Pinning {
            pin(root, &self.given, &self.state, now()).unwrap()
        }

        fn refuses(&self, root: CertificateDer<'static>, reason: &str) {
            let pinning = self.pin(&root);
            let Pinning::Refused(found) = &pinning else { panic!("{pinning:?}") };
            assert!(found.contains(reason), "{found}");
            assert_eq!(trusted(&self.given, self.state.path()).unwrap().len(), 1, "{reason}");
        }
    }

    #[test]
    fn new_root_that_the_old_one_certified_is_pinned_once_beside_it() {
        let case = Case::new();
        let new = signed(new_root("new"), &case.old);
        assert_eq!(case.pin(&new), Pinning::New("CN=new".into()));
        assert_eq!(case.pin(&new), Pinning::Known);
        assert_eq!(trusted(&case.given, case.state.path()).unwrap().len(), 2);
        // The certificate that the operator gives is another one, of the same root.
        let (_, parsed) = X509Certificate::from_der(&new).unwrap();
        assert_eq!(parsed.subject().to_string(), name_of(&new));
    }

    #[test]
    fn root_after_the_new_one_is_pinned_too_and_a_fifth_is_not() {
        let case = Case::new();
        let mut signer =
            CertifiedIssuer::signed_by(new_root("new 1"), KeyPair::generate().unwrap(), &case.old)
                .unwrap();
        for number in 2..=5 {
            assert!(matches!(case.pin(&signer.der().clone()), Pinning::New(_)));
            let name = format!("new {number}");
            let key = KeyPair::generate().unwrap();
            signer = CertifiedIssuer::signed_by(new_root(&name), key, &signer).unwrap();
        }
        let pinning = case.pin(&signer.der().clone());
        assert!(matches!(&pinning, Pinning::Refused(why) if why.contains("4 new roots")));
        assert_eq!(pinned(&case.given, case.state.path()).unwrap().len(), 4);
    }

    #[test]
    fn root_that_no_pinned_root_signed_is_refused() {
        let case = Case::new();
        case.refuses(signed(new_root("new"), &root("stranger")), "no pinned root signed");
        // Of the same name as the pinned one.
        case.refuses(signed(new_root("new"), &root("old")), "no pinned root signed");
        case.refuses(root("new").der().clone(), "does not say");
    }

    #[test]
    fn issuing_ca_neither_is_a_root_nor_certifies_one() {
        let case = Case::new();
        let key = || KeyPair::generate().unwrap();
        let mut issuing = params("issuing");
        // The least that an issuing CA may have: the root limited nothing.
        case.refuses(signed(issuing.clone(), &case.old), "does not say");
        issuing.custom_extensions = vec![policy(1)];
        case.refuses(signed(issuing.clone(), &case.old), "does not say");
        let issuing = CertifiedIssuer::signed_by(issuing, key(), &case.old).unwrap();
        case.refuses(signed(new_root("new"), &issuing), "no pinned root signed");
    }

    #[test]
    fn certificate_that_is_not_that_of_an_unlimited_ca_is_refused() {
        let case = Case::new();
        let with = |change: &dyn Fn(&mut CertificateParams)| {
            let mut params = new_root("new");
            change(&mut params);
            signed(params, &case.old)
        };
        case.refuses(with(&|params| params.is_ca = IsCa::ExplicitNoCa), "not that of a CA");
        case.refuses(with(&|params| params.is_ca = IsCa::NoCa), "not that of a CA");
        let constrained = IsCa::Ca(BasicConstraints::Constrained(0));
        case.refuses(with(&|params| params.is_ca = constrained), "limits");
        case.refuses(with(&|params| params.key_usages = vec![]), "limits");
        let client = vec![ExtendedKeyUsagePurpose::ClientAuth];
        case.refuses(with(&|params| params.extended_key_usages = client.clone()), "limits");
    }

    #[test]
    fn certificate_that_is_not_valid_now_or_was_altered_is_refused() {
        let case = Case::new();
        let mut past = new_root("new");
        past.not_after = rcgen::date_time_ymd(2027, 1, 1);
        case.refuses(signed(past, &case.old), "clock says 2027-01-15");
        let mut future = new_root("new");
        future.not_before = rcgen::date_time_ymd(2028, 1, 1);
        case.refuses(signed(future, &case.old), "clock says 2027-01-15");
        let good = signed(new_root("new"), &case.old);
        for at in 0..good.len() {
            let mut altered = good.to_vec();
            altered[at] ^= 1;
            assert!(matches!(case.pin(&altered.into()), Pinning::Refused(_)), "byte {at}");
        }
        let longer = [&good[..], &[0]].concat();
        case.refuses(longer.into(), "cannot be read");
    }

    #[test]
    fn file_that_somebody_spoilt_leaves_the_given_roots_and_is_written_anew() {
        let case = Case::new();
        let new = signed(new_root("new"), &case.old);
        assert!(matches!(case.pin(&new), Pinning::New(_)));
        std::fs::write(case.state.path().join("roots.pem"), "-----BEGIN").unwrap();
        assert_eq!(trusted(&case.given, case.state.path()).unwrap().len(), 1);
        assert!(matches!(case.pin(&new), Pinning::New(_)));
        assert_eq!(trusted(&case.given, case.state.path()).unwrap().len(), 2);
    }

    #[test]
    fn device_that_is_given_other_roots_trusts_none_that_only_the_old_ones_certified() {
        let case = Case::new();
        assert!(matches!(case.pin(&signed(new_root("new"), &case.old)), Pinning::New(_)));
        let other = [root("other").der().clone()];
        assert_eq!(trusted(&other, case.state.path()).unwrap().len(), 1);
        assert_eq!(pinned(&other, case.state.path()).unwrap(), []);
    }
}

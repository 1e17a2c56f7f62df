//! What an operator trusts: TPM vendors' CA certificates, read once for all the EK certificates that are checked against them.

use std::collections::{BTreeMap, BTreeSet};

use rustls_pki_types::{
    AlgorithmIdentifier, CertificateDer, InvalidSignature, SignatureVerificationAlgorithm, TrustAnchor, UnixTime,
};
use webpki::{ALL_VERIFICATION_ALGS, EndEntityCert, KeyUsage};
use x509_parser::prelude::X509Certificate;

use crate::oid;
use crate::trust::parse_certificate;

/// The TPM vendors' CA certificates an operator trusts.
#[derive(Clone, Debug, Default)]
pub struct TrustAnchors {
    roots: Vec<TrustAnchor<'static>>,
    intermediates: Intermediates,
    verified: VerifiedSignatures,
}

impl TrustAnchors {
    /// Sorts CA certificates into roots, which are trusted, and intermediates, which only help to build paths.
    ///
    /// A root is a certificate that its own key signed. A root's own validity is not checked, neither here nor
    /// later (RFC 5280 §6.1.1 d): trusting it is the operator's decision, and so is removing it.
    pub fn new(certificates: impl IntoIterator<Item = CertificateDer<'static>>) -> Result<Self, AnchorError> {
        let certificates: Vec<_> = certificates.into_iter().collect();
        let parsed = certificates.iter().map(|der| parse_certificate(der).ok_or(AnchorError::Unreadable));
        let parsed = parsed.collect::<Result<Vec<_>, _>>()?;
        let mut anchors = Self::default();
        for (der, certificate) in certificates.iter().zip(&parsed) {
            let subject = || certificate.subject().to_string();
            if !certificate.is_ca() {
                return Err(AnchorError::NotACa { subject: subject() });
            }
            if certificate.subject().as_raw() != certificate.issuer().as_raw() {
                anchors.intermediates.add(der);
                let is_issuer =
                    |other: &&X509Certificate<'_>| other.subject().as_raw() == certificate.issuer().as_raw();
                parsed.iter().filter(is_issuer).for_each(|issuer| anchors.verified.learn(certificate, issuer));
            } else if certificate.verify_signature(None).is_err() {
                return Err(AnchorError::NotSelfSigned { subject: subject() });
            } else {
                let anchor = webpki::anchor_from_trusted_cert(der).map_err(|_| AnchorError::Unreadable)?.to_owned();
                anchors.roots.push(anchor);
            }
        }
        Ok(anchors)
    }

    /// Checks the path from an EK certificate to a root (RFC 5280 §6.1), by the certificates that came with it and the operator's.
    ///
    /// `webpki` bounds the work: six intermediates, a hundred signatures. It takes an EKU to constrain issuers too,
    /// if they have one, which vendors' intermediates mostly do not.
    pub(crate) fn check_path(
        &self,
        leaf: &CertificateDer<'_>,
        sent: &[CertificateDer<'_>],
        time: UnixTime,
    ) -> Result<(), webpki::Error> {
        let leaf = EndEntityCert::try_from(leaf)?;
        let algorithms: Vec<_> = (0..ALL_VERIFICATION_ALGS.len()).map(|at| Remembering(at, &self.verified)).collect();
        let algorithms: Vec<_> = algorithms.iter().map(|algorithm| algorithm as _).collect();
        leaf.verify_for_usage(
            &algorithms,
            &self.roots,
            &self.intermediates.on_the_way_from(&leaf, sent),
            time,
            KeyUsage::required_if_present(oid::EK_CERTIFICATE),
            None,
            None,
        )?;
        Ok(())
    }
}

/// Why a certificate cannot be a TPM vendor's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)] // each variant's message is its documentation
pub enum AnchorError {
    #[error("not an X.509 certificate")]
    Unreadable,
    #[error("{subject} is not a CA")]
    NotACa { subject: String },
    #[error("{subject} names itself as its issuer, but its own key did not sign it")]
    NotSelfSigned { subject: String },
}

/// The operator's intermediates by their subjects: vendors have hundreds of them, and one path needs few.
#[derive(Clone, Debug, Default)]
struct Intermediates(BTreeMap<Vec<u8>, Vec<Intermediate>>);

#[derive(Clone, Debug)]
struct Intermediate {
    der: CertificateDer<'static>,
    issuer: Vec<u8>,
}

impl Intermediates {
    fn add(&mut self, der: &CertificateDer<'static>) {
        // What webpki cannot read, it cannot take for a part of a path.
        if let Ok(certificate) = EndEntityCert::try_from(der) {
            let intermediate = Intermediate { der: der.clone(), issuer: certificate.issuer().to_vec() };
            self.0.entry(certificate.subject().to_vec()).or_default().push(intermediate);
        }
    }

    /// What was sent, and all that may follow it or `leaf` on a path.
    fn on_the_way_from<'a>(
        &'a self,
        leaf: &EndEntityCert<'_>,
        sent: &'a [CertificateDer<'_>],
    ) -> Vec<CertificateDer<'a>> {
        let mut found: Vec<_> = sent.iter().map(borrow).collect();
        if self.0.is_empty() {
            return found;
        }
        let issuers = sent.iter().filter_map(|der| Some(EndEntityCert::try_from(der).ok()?.issuer().to_vec()));
        let (mut wanted, mut followed) = (vec![leaf.issuer().to_vec()], BTreeSet::new());
        wanted.extend(issuers);
        while let Some(subject) = wanted.pop() {
            let Some((subject, intermediates)) = self.0.get_key_value(&subject) else { continue };
            if followed.insert(subject) {
                found.extend(intermediates.iter().map(|intermediate| borrow(&intermediate.der)));
                wanted.extend(intermediates.iter().map(|intermediate| intermediate.issuer.clone()));
            }
        }
        found
    }
}

fn borrow<'a>(der: &'a CertificateDer<'_>) -> CertificateDer<'a> {
    CertificateDer::from_slice(der)
}

/// Signatures in the operator's certificates that were verified when they were read.
///
/// Whether a signature is good depends on the key, the message and nothing else, so that it need not be asked again for every EK. All
/// that depends on more is: validity, constraints, usage, and which certificate is whose issuer.
#[derive(Clone, Debug, Default)]
struct VerifiedSignatures(BTreeMap<Vec<u8>, Signed>);

/// What a signature is for.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Signed {
    /// Which of [`ALL_VERIFICATION_ALGS`] found it good.
    algorithm: usize,
    /// Content of the `subjectPublicKey`.
    key: Vec<u8>,
    /// The TBSCertificate in DER.
    message: Vec<u8>,
}

impl VerifiedSignatures {
    fn learn(&mut self, certificate: &X509Certificate<'_>, issuer: &X509Certificate<'_>) {
        let (message, signature) = (certificate.tbs_certificate.as_ref(), &*certificate.signature_value.data);
        let issuer_der = CertificateDer::from_slice(issuer.as_raw());
        let Ok(readable) = EndEntityCert::try_from(&issuer_der) else { return };
        for (algorithm, verifier) in ALL_VERIFICATION_ALGS.iter().enumerate() {
            if readable.verify_signature(*verifier, message, signature).is_ok() {
                let key = issuer.public_key().subject_public_key.data.to_vec();
                self.0.insert(signature.to_vec(), Signed { algorithm, key, message: message.to_vec() });
                return;
            }
        }
    }

    fn contain(&self, algorithm: usize, key: &[u8], message: &[u8], signature: &[u8]) -> bool {
        self.0
            .get(signature)
            .is_some_and(|signed| signed.algorithm == algorithm && signed.key == key && signed.message == message)
    }
}

/// One of [`ALL_VERIFICATION_ALGS`], which does not verify again what is known to be good.
#[derive(Debug)]
struct Remembering<'a>(usize, &'a VerifiedSignatures);

impl Remembering<'_> {
    fn algorithm(&self) -> &'static dyn SignatureVerificationAlgorithm {
        ALL_VERIFICATION_ALGS[self.0]
    }
}

impl SignatureVerificationAlgorithm for Remembering<'_> {
    fn verify_signature(&self, key: &[u8], message: &[u8], signature: &[u8]) -> Result<(), InvalidSignature> {
        if self.1.contain(self.0, key, message, signature) {
            return Ok(());
        }
        self.algorithm().verify_signature(key, message, signature)
    }

    fn public_key_alg_id(&self) -> AlgorithmIdentifier {
        self.algorithm().public_key_alg_id()
    }

    fn signature_alg_id(&self) -> AlgorithmIdentifier {
        self.algorithm().signature_alg_id()
    }

    fn fips(&self) -> bool {
        self.algorithm().fips()
    }
}

#[cfg(test)]
mod tests {
    use std::slice::from_ref;

    use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};

    use super::*;

    /// A root, an intermediate under it, and a leaf under that.
    fn chain() -> [CertificateDer<'static>; 3] {
        let (root, intermediate) = (ca("root"), ca("intermediate"));
        let leaf = CertificateParams::default().signed_by(&KeyPair::generate().unwrap(), &intermediate).unwrap();
        let root_der = params("root").self_signed(root.key()).unwrap();
        let intermediate_der = params("intermediate").signed_by(intermediate.key(), &root).unwrap();
        [root_der.into(), intermediate_der.into(), leaf.into()]
    }

    fn ca(name: &str) -> Issuer<'static, KeyPair> {
        Issuer::new(params(name), KeyPair::generate().unwrap())
    }

    fn params(name: &str) -> CertificateParams {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params
    }

    const TIME: UnixTime = UnixTime::since_unix_epoch(std::time::Duration::from_secs(1_800_000_000));

    #[test]
    fn signature_of_a_configured_intermediate_is_not_verified_at_each_use() {
        let [root, intermediate, leaf] = chain();
        let mut anchors = TrustAnchors::new([root, intermediate.clone()]).unwrap();
        anchors.check_path(&leaf, &[], TIME).unwrap();

        // One that is wrong, but taken for verified, shows whether it is looked up by what webpki asks for.
        let mut wrong = intermediate.to_vec();
        *wrong.last_mut().unwrap() ^= 1;
        let (mut signature, signed) = anchors.verified.0.pop_first().unwrap();
        *signature.last_mut().unwrap() ^= 1;
        anchors.intermediates = Intermediates::default();
        anchors.intermediates.add(&wrong.into());
        assert!(anchors.check_path(&leaf, &[], TIME).is_err());
        anchors.verified.0.insert(signature, signed);
        anchors.check_path(&leaf, &[], TIME).unwrap();
    }

    #[test]
    fn signature_is_known_for_its_algorithm_key_and_message_alone() {
        let [root, intermediate, _] = chain();
        let verified = TrustAnchors::new([root, intermediate]).unwrap().verified;
        let (signature, Signed { algorithm, key, message }) = verified.0.first_key_value().unwrap();
        assert!(verified.contain(*algorithm, key, message, signature));
        assert!(!verified.contain(algorithm + 1, key, message, signature));
        assert!(!verified.contain(*algorithm, &key[1..], message, signature));
        assert!(!verified.contain(*algorithm, key, &message[1..], signature));
        assert!(!verified.contain(*algorithm, key, message, &signature[1..]));
    }

    #[test]
    fn only_intermediates_that_a_path_may_need_are_looked_at() {
        let [root, intermediate, leaf] = chain();
        let [_, stranger, _] = chain();
        let other = params("other").signed_by(&KeyPair::generate().unwrap(), &ca("root")).unwrap().into();
        let anchors = TrustAnchors::new([root, other, intermediate.clone()]).unwrap();
        let leaf = EndEntityCert::try_from(&leaf).unwrap();
        assert_eq!(anchors.intermediates.on_the_way_from(&leaf, &[]), from_ref(&intermediate));
        let found = anchors.intermediates.on_the_way_from(&leaf, from_ref(&stranger));
        assert_eq!(found, [stranger.clone(), intermediate]);
    }
}

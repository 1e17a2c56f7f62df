//! The cryptography that every CA needs, by the same library and with nothing around it.

use assay_ca_core::key::PublicKey;
use assay_wire::Flow;
use aws_lc_rs::agreement::{self, PrivateKey, agree};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::{OAEP_SHA256_MGF1SHA256, OaepPublicEncryptingKey, PublicEncryptingKey};
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_ASN1, ECDSA_P256_SHA256_ASN1_SIGNING, ECDSA_P384_SHA384_ASN1, EcdsaKeyPair,
    RSA_PKCS1_2048_8192_SHA256, UnparsedPublicKey, VerificationAlgorithm,
};
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::{Kind, Path, World};

/// The primitives that one device costs in a flow, each with its inputs ready.
pub(crate) struct Primitives(Vec<(&'static str, Primitive)>);

type Primitive = Box<dyn Fn() -> usize>;

impl Primitives {
    pub(crate) fn new(world: &World, flow: Flow) -> Self {
        let mut all = vec![
            ("EK certificate verify", verify_path(world)),
            ("EK seed", seed_for(&world.device.ek.key())),
        ];
        match flow {
            Flow::Ticket | Flow::Sealed => {
                all.extend([("CSR verify", verify_csr(world)), ("certificate sign", sign(world))])
            }
            Flow::SharedKey => {
                all.push(("parent seed", seed_for(&world.parent.area.public_key().unwrap())))
            }
        }
        Self(all)
    }

    /// Runs them one after the other.
    pub(crate) fn all(&self) -> usize {
        self.0.iter().map(|(_, primitive)| primitive()).sum()
    }

    /// Each one separately.
    pub(crate) fn each(&self) -> impl Iterator<Item = (&'static str, &dyn Fn() -> usize)> {
        self.0.iter().map(|(name, primitive)| (*name, &**primitive))
    }
}

/// The signatures on the path to the root that nobody can have verified before: those of
/// certificates that the device sends.
fn verify_path(world: &World) -> Primitive {
    let sent = &world.device.ek_certificates;
    let issuers = match world.case.path {
        Path::Root => vec![&world.vendor.root],
        Path::KnownIntermediate => vec![&world.vendor.intermediate],
        Path::SentIntermediate => vec![&world.vendor.intermediate, &world.vendor.root],
    };
    let algorithm = algorithm(world.case.ek);
    assert_eq!(sent.len(), issuers.len());
    let signed = sent.iter().zip(issuers).map(|(certificate, issuer)| {
        let (_, certificate) = X509Certificate::from_der(certificate).unwrap();
        let (_, issuer) = X509Certificate::from_der(issuer).unwrap();
        let key = issuer.public_key().subject_public_key.data.to_vec();
        (
            key,
            certificate.tbs_certificate.as_ref().to_vec(),
            certificate.signature_value.data.to_vec(),
        )
    });
    let signed: Vec<_> = signed.collect();
    Box::new(move || {
        for (key, message, signature) in &signed {
            UnparsedPublicKey::new(algorithm, key).verify(message, signature).unwrap();
        }
        signed.len()
    })
}

fn verify_csr(world: &World) -> Primitive {
    let (_, csr) = X509CertificationRequest::from_der(&world.device.csr).unwrap();
    let info = &csr.certification_request_info;
    let key = info.subject_pki.subject_public_key.data.to_vec();
    let (message, signature) = (info.raw.to_vec(), csr.signature_value.data.to_vec());
    let algorithm = algorithm(world.case.ik);
    Box::new(move || {
        UnparsedPublicKey::new(algorithm, &key).verify(&message, &signature).unwrap();
        message.len()
    })
}

/// A secret that only the holder of `key` can get: OAEP to an RSA key, ECDH with a fresh key to a
/// point.
fn seed_for(key: &PublicKey) -> Primitive {
    match key {
        PublicKey::Rsa { .. } => {
            let spki = key.spki();
            Box::new(move || {
                let key =
                    OaepPublicEncryptingKey::new(PublicEncryptingKey::from_der(&spki).unwrap())
                        .unwrap();
                let mut encrypted = [0; 256];
                key.encrypt(&OAEP_SHA256_MGF1SHA256, &[7; 32], &mut encrypted, Some(b"IDENTITY\0"))
                    .unwrap()
                    .len()
            })
        }
        PublicKey::Ecc { curve, x, y } => {
            let algorithm = match curve.field_bytes() {
                32 => &agreement::ECDH_P256,
                _ => &agreement::ECDH_P384,
            };
            let point = [&[4], &x[..], &y[..]].concat();
            Box::new(move || {
                let ephemeral = PrivateKey::generate(algorithm).unwrap();
                let sent = ephemeral.compute_public_key().unwrap();
                let peer = agreement::UnparsedPublicKey::new(algorithm, &point);
                agree(&ephemeral, peer, (), |z| Ok(z.len() + sent.as_ref().len())).unwrap()
            })
        }
    }
}

fn sign(world: &World) -> Primitive {
    let key = EcdsaKeyPair::from_pkcs8(
        &ECDSA_P256_SHA256_ASN1_SIGNING,
        &world.issuing_key.serialize_der(),
    )
    .unwrap();
    // About as long as the signed part of a device certificate.
    let message = [7; 700];
    Box::new(move || key.sign(&SystemRandom::new(), &message).unwrap().as_ref().len())
}

fn algorithm(kind: Kind) -> &'static dyn VerificationAlgorithm {
    match kind {
        Kind::Rsa2048 => &RSA_PKCS1_2048_8192_SHA256,
        Kind::P256 => &ECDSA_P256_SHA256_ASN1,
        Kind::P384 => &ECDSA_P384_SHA384_ASN1,
    }
}

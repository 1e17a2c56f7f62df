//! Certificates made byte by byte, both as vendors make them and as nobody should.

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::KeyPair as RsaKeyPair;
use aws_lc_rs::signature::{self, EcdsaKeyPair, KeyPair};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivatePkcs8KeyDer};

use crate::fixture::golden;

/// A CA with a name and a key, whose certificates are made by [`Forger::certify`].
pub(crate) struct Forger {
    /// A Name in DER.
    pub(crate) name: Vec<u8>,
    pub(crate) key: Key,
}

/// How a key signs: padding or curve, and the hash by its length in bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Algorithm {
    Rsa(Padding, u16),
    Ecdsa(u16, u16),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Padding {
    Pkcs1,
    Pss,
}

pub(crate) enum Key {
    Rsa(Box<RsaKeyPair>, Padding, u16),
    Ecdsa(EcdsaKeyPair, u16, u16),
}

impl Forger {
    pub(crate) fn new(name: &str) -> Self {
        Self::with_key(name, Algorithm::Ecdsa(256, 256))
    }

    pub(crate) fn with_key(name: &str, algorithm: Algorithm) -> Self {
        Self { name: common_name(name), key: Key::of(algorithm) }
    }

    /// A certificate of the key `spki` by this CA.
    pub(crate) fn certify(&self, certificate: &Forged, spki: &[u8]) -> CertificateDer<'static> {
        self.sign(&self.to_be_signed(certificate, spki), &self.key.algorithm()).into()
    }

    /// A certificate for this CA's key, by another CA.
    pub(crate) fn certified_by(
        &self,
        issuer: &Self,
        certificate: Forged,
    ) -> CertificateDer<'static> {
        issuer.certify(&Forged { subject: self.name.clone(), ..certificate }, &self.key.spki())
    }

    /// A root's certificate.
    pub(crate) fn root(&self) -> CertificateDer<'static> {
        self.certified_by(self, Forged::ca())
    }

    pub(crate) fn to_be_signed(&self, certificate: &Forged, spki: &[u8]) -> Vec<u8> {
        let Forged { subject, validity: [not_before, not_after], extensions, algorithm } =
            certificate;
        let time = |time: &str| tlv(if time.len() == 13 { 0x17 } else { 0x18 }, time.as_bytes());
        let parts = [
            tlv(0xA0, &tlv(2, &[2])),
            tlv(2, &[7]),
            algorithm.clone().unwrap_or_else(|| self.key.algorithm()),
            self.name.clone(),
            tlv(0x30, &[time(not_before), time(not_after)].concat()),
            subject.clone(),
            spki.to_vec(),
            if extensions.is_empty() {
                vec![]
            } else {
                tlv(0xA3, &tlv(0x30, &extensions.concat()))
            },
        ];
        tlv(0x30, &parts.concat())
    }

    /// Signs it, and states `outer_algorithm` outside of the signed part.
    pub(crate) fn sign(&self, to_be_signed: &[u8], outer_algorithm: &[u8]) -> Vec<u8> {
        let signature = [&[0], &self.key.sign(to_be_signed)[..]].concat();
        tlv(0x30, &[to_be_signed, outer_algorithm, &tlv(3, &signature)].concat())
    }
}

/// The content of a certificate.
#[derive(Clone)]
pub(crate) struct Forged {
    pub(crate) subject: Vec<u8>,
    /// UTCTime or GeneralizedTime.
    pub(crate) validity: [&'static str; 2],
    pub(crate) extensions: Vec<Vec<u8>>,
    /// In place of the algorithm that the key signs with.
    pub(crate) algorithm: Option<Vec<u8>>,
}

impl Forged {
    /// A CA's certificate: basicConstraints, keyCertSign.
    pub(crate) fn ca() -> Self {
        Self {
            subject: common_name("replaced"),
            validity: ["200101000000Z", "20600101000000Z"],
            extensions: vec![basic_constraints(true, None), key_usage(0x04)],
            algorithm: None,
        }
    }

    /// An EK's certificate that follows TCG's profile.
    pub(crate) fn ek() -> Self {
        let extensions = vec![
            basic_constraints(false, None),
            key_usage(0x20),
            extended_key_usage(false, &[EK_USAGE]),
            tpm_alt_name(),
        ];
        Self { subject: tlv(0x30, &[]), extensions, ..Self::ca() }
    }

    /// Adds an extension, or replaces the one of its kind.
    pub(crate) fn with(mut self, extension: Vec<u8>) -> Self {
        self.extensions.retain(|other| id_of(other) != id_of(&extension));
        self.extensions.push(extension);
        self
    }

    pub(crate) fn without(mut self, id: &[u8]) -> Self {
        self.extensions.retain(|other| id_of(other) != id);
        self
    }
}

impl Key {
    pub(crate) fn of(algorithm: Algorithm) -> Self {
        match algorithm {
            Algorithm::Rsa(padding, hash) => {
                let pem = golden("software-rsa2048.pem");
                let pkcs8 = PrivatePkcs8KeyDer::from_pem_slice(&pem).unwrap();
                Self::Rsa(
                    Box::new(RsaKeyPair::from_pkcs8(pkcs8.secret_pkcs8_der()).unwrap()),
                    padding,
                    hash,
                )
            }
            Algorithm::Ecdsa(curve, hash) => {
                let algorithm = match (curve, hash) {
                    (256, 256) => &signature::ECDSA_P256_SHA256_ASN1_SIGNING,
                    (384, 384) => &signature::ECDSA_P384_SHA384_ASN1_SIGNING,
                    (521, 256) => &signature::ECDSA_P521_SHA256_ASN1_SIGNING,
                    (521, 384) => &signature::ECDSA_P521_SHA384_ASN1_SIGNING,
                    (521, 512) => &signature::ECDSA_P521_SHA512_ASN1_SIGNING,
                    other => panic!("{other:?}"),
                };
                Self::Ecdsa(EcdsaKeyPair::generate(algorithm).unwrap(), curve, hash)
            }
        }
    }

    fn sign(&self, message: &[u8]) -> Vec<u8> {
        match self {
            Self::Rsa(key, padding, hash) => {
                let encoding: &dyn signature::RsaEncoding = match (padding, hash) {
                    (Padding::Pkcs1, 256) => &signature::RSA_PKCS1_SHA256,
                    (Padding::Pkcs1, 384) => &signature::RSA_PKCS1_SHA384,
                    (Padding::Pkcs1, _) => &signature::RSA_PKCS1_SHA512,
                    (Padding::Pss, 256) => &signature::RSA_PSS_SHA256,
                    (Padding::Pss, 384) => &signature::RSA_PSS_SHA384,
                    (Padding::Pss, _) => &signature::RSA_PSS_SHA512,
                };
                let mut signature = vec![0; key.public_modulus_len()];
                key.sign(encoding, &SystemRandom::new(), message, &mut signature).unwrap();
                signature
            }
            Self::Ecdsa(key, ..) => {
                key.sign(&SystemRandom::new(), message).unwrap().as_ref().to_vec()
            }
        }
    }

    /// AlgorithmIdentifier of its signatures.
    pub(crate) fn algorithm(&self) -> Vec<u8> {
        match self {
            Self::Rsa(_, Padding::Pkcs1, hash) => {
                let last = match hash {
                    256 => 11,
                    384 => 12,
                    _ => 13,
                };
                tlv(0x30, &[oid(&[&RSA[..], &[last]].concat()), tlv(5, &[])].concat())
            }
            Self::Rsa(_, Padding::Pss, hash) => pss(*hash, *hash, (hash / 8) as u8),
            Self::Ecdsa(_, _, hash) => {
                let last = match hash {
                    256 => 2,
                    384 => 3,
                    _ => 4,
                };
                tlv(0x30, &oid(&[0x2A, 0x86, 0x48, 0xCE, 0x3D, 0x04, 0x03, last]))
            }
        }
    }

    pub(crate) fn spki(&self) -> Vec<u8> {
        match self {
            Self::Rsa(key, ..) => {
                let algorithm = tlv(0x30, &[oid(&[&RSA[..], &[1]].concat()), tlv(5, &[])].concat());
                spki(&algorithm, key.public_key().as_ref())
            }
            Self::Ecdsa(key, curve, _) => {
                let curve: &[u8] = match curve {
                    256 => &[0x2A, 0x86, 0x48, 0xCE, 0x3D, 0x03, 0x01, 0x07],
                    384 => &[0x2B, 0x81, 0x04, 0x00, 0x22],
                    _ => &[0x2B, 0x81, 0x04, 0x00, 0x23],
                };
                spki(
                    &tlv(0x30, &[oid(EC_PUBLIC_KEY), oid(curve)].concat()),
                    key.public_key().as_ref(),
                )
            }
        }
    }
}

pub(crate) fn spki(algorithm: &[u8], key: &[u8]) -> Vec<u8> {
    tlv(0x30, &[algorithm, &tlv(3, &[&[0], key].concat())].concat())
}

/// RSASSA-PSS with these parameters (RFC 4055 §3.1).
pub(crate) fn pss(hash: u16, mask_hash: u16, salt: u8) -> Vec<u8> {
    let mask = tlv(0x30, &[oid(&[&RSA[..], &[8]].concat()), hash_algorithm(mask_hash)].concat());
    let parameters =
        [tlv(0xA0, &hash_algorithm(hash)), tlv(0xA1, &mask), tlv(0xA2, &tlv(2, &[salt]))];
    tlv(0x30, &[oid(&[&RSA[..], &[10]].concat()), tlv(0x30, &parameters.concat())].concat())
}

fn hash_algorithm(bits: u16) -> Vec<u8> {
    let last = match bits {
        256 => 1,
        384 => 2,
        _ => 3,
    };
    tlv(0x30, &[oid(&[0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, last]), tlv(5, &[])].concat())
}

/// A Name of one CN.
pub(crate) fn common_name(name: &str) -> Vec<u8> {
    name_of(&[(3, UTF8, name)])
}

/// A Name: for each attribute the last byte of its type, the tag of its string, and its text.
pub(crate) fn name_of(attributes: &[(u8, u8, &str)]) -> Vec<u8> {
    let relative_names = attributes.iter().flat_map(|(attribute_type, string, text)| {
        tlv(
            0x31,
            &tlv(0x30, &[oid(&[0x55, 4, *attribute_type]), tlv(*string, text.as_bytes())].concat()),
        )
    });
    tlv(0x30, &relative_names.collect::<Vec<_>>())
}

/// An extension below `id-ce`.
pub(crate) fn extension(id: u8, critical: bool, value: &[u8]) -> Vec<u8> {
    extension_of(&[0x55, 0x1D, id], critical, value)
}

pub(crate) fn extension_of(id: &[u8], critical: bool, value: &[u8]) -> Vec<u8> {
    let critical = if critical { tlv(1, &[0xFF]) } else { vec![] };
    tlv(0x30, &[oid(id), critical, tlv(4, value)].concat())
}

/// The identifier of an extension, whose length may be short or long.
fn id_of(extension: &[u8]) -> &[u8] {
    let start = extension.iter().position(|byte| *byte == 6).unwrap();
    &extension[start + 2..start + 2 + usize::from(extension[start + 1])]
}

pub(crate) fn basic_constraints(is_ca: bool, path_length: Option<u8>) -> Vec<u8> {
    // Written out if FALSE too, as some vendors do.
    let is_ca = tlv(1, &[if is_ca { 0xFF } else { 0 }]);
    let path_length = path_length.map_or(vec![], |length| tlv(2, &[length]));
    extension(19, true, &tlv(0x30, &[is_ca, path_length].concat()))
}

/// `bits` is the first byte of the usages.
pub(crate) fn key_usage(bits: u8) -> Vec<u8> {
    extension(15, true, &tlv(3, &[bits.trailing_zeros() as u8, bits]))
}

pub(crate) fn extended_key_usage(critical: bool, usages: &[&[u8]]) -> Vec<u8> {
    extension(
        37,
        critical,
        &tlv(0x30, &usages.iter().flat_map(|usage| oid(usage)).collect::<Vec<_>>()),
    )
}

pub(crate) fn policies(critical: bool, policies: &[&[u8]]) -> Vec<u8> {
    let policies = policies.iter().flat_map(|policy| tlv(0x30, &oid(policy)));
    extension(32, critical, &tlv(0x30, &policies.collect::<Vec<_>>()))
}

pub(crate) fn name_constraints(permitted: &[Vec<u8>], excluded: &[Vec<u8>]) -> Vec<u8> {
    let subtrees = |tag, names: &[Vec<u8>]| {
        let subtrees: Vec<_> = names.iter().flat_map(|name| tlv(0x30, name)).collect();
        if subtrees.is_empty() { vec![] } else { tlv(tag, &subtrees) }
    };
    extension(30, true, &tlv(0x30, &[subtrees(0xA0, permitted), subtrees(0xA1, excluded)].concat()))
}

/// A GeneralName.
pub(crate) fn directory_name(name: &[u8]) -> Vec<u8> {
    tlv(0xA4, name)
}

pub(crate) fn subject_key_id(id: &[u8]) -> Vec<u8> {
    extension(14, false, &tlv(4, id))
}

pub(crate) fn authority_key_id(id: &[u8]) -> Vec<u8> {
    extension(35, false, &tlv(0x30, &tlv(0x80, id)))
}

fn tpm_alt_name() -> Vec<u8> {
    let attributes = [(1, "id:41434D45"), (2, "Model 7"), (3, "id:00010002")];
    let attributes = attributes.iter().flat_map(|(arc, text)| {
        tlv(
            0x31,
            &tlv(
                0x30,
                &[oid(&[0x67, 0x81, 0x05, 0x02, *arc]), tlv(UTF8, text.as_bytes())].concat(),
            ),
        )
    });
    extension(17, true, &tlv(0x30, &directory_name(&tlv(0x30, &attributes.collect::<Vec<_>>()))))
}

pub(crate) fn oid(content: &[u8]) -> Vec<u8> {
    tlv(6, content)
}

pub(crate) fn tlv(tag: u8, content: &[u8]) -> Vec<u8> {
    let length = match content.len() {
        short @ 0..0x80 => vec![short as u8],
        long @ 0x80..0x100 => vec![0x81, long as u8],
        long @ 0x100..0x1_0000 => vec![0x82, (long >> 8) as u8, long as u8],
        long => vec![0x83, (long >> 16) as u8, (long >> 8) as u8, long as u8],
    };
    [&[tag][..], &length, content].concat()
}

pub(crate) const UTF8: u8 = 0x0C;
pub(crate) const PRINTABLE: u8 = 0x13;
pub(crate) const EK_USAGE: &[u8] = &[0x67, 0x81, 0x05, 0x08, 0x01];
pub(crate) const ANY_USAGE: &[u8] = &[0x55, 0x1D, 0x25, 0];
pub(crate) const SERVER_AUTH: &[u8] = &[0x2B, 0x06, 0x01, 0x05, 0x05, 0x07, 0x03, 0x01];
pub(crate) const ANY_POLICY: &[u8] = &[0x55, 0x1D, 0x20, 0];
/// `pkcs-1`, 1.2.840.113549.1.1.
pub(crate) const RSA: [u8; 8] = [0x2A, 0x86, 0x48, 0x86, 0xF7, 0x0D, 0x01, 0x01];
pub(crate) const EC_PUBLIC_KEY: &[u8] = &[0x2A, 0x86, 0x48, 0xCE, 0x3D, 0x02, 0x01];

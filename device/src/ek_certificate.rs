//! What the core needs to know of EK certificates. Nobody verifies them here; the CA does.

use assay_device_core::{EkCertificates, EkKind};
use assay_wire::MAX_CERTIFICATES;
use x509_parser::prelude::{FromDer, X509Certificate};
use x509_parser::public_key::PublicKey;

use crate::issuers;
use crate::tpm::id_of_key;

/// Reads the EK certificate, which is the first one, for
/// [`TpmOperation::EkCertificates`](assay_device_core::TpmOperation::EkCertificates), and keeps as
/// many issuers as fit into a request. Nobody verifies them here.
pub fn read(chain: Vec<Vec<u8>>) -> EkCertificates {
    let chain = issuers::that_fit(chain, MAX_CERTIFICATES);
    let leaf = chain.first().and_then(|leaf| X509Certificate::from_der(leaf).ok());
    let leaf = leaf.map(|(_, leaf)| leaf);
    let key_id = leaf.as_ref().map(|leaf| id_of_key(leaf.public_key().raw).into());
    let kind = leaf.as_ref().and_then(|leaf| kind_of_key(leaf).ok());
    EkCertificates { key_id, kind, chain }
}

/// Why a certificate does not tell the kind of EK, e.g. `cannot be read (…)`.
pub(crate) fn why_of_no_kind(certificate: &[u8]) -> String {
    match X509Certificate::from_der(certificate) {
        Err(error) => format!("cannot be read ({error})"),
        Ok((_, certificate)) => kind_of_key(&certificate).err().unwrap_or_default().into(),
    }
}

fn kind_of_key(certificate: &X509Certificate<'_>) -> Result<EkKind, &'static str> {
    match certificate.public_key().parsed() {
        Ok(PublicKey::EC(point)) if point.key_size() == 256 => Ok(EkKind::P256),
        Ok(PublicKey::EC(point)) if point.key_size() == 384 => Ok(EkKind::P384),
        Ok(PublicKey::RSA(key)) if key.key_size() == 2048 => Ok(EkKind::Rsa2048),
        Ok(PublicKey::RSA(key)) if key.key_size() == 3072 => Ok(EkKind::Rsa3072),
        _ => Err("is for a kind of key that no EK template has"),
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair, PublicKeyData};

    use super::*;

    #[test]
    fn kind_and_id_of_the_first_certificates_key_are_told() {
        let key = KeyPair::generate().unwrap();
        let leaf = CertificateParams::default().self_signed(&key).unwrap().der().to_vec();
        let found = read(vec![leaf.clone(), vec![0x30, 0]]);
        assert_eq!(found.kind, Some(EkKind::P256));
        assert_eq!(found.key_id, Some(id_of_key(&key.subject_public_key_info()).into()));
        assert_eq!(found.chain, [leaf, vec![0x30, 0]]);
    }

    #[test]
    fn certificate_that_cannot_be_read_tells_nothing_but_why() {
        let found = read(vec![vec![0x30, 0]]);
        assert_eq!((found.kind, found.key_id), (None, None));
        assert!(why_of_no_kind(&[0x30, 0]).starts_with("cannot be read"));
    }
}

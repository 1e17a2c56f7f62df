//! The TPM vendor of the fleet: an RSA chain that certifies RSA EKs and an ECC chain for the
//! others, as real vendors have them.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rcgen::{
    BasicConstraints, CertificateParams, CustomExtension, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256,
    PKCS_RSA_SHA256, SignatureAlgorithm, SubjectPublicKeyInfo, date_time_ymd,
};

use crate::tpm::area::EkKind;

/// Certifies EKs.
pub(crate) struct Vendor {
    ecc: Chain,
    rsa: Chain,
}

/// A root, which is not used any more, and the issuer that it certified.
struct Chain {
    root: String,
    certificate: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Vendor {
    /// A vendor with new keys. All vendors have the same names.
    pub(crate) fn found() -> Result<Self> {
        Ok(Self {
            ecc: Chain::found("ECC", &PKCS_ECDSA_P256_SHA256)?,
            rsa: Chain::found("RSA", &PKCS_RSA_SHA256)?,
        })
    }

    /// The vendor that was kept in `dir`. It is made now if there is none.
    pub(crate) fn open(dir: &Path) -> Result<Self> {
        let [ecc, rsa] = ["ecc", "rsa"].map(|family| dir.join(format!("vendor-{family}")));
        if !rsa.exists() {
            let vendor = Self::found()?;
            vendor.ecc.save(&ecc)?;
            vendor.rsa.save(&rsa)?;
        }
        Ok(Self { ecc: Chain::load(&ecc)?, rsa: Chain::load(&rsa)? })
    }

    /// What an operator gives to `assay trust add`: both roots and both issuers, because devices
    /// send only their own certificate. Most TPMs hold no other.
    pub(crate) fn trust_files(dir: &Path) -> [PathBuf; 4] {
        ["ecc/root", "ecc/issuer", "rsa/root", "rsa/issuer"]
            .map(|file| dir.join(format!("vendor-{file}.pem")))
    }

    /// An EK certificate (DER) in the form of TCG's EK Credential Profile 2.5, section 3.
    pub(crate) fn certify(&self, kind: EkKind, spki: &[u8]) -> Result<Vec<u8>> {
        let (chain, usage) = if kind.is_rsa() {
            (&self.rsa, KeyUsagePurpose::KeyEncipherment)
        } else {
            (&self.ecc, KeyUsagePurpose::KeyAgreement)
        };
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        (params.not_before, params.not_after) =
            (date_time_ymd(2020, 1, 1), date_time_ymd(2060, 1, 1));
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![usage];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::Other(TCG_KP_EK_CERTIFICATE.to_vec())];
        params.use_authority_key_identifier_extension = true;
        params.custom_extensions = vec![tpm_name()];
        let key = SubjectPublicKeyInfo::from_der(spki)?;
        Ok(params.signed_by(&key, &chain.issuer)?.der().to_vec())
    }
}

impl Chain {
    fn found(family: &str, algorithm: &'static SignatureAlgorithm) -> Result<Self> {
        let (root_key, root) =
            (KeyPair::generate_for(algorithm)?, ca(&format!("Fleet TPM Vendor {family} Root CA")));
        let root_certificate = root.self_signed(&root_key)?.pem();
        let (key, params) =
            (KeyPair::generate_for(algorithm)?, ca(&format!("Fleet TPM Vendor {family} EK CA")));
        let certificate = params.signed_by(&key, &Issuer::new(root, root_key))?.pem();
        Ok(Self { root: root_certificate, certificate, issuer: Issuer::new(params, key) })
    }

    fn save(&self, dir: &Path) -> Result<()> {
        let write = |file: &str, text: &str| fs::write(dir.join(file), text);
        fs::create_dir_all(dir)
            .and_then(|()| write("root.pem", &self.root))
            .and_then(|()| write("issuer.pem", &self.certificate))
            .and_then(|()| write("issuer.key", &self.issuer.key().serialize_pem()))
            .with_context(|| format!("cannot write {}", dir.display()))
    }

    fn load(dir: &Path) -> Result<Self> {
        let read = |file: &str| {
            let path = dir.join(file);
            fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))
        };
        let (root, certificate, key) =
            (read("root.pem")?, read("issuer.pem")?, KeyPair::from_pem(&read("issuer.key")?)?);
        let issuer = Issuer::from_ca_cert_pem(&certificate, key)?;
        Ok(Self { root, certificate, issuer })
    }
}

fn ca(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    (params.not_before, params.not_after) = (date_time_ymd(2020, 1, 1), date_time_ymd(2060, 1, 1));
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

/// A critical subject alternative name, a directoryName of TPM manufacturer, model and version
/// (section 3.2.9).
fn tpm_name() -> CustomExtension {
    let attributes: Vec<u8> = [(1, "id:464C4545"), (2, "Fleet"), (3, "id:00010000")]
        .into_iter()
        .flat_map(|(arc, value): (u8, &str)| {
            let oid = tlv(0x06, &[0x67, 0x81, 0x05, 0x02, arc]);
            tlv(0x31, &tlv(0x30, &[oid, tlv(0x0C, value.as_bytes())].concat()))
        })
        .collect();
    let mut extension = CustomExtension::from_oid_content(
        &[2, 5, 29, 17],
        tlv(0x30, &tlv(0xA4, &tlv(0x30, &attributes))),
    );
    extension.set_criticality(true);
    extension
}

/// A DER element with content of less than 128 bytes.
fn tlv(tag: u8, content: &[u8]) -> Vec<u8> {
    [&[tag, content.len() as u8], content].concat()
}

const TCG_KP_EK_CERTIFICATE: &[u64] = &[2, 23, 133, 8, 1];

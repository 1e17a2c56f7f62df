//! A device made of tpm2-tools alone: an implementation of the protocol that shares only `wire`
//! with ours.

use std::fs;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use assay_broker_plugin::certificate;
use assay_tests::{EkKind, Swtpm};
use assay_wire::{
    Adoption, Bundle, Bytes, CertificateList, ChallengeReply, Identity, Limit, Renewal,
    SealedCertificate, SealedReply, Ticket,
};
use rcgen::{CertificateParams, PublicKeyData, SignatureAlgorithm, SigningKey};
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::digest::{SHA256, digest};
use rustls::pki_types::pem::PemObject;

use crate::raw_client::scope;

/// A TPM with an EK and an IK loaded in files, as tpm2-tools keep them.
pub(crate) struct ToolsDevice<'a> {
    tpm: &'a Swtpm,
    kind: EkKind,
    ik: ToolsKey<'a>,
}

/// The attributes of an IK that is accepted. A test may use others.
pub(crate) const IK_ATTRIBUTES: &str =
    "fixedtpm|fixedparent|sensitivedataorigin|userwithauth|noda|sign";

impl<'a> ToolsDevice<'a> {
    pub(crate) fn new(tpm: &'a Swtpm, kind: EkKind) -> Result<Self> {
        Self::with_ik_attributes(tpm, kind, IK_ATTRIBUTES)
    }

    pub(crate) fn with_ik_attributes(
        tpm: &'a Swtpm,
        kind: EkKind,
        attributes: &str,
    ) -> Result<Self> {
        make_ek(tpm, kind)?;
        tpm.tpm2(&["createprimary", "-C", "o", "-g", "sha256", "-G", "ecc", "-c", "srk.ctx"])?;
        tpm.tpm2(&["flushcontext", "-t"])?;
        let create = [
            "create",
            "-C",
            "srk.ctx",
            "-G",
            "ecc256:ecdsa-sha256",
            "-g",
            "sha256",
            "-a",
            attributes,
        ];
        tpm.tpm2(&[&create[..], &["-u", "ik.pub", "-r", "ik.priv"]].concat())?;
        tpm.tpm2(&["flushcontext", "-t"])?;
        tpm.tpm2(&["load", "-C", "srk.ctx", "-u", "ik.pub", "-r", "ik.priv", "-c", "ik.ctx"])?;
        tpm.tpm2(&["flushcontext", "-t"])?;
        let area = read(tpm, "ik.pub")?;
        // TPMT_PUBLIC of a P-256 key ends with TPM2B x and TPM2B y.
        let point = area.last_chunk::<68>().context("the IK is a P-256 key")?;
        let sec1 = [&[4][..], &point[2..34], &point[36..]].concat();
        Ok(Self { tpm, kind, ik: ToolsKey { tpm, sec1 } })
    }

    /// The evidence of this device, with the EK certificate in its NV memory.
    pub(crate) fn evidence(&self) -> Result<Bundle> {
        Ok(Bundle {
            device_id: None,
            ek_public: tpmt_public(self.tpm, "ek.pub")?,
            ek_certificates: vec![self.tpm.ek_certificate(self.kind)?.try_into()?].try_into()?,
            ik_public: tpmt_public(self.tpm, "ik.pub")?,
            csr: csr_by(&self.ik)?,
            other_eks: None,
        })
    }

    /// The ticket that tpm2_activatecredential gets out of a challenge.
    pub(crate) fn activate(&self, challenge: &ChallengeReply) -> Result<Ticket> {
        let secret = activate_credential(
            self.tpm,
            self.kind,
            "ik.ctx",
            &challenge.credential_blob,
            &challenge.encrypted_seed,
        )?;
        Ok(<[u8; Ticket::LEN]>::try_from(secret).ok().context("32 bytes")?.into())
    }
}

impl ToolsDevice<'_> {
    /// Asks to renew a certificate, which tpm2_sign signs.
    pub(crate) fn renewal(&self, certificate: &[u8]) -> Result<Renewal> {
        let (certificate, time) = (sha256(certificate)?, seconds()?);
        let Bundle { ek_public, ek_certificates, .. } = self.evidence()?;
        let signature = self.ik.sign(&Renewal::signed(&scope(), &certificate, time))?;
        let signature = signature.try_into()?;
        Ok(Renewal { ek_public, ek_certificates, certificate, time, signature })
    }

    /// Adopts a renewed certificate.
    pub(crate) fn adoption(&self, certificate: &[u8]) -> Result<Adoption> {
        let (certificate, time) = (sha256(certificate)?, seconds()?);
        let ek_id = ek_id(&self.tpm.ek_public_pem(self.kind)?)?.into();
        let signature = self.ik.sign(&Adoption::signed(&scope(), &certificate, time))?;
        Ok(Adoption { certificate, time, signature: signature.try_into()?, ek_id })
    }

    /// Opens a sealed certificate with tpm2_activatecredential and AES-256-GCM.
    pub(crate) fn open(&self, reply: &SealedReply) -> Result<SealedCertificate> {
        self.tpm.tpm2(&["flushcontext", "-t"])?;
        let activated = activate_credential(
            self.tpm,
            self.kind,
            "ik.ctx",
            &reply.credential_blob,
            &reply.encrypted_seed,
        );
        self.tpm.tpm2(&["flushcontext", "-t"])?;
        let key = activated?;
        let key = UnboundKey::new(&AES_256_GCM, &key)
            .map_err(|_| anyhow::anyhow!("a key has 32 bytes"))?;
        let ek = ek_id(&self.tpm.ek_public_pem(self.kind)?)?;
        let ik = digest(&SHA256, &self.ik.subject_public_key_info()).as_ref().try_into()?;
        let data = SealedReply::associated_data(&reply.claim, &ek.into(), &ik);
        let (nonce, sealed) = reply.sealed.split_at(NONCE_LEN);
        let (nonce, mut sealed) = (Nonce::try_assume_unique_for_key(nonce), sealed.to_vec());
        let nonce = nonce.map_err(|_| anyhow::anyhow!("a nonce has 12 bytes"))?;
        let opened = LessSafeKey::new(key).open_in_place(nonce, Aad::from(data), &mut sealed);
        Ok(SealedCertificate::decode(
            opened.map_err(|_| anyhow::anyhow!("the box does not open"))?,
        )?)
    }
}

fn sha256(bytes: &[u8]) -> Result<[u8; 32]> {
    Ok(digest(&SHA256, bytes).as_ref().try_into()?)
}

fn seconds() -> Result<u64> {
    Ok(SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs())
}

/// The EK id of a public key in PEM.
fn ek_id(pem: &str) -> Result<[u8; 32]> {
    let der = rustls::pki_types::SubjectPublicKeyInfoDer::from_pem_slice(pem.as_bytes())?;
    Ok(digest(&SHA256, &der).as_ref().try_into()?)
}

/// Leaves the public area of the TPM's EK in `ek.pub`, and the EK itself where
/// [`activate_credential`] finds it.
pub(crate) fn make_ek(tpm: &Swtpm, kind: EkKind) -> Result<()> {
    match kind {
        EkKind::P384 => tpm.tpm2(&["readpublic", "-c", "0x81010016", "-o", "ek.pub"])?,
        EkKind::Rsa2048 => tpm.tpm2(&["createek", "-G", "rsa", "-c", "ek.ctx", "-u", "ek.pub"])?,
        EkKind::P256 => tpm.tpm2(&["createek", "-G", "ecc", "-c", "ek.ctx", "-u", "ek.pub"])?,
        EkKind::Rsa3072 => anyhow::bail!("tpm2_createek 5.4 knows no template H-6"),
    };
    // Three objects fill a TPM without a resource manager.
    tpm.tpm2(&["flushcontext", "-t"])?;
    Ok(())
}

/// The secret that tpm2_activatecredential gets out of a credential for the object in the file
/// `object`.
pub(crate) fn activate_credential(
    tpm: &Swtpm,
    kind: EkKind,
    object: &str,
    credential_blob: &[u8],
    encrypted_seed: &[u8],
) -> Result<Vec<u8>> {
    // The file format of tpm2-tools: magic, version, TPM2B_ID_OBJECT, TPM2B_ENCRYPTED_SECRET.
    let mut file = vec![0xba, 0xdc, 0xc0, 0xde, 0, 0, 0, 1];
    for part in [credential_blob, encrypted_seed] {
        file.extend(sized(part)?);
    }
    fs::write(tpm.work_dir().join("credential"), file)?;
    let activate = ["activatecredential", "-c", object, "-i", "credential", "-o", "secret"];
    if kind == EkKind::P384 {
        tpm.tpm2(&[&activate[..], &["-C", "0x81010016"]].concat())?;
    } else {
        tpm.tpm2(&["startauthsession", "--policy-session", "-S", "session.ctx"])?;
        tpm.tpm2(&["policysecret", "-S", "session.ctx", "-c", "e"])?;
        tpm.tpm2(&[&activate[..], &["-C", "ek.ctx", "-P", "session:session.ctx"]].concat())?;
        tpm.tpm2(&["flushcontext", "session.ctx"])?;
    }
    read(tpm, "secret")
}

/// `bytes` as a TPM2B.
pub(crate) fn sized(bytes: &[u8]) -> Result<Vec<u8>> {
    Ok([&u16::try_from(bytes.len())?.to_be_bytes(), bytes].concat())
}

/// A certificate request for a key, signed by it.
pub(crate) fn csr_by<const MAX: usize>(key: &impl SigningKey) -> Result<Bytes<MAX>> {
    Ok(CertificateParams::default().serialize_request(key)?.der().to_vec().try_into()?)
}

/// The IK, for rcgen.
struct ToolsKey<'a> {
    tpm: &'a Swtpm,
    sec1: Vec<u8>,
}

impl PublicKeyData for ToolsKey<'_> {
    fn der_bytes(&self) -> &[u8] {
        &self.sec1
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        &rcgen::PKCS_ECDSA_P256_SHA256
    }
}

impl SigningKey for ToolsKey<'_> {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        let sign = || -> Result<Vec<u8>> {
            fs::write(self.tpm.work_dir().join("message"), message)?;
            self.tpm.tpm2(&[
                "sign",
                "-c",
                "ik.ctx",
                "-g",
                "sha256",
                "-f",
                "plain",
                "-o",
                "signature",
                "message",
            ])?;
            self.tpm.tpm2(&["flushcontext", "-t"])?;
            read(self.tpm, "signature")
        };
        sign().map_err(|_| rcgen::Error::RemoteKeyError)
    }
}

/// A TPM2B_PUBLIC file without its size.
pub(crate) fn tpmt_public<T: TryFrom<Vec<u8>, Error = Limit>>(
    tpm: &Swtpm,
    file: &str,
) -> Result<T> {
    Ok(read(tpm, file)?[2..].to_vec().try_into()?)
}

/// The device id that a certificate is for.
pub(crate) fn named(chain: &CertificateList<1>) -> Result<String> {
    match certificate::identity(&chain[0])? {
        Identity::Device { device_id, .. } => Ok(device_id.to_string()),
        other => bail!("{other} is no device"),
    }
}

pub(crate) fn read(tpm: &Swtpm, file: &str) -> Result<Vec<u8>> {
    let path = tpm.work_dir().join(file);
    fs::read(&path).with_context(|| format!("{}", path.display()))
}

//! The CA's half of the shared key flow, with tpm2-tools and a software TPM as the other half.

use std::fs;

use anyhow::{Result, bail, ensure};
use assay_ca_core::{Admitted, Enrolment, MasterSecret, Records, SharedKey, SrkEvidence, TrustAnchors, TrustedEk};
use assay_tests::{EkKind, Swtpm, trusted_vendor};
use assay_wire::{ActivationReply, Scope, SrkBundle};
use rand_core::UnwrapErr;
use time::OffsetDateTime;

use crate::tools_device::{activate_credential, make_ek, read, sized, tpmt_public};

const EKS: [EkKind; 3] = [EkKind::Rsa2048, EkKind::P256, EkKind::P384];
/// As tpm2_createprimary spells the types of the templates.
const SRKS: [&str; 2] = ["rsa2048", "ecc256"];
pub(crate) const SRK_ATTRIBUTES: &str = "fixedtpm|fixedparent|sensitivedataorigin|userwithauth|noda|restricted|decrypt";

/// A TPM with an EK and an SRK on template, as tpm2-tools keep them.
struct Device {
    tpm: Swtpm,
    kind: EkKind,
}

impl Device {
    fn new(kind: EkKind, number: usize, srk: &str) -> Result<Self> {
        let tpm = trusted_vendor()?.device(kind, number)?;
        make_ek(&tpm, kind)?;
        let create = ["createprimary", "-C", "o", "-g", "sha256", "-a", SRK_ATTRIBUTES, "-c", "srk.ctx"];
        tpm.tpm2(&[&create[..], &["-G", &format!("{srk}:null:aes128cfb")]].concat())?;
        tpm.tpm2(&["readpublic", "-c", "srk.ctx", "-o", "srk.pub"])?;
        tpm.tpm2(&["flushcontext", "-t"])?;
        Ok(Self { tpm, kind })
    }

    /// The key of the inner wrapper.
    fn activate(&self, reply: &ActivationReply) -> Result<Vec<u8>> {
        activate_credential(&self.tpm, self.kind, "srk.ctx", &reply.credential_blob, &reply.encrypted_seed)
    }

    /// Loads the key below the SRK, into `key.ctx`.
    fn load(&self, reply: &ActivationReply, inner_key: &[u8]) -> Result<()> {
        let write = |file: &str, bytes: &[u8]| fs::write(self.tpm.work_dir().join(file), bytes);
        write("inner.key", inner_key)?;
        write("key.pub", &sized(&reply.key_public)?)?;
        write("key.duplicate", &sized(&reply.duplicate)?)?;
        write("key.seed", &sized(&reply.symmetric_seed)?)?;
        // A command that was refused leaves what it loaded.
        self.tpm.tpm2(&["flushcontext", "-t"])?;
        let import = ["import", "-C", "srk.ctx", "-u", "key.pub", "-i", "key.duplicate", "-s", "key.seed"];
        self.tpm.tpm2(&[&import[..], &["-k", "inner.key", "-r", "key.priv"]].concat())?;
        self.tpm.tpm2(&["flushcontext", "-t"])?;
        self.tpm.tpm2(&["load", "-C", "srk.ctx", "-u", "key.pub", "-r", "key.priv", "-c", "key.ctx"])?;
        self.tpm.tpm2(&["flushcontext", "-t"])?;
        Ok(())
    }

    fn hmac(&self, message: &[u8]) -> Result<Vec<u8>> {
        fs::write(self.tpm.work_dir().join("message"), message)?;
        self.tpm.tpm2(&["hmac", "-c", "key.ctx", "-o", "mac", "message"])?;
        self.tpm.tpm2(&["flushcontext", "-t"])?;
        read(&self.tpm, "mac")
    }
}

/// A CA whose operator enrolled every EK.
struct Ca {
    scope: Scope,
    master: MasterSecret,
}

impl Ca {
    fn new() -> Result<Self> {
        let master = MasterSecret::generate(&mut UnwrapErr(getrandom::SysRng));
        Ok(Self { scope: "plant-7".parse()?, master })
    }

    /// What the CA sends to the device with the EK of `ek` and the SRK of `srk`, and the key that it expects to be used.
    fn activation(&self, ek: &Device, srk: &Device) -> Result<(ActivationReply, SharedKey)> {
        let evidence = SrkEvidence::parse(SrkBundle {
            device_id: None,
            ek_public: tpmt_public(&ek.tpm, "ek.pub")?,
            ek_certificates: Vec::new().try_into()?,
            srk_public: tpmt_public(&srk.tpm, "srk.pub")?,
            other_eks: None,
        })?;
        let enrolment = Enrolment::default();
        let now = OffsetDateTime::now_utc();
        let trusted = TrustedEk::verify(&evidence.ek, &TrustAnchors::default(), Some(&enrolment), now)?;
        let records = Records { enrolment: Some(enrolment), ..Records::default() };
        let admitted = Admitted::decide(trusted, None, &records)?;
        let srk = evidence.storage_root_key()?;
        let mut rng = UnwrapErr(getrandom::SysRng);
        let reply = admitted.activation(&srk, &self.scope, &self.master, 1, &mut rng)?;
        Ok((reply, self.master.key(&self.scope, admitted.device_id(), &evidence.ek.ek_id(), 1)))
    }
}

#[test]
fn tpm2_import_loads_our_key_for_every_kind_of_ek_and_srk() -> Result<()> {
    let ca = Ca::new()?;
    let message = b"plant-7%2Fregistrations%2Fpump-1\n1800000000";
    for kind in EKS {
        for srk in SRKS {
            let device = Device::new(kind, 0, srk)?;
            let (reply, key) = ca.activation(&device, &device)?;
            let inner_key = device.activate(&reply)?;
            device.load(&reply, &inner_key)?;
            ensure!(device.hmac(message)? == key.hmac(message), "{kind:?}, {srk}");
        }
    }
    Ok(())
}

#[test]
fn activation_for_another_tpm_opens_nowhere_else() -> Result<()> {
    let ca = Ca::new()?;
    // For RSA, where OAEP finds no seed, libtpms answers TPM_RC_FAILURE (and works on).
    for (kind, srk, reason) in [(EkKind::Rsa2048, "rsa2048", "(0x101)"), (EkKind::P256, "ecc256", INTEGRITY)] {
        let (device, other) = (Device::new(kind, 0, srk)?, Device::new(kind, 1, srk)?);
        let (reply, _) = ca.activation(&device, &device)?;
        let inner_key = device.activate(&reply)?;
        refused(other.activate(&reply), reason)?;
        // Even where the inner key is known.
        refused(other.load(&reply, &inner_key), reason)?;
        device.load(&reply, &inner_key)?;
    }
    Ok(())
}

/// Somebody names an SRK of his own beside the EK of another's TPM.
#[test]
fn activation_for_an_srk_that_is_not_beside_the_ek_opens_nowhere() -> Result<()> {
    let ca = Ca::new()?;
    let (kind, srk) = (EkKind::P256, "ecc256");
    let (victim, attacker) = (Device::new(kind, 0, srk)?, Device::new(kind, 1, srk)?);
    let (reply, _) = ca.activation(&victim, &attacker)?;
    refused(victim.activate(&reply), INTEGRITY)?;
    refused(attacker.activate(&reply), INTEGRITY)?;

    // Nor if the public part of that SRK is loaded beside the EK, which gives an object with its Name (TPM_RC_AUTH_UNAVAILABLE).
    fs::copy(attacker.tpm.work_dir().join("srk.pub"), victim.tpm.work_dir().join("foreign.pub"))?;
    victim.tpm.tpm2(&["flushcontext", "-t"])?;
    victim.tpm.tpm2(&["loadexternal", "-C", "n", "-u", "foreign.pub", "-c", "srk.ctx"])?;
    victim.tpm.tpm2(&["flushcontext", "-t"])?;
    refused(victim.activate(&reply), "(0x12F)")
}

#[test]
fn duplicate_without_its_inner_key_or_altered_does_not_load() -> Result<()> {
    let ca = Ca::new()?;
    let device = Device::new(EkKind::P256, 0, "ecc256")?;
    let (reply, _) = ca.activation(&device, &device)?;
    let inner_key = device.activate(&reply)?;
    // TPM_RC_SIZE, for what comes out begins with a size; where that is right by chance, TPM_RC_INTEGRITY of the same parameter.
    let other_key = [0; 16];
    refused(device.load(&reply, &other_key), "tpm:parameter(3)")?;
    let mut altered = reply.duplicate.to_vec();
    altered[100] ^= 1;
    let altered = ActivationReply { duplicate: altered.try_into()?, ..reply.clone() };
    refused(device.load(&altered, &inner_key), INTEGRITY)?;
    device.load(&reply, &inner_key)
}

/// The TPM said no, for this reason.
fn refused<T>(result: Result<T>, reason: &str) -> Result<()> {
    let Err(error) = result else { bail!("it was not refused") };
    let text = error.to_string();
    ensure!(text.contains(reason), "refused for another reason: {text}");
    Ok(())
}

/// What tpm2-tools say of TPM_RC_INTEGRITY.
const INTEGRITY: &str = "integrity check failed";

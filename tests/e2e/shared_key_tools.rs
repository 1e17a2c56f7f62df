//! The CA's half of the shared key flow, with tpm2-tools and a software TPM as the other half.

use std::fs;

use anyhow::{Result, bail, ensure};
use assay_ca_core::{
    Admission, Admitted, AdmittedParent, Enrolment, Flaws, Groups, KeyOffer, MasterSecret,
    ParentEvidence, Profile, Records, SharedKey, TrustAnchors, TrustedEk,
};
use assay_tests::{EkKind, Swtpm, trusted_vendor};
use assay_wire::{ActivationReply, Flow, ParentBundle, Scope};
use rand_core::UnwrapErr;
use time::OffsetDateTime;

use crate::tools_device::{activate_credential, make_ek, read, sized, tpmt_public};

const EKS: [EkKind; 3] = [EkKind::Rsa2048, EkKind::P256, EkKind::P384];
/// The spelling of tpm2_createprimary for the types of the templates.
const ALGORITHMS: [&str; 2] = ["rsa2048", "ecc256"];
pub(crate) const IMPORT_PARENT_ATTRIBUTES: &str =
    "fixedtpm|fixedparent|sensitivedataorigin|noda|restricted|decrypt";
pub(crate) const SRK_ATTRIBUTES: &str =
    "fixedtpm|fixedparent|sensitivedataorigin|userwithauth|noda|restricted|decrypt";

/// The kind of parent that a shared key is sent to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Parent {
    Import,
    PlainSrk,
}

impl Parent {
    pub(crate) const BOTH: [Self; 2] = [Self::Import, Self::PlainSrk];

    /// Makes a parent by tpm2_createprimary, in `parent.ctx`, and leaves its public area in
    /// `parent.pub`.
    pub(crate) fn make(self, tpm: &Swtpm, algorithm: &str) -> Result<()> {
        match self {
            Self::Import => {
                make_parent(tpm, algorithm, IMPORT_PARENT_ATTRIBUTES, Some(IMPORT_OR_LOAD))
            }
            Self::PlainSrk => make_parent(tpm, algorithm, SRK_ATTRIBUTES, None),
        }
    }
}

/// Makes a parent with any attributes and policy.
pub(crate) fn make_parent(
    tpm: &Swtpm,
    algorithm: &str,
    attributes: &str,
    policy: Option<&str>,
) -> Result<()> {
    let algorithm = format!("{algorithm}:null:aes128cfb");
    let mut create =
        vec!["createprimary", "-C", "o", "-g", "sha256", "-a", attributes, "-G", &algorithm];
    if let Some(policy) = policy {
        fs::write(tpm.work_dir().join("parent.policy"), hex::decode(policy)?)?;
        create.extend(["-L", "parent.policy"]);
    }
    tpm.tpm2(&[&create[..], &["-c", "parent.ctx"]].concat())?;
    tpm.tpm2(&["readpublic", "-c", "parent.ctx", "-o", "parent.pub"])?;
    tpm.tpm2(&["flushcontext", "-t"])?;
    Ok(())
}

/// A TPM with an EK and a parent on template, as tpm2-tools keep them.
pub(crate) struct Device {
    pub(crate) tpm: Swtpm,
    kind: EkKind,
    parent: Parent,
}

impl Device {
    pub(crate) fn new(
        kind: EkKind,
        number: usize,
        parent: Parent,
        algorithm: &str,
    ) -> Result<Self> {
        let tpm = trusted_vendor()?.device(kind, number)?;
        make_ek(&tpm, kind)?;
        parent.make(&tpm, algorithm)?;
        Ok(Self { tpm, kind, parent })
    }

    /// The key of the inner wrapper.
    pub(crate) fn activate(&self, reply: &ActivationReply) -> Result<Vec<u8>> {
        activate_credential(
            &self.tpm,
            self.kind,
            "parent.ctx",
            &reply.credential_blob,
            &reply.encrypted_seed,
        )
    }

    /// Loads the key below the parent, into `key.ctx`.
    pub(crate) fn load(&self, reply: &ActivationReply, inner_key: &[u8]) -> Result<()> {
        let write = |file: &str, bytes: &[u8]| fs::write(self.tpm.work_dir().join(file), bytes);
        write("inner.key", inner_key)?;
        write("key.pub", &sized(&reply.key_public)?)?;
        write("key.duplicate", &sized(&reply.duplicate)?)?;
        write("key.seed", &sized(&reply.symmetric_seed)?)?;
        let import = [
            "import",
            "-C",
            "parent.ctx",
            "-u",
            "key.pub",
            "-i",
            "key.duplicate",
            "-s",
            "key.seed",
        ];
        self.by_parent(
            "TPM2_CC_Import",
            &[&import[..], &["-k", "inner.key", "-r", "key.priv"]].concat(),
        )?;
        self.by_parent(
            "TPM2_CC_Load",
            &["load", "-C", "parent.ctx", "-u", "key.pub", "-r", "key.priv", "-c", "key.ctx"],
        )
    }

    /// Runs a command that uses the parent, with the authorisation that the parent needs.
    fn by_parent(&self, code: &str, command: &[&str]) -> Result<()> {
        // A command that was refused may have left objects and sessions loaded.
        self.tpm.tpm2(&["flushcontext", "-t"])?;
        self.tpm.tpm2(&["flushcontext", "-l"])?;
        if self.parent == Parent::PlainSrk {
            self.tpm.tpm2(command)?;
        } else {
            for (file, branch) in [("import.policy", IMPORT), ("load.policy", LOAD)] {
                fs::write(self.tpm.work_dir().join(file), hex::decode(branch)?)?;
            }
            self.tpm.tpm2(&["startauthsession", "--policy-session", "-S", "parent.session"])?;
            self.tpm.tpm2(&["policycommandcode", "-S", "parent.session", code])?;
            self.tpm.tpm2(&[
                "policyor",
                "-S",
                "parent.session",
                "sha256:import.policy,load.policy",
            ])?;
            self.tpm.tpm2(&[command, &["-P", "session:parent.session"]].concat())?;
            self.tpm.tpm2(&["flushcontext", "parent.session"])?;
        }
        self.tpm.tpm2(&["flushcontext", "-t"])?;
        Ok(())
    }

    pub(crate) fn hmac(&self, message: &[u8]) -> Result<Vec<u8>> {
        fs::write(self.tpm.work_dir().join("message"), message)?;
        self.tpm.tpm2(&["hmac", "-c", "key.ctx", "-o", "mac", "message"])?;
        self.tpm.tpm2(&["flushcontext", "-t"])?;
        read(&self.tpm, "mac")
    }
}

/// A CA whose operator enrolled every EK, and allows every parent.
pub(crate) struct Ca {
    scope: Scope,
    master: MasterSecret,
}

impl Ca {
    pub(crate) fn new() -> Result<Self> {
        let master = MasterSecret::generate(&mut UnwrapErr(getrandom::SysRng));
        Ok(Self { scope: "plant-7".parse()?, master })
    }

    /// What the CA sends to the device with the EK of `ek` and the parent of `parent`, and the key
    /// that it expects to be used.
    pub(crate) fn activation(
        &self,
        ek: &Device,
        parent: &Device,
    ) -> Result<(ActivationReply, SharedKey)> {
        let evidence = ParentEvidence::parse(ParentBundle {
            device_id: None,
            ek_public: tpmt_public(&ek.tpm, "ek.pub")?,
            ek_certificates: Vec::new().try_into()?,
            parent_public: tpmt_public(&parent.tpm, "parent.pub")?,
            other_eks: None,
        })?;
        let enrolment = Enrolment { plain_srk: true, ..Enrolment::default() };
        let now = OffsetDateTime::now_utc();
        let trusted =
            TrustedEk::verify(&evidence.ek, &TrustAnchors::default(), Some(&enrolment), now)?;
        let records = Records {
            disabled: false,
            enrolment: Some(enrolment),
            registration: None,
            recent_unconfirmed: 0,
            shared_key: None,
            recent_generations: 0,
            key_used_since: None,
            id_holder: None,
            other_ek: None,
        };
        let profile = Profile::default().with_flows(vec![Flow::SharedKey])?;
        let groups = Groups::of_new_ca();
        let admission = Admission {
            groups: &groups,
            flaws: &Flaws::default(),
            waits_since: None,
            ik: None,
            now,
        };
        let admitted = Admitted::decide(profile.offer()?, trusted, &records, &admission)?;
        let parent = AdmittedParent::decide(&admitted, evidence.parent()?, &records)?;
        let offer = KeyOffer::decide(admitted, parent, &records, &profile, now)?;
        let mut rng = UnwrapErr(getrandom::SysRng);
        let reply = offer.activation(&self.scope, &self.master, &mut rng)?;
        let (device_id, ek_id) = (offer.device_id(), evidence.ek.ek_id());
        Ok((reply, self.master.key(&self.scope, device_id, &ek_id, 1)))
    }
}

#[test]
fn tpm2_import_loads_our_key_for_every_kind_of_ek_and_parent() -> Result<()> {
    let ca = Ca::new()?;
    let message = b"plant-7%2Fregistrations%2Fpump-1\n1800000000";
    for kind in EKS {
        for (parent, algorithm) in
            Parent::BOTH.into_iter().flat_map(|parent| ALGORITHMS.map(|one| (parent, one)))
        {
            let device = Device::new(kind, 0, parent, algorithm)?;
            let (reply, key) = ca.activation(&device, &device)?;
            let inner_key = device.activate(&reply)?;
            device.load(&reply, &inner_key)?;
            ensure!(
                device.hmac(message)? == key.hmac(message),
                "{kind:?}, {parent:?}, {algorithm}"
            );
        }
    }
    Ok(())
}

#[test]
fn activation_for_another_tpm_opens_nowhere_else() -> Result<()> {
    let ca = Ca::new()?;
    // For RSA, where OAEP finds no seed, libtpms answers TPM_RC_FAILURE, and works on.
    for (kind, algorithm, reason) in
        [(EkKind::Rsa2048, "rsa2048", "(0x101)"), (EkKind::P256, "ecc256", INTEGRITY)]
    {
        let [device, other] =
            [0, 1].map(|number| Device::new(kind, number, Parent::Import, algorithm));
        let (device, other) = (device?, other?);
        let (reply, _) = ca.activation(&device, &device)?;
        let inner_key = device.activate(&reply)?;
        refused(other.activate(&reply), reason)?;
        // This fails even if the inner key is known.
        refused(other.load(&reply, &inner_key), reason)?;
        device.load(&reply, &inner_key)?;
    }
    Ok(())
}

/// An attacker shows his own parent beside the EK of a victim's TPM.
#[test]
fn activation_for_a_parent_that_is_not_beside_the_ek_opens_nowhere() -> Result<()> {
    let ca = Ca::new()?;
    for parent in Parent::BOTH {
        let [victim, attacker] =
            [0, 1].map(|number| Device::new(EkKind::P256, number, parent, "ecc256"));
        let (victim, attacker) = (victim?, attacker?);
        let (reply, _) = ca.activation(&victim, &attacker)?;
        refused(victim.activate(&reply), INTEGRITY)?;
        refused(attacker.activate(&reply), INTEGRITY)?;

        // The same if the victim's TPM loads the public area of that parent, which gives an object
        // with the parent's Name (TPM_RC_AUTH_UNAVAILABLE).
        fs::copy(
            attacker.tpm.work_dir().join("parent.pub"),
            victim.tpm.work_dir().join("foreign.pub"),
        )?;
        victim.tpm.tpm2(&["flushcontext", "-t"])?;
        victim.tpm.tpm2(&["loadexternal", "-C", "n", "-u", "foreign.pub", "-c", "parent.ctx"])?;
        victim.tpm.tpm2(&["flushcontext", "-t"])?;
        refused(victim.activate(&reply), "(0x12F)")?;
    }
    Ok(())
}

#[test]
fn duplicate_without_its_inner_key_or_altered_does_not_load() -> Result<()> {
    let ca = Ca::new()?;
    let device = Device::new(EkKind::P256, 0, Parent::Import, "ecc256")?;
    let (reply, _) = ca.activation(&device, &device)?;
    let inner_key = device.activate(&reply)?;
    // TPM_RC_SIZE, because the decrypted bytes begin with a size. If this size is right by chance,
    // TPM_RC_INTEGRITY of the same parameter.
    let other_key = [0; 16];
    refused(device.load(&reply, &other_key), "tpm:parameter(3)")?;
    let mut altered = reply.duplicate.to_vec();
    altered[100] ^= 1;
    let altered = ActivationReply { duplicate: altered.try_into()?, ..reply.clone() };
    refused(device.load(&altered, &inner_key), INTEGRITY)?;
    device.load(&reply, &inner_key)
}

/// Checks that the TPM refused, for this reason.
fn refused<T>(result: Result<T>, reason: &str) -> Result<()> {
    let Err(error) = result else { bail!("it was not refused") };
    let text = error.to_string();
    ensure!(text.contains(reason), "refused for another reason: {text}");
    Ok(())
}

/// What tpm2-tools say of TPM_RC_INTEGRITY.
const INTEGRITY: &str = "integrity check failed";
/// TPM2_PolicyCommandCode of TPM_CC_Import and of TPM_CC_Load, SHA-256.
pub(crate) const IMPORT: &str = "e1fdc38a23806dcf62097bcb06740e33ca3690dc21a7000c41e0e81c4b9b365a";
pub(crate) const LOAD: &str = "430ed9475815deb61c7e4a88eb44fe5a83fa17b97cf6cee4a8420b3ef50b134f";
/// TPM2_PolicyOR of the two.
pub(crate) const IMPORT_OR_LOAD: &str =
    "1e7626a5d4b685cbb04936a0fdcc77b8a3ca3c37f42ad40482bcf27534dd887f";

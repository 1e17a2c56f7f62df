//! What a device remembers: which keys are its own, and what the CA gave for them. No key is among
//! it; those stay in the TPM.

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use assay_wire::{DeviceId, EkId, Flow, Proof, Scope, Ticket};
use rustls::pki_types::CertificateDer;
use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::pem;
use crate::tpm::{EkKind, IkKind, ParentKind};

/// A state directory, held by one process at a time.
///
/// | file | holds | written |
/// |---|---|---|
/// | `device.json` | [`Memory`] | when the IK is persistent, before any request is sent; when a certificate is verified or confirmed; when an HMAC key has come, and when it is persistent |
/// | `certificate.pem` | a copy of the certificate and its issuers, for other programs; gone with a shared key | after that |
/// | `device.json.broken` | a `device.json` that could not be made sense of, for people to look at | when the next run begins anew |
/// | `lock` | nothing | |
///
/// The directory is made with mode 0700, the files with 0600; a directory that is there already
/// must be ours, and nobody else may write to it. A file is replaced as a whole, so that a reader
/// sees the old or the new one whenever the power fails.
pub(crate) struct StateDirectory {
    path: PathBuf,
    _lock: File,
}

/// What `device.json` holds. An attempt becomes what is in use by one replacement of that file,
/// together with its certificate, so that the two never disagree; an attempt that fails leaves what
/// is in use alone.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Memory {
    pub(crate) in_use: Option<Grant>,
    /// What the CA has not agreed to yet.
    pub(crate) attempt: Option<Attempt>,
}

impl Memory {
    /// With a certificate that is still to be confirmed. It can be used at once if there is nothing
    /// else to use; what is in use stays so until the confirmation, for whoever carries the
    /// messages can forge that it is refused.
    pub(crate) fn with_unconfirmed(&self, grant: CertificateGrant) -> Self {
        match &self.in_use {
            None => Self { in_use: Some(Grant::Certificate(grant)), attempt: None },
            Some(_) => {
                Self { in_use: self.in_use.clone(), attempt: Some(Attempt::Unconfirmed(grant)) }
            }
        }
    }

    /// Asking for what `record` says. A certificate for the same that is still to be confirmed is
    /// kept until another takes its place.
    pub(crate) fn asking_for(&self, record: &IdentityRecord) -> Self {
        let attempt = match &self.attempt {
            Some(Attempt::Unconfirmed(grant)) if grant.record == *record => self.attempt.clone(),
            _ => Some(Attempt::Identity(record.clone())),
        };
        Self { in_use: self.in_use.clone(), attempt }
    }

    /// The flow that the next run uses if nobody says otherwise.
    pub(crate) fn flow(&self) -> Option<Flow> {
        self.records().next().map(|record| record.flow())
    }

    /// Where the next run takes the kind of EK from if nobody says otherwise: from what the CA
    /// granted, for to it another EK is another device; else from an attempt, if somebody named the
    /// kind.
    pub(crate) fn shown(&self) -> Option<Shown> {
        let granted = match (&self.attempt, &self.in_use) {
            (Some(Attempt::Unconfirmed(grant)), _) => Some(grant.record.shown.clone()),
            _ => self.granted_for(),
        };
        let named = || {
            Some(self.attempt.as_ref()?.record().into_shown()).filter(|shown| shown.ek_was_named)
        };
        granted.or_else(named)
    }

    /// The EK for which the CA granted something that is in use.
    pub(crate) fn granted_for(&self) -> Option<Shown> {
        self.in_use.as_ref().map(|grant| grant.record().into_shown())
    }

    /// The identity key that the next run uses if nobody says otherwise.
    pub(crate) fn identity(&self) -> Option<IdentityRecord> {
        self.records().find_map(|record| match record {
            DeviceRecord::Identity(record) => Some(record),
            DeviceRecord::Hmac(_) => None,
        })
    }

    /// The HMAC key that the next run uses if nobody says otherwise.
    pub(crate) fn hmac(&self) -> Option<HmacRecord> {
        self.records().find_map(|record| match record {
            DeviceRecord::Identity(_) => None,
            DeviceRecord::Hmac(record) => Some(record),
        })
    }

    /// Whether this is an HMAC key that the CA sent to this device.
    pub(crate) fn knows(&self, key: &HmacPublic) -> bool {
        self.records().any(|record| match record {
            DeviceRecord::Identity(_) => false,
            DeviceRecord::Hmac(record) => record.keys.contains(key),
        })
    }

    /// What keys `next` no longer knows of, and their handles.
    pub(crate) fn keys_dropped_by(&self, next: &Self) -> Vec<(&'static str, u32)> {
        let kept: Vec<_> = next.records().map(|record| record.key()).collect();
        let mut dropped: Vec<_> = self.records().map(|record| record.key()).collect();
        dropped.retain(|key| !kept.contains(key));
        dropped.dedup();
        dropped
    }

    /// What the next run is to go on with comes first: what only waits for its confirmation, then
    /// what is in use.
    fn records(&self) -> impl Iterator<Item = DeviceRecord> {
        let in_use = self.in_use.as_ref().map(Grant::record);
        let attempt = self.attempt.as_ref().map(Attempt::record);
        let is_first = matches!(self.attempt, Some(Attempt::Unconfirmed(_)));
        let (first, second) = if is_first { (attempt, in_use) } else { (in_use, attempt) };
        first.into_iter().chain(second)
    }
}

/// How far asking for something else has come.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Attempt {
    Identity(IdentityRecord),
    Hmac(HmacRecord),
    /// A sealed certificate has come, and waits for its confirmation.
    Unconfirmed(CertificateGrant),
}

impl Attempt {
    pub(crate) fn record(&self) -> DeviceRecord {
        match self {
            Self::Identity(record) | Self::Unconfirmed(CertificateGrant { record, .. }) => {
                DeviceRecord::Identity(record.clone())
            }
            Self::Hmac(record) => DeviceRecord::Hmac(record.clone()),
        }
    }
}

/// What the CA agreed to, and what it gave for it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Grant {
    Certificate(CertificateGrant),
    SharedKey(SharedKeyGrant),
}

impl Grant {
    pub(crate) fn record(&self) -> DeviceRecord {
        match self {
            Self::Certificate(grant) => DeviceRecord::Identity(grant.record.clone()),
            Self::SharedKey(grant) => DeviceRecord::Hmac(grant.record.clone()),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct CertificateGrant {
    pub(crate) record: IdentityRecord,
    /// The certificate, then its issuers.
    #[serde(rename = "certificate", with = "as_pem")]
    pub(crate) chain: Vec<CertificateDer<'static>>,
    /// What is still to be sent to the CA, before it revokes a sealed certificate. It can be used
    /// meanwhile.
    pub(crate) unconfirmed: Option<Confirmation>,
}

/// What confirms a sealed certificate, and by what its CA's answer is known.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "ConfirmationText", try_from = "ConfirmationText")]
pub(crate) struct Confirmation {
    pub(crate) proof: Proof,
    pub(crate) receipt_sha256: [u8; 32],
}

/// A [`Confirmation`] in hexadecimal digits.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ConfirmationText {
    #[serde(with = "as_hex")]
    claim: Vec<u8>,
    #[serde(with = "as_hex")]
    ticket: Vec<u8>,
    #[serde(with = "as_hex")]
    receipt_sha256: Vec<u8>,
}

impl From<Confirmation> for ConfirmationText {
    fn from(Confirmation { proof: Proof { claim, ticket }, receipt_sha256 }: Confirmation) -> Self {
        Self {
            claim: claim.into_vec(),
            ticket: ticket.as_bytes().into(),
            receipt_sha256: receipt_sha256.into(),
        }
    }
}

impl TryFrom<ConfirmationText> for Confirmation {
    type Error = &'static str;

    fn try_from(
        ConfirmationText { claim, ticket, receipt_sha256 }: ConfirmationText,
    ) -> Result<Self, Self::Error> {
        let claim = claim.try_into().map_err(|_| "a claim that is too long")?;
        let ticket: [u8; Ticket::LEN] =
            ticket.try_into().map_err(|_| "a ticket of another length")?;
        let receipt_sha256 = receipt_sha256.try_into().map_err(|_| "a hash of another length")?;
        Ok(Self { proof: Proof { claim, ticket: ticket.into() }, receipt_sha256 })
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct SharedKeyGrant {
    pub(crate) record: HmacRecord,
    /// The registration.
    #[serde(with = "as_text")]
    pub(crate) device_id: DeviceId,
}

/// The key in the TPM that is this device's, and where it is shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum DeviceRecord {
    Identity(IdentityRecord),
    Hmac(HmacRecord),
}

impl DeviceRecord {
    pub(crate) fn flow(&self) -> Flow {
        match self {
            Self::Identity(record) => record.flow,
            Self::Hmac(_) => Flow::SharedKey,
        }
    }

    pub(crate) fn into_shown(self) -> Shown {
        match self {
            Self::Identity(record) => record.shown,
            Self::Hmac(record) => record.shown,
        }
    }

    fn key(&self) -> (&'static str, u32) {
        match self {
            Self::Identity(record) => ("identity key", record.ik_handle),
            Self::Hmac(record) => ("HMAC key", record.hmac_handle),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct IdentityRecord {
    pub(crate) shown: Shown,
    /// One of those that give certificates.
    #[serde(with = "as_text")]
    pub(crate) flow: Flow,
    #[serde(with = "as_text")]
    pub(crate) ik: IkKind,
    pub(crate) ik_handle: u32,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "HmacRecordText")]
pub(crate) struct HmacRecord {
    pub(crate) shown: Shown,
    #[serde(serialize_with = "as_text::serialize")]
    pub(crate) parent: ParentKind,
    pub(crate) hmac_handle: u32,
    /// The TPMT_PUBLIC of the key that the handle holds or, while one takes the place of another,
    /// of either: what tells this device's keys from those of others.
    pub(crate) keys: Vec<HmacPublic>,
}

/// An [`HmacRecord`] as it is read: until there were import parents, its parent was a plain storage
/// root key, and called `srk`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct HmacRecordText {
    shown: Shown,
    parent: Option<String>,
    srk: Option<String>,
    hmac_handle: u32,
    keys: Vec<HmacPublic>,
}

impl TryFrom<HmacRecordText> for HmacRecord {
    type Error = String;

    fn try_from(text: HmacRecordText) -> Result<Self, String> {
        let HmacRecordText { shown, parent, srk, hmac_handle, keys } = text;
        let parent = parent
            .or_else(|| Some(format!("srk-{}", srk?)))
            .ok_or("an HMAC key without a parent")?;
        Ok(Self { shown, parent: parent.parse()?, hmac_handle, keys })
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct HmacPublic(#[serde(with = "as_hex")] pub(crate) Vec<u8>);

/// Which TPM is shown to which CA.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Shown {
    #[serde(with = "as_text")]
    pub(crate) scope: Scope,
    #[serde(with = "as_text")]
    pub(crate) ek: EkKind,
    /// Whether somebody asked for this kind, and not for whichever has a certificate.
    #[serde(default)]
    pub(crate) ek_was_named: bool,
    #[serde(with = "as_text")]
    pub(crate) ek_id: EkId,
}

impl StateDirectory {
    /// Makes the directory if it is not there, and locks it until the value is dropped or the
    /// process ends.
    pub(crate) fn open(path: &Path) -> Result<Self, Error> {
        DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(Error::state(path))?;
        // The kernel gives this directory to the effective user (proc_pid(5)).
        let own_uid = fs::metadata("/proc/self").map_err(Error::state("/proc/self"))?.uid();
        refuse_directory_of_others(path, own_uid)?;
        let lock_path = path.join("lock");
        let lock = private(OpenOptions::new().create(true))
            .open(&lock_path)
            .map_err(Error::state(&lock_path))?;
        match lock.try_lock() {
            Ok(()) => {
                let state = Self { path: path.into(), _lock: lock };
                // What is broken is for whoever needs it to complain of.
                if let Ok(memory) = state.memory() {
                    state.copy_certificate(&memory)?;
                }
                Ok(state)
            }
            Err(TryLockError::WouldBlock) => Err(Error::State {
                path: path.into(),
                reason: "in use by another assay-device".into(),
            }),
            Err(TryLockError::Error(error)) => Err(Error::state(&lock_path)(error)),
        }
    }

    pub(crate) fn certificate_path(&self) -> PathBuf {
        certificate_path(&self.path)
    }

    pub(crate) fn memory(&self) -> Result<Memory, Error> {
        memory(&self.path)
    }

    /// Makes room for a new beginning if `device.json` is there and cannot be made sense of: it
    /// goes to [`BROKEN`], in place of one that broke before. Returns what to tell people.
    ///
    /// Nothing is lost by it: for the key in the TPM, the CA gives what it gave before.
    pub(crate) fn set_broken_aside(&self) -> Result<Option<String>, Error> {
        let path = self.path.join(DEVICE);
        let Some(json) = read(&path)? else { return Ok(None) };
        let Err(error) = parse(&json) else { return Ok(None) };
        let copy = self.path.join(BROKEN);
        fs::rename(&path, &copy).map_err(Error::state(&path))?;
        Ok(Some(format!(
            "{} is broken ({error}): moved to {BROKEN}, beginning anew",
            path.display()
        )))
    }

    pub(crate) fn store(&self, memory: &Memory) -> Result<(), Error> {
        let json = serde_json::to_string_pretty(memory)
            .map_err(|error| Error::Internal(error.to_string()))?;
        let mut files = vec![(DEVICE, (json + "\n").into_bytes())];
        files.extend(self.certificate_to_copy(memory)?.map(|pem| (CERTIFICATE, pem)));
        self.replace(&files)?;
        self.remove_stale_certificate(memory)
    }

    /// Done when the directory is opened, in case a process was killed before it.
    fn copy_certificate(&self, memory: &Memory) -> Result<(), Error> {
        if let Some(pem) = self.certificate_to_copy(memory)? {
            self.replace(&[(CERTIFICATE, pem)])?;
        }
        self.remove_stale_certificate(memory)
    }

    /// The contents that `certificate.pem` should have and has not.
    fn certificate_to_copy(&self, memory: &Memory) -> Result<Option<Vec<u8>>, Error> {
        let Some(Grant::Certificate(grant)) = &memory.in_use else { return Ok(None) };
        let pem = pem::certificates(&grant.chain).into_bytes();
        let is_there = read(&self.certificate_path())?.as_ref() == Some(&pem);
        Ok((!is_there).then_some(pem))
    }

    fn remove_stale_certificate(&self, memory: &Memory) -> Result<(), Error> {
        if !matches!(memory.in_use, Some(Grant::SharedKey(_))) {
            return Ok(());
        }
        let path = self.certificate_path();
        remove(&path).map_err(Error::state(path))
    }

    /// Replaces files together, for each wait for the disk takes longer than most of what a device
    /// does.
    fn replace(&self, files: &[(&str, Vec<u8>)]) -> Result<(), Error> {
        let mut written = Vec::new();
        for (name, contents) in files {
            let path = self.path.join(name);
            // The lock keeps other writers of this name away; what a killed one left goes.
            let new = self.path.join(format!("{name}.new"));
            let write = || {
                remove(&new)?;
                // Never through a symbolic link.
                let mut file = private(OpenOptions::new().create_new(true)).open(&new)?;
                file.write_all(contents)?;
                Ok(file)
            };
            let file = write().map_err(Error::state(&path))?;
            written.push((file, new, path));
        }
        for (file, _, path) in &written {
            file.sync_all().map_err(Error::state(path))?;
        }
        for (_, new, path) in &written {
            fs::rename(new, path).map_err(Error::state(path))?;
        }
        File::open(&self.path)
            .and_then(|directory| directory.sync_all())
            .map_err(Error::state(&self.path))
    }
}

/// Whoever can write to the directory could have us write elsewhere, through symbolic links.
fn refuse_directory_of_others(path: &Path, own_uid: u32) -> Result<(), Error> {
    let directory = fs::metadata(path).map_err(Error::state(path))?;
    let refusal = |reason: String| Err(Error::State { path: path.into(), reason });
    if directory.uid() != own_uid {
        return refusal(format!(
            "belongs to user {}, not to user {own_uid}; use a directory of your own",
            directory.uid()
        ));
    }
    if directory.mode() & 0o022 != 0 {
        return refusal("others may write to it; close it first: chmod 700".into());
    }
    Ok(())
}

/// Reads what is remembered without taking the directory; safe at any time, since files are
/// replaced as a whole.
pub(crate) fn memory(directory: &Path) -> Result<Memory, Error> {
    let path = directory.join(DEVICE);
    let Some(json) = read(&path)? else { return Ok(Memory::default()) };
    parse(&json).map_err(|error| {
        let reason = format!(
            "broken ({error})\n  What to do: run `assay-device provision`, which begins anew and \
             keeps a copy."
        );
        Error::State { path, reason }
    })
}

fn parse(json: &[u8]) -> serde_json::Result<Memory> {
    serde_json::from_slice(json)
}

pub(crate) fn certificate_path(directory: &Path) -> PathBuf {
    directory.join(CERTIFICATE)
}

fn read(path: &Path) -> Result<Option<Vec<u8>>, Error> {
    match fs::read(path) {
        Ok(contents) => Ok(Some(contents)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::state(path)(error)),
    }
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn private(options: &mut OpenOptions) -> &OpenOptions {
    options.write(true).mode(0o600)
}

/// Serializes a value as its `Display` text, and parses it back.
mod as_text {
    use std::fmt::Display;
    use std::str::FromStr;

    use serde::{Deserialize, Deserializer, Serializer, de};

    pub(super) fn serialize<S: Serializer>(
        value: &impl Display,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.collect_str(value)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>, T>(deserializer: D) -> Result<T, D::Error>
    where
        T: FromStr<Err: Display>,
    {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

/// Serializes bytes as hexadecimal digits, and parses them back.
mod as_hex {
    use data_encoding::HEXLOWER;
    use serde::{Deserialize, Deserializer, Serializer, de};

    pub(super) fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&HEXLOWER.encode(bytes))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Vec<u8>, D::Error> {
        HEXLOWER.decode(String::deserialize(deserializer)?.as_bytes()).map_err(de::Error::custom)
    }
}

/// Serializes certificates as PEM, and parses them back.
mod as_pem {
    use rustls::pki_types::CertificateDer;
    use serde::{Deserialize, Deserializer, Serializer, de};

    use crate::pem;

    pub(super) fn serialize<S: Serializer>(
        chain: &[CertificateDer<'_>],
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&pem::certificates(chain))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Vec<CertificateDer<'static>>, D::Error> {
        pem::parse(String::deserialize(deserializer)?.as_bytes()).map_err(de::Error::custom)
    }
}

const DEVICE: &str = "device.json";
const CERTIFICATE: &str = "certificate.pem";
/// Where a `device.json` goes that cannot be made sense of.
const BROKEN: &str = "device.json.broken";

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn a_record() -> IdentityRecord {
        let scope = "default".parse().unwrap();
        let shown = Shown { scope, ek: EkKind::P384, ek_was_named: false, ek_id: [7; 32].into() };
        IdentityRecord { shown, flow: Flow::Ticket, ik: IkKind::P256, ik_handle: 0x8100_0200 }
    }

    fn a_certificate() -> CertificateGrant {
        let chain = vec![CertificateDer::from(vec![1; 100]), CertificateDer::from(vec![2; 3])];
        CertificateGrant { record: a_record(), chain, unconfirmed: None }
    }

    fn a_memory() -> Memory {
        let attempt = IdentityRecord { ik_handle: 0x8100_0201, ..a_record() };
        Memory {
            in_use: Some(Grant::Certificate(a_certificate())),
            attempt: Some(Attempt::Identity(attempt)),
        }
    }

    fn an_hmac_record() -> HmacRecord {
        let keys = vec![HmacPublic(vec![0xAB; 48])];
        HmacRecord {
            shown: a_record().shown,
            parent: ParentKind::Rsa2048,
            hmac_handle: 0x8100_0100,
            keys,
        }
    }

    fn a_shared_key() -> Memory {
        let grant =
            SharedKeyGrant { record: an_hmac_record(), device_id: "pump-17".parse().unwrap() };
        Memory {
            in_use: Some(Grant::SharedKey(grant)),
            attempt: Some(Attempt::Hmac(an_hmac_record())),
        }
    }

    #[test]
    fn what_is_remembered_reads_back_as_written() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDirectory::open(&dir.path().join("state")).unwrap();
        let proof = Proof { claim: vec![3; 70].try_into().unwrap(), ticket: [0x0F; 32].into() };
        let confirmation = Confirmation { proof, receipt_sha256: [0x1E; 32] };
        let unconfirmed = CertificateGrant { unconfirmed: Some(confirmation), ..a_certificate() };
        let first = Memory::default().with_unconfirmed(unconfirmed.clone());
        let second = a_shared_key().with_unconfirmed(unconfirmed);
        let asked = Memory { in_use: None, ..a_memory() };
        for memory in [Memory::default(), asked, a_memory(), first, second, a_shared_key()] {
            state.store(&memory).unwrap();
            assert_eq!(state.memory().unwrap(), memory);
        }
    }

    /// As the versions before wrote it.
    #[test]
    fn hmac_key_of_a_plain_srk_is_still_known() {
        let record = HmacRecord { parent: ParentKind::SrkRsa2048, ..an_hmac_record() };
        let mut written = serde_json::to_value(&record).unwrap();
        let parent = written.as_object_mut().unwrap().remove("parent").unwrap();
        assert_eq!(parent, "srk-rsa-2048");
        written["srk"] = "rsa-2048".into();
        assert_eq!(serde_json::from_value::<HmacRecord>(written.clone()).unwrap(), record);
        written["srk"] = "rsa-1024".into();
        assert!(serde_json::from_value::<HmacRecord>(written.clone()).is_err());
        written.as_object_mut().unwrap().remove("srk");
        assert!(serde_json::from_value::<HmacRecord>(written).is_err());
    }

    #[test]
    fn certificate_file_that_a_killed_process_did_not_replace_is_replaced_by_the_next() {
        let dir = tempfile::tempdir().unwrap();
        let copy = dir.path().join(CERTIFICATE);
        StateDirectory::open(dir.path()).unwrap().store(&a_memory()).unwrap();
        let expected = fs::read(&copy).unwrap();
        assert_eq!(pem::parse(&expected).unwrap(), a_certificate().chain);
        fs::write(&copy, "that of another key").unwrap();
        StateDirectory::open(dir.path()).unwrap();
        assert_eq!(fs::read(&copy).unwrap(), expected);
    }

    #[test]
    fn next_run_does_what_is_in_use_does_or_else_what_was_attempted() {
        assert_eq!(Memory::default().flow(), None);
        assert_eq!(Memory { in_use: None, ..a_shared_key() }.flow(), Some(Flow::SharedKey));
        let both = Memory { attempt: a_shared_key().attempt, ..a_memory() };
        assert_eq!(both.flow(), Some(Flow::Ticket));
        assert_eq!(both.identity(), Some(a_record()));
        assert_eq!(both.hmac(), Some(an_hmac_record()));
    }

    #[test]
    fn certificate_that_waits_for_its_confirmation_leaves_what_is_in_use_alone_and_comes_first_in_the_next_run()
     {
        let record = IdentityRecord { flow: Flow::Sealed, ik_handle: 0x8100_0207, ..a_record() };
        let waiting = CertificateGrant { record: record.clone(), ..a_certificate() };
        for before in [a_memory(), a_shared_key()] {
            let after = before.with_unconfirmed(waiting.clone());
            assert_eq!(after.in_use, before.in_use);
            assert_eq!(
                (after.flow(), after.identity()),
                (Some(Flow::Sealed), Some(record.clone()))
            );
            assert_eq!(after.asking_for(&record), after);
            assert_eq!(after.asking_for(&a_record()).attempt, Some(Attempt::Identity(a_record())));
        }
    }

    #[test]
    fn next_run_shows_the_ek_of_what_was_granted_or_else_one_that_was_named() {
        let shown = |ek, ek_was_named| Shown { ek, ek_was_named, ..a_record().shown };
        let attempt = |shown| Some(Attempt::Identity(IdentityRecord { shown, ..a_record() }));
        let found = shown(EkKind::Rsa2048, false);
        let named = shown(EkKind::LegacyDps, true);
        assert_eq!(Memory { in_use: None, attempt: attempt(found) }.shown(), None);
        assert_eq!(
            Memory { in_use: None, attempt: attempt(named.clone()) }.shown(),
            Some(named.clone())
        );
        assert_eq!(
            Memory { attempt: attempt(named.clone()), ..a_memory() }.shown(),
            Some(a_record().shown)
        );
        let record = IdentityRecord { shown: named.clone(), ..a_record() };
        let waiting = a_memory().with_unconfirmed(CertificateGrant { record, ..a_certificate() });
        assert_eq!(waiting.shown(), Some(named));
    }

    #[test]
    fn hmac_keys_of_what_is_in_use_and_of_an_attempt_are_known() {
        let attempt =
            HmacRecord { keys: vec![HmacPublic(vec![1]), HmacPublic(vec![2])], ..an_hmac_record() };
        let memory = Memory { attempt: Some(Attempt::Hmac(attempt)), ..a_shared_key() };
        for (key, is_known) in
            [(vec![0xAB; 48], true), (vec![1], true), (vec![2], true), (vec![3], false)]
        {
            assert_eq!(memory.knows(&HmacPublic(key)), is_known);
        }
        assert!(!a_memory().knows(&HmacPublic(vec![1])));
    }

    #[test]
    fn certificate_file_goes_with_the_certificate() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDirectory::open(dir.path()).unwrap();
        state.store(&a_memory()).unwrap();
        assert!(dir.path().join(CERTIFICATE).exists());
        for _ in 0..2 {
            state.store(&a_shared_key()).unwrap();
            assert!(!dir.path().join(CERTIFICATE).exists());
        }
    }

    #[test]
    fn broken_file_is_reported_with_what_to_do_and_left_to_who_begins_anew() {
        let record =
            r#"{"scope":"default","ek":"p-256","ek_id":"00","ik":"p-256","ik_handle":2164261376}"#;
        for broken in [
            String::new(),
            "[]".into(),
            "{\"in_use\": and then the power fai".into(),
            // Of an older shape.
            format!(r#"{{"in_use":{{"record":{record},"certificate":""}},"attempt":null}}"#),
            format!(r#"{{"in_use":null,"attempt":{record}}}"#),
        ] {
            let dir = tempfile::tempdir().unwrap();
            fs::write(dir.path().join(DEVICE), &broken).unwrap();
            let state = StateDirectory::open(dir.path()).unwrap();
            let error = state.memory().unwrap_err();
            assert_eq!(error.exit_code(), 6);
            assert!(error.to_string().contains("assay-device provision"), "{error}");
            assert_eq!(fs::read_to_string(dir.path().join(DEVICE)).unwrap(), broken);

            let told = state.set_broken_aside().unwrap().unwrap();
            assert!(told.contains("device.json.broken"), "{told}");
            assert_eq!(state.memory().unwrap(), Memory::default());
            assert_eq!(fs::read_to_string(dir.path().join(BROKEN)).unwrap(), broken);
        }
    }

    #[test]
    fn file_that_is_sound_is_not_set_aside() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDirectory::open(dir.path()).unwrap();
        assert_eq!(state.set_broken_aside().unwrap(), None);
        state.store(&a_memory()).unwrap();
        assert_eq!(state.set_broken_aside().unwrap(), None);
        assert_eq!(state.memory().unwrap(), a_memory());
    }

    #[test]
    fn handle_of_a_key_that_is_no_longer_known_is_reported() {
        let at = |ik_handle| IdentityRecord { ik_handle, ..a_record() };
        let attempt = |ik_handle| Some(Attempt::Identity(at(ik_handle)));
        let in_use = |ik_handle| {
            Some(Grant::Certificate(CertificateGrant { record: at(ik_handle), ..a_certificate() }))
        };
        let before = Memory { in_use: in_use(1), attempt: attempt(2) };
        let other_attempt = Memory { attempt: attempt(3), ..before.clone() };
        let granted = Memory { in_use: in_use(2), attempt: None };
        assert_eq!(before.keys_dropped_by(&before), []);
        assert_eq!(before.keys_dropped_by(&other_attempt), [("identity key", 2)]);
        assert_eq!(before.keys_dropped_by(&granted), [("identity key", 1)]);
        assert_eq!(a_shared_key().keys_dropped_by(&granted), [("HMAC key", 0x8100_0100)]);
    }

    #[test]
    fn only_the_owner_can_read_directory_and_files() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/state");
        let state = StateDirectory::open(&path).unwrap();
        state.store(&a_memory()).unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o7777;
        assert_eq!(mode(&path), 0o700);
        for name in ["lock", DEVICE, CERTIFICATE] {
            assert_eq!(mode(&path.join(name)), 0o600, "{name}");
        }
    }

    #[test]
    fn a_second_process_is_kept_out_until_the_first_ends() {
        let dir = tempfile::tempdir().unwrap();
        let first = StateDirectory::open(dir.path()).unwrap();
        let error = StateDirectory::open(dir.path()).err().unwrap();
        assert_eq!(error.exit_code(), 6);
        assert!(error.to_string().contains("in use by another assay-device"), "{error}");
        drop(first);
        StateDirectory::open(dir.path()).unwrap();
    }

    #[test]
    fn a_half_written_file_of_a_killed_process_is_ignored_and_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDirectory::open(dir.path()).unwrap();
        state.store(&a_memory()).unwrap();
        fs::write(dir.path().join("device.json.new"), "{\"in_use\": and then the power fai")
            .unwrap();
        assert_eq!(state.memory().unwrap(), a_memory());
        let other = Memory { attempt: None, ..a_memory() };
        state.store(&other).unwrap();
        assert_eq!(state.memory().unwrap(), other);
    }

    #[test]
    fn symbolic_link_in_place_of_a_new_file_is_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("target");
        fs::write(&target, "precious").unwrap();
        let state = StateDirectory::open(&dir.path().join("state")).unwrap();
        std::os::unix::fs::symlink(&target, dir.path().join("state/device.json.new")).unwrap();
        state.store(&a_memory()).unwrap();
        assert_eq!(fs::read(&target).unwrap(), b"precious");
        assert_eq!(state.memory().unwrap(), a_memory());
    }

    #[test]
    fn directory_that_others_may_write_to_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        for (mode, is_refused) in [(0o770, true), (0o707, true), (0o755, false), (0o700, false)] {
            fs::set_permissions(dir.path(), fs::Permissions::from_mode(mode)).unwrap();
            let error = StateDirectory::open(dir.path()).err();
            assert_eq!(error.is_some(), is_refused, "{mode:o}: {error:?}");
            if let Some(error) = error {
                assert!(error.to_string().contains("chmod 700"), "{error}");
            }
        }
    }

    #[test]
    fn directory_of_another_user_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let owner = fs::metadata(dir.path()).unwrap().uid();
        refuse_directory_of_others(dir.path(), owner).unwrap();
        let error = refuse_directory_of_others(dir.path(), owner + 1).unwrap_err();
        assert!(error.to_string().contains("belongs to user"), "{error}");
    }
}

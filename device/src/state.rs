//! What a device remembers: which key is its own, and the certificate for it. No secret is among it; those stay in the TPM.

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use assay_wire::{EkId, Scope};
use rustls::pki_types::CertificateDer;
use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::pem;
use crate::tpm::{EkKind, IkKind};

/// A state directory, held by one process at a time.
///
/// | file | holds | written |
/// |---|---|---|
/// | `device.json` | [`Memory`] | when the IK is persistent, before anything is sent; and when a certificate is verified |
/// | `certificate.pem` | a copy of the certificate and its issuers, for other programs | after that |
/// | `lock` | nothing | |
///
/// The directory is made with mode 0700, the files with 0600; a directory that is there already must be ours, and nobody else
/// may write to it. A file is replaced as a whole, so that a reader sees the old or the new one whenever the power fails.
pub(crate) struct StateDirectory {
    path: PathBuf,
    _lock: File,
}

/// What `device.json` holds. An attempt becomes what is in use by one replacement of that file, together with its certificate,
/// so that the two never disagree; an attempt that fails leaves what is in use alone.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Memory {
    pub(crate) in_use: Option<Grant>,
    /// What the CA has not agreed to yet.
    pub(crate) attempt: Option<DeviceRecord>,
}

impl Memory {
    /// What the next run does if nobody says otherwise.
    pub(crate) fn record(&self) -> Option<&DeviceRecord> {
        self.in_use.as_ref().map(|grant| &grant.record).or(self.attempt.as_ref())
    }

    /// The handles of identity keys that `next` no longer knows of.
    pub(crate) fn handles_dropped_by(&self, next: &Self) -> Vec<u32> {
        let kept = next.handles();
        let mut dropped = self.handles();
        dropped.retain(|handle| !kept.contains(handle));
        dropped.dedup();
        dropped
    }

    fn handles(&self) -> Vec<u32> {
        let in_use = self.in_use.as_ref().map(|grant| &grant.record);
        in_use.into_iter().chain(&self.attempt).map(|record| record.ik_handle).collect()
    }
}

/// What the CA agreed to, and its certificate for it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Grant {
    pub(crate) record: DeviceRecord,
    /// The certificate, then its issuers.
    #[serde(rename = "certificate", with = "as_pem")]
    pub(crate) chain: Vec<CertificateDer<'static>>,
}

/// The keys in the TPM that are this device's, and where they are shown.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct DeviceRecord {
    #[serde(with = "as_text")]
    pub(crate) scope: Scope,
    #[serde(with = "as_text")]
    pub(crate) ek: EkKind,
    #[serde(with = "as_text")]
    pub(crate) ek_id: EkId,
    #[serde(with = "as_text")]
    pub(crate) ik: IkKind,
    pub(crate) ik_handle: u32,
}

impl StateDirectory {
    /// Makes the directory if it is not there, and locks it until the value is dropped or the process ends.
    pub(crate) fn open(path: &Path) -> Result<Self, Error> {
        DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(Error::state(path))?;
        // The kernel gives this directory to the effective user (proc_pid(5)).
        let own_uid = fs::metadata("/proc/self").map_err(Error::state("/proc/self"))?.uid();
        refuse_directory_of_others(path, own_uid)?;
        let lock_path = path.join("lock");
        let lock = private(OpenOptions::new().create(true)).open(&lock_path).map_err(Error::state(&lock_path))?;
        match lock.try_lock() {
            Ok(()) => {
                let state = Self { path: path.into(), _lock: lock };
                state.copy_certificate(&state.memory()?)?;
                Ok(state)
            }
            Err(TryLockError::WouldBlock) => {
                Err(Error::State { path: path.into(), reason: "in use by another assay-device".into() })
            }
            Err(TryLockError::Error(error)) => Err(Error::state(&lock_path)(error)),
        }
    }

    pub(crate) fn certificate_path(&self) -> PathBuf {
        certificate_path(&self.path)
    }

    pub(crate) fn memory(&self) -> Result<Memory, Error> {
        memory(&self.path)
    }

    pub(crate) fn store(&self, memory: &Memory) -> Result<(), Error> {
        let json = serde_json::to_string_pretty(memory).map_err(|error| Error::Internal(error.to_string()))?;
        self.replace(DEVICE, (json + "\n").as_bytes())?;
        self.copy_certificate(memory)
    }

    /// Done again when the directory is opened, in case a process was killed before it.
    fn copy_certificate(&self, memory: &Memory) -> Result<(), Error> {
        let Some(grant) = &memory.in_use else { return Ok(()) };
        let pem = pem::certificates(&grant.chain).into_bytes();
        if read(&self.certificate_path())?.as_ref() == Some(&pem) {
            return Ok(());
        }
        self.replace(CERTIFICATE, &pem)
    }

    fn replace(&self, name: &str, contents: &[u8]) -> Result<(), Error> {
        let path = self.path.join(name);
        // The lock keeps other writers of this name away; what a killed one left goes.
        let new = self.path.join(format!("{name}.new"));
        let write = || {
            match fs::remove_file(&new) {
                Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            // Never through a symbolic link.
            let mut file = private(OpenOptions::new().create_new(true)).open(&new)?;
            file.write_all(contents)?;
            file.sync_all()?;
            fs::rename(&new, &path)?;
            File::open(&self.path)?.sync_all()
        };
        write().map_err(Error::state(&path))
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

/// Reads what is remembered without taking the directory; safe at any time, since files are replaced as a whole.
pub(crate) fn memory(directory: &Path) -> Result<Memory, Error> {
    let path = directory.join(DEVICE);
    let Some(json) = read(&path)? else { return Ok(Memory::default()) };
    serde_json::from_slice(&json).map_err(|error| {
        let reason = format!("not written by this program ({error}); move it away to begin anew");
        Error::State { path, reason }
    })
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

fn private(options: &mut OpenOptions) -> &OpenOptions {
    options.write(true).mode(0o600)
}

/// Serializes a value as its `Display` text, and parses it back.
mod as_text {
    use std::fmt::Display;
    use std::str::FromStr;

    use serde::{Deserialize, Deserializer, Serializer, de};

    pub(super) fn serialize<S: Serializer>(value: &impl Display, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(value)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>, T>(deserializer: D) -> Result<T, D::Error>
    where
        T: FromStr<Err: Display>,
    {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

/// Serializes certificates as PEM, and parses them back.
mod as_pem {
    use rustls::pki_types::CertificateDer;
    use serde::{Deserialize, Deserializer, Serializer, de};

    use crate::pem;

    pub(super) fn serialize<S: Serializer>(chain: &[CertificateDer<'_>], serializer: S) -> Result<S::Ok, S::Error> {
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

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn a_record() -> DeviceRecord {
        DeviceRecord {
            scope: "default".parse().unwrap(),
            ek: EkKind::P384,
            ek_id: [7; 32].into(),
            ik: IkKind::P256,
            ik_handle: 0x8100_0200,
        }
    }

    fn a_memory() -> Memory {
        let chain = vec![CertificateDer::from(vec![1; 100]), CertificateDer::from(vec![2; 3])];
        let attempt = DeviceRecord { scope: "other".parse().unwrap(), ..a_record() };
        Memory { in_use: Some(Grant { record: a_record(), chain }), attempt: Some(attempt) }
    }

    #[test]
    fn what_is_remembered_reads_back_as_written() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDirectory::open(&dir.path().join("state")).unwrap();
        for memory in [Memory::default(), Memory { in_use: None, ..a_memory() }, a_memory()] {
            state.store(&memory).unwrap();
            assert_eq!(state.memory().unwrap(), memory);
        }
    }

    #[test]
    fn certificate_file_that_a_killed_process_did_not_replace_is_replaced_by_the_next() {
        let dir = tempfile::tempdir().unwrap();
        let copy = dir.path().join(CERTIFICATE);
        StateDirectory::open(dir.path()).unwrap().store(&a_memory()).unwrap();
        let expected = fs::read(&copy).unwrap();
        assert_eq!(pem::parse(&expected).unwrap(), a_memory().in_use.unwrap().chain);
        fs::write(&copy, "that of another key").unwrap();
        StateDirectory::open(dir.path()).unwrap();
        assert_eq!(fs::read(&copy).unwrap(), expected);
    }

    #[test]
    fn handle_of_a_key_that_is_no_longer_known_is_reported() {
        let at = |ik_handle| DeviceRecord { ik_handle, ..a_record() };
        let before = Memory { in_use: Some(Grant { record: at(1), chain: Vec::new() }), attempt: Some(at(2)) };
        let other_attempt = Memory { attempt: Some(at(3)), ..before.clone() };
        let granted = Memory { in_use: Some(Grant { record: at(2), chain: Vec::new() }), attempt: None };
        assert_eq!(before.handles_dropped_by(&before), [0; 0]);
        assert_eq!(before.handles_dropped_by(&other_attempt), [2]);
        assert_eq!(before.handles_dropped_by(&granted), [1]);
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
        fs::write(dir.path().join("device.json.new"), "{\"in_use\": and then the power fai").unwrap();
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

    #[test]
    fn a_file_of_somebody_else_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(DEVICE), "[]").unwrap();
        let error = StateDirectory::open(dir.path()).err().unwrap();
        assert_eq!(error.exit_code(), 6);
        assert!(error.to_string().contains("device.json"), "{error}");
        assert_eq!(fs::read(dir.path().join(DEVICE)).unwrap(), b"[]");
    }
}

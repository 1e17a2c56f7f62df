//! What a device remembers: which key is its own, and the certificate for it. No secret is among it; those stay in the TPM.

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
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
/// | `device.json` | [`DeviceRecord`] | when the IK is persistent, before anything is sent |
/// | `certificate.pem` | the certificate and its issuers | when they are verified |
/// | `lock` | nothing | |
///
/// The directory has mode 0700, the files 0600. A file is replaced as a whole, so that a reader sees the old or the new one
/// whenever the power fails.
pub(crate) struct StateDirectory {
    path: PathBuf,
    _lock: File,
}

/// The keys in the TPM that are this device's, and where they were shown last.
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
        let lock_path = path.join("lock");
        let lock = private(OpenOptions::new().create(true)).open(&lock_path).map_err(Error::state(&lock_path))?;
        match lock.try_lock() {
            Ok(()) => Ok(Self { path: path.into(), _lock: lock }),
            Err(TryLockError::WouldBlock) => {
                Err(Error::State { path: path.into(), reason: "in use by another assay-device".into() })
            }
            Err(TryLockError::Error(error)) => Err(Error::state(&lock_path)(error)),
        }
    }

    pub(crate) fn certificate_path(&self) -> PathBuf {
        certificate_path(&self.path)
    }

    pub(crate) fn record(&self) -> Result<Option<DeviceRecord>, Error> {
        record(&self.path)
    }

    pub(crate) fn certificate(&self) -> Result<Option<Vec<CertificateDer<'static>>>, Error> {
        certificate(&self.path)
    }

    pub(crate) fn store_record(&self, record: &DeviceRecord) -> Result<(), Error> {
        let json = serde_json::to_string_pretty(record).map_err(|error| Error::Internal(error.to_string()))?;
        self.replace(DEVICE, (json + "\n").as_bytes())
    }

    pub(crate) fn store_certificate(&self, chain: &[CertificateDer<'_>]) -> Result<(), Error> {
        self.replace(CERTIFICATE, pem::certificates(chain).as_bytes())
    }

    fn replace(&self, name: &str, contents: &[u8]) -> Result<(), Error> {
        let path = self.path.join(name);
        // The lock keeps other writers of this name away; what a killed one left is overwritten.
        let new = self.path.join(format!("{name}.new"));
        let write = || {
            let mut file = private(OpenOptions::new().create(true).truncate(true)).open(&new)?;
            file.write_all(contents)?;
            file.sync_all()?;
            fs::rename(&new, &path)?;
            File::open(&self.path)?.sync_all()
        };
        write().map_err(Error::state(&path))
    }
}

/// Reads the record without taking the directory; safe at any time, since files are replaced as a whole.
pub(crate) fn record(directory: &Path) -> Result<Option<DeviceRecord>, Error> {
    let path = directory.join(DEVICE);
    let Some(json) = read(&path)? else { return Ok(None) };
    match serde_json::from_slice(&json) {
        Ok(record) => Ok(Some(record)),
        Err(error) => {
            let reason = format!("not written by this program ({error}); move it away to begin anew");
            Err(Error::State { path, reason })
        }
    }
}

/// Reads the certificates, unverified.
pub(crate) fn certificate(directory: &Path) -> Result<Option<Vec<CertificateDer<'static>>>, Error> {
    let path = certificate_path(directory);
    let Some(text) = read(&path)? else { return Ok(None) };
    match pem::parse(&text) {
        Ok(chain) => Ok(Some(chain)),
        Err(reason) => Err(Error::State { path, reason }),
    }
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

    #[test]
    fn a_record_reads_back_as_written() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDirectory::open(&dir.path().join("state")).unwrap();
        assert_eq!(state.record().unwrap(), None);
        state.store_record(&a_record()).unwrap();
        assert_eq!(state.record().unwrap(), Some(a_record()));
    }

    #[test]
    fn certificates_read_back_as_written() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDirectory::open(dir.path()).unwrap();
        assert_eq!(state.certificate().unwrap(), None);
        let chain = vec![CertificateDer::from(vec![1; 100]), CertificateDer::from(vec![2; 3])];
        state.store_certificate(&chain).unwrap();
        assert_eq!(state.certificate().unwrap(), Some(chain));
    }

    #[test]
    fn only_the_owner_can_read_directory_and_files() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/state");
        let state = StateDirectory::open(&path).unwrap();
        state.store_record(&a_record()).unwrap();
        state.store_certificate(&[]).unwrap();
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
        state.store_record(&a_record()).unwrap();
        fs::write(dir.path().join("device.json.new"), "{\"scope\": and then the power fai").unwrap();
        assert_eq!(state.record().unwrap(), Some(a_record()));
        let other = DeviceRecord { ik_handle: 0x8100_0201, ..a_record() };
        state.store_record(&other).unwrap();
        assert_eq!(state.record().unwrap(), Some(other));
    }

    #[test]
    fn a_file_of_somebody_else_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDirectory::open(dir.path()).unwrap();
        fs::write(dir.path().join(DEVICE), "{}").unwrap();
        let error = state.record().unwrap_err();
        assert_eq!(error.exit_code(), 6);
        assert!(error.to_string().contains("device.json"), "{error}");
    }
}

//! Makes the keys of simulated devices once, and keeps them in files.
//!
//! An RSA key costs a tenth of a second, so a fleet of thousands would take longer to make than to
//! provision.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::ErrorKind;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, OnceLock};
use std::thread;

use anyhow::{Context, Result};
use assay_wire::EkId;
use indicatif::ProgressBar;
use minicbor::{Decode, Encode};
use rcgen::{
    CertificateParams, DistinguishedName, KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384,
    PKCS_RSA_SHA256, PublicKeyData,
};

use crate::progress;
use crate::tpm::area::{EkKind, IkKind, ParentKind, unique_modulus, unique_point};
use crate::tpm::hash::Hash;
use crate::tpm::signing_key::SigningKey;
use crate::tpm::storage_key::{StorageKey, modulus};
use crate::vendor::Vendor;

/// Keys in a directory, which one process at a time may use.
pub(crate) struct Factory {
    dir: PathBuf,
    pub(crate) vendor: Vendor,
    _lock: File,
}

/// An EK as its vendor made it.
pub(crate) struct Ek {
    pub(crate) kind: EkKind,
    pub(crate) key: StorageKey,
    pub(crate) pkcs8: Vec<u8>,
    pub(crate) certificate: Vec<u8>,
}

impl Ek {
    pub(crate) fn new(kind: EkKind, pkcs8: &[u8], certificate: &[u8]) -> Result<Self> {
        let key = StorageKey::from_pkcs8(kind.into(), pkcs8)?;
        Ok(Self { kind, key, pkcs8: pkcs8.to_vec(), certificate: certificate.to_vec() })
    }
}

/// An IK that has signed its request.
pub(crate) struct Ik {
    pub(crate) kind: IkKind,
    pub(crate) unique: Vec<u8>,
    pub(crate) spki: Vec<u8>,
    pub(crate) csr: Vec<u8>,
    /// Its private half. Provisioning does not need it any more. A device that renews or connects
    /// afterwards does.
    pub(crate) pkcs8: Vec<u8>,
    key: OnceLock<SigningKey>,
}

impl Ik {
    pub(crate) fn new(
        kind: IkKind,
        unique: Vec<u8>,
        spki: Vec<u8>,
        csr: Vec<u8>,
        pkcs8: Vec<u8>,
    ) -> Self {
        Self { kind, unique, spki, csr, pkcs8, key: OnceLock::new() }
    }

    /// Reads its private half, which takes longer than to sign with it.
    pub(crate) fn load(&self) -> Result<()> {
        _ = self.key.set(SigningKey::from_pkcs8(self.kind, &self.pkcs8)?);
        Ok(())
    }

    /// TPM2_Sign. The key must have been [loaded](Self::load).
    pub(crate) fn sign(&self, message: &[u8]) -> Result<Vec<u8>> {
        self.key.get().context("the IK is loaded")?.sign(message)
    }
}

/// An import parent.
pub(crate) struct Parent {
    pub(crate) kind: ParentKind,
    pub(crate) key: StorageKey,
}

#[derive(Encode, Decode)]
struct EkRecord {
    #[cbor(n(0), with = "minicbor::bytes")]
    pkcs8: Vec<u8>,
    #[cbor(n(1), with = "minicbor::bytes")]
    certificate: Vec<u8>,
}

#[derive(Encode, Decode)]
struct IkRecord {
    #[cbor(n(0), with = "minicbor::bytes")]
    unique: Vec<u8>,
    #[cbor(n(1), with = "minicbor::bytes")]
    spki: Vec<u8>,
    #[cbor(n(2), with = "minicbor::bytes")]
    csr: Vec<u8>,
    #[cbor(n(3), with = "minicbor::bytes")]
    pkcs8: Vec<u8>,
}

#[derive(Encode, Decode)]
struct ParentRecord {
    #[cbor(n(0), with = "minicbor::bytes")]
    pkcs8: Vec<u8>,
}

impl Factory {
    /// The factory in `dir`, which is made if it does not exist. Waits while another process uses
    /// it.
    pub(crate) fn open(dir: &Path) -> Result<Self> {
        let dir = dir.join(FORMAT);
        let lock = fs::create_dir_all(&dir).and_then(|()| File::create(dir.join("lock")));
        let lock = lock.with_context(|| {
            format!("cannot write to {}; name another directory with --cache", dir.display())
        })?;
        lock.lock()?;
        let vendor = Vendor::open(&dir)?;
        Ok(Self { dir, vendor, _lock: lock })
    }

    /// The directory of its vendor's certificates.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// The EKs of this kind with these numbers.
    pub(crate) fn eks(&self, kind: EkKind, numbers: Range<usize>) -> Result<Vec<Ek>> {
        let records = self.records("ek", kind.name(), numbers, || {
            let pkcs8 = StorageKey::generate(kind.into())?;
            let certificate =
                self.vendor.certify(kind, StorageKey::from_pkcs8(kind.into(), &pkcs8)?.spki())?;
            Ok(EkRecord { pkcs8, certificate })
        })?;
        let bar = progress::bar(records.len(), &format!("reading ek-{}", kind.name()));
        parallel(&records, &bar, |EkRecord { pkcs8, certificate }| {
            Ek::new(kind, pkcs8, certificate)
        })
    }

    /// The IKs of this kind with these numbers.
    pub(crate) fn iks(&self, kind: IkKind, numbers: Range<usize>) -> Result<Vec<Ik>> {
        let records = self.records("ik", kind.name(), numbers, || make_ik(kind))?.into_iter();
        Ok(records
            .map(|IkRecord { unique, spki, csr, pkcs8 }| Ik::new(kind, unique, spki, csr, pkcs8))
            .collect())
    }

    /// The parents of this kind with these numbers.
    pub(crate) fn parents(&self, kind: ParentKind, numbers: Range<usize>) -> Result<Vec<Parent>> {
        let make = || Ok(ParentRecord { pkcs8: StorageKey::generate(kind.into())? });
        let records = self.records("parent", kind.name(), numbers, make)?;
        let bar = progress::bar(records.len(), &format!("reading parent-{}", kind.name()));
        parallel(&records, &bar, |ParentRecord { pkcs8 }| {
            Ok(Parent { kind, key: StorageKey::from_pkcs8(kind.into(), pkcs8)? })
        })
    }

    /// The records of a file with these numbers. Missing records are made and kept.
    fn records<T>(
        &self,
        what: &str,
        kind: &str,
        numbers: Range<usize>,
        make: impl Fn() -> Result<T> + Sync,
    ) -> Result<Vec<T>>
    where
        T: Encode<()> + for<'b> Decode<'b, ()> + Send,
    {
        let path = self.dir.join(format!("{what}-{kind}.cbor"));
        let mut records: Vec<T> = match fs::read(&path) {
            Ok(bytes) => minicbor::decode(&bytes).with_context(|| {
                format!("{} is damaged; remove {}", path.display(), self.dir.display())
            })?,
            Err(error) if error.kind() == ErrorKind::NotFound => Vec::new(),
            Err(error) => {
                return Err(error).with_context(|| format!("cannot read {}", path.display()));
            }
        };
        if records.len() < numbers.end {
            let missing = vec![(); numbers.end - records.len()];
            let bar = progress::bar(missing.len(), &format!("making {what}-{kind}"));
            records.extend(parallel(&missing, &bar, |()| make())?);
            replace(&path, &minicbor::to_vec(&records)?)?;
        }
        records.truncate(numbers.end);
        Ok(records.split_off(numbers.start))
    }

    /// Which keys the CA with this root has seen already.
    pub(crate) fn used_by(&self, root: &[u8]) -> Result<Used> {
        let path = self.dir.join(format!("used-{}.json", EkId::from(sha256(root))));
        let counts = match fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes)
                .with_context(|| format!("{} is damaged", path.display()))?,
            Err(error) if error.kind() == ErrorKind::NotFound => BTreeMap::new(),
            Err(error) => {
                return Err(error).with_context(|| format!("cannot read {}", path.display()));
            }
        };
        Ok(Used { path: Some(path), counts })
    }
}

/// How many keys of each kind a CA has seen. A device that the CA knows would spoil the
/// measurement: it gets the certificate that it has, without a transaction that writes anything.
#[derive(Default)]
pub(crate) struct Used {
    path: Option<PathBuf>,
    counts: BTreeMap<String, usize>,
}

impl Used {
    /// The numbers of the next `count` keys.
    pub(crate) fn take(&mut self, what: &str, kind: &str, count: usize) -> Range<usize> {
        let used = self.counts.entry(format!("{what}-{kind}")).or_default();
        *used += count;
        *used - count..*used
    }

    /// Keeps the counts for the next run with this CA.
    pub(crate) fn save(&self) -> Result<()> {
        self.path.as_ref().map_or(Ok(()), |path| replace(path, &serde_json::to_vec(&self.counts)?))
    }
}

/// Replaces a file. A crash leaves the whole old file or the whole new one.
fn replace(path: &Path, content: &[u8]) -> Result<()> {
    let fresh = path.with_extension("new");
    fs::write(&fresh, content)
        .and_then(|()| fs::rename(&fresh, path))
        .with_context(|| format!("cannot write {}", path.display()))
}

fn sha256(bytes: &[u8]) -> [u8; 32] {
    // Unwrap safety: that is the length of SHA-256.
    Hash::Sha256.digest(&[bytes]).try_into().unwrap()
}

fn make_ik(kind: IkKind) -> Result<IkRecord> {
    let algorithm = match kind {
        IkKind::P256 => &PKCS_ECDSA_P256_SHA256,
        IkKind::P384 => &PKCS_ECDSA_P384_SHA384,
        IkKind::Rsa2048 => &PKCS_RSA_SHA256,
    };
    let key = KeyPair::generate_for(algorithm)?;
    let spki = key.subject_public_key_info();
    let unique = match kind {
        IkKind::P256 | IkKind::P384 => unique_point(key.der_bytes()),
        IkKind::Rsa2048 => unique_modulus(&modulus(&spki)?),
    };
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    let csr = params.serialize_request(&key)?.der().to_vec();
    Ok(IkRecord { unique, spki, csr, pkcs8: key.serialize_der() })
}

/// Does `work` on each of `items`, on all processors. The results are in the order of the items.
fn parallel<T: Sync, R: Send>(
    items: &[T],
    bar: &ProgressBar,
    work: impl Fn(&T) -> Result<R> + Sync,
) -> Result<Vec<R>> {
    let (next, done) = (AtomicUsize::new(0), Mutex::new(Vec::with_capacity(items.len())));
    let take_turns = || -> Result<()> {
        let mut mine = Vec::new();
        while let Some((number, item)) =
            Some(next.fetch_add(1, Ordering::Relaxed)).and_then(|n| Some((n, items.get(n)?)))
        {
            mine.push((number, work(item)?));
            bar.inc(1);
        }
        // Unwrap safety: nothing panics while it holds this lock.
        done.lock().unwrap().append(&mut mine);
        Ok(())
    };
    thread::scope(|scope| {
        let threads: Vec<_> = (0..thread::available_parallelism().map_or(1, usize::from))
            .map(|_| scope.spawn(take_turns))
            .collect();
        // Unwrap safety: a panic there is passed on here.
        threads.into_iter().try_for_each(|thread| thread.join().unwrap())
    })?;
    bar.finish_and_clear();
    // Unwrap safety: as above.
    let mut done = done.into_inner().unwrap();
    done.sort_unstable_by_key(|(number, _)| *number);
    Ok(done.into_iter().map(|(_, result)| result).collect())
}

/// Must change with the format and the content of the files.
const FORMAT: &str = "v2";

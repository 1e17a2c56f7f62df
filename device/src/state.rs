//! The state directory: where a device's memory outlives its process.

mod format;

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use assay_device_core::{Grant, Memory};
use rustls::pki_types::CertificateDer;

use crate::error::Error;
use crate::pem;

/// A state directory, held by one process at a time.
///
/// | file | holds | written |
/// |---|---|---|
/// | `device.json` | [`Memory`] | when the IK is persistent, before any request is sent; when a certificate is verified, confirmed or adopted; when an HMAC key has come, when it is persistent, and when a broker has taken it |
/// | `certificate.pem` | a copy of the certificate that the device signs in with, and its issuers, for other programs; removed with a shared key | after that |
/// | `configuration` | the operator's document, as the CA signed it | when one came with a certificate, and is verified and newer |
/// | `configuration.told` | the revision of that which the program for it has taken | by the resident agent, when the program has ended well |
/// | `identity-{handle}.private` | the private part of an identity key, encrypted by the TPM for its storage root key, for [`export_key`](crate::export_key) | when the key is created |
/// | `roots.pem` | new roots of the CA that the roots given to the device certified; they count only with these | when the CA sends one |
/// | `device.json.broken` | a `device.json` that could not be read, for people to look at | when the next run begins anew |
/// | `lock` | nothing | |
/// | `agent.lock` | nothing; the resident agent holds it | |
///
/// The directory is made with mode 0700, the files with 0600. A directory that exists must belong
/// to this user, and nobody else may write to it. A file is replaced as a whole, so a reader finds
/// the old or the new one whenever the power fails.
pub(crate) struct StateDirectory {
    path: PathBuf,
    _lock: File,
}

impl StateDirectory {
    /// Makes the directory if it is not there, and locks it until the value is dropped or the
    /// process ends.
    pub(crate) fn open(path: &Path) -> Result<Self, Error> {
        DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(Error::state(path))?;
        // The kernel gives this directory to the effective user (proc_pid(5)).
        let own_uid = fs::metadata("/proc/self").map_err(Error::state("/proc/self"))?.uid();
        refuse_directory_of_others(path, own_uid)?;
        let lock_path = path.join(LOCK);
        let lock = for_owner(OpenOptions::new().create(true))
            .open(&lock_path)
            .map_err(Error::state(&lock_path))?;
        match lock.try_lock() {
            Ok(()) => {
                let state = Self { path: path.into(), _lock: lock };
                // If the file is broken, the function that needs it reports that.
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

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn certificate_path(&self) -> PathBuf {
        certificate_path(&self.path)
    }

    pub(crate) fn memory(&self) -> Result<Memory, Error> {
        memory(&self.path)
    }

    /// Remembers whether a broker refused the credential in use.
    pub(crate) fn set_refused(&self, refused: bool) -> Result<(), Error> {
        let path = self.path.join(REFUSED);
        if refused {
            let mark = for_owner(OpenOptions::new().create(true)).open(&path);
            return mark.map(drop).map_err(Error::state(path));
        }
        remove(&path).map_err(Error::state(path))
    }

    /// Whether a broker refused the credential in use since the CA last gave or confirmed it.
    pub(crate) fn was_refused(&self) -> bool {
        self.path.join(REFUSED).exists()
    }

    /// Moves a `device.json` that cannot be read to [`BROKEN`], so that the next run begins anew.
    /// An earlier file there is replaced. Returns what to tell people.
    ///
    /// This loses nothing, because the CA gives again what it gave before for the key in the TPM.
    pub(crate) fn set_broken_aside(&self) -> Result<Option<String>, Error> {
        let path = self.path.join(DEVICE);
        let Some(json) = read(&path)? else { return Ok(None) };
        let Err(error) = format::read(&json) else { return Ok(None) };
        let copy = self.path.join(BROKEN);
        fs::rename(&path, &copy).map_err(Error::state(&path))?;
        Ok(Some(format!(
            "{} is broken ({error}): moved to {BROKEN}, starting a new file",
            path.display()
        )))
    }

    pub(crate) fn store(&self, memory: &Memory) -> Result<(), Error> {
        let json = format::write(memory).map_err(|error| Error::Internal(error.to_string()))?;
        let mut files = vec![(DEVICE, json)];
        files.extend(self.certificate_to_copy(memory)?.map(|pem| (CERTIFICATE, pem)));
        self.replace(&files)?;
        self.remove_stale_certificate(memory)
    }

    /// Replaces the new roots that are pinned.
    pub(crate) fn store_roots(&self, roots: &[CertificateDer<'_>]) -> Result<(), Error> {
        self.replace(&[(ROOTS, pem::certificates(roots).into_bytes())])
    }

    /// Keeps the private part of an identity key that was just created.
    pub(crate) fn keep_private(&self, handle: u32, private: &[u8]) -> Result<(), Error> {
        self.replace(&[(&private_file(handle), private.to_vec())])
    }

    /// Keeps a signed configuration in place of the one before.
    pub(crate) fn keep_configuration(&self, signed: &[u8]) -> Result<(), Error> {
        self.replace(&[(CONFIGURATION, signed.to_vec())])
    }

    /// Removes what [`keep_private`](Self::keep_private) kept, after the TPM removed the key.
    pub(crate) fn forget_private(&self, handle: u32) -> Result<(), Error> {
        let path = self.path.join(private_file(handle));
        remove(&path).map_err(Error::state(path))
    }

    /// Runs when the directory is opened, because an earlier process may have been killed before it
    /// made the copy.
    fn copy_certificate(&self, memory: &Memory) -> Result<(), Error> {
        if let Some(pem) = self.certificate_to_copy(memory)? {
            self.replace(&[(CERTIFICATE, pem)])?;
        }
        self.remove_stale_certificate(memory)
    }

    /// The contents that `certificate.pem` should have, if it does not have them.
    fn certificate_to_copy(&self, memory: &Memory) -> Result<Option<Vec<u8>>, Error> {
        let Some(Grant::Certificate(grant)) = memory.credentials().next() else {
            return Ok(None);
        };
        let pem = pem::certificates(&grant.chain).into_bytes();
        let is_there = read(&self.certificate_path())?.as_ref() == Some(&pem);
        Ok((!is_there).then_some(pem))
    }

    fn remove_stale_certificate(&self, memory: &Memory) -> Result<(), Error> {
        if !matches!(memory.credentials().next(), Some(Grant::SharedKey(_))) {
            return Ok(());
        }
        let path = self.certificate_path();
        remove(&path).map_err(Error::state(path))
    }

    /// Replaces files together, because each wait for the disk takes longer than most of what a
    /// device does.
    fn replace(&self, files: &[(&str, Vec<u8>)]) -> Result<(), Error> {
        // The lock keeps other writers away.
        replace(&self.path, files)
    }
}

fn replace(directory: &Path, files: &[(&str, Vec<u8>)]) -> Result<(), Error> {
    let mut written = Vec::new();
    for (name, contents) in files {
        let path = directory.join(name);
        // A file that a killed process left is removed.
        let new = directory.join(format!("{name}.new"));
        let write = || {
            remove(&new)?;
            // `create_new` follows no symbolic link.
            let mut file = for_owner(OpenOptions::new().create_new(true)).open(&new)?;
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
    File::open(directory)
        .and_then(|directory| directory.sync_all())
        .map_err(Error::state(directory))
}

/// Keeps a second resident agent away from a state directory, until the file is dropped. Two would
/// cut each other's connection. Other commands may use the directory meanwhile.
pub(crate) fn hold_for_agent(directory: &Path) -> Result<File, Error> {
    let path = directory.join(AGENT);
    let lock =
        for_owner(OpenOptions::new().create(true)).open(&path).map_err(Error::state(&path))?;
    match lock.try_lock() {
        Ok(()) => Ok(lock),
        Err(TryLockError::WouldBlock) => Err(Error::State {
            path: directory.into(),
            reason: "another assay-device runs as its resident agent".into(),
        }),
        Err(TryLockError::Error(error)) => Err(Error::state(&path)(error)),
    }
}

/// Removes all that was written to a state directory, and the directory if nothing else is in it.
/// Whoever calls this holds the directory.
pub(crate) fn remove_files(directory: &Path) -> Result<(), Error> {
    let mut names: Vec<_> = [DEVICE, CERTIFICATE, CONFIGURATION, TOLD, ROOTS, BROKEN, REFUSED]
        .map(str::to_owned)
        .into();
    for entry in fs::read_dir(directory).map_err(Error::state(directory))? {
        let name = entry.map_err(Error::state(directory))?.file_name();
        names.extend(name.to_str().filter(|name| is_private_file(name)).map(str::to_owned));
    }
    // Of an attempt to replace a file that was cut short.
    names.extend(names.clone().iter().map(|name| format!("{name}.new")));
    names.extend([AGENT, LOCK].map(str::to_owned));
    for name in names {
        let path = directory.join(name);
        remove(&path).map_err(Error::state(path))?;
    }
    // It may belong to somebody else, or hold something else.
    _ = fs::remove_dir(directory);
    Ok(())
}

/// Anybody who can write to the directory could put symbolic links there, and redirect what is
/// written.
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
        return refusal("other users may write to it; first close it to them: chmod 700".into());
    }
    Ok(())
}

/// Reads the memory without the lock. That is safe at any time, because files are replaced as a
/// whole.
pub(crate) fn memory(directory: &Path) -> Result<Memory, Error> {
    let path = directory.join(DEVICE);
    let Some(json) = read(&path)? else { return Ok(Memory::default()) };
    format::read(&json)
        .map_err(|error| Error::BrokenState { path, reason: format!("broken ({error})") })
}

/// What [`StateDirectory::keep_configuration`] kept, if there is anything.
pub(crate) fn configuration(directory: &Path) -> Result<Option<Vec<u8>>, Error> {
    read(&configuration_path(directory))
}

pub(crate) fn configuration_path(directory: &Path) -> PathBuf {
    directory.join(CONFIGURATION)
}

/// The revision of the configuration that the program for it has taken; 0 if it has taken none, or
/// if that cannot be read. Then it hears of the same one again.
pub(crate) fn told(directory: &Path) -> u64 {
    let text = fs::read_to_string(directory.join(TOLD)).unwrap_or_default();
    text.trim().parse().unwrap_or_default()
}

/// Keeps what [`told`] returns. Only the resident agent writes it, of which there is one.
pub(crate) fn set_told(directory: &Path, revision: u64) -> Result<(), Error> {
    replace(directory, &[(TOLD, format!("{revision}\n").into_bytes())])
}

/// What [`StateDirectory::keep_private`] kept; `None` if there is nothing for this handle.
pub(crate) fn private(directory: &Path, handle: u32) -> Result<Option<Vec<u8>>, Error> {
    read(&directory.join(private_file(handle)))
}

/// What [`StateDirectory::store_roots`] stored.
pub(crate) fn roots(directory: &Path) -> Result<Vec<CertificateDer<'static>>, Error> {
    let pem = read(&directory.join(ROOTS))?.unwrap_or_default();
    // If somebody spoilt it, the device goes on with the roots that it was given, and the CA sends
    // the new one again with each certificate.
    Ok(pem::parse(&pem).unwrap_or_default())
}

fn private_file(handle: u32) -> String {
    format!("identity-{handle:08x}.private")
}

fn is_private_file(name: &str) -> bool {
    let handle = name.strip_prefix("identity-").and_then(|name| name.strip_suffix(".private"));
    handle.and_then(|handle| u32::from_str_radix(handle, 16).ok()).map(private_file).as_deref()
        == Some(name)
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

fn for_owner(options: &mut OpenOptions) -> &OpenOptions {
    options.write(true).mode(0o600)
}

const LOCK: &str = "lock";
const AGENT: &str = "agent.lock";
const DEVICE: &str = "device.json";
/// An empty file, which is there after a broker refused the credential in use.
const REFUSED: &str = "login-refused";
const CERTIFICATE: &str = "certificate.pem";
const CONFIGURATION: &str = "configuration";
const TOLD: &str = "configuration.told";
const ROOTS: &str = "roots.pem";
/// The name that a `device.json` gets if it cannot be read.
const BROKEN: &str = "device.json.broken";

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use assay_device_core::{
        Attempt, CertificateGrant, Confirmation, EkKind, HmacPublic, HmacRecord, IdentityRecord,
        IkKind, ParentKind, Rotation, SharedKeyGrant, Shown,
    };
    use assay_wire::{Flow, Proof};

    use super::*;

    fn a_record() -> IdentityRecord {
        let scope = "default".parse().unwrap();
        let shown = Shown { scope, ek: EkKind::P384, ek_was_named: false, ek_id: [7; 32].into() };
        IdentityRecord { shown, flow: Flow::Ticket, ik: IkKind::P256, ik_handle: 0x8100_0200 }
    }

    fn a_certificate() -> CertificateGrant {
        let chain = vec![CertificateDer::from(vec![1; 100]), CertificateDer::from(vec![2; 3])];
        CertificateGrant { record: a_record(), chain, renew_at: None, unconfirmed: None }
    }

    fn a_memory() -> Memory {
        let attempt = IdentityRecord { ik_handle: 0x8100_0201, ..a_record() };
        Memory {
            in_use: Some(Grant::Certificate(a_certificate())),
            attempt: Some(Attempt::Identity(attempt)),
        }
    }

    /// A certificate in use, and a renewed one that is not adopted.
    fn a_renewal() -> Memory {
        let chain = vec![CertificateDer::from(vec![7; 90])];
        let renewed = CertificateGrant { chain, renew_at: Some(1_803_154_120), ..a_certificate() };
        Memory { attempt: Some(Attempt::Renewed(renewed)), ..a_memory() }
    }

    fn an_hmac_record() -> HmacRecord {
        let keys = vec![HmacPublic(vec![0xAB; 48])];
        HmacRecord {
            shown: a_record().shown,
            parent: ParentKind::Rsa2048,
            hmac_handle: 0x8100_0101,
            first_handle: 0x8100_0100,
            keys,
        }
    }

    fn a_key_grant(rotation: Rotation) -> SharedKeyGrant {
        let device_id = "pump-17".parse().unwrap();
        SharedKeyGrant { record: an_hmac_record(), device_id, rotation }
    }

    fn a_shared_key() -> Memory {
        let grant = a_key_grant(Rotation { from: 1_800_000_000, at: 1_807_776_000 });
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
        let first = Memory { in_use: Some(Grant::Certificate(unconfirmed.clone())), attempt: None };
        let attempt = Some(Attempt::Unconfirmed(unconfirmed));
        let second = Memory { attempt, ..a_shared_key() };
        let asked = Memory { in_use: None, ..a_memory() };
        let renewed = a_renewal();
        let rekey = Memory { attempt: Some(Attempt::Rekey(a_record())), ..a_memory() };
        let others = [a_shared_key(), renewed, rekey];
        for memory in
            [Memory::default(), asked, a_memory(), first, second].into_iter().chain(others)
        {
            state.store(&memory).unwrap();
            assert_eq!(state.memory().unwrap(), memory);
        }
    }

    #[test]
    fn file_of_before_there_were_renewals_is_still_read() {
        let memory = Memory { attempt: None, ..a_memory() };
        let now = String::from_utf8(format::write(&memory).unwrap()).unwrap();
        let before = now.replace(
            r#"      "renew_at": null,
"#,
            "",
        );
        assert_ne!(before, now);
        assert_eq!(format::read(before.as_bytes()).unwrap(), memory);
    }

    #[test]
    fn certificate_file_is_the_renewed_one_before_the_ca_hears_that_it_is_stored() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDirectory::open(dir.path()).unwrap();
        state.store(&Memory { attempt: None, ..a_memory() }).unwrap();
        state.store(&a_renewal()).unwrap();
        let copy = fs::read(dir.path().join(CERTIFICATE)).unwrap();
        let Some(Attempt::Renewed(grant)) = a_renewal().attempt else { panic!() };
        assert_eq!(pem::parse(&copy).unwrap(), grant.chain);
    }

    #[test]
    fn private_part_of_a_key_is_forgotten_with_the_key_and_no_other() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDirectory::open(dir.path()).unwrap();
        for handle in [0x8100_0200, 0x8100_0201] {
            state.keep_private(handle, b"encrypted").unwrap();
        }
        for _ in 0..2 {
            state.forget_private(0x8100_0200).unwrap();
            assert_eq!(private(dir.path(), 0x8100_0200).unwrap(), None);
            assert_eq!(private(dir.path(), 0x8100_0201).unwrap().unwrap(), b"encrypted");
        }
    }

    /// Earlier versions wrote it in this way.
    #[test]
    fn hmac_key_of_a_plain_srk_is_still_known() {
        let record = HmacRecord { parent: ParentKind::SrkRsa2048, ..an_hmac_record() };
        let memory = Memory { in_use: None, attempt: Some(Attempt::Hmac(record)) };
        let now = String::from_utf8(format::write(&memory).unwrap()).unwrap();
        let written = |parent: &str| {
            let text = now.replace(r#""parent": "srk-rsa-2048""#, parent);
            assert_ne!(text, now);
            format::read(text.as_bytes())
        };
        assert_eq!(written(r#""srk": "rsa-2048""#).unwrap(), memory);
        assert!(written(r#""srk": "rsa-1024""#).is_err());
        assert!(written(r#""parent": null"#).is_err());
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
    fn broken_file_is_reported_and_stays_until_a_new_run_moves_it() {
        let record =
            r#"{"scope":"default","ek":"p-256","ek_id":"00","ik":"p-256","ik_handle":2164261376}"#;
        for broken in [
            String::new(),
            "[]".into(),
            "{\"in_use\": and then the power fai".into(),
            // An older format.
            format!(r#"{{"in_use":{{"record":{record},"certificate":""}},"attempt":null}}"#),
            format!(r#"{{"in_use":null,"attempt":{record}}}"#),
        ] {
            let dir = tempfile::tempdir().unwrap();
            fs::write(dir.path().join(DEVICE), &broken).unwrap();
            let state = StateDirectory::open(dir.path()).unwrap();
            let error = state.memory().unwrap_err();
            assert_eq!(error.exit_code(), 6);
            assert!(matches!(error, Error::BrokenState { .. }), "{error}");
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
    fn a_second_agent_is_kept_out_and_other_commands_are_not() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDirectory::open(dir.path()).unwrap();
        let agent = hold_for_agent(dir.path()).unwrap();
        let error = hold_for_agent(dir.path()).unwrap_err();
        assert!(error.to_string().contains("resident agent"), "{error}");
        drop(state);
        StateDirectory::open(dir.path()).unwrap();
        drop(agent);
        hold_for_agent(dir.path()).unwrap();
    }

    #[test]
    fn all_that_was_written_is_removed_and_what_others_wrote_stays() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state");
        let state = StateDirectory::open(&path).unwrap();
        state.store(&a_memory()).unwrap();
        state.keep_private(0x8101_0002, b"private").unwrap();
        state.set_refused(true).unwrap();
        let _agent = hold_for_agent(&path).unwrap();
        fs::write(path.join("precious"), "").unwrap();
        remove_files(&path).unwrap();
        let left: Vec<_> = fs::read_dir(&path).unwrap().map(|it| it.unwrap().file_name()).collect();
        assert_eq!(left, ["precious"]);
        fs::remove_file(path.join("precious")).unwrap();
        remove_files(&path).unwrap();
        assert!(!path.exists());
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

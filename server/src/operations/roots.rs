//! Roots: the next one is made, on this machine or on another one, and the old one goes.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use assay_ca_core::{Authority, CLOCK_SKEW, NewRoot, NotANewRoot, certificates_in};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use time::OffsetDateTime;
use zeroize::Zeroizing;

use crate::dated;
use crate::directory::Directory;
use crate::issuing_files::Files;
use crate::new_files::{PUBLIC, SECRET, pem_of};
use crate::random::random;
use crate::root_files::{Root, STEM};
use crate::root_key::KeptRoot;
use crate::successor;

/// A root in the CA's directory.
#[derive(Clone, Debug)]
pub struct Listed {
    /// The name of its file.
    pub file: String,
    /// Its name.
    pub subject: String,
    /// Until when it is valid.
    pub not_after: OffsetDateTime,
    /// Whether its key is in the directory.
    pub has_key: bool,
    /// Whether another one certified it as a new root, and devices are told of it.
    pub is_new: bool,
}

/// The roots of this directory, the oldest first.
///
/// # Errors
/// They cannot be read.
pub fn list(directory: &Directory) -> Result<Vec<Listed>> {
    let listed = |root: Root| {
        let (subject, not_after) = root.shown()?;
        Ok(Listed {
            file: format!("{}.pem", root.name()),
            subject,
            not_after,
            has_key: KeptRoot::KINDS
                .iter()
                .any(|kind| directory.path().join(format!("{}{kind}", root.name())).exists()),
            is_new: root.cross.is_some(),
        })
    };
    directory.all_roots()?.into_iter().map(listed).collect()
}

/// Makes a new root, and has the one before certify it: with the key in `root_key`, or else in the
/// CA's directory. Writes certificate, key and cross certificate to the CA's directory. Returns the
/// name of the files.
///
/// # Errors
/// There are two roots already, the old root's key cannot be read or is another's, or the files
/// cannot be written.
pub fn make(directory: &Directory, root_key: Option<&Path>, now: OffsetDateTime) -> Result<String> {
    let old = only_root(directory)?;
    let own = directory.path().join("root.key");
    let new = make_from(&old.certificate, root_key.unwrap_or(&own), now)?;
    let name = dated::name(STEM, Some(now));
    new.write(&Files::open(directory.path())?, &name)?;
    directory.note("new-root", &name)?;
    Ok(name)
}

/// Makes a new root where the old one's key is, and writes it to `out`. The CA gets the two
/// certificates, by [`install`].
///
/// # Errors
/// The old root cannot be read, its key is another's, or the files cannot be written.
pub fn make_elsewhere(root: &Path, root_key: &Path, out: &Path, now: OffsetDateTime) -> Result<()> {
    let cannot_read = || format!("cannot read {}", root.display());
    let old = CertificateDer::from_pem_file(root).with_context(cannot_read)?;
    let new = make_from(&old, root_key, now)?;
    fs::create_dir_all(out).with_context(|| format!("cannot make {}", out.display()))?;
    new.write(&Files::open(out)?, "new-root")
}

/// A new root that was just made.
struct Made {
    certificate: String,
    key: Zeroizing<String>,
    cross: String,
}

impl Made {
    /// The certificate comes last: without it, the rest counts for nothing.
    fn write(&self, files: &Files, name: &str) -> Result<()> {
        files.put(&format!("{name}.key"), self.key.as_bytes(), SECRET)?;
        files.put(&format!("{name}.cross.pem"), self.cross.as_bytes(), PUBLIC)?;
        files.put(&format!("{name}.pem"), self.certificate.as_bytes(), PUBLIC)
    }
}

fn make_from(old: &CertificateDer<'_>, key: &Path, now: OffsetDateTime) -> Result<Made> {
    let text = fs::read_to_string(key).map(Zeroizing::new).with_context(|| {
        format!(
            "cannot read the root's key {}; say --root-key FILE, or make the new root where the \
             key is: assay root new --root root.pem --root-key root.key --out DIR",
            key.display()
        )
    })?;
    let signer = Authority::from_pem(&pem_of("CERTIFICATE", old), &text)
        .with_context(|| format!("{}", key.display()))?;
    let (new, cross) = signer.next_root(now, &mut random())?;
    let pair = new.to_pem();
    let [certificate, crossed] =
        [&pair.certificate, &cross].map(|pem| CertificateDer::from_pem_slice(pem.as_bytes()));
    // This finds the key of another root, too, and a root that has ended.
    let made = NewRoot::check(&certificate?, &crossed?, old).and_then(|made| made.valid_at(now));
    _ = made.with_context(|| format!("{} makes no new root", key.display()))?;
    Ok(Made { certificate: pair.certificate, key: pair.key, cross })
}

/// Takes a new root that was made elsewhere: its certificate, and the one with which the old root
/// certified it, in these files. Returns the name of the files.
///
/// # Errors
/// The files do not hold the two, devices would refuse them now, or there are two roots already.
pub fn install(directory: &Directory, files: &[PathBuf], now: OffsetDateTime) -> Result<String> {
    let old = only_root(directory)?;
    let mut found = Vec::new();
    for file in files {
        let content = fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
        found.extend(certificates_in(&content).with_context(|| file.display().to_string())?);
    }
    let pairs = found.iter().flat_map(|new| found.iter().map(move |cross| (new, cross)));
    let (mut good, mut refusal) = (None, NotANewRoot::AnotherRoot);
    for (new, cross) in pairs.filter(|(new, cross)| new != cross) {
        let checked = NewRoot::check(new, cross, &old.certificate);
        match checked.and_then(|checked| checked.valid_at(now)) {
            Ok(_) => good = Some((new, cross)),
            // These say that the two do not belong together, as most pairs do not.
            Err(NotANewRoot::AnotherRoot | NotANewRoot::NotSelfSigned) => {}
            Err(other) => refusal = other,
        }
    }
    let (new, cross) = good.ok_or(refusal).context(
        "the files do not hold a new root and the certificate with which root.pem certified it; \
         `assay root new --out DIR` makes both: new-root.pem and new-root.cross.pem",
    )?;
    let name = dated::name(STEM, Some(now));
    let own = Files::open(directory.path())?;
    let [cross, new] = [cross, new].map(|der| pem_of("CERTIFICATE", der));
    own.put(&format!("{name}.cross.pem"), cross.as_bytes(), PUBLIC)?;
    own.put(&format!("{name}.pem"), new.as_bytes(), PUBLIC)?;
    directory.note("install-root", &name)?;
    Ok(name)
}

/// Removes the old root and its key: the new one takes its file names. It may be cut short at any
/// point, and run again. Returns what `force` overrode.
///
/// # Errors
/// There is one root only; a CA in this directory leads to the old one; or devices may not know the
/// new one yet, and `force` is not given.
pub fn remove(directory: &Directory, force: bool, now: OffsetDateTime) -> Result<Option<String>> {
    let roots = directory.all_roots()?;
    let [old, new] = &roots[..] else {
        bail!("there is one root only; `assay root new` makes the next one")
    };
    let below = directory.below(old)?;
    ensure!(
        below.is_empty(),
        "{} of this directory lead to {}.pem: make the next ones (assay issuing new, assay \
         service new), and remove these once nothing needs them",
        below.join(" and "),
        old.name()
    );
    let from = new.from.unwrap_or(now) + CLOCK_SKEW;
    let unaware = directory.store()?.made_before(from, now)?.in_force;
    let asleep = (unaware > 0).then(|| {
        format!(
            "{unaware} devices have not renewed since the new root is there, and do not know it"
        )
    });
    if let Some(asleep) = &asleep {
        ensure!(
            force,
            "{asleep}; wait until they renew, or give them the new root by --ca-root. With \
             --force the old one goes now"
        );
    }
    successor::take_over(directory.path(), &new.name(), &old.name(), &["cross.pem"])?;
    directory.note("remove-root", old.name())?;
    Ok(asleep)
}

fn only_root(directory: &Directory) -> Result<Root> {
    let mut roots = directory.all_roots()?;
    ensure!(
        roots.len() == 1,
        "there are two roots; remove the older one first (assay root remove)"
    );
    Ok(roots.remove(0))
}

#[cfg(test)]
mod tests {
    use time::Duration;

    use super::*;
    use crate::operations::services;

    /// A CA with two roots, whose only CAs are under the new one.
    fn overlapping(parent: &tempfile::TempDir) -> (Directory, OffsetDateTime) {
        let path = parent.path().join("ca");
        Directory::create(&path, "Test", &[]).unwrap();
        let (directory, now) = (Directory::open(&path).unwrap(), OffsetDateTime::now_utc());
        make(&directory, None, now).unwrap();
        services::make(&directory, None, now).unwrap();
        services::retire(&directory, true, now).unwrap();
        let issuing = directory.root_authority(None).unwrap();
        let issuing = issuing.issuing("Next", now, &mut random()).unwrap().to_pem();
        fs::write(path.join("issuing.pem"), issuing.certificate).unwrap();
        fs::write(path.join("issuing.key"), issuing.key.as_bytes()).unwrap();
        (directory, now)
    }

    #[test]
    fn new_root_is_trusted_beside_the_old_one_and_told_to_devices() {
        let parent = tempfile::tempdir().unwrap();
        let (directory, _) = overlapping(&parent);
        assert_eq!(directory.roots().unwrap().len(), 2);
        let listed = list(&directory).unwrap();
        assert_eq!(
            [&listed[0], &listed[1]].map(|root| (root.has_key, root.is_new)),
            [(true, false), (true, true)]
        );
        let ca = directory.ca().unwrap();
        let cross = ca.new_root.unwrap();
        let chain = ca.issuers.current(OffsetDateTime::now_utc()).chain(b"leaf").unwrap();
        assert_eq!(*chain[2], *cross);
        let (_, chain) = directory.service_authority().unwrap();
        assert_eq!(chain.matches("BEGIN CERTIFICATE").count(), 2);
        assert_eq!(directory.service_revocation_lists(OffsetDateTime::now_utc()).unwrap().len(), 1);
        for name in ["pem", "key", "cross.pem"] {
            let files = directory.files().unwrap();
            let is_it = |file: &str| file.starts_with("root-") && file.ends_with(name);
            assert!(files.iter().any(|(file, _)| is_it(file)), "{name} is in backups");
        }
    }

    #[test]
    fn a_third_root_is_refused_and_so_is_the_key_of_another() {
        let parent = tempfile::tempdir().unwrap();
        let (directory, now) = overlapping(&parent);
        let refused = make(&directory, None, now + Duration::HOUR).unwrap_err().to_string();
        assert!(refused.contains("two roots"), "{refused}");

        let other = parent.path().join("other");
        Directory::create(&other, "Other", &[]).unwrap();
        let out = parent.path().join("out");
        let [root, key] = ["root.pem", "root.key"].map(|file| other.join(file));
        let issuing = directory.path().join("issuing.key");
        assert!(make_elsewhere(&root, &issuing, &out, now).is_err());
        make_elsewhere(&root, &key, &out, now).unwrap();
        let files = ["new-root.pem", "new-root.cross.pem"].map(|file| out.join(file));
        let other = Directory::open(&other).unwrap();
        assert!(install(&other, &files[..1], now).is_err());
        // A device would refuse it yet, and nobody would notice.
        let early = install(&other, &files, now - Duration::DAY).unwrap_err();
        assert!(format!("{early:#}").contains("is not valid at"), "{early:#}");
        install(&other, &files, now).unwrap();
        assert_eq!(other.roots().unwrap().len(), 2);
        // Only the old key is here.
        let authority = other.root_authority(None).unwrap().to_pem().certificate;
        assert_eq!(authority, fs::read_to_string(root).unwrap());
        let key = out.join("new-root.key");
        let authority = other.root_authority(Some(&key)).unwrap().to_pem().certificate;
        assert_ne!(authority, fs::read_to_string(other.path().join("root.pem")).unwrap());
    }

    /// It would certify a new root that no device takes.
    #[test]
    fn root_that_has_ended_makes_no_new_one() {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("ca");
        Directory::create(&path, "Test", &[]).unwrap();
        let (directory, now) = (Directory::open(&path).unwrap(), OffsetDateTime::now_utc());
        let late = now + 21 * 366 * Duration::DAY;
        let refused = make(&directory, None, late).unwrap_err();
        assert!(format!("{refused:#}").contains("is not valid at"), "{refused:#}");
        assert_eq!(directory.roots().unwrap().len(), 1);
    }

    #[test]
    fn old_root_stays_while_a_ca_leads_to_it() {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("ca");
        Directory::create(&path, "Test", &[]).unwrap();
        let (directory, now) = (Directory::open(&path).unwrap(), OffsetDateTime::now_utc());
        assert!(remove(&directory, true, now).unwrap_err().to_string().contains("one root only"));
        make(&directory, None, now).unwrap();
        let refused = remove(&directory, true, now).unwrap_err().to_string();
        assert!(refused.contains("issuing.pem and service.pem"), "{refused}");
        services::make(&directory, None, now).unwrap();
        let refused = services::retire(&directory, false, now).unwrap_err().to_string();
        assert!(refused.contains("server, worker, operator"), "{refused}");
    }

    /// Whatever had happened before it was cut short, the CA can be read, and it can be run again.
    #[test]
    fn removal_that_was_cut_short_is_finished_by_the_next() {
        for done in 0..=2 {
            let parent = tempfile::tempdir().unwrap();
            let (directory, now) = overlapping(&parent);
            let new = directory.all_roots().unwrap().remove(1);
            let file = |kind: &str| directory.path().join(format!("{}.{kind}", new.name()));
            let own = |kind: &str| directory.path().join(format!("root.{kind}"));
            let [key, certificate] = ["key", "pem"].map(|kind| fs::read(file(kind)).unwrap());
            if done > 0 {
                fs::rename(file("key"), own("key")).unwrap();
            }
            if done > 1 {
                fs::remove_file(file("cross.pem")).unwrap();
            }
            directory.ca().unwrap();
            assert_eq!(remove(&directory, false, now).unwrap(), None);
            assert_eq!(["key", "pem"].map(|kind| fs::read(own(kind)).unwrap()), [key, certificate]);
            assert_eq!(directory.roots().unwrap().len(), 1);
            let ca = directory.ca().unwrap();
            assert_eq!(ca.new_root, None);
            assert_eq!(ca.issuers.current(now).chain(b"leaf").unwrap().len(), 2);
        }
    }

    #[test]
    fn key_of_the_old_root_goes_with_it_if_the_new_one_is_elsewhere() {
        let parent = tempfile::tempdir().unwrap();
        let (directory, now) = overlapping(&parent);
        let new = directory.all_roots().unwrap().remove(1);
        fs::remove_file(directory.path().join(format!("{}.key", new.name()))).unwrap();
        assert_eq!(remove(&directory, false, now).unwrap(), None);
        assert!(!directory.path().join("root.key").exists());
    }
}

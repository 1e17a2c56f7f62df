//! Service CAs, which certify brokers, workers, operators and backends: the next one, and the end of
//! the old one.

use std::path::Path;

use anyhow::{Result, bail, ensure};
use assay_store::{IdentityCertificateRow, IdentityRow};
use time::OffsetDateTime;

use crate::dated;
use crate::directory::Directory;
use crate::issuing_files::Files;
use crate::new_files::{PUBLIC, SECRET};
use crate::random::random;
use crate::successor;

/// Makes the next service CA under the newest root: with its key in `root_key`, or else in the CA's
/// directory. It certifies from now on. What the old one certified stays good. Returns the name of
/// the files.
///
/// # Errors
/// There are two already, the root's key cannot be read, or the files cannot be written.
pub fn make(directory: &Directory, root_key: Option<&Path>, now: OffsetDateTime) -> Result<String> {
    let known = directory.services()?;
    ensure!(
        known.len() == 1,
        "there are {} service CAs; renew the identities of the older one (assay identity list), \
         and run `assay service retire`",
        known.len()
    );
    let root = directory.root_authority(root_key)?;
    let made = root.next_service(now, &mut random())?;
    let pair = made.to_pem();
    let name = dated::name(STEM, Some(now));
    let files = Files::open(directory.path())?;
    // The certificate comes last: without it, the key counts for nothing.
    files.put(&format!("{name}.key"), pair.key.as_bytes(), SECRET)?;
    files.put(&format!("{name}.pem"), pair.certificate.as_bytes(), PUBLIC)?;
    directory.note("new-service-ca", &name)?;
    Ok(name)
}

/// Drops the old service CA: the new one takes its file names. It may be cut short at any point,
/// and run again. Returns the identities that `force` overrode.
///
/// # Errors
/// There is one only, or a certificate that is good may be of the old one, and `force` is not
/// given.
pub fn retire(directory: &Directory, force: bool, now: OffsetDateTime) -> Result<Vec<String>> {
    let found = directory.dated(STEM, ".pem")?;
    let Some(from) = found.last().copied().flatten().filter(|_| found.len() > 1) else {
        bail!("there is one service CA only; `assay service new` makes the next one")
    };
    let is_old = |certificate: &IdentityCertificateRow| {
        certificate.revoked_at.is_none()
            // In the same second, it may be of either.
            && certificate.issued_at <= from.unix_timestamp()
            && certificate.not_after > now.unix_timestamp()
    };
    let has_old = |row: &IdentityRow| row.certificates.iter().any(is_old);
    let rows = directory.store()?.identities()?;
    let old: Vec<_> = rows.into_iter().filter(has_old).map(|row| row.name).collect();
    ensure!(
        force || old.is_empty(),
        "the old service CA signed certificates of {} that are good; renew each (assay identity \
         renew), and then revoke the old ones (assay identity revoke --old). With --force nobody \
         believes them any more",
        old.join(", ")
    );
    successor::take_over(directory.path(), &dated::name(STEM, Some(from)), STEM, &[])?;
    directory.note("retire-service-ca", STEM)?;
    Ok(old)
}

/// What the files of service CAs are called.
const STEM: &str = "service";

#[cfg(test)]
mod tests {
    use std::fs;

    use assay_store::{IdentityCertificate, Which};
    use rustls::pki_types::CertificateDer;
    use rustls::pki_types::pem::PemObject;
    use time::Duration;

    use super::*;

    fn directory(parent: &tempfile::TempDir) -> Directory {
        let path = parent.path().join("ca");
        Directory::create(&path, "Test", &[]).unwrap();
        Directory::open(&path).unwrap()
    }

    /// Whoever was not given the renewed one yet still uses the old one.
    #[test]
    fn service_ca_stays_while_a_certificate_of_it_is_good_although_its_holder_has_a_newer_one() {
        let parent = tempfile::tempdir().unwrap();
        let (directory, now) = (directory(&parent), OffsetDateTime::now_utc());
        let from = now + 2 * Duration::SECOND;
        make(&directory, None, from).unwrap();
        let (authority, _) = directory.service_authority().unwrap();
        let mut store = directory.store().unwrap();
        let renewed = now + 4 * Duration::SECOND;
        for row in store.identities().unwrap() {
            let pair = authority.operator(Duration::DAY, renewed, &mut random()).unwrap();
            let der = CertificateDer::from_pem_slice(pair.certificate.as_bytes()).unwrap();
            let certificate = IdentityCertificate::read(&der).unwrap();
            store.renew_identity(&row.name, &certificate, renewed).unwrap();
        }
        let refused = retire(&directory, false, renewed).unwrap_err().to_string();
        assert!(refused.contains("of server, worker, operator that are good"), "{refused}");
        for row in store.identities().unwrap() {
            let newest = row.newest().unwrap().sha256;
            store.revoke_identity(&row.name, Which::EveryBut(&newest), renewed).unwrap();
        }
        assert_eq!(retire(&directory, false, renewed).unwrap(), [""; 0]);
    }

    #[test]
    fn key_of_the_old_service_ca_goes_with_it_if_the_new_one_is_elsewhere() {
        let parent = tempfile::tempdir().unwrap();
        let (directory, now) = (directory(&parent), OffsetDateTime::now_utc());
        let name = make(&directory, None, now).unwrap();
        let new = fs::read(directory.path().join(format!("{name}.pem"))).unwrap();
        fs::remove_file(directory.path().join(format!("{name}.key"))).unwrap();
        retire(&directory, true, now).unwrap();
        assert_eq!(fs::read(directory.path().join("service.pem")).unwrap(), new);
        assert!(!directory.path().join("service.key").exists());
    }

    /// The new key is in its place already, and the new certificate is not.
    #[test]
    fn retirement_that_was_cut_short_is_finished_by_the_next() {
        let parent = tempfile::tempdir().unwrap();
        let (directory, now) = (directory(&parent), OffsetDateTime::now_utc());
        let name = make(&directory, None, now).unwrap();
        let [file, own] =
            [name.as_str(), STEM].map(|it| directory.path().join(format!("{it}.key")));
        let key = fs::read(&file).unwrap();
        fs::rename(file, &own).unwrap();
        retire(&directory, true, now).unwrap();
        assert_eq!(fs::read(own).unwrap(), key);
        directory.service_authority().unwrap();
    }

    #[test]
    fn lists_are_signed_by_the_service_cas_that_are_valid_and_an_ended_one_stops_nobody() {
        let parent = tempfile::tempdir().unwrap();
        let (directory, now) = (directory(&parent), OffsetDateTime::now_utc());
        make(&directory, None, now).unwrap();
        let long_ago = now - 11 * 366 * Duration::DAY;
        let root = directory.root_authority(None).unwrap();
        let ended = root.service("Ended", long_ago, &mut random()).unwrap().to_pem();
        let [certificate, key] =
            ["pem", "key"].map(|kind| directory.path().join(format!("service.{kind}")));
        fs::write(certificate, ended.certificate).unwrap();
        fs::write(&key, ended.key.as_bytes()).unwrap();
        let (lists, issuers) = (
            || directory.service_revocation_lists(now).map(|lists| lists.len()),
            || directory.service_issuers(now).map(|issuers| issuers.len()),
        );
        // What it signed can still be read.
        assert_eq!((lists().unwrap(), issuers().unwrap()), (1, 2));
        fs::remove_file(&key).unwrap();
        assert_eq!((lists().unwrap(), issuers().unwrap()), (1, 1));
        let [newest] = &directory.dated(STEM, ".key").unwrap()[..] else { panic!() };
        fs::remove_file(directory.path().join(format!("{}.key", dated::name(STEM, *newest))))
            .unwrap();
        assert!(lists().is_err(), "one that is valid has no key here");
    }
}

//! Service CAs, which certify brokers, workers, operators and backends: the next one is made or
//! brought, and the old one ends.

use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use assay_ca_core::{Issuer, IssuerError, certificates_in, new_ca_key, service_request};
use assay_store::{IdentityCertificateRow, IdentityRow};
use rcgen::KeyPair;
use time::OffsetDateTime;

use crate::dated;
use crate::directory::Directory;
use crate::issuing_files::Files;
use crate::new_files::{PUBLIC, SECRET, pem_of};
use crate::random::random;
use crate::successor;

/// Makes the next service CA under the newest root: with its key in `root_key`, or else in the CA's
/// directory. It certifies from now on. What the old one certified stays good. Returns the name of
/// the files.
///
/// # Errors
/// There are two already, the root's key cannot be read, or the files cannot be written.
pub fn make(directory: &Directory, root_key: Option<&Path>, now: OffsetDateTime) -> Result<String> {
    _ = only_one(directory)?;
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

/// The name of the service CA's files.
fn only_one(directory: &Directory) -> Result<String> {
    let mut known = directory.services()?;
    ensure!(
        known.len() == 1,
        "there are {} service CAs; renew the identities of the older one (assay identity list), \
         and run `assay service retire`",
        known.len()
    );
    Ok(known.remove(0))
}

/// Makes a key, and a request to certify it as the next service CA where the root's key is, in PEM.
/// A request that waits already is given again, unless `again` wants another key. Returns whether
/// it is new, too.
///
/// # Errors
/// There are two service CAs already, or the files cannot be read or written.
pub fn request(directory: &Directory, again: bool, now: OffsetDateTime) -> Result<(String, bool)> {
    let name = only_one(directory)?;
    let (files, [key_file, request_file]) = (Files::open(directory.path())?, pending());
    if again || is_used(directory, &files)? {
        files.remove(&request_file)?;
        files.remove(&key_file)?;
    }
    let key = files.read(&key_file)?;
    if let (Some(_), Some(request)) = (&key, files.read(&request_file)?) {
        return Ok((request.to_string(), false));
    }
    let key = match key {
        Some(key) => key,
        None => {
            let key = new_ca_key()?;
            files.put(&key_file, key.as_bytes(), SECRET)?;
            key
        }
    };
    let before = files.read(&format!("{name}.pem"))?.context("it was there")?;
    let before = certificates_in(before.as_bytes())?;
    let before = before.first().and_then(Issuer::common_name_in);
    let before = before.context("the service CA has no common name")?;
    // Its name has the time, as that of one that is made here: relying parties find it by its name.
    let base = before.split(SERVICE_CA).next().unwrap_or(&before);
    let time = dated::name("", Some(now));
    let name = format!("{base}{SERVICE_CA} {}", time.trim_start_matches('-'));
    let request = service_request(&name, &KeyPair::from_pem(&key).context("the key that waits")?)?;
    files.remove(&request_file)?;
    files.put(&request_file, request.as_bytes(), PUBLIC)?;
    Ok((request, true))
}

/// Puts the certificate into its place that was made for the key that waits. `file` is in any
/// encoding; it may hold other certificates besides. It certifies from now on. It may be cut short
/// at any point, and run again. Returns the name of the files.
///
/// # Errors
/// No key waits, the certificate is for another one, or makes no good service CA, or the files
/// cannot be written.
pub fn install(directory: &Directory, file: &[u8], now: OffsetDateTime) -> Result<String> {
    let (files, [key_file, request_file]) = (Files::open(directory.path())?, pending());
    if !is_used(directory, &files)? {
        _ = only_one(directory)?;
    }
    let key = files.read(&key_file)?.context(
        "no key waits for a certificate; `assay service csr` makes one, with a request for it",
    )?;
    for certificate in certificates_in(file)? {
        let pem = pem_of("CERTIFICATE", &certificate);
        let issuer = match Issuer::from_pem(&pem, &key) {
            Err(IssuerError::KeyMismatch) => continue,
            issuer => issuer?,
        };
        let issuer = issuer.under(&directory.pinned()?)?.valid_at(now)?.fit_to_serve()?;
        let others = directory.issuers()?;
        let mut others = others.all().iter().map(|it| it.issuer.certificate().clone());
        let services = directory.service_certificates()?;
        ensure!(
            !others.any(|other| issuer.has_the_name_of(&other))
                && !services.iter().any(|it| *it != certificate && issuer.has_the_name_of(it)),
            "another CA has the name {}, too; make the request again with --again",
            issuer.name()
        );
        let there = directory.services()?.into_iter().last();
        let name = match there.filter(|_| services.contains(&certificate)) {
            Some(name) => name,
            None => {
                let name = dated::name(STEM, Some(now));
                // The certificate comes last: without it, the key counts for nothing.
                files.put(&format!("{name}.key"), key.as_bytes(), SECRET)?;
                files.put(&format!("{name}.pem"), pem.as_bytes(), PUBLIC)?;
                name
            }
        };
        files.remove(&request_file)?;
        files.remove(&key_file)?;
        directory.note("install-service-ca", &name)?;
        return Ok(name);
    }
    bail!(
        "no certificate in the file is for the key that waits; have the request of `assay service csr` certified"
    )
}

/// The files of a key that waits for its certificate, and of the request.
fn pending() -> [String; 2] {
    ["key", "csr"].map(|kind| format!("{PENDING}.{kind}"))
}

/// Whether the key that waits is that of a service CA by now: a command was cut short before it had
/// removed the other copy.
fn is_used(directory: &Directory, files: &Files) -> Result<bool> {
    let Some(waiting) = files.read(&format!("{PENDING}.key"))? else { return Ok(false) };
    for name in directory.services()? {
        if files.read(&format!("{name}.key"))?.is_some_and(|key| *key == *waiting) {
            return Ok(true);
        }
    }
    Ok(false)
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
/// What the files of one are called whose certificate is still to come.
const PENDING: &str = "service-next";
/// What stands in the name of each, after the CA's.
const SERVICE_CA: &str = " Service CA";

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

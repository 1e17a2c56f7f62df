//! Issuing CAs: the next one is made or brought, all are listed, old ones go.

use std::cmp::Ordering;
use std::fmt;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use assay_ca_core::{HANDOVER, Issuer, IssuerError, certificates_in, issuing_request, new_ca_key};
use assay_pkcs11::{Tokens, Uri};
use assay_store::InForce;
use assay_wire::KeyId;
use rcgen::KeyPair;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::WebPkiClientVerifier;
use time::{Duration, OffsetDateTime};

use crate::ca::key_id;
use crate::directory::Directory;
use crate::expiry::{Ending, WARN_OF_CA_BEFORE, What, ends_of, needs_next};
use crate::issuing_files::{self, Files, IssuingName, KEYS, PENDING};
use crate::issuing_keys::{KeptKey, MadeIssuing, TokenPlace};
use crate::new_files::{PUBLIC, SECRET, pem_of};
use crate::random::random;
use crate::rfc3339;

/// An issuing CA that is in its place.
#[derive(Clone, Debug)]
pub struct InPlace {
    /// The name of its files.
    pub name: IssuingName,
    /// The name of the file with its key, or with the URIs of the key.
    pub key_file: String,
    /// What it is called in certificates.
    pub subject: String,
    /// The identifier of its key.
    pub key_id: KeyId,
    /// From when on it is used.
    pub from: OffsetDateTime,
    /// Until when it is valid.
    pub ends: OffsetDateTime,
}

/// Makes the issuing CA that is used from this time on, with the root's key: the one in `root_key`,
/// or else in the CA's directory. Its own key is in a file, or else in this token.
///
/// # Errors
/// The time is past or taken, the root's key cannot be read or is another root's, the token failed,
/// or the files cannot be written.
pub fn make(
    directory: &Directory,
    from: OffsetDateTime,
    root_key: Option<&Path>,
    token: Option<TokenPlace>,
    now: OffsetDateTime,
) -> Result<InPlace> {
    let name = free_name(directory, from, now, None)?;
    let root = directory.root_authority(root_key)?;
    let subject = next_subject(directory, from, true)?;
    let new = match token {
        None => MadeIssuing::in_file(&root.issuing_called(&subject, now, &mut random())?.to_pem())?,
        Some(place) => MadeIssuing::in_token(place, now, |key| {
            Ok(root.issuing_for(&subject, key, now, &mut random())?)
        })?,
    };
    let MadeIssuing { certificate, kept, issuer } = new;
    let file = kept.file(&name.to_string());
    let made =
        check(directory, name, &file, issuer).context("the root's key makes no issuing CA")?;
    let files = Files::open(directory.path())?;
    // The key first: without a certificate it counts for nothing.
    files.put(&file, &kept.content(), SECRET)?;
    files.put(&name.certificate(), certificate.as_bytes(), PUBLIC)?;
    directory.note("new-issuing-ca", &made)?;
    Ok(made)
}

impl fmt::Display for InPlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let from = rfc3339::seconds(self.from.unix_timestamp());
        write!(f, "{}, {}, key {}, from {from} on", self.name, self.subject, self.key_id)
    }
}

/// A request for a certificate.
#[derive(Clone, Debug)]
pub struct Request {
    /// PKCS #10 (RFC 2986), in PEM.
    pub pem: String,
    /// The name of the file with its key, or with the URI of the key.
    pub key_file: String,
    /// Whether it was made now.
    pub is_new: bool,
}

/// Makes a key, and a request to certify it for the root's owner on another machine. A request that
/// waits already is given again, unless `again` wants another key. A new key is in a file, or else
/// in this token.
///
/// # Errors
/// A key waits already and a token is named, the token failed, or the files cannot be read or
/// written.
pub fn request(
    directory: &Directory,
    again: bool,
    token: Option<TokenPlace>,
    now: OffsetDateTime,
) -> Result<Request> {
    let files = Files::open(directory.path())?;
    let request_file = format!("{PENDING}.csr");
    files.drop_used()?;
    if again {
        files.remove(&request_file)?;
        KEYS.iter().try_for_each(|kind| files.remove(&format!("{PENDING}{kind}")))?;
    }
    let kept = KeptKey::read(&files, PENDING)?;
    ensure!(
        token.is_none() || kept.is_none(),
        "a key waits for a certificate already; --again forgets it"
    );
    match (&kept, files.read(&request_file)?) {
        (Some(kept), Some(pem)) => {
            let (pem, key_file) = (pem.to_string(), kept.file(PENDING));
            return Ok(Request { pem, key_file, is_new: false });
        }
        // An earlier command was ended before it had removed this.
        (None, Some(_)) => files.remove(&request_file)?,
        (_, None) => {}
    }
    let mut tokens = Tokens::default();
    let kept = match (kept, token) {
        (Some(kept), _) => kept,
        (None, token) => {
            let kept = match token {
                None => KeptKey::Pem(new_ca_key()?),
                Some(place) => KeptKey::Token(vec![place.take("issuing", &mut tokens, now)?.0]),
            };
            files.put(&kept.file(PENDING), &kept.content(), SECRET)?;
            if files.drop_used()? {
                bail!("this key is an issuing CA's already; each has a key of its own");
            }
            kept
        }
    };
    let (subject, key_file) = (next_subject(directory, now, false)?, kept.file(PENDING));
    let pem = match &kept {
        KeptKey::Pem(pem) => KeyPair::from_pem(pem)
            .context("it is not PKCS #8")
            .and_then(|key| Ok(issuing_request(&subject, &key)?)),
        KeptKey::Token(uris) => tokens
            .find(&uris[0])
            .map_err(Into::into)
            .and_then(|public| Ok(issuing_request(&subject, &tokens.key(uris, public))?)),
    };
    let pem = pem.with_context(|| format!("{key_file}; --again makes another one"))?;
    files.put(&request_file, pem.as_bytes(), PUBLIC)?;
    Ok(Request { pem, key_file, is_new: true })
}

/// Puts a certificate into its place that was made for a key that waits, or for the one of this
/// URI, to be used from this time on. `file` is in any encoding; it may hold other certificates
/// besides. It may be cut short at any point, and run again.
///
/// # Errors
/// It is for another key, it would make no good issuing CA, the time is past or taken, or the files
/// cannot be written.
pub fn install(
    directory: &Directory,
    file: &[u8],
    from: OffsetDateTime,
    in_token: Option<Uri>,
    now: OffsetDateTime,
) -> Result<InPlace> {
    let files = Files::open(directory.path())?;
    files.drop_used()?;
    let certificates = certificates_in(file)?;
    if let Some(uri) = in_token {
        return install_for(directory, &files, &certificates, uri, from, now);
    }
    let waiting = issuing_files::waiting(directory.path())?;
    for holder in &waiting {
        let Some(kept) = KeptKey::read(&files, holder)? else { continue };
        for certificate in &certificates {
            let issuer = match kept.checked_issuer(certificate, &mut Tokens::default()) {
                Err(error) if is_for_another_key(&error) => continue,
                issuer => issuer?,
            };
            let name = free_name(directory, from, now, Some(holder))?;
            let (old, new) = (kept.file(holder), kept.file(&name.to_string()));
            let made = check(directory, name, &new, issuer)?;
            if old != new {
                files.rename(&old, &new)?;
            }
            let pem = pem_of("CERTIFICATE", certificate);
            files.put(&name.certificate(), pem.as_bytes(), PUBLIC)?;
            if holder == PENDING {
                files.remove(&format!("{PENDING}.csr"))?;
            }
            directory.note("install-issuing-ca", &made)?;
            return Ok(made);
        }
    }
    ensure!(
        !waiting.is_empty(),
        "no key waits for a certificate; `assay issuing csr` makes one, with a request for it"
    );
    bail!(
        "the certificate is for none of the keys that wait: {}; have the request certified that \
         `assay issuing csr` gives",
        waiting.join(", ")
    )
}

/// Puts the certificate into its place that was made for this key in a token.
fn install_for(
    directory: &Directory,
    files: &Files,
    certificates: &[CertificateDer<'static>],
    uri: Uri,
    from: OffsetDateTime,
    now: OffsetDateTime,
) -> Result<InPlace> {
    let kept = KeptKey::Token(vec![uri]);
    for certificate in certificates {
        let issuer = match kept.checked_issuer(certificate, &mut Tokens::default()) {
            Err(error) if is_for_another_key(&error) => continue,
            issuer => issuer?,
        };
        // An earlier command may have been cut short before it had written the certificate.
        let begun = issuing_files::waiting(directory.path())?.into_iter().find(|holder| {
            files.read(&kept.file(holder)).is_ok_and(|found| {
                found.is_some_and(|found| found.as_bytes() == &kept.content()[..])
            })
        });
        let name = free_name(directory, from, now, begun.as_deref())?;
        let file = kept.file(&name.to_string());
        let made = check(directory, name, &file, issuer)?;
        match begun.map(|holder| kept.file(&holder)) {
            None => files.put(&file, &kept.content(), SECRET)?,
            Some(begun) if begun != file => files.rename(&begun, &file)?,
            Some(_) => {}
        }
        files.put(&name.certificate(), pem_of("CERTIFICATE", certificate).as_bytes(), PUBLIC)?;
        directory.note("install-issuing-ca", &made)?;
        return Ok(made);
    }
    bail!("no certificate in the file is for the key that the URI names")
}

fn is_for_another_key(error: &anyhow::Error) -> bool {
    error.downcast_ref::<IssuerError>() == Some(&IssuerError::KeyMismatch)
}

/// What an issuing CA is for now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// It signed certificates before, and signs its revocation list.
    Old,
    /// It signs certificates.
    InUse,
    /// Its time is to come.
    Next,
    /// Its key waits for a certificate.
    Unfinished,
}

/// An issuing CA, as it is in the directory.
#[derive(Clone, Debug)]
pub struct Row {
    /// The name of its files, without `.pem` and `.key`.
    pub files: String,
    /// From when on it is used; `None` if from the beginning, or if that is not said yet.
    pub from: Option<OffsetDateTime>,
    /// What it is for.
    pub state: State,
    /// What its certificate says, or why its files cannot be used. `None` if it is unfinished.
    pub certificate: Option<Result<Certified, String>>,
}

/// What the certificate of an issuing CA says, and what the record does.
#[derive(Clone, Debug)]
pub struct Certified {
    /// Its name.
    pub subject: String,
    /// The identifier of its key.
    pub key_id: KeyId,
    /// Until when it is valid.
    pub ends: OffsetDateTime,
    /// The devices' certificates that it signed.
    pub in_force: InForce,
}

/// All issuing CAs of a directory, in the order of their times; then those that are unfinished.
///
/// # Errors
/// The directory or the store cannot be read.
pub fn list(directory: &Directory, now: OffsetDateTime) -> Result<Vec<Row>> {
    let names = directory.issuing_names()?;
    let in_use = names.iter().rposition(|name| name.used_from().is_none_or(|from| from <= now));
    let in_use = in_use.unwrap_or(0);
    let mut store = directory.store()?;
    let (mut rows, mut tokens) = (Vec::new(), Tokens::default());
    for (position, name) in names.iter().enumerate() {
        let state = match position.cmp(&in_use) {
            Ordering::Less => State::Old,
            Ordering::Equal => State::InUse,
            Ordering::Greater => State::Next,
        };
        // It is used from then on, whatever its certificate says; a worker refuses one that is not
        // valid then.
        let used = name.used_from().map_or(now, |from| from.max(now));
        let issuer = directory.issuer_called(*name, &mut tokens).and_then(|issuer| match state {
            State::Old | State::Unfinished => Ok(issuer),
            State::InUse | State::Next => Ok(issuer.valid_at(used)?),
        });
        let certificate = match issuer {
            Ok(issuer) => {
                let until = names.get(position + 1).and_then(|next| next.used_from());
                let at_work = (name.used_from(), until);
                Ok(Certified {
                    subject: issuer.name(),
                    key_id: key_id(&issuer),
                    ends: issuer.not_after(),
                    in_force: in_force(&mut *store, &issuer, at_work, now)?,
                })
            }
            Err(error) => Err(format!("{error:#}")),
        };
        let (files, from) = (name.to_string(), name.used_from());
        rows.push(Row { files, from, state, certificate: Some(certificate) });
    }
    let unfinished = issuing_files::waiting(directory.path())?;
    rows.extend(unfinished.into_iter().map(|files| Row {
        from: IssuingName::parse(&files).and_then(IssuingName::used_from),
        files,
        state: State::Unfinished,
        certificate: None,
    }));
    Ok(rows)
}

/// What was removed.
#[derive(Clone, Debug)]
pub struct Removed {
    /// The name of its files.
    pub files: String,
    /// What it was for.
    pub state: State,
}

/// Removes key and certificate of an issuing CA: `which` is the name of its files, or the
/// identifier of its key.
///
/// # Errors
/// There is none, it is in use, or certificates in force need it; or, unless this is forced, it
/// signed certificates that were revoked and have not expired, which nobody would list any more.
pub fn remove(
    directory: &Directory,
    which: &str,
    force: bool,
    now: OffsetDateTime,
) -> Result<Removed> {
    let is_it = |row: &Row| {
        row.files == which
            || matches!(&row.certificate, Some(Ok(it)) if it.key_id.as_str() == which)
    };
    let row = list(directory, now)?.into_iter().find(is_it).with_context(|| {
        format!("there is no issuing CA {which}; `assay issuing list` names them")
    })?;
    match (row.state, &row.certificate) {
        (State::InUse, _) => bail!(
            "{} is in use; make the next one first (`assay issuing new`), and remove this one when \
             its last certificate has ended",
            row.files
        ),
        (State::Old, Some(Err(reason))) => bail!(
            "{} cannot be read, so nobody knows which certificates need it: {reason}; take its \
             files away by hand if you know",
            row.files
        ),
        (
            _,
            Some(Ok(Certified {
                in_force: InForce { active, waiting, last_ends: Some(last), .. },
                ..
            })),
        ) if *active + *waiting > 0 => bail!(
            "{} signed {active} certificates that are in force, and may have signed {waiting} that \
             wait; the last ends at {}. Their devices renew by themselves",
            row.files,
            rfc3339::seconds(*last)
        ),
        (
            _,
            Some(Ok(Certified { in_force: InForce { listed, last_ends: Some(last), .. }, .. })),
        ) if !force => bail!(
            "{} signed {listed} certificates that were revoked or superseded, and that no list \
             names once it is removed; the last ends at {}. With --force, relying parties that \
             take an old list, or none, believe them until then",
            row.files,
            rfc3339::seconds(*last)
        ),
        _ => {}
    }
    let files = Files::open(directory.path())?;
    // The certificate first: a key without one counts for nothing.
    files.remove(&format!("{}.pem", row.files))?;
    KEYS.iter().try_for_each(|kind| files.remove(&format!("{}{kind}", row.files)))?;
    if row.files == PENDING {
        files.remove(&format!("{PENDING}.csr"))?;
    }
    directory.note("remove-issuing-ca", &row.files)?;
    Ok(Removed { files: row.files, state: row.state })
}

/// The CA's own certificates that should be replaced.
///
/// # Errors
/// They cannot be read.
pub fn ending(directory: &Directory, now: OffsetDateTime) -> Result<Vec<Ending>> {
    let (issuers, lifetime) = (directory.issuers()?, directory.config().profile.validity());
    let next = issuers.all().iter().filter_map(|it| it.from).find(|from| *from > now);
    let ends = issuers.current(now).not_after();
    let issuing = needs_next(ends, next, lifetime, now).then_some((What::Issuing, ends));
    // The next one takes over from the other as soon as it is there.
    let root = directory.pinned()?.pop().and_then(|it| ends_of(&it));
    let service = directory.service_certificates()?.pop().and_then(|it| ends_of(&it));
    let [root, service] = [(What::Root, root), (What::Service, service)]
        .map(|(what, ends)| ends.map(|ends| (what, ends)));
    let soon = |(_, ends): &(What, OffsetDateTime)| *ends <= now + WARN_OF_CA_BEFORE;
    let others = [root, service].into_iter().flatten().filter(soon);
    let found = issuing.into_iter().chain(others);
    Ok(found.map(|(what, ends)| Ending { what, not_after: ends.unix_timestamp() }).collect())
}

/// The certificates of this issuer that are in force. Of one that waits, only its device and the
/// ticket key say who signed it, so those count that were issued while this issuer was at work, and
/// a day before and after.
fn in_force(
    store: &mut dyn assay_store::Store,
    issuer: &Issuer,
    (since, until): (Option<OffsetDateTime>, Option<OffsetDateTime>),
    now: OffsetDateTime,
) -> Result<InForce> {
    let since = since.map_or(OffsetDateTime::UNIX_EPOCH, |since| since - HANDOVER);
    let until = until.map_or(now + HANDOVER, |until| until + HANDOVER);
    Ok(store.in_force(issuer.key_id(), since..until, now)?)
}

/// The name of the files of one that is used from this time on; `holder` has its key already.
fn free_name(
    directory: &Directory,
    from: OffsetDateTime,
    now: OffsetDateTime,
    holder: Option<&str>,
) -> Result<IssuingName> {
    let name = IssuingName::from(from);
    let shown = rfc3339::seconds(from.unix_timestamp());
    ensure!(
        from.unix_timestamp() >= now.unix_timestamp(),
        "{shown} is past; --from now takes effect at once"
    );
    ensure!(from.year() <= 9999, "{shown} has a year that no certificate can say");
    let taken = directory.issuing_names()?.contains(&name)
        || issuing_files::waiting(directory.path())?
            .iter()
            .any(|it| *it == name.to_string() && holder != Some(it));
    ensure!(!taken, "there is an issuing CA from {shown} already; choose another time");
    Ok(name)
}

/// Checks that this certificate and key make a good issuing CA besides those that are there: a root
/// of ours vouches for it (RFC 5280 §6.1), it can sign for clients and for nobody else, and for as
/// long as a certificate lasts from its time on, and its name and key are its own. Then it signs
/// for a device that does not exist, and that is verified as brokers do it.
fn check(
    directory: &Directory,
    name: IssuingName,
    key_file: &str,
    issuer: Issuer,
) -> Result<InPlace> {
    let from = name.used_from().context("it has no time")?;
    let lifetime = directory.config().profile.validity();
    let issuer =
        issuer.under(&directory.pinned()?)?.valid_at(from)?.fit_to_issue(lifetime, from)?;
    let in_place = InPlace {
        name,
        key_file: key_file.to_owned(),
        subject: issuer.name(),
        key_id: key_id(&issuer),
        from,
        ends: issuer.not_after(),
    };
    let services = directory.service_certificates()?;
    ensure!(
        !services.iter().any(|service| issuer.has_the_name_of(service)),
        "the service CA has the name {}, too; certify the request with another one",
        issuer.name()
    );
    let (_, leaf) = issuer.throw_away_device(&directory.config().scope, from, &mut random())?;
    let leaf = CertificateDer::from_pem_slice(leaf.certificate.as_bytes())?;
    let issuing = issuer.certificate().clone();
    directory.issuers_with(Some((from, issuer)), &mut Tokens::default())?;

    let provider = aws_lc_rs::default_provider().into();
    let verifier =
        WebPkiClientVerifier::builder_with_provider(directory.roots()?.into(), provider).build()?;
    let at = std::time::Duration::from_secs(from.unix_timestamp().unsigned_abs());
    verifier
        .verify_client_cert(&leaf, &[issuing], UnixTime::since_unix_epoch(at))
        .context("brokers would not accept a certificate that it signs")?;
    Ok(in_place)
}

/// A common name that no issuing CA has: that of the one in use, and a date. It stays short,
/// because each device certificate has it twice on its way.
fn next_subject(directory: &Directory, at: OffsetDateTime, may_be_a_day: bool) -> Result<String> {
    let names = directory.issuing_names()?;
    let mut tokens = Tokens::default();
    let name_of =
        |name: &IssuingName| directory.issuer_called(*name, &mut tokens).ok()?.common_name();
    let all = names.iter().filter_map(name_of);
    let all: Vec<_> = all.collect();
    let base = all.last().map_or("Issuing CA", |name| without_date(name));
    let time = rfc3339::seconds(at.unix_timestamp());
    let day = format!("{base} {}", time.split('T').next().unwrap_or(&time));
    if may_be_a_day && !all.contains(&day) {
        return Ok(day);
    }
    Ok(format!("{base} {time}"))
}

/// A name without the date that [`next_subject`] put at its end.
fn without_date(name: &str) -> &str {
    let is_date = |word: &str| {
        let day = word.get(..10).unwrap_or_default().bytes().enumerate();
        word.len() >= 10
            && day.into_iter().all(|(at, byte)| match at {
                4 | 7 => byte == b'-',
                _ => byte.is_ascii_digit(),
            })
    };
    name.rsplit_once(' ').filter(|(_, last)| is_date(last)).map_or(name, |(base, _)| base)
}

/// How long before its time the next issuing CA is made, unless an operator says otherwise: a week,
/// so that all who look once a day have seen it before it signs.
pub const AHEAD: Duration = Duration::days(7);

#[cfg(test)]
mod tests {
    use super::*;

    /// A CA, a key of its that waits, and the certificate that the root made for it.
    fn requested(parent: &tempfile::TempDir, now: OffsetDateTime) -> (Directory, String) {
        let path = parent.path().join("ca");
        Directory::create(&path, "Test", &[]).unwrap();
        let directory = Directory::open(&path).unwrap();
        let root = directory.root_authority(None).unwrap();
        let pair = root.issuing_called("Next", now, &mut random()).unwrap().to_pem();
        std::fs::write(path.join(format!("{PENDING}.key")), pair.key.as_bytes()).unwrap();
        std::fs::write(path.join(format!("{PENDING}.csr")), "request").unwrap();
        (directory, pair.certificate)
    }

    /// Whatever had happened before it was cut short, no key waits that is used.
    #[test]
    fn installation_that_was_cut_short_is_finished_by_the_next_and_its_key_is_not_used_again() {
        for linked in [false, true] {
            let parent = tempfile::tempdir().unwrap();
            let now = OffsetDateTime::now_utc();
            let (directory, certificate) = requested(&parent, now);
            let (path, name) = (directory.path(), IssuingName::from(now + Duration::DAY));
            let pending = ["key", "csr"].map(|kind| path.join(format!("{PENDING}.{kind}")));
            if linked {
                std::fs::hard_link(&pending[0], path.join(name.key())).unwrap();
                assert_eq!(issuing_files::waiting(path).unwrap(), [name.to_string()]);
            }
            let key = std::fs::read(&pending[0]).unwrap();
            install(&directory, certificate.as_bytes(), now + Duration::DAY, None, now).unwrap();
            assert!(pending.iter().all(|file| !file.exists()), "{linked}");
            assert_eq!(std::fs::read(path.join(name.key())).unwrap(), key);
            let rows = list(&directory, now).unwrap();
            assert_eq!(
                rows.iter().map(|row| row.state).collect::<Vec<_>>(),
                [State::InUse, State::Next]
            );

            // It was cut short after all but the last step.
            std::fs::write(&pending[0], &key).unwrap();
            std::fs::write(&pending[1], "request").unwrap();
            assert_eq!(issuing_files::waiting(path).unwrap(), [""; 0]);
            let next = request(&directory, false, None, now).unwrap();
            assert!(next.is_new, "a request for a key that is used");
            assert_ne!(std::fs::read(&pending[0]).unwrap(), key);
        }
    }

    #[test]
    fn issuing_ca_that_is_not_valid_when_it_is_used_is_listed_with_the_reason() {
        let parent = tempfile::tempdir().unwrap();
        let now = OffsetDateTime::now_utc();
        let (directory, certificate) = requested(&parent, now);
        install(&directory, certificate.as_bytes(), now + Duration::DAY, None, now).unwrap();
        let [of, to] = [now + Duration::DAY, now + 9000 * Duration::DAY].map(IssuingName::from);
        let refused = |directory: &Directory, at| {
            let rows = list(directory, at).unwrap();
            rows.last().unwrap().certificate.clone().unwrap().err()
        };
        assert_eq!(refused(&directory, now), None);
        // Somebody gave its files another time.
        for (from, to) in [(of.key(), to.key()), (of.certificate(), to.certificate())] {
            std::fs::rename(directory.path().join(from), directory.path().join(to)).unwrap();
        }
        let reason = refused(&directory, now).unwrap();
        assert!(reason.contains("is not valid at"), "{reason}");
    }

    #[test]
    fn names_do_not_grow_with_each_rotation() {
        assert_eq!(without_date("Assay Issuing CA"), "Assay Issuing CA");
        assert_eq!(without_date("Assay Issuing CA 2027-01-15"), "Assay Issuing CA");
        assert_eq!(without_date("Assay Issuing CA 2027-01-15T08:00:00Z"), "Assay Issuing CA");
        assert_eq!(without_date("Plant 17"), "Plant 17");
        assert_eq!(without_date("2027-01-15"), "2027-01-15");
    }
}

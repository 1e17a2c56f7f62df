//! The secrets that all workers share: how a new one takes over while the old one is accepted.

use std::fs::{self, File};

use anyhow::{Context, Result, bail, ensure};
use assay_ca_core::{CLAIM_LIFETIME, CLOCK_SKEW, MasterSecret, TicketKey};
use assay_pkcs11::Uri;
use time::{Duration, OffsetDateTime};
use zeroize::Zeroizing;

use crate::directory::Directory;
use crate::issuing_files::Files;
use crate::new_files::SECRET;
use crate::random::random;
use crate::rfc3339;
use crate::shared_secrets::{KeptSecret, SharedSecret};

/// A secret in the CA's directory.
pub struct Held {
    /// What it is for.
    pub secret: SharedSecret,
    /// The name of its file.
    pub file: String,
    /// Where it is, as that file says.
    pub place: Place,
    /// From when on it is used; `None` is from the beginning.
    pub from: Option<OffsetDateTime>,
    /// What it does now.
    pub role: Role,
}

/// Where a key is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// In this file.
    File(String),
    /// In these tokens, which this file names.
    Tokens(String, Vec<Uri>),
    /// Not on this machine.
    Elsewhere,
}

/// What a secret does now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Role {
    /// Everything is made with it.
    InUse,
    /// It is accepted, and in use from its time on.
    Next,
    /// It is accepted, and another one is in use. What still needs it; nothing if that is empty.
    Before(Vec<String>),
}

/// The secrets of this directory.
///
/// # Errors
/// The directory or the store cannot be read.
pub fn list(directory: &Directory, now: OffsetDateTime) -> Result<Vec<Held>> {
    let mut held = Vec::new();
    for secret in SharedSecret::ALL {
        let next = directory.next_secret(secret)?;
        let (first, second) = match next {
            None => (Role::InUse, None),
            Some(from) if from > now => (Role::InUse, Some(Role::Next)),
            Some(from) => (Role::Before(needed(directory, secret, from, now)?), Some(Role::InUse)),
        };
        let of = |from: Option<OffsetDateTime>, role| -> Result<Held> {
            let file = secret.file(from);
            let place = match KeptSecret::read(&directory.path().join(&file))? {
                KeptSecret::Here(_) => Place::File(file.clone()),
                KeptSecret::Token(uris, _) => Place::Tokens(file.clone(), uris),
            };
            Ok(Held { secret, file, place, from, role })
        };
        held.push(of(None, first)?);
        held.extend(second.map(|role| of(next, role)).transpose()?);
    }
    Ok(held)
}

/// Makes a secret that is used from `from` on, in place of the one in use. Until then, and while
/// both are there, both are accepted. It is derived from the `key` in a token, which is made if the
/// URI names none, or else kept in its file. Returns the name of the file.
///
/// # Errors
/// Two are there already, the token failed, or the file cannot be written.
pub fn rotate(
    directory: &Directory,
    secret: SharedSecret,
    key: Option<Uri>,
    from: OffsetDateTime,
    now: OffsetDateTime,
) -> Result<String> {
    let stem = secret.stem();
    match directory.next_secret(secret)? {
        Some(next) if next > now => bail!(
            "{} is there, and is used from {} on",
            secret.file(Some(next)),
            rfc3339::seconds(next.unix_timestamp())
        ),
        Some(_) => bail!(
            "{stem}.key is the one before, and is still accepted; see `assay keys list`, and drop \
             it with `assay keys retire {stem}`"
        ),
        None => {}
    }
    let kept = match (key, secret) {
        (Some(uri), _) => KeptSecret::in_token(uri, secret, now)?,
        (None, SharedSecret::Ticket) => {
            KeptSecret::Here(Zeroizing::new(*TicketKey::generate(&mut random()).secret()))
        }
        (None, SharedSecret::Master) => {
            KeptSecret::Here(Zeroizing::new(*MasterSecret::generate(&mut random()).secret()))
        }
    };
    let file = secret.file(Some(from));
    Files::open(directory.path())?.put(&file, &kept.content(), SECRET)?;
    directory.note("rotate-key", &file)?;
    Ok(file)
}

/// Drops the secret that was in use before: the one in use takes its file name. That is one step,
/// so whoever reads the directory finds both or the new one. Returns what is lost by it.
///
/// # Errors
/// There is none, the next one is not in use yet, or it is still needed and `force` is not given.
pub fn retire(
    directory: &Directory,
    secret: SharedSecret,
    force: bool,
    now: OffsetDateTime,
) -> Result<Vec<String>> {
    let stem = secret.stem();
    let Some(from) = directory.next_secret(secret)? else {
        bail!("{stem}.key is the only one; `assay keys rotate {stem}` makes another")
    };
    let file = secret.file(Some(from));
    ensure!(
        from <= now,
        "{file} is used from {} on, so {stem}.key is in use until then; to take {file} back, \
         remove it everywhere",
        rfc3339::seconds(from.unix_timestamp())
    );
    let needed = needed(directory, secret, from, now)?;
    ensure!(
        force || needed.is_empty(),
        "the {stem} key of before is still needed: {}. With --force it is dropped now",
        needed.join("; ")
    );
    // What is renamed is what was checked: a secret, or where one is.
    _ = directory.ca().context("the keys in this directory")?;
    let path = directory.path();
    let rename = || -> Result<()> {
        fs::rename(path.join(&file), path.join(secret.file(None)))?;
        Ok(File::open(path)?.sync_all()?)
    };
    rename().with_context(|| format!("cannot rename {}", path.join(&file).display()))?;
    directory.note("retire-key", secret.file(None))?;
    Ok(needed)
}

/// What still needs the secret that was in use before `from`.
fn needed(
    directory: &Directory,
    secret: SharedSecret,
    from: OffsetDateTime,
    now: OffsetDateTime,
) -> Result<Vec<String>> {
    // A worker whose clock is behind used it a little longer.
    let until = from + CLOCK_SKEW;
    let made = directory.store()?.made_before(until, now)?;
    let mut needed = Vec::new();
    match secret {
        SharedSecret::Ticket => {
            let answered_by = until + CLAIM_LIFETIME;
            if now < answered_by {
                needed.push(format!("devices may answer a challenge until {}", shown(answered_by)));
            }
            if let Some(last) = made.last_until {
                needed.push(format!(
                    "{} certificates wait to be confirmed or adopted, the last until {}",
                    made.waiting,
                    rfc3339::seconds(last)
                ));
            }
        }
        SharedSecret::Master => {
            if now < until {
                needed.push(format!("a worker may offer keys of it until {}", shown(until)));
            }
            if made.shared_keys > 0 {
                needed.push(format!("{} devices have a shared key of it", made.shared_keys));
            }
        }
    }
    Ok(needed)
}

fn shown(time: OffsetDateTime) -> String {
    rfc3339::seconds(time.unix_timestamp())
}

/// How long after it was made a secret comes into use, unless an operator says otherwise: time to
/// bring it to every worker.
pub const LEAD: Duration = Duration::hours(1);

#[cfg(test)]
mod tests {
    use assay_ca_core::{Assurance, CertificateFacts, unchecked};
    use assay_store::{Act, Entry};

    use super::*;

    fn directory(parent: &tempfile::TempDir) -> Directory {
        let path = parent.path().join("ca");
        Directory::create(&path, "Test", &[]).unwrap();
        Directory::open(&path).unwrap()
    }

    fn roles(directory: &Directory, now: OffsetDateTime) -> Vec<(String, Role)> {
        let held = list(directory, now).unwrap();
        held.into_iter().map(|held| (held.file, held.role)).collect()
    }

    fn now() -> OffsetDateTime {
        OffsetDateTime::now_utc().replace_nanosecond(0).unwrap()
    }

    #[test]
    fn next_key_is_accepted_at_once_used_from_its_time_and_then_the_only_one() {
        let parent = tempfile::tempdir().unwrap();
        let (directory, now) = (directory(&parent), now());
        let from = now + LEAD;
        let used = |at| *directory.ca().unwrap().ticket_keys.get().unwrap().in_use(at).secret();
        let old = used(now);
        let file = rotate(&directory, SharedSecret::Ticket, None, from, now).unwrap();
        assert_eq!([used(from - Duration::SECOND), used(now)], [old, old]);
        let new = used(from);
        assert_ne!(new, old);
        assert_eq!(
            roles(&directory, now)[..2],
            [("ticket.key".into(), Role::InUse), (file.clone(), Role::Next)]
        );
        assert!(directory.files().unwrap().iter().any(|(name, _)| *name == file), "in backups");

        // A second one, and the end of the one in use, are refused.
        assert!(rotate(&directory, SharedSecret::Ticket, None, from, now).is_err());
        assert!(retire(&directory, SharedSecret::Ticket, true, now).is_err());
        assert!(rotate(&directory, SharedSecret::Ticket, None, from, from).is_err());
        let late = from + CLOCK_SKEW + CLAIM_LIFETIME;
        let Role::Before(needed) = &roles(&directory, late - Duration::SECOND)[0].1 else {
            panic!()
        };
        assert!(needed[0].contains("may answer a challenge"), "{needed:?}");
        let refused = retire(&directory, SharedSecret::Ticket, false, late - Duration::SECOND);
        assert!(refused.unwrap_err().to_string().contains("--force"));
        assert_eq!(retire(&directory, SharedSecret::Ticket, false, late).unwrap(), [""; 0]);
        assert_eq!(used(now), new);
        assert_eq!(roles(&directory, late)[0], ("ticket.key".into(), Role::InUse));
    }

    /// Between reading the directory and reading the file, the file got another name.
    #[test]
    fn whoever_reads_the_keys_while_one_is_retired_gets_the_one_in_use() {
        let parent = tempfile::tempdir().unwrap();
        let (directory, now) = (directory(&parent), now());
        let kind = SharedSecret::Master;
        let file = rotate(&directory, kind, None, now, now).unwrap();
        let new = fs::read(directory.path().join(file)).unwrap();
        let listed = directory.next_secret(kind).unwrap();
        retire(&directory, kind, true, now).unwrap();
        let keys = directory.beside(kind, listed).unwrap();
        assert_eq!(keys.in_use(now).content()[..], new);
        // One that is gone for another reason is an error.
        fs::write(directory.path().join(kind.file(listed)), "short").unwrap();
        assert!(directory.beside(kind, listed).is_err());
    }

    #[test]
    fn ticket_key_is_needed_while_a_certificate_waits_that_it_encrypted() {
        let parent = tempfile::tempdir().unwrap();
        let (directory, now) = (directory(&parent), now());
        let ca = directory.ca().unwrap();
        let facts = CertificateFacts {
            serial: [7; 16],
            not_before: now,
            not_after: now + Duration::DAY,
            device_id: "pump-17".parse().unwrap(),
            ek_id: [7; 32].into(),
            ik_id: [7; 32],
            assurance: Assurance::VendorCertificate,
            issued_at: now,
            confirm_by: Some(now + Duration::HOUR),
        };
        let key = ca.ticket_keys.get().unwrap().in_use(now);
        let sealed = unchecked::sealed(facts, vec![7], key, &mut random()).unwrap();
        let entries = [Entry { act: Act::Seal(sealed), basis: None, audit: None }];
        _ = directory.store().unwrap().record(&ca.scope, &entries).unwrap();
        let from = now + Duration::SECOND;
        rotate(&directory, SharedSecret::Ticket, None, from, now).unwrap();
        let at = from + Duration::minutes(10);
        let refused = retire(&directory, SharedSecret::Ticket, false, at).unwrap_err().to_string();
        assert!(refused.contains("1 certificates wait"), "{refused}");
        let lost = retire(&directory, SharedSecret::Ticket, true, at).unwrap();
        assert!(lost[0].contains("1 certificates wait"), "{lost:?}");
    }

    #[test]
    fn more_than_two_are_refused_and_a_file_of_another_name_is_none() {
        let parent = tempfile::tempdir().unwrap();
        let (directory, now) = (directory(&parent), now());
        fs::write(directory.path().join("master-old.key"), [7; 32]).unwrap();
        rotate(&directory, SharedSecret::Master, None, now, now).unwrap();
        directory.ca().unwrap();
        let third = SharedSecret::Master.file(Some(now + LEAD));
        fs::write(directory.path().join(third), [7; 32]).unwrap();
        assert!(directory.ca().err().unwrap().to_string().contains("at most one"));
    }
}

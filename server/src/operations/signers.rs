//! The keys of the CAs of a directory: what each is, where it is, that it signs, and how fast.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use assay_pkcs11::Tokens;
use aws_lc_rs::hmac;
use rcgen::{KeyPair, SigningKey};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use time::OffsetDateTime;

use super::issuing::State;
use super::keys::{self, Place};
use crate::dated;
use crate::directory::Directory;
use crate::issuing_files::Files;
use crate::issuing_keys::{KeptKey, public_key};
use crate::shared_secrets::{KeptSecret, derive};

/// The key of a CA.
pub struct Signer {
    /// What the CA is for: `root`, `issuing` or `service`.
    pub ca: &'static str,
    /// The name of its files, without what comes after the point.
    pub files: String,
    /// What kind of key it is.
    pub kind: String,
    /// Where it is.
    pub place: Place,
    /// From when on it is used; `None` is from the beginning.
    pub from: Option<OffsetDateTime>,
    /// What it is for now.
    pub state: State,
}

/// The keys of all CAs, the oldest of each first.
///
/// # Errors
/// The directory cannot be read.
pub fn list(directory: &Directory, now: OffsetDateTime) -> Result<Vec<Signer>> {
    let files = Files::open(directory.path())?;
    let mut signers = Vec::new();
    for ca in ["root", "issuing", "service"] {
        let dates = directory.dated(ca, ".pem")?;
        // The next root and service CA are used as soon as they are there.
        let is_in_use =
            |from: &Option<OffsetDateTime>| ca != "issuing" || from.is_none_or(|from| from <= now);
        let in_use = dates.iter().rposition(is_in_use).unwrap_or(0);
        for (position, from) in dates.into_iter().enumerate() {
            let name = dated::name(ca, from);
            let certificate = files.read(&format!("{name}.pem"))?.context("it was there")?;
            let certificate = CertificateDer::from_pem_slice(certificate.as_bytes());
            let public = certificate.ok().and_then(|it| public_key(&it));
            let place = match KeptKey::read(&files, &name)? {
                None => Place::Elsewhere,
                Some(kept) => match &kept {
                    KeptKey::Pem(_) => Place::File(kept.file(&name)),
                    KeptKey::Token(uris) => Place::Tokens(kept.file(&name), uris.clone()),
                },
            };
            signers.push(Signer {
                ca,
                files: name,
                kind: public.map_or_else(|| "unknown".to_owned(), |it| it.kind().to_string()),
                place,
                from,
                state: match position.cmp(&in_use) {
                    std::cmp::Ordering::Less => State::Old,
                    std::cmp::Ordering::Equal => State::InUse,
                    std::cmp::Ordering::Greater => State::Next,
                },
            });
        }
    }
    Ok(signers)
}

/// What became of a try.
pub struct Tried {
    /// The name of the key's files.
    pub files: String,
    /// Where it is: the name of its file, or the URI.
    pub place: String,
    /// The median of the times, or why it does not work.
    pub outcome: Result<Duration, String>,
}

/// Tries each key that is on this machine or in a token: it signs so many times, and the first
/// signature is verified.
///
/// # Errors
/// The directory cannot be read.
pub fn test(directory: &Directory, times: u16, now: OffsetDateTime) -> Result<Vec<Tried>> {
    let files = Files::open(directory.path())?;
    let (mut tried, mut tokens) = (Vec::new(), Tokens::default());
    for Signer { files: name, place, .. } in list(directory, now)? {
        let certificate = files.read(&format!("{name}.pem"))?.context("it was there")?;
        let public = CertificateDer::from_pem_slice(certificate.as_bytes())
            .ok()
            .and_then(|it| public_key(&it));
        let public = public.with_context(|| format!("{name}.pem has a key of another kind"));
        let mut take = |place: String, outcome: Result<Duration>| {
            let outcome = outcome.map_err(|error| format!("{error:#}"));
            tried.push(Tried { files: name.clone(), place, outcome });
        };
        match (place, public) {
            (Place::Elsewhere, _) => {}
            (Place::File(file), public) => {
                let outcome = public.and_then(|public| {
                    let pem = files.read(&file)?.context("it was there")?;
                    let key = KeyPair::from_pem(&pem).context("it is not PKCS #8")?;
                    median(times, |first| {
                        let signature = key.sign(MESSAGE)?;
                        let is_good = !first || public.verifies(MESSAGE, &signature);
                        is_good.then_some(()).context("it is not the key of the certificate")
                    })
                });
                take(file, outcome);
            }
            (Place::Tokens(file, _), Err(error)) => take(file, Err(error)),
            (Place::Tokens(_, uris), Ok(public)) => {
                for uri in uris {
                    let key = tokens.key(std::slice::from_ref(&uri), public.clone());
                    let outcome = median(times, |_| Ok(key.sign_in(0, MESSAGE).map(drop)?));
                    take(uri.to_string(), outcome);
                }
            }
        }
    }
    for held in keys::list(directory, now)? {
        let files = held.file.trim_end_matches(".key").to_owned();
        let mut take = |place: String, outcome: Result<Duration>| {
            let outcome = outcome.map_err(|error| format!("{error:#}"));
            tried.push(Tried { files: files.clone(), place, outcome });
        };
        match KeptSecret::read(&directory.path().join(&held.file))? {
            KeptSecret::Here(secret) => {
                let key = hmac::Key::new(hmac::HMAC_SHA256, &*secret);
                take(held.file, median(times, |_| Ok(_ = hmac::sign(&key, MESSAGE))));
            }
            KeptSecret::Token(uris, check) => {
                for uri in uris {
                    let key = tokens.secret(std::slice::from_ref(&uri));
                    let derived = || derive(&key, 0, held.secret, &check).map(drop);
                    take(uri.to_string(), median(times, |_| derived()));
                }
            }
        }
    }
    Ok(tried)
}

/// Does this so many times, and says in which time it mostly does it. It is told which is the first,
/// which does not count.
fn median(times: u16, mut work: impl FnMut(bool) -> Result<()>) -> Result<Duration> {
    work(true)?;
    let mut took = Vec::new();
    for _ in 0..times.max(1) {
        let began = Instant::now();
        work(false)?;
        took.push(began.elapsed());
    }
    took.sort_unstable();
    Ok(took[took.len() / 2])
}

/// What is signed: nothing that anybody takes for a certificate.
const MESSAGE: &[u8] = b"assay keys test";

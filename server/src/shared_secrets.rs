//! The secrets that all workers share. Each has a file of 32 random bytes, or one that names a key
//! in a token from which the secret is derived when a worker starts ([decision
//! 0020](../../docs/decisions/0020-secrets-derived-in-a-token.md)).

use std::collections::HashMap;
use std::fs;
use std::path::Path;
use std::sync::{LazyLock, Mutex, MutexGuard, OnceLock, PoisonError};

use anyhow::{Context, Result, anyhow, ensure};
use assay_ca_core::Overlapping;
use assay_pkcs11::{KeySelector, TokenSecret, Tokens, Uri, parse_uris};
use sha2::{Digest, Sha256};
use time::OffsetDateTime;
use tracing::info;
use zeroize::Zeroizing;

use crate::dated;
use crate::random::random_bytes;
use crate::rfc3339;

/// A secret that all workers of a CA share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SharedSecret {
    /// Makes tickets, and encrypts certificates that wait.
    Ticket,
    /// From it, the shared keys of devices are derived.
    Master,
}

impl SharedSecret {
    /// Each of them.
    pub const ALL: [Self; 2] = [Self::Ticket, Self::Master];

    /// What its files are called, and the commands call it.
    pub fn stem(self) -> &'static str {
        match self {
            Self::Ticket => "ticket",
            Self::Master => "master",
        }
    }

    /// Whether a file of this name holds one that is used from a time on.
    pub(crate) fn is_of_a_later(self, file: &str) -> bool {
        let name = file.strip_suffix(".key");
        matches!(name.and_then(|name| dated::parse(self.stem(), name)), Some(Some(_)))
    }

    /// The file with the one that is used from then on; `None` is from the beginning.
    pub(crate) fn file(self, from: Option<OffsetDateTime>) -> String {
        format!("{}.key", dated::name(self.stem(), from))
    }

    /// What a token's key makes a MAC of, to derive this secret: one block of HKDF-Expand (RFC 5869
    /// §2.3), whose info is the text.
    fn label(self) -> &'static [u8] {
        match self {
            Self::Ticket => b"assay ticket key v1\x01",
            Self::Master => b"assay master secret v1\x01",
        }
    }
}

/// A secret, wiped when dropped.
pub(crate) type Secret = Zeroizing<[u8; SECRET_LEN]>;

/// What the file of a secret has.
#[derive(Clone)]
pub(crate) enum KeptSecret {
    /// The secret.
    Here(Secret),
    /// The key in one or more tokens from which it is derived, and the secret's SHA-256, by which
    /// another key of the same name is noticed.
    Token(Vec<Uri>, Check),
}

type Check = [u8; 32];

impl KeptSecret {
    /// Reads the file.
    ///
    /// # Errors
    /// It cannot be read, or has something else.
    pub(crate) fn read(path: &Path) -> Result<Self> {
        let shown = path.display();
        let content = fs::read(path).with_context(|| format!("cannot read {shown}"))?;
        let content = Zeroizing::new(content);
        if let Ok(secret) = content.as_slice().try_into() {
            return Ok(Self::Here(Zeroizing::new(secret)));
        }
        let advice = || format!("{shown} must have {SECRET_LEN} bytes, or name a key in a token");
        let text = std::str::from_utf8(&content).ok().filter(|text| text.starts_with("pkcs11:"));
        let (uris, check) = text.and_then(|it| it.split_once(CHECK)).with_context(advice)?;
        let mut digest = [0; 32];
        hex::decode_to_slice(check.trim(), &mut digest).with_context(advice)?;
        Ok(Self::Token(parse_uris(uris).with_context(advice)?, digest))
    }

    /// What is in the file.
    pub(crate) fn content(&self) -> Zeroizing<Vec<u8>> {
        Zeroizing::new(match self {
            Self::Here(secret) => secret.to_vec(),
            Self::Token(uris, check) => {
                let uris: String = uris.iter().map(|uri| format!("{uri}\n")).collect();
                format!("{uris}{CHECK}{}\n", hex::encode(check)).into()
            }
        })
    }

    /// Derives a secret from the key that this URI names, or from a new one if it names none.
    ///
    /// # Errors
    /// The token failed, or has no such key or no room.
    pub(crate) fn in_token(uri: Uri, kind: SharedSecret, now: OffsetDateTime) -> Result<Self> {
        let mut tokens = Tokens::default();
        let uri = match uri.key() {
            Some(_) => uri,
            None => {
                let time = rfc3339::seconds(now.unix_timestamp());
                let name = KeySelector {
                    object: Some(format!("assay-{}-{time}", kind.stem())),
                    id: Some(random_bytes::<16>().to_vec()),
                };
                let shown = uri.to_string();
                tokens.generate_secret(uri, name).with_context(|| {
                    format!(
                        "no HMAC key was made by {shown}; the vendor's program may make one: \
                             name it by object= or id="
                    )
                })?
            }
        };
        let key = tokens.secret(std::slice::from_ref(&uri));
        let secret = key.mac_in(0, kind.label()).with_context(|| uri.to_string())?;
        let check = check_of(&secret);
        locked(&DERIVED).insert(check, secret);
        Ok(Self::Token(vec![uri], check))
    }

    fn source(self, tokens: &mut Tokens) -> Source {
        match self {
            Self::Here(secret) => Source::Here(secret),
            Self::Token(uris, check) => Source::Token(tokens.secret(&uris), check),
        }
    }
}

/// Derives a secret in the token of this position, as a trial: nothing is remembered.
///
/// # Errors
/// The token failed, or has another key.
pub(crate) fn derive(
    key: &TokenSecret,
    position: usize,
    kind: SharedSecret,
    check: &Check,
) -> Result<Secret> {
    let secret = key.mac_in(position, kind.label())?;
    ensure!(check_of(&secret) == *check, "the token has another key of this name");
    Ok(secret)
}

fn check_of(secret: &Secret) -> Check {
    Sha256::new_with_prefix(CHECK_LABEL).chain_update(**secret).finalize().into()
}

/// A secret of a CA and the one beside it, as far as they are known: those that are derived in a
/// token are, once it has answered.
pub struct Shared<K> {
    known: OnceLock<Overlapping<K>>,
    missing: Mutex<Option<Missing<K>>>,
}

/// How secrets become known.
struct Missing<K> {
    kind: SharedSecret,
    sources: Overlapping<Source>,
    new: fn([u8; SECRET_LEN]) -> K,
}

enum Source {
    Here(Secret),
    Token(TokenSecret, Check),
}

impl Source {
    /// The secret: as a token derived it since this process started, or from the first token that
    /// has the key.
    fn secret(&self, kind: SharedSecret) -> Result<Secret> {
        let (key, check) = match self {
            Self::Here(secret) => return Ok(secret.clone()),
            Self::Token(key, check) => (key, check),
        };
        if let Some(known) = locked(&DERIVED).get(check) {
            return Ok(known.clone());
        }
        let mut failures = Vec::new();
        for position in 0..key.count() {
            match derive(key, position, kind, check) {
                Ok(secret) => {
                    info!(secret = kind.stem(), "derived in its token");
                    locked(&DERIVED).insert(*check, secret.clone());
                    return Ok(secret);
                }
                Err(error) => failures.push(format!("{error:#}")),
            }
        }
        Err(anyhow!("{}: {}", kind.file(None), failures.join("; ")))
    }
}

impl<K> Shared<K> {
    /// Asks no token.
    pub(crate) fn new(
        kind: SharedSecret,
        kept: Overlapping<KeptSecret>,
        tokens: &mut Tokens,
        new: fn([u8; SECRET_LEN]) -> K,
    ) -> Self {
        let is_here = kept.iter().all(|kept| matches!(kept, KeptSecret::Here(_)));
        let sources = kept.map(|kept| kept.source(tokens));
        let missing = Mutex::new(Some(Missing { kind, sources, new }));
        let shared = Self { known: OnceLock::new(), missing };
        if is_here {
            // Never an error: no token is asked.
            _ = shared.fetch();
        }
        shared
    }

    /// The secrets. Never waits.
    ///
    /// # Errors
    /// No token has derived them yet.
    pub fn get(&self) -> Result<&Overlapping<K>, SecretAway> {
        self.known.get().ok_or(SecretAway)
    }

    /// Has tokens derive what is missing. Whoever calls this may wait for them.
    ///
    /// # Errors
    /// They failed, or have other keys.
    pub fn fetch(&self) -> Result<()> {
        let mut missing = locked(&self.missing);
        if let Some(Missing { kind, sources, new }) = &*missing {
            let known = sources.try_map(|source| source.secret(*kind).map(|it| new(*it)))?;
            _ = self.known.set(known);
            // Their processes end, unless another key needs them.
            *missing = None;
        }
        Ok(())
    }
}

impl<K> From<Overlapping<K>> for Shared<K> {
    fn from(known: Overlapping<K>) -> Self {
        Self { known: OnceLock::from(known), missing: Mutex::new(None) }
    }
}

impl<K> From<K> for Shared<K> {
    fn from(only: K) -> Self {
        Overlapping::from(only).into()
    }
}

/// A secret of the CA comes from a token that has not answered since the worker started.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a secret of the CA, which comes from a token, is not there yet")]
pub struct SecretAway;

/// What tokens derived for this process. To reread the files needs no token.
static DERIVED: LazyLock<Mutex<HashMap<Check, Secret>>> = LazyLock::new(Mutex::default);

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The length of a shared secret.
pub(crate) const SECRET_LEN: usize = 32;
/// What is before the SHA-256 in a file.
const CHECK: &str = "sha256:";
/// Separates that SHA-256 from any other of the secret.
const CHECK_LABEL: &[u8] = b"assay check of a derived secret\0";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pkcs11_file_of_a_secret_has_32_bytes_or_names_a_key_and_a_digest() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let read = |content: &[u8]| {
            fs::write(file.path(), content).unwrap();
            KeptSecret::read(file.path())
        };
        let here = read(&[7; 32]).unwrap();
        assert!(matches!(&here, KeptSecret::Here(secret) if **secret == [7; 32]));
        let uri = "pkcs11:token=ca;object=ticket?module-path=/a.so\n";
        let digest = "ab".repeat(32);
        let text = format!("{uri}{uri}sha256:{digest}\n");
        let kept = read(text.as_bytes()).unwrap();
        assert!(matches!(&kept, KeptSecret::Token(uris, [0xab, ..]) if uris.len() == 2));
        assert_eq!(kept.content()[..], *text.as_bytes());
        for bad in [
            "",
            "short",
            &uri.repeat(2),
            &format!("sha256:{digest}"),
            &format!("{uri}sha256:ab"),
            &format!("pkcs11:token=ca?module-path=/a.so\nsha256:{digest}"),
        ] {
            let error = read(bad.as_bytes()).err().unwrap().to_string();
            assert!(error.contains("must have 32 bytes, or name a key in a token"), "{error}");
        }
    }
}

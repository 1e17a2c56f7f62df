//! Identities: brokers, workers, operators and backends, and their certificates.

use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use assay_ca_core::{Authority, KeyAndCertificate};
use assay_store::{
    IdentityCertificate, IdentityRole, IdentityRow, NewIdentity, Renewed, Store, StoreError, Which,
};
use assay_wire::{IdentityName, Rights};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use time::{Duration, OffsetDateTime};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use crate::directory::Directory;
use crate::expiry::{Ending, What, endings, ends_soon};
use crate::new_files::{NewFiles, certificate_of, ours};
use crate::random::random;

/// A certificate that is wanted.
pub struct Wish<'w> {
    /// What it is for.
    pub role: IdentityRole,
    /// How a broker is reached: DNS names and IP addresses.
    pub server_names: &'w [String],
    /// For how long it is valid, from now.
    pub lifetime: Duration,
}

/// Makes an identity: puts it on record, and writes its certificate and key to `{name}.pem` and
/// `{name}.key` in `out`.
///
/// # Errors
/// There is an identity of that name, on record or in `out`; or the service CA's key cannot be
/// read, or the files cannot be written.
pub fn add(
    directory: &Directory,
    name: &IdentityName,
    wish: &Wish<'_>,
    rights: Rights,
    out: &Path,
) -> Result<()> {
    let now = OffsetDateTime::now_utc();
    let (authority, service) = directory.service_authority()?;
    let pair = certify(&authority, name.as_str(), wish, now)?;
    let certificate = certificate_of(&pair)?;
    let identity = NewIdentity { name: name.to_string(), role: wish.role, rights, certificate };
    let place = Place::make(directory, out, name.as_str())?;
    ensure!(
        !place.is_own || !Directory::has_key_of(name.as_str()),
        "{name}.key in {} is, or would be taken for, a key of the CA's own; choose another name, \
         or say with --out where its files are to be",
        directory.path().display()
    );
    // It goes on record first: a certificate that is not on record cannot be revoked, and other
    // brokers accept it.
    let mut store = directory.store()?;
    ensure!(
        store.add_identity(&identity, now)?,
        "{name} is on record already (assay identity list); choose another name"
    );
    place.write(|files| files.write_pair(name.as_str(), &pair, &service)).inspect_err(|_| {
        // It is of no use without its files. If this fails too, it stays on record, and can be
        // revoked.
        _ = store.revoke_identity(name.as_str(), Which::Every, now);
    })
}

/// An identity that has another certificate.
pub struct Renewal {
    /// Where the certificate and its key are, without `.pem` and `.key`.
    pub files: PathBuf,
    /// Which of the CA's own files they are, if any: `server`, `worker` or `operator`.
    pub holder: Option<&'static str>,
    /// Certificates of the identity that are good besides the new one.
    pub old: usize,
}

/// Makes another certificate for an identity, for another key. Those of before stay good. It takes
/// the place of the CA's own files if the identity is the CA's own, and otherwise of `{name}.pem`
/// and `{name}.key` in `out`, if these exist.
///
/// A broker's certificate has the names of the one that is replaced, and `server_names`. The
/// built-in broker is renewed even if its certificate is not on record: an earlier version of Assay
/// may have made it.
///
/// # Errors
/// There is no such identity, it is revoked, the names of a broker are not known, the service CA's
/// key cannot be read, or the files cannot be written.
pub fn renew(
    directory: &Directory,
    name: &str,
    server_names: &[String],
    lifetime: Duration,
    out: Option<&Path>,
) -> Result<Renewal> {
    let now = OffsetDateTime::now_utc();
    let mut store = directory.store()?;
    let row = store.identities()?.into_iter().find(|row| row.name == name);
    let is_new = row.is_none();
    let (role, holder) = match &row {
        Some(row) => (row.role, holder_of(directory, row)),
        None if name == BUILT_IN => (IdentityRole::Broker, Some(BUILT_IN)),
        None => bail!("there is no identity {name}; `assay identity list` names them"),
    };
    let own = holder.filter(|_| out.is_none());
    let (out, file) = match own {
        Some(holder) => (directory.path(), holder),
        None => (out.unwrap_or_else(|| Path::new(".")), name),
    };
    let mut names = server_names.to_vec();
    if role == IdentityRole::Broker {
        let replaced = leaf_in(&out.join(format!("{file}.pem")));
        // Another user may own the directory, and must not choose what the service CA signs.
        let is_ours = |leaf: &CertificateDer<'_>| {
            own.is_some() || row.as_ref().is_some_and(|row| row.has(leaf))
        };
        names.extend(replaced.filter(is_ours).and_then(|leaf| names_of(&leaf)).unwrap_or_default());
        ensure!(!names.is_empty(), "{}", NO_NAMES);
    }
    let (authority, service) = directory.service_authority()?;
    let wish = Wish { role, server_names: &names, lifetime };
    let pair = certify(&authority, name, &wish, now)?;
    let certificate = certificate_of(&pair)?;
    let sha256 = *certificate.sha256();
    let place = Place::make(directory, out, file)?;
    ensure!(
        own.is_some() || holder == Some(name) || !place.is_own || !Directory::has_key_of(file),
        "{file}.key in {} is the CA's own; say with --out where the files of {name} are",
        directory.path().display()
    );
    // It goes on record first, as in `add`.
    if is_new {
        let (name, rights) = (name.to_owned(), Rights::default());
        store.add_identity(&NewIdentity { name, role, rights, certificate }, now)?;
    } else {
        match store.renew_identity(name, &certificate, now)? {
            Renewed::Done => {}
            Renewed::Unknown => bail!("{name} was on record a moment ago; try again"),
            Renewed::Revoked => bail!(
                "{name} is revoked, and stays so; make an identity of another name with `assay \
                 identity add`"
            ),
        }
    }
    place.write(|files| files.replace_pair(file, &pair, &service)).inspect_err(|_| {
        _ = store.revoke_identity(name, Which::Only(&sha256), now);
    })?;
    let good = |row: &IdentityRow| {
        row.certificates.iter().filter(|certificate| certificate.revoked_at.is_none()).count()
    };
    Ok(Renewal { files: out.join(file), holder: own, old: row.as_ref().map_or(0, good) })
}

/// Which certificates are revoked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Revoke {
    /// All of them, and so the identity.
    All,
    /// All but the newest.
    Old,
}

/// Revokes certificates of the identity of this name. Returns how many were good before.
///
/// Without `even_own`, no certificate is revoked that the CA itself connects with.
///
/// # Errors
/// There is no such identity, or it is the CA's own.
pub fn revoke(
    directory: &Directory,
    store: &mut dyn Store,
    name: &str,
    what: Revoke,
    even_own: bool,
    now: OffsetDateTime,
) -> Result<usize, RevokeError> {
    let unknown = || RevokeError::Unknown { name: name.into() };
    let row = store.identities()?.into_iter().find(|row| row.name == name).ok_or_else(unknown)?;
    let newest = row.newest().map(|newest| newest.sha256);
    let which = match (what, &newest) {
        (Revoke::Old, Some(newest)) => Which::EveryBut(newest),
        (Revoke::Old, None) => return Ok(0),
        (Revoke::All, _) => Which::Every,
    };
    let spared = newest.filter(|_| what == Revoke::Old);
    let mut meant = row.certificates.iter().filter(|row| Some(row.sha256) != spared);
    if !even_own && let Some(holder) = meant.find_map(|row| directory.holder_of(&row.sha256)) {
        return Err(RevokeError::Own { holder });
    }
    store.revoke_identity(name, which, now)?.ok_or_else(unknown)
}

/// Why no certificate is revoked.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)] // each variant's message is its documentation
pub enum RevokeError {
    #[error(
        "{holder}.pem of this directory is that certificate, so the CA itself would be shut out"
    )]
    Own { holder: &'static str },
    #[error("there is no identity {name}")]
    Unknown { name: String },
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// The identities that should be renewed. The built-in broker is one of them even if its
/// certificate is not on record.
///
/// # Errors
/// The store cannot be read.
pub fn ending(directory: &Directory, now: OffsetDateTime) -> Result<Vec<Ending>> {
    let rows = directory.store()?.identities()?;
    let mut found = endings(&rows, now);
    let shown = directory.credentials(BUILT_IN).ok();
    let shown = shown.and_then(|shown| IdentityCertificate::read(&shown.chain[0]));
    let is_on_record = |sha256: &[u8; 32]| {
        rows.iter().flat_map(|row| &row.certificates).any(|row| row.sha256 == *sha256)
    };
    found.extend(
        shown
            .filter(|shown| !is_on_record(shown.sha256()) && ends_soon(shown.not_after(), now))
            .map(|shown| Ending {
                what: What::Identity(BUILT_IN.into()),
                not_after: shown.not_after(),
            }),
    );
    Ok(found)
}

/// Lines of an access list of Mosquitto, for every backend that is not revoked. It knows a backend
/// by its certificate's common name.
///
/// # Errors
/// The store cannot be read.
pub fn access_list(directory: &Directory) -> Result<String> {
    let scope = &directory.config().scope;
    let mut list = String::new();
    for row in directory.store()?.identities()? {
        if row.role != IdentityRole::Backend || row.newest().is_none() {
            continue;
        }
        list += &format!("user backend@{}\n", row.name);
        for filter in row.rights.subscribe_in(scope) {
            list += &format!("topic read {filter}\n");
        }
        for filter in row.rights.publish_in(scope) {
            list += &format!("topic write {filter}\n");
        }
        list += "\n";
    }
    Ok(list)
}

fn certify(
    authority: &Authority,
    name: &str,
    wish: &Wish<'_>,
    now: OffsetDateTime,
) -> Result<KeyAndCertificate> {
    let (rng, lifetime) = (&mut random(), wish.lifetime);
    Ok(match wish.role {
        IdentityRole::Broker => authority
            .server(wish.server_names, lifetime, now, rng)
            .with_context(|| format!("broker certificate for {:?}", wish.server_names))?,
        IdentityRole::Worker => authority.worker(lifetime, now, rng)?,
        IdentityRole::Operator => authority.operator(lifetime, now, rng)?,
        IdentityRole::Backend => authority.backend(&name.parse()?, lifetime, now, rng)?,
    })
}

/// The CA's own files that hold one of an identity's certificates.
fn holder_of(directory: &Directory, row: &IdentityRow) -> Option<&'static str> {
    row.certificates.iter().rev().find_map(|certificate| directory.holder_of(&certificate.sha256))
}

/// The first certificate of a file. `None` if there is no such file, or it cannot be read.
fn leaf_in(file: &Path) -> Option<CertificateDer<'static>> {
    CertificateDer::from_pem_file(file).ok()
}

/// The DNS names and IP addresses that a certificate is for.
fn names_of(leaf: &CertificateDer<'_>) -> Option<Vec<String>> {
    let (_, leaf) = X509Certificate::from_der(leaf).ok()?;
    let names = &leaf.subject_alternative_name().ok()??.value.general_names;
    let name = |name: &GeneralName<'_>| match name {
        GeneralName::DNSName(name) => Some((*name).to_owned()),
        GeneralName::IPAddress(octets) => match octets.len() {
            4 => <[u8; 4]>::try_from(*octets).ok().map(|ip| std::net::IpAddr::from(ip).to_string()),
            _ => {
                <[u8; 16]>::try_from(*octets).ok().map(|ip| std::net::IpAddr::from(ip).to_string())
            }
        },
        _ => None,
    };
    Some(names.iter().filter_map(name).collect())
}

/// A directory that files are written to. It is held open: it is the same directory even if the
/// owner of a directory above puts another in its place.
struct Place {
    held: File,
    is_own: bool,
    shown: String,
}

impl Place {
    fn make(directory: &Directory, out: &Path, file: &str) -> Result<Self> {
        let shown = format!("cannot write {file}.pem and {file}.key to {}", out.display());
        let make = || {
            fs::DirBuilder::new().recursive(true).mode(0o700).create(out)?;
            let held = File::open(out)?;
            let is_own = fs::canonicalize(path_of(&held))? == fs::canonicalize(directory.path())?;
            anyhow::Ok((held, is_own))
        };
        let (held, is_own) = make().with_context(|| shown.clone())?;
        Ok(Self { held, is_own, shown })
    }

    /// Outside of the CA's own directory, the files belong to the user who makes them.
    fn write(&self, write: impl FnOnce(&NewFiles<'_>) -> Result<()>) -> Result<()> {
        let path = path_of(&self.held);
        let make = || {
            let mut files = NewFiles::of(&path)?;
            if !self.is_own {
                files.owner = ours()?;
            }
            write(&files)
        };
        make().with_context(|| self.shown.clone())
    }
}

fn path_of(held: &File) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", held.as_raw_fd()))
}

/// What the built-in broker is called, on record and in the CA's directory.
const BUILT_IN: &str = "server";
const NO_NAMES: &str = "a broker needs a name by which it is reached; say --server-name HOST, or \
                        give with --out the directory that has the certificate to replace, if it is \
                        one that is on record";

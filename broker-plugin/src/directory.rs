//! The CA's directory: keys, certificates, configuration and database, as `assay init` makes it.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt, lchown};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use assay_ca_core::{Authority, Issuer, KeyAndCertificate, MasterSecret, Profile, TicketKey};
use assay_wire::{Flow, Scope};
use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use serde::Deserialize;
use time::{Duration, OffsetDateTime};
use zeroize::Zeroizing;

use crate::ca::Ca;
use crate::random::random;
use crate::store::Store;

/// An existing directory.
#[derive(Clone, Debug)]
pub struct Directory {
    path: PathBuf,
    config: Config,
}

/// `assay.toml`, checked.
#[derive(Clone, Debug)]
pub struct Config {
    /// The provisioning domain.
    pub scope: Scope,
    /// Where unprovisioned devices connect.
    pub bootstrap: SocketAddr,
    /// Where provisioned devices, operators and workers connect.
    pub operational: SocketAddr,
    /// What certificates look like, and which flows lead to one.
    pub profile: Profile,
}

/// A certificate chain, leaf first and without the root, and its key.
pub struct Credentials {
    /// In DER.
    pub chain: Vec<CertificateDer<'static>>,
    /// In DER.
    pub key: PrivateKeyDer<'static>,
}

impl Directory {
    /// Makes a CA: root, issuing CA, ticket key, master secret, broker, worker and operator
    /// certificates, database, configuration. All of it belongs to the owner of the directory.
    ///
    /// A configuration that is there already is kept. The root's certificate is written last, so
    /// that a half-made CA is never opened.
    ///
    /// # Errors
    /// The directory holds something else than a valid configuration, or it cannot be written.
    pub fn create(path: &Path, name: &str, server_names: &[String]) -> Result<()> {
        let there = fs::read_dir(path).into_iter().flatten();
        for entry in there.collect::<io::Result<Vec<_>>>()? {
            if entry.file_name() != CONFIG {
                bail!(
                    "{} exists and is not empty; a CA is never overwritten. Choose another directory",
                    path.display()
                );
            }
            Config::read(&entry.path())?;
        }
        for name in server_names {
            ServerName::try_from(name.as_str()).with_context(|| format!("{name:?} names no server"))?;
        }
        let cannot_make = || format!("cannot make {}", path.display());
        fs::DirBuilder::new().recursive(true).mode(0o700).create(path).with_context(cannot_make)?;
        fs::set_permissions(path, Permissions::from_mode(0o700)).with_context(cannot_make)?;
        let half_made = || format!("{} is half made; remove all but {CONFIG} from it and try again", path.display());
        fill(path, name, server_names).with_context(half_made)
    }

    /// Opens a directory that `create` made.
    ///
    /// # Errors
    /// It has no readable, valid `assay.toml`, or no CA was made in it.
    pub fn open(path: &Path) -> Result<Self> {
        let (file, shown) = (path.join(CONFIG), path.display());
        ensure!(file.exists(), "{shown} has no {CONFIG}; `assay init DIR` makes a CA, --dir says where it is");
        let config = Config::read(&file)?;
        ensure!(path.join(ROOT).exists(), "{shown} holds no CA yet, only its settings; run `assay init {shown}`");
        Ok(Self { path: path.to_owned(), config })
    }

    /// What `assay.toml` says.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The database's place.
    pub fn database(&self) -> PathBuf {
        self.path.join(DATABASE)
    }

    /// Opens the database.
    ///
    /// # Errors
    /// It cannot be opened.
    pub fn store(&self) -> Result<Store> {
        let path = self.database();
        Store::open(&path).with_context(|| format!("cannot open {}", path.display()))
    }

    /// What the worker decides and signs with.
    ///
    /// # Errors
    /// A key or certificate cannot be read, or they do not belong together.
    pub fn ca(&self) -> Result<Ca> {
        let key = Zeroizing::new(self.read("issuing.key")?);
        let issuer = Issuer::from_pem(&self.read("issuing.pem")?, &key).context("issuing.pem and issuing.key")?;
        Ok(Ca {
            scope: self.config.scope.clone(),
            ticket_key: TicketKey::new(*self.secret(TICKET_KEY)?),
            master: MasterSecret::new(*self.secret(MASTER_SECRET)?),
            issuer,
            profile: self.config.profile.clone(),
        })
    }

    fn secret<const LEN: usize>(&self, name: &str) -> Result<Zeroizing<[u8; LEN]>> {
        let path = self.path.join(name);
        let secret = Zeroizing::new(fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?);
        let secret = secret.as_slice().try_into().map(Zeroizing::new);
        secret.with_context(|| format!("{} must have {LEN} bytes", path.display()))
    }

    /// The certificate that everybody pins.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn root(&self) -> Result<CertificateDer<'static>> {
        let path = self.path.join(ROOT);
        CertificateDer::from_pem_file(&path).with_context(|| format!("cannot read {}", path.display()))
    }

    /// The root, as TLS clients take it.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn roots(&self) -> Result<RootCertStore> {
        let mut roots = RootCertStore::empty();
        roots.add(self.root()?)?;
        Ok(roots)
    }

    /// The chain and key of `server`, `worker` or `operator`.
    ///
    /// # Errors
    /// They cannot be read.
    pub fn credentials(&self, holder: &str) -> Result<Credentials> {
        let chain: Vec<_> = CertificateDer::pem_file_iter(self.path.join(format!("{holder}.pem")))
            .and_then(Iterator::collect)
            .with_context(|| format!("cannot read {holder}.pem"))?;
        ensure!(!chain.is_empty(), "{holder}.pem holds no certificate");
        let key = PrivateKeyDer::from_pem_file(self.path.join(format!("{holder}.key")))
            .with_context(|| format!("cannot read {holder}.key"))?;
        Ok(Credentials { chain, key })
    }

    fn read(&self, name: &str) -> Result<String> {
        let path = self.path.join(name);
        fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))
    }
}

fn fill(directory: &Path, name: &str, server_names: &[String]) -> Result<()> {
    let now = OffsetDateTime::now_utc();
    let rng = &mut random();
    let root = Authority::root(name, now, rng)?;
    let issuing = root.issuing(name, now, rng)?;
    let issuing_pem = issuing.to_pem();

    let mut names = vec!["localhost".to_owned(), "127.0.0.1".to_owned(), "::1".to_owned()];
    names.extend_from_slice(server_names);
    let server = issuing.server(&names, now, rng).with_context(|| format!("broker certificate for {names:?}"))?;
    let worker = issuing.worker(now, rng)?;
    let operator = issuing.operator(now, rng)?;

    write_pair(directory, "issuing", &issuing_pem, "")?;
    for (holder, pair) in [("server", server), ("worker", worker), ("operator", operator)] {
        write_pair(directory, holder, &pair, &issuing_pem.certificate)?;
    }
    write_file(&directory.join(TICKET_KEY), TicketKey::generate(rng).secret(), SECRET)?;
    write_file(&directory.join(MASTER_SECRET), MasterSecret::generate(rng).secret(), SECRET)?;
    Store::create(&directory.join(DATABASE))?;
    let config = directory.join(CONFIG);
    if !config.exists() {
        write_file(&config, CONFIG_TEXT.as_bytes(), PUBLIC)?;
    }
    write_pair(directory, "root", &root.to_pem(), "")?;
    give_to_owner(directory)?;
    Ok(File::open(directory)?.sync_all()?)
}

/// What root makes in the directory of a service's user, that user must be able to read.
fn give_to_owner(directory: &Path) -> Result<()> {
    let owner = fs::metadata(directory)?;
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        // Of a symbolic link this is the link's own: what it leads to is not ours to give away.
        if entry.metadata()?.uid() != owner.uid() {
            lchown(entry.path(), Some(owner.uid()), Some(owner.gid()))?;
        }
    }
    Ok(())
}

fn write_pair(directory: &Path, holder: &str, pair: &KeyAndCertificate, issuers: &str) -> Result<()> {
    let chain = format!("{}{issuers}", pair.certificate);
    write_file(&directory.join(format!("{holder}.pem")), chain.as_bytes(), PUBLIC)?;
    write_file(&directory.join(format!("{holder}.key")), pair.key.as_bytes(), SECRET)
}

fn write_file(path: &Path, content: &[u8], mode: u32) -> Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path)?;
    file.write_all(content)?;
    Ok(file.sync_all()?)
}

impl Config {
    fn read(file: &Path) -> Result<Self> {
        let text = fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
        Self::parse(&text).with_context(|| format!("{} is not valid", file.display()))
    }

    fn parse(text: &str) -> Result<Self> {
        let raw: RawConfig = toml::from_str(text)?;
        let RawCertificates { lifetime_days, confirm_within_seconds } = raw.certificates;
        let profile = Profile::new(Duration::days(lifetime_days.into()), Profile::default().backdate());
        let profile = profile.context("certificates.lifetime_days")?;
        let profile = profile.with_confirmation(Duration::seconds(confirm_within_seconds.into()));
        let profile = profile.context("certificates.confirm_within_seconds")?;
        let flows = raw.flows.iter().map(|flow| flow.parse()).collect::<Result<Vec<Flow>, _>>().context("flows")?;
        Ok(Self {
            scope: raw.scope.parse().context("scope")?,
            bootstrap: raw.broker.bootstrap,
            operational: raw.broker.operational,
            profile: profile.with_flows(flows).context("flows")?,
        })
    }
}

/// `assay.toml` as it is written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawConfig {
    scope: String,
    flows: Vec<String>,
    broker: RawBroker,
    certificates: RawCertificates,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawBroker {
    bootstrap: SocketAddr,
    operational: SocketAddr,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawCertificates {
    lifetime_days: u16,
    confirm_within_seconds: u32,
}

impl Default for RawConfig {
    fn default() -> Self {
        Self {
            scope: "default".into(),
            flows: Flow::ALL.iter().map(Flow::to_string).collect(),
            broker: RawBroker::default(),
            certificates: RawCertificates::default(),
        }
    }
}

impl Default for RawBroker {
    fn default() -> Self {
        let everywhere = |port| SocketAddr::from((Ipv4Addr::UNSPECIFIED, port));
        Self { bootstrap: everywhere(8883), operational: everywhere(8884) }
    }
}

impl Default for RawCertificates {
    fn default() -> Self {
        Self { lifetime_days: 90, confirm_within_seconds: 600 }
    }
}

const CONFIG: &str = "assay.toml";
const ROOT: &str = "root.pem";
const DATABASE: &str = "assay.db";
const TICKET_KEY: &str = "ticket.key";
const MASTER_SECRET: &str = "master.key";
const SECRET: u32 = 0o600;
const PUBLIC: u32 = 0o644;
/// What `assay init` writes: every setting with its default.
const CONFIG_TEXT: &str = include_str!("assay.toml");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_written_configuration_is_the_default() {
        let written = Config::parse(CONFIG_TEXT).unwrap();
        let default = Config::parse("").unwrap();
        assert_eq!(format!("{written:?}"), format!("{default:?}"));
    }

    #[test]
    fn unknown_settings_and_bad_values_are_refused() {
        for text in [
            "scoop = \"x\"",
            "scope = \"A\"",
            "flows = []",
            "flows = [\"tickets\"]",
            "[broker]\nbootstrap = \"here\"",
            "[certificates]\nlifetime_days = 0",
            "[certificates]\nconfirm_within_seconds = 0",
        ] {
            assert!(Config::parse(text).is_err(), "{text}");
        }
    }
}

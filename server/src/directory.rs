//! The CA's directory: keys, certificates, configuration and database, as `assay init` makes it.

use std::fmt::Display;
use std::fs::{self, DirEntry, File, Permissions};
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail, ensure};
use assay_ca_core::{
    Authority, ConfigurationSigner, FirstRoot, Flaws, Groups, Issuer, IssuerError, Issuers,
    IssuersError, KeyAndCertificate, LEAF_LIFETIME, MasterSecret, Overlapping, Profile, TicketKey,
    issuing_request, new_ca_key, service_request,
};
use assay_pkcs11::{Tokens, parse_uris};
use assay_wire::{DeviceId, Flow, Rights, Scope};
use ipnet::IpNet;
use rcgen::KeyPair;
use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use serde::Deserialize;
use sha2::{Digest, Sha256};
use time::{Duration, OffsetDateTime};
use zeroize::Zeroizing;

use crate::backup_file::is_plain;
use crate::ca::Ca;
use crate::dated;
use crate::expiry::ends_of;
use crate::flaws;
use crate::hook::Hook;
use crate::issuing_files::{self, Files, IssuingName, PENDING, URIS};
use crate::issuing_keys::{KeptKey, MadeIssuing, TokenPlace};
use crate::new_files::{NewFiles, PUBLIC, SECRET, certificate_of, ours, pem_of};
use crate::operator;
use crate::random::random;
use crate::root_files::{self, Root};
use crate::shared_secrets::{KeptSecret, SECRET_LEN, Shared, SharedSecret};
use crate::staging::Staging;
use assay_broker_plugin::embedded::{Balancers, Limits};
use assay_store::sqlite::Sqlite;
use assay_store::{Database, Deed, IdentityRole, NewIdentity, PostgresSettings, Retention, Store};

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
    /// Where provisioned devices, operators, workers and backends connect.
    pub operational: SocketAddr,
    /// How much the built-in broker holds at once.
    pub limits: Limits,
    /// Where HTTP is answered, if at all.
    pub http: Option<HttpAddress>,
    /// Who passes connections on to the built-in broker, and says where they come from.
    pub balancers: Balancers,
    /// What certificates look like, and which flows lead to one.
    pub profile: Profile,
    /// How long rows that nobody needs any more are kept.
    pub retention: Retention,
    /// The PostgreSQL with the CA's record; `None` if the record is in a file.
    postgres: Option<PostgresAddress>,
    /// The operator's own service, which is asked about each device.
    hook: Option<HookAddress>,
}

/// A service; files are in the CA's directory unless they have a path of their own.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct HookAddress {
    url: String,
    ca: PathBuf,
    secret_file: PathBuf,
}

/// Where HTTP is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HttpAddress {
    address: SocketAddr,
    tls: bool,
}

impl HttpAddress {
    /// With TLS, or without it on the loopback interface.
    ///
    /// # Errors
    /// Others could read and change what is said, because there is no TLS.
    pub fn new(address: SocketAddr, tls: bool) -> Result<Self> {
        ensure!(
            tls || address.ip().to_canonical().is_loopback(),
            "{address} can be reached from other machines, so HTTP needs TLS there: remove `tls = \
             false`, or listen on 127.0.0.1 or [::1]"
        );
        Ok(Self { address, tls })
    }

    /// The address, and whether TLS is spoken there.
    pub fn get(self) -> (SocketAddr, bool) {
        (self.address, self.tls)
    }
}

/// A PostgreSQL; files are in the CA's directory unless they have a path of their own.
#[derive(Clone, Debug)]
struct PostgresAddress {
    url: String,
    ca: Option<PathBuf>,
    password_file: Option<PathBuf>,
}

/// A certificate chain, leaf first and without the root, and its key.
pub struct Credentials {
    /// In DER.
    pub chain: Vec<CertificateDer<'static>>,
    /// In DER.
    pub key: PrivateKeyDer<'static>,
}

impl Directory {
    /// Makes a CA: root, issuing and service CA, ticket key, master secret, broker, worker and
    /// operator certificates, configuration, database.
    ///
    /// The directory may exist if it is empty, or holds only an `assay.toml`, which is kept. The
    /// directory's owner owns the files that are made. If another user makes the CA, nobody except
    /// that user may have write access to the directories above it. The database appears last and
    /// as a whole, so a half-made CA is never opened.
    ///
    /// # Errors
    /// Something else is in the directory, its `assay.toml` is not valid, or it cannot be written.
    pub fn create(path: &Path, name: &str, server_names: &[String]) -> Result<()> {
        Self::create_with(path, name, server_names, None)
    }

    /// The same with the issuing CA's key in a token.
    ///
    /// # Errors
    /// As for [`create`](Self::create), or the token failed.
    pub fn create_with(
        path: &Path,
        name: &str,
        server_names: &[String],
        issuing_key: Option<TokenPlace>,
    ) -> Result<()> {
        check_server_names(server_names)?;
        empty_directory(path, |new, settings| new.fill(name, server_names, issuing_key, settings))
    }

    /// Begins a CA whose root is on another machine: makes the keys of the issuing CA and of the
    /// service CA, and returns the requests for their certificates, in PEM. The CA is opened by
    /// nobody before [`finish`](Self::finish).
    ///
    /// # Errors
    /// As for [`create_with`](Self::create_with).
    pub fn begin(
        path: &Path,
        name: &str,
        root: &FirstRoot,
        issuing_key: Option<TokenPlace>,
    ) -> Result<String> {
        empty_directory(path, |new, settings| new.begin(name, root, issuing_key, &settings))
    }

    /// Finishes a CA that was begun, with the certificates that its root made for the requests. It
    /// may be cut short at any point, and run again.
    ///
    /// # Errors
    /// No CA was begun there, the certificates are for other keys, of another root, or for
    /// something else than was asked for, or the files cannot be written.
    pub fn finish(
        path: &Path,
        certificates: &[CertificateDer<'static>],
        server_names: &[String],
    ) -> Result<()> {
        check_server_names(server_names)?;
        begun_directory(path, |new| new.finish_with(certificates, server_names))
    }

    /// The name of the settings.
    pub(crate) const SETTINGS: &str = CONFIG;
    /// The name of the database, if it is a file.
    pub(crate) const RECORD: &str = DATABASE;
    /// The name of the file with the ticket key.
    pub(crate) const TICKET_KEY: &str = TICKET_KEY;
    /// The name of the file with the master secret.
    pub(crate) const MASTER_SECRET: &str = MASTER_SECRET;

    /// The files of this CA that are there, except for the database, by the name that a copy of the
    /// directory gives them.
    ///
    /// # Errors
    /// The settings name a file in this directory by a name that no other directory may have.
    pub fn files(&self) -> Result<Vec<(String, PathBuf)>> {
        let mut names = self.own_files()?;
        let store = self.config.postgres.iter().flat_map(|it| [&it.ca, &it.password_file]);
        let hook = self.config.hook.iter().flat_map(|it| [&it.ca, &it.secret_file]);
        for (section, file) in
            store.flatten().map(|it| ("store", it)).chain(hook.map(|it| ("hook", it)))
        {
            // One elsewhere stays there.
            if file.is_relative() {
                let name = file.to_str().filter(|name| is_plain(name)).with_context(|| {
                    format!(
                        "[{section}] names {}; put it into the directory itself",
                        file.display()
                    )
                })?;
                if !names.iter().any(|known| known == name) {
                    names.push(name.to_owned());
                }
            }
        }
        let files = names.into_iter().map(|name| (self.path.join(&name), name));
        Ok(files.filter(|(path, _)| path.exists()).map(|(path, name)| (name, path)).collect())
    }

    /// The certificates among [`files`](Self::files), and when each ends.
    ///
    /// # Errors
    /// As for that.
    pub(crate) fn certificates(&self) -> Result<Vec<(String, OffsetDateTime)>> {
        let files = self.files()?.into_iter().filter(|(name, _)| name.ends_with(".pem"));
        let ends = files.filter_map(|(name, path)| {
            let certificate = CertificateDer::from_pem_file(&path).ok()?;
            Some((name, ends_of(&certificate)?))
        });
        Ok(ends.collect())
    }

    /// Whether a file of this name and `.key` is one of the CA's own, or would be taken for one.
    pub(crate) fn has_key_of(holder: &str) -> bool {
        let is_dated = |stem| dated::parse(stem, holder).is_some();
        FILES.contains(&&*format!("{holder}.key"))
            || holder == PENDING
            || IssuingName::parse(holder).is_some()
            || DATED.into_iter().any(is_dated)
    }

    /// The names that the CA's own files have, except for the database; of what has a date, only the
    /// files that are there.
    fn own_files(&self) -> Result<Vec<String>> {
        let cannot_read = || format!("cannot read {}", self.path.display());
        let with_key = issuing_files::with_key(&self.path).with_context(cannot_read)?;
        let in_token = issuing_files::in_token(&self.path).with_context(cannot_read)?;
        let names = FILES.into_iter().map(str::to_owned);
        let names = names.chain(["key", "pkcs11", "csr"].map(|kind| format!("{PENDING}.{kind}")));
        let names = names.chain(self.issuing_names()?.into_iter().map(IssuingName::certificate));
        let names = names.chain(in_token.into_iter().map(IssuingName::uris));
        let mut names: Vec<_> = names.chain(with_key.into_iter().map(IssuingName::key)).collect();
        for stem in DATED {
            for kind in [".key", ".key.age", ".pkcs11", ".cross.pem", ".pem"] {
                let dated = self.dated(stem, kind)?.into_iter().flatten();
                names.extend(dated.map(|from| dated::name(stem, Some(from)) + kind));
            }
        }
        Ok(names)
    }

    /// The CAs that sign device certificates.
    ///
    /// # Errors
    /// One of them cannot be read, or they do not go together; see [`Issuers::new`].
    pub fn issuers(&self) -> Result<Issuers> {
        self.issuers_with(None, &mut Tokens::default())
    }

    /// The same with one more, which is used from its time on.
    pub(crate) fn issuers_with(
        &self,
        another: Option<(OffsetDateTime, Issuer)>,
        // Keys in the same token share a process and a login.
        tokens: &mut Tokens,
    ) -> Result<Issuers> {
        let mut read = |name: &IssuingName| {
            let issuer = self.issuer_called(*name, tokens)?;
            let above = self.above(issuer.certificate())?;
            Ok((name.used_from(), issuer.below(above)?))
        };
        let mut all = self.issuing_names()?.iter().map(&mut read).collect::<Result<Vec<_>>>()?;
        all.extend(another.map(|(from, issuer)| (Some(from), issuer)));
        let issuers = Issuers::new(all, &self.pinned()?, OffsetDateTime::now_utc());
        issuers.map_err(|error| match error {
            IssuersError::Unusable { from, error } => anyhow!(error)
                .context(format!("{} and {ROOT}", IssuingName::of(from).certificate())),
            error => error.into(),
        })
    }

    /// The names of the issuing CAs, in the order of their times.
    pub(crate) fn issuing_names(&self) -> Result<Vec<IssuingName>> {
        issuing_files::certified(&self.path)
            .with_context(|| format!("cannot read {}", self.path.display()))
    }

    /// An issuing CA as it is in its files. Does not establish that a root vouches for it, nor asks
    /// a token.
    pub(crate) fn issuer_called(&self, name: IssuingName, tokens: &mut Tokens) -> Result<Issuer> {
        let certificate = self.read(&name.certificate())?;
        let kept = KeptKey::read(&Files::open(&self.path)?, &name.to_string())?
            .with_context(|| format!("cannot read {}: it is missing", name.key()))?;
        let file = kept.file(&name.to_string());
        kept.issuer(&certificate, tokens)
            .with_context(|| format!("{} and {file}", name.certificate()))
    }

    /// The roots to which the CA's own certificates may lead.
    pub(crate) fn pinned(&self) -> Result<Vec<CertificateDer<'static>>> {
        Ok(self.all_roots()?.into_iter().map(|root| root.certificate).collect())
    }

    /// The service CAs' certificates, as far as they are in this directory: serving does not need
    /// them.
    pub(crate) fn service_certificates(&self) -> Result<Vec<CertificateDer<'static>>> {
        let read = |name: &String| {
            let path = self.path.join(format!("{name}.pem"));
            CertificateDer::from_pem_file(&path)
                .with_context(|| format!("cannot read {}", path.display()))
        };
        self.services()?.iter().map(read).collect()
    }

    /// What relying parties may trust, in PEM: the roots, all issuing CAs, also those to come, and
    /// the service CAs.
    fn published(&self, issuers: &Issuers) -> Result<String> {
        let issuing = issuers.all().iter().map(|it| it.issuer.certificate().clone());
        let all = self.pinned()?.into_iter().chain(issuing).chain(self.service_certificates()?);
        Ok(all.map(|certificate| pem_of("CERTIFICATE", &certificate)).collect())
    }

    /// The roots, the oldest first: one, or two while they overlap.
    ///
    /// # Errors
    /// They cannot be read, or the old one does not vouch for the new one.
    pub(crate) fn all_roots(&self) -> Result<Vec<Root>> {
        root_files::read(&self.path)
    }

    /// What comes after this certificate in a chain, so that whoever trusts the old root alone can
    /// verify it: nothing, or the certificate by which the old root vouches for the new one.
    fn above(&self, certificate: &[u8]) -> Result<Option<CertificateDer<'static>>> {
        let roots = self.all_roots()?;
        let root = roots.into_iter().find(|root| root.is_named_by(certificate));
        Ok(root.and_then(|root| root.cross))
    }

    /// The files of CAs in this directory that lead to this root.
    pub(crate) fn below(&self, root: &Root) -> Result<Vec<String>> {
        let issuing = self.issuing_names()?.into_iter().map(IssuingName::certificate);
        let service = self.services()?.into_iter().map(|name| format!("{name}.pem"));
        let mut files = Vec::new();
        for file in issuing.chain(service) {
            let certificate = CertificateDer::from_pem_slice(self.read(&file)?.as_bytes())
                .with_context(|| file.clone())?;
            if root.is_named_by(&certificate) {
                files.push(file);
            }
        }
        Ok(files)
    }

    /// The newest root whose key is in this directory or in `root_key`, to certify CAs with.
    ///
    /// # Errors
    /// There is none.
    pub(crate) fn root_authority(&self, root_key: Option<&Path>) -> Result<Authority> {
        let roots = self.all_roots()?;
        for root in roots.iter().rev() {
            let own = self.path.join(format!("{}.key", root.name()));
            let file = root_key.unwrap_or(&own);
            let text = match fs::read_to_string(file) {
                Ok(text) => Zeroizing::new(text),
                Err(error) if error.kind() == io::ErrorKind::NotFound && root_key.is_none() => {
                    continue;
                }
                Err(error) => {
                    return Err(error).with_context(|| format!("cannot read {}", file.display()));
                }
            };
            let pem = pem_of("CERTIFICATE", &root.certificate);
            if Issuer::from_pem(&pem, &text).is_ok() {
                return Ok(Authority::from_pem(&pem, &text)?);
            }
        }
        match root_key {
            Some(file) => bail!("{} is not the key of a root of this directory", file.display()),
            None => bail!(
                "no root's key is in {} in clear; say --root-key FILE, or use `assay issuing csr` \
                 here and `assay root sign` where the key is",
                self.path.display()
            ),
        }
    }

    /// The names of the service CAs' files, the oldest first. The last one certifies.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub(crate) fn services(&self) -> Result<Vec<String>> {
        let found = self.dated(SERVICE, ".pem")?;
        Ok(found.into_iter().map(|from| dated::name(SERVICE, from)).collect())
    }

    /// The CAs that sign the certificates of brokers, workers and operators, the oldest first. One
    /// that has ended is among them if its key is still here.
    ///
    /// # Errors
    /// One that has not ended cannot be read.
    pub fn service_issuers(&self, now: OffsetDateTime) -> Result<Vec<Issuer>> {
        let mut issuers = Vec::new();
        for name in self.services()? {
            let certificate = self.read(&format!("{name}.pem"))?;
            let key = self.read(&format!("{name}.key")).map(Zeroizing::new);
            let issuer = key.and_then(|key| self.issuer_of(&name, &certificate, &key));
            match issuer {
                Ok(issuer) => issuers.push(issuer),
                // It signs nothing any more, so its key need not be here.
                Err(_) if has_ended(&certificate, now) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(issuers)
    }

    /// Opens a directory that `create` made.
    ///
    /// # Errors
    /// It has no readable, valid `assay.toml`, or no CA was made in it.
    pub fn open(path: &Path) -> Result<Self> {
        let config = Config::read(path)?;
        let shown = path.display();
        ensure!(
            !path.join(REQUESTS).exists(),
            "the CA in {shown} waits for the certificates of its requests, {REQUESTS}: `assay root \
             sign` makes them where the root is, and `assay init {shown} --certificates FILE` \
             takes them"
        );
        ensure!(
            path.join(ROOT).exists(),
            "{shown} holds no CA yet, only its settings; run `assay init {shown}`"
        );
        Ok(Self { path: path.to_owned(), config })
    }

    /// The same directory, as its `assay.toml` is now.
    ///
    /// # Errors
    /// As for [`open`](Self::open).
    pub fn reopen(&self) -> Result<Self> {
        Self::open(&self.path)
    }

    /// As if `assay.toml` named this scope.
    pub fn with_scope(mut self, scope: Scope) -> Self {
        self.config.scope = scope;
        self
    }

    /// What `assay.toml` says.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The PostgreSQL that `assay.toml` names, if it names one.
    ///
    /// # Errors
    /// It cannot be used: see [`PostgresSettings::new`].
    pub fn postgres(&self) -> Result<Option<Database>> {
        let Some(PostgresAddress { url, ca, password_file }) = &self.config.postgres else {
            return Ok(None);
        };
        let [ca, password] =
            [ca, password_file].map(|file| file.as_ref().map(|file| self.path.join(file)));
        let settings = PostgresSettings::new(url, ca.as_deref(), password.as_deref());
        Ok(Some(Database::Postgres(settings.context("[store] of assay.toml")?)))
    }

    /// Whether the settings name a PostgreSQL. Reads nothing that they name.
    pub(crate) fn is_in_postgres(&self) -> bool {
        self.config.postgres.is_some()
    }

    /// The path of the database, if it is a file. The file need not exist.
    pub fn file(&self) -> PathBuf {
        self.path.join(DATABASE)
    }

    /// The database with the CA's record.
    ///
    /// # Errors
    /// It is a file that is missing, because the CA was never made to the end; or a PostgreSQL that
    /// cannot be used.
    pub fn database(&self) -> Result<Database> {
        if let Some(postgres) = self.postgres()? {
            return Ok(postgres);
        }
        let path = self.file();
        ensure!(
            path.exists(),
            "{} is missing: the CA is half made, or this is only a copy of some of its files. \
             `assay init` makes one in a directory that is empty except for assay.toml",
            path.display()
        );
        Ok(Database::Sqlite(path))
    }

    /// Opens the database.
    ///
    /// # Errors
    /// It cannot be opened.
    pub fn store(&self) -> Result<Box<dyn Store>> {
        let database = self.database()?;
        let mut store =
            database.open().with_context(|| format!("cannot open {}", database.shown()))?;
        store.act_as(operator::actor(OffsetDateTime::now_utc()));
        Ok(store)
    }

    /// Puts into the audit what an operator did to files of the CA.
    ///
    /// # Errors
    /// It is done, but the store cannot be written.
    pub fn note(&self, action: &'static str, detail: impl Display) -> Result<()> {
        let deed = Deed::of_ca(action, detail.to_string());
        self.store()
            .and_then(|mut store| Ok(store.note(deed)?))
            .with_context(|| format!("{action} is done ({detail}), but is not in the audit"))
    }

    /// What the worker decides and signs with.
    ///
    /// # Errors
    /// A key or certificate cannot be read, or they do not belong together.
    pub fn ca(&self) -> Result<Ca> {
        let mut tokens = Tokens::default();
        let issuers = self.issuers_with(None, &mut tokens)?;
        Ok(Ca {
            certificates: self.published(&issuers)?,
            scope: self.config.scope.clone(),
            ticket_keys: self.shared(SharedSecret::Ticket, &mut tokens, TicketKey::new)?,
            masters: self.shared(SharedSecret::Master, &mut tokens, MasterSecret::new)?,
            new_root: self.new_root()?,
            issuers,
            profile: self.config.profile.clone(),
            // Without it a CA serves all the same, and says so once there is a document.
            documents: self.credentials("worker").ok().and_then(|worker| {
                ConfigurationSigner::new(&worker.chain, worker.key.secret_der()).ok()
            }),
            flaws: self.flaws()?,
            hook: self.hook()?,
        })
    }

    /// Firmware with known flaws: what this version knows, and what the file `flaws.toml` says.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn flaws(&self) -> Result<Flaws> {
        let file = self.path.join(FLAWS);
        let more = match fs::read_to_string(&file) {
            Ok(text) => Some(text),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => {
                return Err(error).with_context(|| format!("cannot read {}", file.display()));
            }
        };
        flaws::read(more.as_deref()).with_context(|| file.display().to_string())
    }

    /// The service that `assay.toml` names, if it names one.
    fn hook(&self) -> Result<Option<Hook>> {
        let Some(HookAddress { url, ca, secret_file }) = &self.config.hook else {
            return Ok(None);
        };
        let [ca, secret] = [ca, secret_file].map(|file| self.path.join(file));
        let hook = self.credentials("worker").and_then(|it| Hook::new(url, &ca, &secret, &it));
        Ok(Some(hook.context("[hook] of assay.toml")?))
    }

    /// The certificate by which the root vouches for a new one, for devices.
    fn new_root(&self) -> Result<Option<assay_wire::CertificateDer>> {
        let cross = self.all_roots()?.into_iter().find_map(|root| root.cross);
        let fitting = |cross: CertificateDer<'_>| cross.to_vec().try_into();
        Ok(cross.map(fitting).transpose()?)
    }

    /// Signs the lists of identities' certificates that are no longer good, one for each service
    /// CA that is valid: whoever verifies a certificate needs the list of the CA that signed it.
    /// Each names them all, because a serial number stands for one certificate.
    ///
    /// # Errors
    /// A service CA that has not ended cannot be read, or the store.
    pub fn service_revocation_lists(&self, now: OffsetDateTime) -> Result<Vec<Vec<u8>>> {
        let (issuers, mut store) = (self.service_issuers(now)?, self.store()?);
        let (number, revoked) = (store.next_revocation_list()?, store.revoked_identities(now)?);
        let list = |issuer: &Issuer| issuer.revocation_list(revoked.clone(), number, now);
        let valid = issuers.iter().filter(|issuer| issuer.not_after() >= now);
        Ok(valid.map(list).collect::<Result<_, _>>()?)
    }

    fn pair(&self, name: &str) -> Result<(String, Zeroizing<String>)> {
        Ok((self.read(&format!("{name}.pem"))?, Zeroizing::new(self.read(&format!("{name}.key"))?)))
    }

    fn issuer_of(&self, name: &str, certificate: &str, key: &str) -> Result<Issuer> {
        let issuer = Issuer::from_pem(certificate, key);
        let issuer = issuer.with_context(|| format!("{name}.pem and {name}.key"))?;
        issuer.under(&self.pinned()?).with_context(|| format!("{name}.pem and {ROOT}"))
    }

    /// Files with secrets that every user of this machine can read: the CA's own, and those with
    /// the PINs of tokens.
    pub fn exposed(&self) -> Vec<PathBuf> {
        let mode =
            |path: &Path| fs::metadata(path).map_or(0, |metadata| metadata.permissions().mode());
        // Nobody can read files in a directory that they may not search.
        let is_open = |file: &PathBuf| {
            mode(file) & 0o004 != 0 && file.parent().is_none_or(|above| mode(above) & 0o001 != 0)
        };
        // If it cannot be read, whoever wants the keys says so.
        let own = self.own_files().unwrap_or_default().into_iter();
        let secrets = own.filter(|name| !is_public(name));
        let names = secrets.chain(DATABASES.into_iter().map(str::to_owned));
        let files = names.map(|name| self.path.join(name));
        files.chain(self.pin_files()).filter(is_open).collect()
    }

    /// The files with the PINs of the tokens in which keys of this CA are.
    fn pin_files(&self) -> Vec<PathBuf> {
        let named = issuing_files::in_token(&self.path).unwrap_or_default();
        let read = |name: IssuingName| self.read(&name.uris()).ok();
        let uris = named.into_iter().filter_map(read).filter_map(|it| parse_uris(&it).ok());
        let files = uris.flatten().filter_map(|uri| uri.pin_file().map(Path::to_owned));
        files.collect()
    }

    /// The secret of this kind, and the one beside it if there is one.
    fn shared<K>(
        &self,
        kind: SharedSecret,
        tokens: &mut Tokens,
        new: fn([u8; SECRET_LEN]) -> K,
    ) -> Result<Shared<K>> {
        let kept = self.beside(kind, self.next_secret(kind)?)?;
        Ok(Shared::new(kind, kept, tokens, new))
    }

    /// The same, if the directory had a second one from `next` on when it was last looked at.
    pub(crate) fn beside(
        &self,
        kind: SharedSecret,
        next: Option<OffsetDateTime>,
    ) -> Result<Overlapping<KeptSecret>> {
        let read = |from| KeptSecret::read(&self.path.join(kind.file(from)));
        let next = match next {
            Some(from) => match read(Some(from)) {
                // It has taken the file name of the one before since then (`assay keys retire`).
                Err(_) if self.next_secret(kind)?.is_none() => None,
                next => Some((from, next?)),
            },
            None => None,
        };
        Ok(Overlapping::new(read(None)?, next))
    }

    /// From when on the second secret of this kind is used, if there are two: the next one, or the one
    /// in use beside the one before.
    ///
    /// # Errors
    /// The directory cannot be read, or there are more than two of them: nobody knows then what
    /// still needs which.
    pub(crate) fn next_secret(&self, kind: SharedSecret) -> Result<Option<OffsetDateTime>> {
        let dated: Vec<_> = self.dated(kind.stem(), ".key")?.into_iter().flatten().collect();
        ensure!(
            dated.len() <= 1,
            "{} holds {} files {stem}-*.key, and at most one may be beside {stem}.key; remove all \
             but the one that the other workers have",
            self.path.display(),
            dated.len(),
            stem = kind.stem()
        );
        Ok(dated.first().copied())
    }

    /// From when on the files of this stem and kind are used.
    pub(crate) fn dated(&self, stem: &str, kind: &str) -> Result<Vec<Option<OffsetDateTime>>> {
        let cannot_read = || format!("cannot read {}", self.path.display());
        dated::files(&self.path, stem, kind).with_context(cannot_read)
    }

    /// The roots, as whoever verifies in TLS takes them.
    ///
    /// # Errors
    /// They cannot be read.
    pub fn roots(&self) -> Result<RootCertStore> {
        let mut roots = RootCertStore::empty();
        for root in self.pinned()? {
            roots.add(root)?;
        }
        Ok(roots)
    }

    /// The chain and key of `server`, `worker` or `operator`.
    ///
    /// # Errors
    /// They cannot be read.
    pub fn credentials(&self, holder: &str) -> Result<Credentials> {
        let [certificate, key] =
            ["pem", "key"].map(|kind| self.path.join(format!("{holder}.{kind}")));
        let chain: Vec<_> = CertificateDer::pem_file_iter(&certificate)
            .and_then(Iterator::collect)
            .with_context(|| format!("cannot read {}", certificate.display()))?;
        ensure!(!chain.is_empty(), "{} holds no certificate", certificate.display());
        let key = PrivateKeyDer::from_pem_file(&key)
            .with_context(|| format!("cannot read {}", key.display()))?;
        Ok(Credentials { chain, key })
    }

    /// Certificates for devices that do not exist, to try a broker with. Each is valid for ten
    /// minutes from its time in `from`; see [`Issuer::throw_away_device`]. They are not on
    /// record yet.
    ///
    /// # Errors
    /// The issuing key cannot be read.
    pub fn throw_away_devices<const N: usize>(
        &self,
        from: [OffsetDateTime; N],
    ) -> Result<[ThrowAwayDevice; N]> {
        let issuers = self.issuers()?;
        let scheduled = issuers.in_use(OffsetDateTime::now_utc());
        let issuing = self.chain_of(&self.read(&IssuingName::of(scheduled.from).certificate())?)?;
        let scope = &self.config.scope;
        let devices = from.map(|from| {
            let (id, pair) = scheduled.issuer.throw_away_device(scope, from, &mut random())?;
            Ok(ThrowAwayDevice { id, credentials: Credentials::from_pem(&pair, &issuing)? })
        });
        let devices = devices.into_iter().collect::<Result<Vec<_>>>()?;
        devices.try_into().map_err(|_| anyhow!("there are not as many as there were"))
    }

    /// The newest service CA, to certify identities with, and what comes after a certificate of it
    /// in a chain, in PEM.
    ///
    /// # Errors
    /// Its key cannot be read, or does not belong to its certificate.
    pub(crate) fn service_authority(&self) -> Result<(Authority, String)> {
        self.authority(self.services()?.last().context("there is no service CA")?)
    }

    /// The directory's path.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// A CA of this directory, to certify with, and its certificate and what comes after it in a
    /// chain, in PEM.
    fn authority(&self, name: &str) -> Result<(Authority, String)> {
        let (certificate, key) = self.pair(name)?;
        // This checks that the two belong together.
        self.issuer_of(name, &certificate, &key)?
            .valid_at(OffsetDateTime::now_utc())
            .with_context(|| format!("{name}.pem"))?;
        Ok((Authority::from_pem(&certificate, &key)?, self.chain_of(&certificate)?))
    }

    /// The certificate of a CA and what comes after it in a chain, in PEM.
    fn chain_of(&self, certificate: &str) -> Result<String> {
        let own = CertificateDer::from_pem_slice(certificate.as_bytes())?;
        let above = self.above(&own)?.map(|above| pem_of("CERTIFICATE", &above));
        Ok(certificate.to_owned() + above.as_deref().unwrap_or_default())
    }

    /// Which of the directory's own files, `server`, `worker` or `operator`, holds the certificate
    /// with this SHA-256 digest, if any.
    pub fn holder_of(&self, sha256: &[u8; 32]) -> Option<&'static str> {
        let is_it = |holder: &&str| {
            // A file that is missing belongs to nobody.
            let own = self.credentials(holder).ok().and_then(|own| own.chain.into_iter().next());
            own.is_some_and(|own| Sha256::digest(own).as_slice() == sha256)
        };
        ["server", "worker", "operator"].into_iter().find(is_it)
    }

    fn read(&self, name: &str) -> Result<String> {
        let path = self.path.join(name);
        fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))
    }
}

/// A device that does not exist, and its certificate.
pub struct ThrowAwayDevice {
    /// Its id, which begins with [`THROW_AWAY_PREFIX`](assay_ca_core::THROW_AWAY_PREFIX).
    pub id: DeviceId,
    /// What it shows.
    pub credentials: Credentials,
}

impl Clone for Credentials {
    fn clone(&self) -> Self {
        Self { chain: self.chain.clone(), key: self.key.clone_key() }
    }
}

impl Credentials {
    /// The certificate of a worker that another CA made, which nobody should accept as one of ours.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn of_another_ca() -> Result<Self> {
        let (now, rng) = (OffsetDateTime::now_utc(), &mut random());
        let service = Authority::root("another CA", now, rng)?.service("another CA", now, rng)?;
        Self::from_pem(&service.worker(LEAF_LIFETIME, now, rng)?, &service.to_pem().certificate)
    }

    fn from_pem(pair: &KeyAndCertificate, issuers: &str) -> Result<Self> {
        let chain = format!("{}{issuers}", pair.certificate);
        let chain = CertificateDer::pem_slice_iter(chain.as_bytes()).collect::<Result<_, _>>()?;
        Ok(Self { chain, key: PrivateKeyDer::from_pem_slice(pair.key.as_bytes())? })
    }
}

/// Whether this certificate was valid until a time that is past.
fn has_ended(pem: &str, now: OffsetDateTime) -> bool {
    let der = CertificateDer::from_pem_slice(pem.as_bytes());
    der.is_ok_and(|der| ends_of(&der).is_some_and(|ends| ends < now))
}

/// Whether everybody may read a file of this name.
fn is_public(name: &str) -> bool {
    [CONFIG, FLAWS].contains(&name)
        || [".pem", ".csr", URIS].iter().any(|kind| name.ends_with(kind))
}

/// The settings that somebody has put into a directory in which a CA is to be made; `shown` is its
/// path as the caller gave it.
fn settings_in(directory: &Path, shown: &Path) -> Result<Option<Config>> {
    let shown = shown.display();
    let entries =
        fs::read_dir(directory).and_then(|entries| entries.collect::<io::Result<Vec<_>>>());
    let entries = entries.with_context(|| format!("cannot read {shown}"))?;
    let names: Vec<_> = entries.iter().map(DirEntry::file_name).collect();
    match &names[..] {
        [] => Ok(None),
        [name] if name == CONFIG => {
            Config::read(directory).with_context(|| format!("in {shown}")).map(Some)
        }
        names if names.iter().any(|name| name == DATABASE) => {
            bail!("{shown} holds a CA, which is never overwritten. Choose another directory")
        }
        _ => bail!(
            "{shown} is not empty. Empty it (assay.toml may stay), or choose another directory"
        ),
    }
}

fn check_server_names(names: &[String]) -> Result<()> {
    for name in names {
        ServerName::try_from(name.as_str())
            .with_context(|| format!("{name:?} is not a server name"))?;
    }
    Ok(())
}

/// Has `work` make a CA in a directory that is empty, or holds only an `assay.toml`, and is made if
/// it is not there.
pub(crate) fn empty_directory<T>(
    path: &Path,
    work: impl FnOnce(&NewFiles<'_>, Option<Config>) -> Result<T>,
) -> Result<T> {
    let cannot_make = || format!("cannot make {}", path.display());
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path).with_context(cannot_make)?;
    // From now on this is the same directory, even if the owner of a directory above puts another
    // in its place.
    let held = File::open(path).with_context(cannot_make)?;
    ensure!(held.try_lock().is_ok(), "another command makes a CA in {}", path.display());
    let directory = PathBuf::from(format!("/proc/self/fd/{}", held.as_raw_fd()));
    let new = NewFiles::of(&directory).with_context(cannot_make)?;
    new.check_owner(path)?;
    Staging::remove(&directory).with_context(cannot_make)?;
    let settings = settings_in(&directory, path)?;
    fs::set_permissions(&directory, Permissions::from_mode(0o700)).with_context(cannot_make)?;
    work(&new, settings).map_err(|error| match is_begun(&directory) {
        false => error,
        true => error.context(format!(
            "{} is half made; empty it (assay.toml may stay) and try again",
            path.display()
        )),
    })
}

/// Has `work` finish a CA that was begun in a directory.
fn begun_directory<T>(path: &Path, work: impl FnOnce(&NewFiles<'_>) -> Result<T>) -> Result<T> {
    let shown = path.display();
    let held = File::open(path).with_context(|| format!("cannot open {shown}"))?;
    ensure!(held.try_lock().is_ok(), "another command makes a CA in {shown}");
    let directory = PathBuf::from(format!("/proc/self/fd/{}", held.as_raw_fd()));
    ensure!(
        directory.join(REQUESTS).exists(),
        "no CA waits for certificates in {shown}; `assay init {shown} --root ROOT.pem` begins one"
    );
    let new = NewFiles::of(&directory)?;
    new.check_owner(path)?;
    work(&new)
}

/// Whether there is anything of a CA but its settings.
fn is_begun(directory: &Path) -> bool {
    let names = fs::read_dir(directory).into_iter().flatten().flatten();
    names.into_iter().any(|entry| entry.file_name() != CONFIG)
}

impl NewFiles<'_> {
    /// The directory's owner owns the CA. Root may make a CA for the user of a service, but not for
    /// a user who put a directory of their own where root was going to make one.
    fn check_owner(&self, path: &Path) -> Result<()> {
        let ((owner, _), (maker, _)) = (self.owner, ours()?);
        if owner == maker {
            return Ok(());
        }
        let (given, real) = (std::path::absolute(path)?, fs::canonicalize(self.directory)?);
        let shown = path.display();
        // The owner of a link decides where it leads.
        ensure!(
            given == real,
            "{shown} is {}, which belongs to user {owner}, who would own the CA; give that path \
             instead",
            real.display()
        );
        for above in real.ancestors().skip(1) {
            let metadata = fs::metadata(above)?;
            // In a sticky directory such as /tmp, everybody can make one.
            ensure!(
                metadata.uid() == maker && metadata.mode() & 0o022 == 0,
                "{shown} belongs to user {owner}, who would own the CA, and other users can also \
                 put directories into {}. Make the directory where only you can make one, or run \
                 assay init as its owner",
                above.display()
            );
        }
        Ok(())
    }

    fn fill(
        &self,
        name: &str,
        server_names: &[String],
        issuing_key: Option<TokenPlace>,
        settings: Option<Config>,
    ) -> Result<()> {
        let now = OffsetDateTime::now_utc();
        let rng = &mut random();
        let root = Authority::root(name, now, rng)?;
        // First, because a token may fail: then nothing is made yet.
        let issuing = match issuing_key {
            None => MadeIssuing::in_file(&root.issuing(name, now, rng)?.to_pem())?,
            Some(place) => MadeIssuing::in_token(place, now, |key| {
                Ok(root.issuing_for(&format!("{name} Issuing CA"), key, now, &mut random())?)
            })?,
        };
        let service = root.service(name, now, rng)?;
        let own = own_identities(&service, server_names, settings.as_ref(), now)?;

        self.write_pair("root", &root.to_pem(), "")?;
        let first = IssuingName::FIRST;
        self.write(&first.certificate(), issuing.certificate.as_bytes(), PUBLIC)?;
        self.write(&issuing.kept.file(&first.to_string()), &issuing.kept.content(), SECRET)?;
        self.write_pair(SERVICE, &service.to_pem(), "")?;
        if settings.is_none() {
            self.write(CONFIG, CONFIG_TEXT.as_bytes(), PUBLIC)?;
        }
        self.fill_besides(&service, &own, now)
    }

    /// Writes what a CA has besides the certificates and keys of its CAs.
    fn fill_besides(
        &self,
        service: &Authority,
        own: &[OwnIdentity; 3],
        now: OffsetDateTime,
    ) -> Result<()> {
        let (service, rng) = (service.certificate(), &mut random());
        let mut identities = Vec::new();
        for (holder, role, pair) in own {
            self.write_pair(holder, pair, service)?;
            let (name, certificate) = ((*holder).to_owned(), certificate_of(pair)?);
            identities.push(NewIdentity {
                name,
                role: *role,
                rights: Rights::default(),
                certificate,
            });
        }
        self.write(TICKET_KEY, TicketKey::generate(rng).secret(), SECRET)?;
        self.write(MASTER_SECRET, MasterSecret::generate(rng).secret(), SECRET)?;
        self.write_database(&identities, now)?;
        Ok(File::open(self.directory)?.sync_all()?)
    }

    fn begin(
        &self,
        name: &str,
        root: &FirstRoot,
        issuing_key: Option<TokenPlace>,
        settings: &Option<Config>,
    ) -> Result<String> {
        let now = OffsetDateTime::now_utc();
        let mut tokens = Tokens::default();
        // First, because a token may fail: then nothing is made yet.
        let (issuing, issuing_request) = match issuing_key {
            None => {
                let pem = new_ca_key()?;
                let key = KeyPair::from_pem(&pem)?;
                (KeptKey::Pem(pem), issuing_request(&format!("{name} Issuing CA"), &key)?)
            }
            Some(place) => {
                let (uri, public) = place.take("issuing", &mut tokens, now)?;
                let uris = vec![uri];
                let key = tokens.key(&uris, public);
                let request = issuing_request(&format!("{name} Issuing CA"), &key);
                (KeptKey::Token(uris), request.context("the token did not sign the request")?)
            }
        };
        let service = new_ca_key()?;
        let service_request =
            service_request(&format!("{name} Service CA"), &KeyPair::from_pem(&service)?)?;
        let requests = issuing_request + &service_request;

        self.write(ROOT, pem_of("CERTIFICATE", root.certificate()).as_bytes(), PUBLIC)?;
        self.write(&issuing.file(&IssuingName::FIRST.to_string()), &issuing.content(), SECRET)?;
        self.write(&format!("{SERVICE}.key"), service.as_bytes(), SECRET)?;
        if settings.is_none() {
            self.write(CONFIG, CONFIG_TEXT.as_bytes(), PUBLIC)?;
        }
        // Last: it says that the CA was begun.
        self.write(REQUESTS, requests.as_bytes(), PUBLIC)?;
        File::open(self.directory)?.sync_all()?;
        Ok(requests)
    }

    fn finish_with(
        &self,
        certificates: &[CertificateDer<'static>],
        server_names: &[String],
    ) -> Result<()> {
        let now = OffsetDateTime::now_utc();
        if !self.directory.join(DATABASE).exists() {
            let config = Config::read(self.directory)?;
            let files = Files::open(self.directory)?;
            let root = CertificateDer::from_pem_file(self.directory.join(ROOT))?;
            let roots = [root];
            let first = IssuingName::FIRST;
            let kept = KeptKey::read(&files, &first.to_string())?;
            let kept = kept.with_context(|| format!("{} is missing", first.key()))?;
            let issuing = certificate_for(certificates, "the issuing CA", |der| {
                kept.checked_issuer(der, &mut Tokens::default())
            })?;
            let lifetime = config.profile.validity();
            let checked = kept.checked_issuer(issuing, &mut Tokens::default())?.under(&roots)?;
            _ = checked.valid_at(now)?.fit_to_issue(lifetime, now)?;
            let key = files.read(&format!("{SERVICE}.key"))?;
            let key = key.with_context(|| format!("{SERVICE}.key is missing"))?;
            let as_issuer =
                |der: &CertificateDer<'_>| Ok(Issuer::from_pem(&pem_of("CERTIFICATE", der), &key)?);
            let service_der = certificate_for(certificates, "the service CA", as_issuer)?;
            _ = as_issuer(service_der)?.under(&roots)?.valid_at(now)?.fit_to_serve()?;
            let service = Authority::from_pem(&pem_of("CERTIFICATE", service_der), &key)?;
            let own = own_identities(&service, server_names, Some(&config), now)?;

            // Of an attempt that was cut short.
            for name in MADE_LAST.map(str::to_owned).into_iter().chain([first.certificate()]) {
                files.remove(&name)?;
            }
            let issuing = pem_of("CERTIFICATE", issuing);
            self.write(&first.certificate(), issuing.as_bytes(), PUBLIC)?;
            let name = format!("{SERVICE}.pem");
            self.write(&name, service.certificate().as_bytes(), PUBLIC)?;
            self.fill_besides(&service, &own, now)?;
        }
        // With it goes what says that the CA waits.
        fs::remove_file(self.directory.join(REQUESTS))?;
        Ok(File::open(self.directory)?.sync_all()?)
    }

    /// SQLite makes the database in another directory. It opens files by name, and in this
    /// directory another user may have put something under any name.
    fn write_database(&self, identities: &[NewIdentity], now: OffsetDateTime) -> Result<()> {
        let elsewhere = tempfile::tempdir().context("cannot make a temporary directory")?;
        let made = elsewhere.path().join(DATABASE);
        let mut store = Sqlite::create(&made)?;
        for identity in identities {
            store.add_identity(identity, now)?;
        }
        let (version, _) = store.groups()?;
        store.set_groups(version, &Groups::of_new_ca())?;
        drop(store);
        self.put_database(&made)
    }

    fn put_database(&self, made: &Path) -> Result<()> {
        self.write_from(NEW_DATABASE, File::open(made)?, SECRET)?;
        Ok(fs::rename(self.directory.join(NEW_DATABASE), self.directory.join(DATABASE))?)
    }

    /// Writes a file with the content of another one.
    pub(crate) fn write_copy(&self, name: &str, from: &Path) -> Result<()> {
        self.write_from(name, File::open(from)?, if is_public(name) { PUBLIC } else { SECRET })
    }

    /// Puts the database in its place, if it is a file, and makes all of it durable.
    pub(crate) fn finish(&self, database: Option<&Path>) -> Result<()> {
        database.map_or(Ok(()), |made| self.put_database(made))?;
        Ok(File::open(self.directory)?.sync_all()?)
    }
}

/// What a CA's own files hold of an identity: name, role, certificate and key.
type OwnIdentity = (&'static str, IdentityRole, KeyAndCertificate);

/// The broker, the worker and the operator of a new CA.
fn own_identities(
    service: &Authority,
    server_names: &[String],
    settings: Option<&Config>,
    now: OffsetDateTime,
) -> Result<[OwnIdentity; 3]> {
    let rng = &mut random();
    let mut names = vec!["localhost".to_owned(), "127.0.0.1".to_owned(), "::1".to_owned()];
    names.extend_from_slice(server_names);
    names.extend(settings.into_iter().flat_map(Config::listener_names));
    let server = service
        .server(&names, LEAF_LIFETIME, now, rng)
        .with_context(|| format!("broker certificate for {names:?}"))?;
    let worker = service.worker(LEAF_LIFETIME, now, rng)?;
    let operator = service.operator(LEAF_LIFETIME, now, rng)?;
    Ok([
        ("server", IdentityRole::Broker, server),
        ("worker", IdentityRole::Worker, worker),
        ("operator", IdentityRole::Operator, operator),
    ])
}

/// The certificate among these that is for a CA's key.
fn certificate_for<'a>(
    certificates: &'a [CertificateDer<'static>],
    whose: &str,
    fits: impl Fn(&CertificateDer<'static>) -> Result<Issuer>,
) -> Result<&'a CertificateDer<'static>> {
    for certificate in certificates {
        match fits(certificate) {
            Err(error) if error.downcast_ref() == Some(&IssuerError::KeyMismatch) => {}
            fits => return fits.map(|_| certificate),
        }
    }
    bail!("no certificate is for the key of {whose}; have {REQUESTS} signed, and bring all of it")
}

impl Config {
    /// Reads `assay.toml` of a directory.
    fn read(directory: &Path) -> Result<Self> {
        let file = directory.join(CONFIG);
        let text = fs::read_to_string(&file).with_context(|| {
            format!(
                "cannot read {}; `assay init DIR` makes a CA, --dir says where it is",
                file.display()
            )
        })?;
        Self::parse(&text).with_context(|| format!("{} is not valid", file.display()))
    }

    /// Addresses at which the built-in broker is reached, for its certificate.
    fn listener_names(&self) -> Vec<String> {
        let http = self.http.map(|http| http.address.ip());
        let addresses = [self.bootstrap.ip(), self.operational.ip()].into_iter().chain(http);
        addresses
            .filter(|address| !address.is_unspecified())
            .map(|address| address.to_string())
            .collect()
    }

    fn parse(text: &str) -> Result<Self> {
        let raw: RawConfig = toml::from_str(text)?;
        let RawCertificates { lifetime_days, confirm_within_seconds, renew_before_days } =
            raw.certificates;
        let profile =
            Profile::new(Duration::days(lifetime_days.into()), Profile::default().backdate());
        let profile = profile.context("certificates.lifetime_days")?;
        let profile = profile.with_confirmation(Duration::seconds(confirm_within_seconds.into()));
        let profile = profile.context("certificates.confirm_within_seconds")?;
        let renew_before = renew_before_days.map(|days| Duration::days(days.into()));
        let profile = profile.with_renewal(renew_before);
        let profile = profile.context("certificates.renew_before_days")?;
        let RawSharedKeys { rotate_days } = raw.shared_keys;
        let rotate_after = (rotate_days != 0).then(|| Duration::days(rotate_days.into()));
        let profile = profile.with_rotation(rotate_after).context("shared_keys.rotate_days")?;
        let flows = raw
            .flows
            .iter()
            .map(|flow| flow.parse())
            .collect::<Result<Vec<Flow>, _>>()
            .context("flows")?;
        Ok(Self {
            scope: raw.scope.parse().context("scope")?,
            bootstrap: raw.broker.bootstrap,
            operational: raw.broker.operational,
            limits: raw.broker.limits.checked().context("broker.limits")?,
            http: raw.http.checked().context("http")?,
            balancers: balancers(&raw.broker.balancers).context("broker.balancers")?,
            profile: profile.with_flows(flows).context("flows")?,
            retention: raw.store.retention.checked().context("store.retention")?,
            postgres: raw.store.address().context("store")?,
            hook: raw.hook,
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
    http: RawHttp,
    certificates: RawCertificates,
    shared_keys: RawSharedKeys,
    store: RawStore,
    hook: Option<HookAddress>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawSharedKeys {
    /// 0: devices are told nothing.
    rotate_days: u16,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawStore {
    url: Option<String>,
    ca: Option<PathBuf>,
    password_file: Option<PathBuf>,
    retention: RawRetention,
}

impl RawStore {
    fn address(self) -> Result<Option<PostgresAddress>> {
        let Self { url, ca, password_file, .. } = self;
        ensure!(
            url.is_some() || (ca.is_none() && password_file.is_none()),
            "ca and password_file are for PostgreSQL, but no url names one"
        );
        Ok(url.map(|url| PostgresAddress { url, ca, password_file }))
    }
}

#[derive(Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawRetention {
    ended_days: u32,
    unused_offers_days: u32,
    audit_entries: u32,
    decisions_days: u32,
    acts_days: u32,
}

impl RawRetention {
    fn checked(self) -> Result<Retention> {
        let Self { ended_days, unused_offers_days, audit_entries, decisions_days, acts_days } =
            self;
        let retention = Retention::default().with_ended(ended_days)?;
        let retention = retention.with_unused_offers(unused_offers_days)?;
        Ok(retention
            .with_audit(audit_entries)?
            .with_decisions(decisions_days)?
            .with_acts(acts_days)?)
    }
}

impl Default for RawRetention {
    fn default() -> Self {
        let retention = Retention::default();
        let days = |period: Duration| u32::try_from(period.whole_days()).unwrap_or(u32::MAX);
        Self {
            ended_days: days(retention.ended()),
            unused_offers_days: days(retention.unused_offers()),
            audit_entries: retention.audit(),
            decisions_days: days(retention.decisions()),
            acts_days: days(retention.acts()),
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawBroker {
    bootstrap: SocketAddr,
    operational: SocketAddr,
    balancers: Vec<String>,
    limits: RawLimits,
}

/// Those at these addresses, and in these networks.
///
/// # Errors
/// One is neither; or this machine is among them, from which the worker connects without a header.
fn balancers(texts: &[String]) -> Result<Balancers> {
    let network = |text: &String| -> Result<IpNet> {
        let alone = text.parse::<IpAddr>().map(IpNet::from);
        let network = alone.or_else(|_| text.parse());
        let network = network.with_context(|| format!("{text} is no address and no network"))?;
        let is_ours = network.contains(&IpAddr::from(Ipv4Addr::LOCALHOST));
        ensure!(!is_ours, "{text} has 127.0.0.1, from where the CA's own worker connects");
        Ok(network)
    };
    Ok(Balancers::new(texts.iter().map(network).collect::<Result<_>>()?))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawHttp {
    listen: Option<SocketAddr>,
    tls: bool,
}

impl RawHttp {
    fn checked(self) -> Result<Option<HttpAddress>> {
        self.listen.map(|address| HttpAddress::new(address, self.tls)).transpose()
    }
}

impl Default for RawHttp {
    fn default() -> Self {
        Self { listen: None, tls: true }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawLimits {
    waiting: usize,
    bootstrap: usize,
    operational: usize,
    arrivals_per_network: u32,
}

impl RawLimits {
    fn checked(self) -> Result<Limits> {
        let Self { waiting, bootstrap, operational, arrivals_per_network } = self;
        let is_sound = [waiting, bootstrap, operational].into_iter().all(|places| places > 0)
            && (1..=1_000_000).contains(&arrivals_per_network);
        ensure!(is_sound, "each is at least 1, and arrivals_per_network at most 1000000");
        Ok(Limits { waiting, bootstrap, operational, arrivals_per_network, ..Limits::default() })
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawCertificates {
    lifetime_days: u16,
    confirm_within_seconds: u32,
    renew_before_days: Option<u16>,
}

impl Default for RawConfig {
    fn default() -> Self {
        Self {
            scope: "default".into(),
            flows: Profile::default().flows().iter().map(Flow::to_string).collect(),
            broker: RawBroker::default(),
            http: RawHttp::default(),
            certificates: RawCertificates::default(),
            shared_keys: RawSharedKeys::default(),
            store: RawStore::default(),
            hook: None,
        }
    }
}

impl Default for RawBroker {
    fn default() -> Self {
        let everywhere = |port| SocketAddr::from((Ipv4Addr::UNSPECIFIED, port));
        Self {
            bootstrap: everywhere(8883),
            operational: everywhere(8884),
            balancers: Vec::new(),
            limits: RawLimits::default(),
        }
    }
}

impl Default for RawLimits {
    fn default() -> Self {
        let Limits { waiting, bootstrap, operational, arrivals_per_network, .. } =
            Limits::default();
        Self { waiting, bootstrap, operational, arrivals_per_network }
    }
}

impl Default for RawCertificates {
    fn default() -> Self {
        Self { lifetime_days: 90, confirm_within_seconds: 600, renew_before_days: None }
    }
}

impl Default for RawSharedKeys {
    fn default() -> Self {
        Self { rotate_days: 90 }
    }
}

const CONFIG: &str = "assay.toml";
/// Firmware with known flaws that the operator knows of.
const FLAWS: &str = "flaws.toml";
const ROOT: &str = "root.pem";
/// The requests of a CA that waits for its certificates.
const REQUESTS: &str = "init.csr";
/// The CA of brokers, workers, operators and backends.
const SERVICE: &str = "service";
/// What has files with a date, besides the issuing CAs.
const DATED: [&str; 4] = [root_files::STEM, SERVICE, "ticket", "master"];
const DATABASE: &str = "assay.db";
const NEW_DATABASE: &str = "assay.db.new";
const TICKET_KEY: &str = "ticket.key";
const MASTER_SECRET: &str = "master.key";
/// What a CA consists of, besides its database and its issuing CAs.
const FILES: [&str; 18] = [
    CONFIG,
    FLAWS,
    ROOT,
    "root.key",
    "root.key.age",
    "root.pkcs11",
    "service.pem",
    "service.key",
    "service-next.key",
    "service-next.csr",
    "server.pem",
    "server.key",
    "worker.pem",
    "worker.key",
    "operator.pem",
    "operator.key",
    TICKET_KEY,
    MASTER_SECRET,
];
/// What a CA gets last whose root is elsewhere, besides its issuing CA's certificate.
const MADE_LAST: [&str; 10] = [
    "service.pem",
    "server.pem",
    "server.key",
    "worker.pem",
    "worker.key",
    "operator.pem",
    "operator.key",
    TICKET_KEY,
    MASTER_SECRET,
    NEW_DATABASE,
];
/// The database, with what is beside it.
const DATABASES: [&str; 7] = [
    DATABASE,
    "assay.db-wal",
    "assay.db-shm",
    "assay.db.before-7",
    "assay.db.before-8",
    "assay.db.before-11",
    "assay.db.copied",
];
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
    fn file_that_the_settings_name_twice_is_one_file_of_the_ca() {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("ca");
        Directory::create(&path, "Test", &[]).unwrap();
        let store = "[store]\nurl = \"postgres://x@y/z\"\nca = \"root.pem\"";
        fs::write(path.join(CONFIG), store).unwrap();
        let files = Directory::open(&path).unwrap().files().unwrap();
        assert_eq!(files.iter().filter(|(name, _)| name == ROOT).count(), 1);
    }

    #[test]
    fn unknown_settings_and_bad_values_are_refused() {
        for text in [
            "scoop = \"x\"",
            "scope = \"A\"",
            "flows = []",
            "flows = [\"tickets\"]",
            "[broker]\nbootstrap = \"here\"",
            "[broker.limits]\noperational = 0",
            "[broker.limits]\narrivals_per_network = 0",
            "[broker.limits]\npatience = 1",
            "[http]\nlisten = \"0.0.0.0:80\"\ntls = false",
            "[http]\nlisten = \"192.0.2.1:80\"\ntls = false",
            "[http]\nport = 80",
            "[certificates]\nlifetime_days = 0",
            "[certificates]\nconfirm_within_seconds = 0",
            "[certificates]\nrenew_before_days = 0",
            "[certificates]\nrenew_before_days = 91",
            "[shared_keys]\nrotate_days = 3651",
            "[shared_keys]\nrotate_weeks = 1",
            "[store]\nca = \"ca.pem\"",
            "[store.retention]\nended_days = 3651",
            "[store.retention]\naudit_entries = 1",
        ] {
            assert!(Config::parse(text).is_err(), "{text}");
        }
    }
}

//! Which PostgreSQL database to use, and how to connect to it.

use std::env;
use std::fmt;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use postgres::config::{Host, SslMode, TargetSessionAttrs};
use postgres::{Client, Config, NoTls};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, RootCertStore};
use tokio_postgres_rustls::MakeRustlsConnect;

use crate::error::StoreError;

/// Which PostgreSQL database holds a CA, and how to connect to it.
#[derive(Clone)]
pub struct Settings {
    config: Arc<Config>,
    tls: Option<Arc<ClientConfig>>,
}

impl Settings {
    /// Reads a connection string, as `postgres://assay@db.example:5432/assay` or as
    /// `host=/run/postgresql user=assay dbname=assay`. It may name several hosts, separated by
    /// commas: the first one that accepts writes is used.
    ///
    /// Over TCP the connection uses TLS, unless the string says `sslmode=disable`. The server must
    /// show a certificate for the host name in the string, and the certificate must lead to one in
    /// `roots` (PEM). Over a Unix socket there is no TLS.
    ///
    /// The password is the content of `password_file`. Without that file, it is the one for this
    /// server in the file that the environment variable `PGPASSFILE` names, if any. Only their
    /// owner may be able to read these files.
    ///
    /// # Errors
    /// The string cannot be read or has a password in it, a file cannot be read or others can read
    /// it, or there are no roots for TLS.
    pub fn new(
        url: &str,
        roots: Option<&Path>,
        password_file: Option<&Path>,
    ) -> Result<Self, StoreError> {
        let mut config = Config::from_str(url)?;
        if config.get_password().is_some() {
            return Err(StoreError::Settings(
                "the address of PostgreSQL has a password in it, where others can read it: put \
                 the password into a file of mode 0600, and name that file as password_file"
                    .into(),
            ));
        }
        if config.get_hosts().is_empty() {
            return Err(StoreError::Settings(
                "the address of PostgreSQL names neither a host nor a directory with a socket"
                    .into(),
            ));
        }
        if let Some(password) = password(&config, password_file)? {
            config.password(password);
        }
        if config.get_application_name().is_none() {
            config.application_name("assay");
        }
        config
            .connect_timeout(CONNECT_TIMEOUT)
            .keepalives_idle(KEEPALIVE)
            .keepalives_interval(KEEPALIVE)
            .keepalives_retries(3)
            .tcp_user_timeout(3 * KEEPALIVE)
            // A standby would answer too, but its answers may be out of date.
            .target_session_attrs(TargetSessionAttrs::ReadWrite);
        let is_local = config.get_hosts().iter().all(|host| matches!(host, Host::Unix(_)));
        let tls = if is_local || config.get_ssl_mode() == SslMode::Disable {
            config.ssl_mode(SslMode::Disable);
            None
        } else {
            config.ssl_mode(SslMode::Require);
            Some(Arc::new(tls(roots)?))
        };
        Ok(Self { config: config.into(), tls })
    }

    /// Its name, to show to people.
    pub(crate) fn shown(&self) -> String {
        let hosts = self.config.get_hosts().iter().map(|host| match host {
            Host::Tcp(name) => name.clone(),
            Host::Unix(directory) => directory.display().to_string(),
        });
        let hosts = hosts.collect::<Vec<_>>().join(",");
        format!("PostgreSQL {} at {hosts}", self.database())
    }

    pub(super) fn connect(&self) -> Result<Client, postgres::Error> {
        match &self.tls {
            None => self.config.connect(NoTls),
            Some(tls) => self.config.connect(MakeRustlsConnect::new(ClientConfig::clone(tls))),
        }
    }

    fn database(&self) -> &str {
        self.config.get_dbname().or_else(|| self.config.get_user()).unwrap_or_default()
    }
}

impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Settings({})", self.shown())
    }
}

fn tls(roots: Option<&Path>) -> Result<ClientConfig, StoreError> {
    let roots = roots.ok_or_else(|| {
        StoreError::Settings(
            "PostgreSQL is reached over TLS, so name the file with the certificate of its CA as \
             ca; or say sslmode=disable in the address, if nobody else can read the connection"
                .into(),
        )
    })?;
    let unreadable = |error: String| StoreError::Settings(format!("{}: {error}", roots.display()));
    let mut store = RootCertStore::empty();
    let pem = fs::read(roots).map_err(|error| unreadable(error.to_string()))?;
    for root in CertificateDer::pem_slice_iter(&pem) {
        let root = root.map_err(|error| unreadable(error.to_string()))?;
        store.add(root).map_err(|error| unreadable(error.to_string()))?;
    }
    if store.is_empty() {
        return Err(unreadable("there is no certificate in it".into()));
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let versions = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| unreadable(error.to_string()))?;
    Ok(versions.with_root_certificates(store).with_no_client_auth())
}

fn password(config: &Config, file: Option<&Path>) -> Result<Option<String>, StoreError> {
    if let Some(file) = file {
        return Ok(Some(secret(file)?.trim_end_matches(['\r', '\n']).to_owned()));
    }
    let Some(file) = env::var_os("PGPASSFILE") else { return Ok(None) };
    Ok(of_passfile(&secret(Path::new(&file))?, config))
}

/// Reads a file that only its owner may read.
fn secret(file: &Path) -> Result<String, StoreError> {
    let shown = file.display();
    let read = || -> std::io::Result<_> {
        Ok((fs::metadata(file)?.permissions().mode(), fs::read_to_string(file)?))
    };
    let (mode, text) =
        read().map_err(|error| StoreError::Settings(format!("cannot read {shown}: {error}")))?;
    if mode & 0o077 != 0 {
        return Err(StoreError::Settings(format!(
            "users other than its owner can read {shown}, which holds a password: chmod 600 \
             {shown}"
        )));
    }
    Ok(text)
}

/// The password for this server in a password file. Its lines are
/// `host:port:database:user:password`; `*` in a field stands for any value (PostgreSQL's manual,
/// "The Password File").
fn of_passfile(text: &str, config: &Config) -> Option<String> {
    let host = config.get_hosts().first().map(|host| match host {
        Host::Tcp(name) => name.clone(),
        Host::Unix(_) => "localhost".into(),
    })?;
    let port = config.get_ports().first().copied().unwrap_or(5432).to_string();
    let user = config.get_user()?;
    let database = config.get_dbname().unwrap_or(user);
    let wanted = [&host, port.as_str(), database, user];
    text.lines().filter(|line| !line.starts_with('#')).find_map(|line| {
        let [fields @ .., password] = &fields(line)[..] else { return None };
        let fits = fields.len() == wanted.len()
            && fields.iter().zip(wanted).all(|(field, wanted)| field == "*" || field == wanted);
        fits.then(|| password.clone())
    })
}

/// Splits a line into up to five fields. A backslash makes the next character a part of the field,
/// even a colon or a backslash.
fn fields(line: &str) -> Vec<String> {
    let mut fields = vec![String::new()];
    let mut characters = line.chars();
    while let Some(character) = characters.next() {
        match character {
            ':' if fields.len() < 5 => fields.push(String::new()),
            '\\' => fields.last_mut().expect("there is one").extend(characters.next()),
            character => fields.last_mut().expect("there is one").push(character),
        }
    }
    fields
}

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// A server that disappears without closing the connection is noticed after three of these.
const KEEPALIVE: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(url: &str) -> String {
        Settings::new(url, None, None).unwrap_err().to_string()
    }

    #[test]
    fn address_with_a_password_is_refused() {
        assert!(refusal("postgres://assay:secret@db/assay").contains("password_file"));
    }

    #[test]
    fn address_over_tcp_needs_roots_unless_it_renounces_tls() {
        assert!(refusal("postgres://assay@db/assay").contains("ca"));
        assert!(refusal("postgres://assay@db/assay?sslmode=prefer").contains("ca"));
        let open = Settings::new("postgres://assay@db/assay?sslmode=disable", None, None);
        assert!(open.unwrap().tls.is_none());
        let local = Settings::new("host=/run/postgresql user=assay", None, None).unwrap();
        assert!(local.tls.is_none());
    }

    #[test]
    fn password_file_that_others_can_read_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("password");
        fs::write(&file, "secret\n").unwrap();
        let read = || Settings::new("host=/run user=assay", None, Some(&file));
        fs::set_permissions(&file, fs::Permissions::from_mode(0o640)).unwrap();
        assert!(read().unwrap_err().to_string().contains("chmod 600"));
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
        assert_eq!(read().unwrap().config.get_password(), Some(&b"secret"[..]));
    }

    #[test]
    fn passfile_is_read_as_postgresql_reads_it() {
        let config = Config::from_str("postgres://assay@db:5433/fleet").unwrap();
        let text = "# db:5433:fleet:assay:comment\n\
                    db:5432:fleet:assay:other port\n\
                    db:*:fleet:assay:a\\:b\\\\c:d\n\
                    *:*:*:*:anybody's\n";
        assert_eq!(of_passfile(text, &config).unwrap(), "a:b\\c:d");
        let other = Config::from_str("postgres://root@db:5433/fleet").unwrap();
        assert_eq!(of_passfile(text, &other).unwrap(), "anybody's");
    }
}

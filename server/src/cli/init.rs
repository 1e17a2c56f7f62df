//! `assay init`

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use assay_ca_core::{FirstRoot, certificates_in};
use assay_pkcs11::{KeyKind, Uri};
use assay_server::TokenPlace;
use assay_server::directory::Directory;
use clap::Args;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use sha2::{Digest, Sha256};
use time::OffsetDateTime;

#[derive(Args)]
#[command(after_help = "\
With --root, the root is elsewhere from the first minute: docs/ceremony.md has
every step.

Examples:
  assay init ca --server-name broker.example.com
  assay init ca --root root.pem                                 # then, where the root is:
  assay --dir root root sign init.csr --out certificates.pem    # then, here again:
  assay init ca --certificates certificates.pem --server-name broker.example.com")]
pub(crate) struct Init {
    /// The directory to make; it must be new, or empty except for assay.toml, which is kept
    directory: PathBuf,
    /// What the CA is called in its certificates
    #[arg(long, default_value = "Assay")]
    name: String,
    /// A DNS name or IP address under which devices reach the broker, besides localhost; may be
    /// repeated
    #[arg(long = "server-name", value_name = "HOST")]
    server_names: Vec<String>,
    /// The issuing CA's key in a token (RFC 7512:
    /// pkcs11:token=LABEL;object=LABEL?module-path=/path/to/lib.so). Without object and id, one is
    /// made there
    #[arg(long, value_name = "URI")]
    issuing_key: Option<Uri>,
    /// The kind of key that is made in the token: p256, p384, rsa2048, rsa3072 or rsa4096
    #[arg(long, value_name = "KIND", default_value = "p256", requires = "issuing_key")]
    key_type: KeyKind,
    /// Begin a CA under this root, which is on another machine: makes keys, and requests for the
    /// certificates of its CAs
    #[arg(long, value_name = "FILE", conflicts_with_all = ["server_names", "certificates"])]
    root: Option<PathBuf>,
    /// Finish such a CA, with the certificates that the root's owner made for the requests
    #[arg(long, value_name = "FILE", conflicts_with_all = ["name", "issuing_key"])]
    certificates: Option<PathBuf>,
}

impl Init {
    pub(crate) fn run(self) -> Result<()> {
        let kind = self.key_type;
        let issuing_key = self.issuing_key.map(|uri| TokenPlace { uri, kind });
        let is_in_token = issuing_key.is_some();
        if let Some(root) = &self.root {
            return begin(&self.directory, &self.name, root, issuing_key);
        }
        let directory = self.directory.display();
        match &self.certificates {
            Some(file) => {
                let content = fs::read(file);
                let content = content.with_context(|| format!("cannot read {}", file.display()))?;
                let certificates = certificates_in(&content);
                let certificates = certificates.with_context(|| file.display().to_string())?;
                Directory::finish(&self.directory, &certificates, &self.server_names)
                    .with_context(|| format!("the CA in {directory} is not finished"))?;
            }
            None => {
                let (path, name) = (&self.directory, &self.name);
                Directory::create_with(path, name, &self.server_names, issuing_key)?;
            }
        }
        eprintln!("made a CA in {directory}");
        eprintln!("  root.pem   for devices to pin");
        if self.certificates.is_none() {
            eprintln!("  root.key   move it to a safe place offline: serving does not need it");
        }
        eprintln!(
            "  service.key certifies brokers, workers, operators and backends: `identity add`, \
             `identity renew` and `crl --pem` need it, serving does not"
        );
        if is_in_token {
            eprintln!("  issuing.pkcs11 says where the key of the issuing CA is; it has no PIN");
        }
        eprintln!("  assay.toml settings");
        eprintln!(
            "next: assay --dir {directory} trust add VENDOR-ROOT.pem, then assay --dir \
             {directory} serve\n\
             It asks you about each device of a vendor (assay pending); trust add --admit admits \
             them all"
        );
        Ok(())
    }
}

/// Begins a CA whose root is elsewhere.
fn begin(directory: &Path, name: &str, root: &Path, issuing_key: Option<TokenPlace>) -> Result<()> {
    let shown = root.display();
    let der =
        CertificateDer::from_pem_file(root).with_context(|| format!("cannot read {shown}"))?;
    let digest = hex::encode(Sha256::digest(&der));
    let root = FirstRoot::check(der, OffsetDateTime::now_utc())
        .with_context(|| format!("{shown} is no root to begin a CA with"))?;
    let requests = Directory::begin(directory, name, &root, issuing_key)?;
    let directory = directory.display();
    eprintln!("began a CA in {directory}, under the root of {shown}");
    eprintln!("  SHA-256 of the root: {digest}; compare it with the transcript");
    eprintln!("  init.csr asks for the certificates of its two CAs:");
    eprintln!("  SHA-256 of the requests: {}", requests_digests(&requests)?.join("\n    and "));
    eprintln!(
        "next: where the root is, assay --dir root root sign init.csr --out certificates.pem\n\
         then: assay init {directory} --certificates certificates.pem"
    );
    Ok(())
}

fn requests_digests(pem: &str) -> Result<Vec<String>> {
    let digest = |it: &pem::Pem| hex::encode(Sha256::digest(it.contents()));
    Ok(pem::parse_many(pem)?.iter().map(digest).collect())
}

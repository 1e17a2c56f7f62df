//! `assay init`

use std::path::PathBuf;

use anyhow::Result;
use assay_pkcs11::{KeyKind, Uri};
use assay_server::TokenPlace;
use assay_server::directory::Directory;
use clap::Args;

#[derive(Args)]
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
}

impl Init {
    pub(crate) fn run(self) -> Result<()> {
        let kind = self.key_type;
        let issuing_key = self.issuing_key.map(|uri| TokenPlace { uri, kind });
        let is_in_token = issuing_key.is_some();
        Directory::create_with(&self.directory, &self.name, &self.server_names, issuing_key)?;
        let directory = self.directory.display();
        eprintln!("made a CA in {directory}");
        eprintln!("  root.pem   for devices to pin");
        eprintln!("  root.key   move it to a safe place offline: serving does not need it");
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

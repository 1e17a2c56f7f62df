//! `assay init`

use std::path::PathBuf;

use anyhow::Result;
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
}

impl Init {
    pub(crate) fn run(self) -> Result<()> {
        Directory::create(&self.directory, &self.name, &self.server_names)?;
        let directory = self.directory.display();
        eprintln!("made a CA in {directory}");
        eprintln!("  root.pem   for devices to pin");
        eprintln!("  root.key   move it to a safe place offline: serving does not need it");
        eprintln!(
            "  service.key certifies brokers, workers, operators and backends: `identity add`, \
             `identity renew` and `crl --pem` need it, serving does not"
        );
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

//! A CA made for one run, which knows none of the devices.

use std::fs;

use anyhow::{Context, Result};
use assay_tests::{AssayDir, AssayServer, EVERY_FLOW, Postgres};

use crate::factory::Factory;
use crate::options::{Course, Options, Store};
use crate::server::ServerUsage;
use crate::vendor::Vendor;

/// `assay serve` on a new CA.
pub(crate) struct OwnCa {
    pub(crate) dir: AssayDir,
    pub(crate) server: AssayServer,
    postgres: Option<Postgres>,
}

impl OwnCa {
    pub(crate) fn serve(options: &Options, factory: &Factory) -> Result<Self> {
        let key = options.issuing_key.iter().flat_map(|uri| ["--issuing-key", uri]);
        let dir = AssayDir::init_with(&key.collect::<Vec<_>>(), &[])?;
        let due = if options.flow == Course::Renew { ALWAYS_DUE } else { "" };
        let settings = format!("{EVERY_FLOW}\n{due}");
        fs::write(dir.path().join("assay.toml"), &settings)?;
        let postgres = match options.store {
            Store::Sqlite => None,
            Store::Postgres => Some(move_to_postgres(&dir, &settings)?),
        };
        assay_tests::run(
            dir.assay(&["trust", "add", "--admit"])?.args(Vendor::trust_files(factory.dir())),
        )?;
        let server = AssayServer::start(&dir)?;
        Ok(Self { dir, server, postgres })
    }

    pub(crate) fn usage(&self) -> Result<ServerUsage> {
        let pid = self.server.pid().context("it runs")?;
        ServerUsage::of(pid, self.postgres.as_ref().map(Postgres::pid))
    }
}

/// Moves the record to a PostgreSQL of this run.
fn move_to_postgres(dir: &AssayDir, settings: &str) -> Result<Postgres> {
    let server = Postgres::start()?;
    let store = format!("[store]\nurl = \"{}\"\n", server.address()?);
    fs::write(dir.path().join("assay.toml"), format!("{settings}\n{store}"))?;
    assay_tests::run(&mut dir.assay(&["store", "copy", "postgres"])?)?;
    Ok(server)
}

/// With this, every certificate is due. A renewed one must end later than the one before it.
const ALWAYS_DUE: &str = "[certificates]\nlifetime_days = 1\nrenew_before_days = 1\n";

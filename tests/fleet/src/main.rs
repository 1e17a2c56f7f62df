//! `assay-fleet`: simulated devices that provision themselves against a CA, or renew, as fast as
//! asked, and a report about it.

mod assembly;
mod bad;
mod connection;
mod device;
mod factory;
mod flow;
mod hold;
mod lanes;
mod load;
mod options;
mod own_ca;
mod paths;
mod plot;
mod progress;
mod renewal;
mod report;
mod run;
mod server;
mod state;
mod tally;
mod tpm;
mod vendor;

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use assay_mqtt::BrokerUrl;
use assay_wire::ProblemCode;
use clap::Parser;
use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

use connection::Broker;
use factory::{Factory, Used};
use options::Options;
use own_ca::OwnCa;
use paths::Paths;
use report::Report;
use run::Run;
use vendor::Vendor;

fn main() -> ExitCode {
    match run_with(&Options::parse()) {
        Ok(report) if report.as_ref().is_none_or(Report::is_good) => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("assay-fleet: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// The report, unless something else was asked for.
fn run_with(options: &Options) -> Result<Option<Report>> {
    options.check()?;
    let factory = Factory::open(&cache(options)?)?;
    if options.vendor {
        Vendor::trust_files(factory.dir()).iter().for_each(|file| println!("{}", file.display()));
        return Ok(None);
    }
    let report = match (&options.broker, &options.ca_root) {
        (Some(url), Some(root)) => against_known_broker(options, &factory, url, root)?,
        _ => against_own_server(options, &factory)?,
    };
    if options.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        eprint!("{}", report.table());
    }
    Ok(Some(report))
}

/// Measures `assay serve` with a CA made for this run, which knows none of the devices.
fn against_own_server(options: &Options, factory: &Factory) -> Result<Report> {
    use_assay_beside()?;
    let devices = assembly::assemble(factory, options, &mut Used::default())?;
    let ca = OwnCa::serve(options, factory)?;
    let broker = broker(options, ca.server.bootstrap.parse()?, &ca.dir.root_pem())?;
    let operational = Some(ca.server.operational.parse()?);
    let report = Run::new(options, devices, broker, operational, Some(&ca))?.measure()?;
    ca.server.stop()?;
    Ok(report)
}

/// Measures a server that runs already, with devices that its CA has not seen by this program's
/// records, or with those that are kept.
fn against_known_broker(
    options: &Options,
    factory: &Factory,
    url: &BrokerUrl,
    root: &Path,
) -> Result<Report> {
    let mut devices = match &options.state {
        Some(state) if state.exists() => state::load(state)?,
        _ => {
            let pem = fs::read(root).with_context(|| format!("cannot read {}", root.display()))?;
            let mut used = factory.used_by(&pem)?;
            let devices = assembly::assemble(factory, options, &mut used)?;
            used.save()?;
            devices
        }
    };
    let mut free = vec![true; devices.len()];
    bad::spread(options.asleep, &mut free).into_iter().for_each(|n| devices[n].sleeps = true);
    let broker = broker(options, url.clone(), root)?;
    let run = Run::new(options, devices, broker, options.operational.clone(), None)?;
    let report = run.measure();
    if let Some(state) = &options.state {
        state::save(state, &run.devices)?;
    }
    let report = report?;
    if report
        .failures
        .keys()
        .any(|reason| reason.starts_with(ProblemCode::EkCertificateUntrusted.name()))
    {
        let files = Vendor::trust_files(factory.dir()).map(|file| file.display().to_string());
        eprintln!("The CA must trust the vendor: assay trust add --admit {}", files.join(" "));
    }
    Ok(report)
}

fn broker(options: &Options, url: BrokerUrl, root: &Path) -> Result<Broker> {
    let roots = roots(root)?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let tls = Arc::new(assay_mqtt::tls_config(provider, roots.clone(), None)?);
    let paths = Paths::new(roots.clone());
    Ok(Broker { url, tls, roots, paths, scope: options.scope.clone() })
}

fn roots(file: &Path) -> Result<RootCertStore> {
    let mut roots = RootCertStore::empty();
    let cannot_read = || format!("cannot read {}", file.display());
    for root in CertificateDer::pem_file_iter(file).with_context(cannot_read)? {
        roots.add(root.with_context(cannot_read)?)?;
    }
    ensure!(!roots.is_empty(), "{} has no certificate", file.display());
    Ok(roots)
}

fn cache(options: &Options) -> Result<PathBuf> {
    match &options.cache {
        Some(dir) => Ok(dir.clone()),
        None => Ok(bin_dir()?
            .parent()
            .context("the directory of this program has no parent")?
            .join("fleet-cache")),
    }
}

/// Makes the harness start the `assay` that was built with this program.
fn use_assay_beside() -> Result<()> {
    if env::var_os("ASSAY_BIN_DIR").is_none() {
        let dir = bin_dir()?;
        if !dir.join("assay").exists() {
            bail!(
                "no `assay` in {}; build it there: cargo build --release --package \
                 assay-server",
                dir.display()
            );
        }
        assay_tests::use_binaries_in(dir);
    }
    Ok(())
}

fn bin_dir() -> Result<PathBuf> {
    Ok(env::current_exe()?.parent().context("an executable has a directory")?.to_path_buf())
}

/// Random bytes from the operating system.
fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    // Unwrap safety: getrandom(2) does not fail on the kernels that Rust's standard library
    // supports.
    getrandom::fill(&mut bytes).unwrap();
    bytes
}

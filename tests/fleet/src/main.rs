//! `assay-fleet`: simulated devices that provision themselves against a CA as fast as asked, and a
//! report about it.

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
mod plot;
mod progress;
mod report;
mod server;
mod tally;
mod tpm;
mod vendor;

use std::env;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use assay_mqtt::BrokerUrl;
use assay_tests::{AssayDir, AssayServer};
use assay_wire::ProblemCode;
use clap::Parser;
use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use tokio::sync::Semaphore;

use connection::Broker;
use factory::{Factory, Used};
use hold::Member;
use lanes::Lane;
use load::{Fleet, Pace};
use options::{CHURNING, Options, Reuse};
use report::{Report, Usage};
use server::ServerUsage;
use tally::Tally;
use vendor::Vendor;

fn main() -> ExitCode {
    match run(&Options::parse()) {
        Ok(report) if report.as_ref().is_none_or(Report::is_good) => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("assay-fleet: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// The report, unless something else was asked for.
fn run(options: &Options) -> Result<Option<Report>> {
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
    let dir = AssayDir::init()?;
    assay_tests::run(dir.assay(&["trust", "add"])?.args(Vendor::trust_files(factory.dir())))?;
    let server = AssayServer::start(&dir)?;
    let broker = broker(options, server.bootstrap.parse()?, &dir.root_pem())?;
    let pid = server.pid().context("it runs")?;
    let report = measure(options, devices, broker, Some((pid, &server.operational)))?;
    server.stop()?;
    Ok(report)
}

/// Measures a server that runs already, with devices that its CA has not seen by this program's
/// records.
fn against_known_broker(
    options: &Options,
    factory: &Factory,
    url: &BrokerUrl,
    root: &Path,
) -> Result<Report> {
    let pem = fs::read(root).with_context(|| format!("cannot read {}", root.display()))?;
    let mut used = factory.used_by(&pem)?;
    let devices = assembly::assemble(factory, options, &mut used)?;
    used.save()?;
    let report = measure(options, devices, broker(options, url.clone(), root)?, None)?;
    if report
        .failures
        .keys()
        .any(|reason| reason.starts_with(ProblemCode::EkCertificateUntrusted.name()))
    {
        let files = Vendor::trust_files(factory.dir()).map(|file| file.display().to_string());
        eprintln!("The CA must trust the vendor: assay trust add {}", files.join(" "));
    }
    Ok(report)
}

fn broker(options: &Options, url: BrokerUrl, root: &Path) -> Result<Broker> {
    let roots = roots(root)?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let tls = Arc::new(assay_mqtt::tls_config(provider, roots.clone(), None)?);
    Ok(Broker { url, tls, roots, scope: options.scope.clone() })
}

fn roots(root: &Path) -> Result<RootCertStore> {
    let mut roots = RootCertStore::empty();
    roots.add(
        CertificateDer::from_pem_file(root)
            .with_context(|| format!("cannot read {}", root.display()))?,
    )?;
    Ok(roots)
}

/// Runs all devices to their end; `server` is the process that serves them, and its operational
/// listener.
fn measure(
    options: &Options,
    devices: Vec<device::Device>,
    broker: Broker,
    server: Option<(u32, &str)>,
) -> Result<Report> {
    let pid = server.map(|(pid, _)| pid);
    let connections = options.connections()?;
    let (lanes, own) = match options.connection {
        Reuse::Reused => (connections, CHURNING as usize),
        Reuse::PerDevice => (0, connections),
    };
    let fleet = Arc::new(Fleet {
        bar: progress::bar(devices.len(), "provisioning"),
        devices,
        flow: options.flow,
        broker: Arc::new(broker),
        lanes: (0..lanes).map(|_| Lane::new()).collect(),
        own: Semaphore::new(own),
        tally: Arc::new(Tally::new()),
        members: options.hold.then(Mutex::default),
    });
    let pace = match options.rate {
        Some(rate) => Pace::Open { rate },
        None => Pace::Closed { concurrency: options.concurrency as usize },
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let (server_before, own_before) = (pid.map(ServerUsage::of).transpose()?, server::own_time()?);
    let began = Instant::now();
    let arriving = runtime.block_on(fleet.run(pace, Duration::from_secs_f64(options.ramp)));
    let usage = Usage {
        took: began.elapsed(),
        arriving,
        server: pid
            .map(ServerUsage::of)
            .transpose()?
            .zip(server_before)
            .map(|(after, before)| after.since(&before)),
        own: server::own_time()? - own_before,
    };
    fleet.bar.finish_and_clear();
    let held = match (&fleet.members, server) {
        (Some(members), Some((pid, operational))) => {
            let members =
                std::mem::take(&mut *members.lock().unwrap_or_else(PoisonError::into_inner));
            Some(runtime.block_on(hold(members, operational.parse()?, &fleet.broker.roots, pid))?)
        }
        _ => None,
    };
    let counts = fleet.tally.counts();
    if let Some(file) = &options.plot {
        let lines: Vec<_> = report::latencies(&counts).collect();
        plot::draw(file, &options.title(), &lines)?;
    }
    Ok(Report::new(options, connections, &counts, &usage, held))
}

/// Connects devices, pings each, and reads the server's memory while all are connected.
async fn hold(
    members: Vec<Member>,
    operational: BrokerUrl,
    roots: &RootCertStore,
    server: u32,
) -> Result<report::Held> {
    let listener = SocketAddr::new(operational.host().parse()?, operational.port());
    let bar = progress::bar(members.len(), "connecting");
    let began = Instant::now();
    let mut held = hold::connect(members, listener, roots, &bar).await?;
    let took = began.elapsed();
    for connection in &mut held {
        connection.ping().await?;
    }
    bar.finish_and_clear();
    Ok(report::Held::new(held.len(), took, ServerUsage::of(server)?.memory))
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

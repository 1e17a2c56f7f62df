//! The command line: what can be asked for, and who does it.

mod audit;
mod backup;
mod ceremony;
mod check;
mod clock;
mod configuration;
mod crl;
mod device;
mod enroll;
mod group;
mod health;
mod identity;
mod import;
mod init;
mod issuing;
mod keys;
mod list;
mod outfit;
mod pending;
mod policy;
mod root;
mod serve;
mod service;
mod service_ca;
mod store;
mod table;
mod trust;
mod trust_add;
mod watch;
mod worker;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use assay_server::directory::Directory;
use clap::{Parser, Subcommand};

/// Turns a TPM's endorsement key into a device certificate, over MQTT.
#[derive(Parser)]
#[command(name = "assay", version = env!("ASSAY_VERSION"), after_help = EXAMPLES)]
pub(crate) struct Cli {
    /// The CA's directory
    #[arg(long, global = true, env = "ASSAY_DIR", default_value = ".")]
    dir: PathBuf,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Make a CA: keys, certificates, configuration, database
    Init(init::Init),
    /// Say which TPM vendors' certificates are trusted
    #[command(subcommand)]
    Trust(trust::Trust),
    /// Say who is admitted: groups of EKs, in order
    #[command(subcommand)]
    Group(group::GroupCommand),
    /// List, approve and refuse devices that wait for an operator
    #[command(subcommand)]
    Pending(pending::Pending),
    /// Enrol EKs, change enrolments, disable and enable devices
    #[command(subcommand)]
    Enroll(enroll::Enroll),
    /// Run the built-in broker and a worker
    Serve(serve::Serve),
    /// Run a worker on another MQTT 5 broker
    Worker(worker::Worker),
    /// Say whether a worker answers and the store can be written
    Health(health::Health),
    /// Say whether a broker keeps the rules
    #[command(subcommand)]
    Broker(check::Broker),
    /// Give a device another TPM, and show which it had
    #[command(subcommand)]
    Device(device::DeviceCommand),
    /// List the devices
    Devices(list::Json),
    /// List the certificates
    Certs(list::Json),
    /// Make, list, renew and revoke brokers, workers, operators and backends
    #[command(subcommand)]
    Identity(identity::Identity),
    /// Make, list and remove the CAs that sign device certificates
    #[command(subcommand)]
    Issuing(issuing::Issuing),
    /// Attach documents to devices, which get them signed, with their certificates
    #[command(subcommand)]
    Configuration(configuration::Configuration),
    /// List and test the CA's keys; replace the ticket key and the master secret, which all workers
    /// share
    #[command(subcommand)]
    Keys(keys::Keys),
    /// Make, split, list and replace the root, and certify CAs with it
    #[command(subcommand)]
    Root(root::Root),
    /// Replace the CA of brokers, workers, operators and backends
    #[command(subcommand)]
    Service(service_ca::Service),
    /// Write the revocation lists, signed now
    Crl(crl::Crl),
    /// List decisions and what operators did, verify and export them
    Audit(audit::Audit),
    /// Say where the CA is on record, and move it
    #[command(subcommand)]
    Store(store::Store),
    /// Write keys, settings and record to one file, while the CA serves
    Backup(backup::Backup),
    /// Make the CA in --dir from a backup, in a new epoch
    ///
    /// The directory must be empty, or hold only assay.toml. The CA is held afterwards: nobody is
    /// let in until `assay resume`, because the backup does not know what was revoked since.
    Restore(backup::Restore),
    /// Say what this machine's clock is compared with, and that it is right
    Clock(clock::Clock),
    /// Let a restored CA serve
    ///
    /// This is your word that all that was revoked since the backup is revoked again, by hand or by
    /// the list that you give.
    Resume(backup::Resume),
    /// Print what devices publish, and the CA's events
    Watch(watch::Watch),
}

impl Cli {
    pub(crate) fn run(self) -> Result<ExitCode> {
        let directory = || Directory::open(&self.dir);
        match self.command {
            Command::Init(init) => init.run(),
            Command::Trust(trust) => trust.run(&directory()?),
            Command::Group(group) => group.run(&directory()?),
            Command::Pending(pending) => pending.run(&directory()?),
            Command::Enroll(enroll) => enroll.run(&directory()?),
            Command::Serve(serve) => serve.run(&directory()?),
            Command::Worker(worker) => worker.run(&directory()?),
            Command::Health(health) => return health.run(&directory()?),
            Command::Broker(check::Broker::Check(check)) => return check.run(&directory()?),
            Command::Device(device) => device.run(&directory()?),
            Command::Devices(json) => list::devices(&directory()?, json),
            Command::Certs(json) => list::certificates(&directory()?, json),
            Command::Identity(identity) => identity.run(&directory()?),
            Command::Issuing(issuing) => issuing.run(&directory()?),
            Command::Configuration(configuration) => configuration.run(&directory()?),
            Command::Keys(keys) => keys.run(&directory()?),
            Command::Root(root) => root.run(&self.dir),
            Command::Service(service) => service.run(&directory()?),
            Command::Crl(crl) => crl.run(&directory()?),
            Command::Audit(audit) => audit.run(directory),
            Command::Store(store) => store.run(&directory()?),
            Command::Backup(backup) => backup.run(&directory()?),
            Command::Restore(restore) => restore.run(&self.dir),
            Command::Clock(clock) => clock.run(&directory()?),
            Command::Resume(resume) => resume.run(&directory()?),
            Command::Watch(watch) => watch.run(&directory()?),
        }?;
        Ok(ExitCode::SUCCESS)
    }
}

const EXAMPLES: &str = "\
Examples:
  assay init ca                                    make a CA in the directory ca
  assay --dir ca trust add --admit vendor.pem      trust a vendor's TPMs, and admit them
  assay --dir ca pending approve --all             admit the devices that wait
  assay --dir ca enroll add ek.pem --device-id pump-17
  assay --dir ca enroll import eks.csv
  assay --dir ca serve                             serve devices until interrupted
  assay --dir ca health                            exit status 0 if all is well
  assay --dir ca identity add sink --subscribe 'device/#'
  assay --dir ca devices                           who is registered
  assay --dir ca audit                             who was refused, and why";

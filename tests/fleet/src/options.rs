//! The command line.

use std::path::PathBuf;
use std::str::FromStr;

use anyhow::{Result, bail, ensure};
use assay_mqtt::BrokerUrl;
use assay_wire::{Flow, Scope};
use clap::{Parser, ValueEnum};

use crate::bad::{BadShare, share_of_one};
use crate::tpm::area::{EkKind, IkKind};

/// Provisions simulated devices against `assay serve` over real MQTT connections, and reports how
/// fast that went.
///
/// Each device has a software TPM: an EK that a test vendor certified, an IK with its request, and
/// the computations of TPM2_ActivateCredential. Keys are made once and kept. Unless --broker names
/// another CA, the `assay` beside this program serves a new CA, which knows none of the devices.
#[derive(Parser)]
#[command(version, after_help = EXAMPLES)]
pub(crate) struct Options {
    /// How many devices there are
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) devices: u32,
    /// ticket, sealed or shared-key; or renew: devices that have a certificate renew it once.
    /// Without --state they get that certificate first, which is not measured
    #[arg(long, default_value = "ticket")]
    pub(crate) flow: Course,
    /// Kinds of endorsement keys, dealt in turn. Making an RSA key takes a tenth of a second, once
    #[arg(long, value_name = "KINDS", value_delimiter = ',', default_value = "p-256")]
    pub(crate) ek: Vec<EkKind>,
    /// Kinds of identity keys, dealt in turn
    #[arg(long, value_name = "KINDS", value_delimiter = ',', default_value = "p-256")]
    pub(crate) ik: Vec<IkKind>,
    /// Closed loop: so many devices at once; the next begins when one is done
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) concurrency: u32,
    /// Open loop: so many devices begin each second, whether or not others are done; latencies
    /// count from when they were due
    #[arg(long, value_name = "PER_SECOND", conflicts_with = "concurrency", value_parser = positive)]
    pub(crate) rate: Option<f64>,
    /// Whether devices share connections, each serving 32 publishes, or make one each
    #[arg(long, value_enum, default_value_t = Reuse::Reused)]
    pub(crate) connection: Reuse,
    /// How many connections there are at once: at most 4096, or 1354 that are shared, because the
    /// broker takes no more than 4096 from one network [default: as many as devices at once, 64 in
    /// an open loop]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) connections: Option<u32>,
    /// Reach concurrency or rate only after this time
    #[arg(long, value_name = "SECONDS", default_value_t = 0.0, value_parser = not_negative)]
    pub(crate) ramp: f64,
    /// Share of devices that drop their connection after the first reply, and begin again on
    /// another
    #[arg(long, value_name = "SHARE", default_value_t = 0.0, value_parser = share_of_one)]
    pub(crate) churn: f64,
    /// Share of devices that are bad in this way, and must be refused with the problem that is due;
    /// may be repeated. Kinds: truncated, oversize, untrusted-vendor, foreign-certificate,
    /// not-fixed-tpm, plain-srk, foreign-csr, wrong-ticket, foreign-response-topic
    #[arg(long, value_name = "KIND=SHARE")]
    pub(crate) bad: Vec<BadShare>,
    /// The bootstrap listener of a broker that runs already, whose CA trusts the vendor in --cache
    #[arg(long, value_name = "URL", requires = "ca_root")]
    pub(crate) broker: Option<BrokerUrl>,
    /// The root certificate of that broker and its CA
    #[arg(long, value_name = "FILE", requires = "broker")]
    pub(crate) ca_root: Option<PathBuf>,
    /// The operational listener of that broker, for --hold
    #[arg(long, value_name = "URL", requires = "broker")]
    pub(crate) operational: Option<BrokerUrl>,
    /// The scope of that CA
    #[arg(long, default_value = "default")]
    pub(crate) scope: Scope,
    /// When all are done, connect each with its certificate, and report the server's memory with
    /// all of them connected. Fails if one is not let in
    #[arg(long)]
    pub(crate) hold: bool,
    /// Keep the devices with their keys and certificates in this file (mode 0600) for later runs.
    /// If it exists, the devices are those in it, and --devices, --ek and --ik do not count
    #[arg(long, value_name = "FILE", requires = "broker")]
    pub(crate) state: Option<PathBuf>,
    /// Share of the devices in --state that sleep: they do nothing in this run. The same share is
    /// the same devices
    #[arg(long, value_name = "SHARE", requires = "state", default_value_t = 0.0, value_parser = share_of_one)]
    pub(crate) asleep: f64,
    /// Where the CA of this run is on record
    #[arg(long, value_enum, conflicts_with = "broker", default_value_t = Store::Sqlite)]
    pub(crate) store: Store,
    /// The issuing key of the CA of this run is in the token of this URI, as for `assay init`
    #[arg(long, value_name = "URI", conflicts_with = "broker")]
    pub(crate) issuing_key: Option<String>,
    /// Print only the files of the test vendor's certificates, for `assay trust add` in the CA of
    /// --broker
    #[arg(long)]
    pub(crate) vendor: bool,
    /// Print the report as one JSON object on stdout instead of a table on stderr
    #[arg(long)]
    pub(crate) json: bool,
    /// Draw the latencies by percentile
    #[arg(long, value_name = "FILE.svg")]
    pub(crate) plot: Option<PathBuf>,
    /// Where keys are kept from run to run [default: fleet-cache beside the directory of this
    /// program]
    #[arg(long, value_name = "DIR")]
    pub(crate) cache: Option<PathBuf>,
}

/// What devices do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Course {
    /// They are provisioned.
    Provision(Flow),
    /// They renew what they have.
    Renew,
}

impl Course {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Provision(flow) => flow.name(),
            Self::Renew => "renew",
        }
    }

    /// The flow by which devices get what they have.
    pub(crate) fn flow(self) -> Flow {
        match self {
            Self::Provision(flow) => flow,
            Self::Renew => Flow::Ticket,
        }
    }
}

impl FromStr for Course {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "renew" => Ok(Self::Renew),
            text => Ok(Self::Provision(text.parse()?)),
        }
    }
}

/// A kind of store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Store {
    Sqlite,
    Postgres,
}

/// Whether connections are shared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Reuse {
    Reused,
    PerDevice,
}

impl Options {
    /// Refuses options that do not fit together.
    pub(crate) fn check(&self) -> Result<()> {
        self.connections()?;
        let has_certificates = self.flow != Course::Provision(Flow::SharedKey);
        ensure!(
            has_certificates || !self.hold && self.state.is_none(),
            "--hold, --state: devices of flow shared-key get no certificate"
        );
        ensure!(
            !self.hold || self.broker.is_none() || self.operational.is_some(),
            "--hold: name the listener for devices with --operational"
        );
        ensure!(
            self.flow != Course::Renew || self.bad.is_empty() && self.churn == 0.0,
            "--bad, --churn: flow renew has no such requests"
        );
        let bad: f64 = self.bad.iter().map(|bad| bad.share).sum();
        ensure!(
            bad + self.churn <= 1.0,
            "--bad and --churn: the shares come to more than all devices"
        );
        for BadShare { kind, .. } in &self.bad {
            let name = kind.name();
            ensure!(
                kind.problem(self.flow.flow()).is_some(),
                "--bad {name}: flow {} has no such request",
                self.flow.name()
            );
        }
        Ok(())
    }

    /// The run in one line.
    pub(crate) fn title(&self) -> String {
        let names = |kinds: Vec<&str>| kinds.join("+");
        let pace = match self.rate {
            Some(rate) => format!("{rate} devices/s"),
            None => format!("{} devices at once", self.concurrency),
        };
        let connection = match self.connection {
            Reuse::Reused => "reused connections",
            Reuse::PerDevice => "a connection each",
        };
        let ek = names(self.ek.iter().map(|kind| kind.name()).collect());
        let flow = self.flow.name();
        format!("{} devices, flow {flow}, EK {ek}, {pace}, {connection}", self.devices)
    }

    /// How many connections there may be at once.
    pub(crate) fn connections(&self) -> Result<usize> {
        let most = match self.connection {
            Reuse::Reused => SHARED,
            Reuse::PerDevice => PER_NETWORK,
        };
        let wanted = self.connections.unwrap_or_else(|| match self.rate {
            None => self.concurrency.min(most),
            Some(_) => DEFAULT_CONNECTIONS,
        });
        ensure!(
            wanted <= most,
            "--connections {wanted}: the broker takes at most {most} from one network in this mode"
        );
        Ok(wanted as usize)
    }
}

fn not_negative(text: &str) -> Result<f64> {
    match f64::from_str(text) {
        Ok(number) if number.is_finite() && number >= 0.0 => Ok(number),
        _ => bail!("not a number of seconds"),
    }
}

fn positive(text: &str) -> Result<f64> {
    match f64::from_str(text) {
        Ok(number) if number.is_finite() && number > 0.0 => Ok(number),
        _ => bail!("not a positive number"),
    }
}

/// Connections of one network on the bootstrap listener (docs/protocol.md, "Bootstrap connection").
///
/// This client is always one network: rumqttc binds no address, and the kernel takes 127.0.0.1 for
/// all connections.
const PER_NETWORK: u32 = 4096;
/// Shared connections. The next connection is made before one is used up, and the old one may live
/// as long as the last request on it.
const SHARED: u32 = (PER_NETWORK - CHURNING) / 3;
/// Connections of devices that churn, while other devices share connections.
pub(crate) const CHURNING: u32 = 32;
const DEFAULT_CONNECTIONS: u32 = 64;

const EXAMPLES: &str = "\
Examples:
  assay-fleet --devices 5000 --ek p-256                             as fast as 64 devices at once \
                        can be provisioned
  assay-fleet --devices 2000 --ek rsa-2048 --connection per-device  with a TLS handshake each
  assay-fleet --devices 10000 --rate 500                            500 new devices a second, \
                        whatever happens
  assay-fleet --devices 10000 --hold                                what ten thousand connected \
                        devices cost a server
  assay-fleet --devices 10000 --flow renew --store postgres         how fast ten thousand devices \
                        renew";

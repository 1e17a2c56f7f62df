//! `assay broker check`: a stranger, devices, an operator and a worker try the rules that a broker
//! must keep.

mod cast;
mod certificates;
mod out_of_turn;
mod party;
pub(crate) mod quick;
mod raw;
mod rules;
mod throw_away;
mod tricks;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use assay_broker_plugin::access::{BACKEND_PREFIX, Identity, OPERATOR_PREFIX, WORKER_PREFIX};
use assay_broker_plugin::certificate;
use assay_mqtt::BrokerUrl;
use assay_server::directory::{Credentials, Directory};
use assay_server::{pipeline, random_bytes};
use clap::{Args, Subcommand};
use rustls::{ClientConfig, RootCertStore};
use time::OffsetDateTime;
use tokio::time::{Instant, timeout_at};

use super::outfit::{broker_roots, client_tls, local_url, nobodys_tls};
use super::service::Signals;
use super::table;
use cast::{Cast, Stage, Wardrobe};
use party::{NotIn, Persona, Stay};
use rules::{Report, Rule, Tried};
use throw_away::Devices;

#[derive(Subcommand)]
pub(crate) enum Broker {
    /// Try the rules that a broker must keep, and print which it keeps
    Check(Check),
}

#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Check {
    /// The listener for certificates of this CA [default: both listeners of the built-in broker]
    #[arg(value_name = "URL", value_parser = BrokerUrl::operational)]
    operational: Option<BrokerUrl>,
    /// The listener for devices without a certificate; without it, the rules for strangers are not
    /// tried
    #[arg(long, value_name = "URL", requires = "operational")]
    bootstrap: Option<BrokerUrl>,
    /// Root certificate of the broker, if it is not this CA's
    #[arg(long, value_name = "FILE")]
    broker_ca: Option<PathBuf>,
    /// A certificate that the broker's revocation list already has: NAME.pem and NAME.key, in the
    /// CA's directory or at a path
    #[arg(long, value_name = "NAME")]
    revoked: Option<String>,
    /// Ignore this rule in the exit status; may be repeated
    #[arg(long, value_name = "RULE", value_enum)]
    accept: Vec<Rule>,
    /// Print one JSON object a line
    #[arg(long)]
    json: bool,
}

impl Check {
    pub(crate) fn run(self, directory: &Directory) -> Result<ExitCode> {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let report = runtime.block_on(async {
            let mut signals = Signals::listen()?;
            let mut report =
                Err(anyhow::anyhow!("interrupted; the certificates of this check are revoked"));
            // If a signal drops the check, it puts everything back as at its end.
            signals.finish(async { report = self.check(directory).await }).await;
            report
        });
        runtime.shutdown_background();
        let report = report?;
        if self.json {
            report.objects().for_each(|object| table::print_json(&object));
        } else {
            table::print(["RULE", "VERDICT", "HOW"], report.rows(&self.accept));
        }
        for (verdict, rules) in report.amiss(&self.accept) {
            eprintln!("{verdict}: {}", rules.join(", "));
        }
        Ok(if report.is_good(&self.accept) { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }

    async fn check(&self, directory: &Directory) -> Result<Report> {
        let config = directory.config();
        let (operational, bootstrap) = match &self.operational {
            Some(url) => (url.clone(), self.bootstrap.clone()),
            None => (local_url(config.operational)?, Some(local_url(config.bootstrap)?)),
        };
        let roots = broker_roots(directory, self.broker_ca.as_deref())?;
        let known = self
            .revoked
            .as_deref()
            .map(|name| Revoked::read(directory, name, &roots))
            .transpose()?;
        // Before anything is made, this finds out whether the listener is there.
        let worker = client_tls(directory.credentials("worker")?, roots.clone(), "worker")?;
        let worker = Persona {
            broker: operational.clone(),
            tls: worker,
            id: format!("{WORKER_PREFIX}check"),
            user_name: None,
        };
        if let Err(NotIn::Unreachable(why)) = worker.enter().await {
            bail!(
                "{operational} is not reached: {why}. URL must be the listener for certificates \
                 of this CA, as for --broker of assay worker"
            );
        }
        let mut devices = Devices::make(directory)?;
        let stage = stage(directory, &devices, &roots, operational, bootstrap)?;
        eprintln!("trying the rules at {}, for {} s at most", stage.operational, TIME.as_secs());

        let (report, end) = (Report::default(), Instant::now() + TIME);
        let cast = Cast::enter(&stage, &report).await;
        let slow = async {
            let silent = raw::silent(stage.stranger()).await;
            report.add(Rule::Silent, cast.stranger_is_in().and(silent));
        };
        let others = async {
            report.add(Rule::Packet, raw::oversize(stage.stranger()).await);
            out_of_turn::all(&cast, &report).await;
            tricks::all(&cast, &report).await;
            certificates::all(&cast, &report).await;
            report.add(Rule::Revoked, revoked(&cast, &mut devices, known).await);
        };
        if timeout_at(end, async { tokio::join!(slow, others) }).await.is_err() {
            eprintln!("the time is over; the other rules are not tried");
        }
        if cast.planted.get()
            && let Err(error) = put_right(directory, &cast).await
        {
            eprintln!(
                "the revocation list could not be published again; a worker publishes it at its \
                 next start: {error:#}"
            );
        }
        Ok(report)
    }
}

fn stage(
    directory: &Directory,
    devices: &Devices,
    roots: &RootCertStore,
    operational: BrokerUrl,
    bootstrap: Option<BrokerUrl>,
) -> Result<Stage> {
    let shows = |credentials, who| client_tls(credentials, roots.clone(), who);
    let tls = Wardrobe {
        nobody: nobodys_tls(roots.clone())?,
        worker: shows(directory.credentials("worker")?, "worker")?,
        operator: shows(directory.credentials("operator")?, "operator")?,
        device: shows(devices.device.credentials.clone(), "device")?,
        other_device: shows(devices.other.credentials.clone(), "device")?,
        expired: shows(devices.expired.credentials.clone(), "device")?,
        foreign: shows(Credentials::of_another_ca()?, "another CA's worker")?,
    };
    Ok(Stage {
        ca: directory.ca()?,
        scope: directory.config().scope.clone(),
        operational,
        bootstrap,
        roots: roots.clone(),
        tls,
        device: devices.device.id.clone(),
        other_device: devices.other.id.clone(),
        expired: devices.expired.id.clone(),
        group: format!("check-{}", hex::encode(random_bytes::<8>())),
    })
}

/// A certificate that was revoked long ago.
struct Revoked {
    tls: Arc<ClientConfig>,
    /// The client id that goes with it.
    id: String,
}

impl Revoked {
    fn read(directory: &Directory, name: &str, roots: &RootCertStore) -> Result<Self> {
        let credentials = directory.credentials(name)?;
        let identity =
            certificate::identity(&credentials.chain[0]).with_context(|| format!("{name}.pem"))?;
        let id = match identity {
            Identity::Device { device_id, .. } => device_id.to_string(),
            Identity::Operator => format!("{OPERATOR_PREFIX}check"),
            Identity::Worker => format!("{WORKER_PREFIX}check"),
            Identity::Backend { name } => format!("{BACKEND_PREFIX}{name}@check"),
        };
        Ok(Self { tls: client_tls(credentials, roots.clone(), name)?, id })
    }
}

async fn revoked(cast: &Cast<'_>, devices: &mut Devices, known: Option<Revoked>) -> Tried {
    let stage = cast.stage;
    cast.is_let_in()?;
    match known {
        Some(Revoked { tls, id }) => {
            certificates::shown(
                &stage.persona(&tls, id),
                "with the certificate that --revoked names",
            )
            .await
        }
        None => {
            let tls =
                client_tls(devices.revoked.credentials.clone(), stage.roots.clone(), "device");
            let tls = tls.map_err(|error| error.to_string())?;
            let id = devices.revoked.id.to_string();
            certificates::revoked(stage, &tls, id, || Ok(devices.revoke_one()?)).await
        }
    }
}

/// Publishes the list as it is now, because it may have changed since the planted one was read.
async fn put_right(directory: &Directory, cast: &Cast<'_>) -> Result<()> {
    let worker = cast.worker().map_err(anyhow::Error::msg)?;
    let lists = cast.stage.ca.revocation_lists(
        &mut *directory.store()?,
        pipeline::MAX_LIST,
        OffsetDateTime::now_utc(),
    )?;
    for list in lists.signed.iter().filter(|list| list.in_use) {
        worker.publish(&cast.stage.list(), &list.der, Stay::Yes).await;
    }
    Ok(())
}

/// The slowest rule, `silent`, takes half of it.
const TIME: Duration = Duration::from_secs(30);

const EXAMPLES: &str = "\
Rules and what they are for: docs/operations.md, \"Other brokers\". A rule is kept,
broken or not tried. The check makes certificates for four devices that do not
exist, good for ten minutes, and revokes them at its end. It takes no request
away from workers and leaves no message behind.

Exit status: 0 if every rule is kept, apart from those that --accept names; else 1.

Examples:
  assay --dir ca broker check                      the built-in broker, on this machine
  assay --dir ca broker check mqtts://mosquitto:8884 --bootstrap mqtts://mosquitto:8883
  assay --dir ca broker check mqtts://mosquitto:8884 --bootstrap mqtts://mosquitto:8883 \\
      --accept silent --accept group --json";

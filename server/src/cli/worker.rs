//! `assay worker`

use std::cell::Cell;
use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use assay_mqtt::BrokerUrl;
use assay_server::clock::Gate;
use assay_server::directory::Directory;
use assay_server::expiry;
use assay_server::operations;
use assay_server::operations::restore::refuse_if_held;
use assay_server::pipeline::{self, Bulletin, Metrics, WorkerConfig};
use clap::Args;
use tokio::sync::watch;

use super::check::quick::Quick;
use super::outfit::{broker_roots, reread, worker_outfit};
use super::service::{self, Signals, Systemd, attend};

#[derive(Args)]
pub(crate) struct Worker {
    /// Any MQTT 5 broker: `mqtts://HOST:PORT`, or `mqtt://HOST:PORT` without TLS
    #[arg(long)]
    broker: BrokerUrl,
    /// Root certificate of the broker, if it is not this CA's
    #[arg(long, value_name = "FILE")]
    broker_ca: Option<PathBuf>,
    /// Where its devices connect without a certificate: at its start the worker tries whether it
    /// hears them
    #[arg(long, value_name = "URL")]
    bootstrap: Option<BrokerUrl>,
}

impl Worker {
    pub(crate) fn run(self, directory: &Directory) -> Result<()> {
        service::run(async {
            let (mut signals, systemd) = (Signals::listen()?, Systemd::default());
            // First, for its error says best what to do where there is no CA yet.
            let database = directory.database()?;
            refuse_if_held(&mut *directory.store()?)?;
            let (outfit, worn) =
                watch::channel(worker_outfit(directory, self.broker_ca.as_deref())?);
            let config = WorkerConfig {
                broker: self.broker.clone(),
                outfit: worn,
                database,
                retention: directory.config().retention,
                gate: Arc::new(Gate::default()),
                metrics: Metrics::default(),
                bulletin: Bulletin::default(),
                pulse: Systemd::watchdog(),
            };
            let roots = broker_roots(directory, self.broker_ca.as_deref())?;
            let scope = directory.config().scope.clone();
            let quick = Cell::new(Some(Quick::new(
                scope,
                self.broker.clone(),
                self.bootstrap.clone(),
                roots,
            )?));
            let (stop, stopping) = watch::channel(None);
            let worker = pipeline::run(config, stopping, |event| {
                systemd.tell(event, &self.broker, || {
                    // Nobody has to listen.
                    _ = writeln!(io::stdout(), "ready");
                    // Beside its work, and once.
                    if let Some(quick) = quick.take() {
                        tokio::spawn(quick.look());
                    }
                })
            });
            let of = directory.clone();
            let endings = move |now| operations::ending(&of, now);
            let worker = async {
                tokio::select! {
                    ended = worker => ended,
                    () = expiry::watch(endings) => Ok(()),
                }
            };
            attend(worker, &mut signals, &systemd, &stop, FINISH, || {
                let (fresh, mut waiting) = reread(directory)?;
                outfit.send_replace(worker_outfit(&fresh, self.broker_ca.as_deref())?);
                // It has no listeners of its own.
                waiting.retain(|setting| *setting == "scope");
                Ok(waiting)
            })
            .await
        })
    }
}

/// What a worker may take to answer what it was given: devices wait 20 s for an answer, systemd 90
/// s for the end of a service.
pub(super) const FINISH: Duration = Duration::from_secs(10);

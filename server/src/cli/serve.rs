//! `assay serve`

use std::io::{self, Write};
use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::{Context, Result};
use assay_broker_plugin::embedded::{DRAIN, EmbeddedBroker, EmbeddedBrokerConfig};
use assay_server::clock::Gate;
use assay_server::directory::Directory;
use assay_server::expiry;
use assay_server::operations;
use assay_server::operations::restore::refuse_if_held;
use assay_server::pipeline::{self, WorkerConfig};
use assay_server::register::StoreRegister;
use assay_server::revocations;
use clap::Args;
use tokio::sync::watch;
use tracing::info;

use super::outfit::{ServerOutfit, local_url, reread};
use super::service::{self, Signals, Systemd, attend};
use super::worker::FINISH;

#[derive(Args)]
pub(crate) struct Serve {
    /// Listen here for unprovisioned devices, instead of what assay.toml says; port 0 takes a free
    /// one
    #[arg(long, value_name = "ADDR")]
    bootstrap: Option<SocketAddr>,
    /// Listen here for certificates of this CA, instead of what assay.toml says; port 0 takes a
    /// free one
    #[arg(long, value_name = "ADDR")]
    operational: Option<SocketAddr>,
}

impl Serve {
    pub(crate) fn run(self, directory: &Directory) -> Result<()> {
        service::run(async {
            let (mut signals, systemd) = (Signals::listen()?, Systemd::default());
            let config = directory.config();
            // First, for its error says best what to do where there is no CA yet.
            let database = directory.database()?;
            refuse_if_held(&mut *directory.store()?)?;
            let bootstrap = self.bootstrap.unwrap_or(config.bootstrap);
            let operational = self.operational.unwrap_or(config.operational);
            let read =
                |directory: &Directory| ServerOutfit::read(directory, [bootstrap, operational]);
            let ServerOutfit { worker, tls } = read(directory)?;
            let (outfit, worn) = watch::channel(worker);
            let gate = Arc::new(Gate::default());
            let for_register = worn.clone();
            let register = StoreRegister::open(&database, Arc::clone(&gate), move || {
                Arc::clone(&for_register.borrow().ca)
            })?;

            let broker = EmbeddedBroker::start(EmbeddedBrokerConfig {
                bootstrap,
                operational,
                tls,
                scope: config.scope.clone(),
                register: Arc::new(register),
                limits: config.limits,
                balancers: config.balancers.clone(),
            })
            .await
            .with_context(|| {
                format!(
                    "cannot listen at {bootstrap} and {operational}: another process may hold a \
                     port, or both ports are the same; see --bootstrap and --operational, or \
                     [broker] in assay.toml"
                )
            })?;

            let bootstrap = local_url(broker.bootstrap_addr())?;
            let operational = local_url(broker.operational_addr())?;
            info!(
                address = %broker.bootstrap_addr(),
                from_here = %bootstrap,
                "listening for devices without certificate"
            );
            info!(
                address = %broker.operational_addr(),
                from_here = %operational,
                "listening for certificates of this CA"
            );
            let config = WorkerConfig {
                broker: operational.clone(),
                outfit: worn.clone(),
                database,
                retention: directory.config().retention,
                gate,
                pulse: Systemd::watchdog(),
            };
            let (stop, stopping) = watch::channel(None);
            let ready = || {
                broker.open();
                // Nobody has to listen.
                _ = writeln!(io::stdout(), "bootstrap {bootstrap}\noperational {operational}");
            };
            let worker =
                pipeline::run(config, stopping, |event| systemd.tell(event, &operational, ready));
            let store = directory.store()?;
            let of = directory.clone();
            let endings = move |now| operations::ending(&of, now);
            let served = async {
                tokio::select! {
                    ended = worker => ended,
                    () = revocations::watch(store, || broker.recheck()) => Ok(()),
                    () = expiry::watch(endings) => Ok(()),
                }
            };
            attend(served, &mut signals, &systemd, &stop, FINISH - DRAIN, || {
                let (fresh, waiting) = reread(directory)?;
                let ServerOutfit { worker, tls } = read(&fresh)?;
                outfit.send_replace(worker);
                broker.replace_tls(tls);
                // Tokens of a key or a flow that was removed are no longer good.
                broker.recheck();
                Ok(waiting)
            })
            .await?;
            signals.finish(broker.shutdown()).await;
            Ok(())
        })
    }
}

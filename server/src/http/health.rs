//! Whether the CA serves, and its metrics.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Result;
use assay_store::{Counts, Store};
use axum::extract::State;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use prometheus_client::encoding::{EncodeLabelSet, prometheus_text};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};
use time::OffsetDateTime;
use tokio::task::spawn_blocking;
use tokio::time::{sleep, timeout};
use tracing::warn;

use super::Face;
use super::caller::Reader;
use super::problem::{NO_STORE, Problem};
use super::records::Records;
use crate::clock::Gate;
use crate::directory::Directory;
use crate::operations;
use crate::pipeline::Metrics;

/// Whether a worker takes requests from a broker. Copies say the same.
#[derive(Clone, Default)]
pub struct Subscription(Arc<AtomicBool>);

impl Subscription {
    /// Says so.
    pub fn set(&self, is_there: bool) {
        self.0.store(is_there, Ordering::Relaxed);
    }

    fn is_there(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// What is known of the CA's health. Strangers cannot have anything looked up.
pub(super) struct Health {
    directory: Directory,
    gate: Arc<Gate>,
    metrics: Metrics,
    subscription: Subscription,
    records: Arc<Records>,
    gauges: Gauges,
    registry: Registry,
    /// When the store answered last.
    answered: Mutex<Option<Instant>>,
}

#[derive(Default)]
struct Gauges {
    ready: Gauge,
    store: Gauge,
    devices: Gauge,
    disabled: Gauge,
    pending: Gauge,
    certificates: Family<Status, Gauge>,
    ends: Family<Certificate, Gauge>,
    due: Gauge,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Status {
    status: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Certificate {
    file: String,
}

impl Gauges {
    fn register(&self, registry: &mut Registry) {
        let Self { ready, store, devices, disabled, pending, certificates, ends, due } = self;
        let mut gauge = |name, help, gauge: &Gauge| registry.register(name, help, gauge.clone());
        gauge("assay_ready", "1 if /readyz says so", ready);
        gauge("assay_store_up", "1 if the store answered within the last minute", store);
        gauge("assay_devices", "Devices that proved themselves", devices);
        gauge("assay_disabled_eks", "EKs that are disabled, registered or not", disabled);
        gauge("assay_pending_devices", "EKs that wait for an operator", pending);
        gauge("assay_renewals_due", "Certificates of identities and of the CA to be renewed", due);
        registry.register(
            "assay_certificates",
            "Certificates of devices on record; ended: superseded or revoked",
            certificates.clone(),
        );
        registry.register_with_unit(
            "assay_certificate_not_after_timestamp",
            "When the certificates in the CA's directory end, since 1970",
            Unit::Seconds,
            ends.clone(),
        );
    }
}

impl Health {
    pub(super) fn new(
        directory: Directory,
        gate: Arc<Gate>,
        metrics: Metrics,
        subscription: Subscription,
        records: Arc<Records>,
    ) -> Self {
        let (mut registry, gauges) = (Registry::default(), Gauges::default());
        let version = Info::new([("version", env!("ASSAY_VERSION"))]);
        registry.register("assay_build", "The version of Assay", version);
        gauges.register(&mut registry);
        metrics.register(&mut registry);
        let answered = Mutex::default();
        Self { directory, gate, metrics, subscription, records, gauges, registry, answered }
    }

    /// Looks at the store and at the certificates again and again. Never returns.
    pub(super) async fn watch(&self) {
        for look in 0.. {
            let looked = timeout(PATIENCE, self.look_at_store(look % COUNT_EVERY == 0)).await;
            match looked {
                Ok(Ok(())) => {
                    let mut answered = self.answered.lock().unwrap_or_else(PoisonError::into_inner);
                    *answered = Some(Instant::now());
                }
                Ok(Err(error)) => {
                    warn!(error = %format!("{error:#}"), "the store does not answer; /readyz says so");
                }
                Err(_) => warn!("the store does not answer in time; /readyz says so"),
            }
            if look % COUNT_EVERY == 0
                && let Err(error) = self.look_at_certificates().await
            {
                warn!(error = %format!("{error:#}"), "cannot say by /metrics whose certificates end");
            }
            sleep(LOOK).await;
        }
    }

    async fn look_at_store(&self, counts: bool) -> Result<()> {
        if !counts {
            return self.records.with(|store| Ok(store.changes().map(drop)?)).await;
        }
        let look = |store: &mut dyn Store| Ok((store.counts()?, store.pending()?.len()));
        let (counts, waiting) = self.records.with(look).await?;
        let Counts { devices, disabled, active, unconfirmed, ended } = counts;
        self.gauges.devices.set(number(devices));
        self.gauges.disabled.set(number(disabled));
        self.gauges.pending.set(number(waiting));
        for (status, count) in [("active", active), ("unconfirmed", unconfirmed), ("ended", ended)]
        {
            self.gauges.certificates.get_or_create(&Status { status }).set(number(count));
        }
        Ok(())
    }

    async fn look_at_certificates(&self) -> Result<()> {
        let directory = self.directory.clone();
        let (ends, due) = spawn_blocking(move || {
            let due = operations::ending(&directory, OffsetDateTime::now_utc())?.len();
            anyhow::Ok((directory.certificates()?, due))
        })
        .await??;
        self.gauges.due.set(number(due));
        // Of a file that is gone, nothing is said.
        self.gauges.ends.clear();
        for (file, not_after) in ends {
            let ends = self.gauges.ends.get_or_create_owned(&Certificate { file });
            ends.set(not_after.unix_timestamp());
        }
        Ok(())
    }

    /// What keeps the CA from serving; nothing if it serves.
    fn troubles(&self) -> Vec<String> {
        let mut troubles = Vec::new();
        if !self.subscription.is_there() {
            troubles.push("the worker has no connection to its broker".to_owned());
        }
        if let Err(unfit) = self.gate.allows(OffsetDateTime::now_utc()) {
            troubles.push(unfit.to_string());
        }
        if !self.store_is_up() {
            troubles.push("the store does not answer".to_owned());
        }
        troubles
    }

    fn store_is_up(&self) -> bool {
        let answered = *self.answered.lock().unwrap_or_else(PoisonError::into_inner);
        answered.is_some_and(|answered| answered.elapsed() < STALE)
    }

    fn text(&self) -> Result<String, std::fmt::Error> {
        self.gauges.ready.set(self.troubles().is_empty().into());
        self.gauges.store.set(self.store_is_up().into());
        self.metrics.refresh();
        let mut text = String::new();
        prometheus_text::encode(&mut text, &self.registry)?;
        Ok(text)
    }
}

/// The process answers.
pub(super) async fn alive() -> impl IntoResponse {
    ([NO_STORE], "alive\n")
}

/// Whether devices are served, and if not, why.
pub(super) async fn ready(State(face): State<Face>) -> impl IntoResponse {
    let troubles = face.health.troubles();
    match troubles.is_empty() {
        true => (StatusCode::OK, [NO_STORE], "ready\n".to_owned()),
        false => (StatusCode::SERVICE_UNAVAILABLE, [NO_STORE], troubles.join("\n") + "\n"),
    }
}

/// Prometheus text.
pub(super) async fn metrics(_: Reader, State(face): State<Face>) -> Result<Response, Problem> {
    let text = face.health.text().map_err(|error| Problem::ours(&error.into()))?;
    let kind = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    Ok(([(header::CONTENT_TYPE, kind), NO_STORE], text).into_response())
}

fn number(count: impl TryInto<i64>) -> i64 {
    count.try_into().unwrap_or(i64::MAX)
}

/// How often the store is asked whether it answers.
const LOOK: Duration = Duration::from_secs(15);
/// At every so many looks, it counts, which takes longer.
const COUNT_EVERY: u32 = 4;
/// A store that is waited for fails after some ten seconds.
const PATIENCE: Duration = Duration::from_secs(30);
/// After so long without an answer, the store is not there.
const STALE: Duration = Duration::from_secs(60);

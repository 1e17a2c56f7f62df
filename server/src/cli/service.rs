//! A process that stays: its log, the signals it obeys, and what systemd hears of it.

use std::cell::Cell;
use std::io::{self, IsTerminal};
use std::pin::pin;
use std::time::Duration;

use anyhow::{Result, bail};
use assay_mqtt::BrokerUrl;
use assay_server::pipeline::{Event, WorkerError};
use sd_notify::NotifyState;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tokio::time::Instant;
use tracing::{debug, error, info, warn};
use tracing_subscriber::EnvFilter;

use super::table;

/// Runs a process that stays, with its log on stderr (`ASSAY_LOG` sets the level).
pub(super) fn run(work: impl Future<Output = Result<()>>) -> Result<()> {
    let filter = EnvFilter::builder().with_env_var("ASSAY_LOG").try_from_env();
    tracing_subscriber::fmt()
        .with_env_filter(filter.unwrap_or_else(|_| EnvFilter::new("info,rumqttc=error")))
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal())
        // It would panic where stderr is closed.
        .log_internal_errors(false)
        .init();
    info!(version = env!("ASSAY_VERSION"), "starting");
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(threads())
        .enable_all()
        .build()?;
    let done = runtime.block_on(work);
    // A thread that is stuck must not keep the process.
    runtime.shutdown_background();
    done
}

/// Half of the processors serve connections: deciding and storing have threads of their own, and
/// with more the slowest replies take twice as long (docs/performance.md).
fn threads() -> usize {
    std::thread::available_parallelism().map_or(1, |processors| processors.get().div_ceil(2))
}

/// Waits for `worker`, and does what signals ask for meanwhile: at SIGHUP `reload` replaces what
/// can be replaced and names the settings that have to wait for the next start; at SIGTERM and
/// SIGINT the worker is told to `stop` and has until `within` from then.
///
/// # Errors
/// The worker's, or a second signal asked to stop: then at once.
pub(super) async fn attend(
    worker: impl Future<Output = Result<(), WorkerError>>,
    signals: &mut Signals,
    systemd: &Systemd,
    stop: &watch::Sender<Option<Instant>>,
    within: Duration,
    mut reload: impl FnMut() -> Result<Vec<&'static str>>,
) -> Result<()> {
    let mut worker = pin!(worker);
    loop {
        let asked = tokio::select! {
            ended = &mut worker => {
                ended?;
                info!("stopped; all requests that were started are answered");
                return Ok(());
            }
            asked = signals.next() => asked,
        };
        let stopping = stop.borrow().is_some();
        match asked {
            Asked::Reload if stopping => {}
            Asked::Reload => systemd.reload(|| reread(&mut reload)),
            Asked::Stop if stopping => bail!("told to stop a second time: stopped at once"),
            Asked::Stop => {
                info!(within = ?within, "stopping: finishing the requests that were started");
                systemd.stop();
                stop.send_replace(Some(Instant::now() + within));
            }
        }
    }
}

/// The outcome in a few words.
fn reread(reload: &mut impl FnMut() -> Result<Vec<&'static str>>) -> String {
    match reload() {
        Ok(waiting) => {
            info!("reread certificates, keys and settings");
            for setting in waiting {
                warn!(setting, "changed in assay.toml; that needs a restart");
            }
            "reread certificates, keys and settings".into()
        }
        Err(error) => {
            error!(error = %format!("{error:#}"), "nothing was reread; everything stays as it was");
            format!("nothing was reread: {error:#}")
        }
    }
}

/// The signals that a process that stays obeys.
pub(super) struct Signals {
    hangup: Signal,
    interrupt: Signal,
    terminate: Signal,
}

enum Asked {
    Reload,
    Stop,
}

impl Signals {
    /// From now on none of them ends the process by itself.
    pub(super) fn listen() -> io::Result<Self> {
        Ok(Self {
            hangup: signal(SignalKind::hangup())?,
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
        })
    }

    async fn next(&mut self) -> Asked {
        tokio::select! {
            _ = self.hangup.recv() => Asked::Reload,
            _ = self.interrupt.recv() => Asked::Stop,
            _ = self.terminate.recv() => Asked::Stop,
        }
    }

    /// Does the last of the work; dropped by another signal to stop.
    pub(super) async fn finish(&mut self, work: impl Future<Output = ()>) {
        tokio::select! {
            () = work => {}
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}

/// What systemd is told (sd_notify(3)), or whoever listens at `NOTIFY_SOCKET`; else nobody.
#[derive(Default)]
pub(super) struct Systemd {
    ready: Cell<bool>,
}

impl Systemd {
    /// How often a watchdog wants to hear of the worker, if there is one: twice in its time.
    pub(super) fn watchdog() -> Option<Duration> {
        sd_notify::watchdog_enabled().map(|time| time / 2)
    }

    /// Passes on what a worker tells; calls `first` when it takes requests for the first time.
    pub(super) fn tell(&self, event: Event<'_>, broker: &BrokerUrl, first: impl FnOnce()) {
        match event {
            Event::Subscribed => {
                info!(%broker, "taking requests");
                if !self.ready.replace(true) {
                    first();
                }
                notify(&[
                    NotifyState::Ready,
                    NotifyState::Status(&format!("taking requests at {broker}")),
                ]);
            }
            Event::Disconnected(error) => {
                let status = format!("no connection to {broker}: {error:#}");
                notify(&[NotifyState::Status(&table::printable(&status))]);
            }
            Event::Pulse => notify(&[NotifyState::Watchdog]),
        }
    }

    /// Tells of the beginning and the end of `work`, which returns a status.
    fn reload(&self, work: impl FnOnce() -> String) {
        // Before it is ready, a service has nothing to reload, and would be taken for ready
        // afterwards.
        let ready = self.ready.get();
        match NotifyState::monotonic_usec_now() {
            Ok(now) if ready => notify(&[NotifyState::Reloading, now]),
            _ => {}
        }
        let status = table::printable(&work());
        match ready {
            true => notify(&[NotifyState::Ready, NotifyState::Status(&status)]),
            false => notify(&[NotifyState::Status(&status)]),
        }
    }

    fn stop(&self) {
        notify(&[
            NotifyState::Stopping,
            NotifyState::Status("finishing the requests that were started"),
        ]);
    }
}

fn notify(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        debug!(%error, "systemd could not be told");
    }
}

//! Tells systemd, or whoever listens at `NOTIFY_SOCKET`, how the agent is (sd_notify(3)).

use std::time::Duration;

use sd_notify::NotifyState;
use tokio::time::{Instant, sleep_until};

/// What systemd has been told.
pub(super) struct Systemd {
    is_ready: bool,
    /// How often its watchdog wants to hear of the agent: twice in the watchdog's time.
    pulse: Option<Duration>,
    next_pulse: Instant,
}

impl Systemd {
    pub(super) fn new() -> Self {
        let pulse = sd_notify::watchdog_enabled().map(|time| time / 2);
        Self { is_ready: false, pulse, next_pulse: Instant::now() }
    }

    /// The device can sign in.
    pub(super) fn ready(&mut self) {
        if !std::mem::replace(&mut self.is_ready, true) {
            notify(&[NotifyState::Ready]);
        }
    }

    /// `status` is one line.
    pub(super) fn status(&self, status: &str) {
        notify(&[NotifyState::Status(status)]);
    }

    pub(super) fn stopping(&self) {
        notify(&[NotifyState::Stopping]);
    }

    /// Waits until it is time for a sign of life, and gives it. Waits for ever if nobody wants one.
    pub(super) async fn pulse(&mut self) {
        let Some(pulse) = self.pulse else { return std::future::pending().await };
        sleep_until(self.next_pulse).await;
        self.next_pulse = Instant::now() + pulse;
        notify(&[NotifyState::Watchdog]);
    }
}

/// Nobody may listen, and that is no fault.
fn notify(states: &[NotifyState<'_>]) {
    _ = sd_notify::notify(states);
}

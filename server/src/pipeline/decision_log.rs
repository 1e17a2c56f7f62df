//! What the log says of decisions: one line each, as far as the budgets of lines last.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use assay_wire::{ClientId, DeviceId, EkId};
use tracing::{error, info, warn};

use assay_broker_plugin::meter::{Budget, Meter, Rate};
use assay_store::AuditEntry;

/// Writes lines about decisions, and counts those that it leaves out.
///
/// Strangers choose what is decided, and how often. So each source has a budget of lines, and all
/// sources that have proven nothing share another budget, because names cost nothing. The audit
/// also has the decisions that are left out here.
#[derive(Clone)]
pub struct DecisionLog(Arc<Budgets>);

struct Budgets {
    sources: Meter<Source>,
    unproven: Mutex<Budget>,
    faults: Mutex<Budget>,
    left_out: AtomicU64,
}

/// Who caused a decision, as far as that is known.
#[derive(PartialEq, Eq, Hash)]
enum Source {
    Device(DeviceId),
    Ek(EkId),
    Client(ClientId),
}

impl Default for DecisionLog {
    /// With full budgets.
    fn default() -> Self {
        Self(Arc::new(Budgets {
            sources: Meter::new(SOURCE),
            unproven: Mutex::default(),
            faults: Mutex::default(),
            left_out: AtomicU64::default(),
        }))
    }
}

impl DecisionLog {
    /// Writes one line for a decision; for a certificate, once it is stored.
    pub(super) fn decision(&self, entry: &AuditEntry) {
        let source = match (entry.proven(), entry.ek_id) {
            (Some(device), _) => Source::Device(device.clone()),
            (None, Some(ek)) => Source::Ek(ek),
            (None, None) => Source::Client(entry.client.clone()),
        };
        let now = Instant::now();
        if !self.0.sources.allows(source, 1, now)
            || entry.proven().is_none() && !spend(&self.0.unproven, UNPROVEN, now)
        {
            self.leave_out();
            return;
        }
        let ek = entry.ek_id.map(|id| id.to_string());
        let (device, due) =
            (entry.proven().map(DeviceId::as_str), entry.due().map(DeviceId::as_str));
        match &entry.refusal {
            Some((code, detail)) => {
                info!(client = %entry.client, ek, device, due, %code, detail, "{} refused", entry.action);
            }
            None => info!(client = %entry.client, ek, device, due, "{} granted", entry.action),
        }
    }

    /// Logs a fault of ours. A device that asks again and again meets the same fault each time.
    pub(super) fn fault(&self, what: &str, error: &dyn std::fmt::Display) {
        if spend(&self.0.faults, FAULTS, Instant::now()) {
            error!(%error, "{what}");
        } else {
            self.leave_out();
        }
    }

    /// Logs how many lines were left out since the last call, if any were.
    pub(super) fn tell_left_out(&self) {
        let lines = self.0.left_out.swap(0, Ordering::Relaxed);
        if lines > 0 {
            warn!(
                lines,
                "lines left out of this log, because one source wrote too many; `assay audit` has \
                 the decisions"
            );
        }
    }

    fn leave_out(&self) {
        self.0.left_out.fetch_add(1, Ordering::Relaxed);
    }
}

fn spend(budget: &Mutex<Budget>, rate: Rate, now: Instant) -> bool {
    budget.lock().unwrap_or_else(PoisonError::into_inner).allows(1, rate, now)
}

/// A device that begins again three times, in all flows, stays below this.
const SOURCE: Rate = Rate::per_second(1, 20);
/// If a fleet arrives at once, the first five hundred devices get a line. A line has 300 bytes, 800
/// at most: strangers write 3.5 GB a day at most.
const UNPROVEN: Rate = Rate::per_second(50, 500);
/// All sources share this, because all meet the same fault.
const FAULTS: Rate = Rate::per_second(1, 20);

#[cfg(test)]
mod tests {
    use assay_wire::ProblemCode;
    use time::OffsetDateTime;
    use tracing::subscriber::with_default;

    use super::*;
    use assay_store::Change;
    use assay_store::Whom;

    #[test]
    fn one_source_gets_few_lines_and_takes_none_from_others() {
        let (decisions, log) = (DecisionLog::default(), Log::default());
        with_default(log.subscriber(), || {
            (0..1000).for_each(|_| decisions.decision(&refusal("noisy", None)));
            (0..20).for_each(|_| decisions.decision(&refusal("quiet", None)));
            decisions.tell_left_out();
            decisions.tell_left_out();
        });
        // On a slow machine, some of the budget comes back meanwhile.
        let noisy = log.lines("client=noisy");
        assert!((20..30).contains(&noisy), "{noisy}");
        assert_eq!(log.lines("client=quiet"), 20);
        assert_eq!(log.lines(&format!("lines={}", 1000 - noisy)), 1);
        assert_eq!(log.lines("lines="), 1, "nothing is told when nothing was left out");
    }

    #[test]
    fn names_that_strangers_invent_leave_room_for_devices_that_proved_themselves() {
        let (decisions, log) = (DecisionLog::default(), Log::default());
        with_default(log.subscriber(), || {
            (0..2000).for_each(|n| decisions.decision(&refusal(&format!("stranger-{n}"), None)));
            decisions.decision(&refusal("c", Some(Whom::Proven("pump-17".parse().unwrap()))));
            decisions.decision(&refusal("c", Some(Whom::Due("pump-18".parse().unwrap()))));
        });
        let strangers = log.lines("client=stranger-");
        // Some of the budget comes back while they are written.
        assert!((500..1000).contains(&strangers), "{strangers}");
        assert_eq!(log.lines("device=\"pump-17\""), 1);
        assert_eq!(log.lines("pump-18"), 0, "an EK that somebody shows proves nothing");
    }

    #[test]
    fn faults_that_strangers_find_are_few_lines() {
        let (decisions, log) = (DecisionLog::default(), Log::default());
        with_default(log.subscriber(), || {
            (0..1000).for_each(|_| decisions.fault("the CA failed", &"disk full"));
            decisions.tell_left_out();
        });
        let faults = log.lines("the CA failed");
        assert!((20..30).contains(&faults), "{faults}");
        assert_eq!(log.lines(&format!("lines={}", 1000 - faults)), 1);
    }

    fn refusal(client: &str, device: Option<Whom>) -> AuditEntry {
        AuditEntry {
            time: OffsetDateTime::now_utc(),
            client: client.parse().unwrap(),
            action: "challenge",
            ek_id: None,
            device,
            change: Change::None,
            refusal: Some((ProblemCode::EkWeak, "weak".into())),
            duration_us: 0,
        }
    }

    /// What was written to the log.
    #[derive(Clone, Default)]
    struct Log(Arc<Mutex<Vec<u8>>>);

    impl Log {
        fn subscriber(&self) -> impl tracing::Subscriber + Send + Sync + 'static {
            let log = self.clone();
            tracing_subscriber::fmt().with_ansi(false).with_writer(move || log.clone()).finish()
        }

        fn lines(&self, with: &str) -> usize {
            let log = self.0.lock().unwrap();
            String::from_utf8_lossy(&log).lines().filter(|line| line.contains(with)).count()
        }
    }

    impl std::io::Write for Log {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
}

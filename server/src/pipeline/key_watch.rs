//! Whether the keys that are elsewhere sign. They are tried now and then, by a worker that is logged
//! in to their tokens already, so that whoever asks for the CA's health neither waits nor logs in.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError};
use tokio::sync::watch;
use tracing::debug;

use super::Outfit;
use crate::ca::Ca;
use crate::clock::Gate;

/// What is known of the keys.
#[derive(Clone, Default)]
pub(super) struct KeyWatch(Arc<Mutex<Tried>>);

#[derive(Default)]
struct Tried {
    /// Since when they are being tried, if they are.
    since: Option<Instant>,
    /// Whether one did not sign when it was last tried.
    failed: bool,
}

impl KeyWatch {
    /// Whether a key does not sign, or takes as long as one that does not.
    pub(super) fn misses_one(&self) -> bool {
        let tried = self.locked();
        tried.failed || tried.since.is_some_and(|since| since.elapsed() > SLOW)
    }

    /// Tries them until the worker stops, and at once when the CA is another one.
    pub(super) fn run(
        &self,
        mut outfit: watch::Receiver<Outfit>,
        gate: &Gate,
        stopped: &Receiver<()>,
    ) {
        loop {
            let ca = Arc::clone(&outfit.borrow_and_update().ca);
            self.attempt(|| sign(&ca, gate));
            let next = Instant::now() + if self.misses_one() { AGAIN } else { PERIOD };
            while Instant::now() < next && !outfit.has_changed().unwrap_or(false) {
                if stopped.recv_timeout(POLL) != Err(RecvTimeoutError::Timeout) {
                    return;
                }
            }
        }
    }

    fn attempt(&self, sign: impl FnOnce() -> bool) {
        self.locked().since = Some(Instant::now());
        let signs = sign();
        *self.locked() = Tried { since: None, failed: !signs };
    }

    fn locked(&self) -> MutexGuard<'_, Tried> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether each key signs that is elsewhere and signs certificates or lists still.
fn sign(ca: &Ca, gate: &Gate) -> bool {
    let Some(now) = gate.now() else { return true };
    let needed = ca.issuers.all().iter().map(|it| &it.issuer).filter(|it| it.not_after() > now);
    // Each is tried, so that the log speaks of each.
    let missing = needed.filter(|issuer| issuer.try_key().is_err()).count();
    let fetched = ca.fetch_secrets().inspect_err(|error| {
        debug!(error = %format!("{error:#}"), "a secret of the CA is missing");
    });
    missing == 0 && fetched.is_ok()
}

/// How often keys are tried. It costs a token in the cloud some 250,000 signatures a month.
const PERIOD: Duration = Duration::from_secs(10);
/// The same, while one does not sign. Its token is opened again within ten seconds.
const AGAIN: Duration = Duration::from_secs(2);
/// How late a reload or the end is noticed.
const POLL: Duration = Duration::from_millis(250);
/// The slowest smart cards take a second or two. Whoever asks waits for five.
const SLOW: Duration = Duration::from_secs(4);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pkcs11_key_that_fails_or_does_not_return_is_missed_until_it_signs() {
        let watch = KeyWatch::default();
        assert!(!watch.misses_one(), "nobody knows yet");
        watch.attempt(|| false);
        assert!(watch.misses_one());
        watch.attempt(|| {
            assert!(watch.misses_one(), "the last answer counts until there is another");
            true
        });
        assert!(!watch.misses_one());
        watch.attempt(|| {
            assert!(!watch.misses_one());
            let ago = SLOW + Duration::from_millis(1);
            watch.locked().since = Instant::now().checked_sub(ago);
            assert!(watch.misses_one(), "it takes too long");
            true
        });
        assert!(!watch.misses_one());
    }
}

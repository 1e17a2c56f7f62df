//! Counts what a worker has started and not finished.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Counts the requests that were received and not acknowledged, and the messages that wait for a
/// connection.
#[derive(Clone, Default)]
pub(super) struct Ledger(Arc<AtomicUsize>);

/// One request or message. It counts until it is dropped, wherever that happens.
pub(super) struct Debt(Ledger);

impl Ledger {
    pub(super) fn owe(&self) -> Debt {
        self.0.fetch_add(1, Ordering::Relaxed);
        Debt(self.clone())
    }

    pub(super) fn owed(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }
}

impl Drop for Debt {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::Relaxed);
    }
}

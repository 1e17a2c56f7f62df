//! Local connections that have sent no CONNECT yet.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::task::AbortHandle;

/// A bounded number of connections. Above it, the oldest one ends: it most likely says nothing.
#[derive(Default)]
pub(super) struct Waiting {
    connections: Mutex<VecDeque<(u64, AbortHandle)>>,
}

impl Waiting {
    pub(super) fn enter(&self, number: u64, task: AbortHandle) {
        let mut connections = self.connections();
        if connections.len() >= MOST
            && let Some((_, oldest)) = connections.pop_front()
        {
            oldest.abort();
        }
        connections.push_back((number, task));
    }

    /// The connection ended, or sent its CONNECT.
    pub(super) fn leave(&self, number: u64) {
        self.connections().retain(|(other, _)| *other != number);
    }

    fn connections(&self) -> MutexGuard<'_, VecDeque<(u64, AbortHandle)>> {
        self.connections.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A CONNECT comes within a moment, so even these are more than clients need.
const MOST: usize = 32;

//! Connections that devices share one after another, or a few at a time.

use std::sync::Arc;

use tokio::sync::{Mutex, Semaphore, SemaphorePermit};
use tokio::task::JoinHandle;

use crate::connection::{Broker, Connection, Lost, PUBLISHES};
use crate::tally::Tally;

/// A place for one connection, which is replaced when its publishes are used up.
pub(crate) struct Lane {
    seats: Semaphore,
    connections: Mutex<Connections>,
}

#[derive(Default)]
struct Connections {
    current: Option<Arc<Connection>>,
    /// Made while the current connection has publishes left, so that a device that shares a
    /// connection does not wait for a new one.
    next: Option<JoinHandle<Result<Connection, Lost>>>,
}

impl Lane {
    pub(crate) fn new() -> Self {
        Self { seats: Semaphore::new(SEATS), connections: Mutex::default() }
    }

    /// Waits for a seat. A lane has as many seats as one connection can serve devices from
    /// beginning to end.
    pub(crate) async fn seat(&self) -> SemaphorePermit<'_> {
        // Unwrap safety: the semaphore is never closed.
        self.seats.acquire().await.unwrap()
    }

    /// A connection with one publish taken. A connection that was replaced lives on until its last
    /// reply has come.
    pub(crate) async fn connection(
        &self,
        broker: &Arc<Broker>,
        tally: &Arc<Tally>,
    ) -> Result<Arc<Connection>, Lost> {
        let mut connections = self.connections.lock().await;
        let Connections { current, next } = &mut *connections;
        if current.as_ref().is_none_or(|connection| !connection.take_publish()) {
            *current = None;
            let fresh = match next.take() {
                // Unwrap safety: a panic there is passed on here.
                Some(next) => next.await.unwrap()?,
                None => Connection::open(broker, tally).await?,
            };
            fresh.take_publish();
            *current = Some(Arc::new(fresh));
        }
        // Unwrap safety: it was there or has been put there.
        let connection = Arc::clone(current.as_ref().unwrap());
        if next.is_none() && connection.publishes_left() < PUBLISHES / 2 {
            let (broker, tally) = (Arc::clone(broker), Arc::clone(tally));
            *next = Some(tokio::spawn(async move { Connection::open(&broker, &tally).await }));
        }
        Ok(connection)
    }
}

/// A device of the ticket or the sealed flow publishes twice.
const SEATS: usize = PUBLISHES / 2;

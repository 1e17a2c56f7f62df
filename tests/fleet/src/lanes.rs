//! Connections that devices share one after another, or a few at a time.

use std::sync::Arc;

use tokio::sync::{Mutex, Semaphore, SemaphorePermit};

use crate::connection::{Broker, Connection, Lost, PUBLISHES};
use crate::tally::Tally;

/// A place for one connection, which is replaced when its publishes are used up.
pub(crate) struct Lane {
    seats: Semaphore,
    current: Mutex<Option<Arc<Connection>>>,
}

impl Lane {
    pub(crate) fn new() -> Self {
        Self { seats: Semaphore::new(SEATS), current: Mutex::new(None) }
    }

    /// Waits for a seat: as many devices use a lane at once as one connection can serve from beginning to end.
    pub(crate) async fn seat(&self) -> SemaphorePermit<'_> {
        // Unwrap safety: the semaphore is never closed.
        self.seats.acquire().await.unwrap()
    }

    /// A connection with one publish taken. The one before it lives on until the last reply on it is there.
    pub(crate) async fn connection(&self, broker: &Broker, tally: &Tally) -> Result<Arc<Connection>, Lost> {
        let mut current = self.current.lock().await;
        if let Some(connection) = current.as_ref().filter(|connection| connection.take_publish()) {
            return Ok(Arc::clone(connection));
        }
        *current = None;
        let fresh = Arc::new(Connection::open(broker, tally).await?);
        fresh.take_publish();
        Ok(Arc::clone(current.insert(fresh)))
    }
}

/// A device of the ticket or the sealed flow publishes twice.
const SEATS: usize = PUBLISHES / 2;

//! The store for handlers, off the async threads, and never more than a few calls at once.

use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result};
use assay_store::{Database, Store};
use tokio::sync::Semaphore;
use tokio::task::spawn_blocking;

/// Connections to the store. They are opened when they are needed.
pub(super) struct Records {
    database: Database,
    idle: Mutex<Vec<Box<dyn Store>>>,
    calls: Arc<Semaphore>,
}

impl Records {
    pub(super) fn new(database: Database) -> Arc<Self> {
        let (idle, calls) = (Mutex::default(), Arc::new(Semaphore::new(CALLS)));
        Arc::new(Self { database, idle, calls })
    }

    /// Does something with the store. It is done to its end even if nobody waits for it any more.
    pub(super) async fn with<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&mut dyn Store) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let call = Arc::clone(&self.calls).acquire_owned().await?;
        let this = Arc::clone(self);
        let done = spawn_blocking(move || {
            let _call = call;
            let idle = || this.idle.lock().unwrap_or_else(PoisonError::into_inner);
            let kept = idle().pop();
            let mut store = match kept {
                Some(store) => store,
                None => this.database.open()?,
            };
            let done = work(&mut *store);
            idle().push(store);
            done
        });
        done.await.context("the work with the store panicked")?
    }
}

/// Calls at once: few beside the connections that decide on requests of devices.
const CALLS: usize = 4;

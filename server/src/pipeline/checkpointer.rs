//! Empties the database's write-ahead log in the background, so that no commit waits for it.

use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError};
use tracing::warn;

use assay_store::Store;

/// Looks after the log until `stop` is closed.
pub(super) fn run(store: &mut dyn Store, stop: &Receiver<()>) {
    while stop.recv_timeout(PERIOD) == Err(RecvTimeoutError::Timeout) {
        if let Err(error) = store.checkpoint() {
            warn!(%error, "the database's log could not be emptied; trying again");
        }
    }
}

/// Short enough that the log stays far below the length at which a commit would empty it.
const PERIOD: Duration = Duration::from_secs(1);

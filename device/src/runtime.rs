//! Event loops for MQTT, one a thread.

use tokio::runtime::{Builder, Runtime};

use crate::error::Error;

pub(crate) fn runtime() -> Result<Runtime, Error> {
    let runtime = Builder::new_current_thread().enable_all().build();
    runtime.map_err(|error| Error::Internal(format!("event loop: {error}")))
}

//! User names and passwords: how the broker asks about them off the async threads, and keeps them
//! until the connection ends.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;
use zeroize::Zeroizing;

use super::Denial;
use super::admission::NotAdmitted;
use super::packet::{Connect, Reason};
use crate::access::Identity;

/// Asks whether a user name and a password (MQTT 5 §3.1.3.5, §3.1.3.6) are a device's. Called on a
/// thread that may block, once per CONNECT without a client certificate, and again at each recheck.
pub type Login = dyn Fn(&str, &[u8]) -> Result<LoggedIn, Denial> + Send + Sync;

/// Whom a password is good for, and how long.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoggedIn {
    /// Let in only if it is a device.
    pub identity: Identity,
    /// From now on; the connection is cut after it.
    pub expires_in: Duration,
}

/// Where clients without a certificate log in, one for the whole listener.
pub(super) struct LoginDesk {
    login: Arc<Login>,
    counters: Arc<Semaphore>,
}

impl LoginDesk {
    pub(super) fn new(login: Arc<Login>) -> Self {
        Self { login, counters: Arc::new(Semaphore::new(COUNTERS)) }
    }

    /// Whose `credentials` are; may wait for its turn.
    pub(super) async fn ask(
        &self,
        credentials: &Arc<Credentials>,
    ) -> Result<LoggedIn, NotAdmitted> {
        // Unwrap safety: nobody closes this semaphore.
        let counter = self.counters.clone().acquire_owned().await.unwrap();
        let (login, credentials) = (self.login.clone(), credentials.clone());
        let asked = tokio::task::spawn_blocking(move || {
            // Held until `login` returns, even if its connection has ended long before.
            let _counter = counter;
            login(&credentials.user_name, &credentials.password)
        });
        match asked.await {
            Ok(answer) => {
                answer.map_err(|denial| NotAdmitted::new(denial, Reason::BadUserNameOrPassword))
            }
            Err(panic) => Err(NotAdmitted::unknown(panic.to_string())),
        }
    }
}

/// What a client logged in with, kept to ask again at each recheck. The password is wiped when
/// dropped; the buffer that the CONNECT packet was read into is dropped when the client is in, but
/// not wiped.
pub(super) struct Credentials {
    client: String,
    user_name: String,
    password: Zeroizing<Vec<u8>>,
}

impl Credentials {
    pub(super) fn from_connect(connect: &Connect) -> Result<Self, NotAdmitted> {
        let (Some(user_name), Some(password)) = (&connect.user_name, &connect.password) else {
            return Err(NotAdmitted::bad_login("neither certificate nor user name and password"));
        };
        if user_name.len() + password.len() > MAX_CREDENTIALS {
            return Err(NotAdmitted::bad_login("user name and password too long"));
        }
        Ok(Self {
            client: connect.client.to_string(),
            user_name: user_name.to_string(),
            password: password.to_vec().into(),
        })
    }

    /// The client id they came with.
    pub(super) fn client(&self) -> &str {
        &self.client
    }
}

impl NotAdmitted {
    fn bad_login(reason: &str) -> Self {
        Self::refused(Reason::BadUserNameOrPassword, reason)
    }
}

/// Logins that are asked about at once. Anybody may send one, so they must leave the admission of
/// certificates most of the 512 threads that tokio has for what blocks.
const COUNTERS: usize = 64;

/// User name and password together, in bytes. A shared access signature for the longest scope and
/// device id is 330 at most with every octet percent-encoded, its other fields 200; and this much
/// is kept for each client that has logged in.
const MAX_CREDENTIALS: usize = 1024;

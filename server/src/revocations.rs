//! Watches for revocations, so that a connection ends when its certificate or key does.

use std::thread;
use std::time::{Duration, Instant};

use assay_store::Changes;
use assay_store::Store;
use tokio::sync::watch;
use tokio::time::timeout;
use tracing::warn;

/// Has the broker check its connections again, by `recheck`, soon after each revocation, whatever
/// process made it, on whatever machine. Never returns.
///
/// # Panics
/// There can be no thread more.
pub async fn watch(store: Box<dyn Store>, recheck: impl Fn()) {
    let (told, mut tells) = watch::channel(Looks::default());
    let watch = move || watch_revocations(store, &told);
    // Unwrap safety: at start-up only; without it nobody who is revoked would be cut.
    thread::Builder::new().name("revocations".into()).spawn(watch).unwrap();
    let mut seen = Looks::default();
    loop {
        match timeout(SILENCE, tells.changed()).await {
            Ok(Ok(())) => {
                let looks = *tells.borrow_and_update();
                if looks.found != seen.found {
                    recheck();
                }
                seen = looks;
            }
            Ok(Err(_)) => return std::future::pending().await,
            // Whoever holds up the connection to the store must not keep revoked devices in.
            Err(_) => {
                warn!("the store does not answer who was revoked; every connection is checked");
                recheck();
            }
        }
    }
}

/// What the thread that looks has to tell.
#[derive(Clone, Copy, Debug, Default)]
struct Looks {
    /// How often it looked.
    at_all: u64,
    /// How often it found something, or could not look.
    found: u64,
}

/// Tells of each revocation, until nobody listens.
fn watch_revocations(mut store: Box<dyn Store>, told: &watch::Sender<Looks>) {
    let mut seen: Option<Changes> = None;
    let mut found_at: Option<Instant> = None;
    while !told.is_closed() {
        let changes = match seen {
            None => store.changes(),
            Some(seen) => store.wait_for_changes(seen, REVOCATION_POLL),
        };
        let is_new = match changes {
            Ok(changes) => {
                let before = seen.replace(changes);
                before.is_none_or(|before| before.connections != changes.connections)
            }
            Err(error) => {
                warn!(%error, "cannot look for revocations; trying again");
                thread::sleep(REVOCATION_POLL);
                // What cannot be looked up for long is not to stay connected, so let each
                // connection find that out.
                true
            }
        };
        told.send_modify(|looks| {
            looks.at_all += 1;
            looks.found += u64::from(is_new);
        });
        let follows = found_at.is_some_and(|at| at.elapsed() < 2 * LONG_PAUSE);
        if is_new {
            found_at = Some(Instant::now());
        }
        thread::sleep(if is_new && follows { LONG_PAUSE } else { PAUSE });
    }
}

/// How long the store may be silent: looks are a second apart, and a store that is away fails
/// within ten seconds.
const SILENCE: Duration = Duration::from_secs(15);
/// How long a store waits for a change before it is asked again.
const REVOCATION_POLL: Duration = Duration::from_secs(1);
/// Between two looks at all connections: revocations that come together need one.
const PAUSE: Duration = Duration::from_millis(100);
/// The same, while one revocation follows another: then the broker would do little else. Each
/// renewal of a fleet ends a certificate, too.
const LONG_PAUSE: Duration = Duration::from_millis(600);

#[cfg(test)]
mod tests {
    use assay_store::Database;
    use assay_store::sqlite::Sqlite;

    use super::*;

    #[tokio::test]
    async fn connections_are_not_checked_all_the_time_while_one_revocation_follows_another() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("assay.db");
        let mut revoking = Sqlite::create(&file).unwrap();
        let store = Database::Sqlite(file).open().unwrap();
        let until = Instant::now() + Duration::from_secs(4);
        let revoker = thread::spawn(move || {
            let mut n = 0u32;
            while Instant::now() < until {
                n += 1;
                let ek = format!("{n:064x}").parse().unwrap();
                revoking.set_disabled(&ek, true, time::OffsetDateTime::now_utc()).unwrap();
                thread::sleep(Duration::from_millis(20));
            }
        });
        let looked = std::cell::Cell::new(0);
        let watching = watch(store, || looked.set(looked.get() + 1));
        assert!(timeout(Duration::from_secs(4), watching).await.is_err(), "it never returns");
        revoker.join().unwrap();
        assert!((4..=10).contains(&looked.get()), "{}", looked.get());
    }

    #[tokio::test]
    async fn connections_are_checked_again_while_the_database_cannot_be_read() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("assay.db");
        drop(Sqlite::create(&file).unwrap());
        let store = Database::Sqlite(file).open().unwrap();
        // What SQLite finds at its next look is no database.
        for file in ["assay.db", "assay.db-wal"] {
            std::fs::write(directory.path().join(file), [0xFF; 8192]).unwrap();
        }
        let looked = std::cell::Cell::new(0);
        let watching = watch(store, || looked.set(looked.get() + 1));
        assert!(timeout(4 * REVOCATION_POLL, watching).await.is_err(), "it never returns");
        assert!(looked.get() > 1, "{}", looked.get());
    }
}

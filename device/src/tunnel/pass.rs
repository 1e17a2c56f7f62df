//! Passes bytes between a local client and the broker, in both directions.

use std::io;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, split};
use tokio::time::timeout;

/// Passes bytes until either side ends, and then ends the other.
///
/// Nothing is added. So if a client is gone without a DISCONNECT, the broker publishes its Will.
pub(super) async fn pass(local: impl AsyncRead + AsyncWrite, broker: impl AsyncRead + AsyncWrite) {
    let (mut from_local, mut to_local) = split(local);
    let (mut from_broker, mut to_broker) = split(broker);
    tokio::select! {
        _ = copy(&mut from_local, &mut to_broker) => {}
        _ = copy(&mut from_broker, &mut to_local) => {}
    }
    _ = timeout(LAST_WORDS, async {
        _ = to_broker.shutdown().await;
        _ = to_local.shutdown().await;
    })
    .await;
}

async fn copy(
    from: &mut (impl AsyncRead + Unpin),
    to: &mut (impl AsyncWrite + Unpin),
) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER];
    loop {
        let length = from.read(&mut buffer).await?;
        if length == 0 {
            return Ok(());
        }
        write(to, &buffer[..length]).await?;
    }
}

/// Writes all of it, within the time that a peer may take that does not read.
pub(super) async fn write(to: &mut (impl AsyncWrite + Unpin), bytes: &[u8]) -> io::Result<()> {
    let written = async {
        to.write_all(bytes).await?;
        to.flush().await
    };
    timeout(PATIENCE, written).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

/// For each direction of each client.
const BUFFER: usize = 8 * 1024;
/// The built-in broker gives up a client that does not read for so long: one and a half times its
/// keep-alive.
const PATIENCE: Duration = Duration::from_secs(90);
/// For the end of TLS.
const LAST_WORDS: Duration = Duration::from_secs(2);

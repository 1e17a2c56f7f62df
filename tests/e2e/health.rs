//! Whether a CA is well: what anybody may ask, and what its operator may.

use anyhow::{Result, ensure};
use assay_wire::{ReplyBody, RequestBody};

use crate::lab::Lab;
use crate::raw_client::RawClient;

#[test]
fn a_ping_is_answered_and_leaves_no_trace() -> Result<()> {
    let lab = Lab::open()?;
    let mut stranger = RawClient::connect(&lab.server.bootstrap, &lab.dir.root_pem())?;
    ensure!(matches!(stranger.ask(RequestBody::Ping)?, ReplyBody::Pong));
    // What came after it is in the audit, so it would be, too.
    stranger.ask_bytes(b"no request".to_vec())?;
    lab.audited("malformed")?;
    let audit = lab.dir.list("audit")?;
    ensure!(audit.len() == 1, "{audit:?}");
    Ok(())
}

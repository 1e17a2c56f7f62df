//! What an IK signs: a certificate, and the time.

use time::{Duration, OffsetDateTime};

use crate::Rejection;
use crate::flows::mac::CLOCK_SKEW;
use crate::ik::is_signed_by;
use crate::key::PublicKey;

/// How old a statement may be, besides [`CLOCK_SKEW`]. Whoever overhears a statement can repeat it
/// for as long. Some devices have no better clock.
pub const STATEMENT_LIFETIME: Duration = Duration::seconds(300);

/// A statement that was made now, as far as its time says.
#[derive(Clone, Debug)]
pub(super) struct Statement {
    /// SHA-256 of the certificate that it is about.
    pub(super) certificate: [u8; 32],
    /// Seconds since 1970.
    pub(super) time: u64,
    signature: Vec<u8>,
}

impl Statement {
    /// Compares the device's clock with the CA's.
    pub(super) fn read(
        certificate: [u8; 32],
        time: u64,
        signature: Vec<u8>,
        now: OffsetDateTime,
    ) -> Result<Self, Rejection> {
        let apart = i128::from(time) - i128::from(now.unix_timestamp());
        let limit = STATEMENT_LIFETIME + CLOCK_SKEW;
        if apart.unsigned_abs() > limit.whole_seconds().unsigned_abs().into() {
            return Err(Rejection::ClockOff { device: time, ca: now, limit });
        }
        Ok(Self { certificate, time, signature })
    }

    /// The statement, if this key signed `message`.
    pub(super) fn signed(&self, message: &[u8], ik: &PublicKey) -> Result<&Self, Rejection> {
        if !is_signed_by(ik, message, &self.signature) {
            return Err(Rejection::StatementWrong { certificate: crate::hex(&self.certificate) });
        }
        Ok(self)
    }
}

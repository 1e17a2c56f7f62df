//! How long a device tries, what it tries again, and when it gives up.

use core::time::Duration;

use assay_wire::ProblemCode;

/// How long a broker may take to connect the device and to grant its subscription. This is longer
/// than the time that `assay-mqtt` allows for TCP, TLS and CONNECT together.
pub const CONNECT_LIMIT: Duration = Duration::from_secs(25);

/// How long the CA may take to answer. A CA answers in milliseconds, or says how long it will be
/// busy. A request without an answer after this time was lost. Give a published request this time
/// as its MQTT message expiry.
pub const REPLY_LIMIT: Duration = Duration::from_secs(20);

/// The longest first delay. It is short, so that a device soon reaches a CA that only restarts.
const FIRST_DELAY: Duration = Duration::from_secs(1);

/// The longest delay. It is long, so that a CA that was down for hours does not get all its devices
/// at once.
const LONGEST_DELAY: Duration = Duration::from_secs(60);

/// How long a run tries to renew a certificate that is still good, unless it was told to renew it.
/// One lost reply, and a CA that restarts, fit into it. Whatever lasts longer waits for the next
/// run, because programs may wait for this one, and there is a third of the lifetime left.
pub(crate) const RENEWAL_LIMIT: Duration = Duration::from_secs(60);

/// How often a run starts again after the CA refused a ticket, or got it too late. If both sides
/// are honest, this happens when the CA's ticket key changes.
pub(crate) const MAX_RESTARTS: u32 = 3;

/// Exponential delays with full jitter: each is drawn between zero and a ceiling that doubles, so
/// that devices that were cut off together do not come back together.
pub(crate) struct Backoff {
    ceiling: Duration,
}

impl Backoff {
    pub(crate) fn new() -> Self {
        Self { ceiling: FIRST_DELAY }
    }

    /// The next delay: at least `advice`, and random above it. `random` is uniform over all values
    /// of its type.
    pub(crate) fn next(&mut self, advice: Duration, random: u32) -> Duration {
        let delay = self.ceiling.mul_f64(f64::from(random) / f64::from(u32::MAX));
        self.ceiling = (self.ceiling * 2).min(LONGEST_DELAY);
        advice.saturating_add(delay)
    }
}

/// Whether the claim is lost, so that the device has to ask for another one.
pub(crate) fn is_lost_claim(code: ProblemCode) -> bool {
    matches!(code, ProblemCode::ClaimExpired | ProblemCode::TicketRefused)
}

/// Whether the CA may accept another EK of the same TPM.
pub(crate) fn is_about_the_ek(code: ProblemCode) -> bool {
    matches!(
        code,
        ProblemCode::EkNotEnrolled
            | ProblemCode::EkCertificateUntrusted
            | ProblemCode::EkCertificateInvalid
            | ProblemCode::EkCertificateExpired
            | ProblemCode::EkCertificateMismatch
            | ProblemCode::OtherEkOnRecord
            | ProblemCode::DeviceIdNotEnrolled
            | ProblemCode::DeviceIdTaken
            | ProblemCode::EkRegistered
            | ProblemCode::NotAdmitted
    )
}

#[cfg(test)]
mod tests {
    use alloc::vec::Vec;

    use super::*;

    #[test]
    fn longest_delay_doubles_from_one_second_to_one_minute() {
        let mut backoff = Backoff::new();
        let delays: Vec<_> =
            (0..8).map(|_| backoff.next(Duration::ZERO, u32::MAX).as_secs()).collect();
        assert_eq!(delays, [1, 2, 4, 8, 16, 32, 60, 60]);
    }

    #[test]
    fn delay_is_never_below_the_advice_of_the_ca() {
        assert_eq!(Backoff::new().next(Duration::from_secs(30), 0), Duration::from_secs(30));
    }
}

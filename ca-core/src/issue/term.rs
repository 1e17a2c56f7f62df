//! When a certificate is to be renewed.

use time::{Duration, OffsetDateTime};

use super::serial::issued_at;
use crate::profile::Profile;
use crate::x509::parse_certificate;

/// A certificate's number, and its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Term {
    serial: [u8; 16],
    /// Until when it is valid.
    pub(crate) not_after: OffsetDateTime,
}

impl Term {
    pub(super) fn new(serial: [u8; 16], not_after: OffsetDateTime) -> Self {
        Self { serial, not_after }
    }

    /// Reads the term of a certificate of this CA.
    pub(crate) fn of(der: &[u8]) -> Option<Self> {
        let certificate = parse_certificate(der)?;
        let serial = certificate.raw_serial().try_into().ok()?;
        Some(Self { serial, not_after: certificate.validity().not_after.to_datetime() })
    }

    /// From when on the CA renews it.
    pub(crate) fn due_from(&self, profile: &Profile) -> OffsetDateTime {
        self.not_after - self.renew_before(profile)
    }

    /// When its device is told to renew it: somewhat later, and each device at another time, so
    /// that a fleet that was provisioned at once does not come back at once. The time follows from
    /// the random part of the serial number, so it is the same whenever it is told.
    pub(crate) fn renew_at(&self, profile: &Profile) -> u64 {
        let random = *self.serial[SERIAL_RANDOM..].first_chunk().expect("it has 10 random bytes");
        let spread = (self.renew_before(profile) / SPREAD).whole_seconds().unsigned_abs();
        let jitter = (u128::from(u64::from_be_bytes(random)) * u128::from(spread)) >> u64::BITS;
        let due_from = self.due_from(profile).unix_timestamp().unsigned_abs();
        due_from + u64::try_from(jitter).expect("it is less than the spread")
    }

    /// A third of the certificate's lifetime, or what the profile says, but not more than the
    /// lifetime: that may be shorter than the profile's, because a certificate ends with its
    /// issuer.
    fn renew_before(&self, profile: &Profile) -> Duration {
        let lifetime = issued_at(&self.serial)
            .map(|issued_at| self.not_after - issued_at)
            .filter(|lifetime| lifetime.is_positive())
            .unwrap_or_else(|| profile.validity());
        profile.renew_before().unwrap_or(lifetime / 3).min(lifetime)
    }
}

/// Renewals are spread over this part of the time that is left. Most of that time remains for
/// devices that are off when they should renew.
const SPREAD: i32 = 4;
/// Where the random part of a serial number begins.
const SERIAL_RANDOM: usize = 6;

#[cfg(test)]
mod tests {
    use super::super::serial::serial_number;
    use super::*;

    fn term(random: [u8; 10], lifetime: Duration) -> Term {
        let issued_at = OffsetDateTime::from_unix_timestamp(1_800_000_000).unwrap();
        let mut serial = serial_number(issued_at, &mut rand_core::UnwrapErr(getrandom::SysRng));
        serial[SERIAL_RANDOM..].copy_from_slice(&random);
        Term { serial, not_after: issued_at + lifetime }
    }

    #[test]
    fn advice_lies_in_the_first_quarter_of_the_last_third() {
        let profile = Profile::default();
        let issued_at = 1_800_000_000;
        let (first, last) =
            (term([0; 10], Duration::days(90)), term([255; 10], Duration::days(90)));
        assert_eq!(first.renew_at(&profile), issued_at + 60 * 86_400);
        assert_eq!(last.renew_at(&profile), issued_at + 60 * 86_400 + 30 * 86_400 / 4 - 1);
        assert_eq!(first.due_from(&profile).unix_timestamp(), 1_800_000_000 + 60 * 86_400);
        assert_eq!(last.due_from(&profile), first.due_from(&profile));
        let half = term([128, 0, 0, 0, 0, 0, 0, 0, 0, 0], Duration::days(90));
        assert_eq!(half.renew_at(&profile), issued_at + 60 * 86_400 + 30 * 86_400 / 8);
    }

    #[test]
    fn the_profile_says_when_and_a_short_certificate_is_renewed_at_its_issue_at_the_earliest() {
        let profile = Profile::default().with_renewal(Some(Duration::days(20))).unwrap();
        let due_after = |lifetime: i64| {
            let due = term([0; 10], Duration::days(lifetime)).due_from(&profile);
            (due.unix_timestamp() - 1_800_000_000) / 86_400
        };
        assert_eq!([90, 21, 20, 5].map(due_after), [70, 1, 0, 0]);
    }
}

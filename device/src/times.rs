//! Times of certificates, in seconds since 1970.

use std::time::Duration;

use x509_parser::time::ASN1Time;

/// Whether `from` is so much before `to` that no time zone explains it.
pub(crate) fn is_more_than_a_day(from: u64, to: u64) -> bool {
    to.saturating_sub(from) > TOLERANCE.as_secs()
}

/// A time before 1970 counts as 1970.
pub(crate) fn since_1970(time: ASN1Time) -> u64 {
    time.timestamp().try_into().unwrap_or_default()
}

/// How wrong a clock may be before an error says so. A wrong time zone makes it wrong by a day at
/// most.
pub(crate) const TOLERANCE: Duration = Duration::from_hours(24);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_more_than_a_day_is_called_a_wrong_clock() {
        assert!(!is_more_than_a_day(1_000_000, 1_000_000));
        assert!(!is_more_than_a_day(1_000_000, 1_000_000 + 86_400));
        assert!(is_more_than_a_day(1_000_000, 1_000_000 + 86_401));
        assert!(!is_more_than_a_day(1_000_000 + 86_401, 1_000_000));
    }
}

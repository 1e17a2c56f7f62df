//! What time it is, as far as this device can tell.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use assay_device_core::rfc3339;
use rustls::pki_types::{CertificateDer, UnixTime};
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::error::Error;
use crate::times::{TOLERANCE, is_more_than_a_day, since_1970};

/// A device's clock, and what is known of the time without one.
#[derive(Clone, Debug)]
pub(crate) struct Clock {
    /// A time that is past for certain, in seconds since 1970.
    floor: u64,
    /// What shows that `floor` is past.
    floor_is: &'static str,
    /// Whether the system has a clock that can be used.
    is_there: bool,
}

impl Clock {
    /// The pinned `roots` exist already, so the first day of the earliest one is past.
    pub(crate) fn new(is_there: bool, roots: &[CertificateDer<'_>]) -> Self {
        // If there are several roots, some may be made for later use.
        let earliest = roots.iter().filter_map(|root| not_before(root)).min();
        // Package builders set this variable (reproducible-builds.org).
        let built =
            option_env!("SOURCE_DATE_EPOCH").and_then(|date| date.parse().ok()).unwrap_or_default();
        match earliest {
            Some(root) if root > built => {
                Self { floor: root, floor_is: "the pinned root was made", is_there }
            }
            _ => Self { floor: built, floor_is: "this program was built", is_there },
        }
    }

    /// The time now. Without a clock: the latest time that is known to be past.
    pub(crate) fn now(&self) -> UnixTime {
        seconds(if self.is_there { system() } else { system().max(self.floor) })
    }

    /// The time to judge a chain of certificates at.
    ///
    /// Without a clock, this is no earlier than the first day of any certificate in the chain,
    /// because a trusted issuer has signed the certificate by then. So the device may accept an
    /// expired certificate of a trusted issuer.
    pub(crate) fn at<'a>(
        &self,
        chain: impl IntoIterator<Item = &'a CertificateDer<'a>>,
    ) -> UnixTime {
        if self.is_there {
            return self.now();
        }
        let latest = chain.into_iter().filter_map(|certificate| not_before(certificate)).max();
        seconds(self.now().as_secs().max(latest.unwrap_or_default()))
    }

    /// A time that is not past yet, whatever certificates say: a day from now. Without a clock it
    /// is the end of the device's own certificate, which its CA did not make for a time that is
    /// past.
    pub(crate) fn latest(&self, certificate_ends: u64) -> u64 {
        let tomorrow = self.now().as_secs().saturating_add(TOLERANCE.as_secs());
        if self.is_there { tomorrow } else { tomorrow.max(certificate_ends) }
    }

    /// The text for people if there is no clock: which time the device assumes.
    pub(crate) fn assumption(&self) -> Option<String> {
        let now = self.now().as_secs();
        let from = if now > self.floor { "the system says so" } else { self.floor_is };
        (!self.is_there).then(|| {
            format!("without a clock: the time is assumed to be {} or later ({from})", rfc3339(now))
        })
    }

    /// Refuses a clock that is more than a day before a time that is certainly past.
    pub(crate) fn refuse_if_behind(&self) -> Result<(), Error> {
        let now = self.now().as_secs();
        if is_more_than_a_day(now, self.floor) {
            return Err(Error::wrong_clock(
                now,
                &format!("{} on {}", self.floor_is, rfc3339(self.floor)),
            ));
        }
        Ok(())
    }
}

/// The first moment at which a whole chain of certificates was valid.
pub(crate) fn beginning_of(chain: &[CertificateDer<'_>]) -> UnixTime {
    seconds(chain.iter().filter_map(|it| not_before(it)).max().unwrap_or_default())
}

/// When a certificate begins to be valid, in seconds since 1970; `None` if it cannot be read.
fn not_before(certificate: &[u8]) -> Option<u64> {
    let (_, certificate) = X509Certificate::from_der(certificate).ok()?;
    Some(since_1970(certificate.validity().not_before))
}

fn seconds(seconds: u64) -> UnixTime {
    UnixTime::since_unix_epoch(Duration::from_secs(seconds))
}

/// A clock before 1970 counts as 1970.
fn system() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair};

    use super::*;

    fn root_of(year: i32) -> CertificateDer<'static> {
        let mut params = CertificateParams::default();
        params.not_before = rcgen::date_time_ymd(year, 1, 1);
        params.not_after = rcgen::date_time_ymd(2199, 1, 1);
        params.self_signed(&KeyPair::generate().unwrap()).unwrap().der().clone()
    }

    #[test]
    fn clock_before_the_pinned_root_is_called_wrong() {
        Clock::new(true, &[root_of(2020)]).refuse_if_behind().unwrap();
        let error = Clock::new(true, &[root_of(2190)]).refuse_if_behind().unwrap_err();
        assert_eq!(error.exit_code(), 3);
        assert!(
            error.to_string().contains("the pinned root was made on 2190-01-01T00:00:00Z"),
            "{error}"
        );
    }

    #[test]
    fn earliest_of_several_roots_counts() {
        Clock::new(true, &[root_of(2190), root_of(2020)]).refuse_if_behind().unwrap();
    }

    #[test]
    fn device_without_a_clock_starts_from_its_root_and_says_so() {
        let clock = Clock::new(false, &[root_of(2190)]);
        clock.refuse_if_behind().unwrap();
        assert_eq!(rfc3339(clock.now().as_secs()), "2190-01-01T00:00:00Z");
        assert!(clock.assumption().unwrap().contains("2190-01-01T00:00:00Z"));
        assert_eq!(Clock::new(true, &[root_of(2190)]).assumption(), None);
    }

    #[test]
    fn device_without_a_clock_takes_it_for_no_later_than_the_end_of_its_certificate() {
        let (now, year) = (system(), 365 * 86_400);
        let latest = |is_there| Clock::new(is_there, &[]).latest(now + year);
        assert_eq!(latest(false), now + year);
        assert!((now + 86_400..now + 86_500).contains(&latest(true)));
    }

    #[test]
    fn device_without_a_clock_is_never_before_a_certificate_that_it_judges() {
        let chain = [root_of(2191), root_of(2192)];
        assert_eq!(rfc3339(Clock::new(false, &[]).at(&chain).as_secs()), "2192-01-01T00:00:00Z");
        assert!(
            Clock::new(true, &[]).at(&chain).as_secs()
                < 1_000_000 + Clock::new(true, &[]).now().as_secs()
        );
    }
}

//! How long rows stay that nobody needs any more.

use assay_ca_core::QUOTA_PERIOD;
use time::{Duration, OffsetDateTime};

use crate::error::StoreError;

/// How long rows stay that nobody needs any more. Every table whose rows strangers or devices can
/// make has a limit here; the others grow only by what operators do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retention {
    ended: Duration,
    unused_offers: Duration,
    audit: u32,
}

/// Certificates that expired until then are forgotten, if they have ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Expiries {
    /// Of those that nobody confirmed: seconds since 1970-01-01T00:00:00Z.
    pub(crate) never_confirmed: i64,
    /// Of the others.
    pub(crate) in_force: i64,
}

impl Retention {
    /// Quotas are counted from the certificates on record, so one stays for their period at least.
    pub(crate) fn expiries(&self, now: OffsetDateTime) -> Expiries {
        Expiries {
            never_confirmed: (now - QUOTA_PERIOD).unix_timestamp(),
            in_force: (now - self.ended.max(QUOTA_PERIOD)).unix_timestamp(),
        }
    }

    /// How long a certificate that was in force stays on record after it ended and expired, so that
    /// who looks into something that happened finds whose it was. 0 to 3650 days; 30 unless set.
    ///
    /// While it has not expired it stays whatever this says: the revocation list names it until
    /// then (RFC 5280 §3.3). It stays for a day more, because it counts against a quota. A device
    /// can have 24 new ones a day, so a row costs it an hour.
    pub fn ended(&self) -> Duration {
        self.ended
    }

    /// How long the offer of a first shared key waits to be used. 1 to 3650 days; 30 unless set: a
    /// device that was provisioned uses its key within seconds, and one that was switched off
    /// in between asks again.
    ///
    /// Whoever has the certificates of many EKs can make as many rows as these. Only offers are
    /// forgotten that change nothing: of a generation that was retired, or sent to a plain storage
    /// root key, something must be remembered for ever, and it takes an operator to make such a
    /// row.
    pub fn unused_offers(&self) -> Duration {
        self.unused_offers
    }

    /// How many decisions that changed what a device has are kept, and as many others. 1,000 to
    /// 10,000,000; 100,000 unless set: of entries as long as they can be (a detail has 512 bytes at
    /// most) they take 75 MB, of usual ones 25 MB.
    pub fn audit(&self) -> u32 {
        self.audit
    }

    /// The same with another value.
    ///
    /// # Errors
    /// It is out of bounds.
    pub fn with_ended(self, days: u32) -> Result<Self, StoreError> {
        Ok(Self { ended: within("ended_days", days, 0, MOST_DAYS).map(days_of)?, ..self })
    }

    /// The same with another value.
    ///
    /// # Errors
    /// It is out of bounds.
    pub fn with_unused_offers(self, days: u32) -> Result<Self, StoreError> {
        let unused_offers = within("unused_offers_days", days, 1, MOST_DAYS).map(days_of)?;
        Ok(Self { unused_offers, ..self })
    }

    /// The same with another value.
    ///
    /// # Errors
    /// It is out of bounds.
    pub fn with_audit(self, entries: u32) -> Result<Self, StoreError> {
        Ok(Self { audit: within("audit_entries", entries, 1_000, 10_000_000)?, ..self })
    }
}

impl Default for Retention {
    fn default() -> Self {
        Self { ended: Duration::days(30), unused_offers: Duration::days(30), audit: 100_000 }
    }
}

fn days_of(days: u32) -> Duration {
    Duration::days(days.into())
}

fn within(name: &str, value: u32, least: u32, most: u32) -> Result<u32, StoreError> {
    if (least..=most).contains(&value) {
        return Ok(value);
    }
    Err(StoreError::Settings(format!("{name} is {value}; it may be {least} to {most}")))
}

/// Ten years: who looks into something older has a backup.
const MOST_DAYS: u32 = 3650;

/// What was revoked for being late, and forgotten.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pruned {
    /// Certificates that were not confirmed in time, and are revoked now.
    pub overdue: u64,
    /// Certificates that were forgotten.
    pub certificates: u64,
    /// Offers of shared keys that were forgotten.
    pub offers: u64,
    /// Decisions that were forgotten.
    pub audit: u64,
    /// Whether there is more of one of them than one call takes.
    pub more: bool,
}

/// Rows of one kind in one transaction: some 10 ms, for others wait to write.
pub(crate) const BATCH: i64 = 500;
/// The same of the audit, whose rows lie side by side: as many as a busy CA makes in some seconds.
pub(crate) const AUDIT_BATCH: i64 = 5_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_out_of_bounds_are_refused_by_name() {
        let retention = Retention::default();
        for (refused, name) in [
            (retention.with_ended(3651), "ended_days"),
            (retention.with_unused_offers(0), "unused_offers_days"),
            (retention.with_unused_offers(3651), "unused_offers_days"),
            (retention.with_audit(999), "audit_entries"),
            (retention.with_audit(10_000_001), "audit_entries"),
        ] {
            assert!(refused.unwrap_err().to_string().starts_with(name));
        }
        assert_eq!(retention.with_ended(0).unwrap().ended(), Duration::ZERO);
    }
}

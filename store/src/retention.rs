//! How long rows stay that nobody needs any more.

use assay_ca_core::QUOTA_PERIOD;
use time::{Duration, OffsetDateTime};

use crate::audit::microseconds;
use crate::chain::Chain;
use crate::error::StoreError;

/// How long rows stay that nobody needs any more. Every table whose rows strangers or devices can
/// make has a limit here; the others grow only by what operators do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retention {
    ended: Duration,
    unused_offers: Duration,
    audit: u32,
    decisions: Duration,
    acts: Duration,
}

/// Which entries of the audit are to be forgotten.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct AuditBounds {
    /// How many entries of a chain of decisions are kept.
    pub(crate) kept: i64,
    /// Decisions up to this time are forgotten, in microseconds since 1970.
    pub(crate) decisions_us: i64,
    /// What operators did up to this time is forgotten.
    pub(crate) acts_us: i64,
}

impl AuditBounds {
    /// Whether an entry is to be forgotten, if those before it are.
    pub(crate) fn are_passed(&self, chain: Chain, id: i64, newest: i64, time_us: i64) -> bool {
        match chain {
            Chain::Acts => time_us <= self.acts_us,
            Chain::Changes | Chain::Others => {
                id <= newest - self.kept || time_us <= self.decisions_us
            }
        }
    }
}

/// The times up to which expired certificates are forgotten, if they have ended. In seconds since
/// 1970-01-01T00:00:00Z.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Expiries {
    /// For certificates that nobody confirmed.
    pub(crate) never_confirmed: i64,
    /// For the others.
    pub(crate) once_in_force: i64,
}

impl Retention {
    /// Quotas count the certificates on record, so each stays at least for the period of the quota.
    pub(crate) fn expiries(&self, now: OffsetDateTime) -> Expiries {
        Expiries {
            never_confirmed: (now - QUOTA_PERIOD).unix_timestamp(),
            once_in_force: (now - self.ended.max(QUOTA_PERIOD)).unix_timestamp(),
        }
    }

    /// How long a certificate that was in force stays on record after it ended and expired, so that
    /// somebody who investigates an incident finds whose it was. 0 to 3650 days; 30 unless set.
    ///
    /// Until it expires, it stays whatever this says, because the revocation list names it until
    /// then (RFC 5280 §3.3). Then it stays for at least one more day, because it counts against a
    /// quota. A device can get 24 certificates a day, so it can make one row an hour.
    pub fn ended(&self) -> Duration {
        self.ended
    }

    /// How long the offer of a first shared key stays if the key is not used. 1 to 3650 days; 30
    /// unless set. A device uses its key within seconds after the offer, and a device that was
    /// switched off in between asks again.
    ///
    /// Somebody who has the certificates of many EKs can make that many rows. Only offers that
    /// change nothing are forgotten. A generation that was retired, or that was sent to a plain
    /// storage root key, must be remembered for ever, and it takes an operator to cause such a row.
    pub fn unused_offers(&self) -> Duration {
        self.unused_offers
    }

    /// How many decisions that changed what a device has are kept, and how many others: this number
    /// of each. 1,000 to 10,000,000; 100,000 unless set. These take 75 MB if all entries are as
    /// long as they can be (a detail has at most 512 bytes), and usually 25 MB.
    pub fn audit(&self) -> u32 {
        self.audit
    }

    /// How long a decision is kept at most, so that no more is known of people who have devices
    /// than is needed. 1 to 3650 days; 365 unless set.
    pub fn decisions(&self) -> Duration {
        self.decisions
    }

    /// How long it is kept what operators did. 1 to 3650 days; 3650 unless set. However much
    /// devices and strangers ask, this is not forgotten before.
    pub fn acts(&self) -> Duration {
        self.acts
    }

    pub(crate) fn audit_bounds(&self, now: OffsetDateTime) -> AuditBounds {
        AuditBounds {
            kept: self.audit.into(),
            decisions_us: microseconds(now - self.decisions),
            acts_us: microseconds(now - self.acts),
        }
    }

    /// The same with another value.
    ///
    /// # Errors
    /// It is out of bounds.
    pub fn with_decisions(self, days: u32) -> Result<Self, StoreError> {
        Ok(Self { decisions: within("decisions_days", days, 1, MOST_DAYS).map(days_of)?, ..self })
    }

    /// The same with another value.
    ///
    /// # Errors
    /// It is out of bounds.
    pub fn with_acts(self, days: u32) -> Result<Self, StoreError> {
        Ok(Self { acts: within("acts_days", days, 1, MOST_DAYS).map(days_of)?, ..self })
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
        Self {
            ended: Duration::days(30),
            unused_offers: Duration::days(30),
            audit: 100_000,
            decisions: Duration::days(365),
            acts: days_of(MOST_DAYS),
        }
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

/// Ten years: for something older, there are backups.
const MOST_DAYS: u32 = 3650;

/// How much was revoked because it was not confirmed in time, and how much was forgotten.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pruned {
    /// Certificates that were not confirmed in time, and are revoked now.
    pub overdue: u64,
    /// Certificates that were forgotten.
    pub certificates: u64,
    /// Offers of shared keys that were forgotten.
    pub offers: u64,
    /// Entries of the audit that were forgotten.
    pub audit: u64,
    /// Whether there may be more of one kind than one call takes.
    pub more: bool,
}

/// Rows of one kind in one transaction. They take some 10 ms, during which others wait to write.
pub(crate) const BATCH: i64 = 500;
/// The same for the audit, whose rows lie side by side: as many as a busy CA makes in some seconds.
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
            (retention.with_decisions(0), "decisions_days"),
            (retention.with_acts(3651), "acts_days"),
            (retention.with_audit(999), "audit_entries"),
            (retention.with_audit(10_000_001), "audit_entries"),
        ] {
            assert!(refused.unwrap_err().to_string().starts_with(name));
        }
        assert_eq!(retention.with_ended(0).unwrap().ended(), Duration::ZERO);
    }
}

//! Epochs: how often a CA was restored from a backup, and what moves forward then.

use assay_ca_core::{RevocationReason, Revoked};
use time::{Duration, OffsetDateTime};

/// How often a CA was restored.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Epoch {
    /// 0 for a CA that was never restored.
    pub number: u32,
    /// The last time.
    pub restored: Option<Restored>,
}

impl Epoch {
    /// Whether the CA waits for an operator, because it does not know what was revoked between the
    /// backup and the restore.
    pub fn is_held(&self) -> bool {
        self.restored.as_ref().is_some_and(|restored| restored.resumed_at.is_none())
    }
}

/// One time that a CA was restored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Restored {
    /// The moment of which the record was.
    pub backed_up_at: OffsetDateTime,
    /// When it was restored.
    pub restored_at: OffsetDateTime,
    /// Since when the CA may serve again.
    pub resumed_at: Option<OffsetDateTime>,
}

/// What happened when an epoch was raised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Raised {
    /// The new epoch.
    pub epoch: u32,
    /// Certificates that waited to be confirmed, and are revoked now.
    pub waiting: u64,
    /// Shared keys that are retired now.
    pub shared_keys: u64,
    /// The number of the last revocation list, before and after.
    pub list: (u32, u32),
}

/// Whether shared keys of before a restore are good after it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SharedKeys {
    /// They are, because an operator knows that none was retired since the backup.
    Keep,
    /// They are retired.
    Retire,
}

/// A revocation list that the CA published before it was restored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PublishedList {
    /// Whose certificates it is about.
    pub about: ListedAre,
    /// Its number.
    pub number: u32,
    /// What it names.
    pub revoked: Vec<Revoked>,
}

/// Whose certificates a list is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ListedAre {
    /// Devices'.
    Devices,
    /// Those of brokers, workers, operators and backends.
    Identities,
}

/// What a list that was taken over changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TakenOver {
    /// Certificates that were good on record, and are superseded or revoked now.
    pub ended: u64,
    /// EKs that are disabled now.
    pub disabled: u64,
    /// Certificates that the record did not know. They stay on the list.
    pub unknown: u64,
    /// Those of them whose device was disabled: the list does not say which EK it has.
    pub unknown_disabled: u64,
}

/// What becomes of a certificate that a list names.
pub(crate) fn status(revoked: &Revoked) -> &'static str {
    match revoked.reason {
        RevocationReason::Superseded => "superseded",
        RevocationReason::CertificateHold => HELD,
        _ => "revoked",
    }
}

/// Not a status on record: the EK is disabled instead.
pub(crate) const HELD: &str = "held";

/// The number that the last revocation list has after a restore. The CA may have published lists
/// since the backup, and a relying party keeps the one with the highest number (RFC 5280 §5.2.3).
///
/// Numbers begin at 0, and a worker gives one a second at most, so they stay below the seconds
/// since 1970 as long as fewer than some ten workers publish all the time. The other bound does not
/// depend on that, nor on a clock that was right when the CA was made.
pub(crate) fn list_number(before: u32, backed_up_at: OffsetDateTime, now: OffsetDateTime) -> u32 {
    let since = (now - backed_up_at).max(Duration::ZERO).whole_seconds();
    let given = i64::from(before) + LISTS_A_SECOND * since + LISTS_BY_HAND;
    // Beyond 2106, or after thousands of years between backup and restore.
    u32::try_from(given.max(now.unix_timestamp())).unwrap_or(u32::MAX)
}

/// More than all workers of a CA publish: each publishes once a second at most, and only after a
/// change.
const LISTS_A_SECOND: i64 = 16;
/// Those of `assay crl`.
const LISTS_BY_HAND: i64 = 65_536;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_after_a_restore_is_newer_than_any_that_can_have_been_published() {
        let backed_up_at = OffsetDateTime::from_unix_timestamp(1_900_000_000).unwrap();
        let after = |before, since: Duration| {
            let number = list_number(before, backed_up_at, backed_up_at + since);
            i64::from(number)
        };
        assert!(after(7, Duration::DAY) > 1_900_000_000, "a new CA");
        for before in [1_899_000_000, 1_950_000_000, 2_500_000_000] {
            let most = i64::from(before) + 16 * 86_400;
            assert!(after(before, Duration::DAY) > most, "{before}");
        }
        // The clock went backward: the number does not.
        assert!(after(1_950_000_000, -Duration::DAY) > 1_950_000_000);
        assert_eq!(after(u32::MAX - 1, Duration::DAY), i64::from(u32::MAX));
    }
}

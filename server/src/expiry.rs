//! Certificates that end soon, of identities and of the CA itself: which, and a warning of them
//! once a day.

use std::time::Duration as StdDuration;

use anyhow::Result;
use assay_store::{IdentityCertificateRow, IdentityRow};
use time::{Duration, OffsetDateTime};
use tokio::time::sleep;
use tracing::warn;
use x509_parser::prelude::{FromDer, X509Certificate};

/// How long before its end a certificate is due to be renewed: a month, so that whoever looks once
/// a week has time enough.
pub const WARN_BEFORE: Duration = Duration::days(30);

/// The days until this second, rounded down; negative once it is past.
pub fn days_left(not_after: i64, now: OffsetDateTime) -> i64 {
    (not_after - now.unix_timestamp()).div_euclid(Duration::DAY.whole_seconds())
}

/// Whether an identity should be renewed because this certificate ends soon. It is not if a newer
/// certificate is good for longer.
pub fn is_due(
    row: &IdentityRow,
    certificate: &IdentityCertificateRow,
    now: OffsetDateTime,
) -> bool {
    row.newest() == Some(certificate) && ends_soon(certificate.not_after, now)
}

/// Whether a certificate ends soon, or has ended.
pub fn ends_soon(not_after: i64, now: OffsetDateTime) -> bool {
    not_after <= (now + WARN_BEFORE).unix_timestamp()
}

/// Until when a certificate in DER is valid. `None` if it cannot be read.
pub(crate) fn ends_of(certificate: &[u8]) -> Option<OffsetDateTime> {
    let (_, certificate) = X509Certificate::from_der(certificate).ok()?;
    Some(certificate.validity().not_after.to_datetime())
}

/// Something that should be renewed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ending {
    /// What it is.
    pub what: What,
    /// When its newest certificate ends, in seconds since 1970.
    pub not_after: i64,
}

/// Whose certificate ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    /// An identity's, by its name.
    Identity(String),
    /// The issuing CA's that is in use, and no other is used by then.
    Issuing,
    /// The service CA's.
    Service,
    /// The root's.
    Root,
}

/// How long before the end of the root or of the service CA it is warned of: half a year, because
/// every device, or every broker and operator, needs something new.
pub const WARN_OF_CA_BEFORE: Duration = Duration::days(180);

/// Whether an issuing CA in use, which ends at `not_after`, needs a next one: certificates that are
/// issued now are cut short, because they end with it, and the next one, if there is one, is not
/// used before that.
pub fn needs_next(
    not_after: OffsetDateTime,
    next: Option<OffsetDateTime>,
    lifetime: Duration,
    now: OffsetDateTime,
) -> bool {
    not_after < now + lifetime && next.is_none_or(|next| next >= not_after)
}

/// Those that should be renewed.
pub fn endings(rows: &[IdentityRow], now: OffsetDateTime) -> Vec<Ending> {
    let newest = rows.iter().filter_map(|row| row.newest().map(|newest| (row, newest)));
    newest
        .filter(|(_, newest)| ends_soon(newest.not_after, now))
        .map(|(row, newest)| Ending {
            what: What::Identity(row.name.clone()),
            not_after: newest.not_after,
        })
        .collect()
}

/// Warns of what `look` finds, now and once a day. `look` may block. Never returns.
pub async fn watch<L>(look: L)
where
    L: Fn(OffsetDateTime) -> Result<Vec<Ending>> + Clone + Send + 'static,
{
    loop {
        let now = OffsetDateTime::now_utc();
        let look = look.clone();
        let pause = match tokio::task::spawn_blocking(move || look(now)).await {
            Ok(Ok(endings)) => {
                endings.iter().for_each(|ending| tell(ending, now));
                DAY
            }
            Ok(Err(error)) => {
                warn!(error = %format!("{error:#}"), "cannot look whose certificate ends; trying again");
                RETRY
            }
            Err(_) => RETRY,
        };
        sleep(pause).await;
    }
}

fn tell(Ending { what, not_after }: &Ending, now: OffsetDateTime) {
    let days = days_left(*not_after, now);
    match what {
        What::Identity(name) => {
            let name = assay_wire::printable(name, assay_wire::MAX_SHOWN);
            if days < 0 {
                warn!(%name, "its certificate has expired: run `assay identity renew`, or `revoke` if nobody needs it");
            } else {
                warn!(%name, days, "its certificate ends soon: run `assay identity renew`");
            }
        }
        What::Issuing => {
            warn!(
                days,
                "the issuing CA ends soon, and device certificates end with it: make the next one (`assay issuing new`, or `csr`)"
            );
        }
        What::Service => {
            warn!(
                days,
                "the service CA ends soon, and with it the certificates of brokers, workers, operators and backends (docs/operations.md, \"Replacing the root\")"
            );
        }
        What::Root => {
            warn!(
                days,
                "the root ends soon, and every device needs another one (docs/operations.md, \"Replacing the root\")"
            );
        }
    }
}

const DAY: StdDuration = StdDuration::from_secs(24 * 60 * 60);
/// Until the next look after one that failed.
const RETRY: StdDuration = StdDuration::from_secs(60);

#[cfg(test)]
mod tests {
    use assay_store::IdentityRole;
    use assay_wire::Rights;

    use super::*;

    const NOW: i64 = 1_800_000_000;
    const DAYS: i64 = 86_400;

    fn identity(certificates: &[(i64, Option<i64>)]) -> IdentityRow {
        let certificates = certificates.iter().enumerate().map(|(n, (not_after, revoked_at))| {
            IdentityCertificateRow {
                sha256: [u8::try_from(n).unwrap(); 32],
                serial: vec![0x40],
                issued_at: 0,
                not_after: *not_after,
                revoked_at: *revoked_at,
            }
        });
        IdentityRow {
            name: "anna".into(),
            role: IdentityRole::Operator,
            rights: Rights::default(),
            certificates: certificates.collect(),
        }
    }

    fn ending(certificates: &[(i64, Option<i64>)]) -> Vec<i64> {
        let now = OffsetDateTime::from_unix_timestamp(NOW).unwrap();
        let endings = endings(&[identity(certificates)], now);
        endings.into_iter().map(|ending| ending.not_after).collect()
    }

    #[test]
    fn identity_is_warned_of_from_thirty_days_before_its_end_until_it_is_renewed_or_revoked() {
        let (late, soon, past) = (NOW + 30 * DAYS + 1, NOW + 30 * DAYS, NOW - 1);
        assert!(ending(&[(late, None)]).is_empty());
        assert_eq!(ending(&[(soon, None)]), [soon]);
        assert_eq!(ending(&[(past, None)]), [past]);
        assert!(ending(&[(soon, None), (late, None)]).is_empty(), "it is renewed");
        assert!(ending(&[(soon, Some(NOW))]).is_empty(), "it is revoked");
        assert_eq!(
            ending(&[(soon, None), (late, Some(NOW))]),
            [soon],
            "the renewed one is revoked"
        );
    }

    #[test]
    fn only_the_newest_certificate_of_an_identity_is_marked() {
        let now = OffsetDateTime::from_unix_timestamp(NOW).unwrap();
        let marked = |row: &IdentityRow| {
            row.certificates.iter().map(|each| is_due(row, each, now)).collect::<Vec<_>>()
        };
        let (soon, late) = (NOW + DAYS, NOW + 90 * DAYS);
        assert_eq!(marked(&identity(&[(soon, None), (late, None)])), [false, false]);
        assert_eq!(marked(&identity(&[(soon, None), (soon, None)])), [false, true]);
        assert_eq!(marked(&identity(&[(soon, None), (late, Some(NOW))])), [true, false]);
    }

    #[test]
    fn issuing_ca_that_cuts_certificates_short_needs_a_next_one_that_is_used_before_its_end() {
        let now = OffsetDateTime::from_unix_timestamp(NOW).unwrap();
        let in_days = |days| now + Duration::days(days);
        let needs = |ends, next: Option<i64>| {
            needs_next(in_days(ends), next.map(in_days), Duration::days(90), now)
        };
        assert!(!needs(90, None) && needs(89, None) && needs(-1, None));
        assert!(!needs(89, Some(88)) && needs(89, Some(89)) && needs(89, Some(100)));
    }

    #[test]
    fn days_left_are_rounded_down() {
        let now = OffsetDateTime::from_unix_timestamp(NOW).unwrap();
        for (seconds, days) in [(2 * DAYS, 2), (2 * DAYS - 1, 1), (0, 0), (-1, -1)] {
            assert_eq!(days_left(NOW + seconds, now), days, "{seconds}");
        }
    }
}

//! Times as RFC 3339 writes them, in UTC.

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// Seconds since 1970. A time that RFC 3339 cannot write stays a number.
pub fn seconds(seconds: i64) -> String {
    OffsetDateTime::from_unix_timestamp(seconds)
        .ok()
        .and_then(|time| time.format(&Rfc3339).ok())
        .unwrap_or_else(|| seconds.to_string())
}

/// Microseconds since 1970, always with six digits, so that texts are in the order of times.
pub fn microseconds(microseconds: i64) -> String {
    let whole = seconds(microseconds.div_euclid(1_000_000));
    format!("{}.{:06}Z", whole.trim_end_matches('Z'), microseconds.rem_euclid(1_000_000))
}

//! Times as RFC 3339 writes them, in UTC.

use time::format_description::well_known::Rfc3339;
use time::macros::format_description;
use time::{Date, OffsetDateTime, Time};

/// Reads a time, or a day (YYYY-MM-DD), which stands for its beginning in UTC.
pub fn parse(text: &str) -> Option<OffsetDateTime> {
    let day = || Date::parse(text, format_description!("[year]-[month]-[day]")).ok();
    let time = OffsetDateTime::parse(text, &Rfc3339).ok();
    time.or_else(|| Some(day()?.with_time(Time::MIDNIGHT).assume_utc()))
}

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_and_a_day_are_read_and_nothing_else() {
        let read = |text| parse(text).map(OffsetDateTime::unix_timestamp);
        assert_eq!(read("2027-01-15T08:00:00Z"), Some(1_800_000_000));
        assert_eq!(read("2027-01-15T10:00:00+02:00"), Some(1_800_000_000));
        assert_eq!(read("2027-01-15"), Some(1_800_000_000 - 8 * 3_600));
        for text in ["", "2027-01", "2027-1-15", "2027-02-30", "15.1.2027", "tomorrow"] {
            assert_eq!(read(text), None, "{text}");
        }
    }
}

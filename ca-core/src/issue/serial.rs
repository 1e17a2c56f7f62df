//! Serial numbers of certificates: they say when a certificate was issued.

use rand_core::CryptoRng;
use time::OffsetDateTime;

/// A serial number that sorts by time, so that an index over a million of them is written at one
/// end. It has 0x40, so that it is positive and always of the same length; 5 bytes of seconds since
/// 1970; and 80 random bits, more than the 64 that are expected of a CA (CA/B Baseline Requirements
/// §7.1).
pub(crate) fn serial_number(now: OffsetDateTime, rng: &mut dyn CryptoRng) -> [u8; 16] {
    let mut serial = [0; 16];
    serial[0] = 0x40;
    serial[1..6].copy_from_slice(&now.unix_timestamp().to_be_bytes()[3..]);
    rng.fill_bytes(&mut serial[6..]);
    serial
}

/// When the certificate with this serial number was issued. `None` if it is no serial number of
/// this CA.
pub(super) fn issued_at(serial: &[u8; 16]) -> Option<OffsetDateTime> {
    let [0x40, a, b, c, d, e, ..] = *serial else { return None };
    let seconds = i64::from_be_bytes([0, 0, 0, a, b, c, d, e]);
    OffsetDateTime::from_unix_timestamp(seconds).ok()
}

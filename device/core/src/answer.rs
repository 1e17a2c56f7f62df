//! Why a device does not use an answer of the CA.

use alloc::format;
use alloc::string::String;

use time::OffsetDateTime;

/// Why the CA's answer cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AnswerError {
    /// The challenge was not made for this TPM's EK and IK.
    #[error(
        "the TPM cannot open the challenge, so the challenge was not made for this TPM's EK and \
         IK: {0}"
    )]
    Challenge(String),
    /// The secret in the challenge is not a ticket.
    #[error("the challenge holds {0} bytes where a ticket has 32")]
    TicketLength(usize),
    /// The secret in the credential is not the key of a sealed certificate.
    #[error("the credential holds {0} bytes where the key of a sealed certificate has 32")]
    SealKeyLength(usize),
    /// The sealed certificate was made for another claim, EK or IK, or somebody altered it.
    #[error(
        "the sealed certificate cannot be opened: it was made for another device or request, or \
         altered on its way"
    )]
    Seal,
    /// The answer to the confirmation is not from the CA that sealed the certificate.
    #[error(
        "the receipt is not from the CA that sealed the certificate: the confirmation did not \
         reach that CA"
    )]
    Receipt,
    /// The HMAC key was not made for this TPM's EK and parent.
    #[error("the TPM cannot load the key: {0}")]
    SharedKey(String),
    /// The answer is of another kind than the request asks for.
    #[error("the CA answered with a {found} instead of a {wanted}")]
    OutOfTurn {
        /// What was asked for.
        wanted: &'static str,
        /// What came.
        found: &'static str,
    },
    /// The certificate cannot be read.
    #[error("unreadable certificate: {0}")]
    Unreadable(String),
    /// A certificate of the chain is not valid yet by this device's clock.
    #[error(
        "a certificate in it is valid only from {}; this device's clock says {}",
        rfc3339(*not_before),
        rfc3339(*clock)
    )]
    NotYetValid {
        /// What the clock says, in seconds since 1970.
        clock: u64,
        /// The first moment of the certificate, in seconds since 1970.
        not_before: u64,
    },
    /// A certificate of the chain is no longer valid by this device's clock.
    #[error(
        "a certificate in it ended on {}; this device's clock says {}",
        rfc3339(*not_after),
        rfc3339(*clock)
    )]
    Expired {
        /// What the clock says, in seconds since 1970.
        clock: u64,
        /// The last moment of the certificate, in seconds since 1970.
        not_after: u64,
    },
    /// There is no valid path from the certificate to the pinned root.
    #[error("no valid path from the certificate to the pinned root: {0}")]
    Path(String),
    /// The certificate is not for TLS clients.
    #[error("the certificate lacks the extended key usage clientAuth")]
    NotForClients,
    /// The certificate is for another key.
    #[error("the certificate is for another key than this device's identity key")]
    OtherKey,
    /// The renewed certificate is not newer than the one in use.
    #[error(
        "the renewed certificate is no newer than the one in use: it is valid from {}, and the \
         other from {}",
        rfc3339(*not_before),
        rfc3339(*in_use)
    )]
    NotNewer {
        /// The first moment of the renewed certificate, in seconds since 1970.
        not_before: u64,
        /// The first moment of the one in use, in seconds since 1970.
        in_use: u64,
    },
    /// The certificate, or the key, is for another device.
    #[error("the answer names {found:?} instead of {wanted:?}")]
    OtherDevice {
        /// The URI or name that was expected.
        wanted: String,
        /// What is there.
        found: String,
    },
}

/// A time as people read it, e.g. `2027-02-20T20:08:40Z`, from seconds since 1970.
pub fn rfc3339(seconds: u64) -> String {
    let time = i64::try_from(seconds).ok();
    match time.and_then(|seconds| OffsetDateTime::from_unix_timestamp(seconds).ok()) {
        Some(time) => format!(
            "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}Z",
            time.year(),
            u8::from(time.month()),
            time.day(),
            time.hour(),
            time.minute(),
            time.second()
        ),
        None => format!("{seconds} s after 1970"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_printed_as_rfc_3339_has_them() {
        assert_eq!(rfc3339(0), "1970-01-01T00:00:00Z");
        assert_eq!(rfc3339(1_803_154_120), "2027-02-20T20:08:40Z");
        assert_eq!(rfc3339(u64::MAX), "18446744073709551615 s after 1970");
    }
}

//! Why a request was not granted: a stable code, a text, and when to try again.

use alloc::string::String;
use core::fmt;

use minicbor::{Decode, Decoder, Encode, Encoder};

/// The CA's answer to a request that it does not grant, in the shape of RFC 9290 (concise problem
/// details): its standard keys -1 (title) and -2 (detail), and two of our own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// What failed.
    pub code: ProblemCode,
    /// How many seconds to wait before the same request may succeed. Without it, the request cannot
    /// succeed until somebody changes something.
    pub retry_after: Option<u32>,
    /// One sentence that explains the code, for a device that does not know it.
    pub title: String,
    /// The check that failed and the values compared, for people. At most [`Problem::MAX_DETAIL`]
    /// bytes.
    pub detail: String,
}

impl Problem {
    /// The longest detail, in bytes: a few lines on a terminal.
    pub const MAX_DETAIL: usize = 512;

    /// A problem that lasts until somebody changes something on one of the two sides. A detail over
    /// its limit is cut.
    pub fn new(code: ProblemCode, mut detail: String) -> Self {
        if detail.len() > Self::MAX_DETAIL {
            detail.truncate(detail.floor_char_boundary(Self::MAX_DETAIL));
        }
        Self { code, retry_after: None, title: code.title().into(), detail }
    }

    /// The same problem, but one that passes by itself.
    pub fn retry_after(self, seconds: u32) -> Self {
        Self { retry_after: Some(seconds), ..self }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({}): {}", self.code, self.code.number(), self.detail)
    }
}

const KEY_CODE: i8 = 0;
const KEY_RETRY_AFTER: i8 = 1;
const KEY_TITLE: i8 = -1;
const KEY_DETAIL: i8 = -2;

impl<C> Encode<C> for Problem {
    fn encode<W: minicbor::encode::Write>(
        &self,
        e: &mut Encoder<W>,
        _: &mut C,
    ) -> Result<(), minicbor::encode::Error<W::Error>> {
        e.map(3 + u64::from(self.retry_after.is_some()))?;
        e.i8(KEY_CODE)?.u16(self.code.number())?;
        if let Some(seconds) = self.retry_after {
            e.i8(KEY_RETRY_AFTER)?.u32(seconds)?;
        }
        e.i8(KEY_TITLE)?.str(&self.title)?;
        e.i8(KEY_DETAIL)?.str(&self.detail)?.ok()
    }
}

impl<'b, C> Decode<'b, C> for Problem {
    fn decode(d: &mut Decoder<'b>, _: &mut C) -> Result<Self, minicbor::decode::Error> {
        let at = d.position();
        let entries = d.map()?;
        let (mut code, mut retry_after, mut title, mut detail) = (None, None, None, None);
        for _ in 0..entries.unwrap_or(0) {
            match d.i8()? {
                KEY_CODE => code = Some(ProblemCode::from_number(d.u16()?)),
                KEY_RETRY_AFTER => retry_after = Some(d.u32()?),
                KEY_TITLE => title = Some(d.str()?),
                KEY_DETAIL => detail = Some(d.str()?),
                _ => return Err(minicbor::decode::Error::message("unknown problem field").at(at)),
            }
        }
        match (code, title, detail) {
            (Some(code), Some(title), Some(detail)) if detail.len() <= Self::MAX_DETAIL => {
                Ok(Self { code, retry_after, title: title.into(), detail: detail.into() })
            }
            _ => Err(minicbor::decode::Error::message("not a problem of this protocol").at(at)),
        }
    }
}

macro_rules! problem_codes {
    ($($(#[$doc:meta])* $variant:ident = $number:literal, $name:literal, $title:literal;)*) => {
        /// What failed, as a number and a name that never change their meaning.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum ProblemCode {
            $(#[doc = concat!("`", $name, "` (", $number, "): ", $title, ".")] $(#[$doc])* $variant,)*
            /// A code that this version does not know. It is final: repeating the request is
            /// pointless, unless the problem has a `retry_after`.
            Other(u16),
        }

        impl ProblemCode {
            /// Every code that this version knows, in the order of the numbers.
            pub const ALL: &[Self] = &[$(Self::$variant),*];

            /// The code on the wire.
            pub fn number(self) -> u16 {
                match self { $(Self::$variant => $number,)* Self::Other(number) => number }
            }

            /// The code that a number stands for.
            pub fn from_number(number: u16) -> Self {
                match number { $($number => Self::$variant,)* other => Self::Other(other) }
            }

            /// The code as people and scripts name it, e.g. `ek-off-template`.
            pub fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* Self::Other(_) => "unknown" }
            }

            /// One sentence on what failed, the same for every problem with this code.
            pub fn title(self) -> &'static str {
                match self {
                    $(Self::$variant => $title,)*
                    Self::Other(_) => "This version of the protocol does not know this problem code",
                }
            }
        }
    };
}

problem_codes! {
    Malformed = 1, "malformed", "The message is not deterministic CBOR of this protocol";
    Oversize = 2, "oversize", "The message is longer than its limit";
    Unsupported = 3, "unsupported", "This CA does not know the kind of request";
    Busy = 4, "busy", "The CA has more requests than it can take";
    Internal = 5, "internal", "The CA failed for a reason of its own";
    FlowNotOffered = 6, "flow-not-offered", "This CA does not offer the flow in this scope";
    EkOffTemplate = 10, "ek-off-template", "The EK's public area equals no TCG template";
    EkWeak = 11, "ek-weak", "The EK is too weak to be trusted";
    EkNotEnrolled = 12, "ek-not-enrolled", "The EK has no certificate and is not on the enrolment list";
    EkCertificateInvalid = 13, "ek-certificate-invalid", "The EK certificate is not an EK certificate";
    EkCertificateUntrusted = 14, "ek-certificate-untrusted", "The EK certificate leads to no trusted TPM vendor";
    EkCertificateExpired = 15, "ek-certificate-expired", "The EK certificate is outside its validity";
    EkCertificateMismatch = 16, "ek-certificate-mismatch", "The EK certificate is for another key than the EK's public area";
    OtherEkOnRecord = 17, "other-ek-on-record", "The CA knows another EK of this TPM, and not this one";
    IkOffTemplate = 20, "ik-off-template", "The IK's public area equals no accepted template";
    IkWeak = 21, "ik-weak", "The IK is not a sound key";
    CsrInvalid = 22, "csr-invalid", "The certificate request cannot be read";
    CsrSignatureInvalid = 23, "csr-signature-invalid", "The certificate request is not signed by its own key";
    CsrKeyMismatch = 24, "csr-key-mismatch", "The certificate request is for another key than the IK";
    ParentOffTemplate = 25, "parent-off-template", "The parent's public area equals no accepted template";
    ParentWeak = 26, "parent-weak", "The parent is not a sound key";
    PlainSrk = 27, "plain-srk", "The parent is a plain storage root key, and no enrolment of the EK allows that";
    DeviceDisabled = 30, "device-disabled", "An operator disabled this device";
    DeviceIdTaken = 31, "device-id-taken", "The device id belongs to another EK";
    EkRegistered = 32, "ek-registered", "The EK is registered under another device id";
    DeviceIdNotEnrolled = 33, "device-id-not-enrolled", "No enrolment grants this device id to the EK";
    QuotaExceeded = 34, "quota-exceeded", "The device got too many certificates or keys in a short time";
    ReprovisionRefused = 35, "reprovision-refused", "The device is provisioned already, and its enrolment forbids another provisioning";
    Pending = 36, "pending", "An operator has to approve this device first; come back";
    NotAdmitted = 37, "not-admitted", "No group of this CA admits the EK";
    ClaimExpired = 40, "claim-expired", "The claim is past its time; begin again";
    TicketRefused = 41, "ticket-refused", "The ticket does not prove the claim; begin again";
    ClockOff = 42, "clock-off", "The time of the request is too far from the CA's clock";
    CertificateNotInForce = 43, "certificate-not-in-force", "The certificate is not in force for this EK; get one by another flow";
    StatementRefused = 44, "statement-refused", "The statement is not signed by the key of the certificate";
}

impl fmt::Display for ProblemCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

#[cfg(test)]
mod tests {
    use alloc::collections::BTreeSet;
    use alloc::string::ToString;

    use super::*;

    #[test]
    fn numbers_and_names_are_distinct_and_read_back() {
        let names: BTreeSet<_> = ProblemCode::ALL.iter().map(|code| code.name()).collect();
        assert_eq!(names.len(), ProblemCode::ALL.len());
        for code in ProblemCode::ALL {
            assert_eq!(ProblemCode::from_number(code.number()), *code);
        }
        assert_eq!(ProblemCode::from_number(999), ProblemCode::Other(999));
    }

    #[test]
    fn a_long_detail_is_cut_at_a_character() {
        let problem = Problem::new(ProblemCode::Internal, "é".repeat(400));
        assert_eq!(problem.detail.len(), Problem::MAX_DETAIL);
        let odd = Problem::new(ProblemCode::Internal, "x".to_string() + &"é".repeat(400));
        assert_eq!(odd.detail.len(), Problem::MAX_DETAIL - 1);
    }
}

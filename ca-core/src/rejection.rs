//! Failures: the CA tells a device its own faults, and does not tell it the CA's faults.

use assay_wire::{Bytes, DeviceId, EkId, Flow, Limit, Problem, ProblemCode, Scope};
use time::{Duration, OffsetDateTime};

use crate::ek::anchors::{NoPath, Reason};
use crate::groups::{Applicant, GroupName, Unadmitted};
use crate::key::WeakKey;
use crate::rfc3339;
use crate::tpm::public::AreaError;
use crate::tpm::template::AreaRefused;
use crate::x509::Rule;

/// A check that a device failed.
///
/// Its text names the check and the compared values. It holds nothing secret, because the device
/// reads it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)] // each variant's message is its documentation
pub enum Rejection {
    #[error("the {object}'s public area cannot be read: {reason}")]
    AreaUnreadable { object: &'static str, reason: AreaError },

    #[error("the EK's public area equals no TCG template: {0}")]
    EkOffTemplate(AreaRefused),
    #[error("the EK is weak: {0}")]
    EkWeak(WeakKey),
    #[error("EK {ek} came without a certificate and is not on the enrolment list")]
    EkNotEnrolled { ek: EkId },
    #[error("the EK certificate is invalid: {0}")]
    EkCertificateInvalid(String),
    #[error("the EK certificate leads to no CA that is trusted: {reason}")]
    EkCertificateUntrusted { reason: String },
    #[error("{0}")]
    EkCertificateExpired(String),
    #[error("the EK certificate is for the key {certificate}, the EK's public area holds {area}")]
    EkCertificateMismatch { certificate: EkId, area: EkId },
    #[error(
        "the EK certificate is for the key {certificate}, the EK's public area holds {area}. \
         Azure's device SDKs make such an EK, with an empty `unique`, and no vendor certifies it: \
         show the EK of TCG's template L-1, or have this one enrolled with --legacy-dps-ek"
    )]
    EkOfAzureSdk { certificate: EkId, area: EkId },

    #[error(
        "EK {ek} is neither enrolled nor registered. The device says that the same TPM holds EK \
         {other}, which is enrolled, registered or disabled. Show EK {other}, or have EK {ek} \
         enrolled"
    )]
    OtherEkOnRecord { ek: EkId, other: EkId },

    #[error("the IK's public area equals no accepted template: {0}")]
    IkOffTemplate(AreaRefused),
    #[error("the IK is weak: {0}")]
    IkWeak(WeakKey),
    #[error("the parent's public area equals no accepted template: {0}")]
    ParentOffTemplate(AreaRefused),
    #[error("the parent is weak: {0}")]
    ParentWeak(WeakKey),
    #[error(
        "the parent is a plain storage root key; an attacker who controls the device's software \
         can get the shared key from it. Make an import parent, or have the operator allow the \
         plain one for EK {ek}: `assay enroll {}`",
        allow_plain_srk(ek, *.is_enrolled)
    )]
    PlainSrk { ek: EkId, is_enrolled: bool },
    #[error("the certificate request is invalid: {0}")]
    CsrInvalid(String),
    #[error("the certificate request is not signed by the IK")]
    CsrSignatureInvalid,
    #[error("the certificate request is for another key than the IK")]
    CsrKeyMismatch,

    #[error("EK {ek} is disabled by the operator")]
    DeviceDisabled { ek: EkId },
    #[error("EK {ek} is not admitted: {reason}")]
    NotAdmitted { ek: EkId, reason: Unadmitted },
    #[error("an operator is asked whether to admit EK {}: come back", .0.ek_id)]
    Pending(Box<Applicant>),
    #[error("device id {device_id} belongs to another EK than {ek}")]
    DeviceIdTaken { device_id: DeviceId, ek: EkId },
    #[error("EK {ek} is registered as {registered}, not as {requested}")]
    EkRegistered { ek: EkId, registered: DeviceId, requested: DeviceId },
    #[error("device id {requested} is not granted to EK {ek}; its device id is {due}")]
    DeviceIdNotEnrolled { ek: EkId, requested: DeviceId, due: DeviceId },
    #[error(
        "an operator removed EK {ek} after the claim was made, so device id {device_id} is no \
         longer granted to it"
    )]
    DeviceIdWithdrawn { ek: EkId, device_id: DeviceId },

    #[error("the device got {count} certificates or shared keys within a day; that is the limit")]
    QuotaExceeded { count: u32 },
    #[error(
        "{count} sealed certificates for EK {ek} were not confirmed within a day; that is the \
         limit. They do not count in the ticket flow"
    )]
    SealedQuotaExceeded { ek: EkId, count: u32 },
    #[error(
        "a renewed certificate waits for EK {ek} that says something else than a new one would; \
         the next may be issued from {next} on"
    )]
    RenewedTooOften { ek: EkId, next: OffsetDateTime },
    #[error("EK {ek} is provisioned already, and the policy of its enrolment is `never`")]
    ReprovisionRefused { ek: EkId },
    #[error("the flow {flow} is not offered; offered are: {offered}")]
    FlowNotOffered { flow: Flow, offered: String },
    #[error("group {group} does not allow the flow {flow}; it allows: {allowed}")]
    FlowNotInGroup { group: GroupName, flow: Flow, allowed: String },

    #[error("the claim expired at {expired_at}; the time is {now}")]
    ClaimExpired { expired_at: OffsetDateTime, now: OffsetDateTime },
    #[error(
        "after the claim was made, at {issued_at}, the device got a certificate for another IK"
    )]
    ClaimOutdated { issued_at: OffsetDateTime },
    #[error(
        "the certificate of this claim, issued before {issued_at}, is no longer valid: it was \
         superseded or revoked, or not confirmed in time"
    )]
    CertificateEnded { issued_at: OffsetDateTime },
    #[error(
        "after the certificate that waits was issued, at {issued_at}, another one for the same IK \
         came into force"
    )]
    CertificateOvertaken { issued_at: OffsetDateTime },
    #[error(
        "the device's clock says {}, and the CA's {ca}: more than {limit} apart", clock(*.device)
    )]
    ClockOff { device: u64, ca: OffsetDateTime, limit: Duration },
    #[error(
        "no certificate with SHA-256 {certificate} is in force for EK {ek}: it was superseded or \
         revoked, it expired, or it was never in force"
    )]
    CertificateNotInForce { ek: EkId, certificate: String },
    #[error(
        "no renewed certificate with SHA-256 {certificate} waits for EK {ek}: it was superseded or \
         revoked, it expired, or it was never issued"
    )]
    NothingToAdopt { ek: EkId, certificate: String },
    #[error(
        "the signature is not by the IK of the certificate with SHA-256 {certificate}, or not of \
         this scope, certificate and time"
    )]
    StatementWrong { certificate: String },
    #[error("the claim was issued at {issued_at}, which is in the future; the time is {now}")]
    ClaimFromTheFuture { issued_at: OffsetDateTime, now: OffsetDateTime },
    #[error("the claim cannot be read")]
    ClaimUnreadable,
    #[error("the claim was made under another ticket key")]
    ClaimOfAnotherKey,
    #[error("the ticket does not prove the claim")]
    TicketWrong,
    #[error("the claim is for scope {claimed}, this is {scope}")]
    ClaimOfAnotherScope { claimed: Scope, scope: Scope },
}

impl Rejection {
    /// The code that a device acts on.
    pub fn code(&self) -> ProblemCode {
        match self {
            Self::AreaUnreadable { .. } => ProblemCode::Malformed,
            Self::EkOffTemplate(_) => ProblemCode::EkOffTemplate,
            Self::EkWeak(_) => ProblemCode::EkWeak,
            Self::EkNotEnrolled { .. } => ProblemCode::EkNotEnrolled,
            Self::EkCertificateInvalid(_) => ProblemCode::EkCertificateInvalid,
            Self::EkCertificateUntrusted { .. } => ProblemCode::EkCertificateUntrusted,
            Self::EkCertificateExpired(_) => ProblemCode::EkCertificateExpired,
            Self::EkCertificateMismatch { .. } | Self::EkOfAzureSdk { .. } => {
                ProblemCode::EkCertificateMismatch
            }
            Self::OtherEkOnRecord { .. } => ProblemCode::OtherEkOnRecord,
            Self::IkOffTemplate(_) => ProblemCode::IkOffTemplate,
            Self::IkWeak(_) => ProblemCode::IkWeak,
            Self::ParentOffTemplate(_) => ProblemCode::ParentOffTemplate,
            Self::ParentWeak(_) => ProblemCode::ParentWeak,
            Self::PlainSrk { .. } => ProblemCode::PlainSrk,
            Self::CsrInvalid(_) => ProblemCode::CsrInvalid,
            Self::CsrSignatureInvalid => ProblemCode::CsrSignatureInvalid,
            Self::CsrKeyMismatch => ProblemCode::CsrKeyMismatch,
            Self::DeviceDisabled { .. } => ProblemCode::DeviceDisabled,
            Self::NotAdmitted { .. } => ProblemCode::NotAdmitted,
            Self::Pending(_) => ProblemCode::Pending,
            Self::DeviceIdTaken { .. } => ProblemCode::DeviceIdTaken,
            Self::EkRegistered { .. } => ProblemCode::EkRegistered,
            Self::DeviceIdNotEnrolled { .. } => ProblemCode::DeviceIdNotEnrolled,
            Self::QuotaExceeded { .. }
            | Self::SealedQuotaExceeded { .. }
            | Self::RenewedTooOften { .. } => ProblemCode::QuotaExceeded,
            Self::ReprovisionRefused { .. } => ProblemCode::ReprovisionRefused,
            Self::FlowNotOffered { .. } | Self::FlowNotInGroup { .. } => {
                ProblemCode::FlowNotOffered
            }
            Self::ClaimExpired { .. }
            | Self::ClaimOutdated { .. }
            | Self::DeviceIdWithdrawn { .. }
            | Self::CertificateEnded { .. }
            | Self::CertificateOvertaken { .. }
            | Self::ClaimFromTheFuture { .. } => ProblemCode::ClaimExpired,
            Self::ClockOff { .. } => ProblemCode::ClockOff,
            Self::CertificateNotInForce { .. } | Self::NothingToAdopt { .. } => {
                ProblemCode::CertificateNotInForce
            }
            Self::StatementWrong { .. } => ProblemCode::StatementRefused,
            Self::ClaimUnreadable
            | Self::ClaimOfAnotherKey
            | Self::TicketWrong
            | Self::ClaimOfAnotherScope { .. } => ProblemCode::TicketRefused,
        }
    }

    /// The problem that the CA tells the device.
    pub fn problem(&self) -> Problem {
        let problem = Problem::new(self.code(), self.to_string());
        match self {
            Self::QuotaExceeded { .. }
            | Self::SealedQuotaExceeded { .. }
            | Self::RenewedTooOften { .. } => problem.retry_after(RETRY_AFTER_QUOTA_S),
            Self::Pending(applicant) => problem.retry_after(come_back_after(applicant.waited)),
            _ => problem,
        }
    }

    /// Turns a failed search for a path into "expired", "invalid" if the EK certificate itself is
    /// at fault, or "untrusted".
    pub(crate) fn of_path(no_path: NoPath) -> Self {
        match &no_path.0 {
            Reason::Broken { rule: Rule::Expired { .. } | Rule::NotYetValid { .. }, .. } => {
                Self::EkCertificateExpired(no_path.to_string())
            }
            Reason::Broken {
                is_ek_certificate: true,
                rule: rule @ (Rule::EkIsCa | Rule::UnknownCritical(_)),
                ..
            } => Self::EkCertificateInvalid(format!("it {rule}")),
            _ => Self::EkCertificateUntrusted { reason: no_path.to_string() },
        }
    }

    /// Turns a refusal of an EK's area into "weak", "off template" or "unreadable".
    pub(crate) fn of_ek(refused: AreaRefused) -> Self {
        match refused {
            AreaRefused::Weak(weak) => Self::EkWeak(weak),
            other => match structural(&other) {
                Some(reason) => Self::AreaUnreadable { object: "EK", reason },
                None => Self::EkOffTemplate(other),
            },
        }
    }

    /// Turns a refusal of an IK's area into "weak", "off template" or "unreadable".
    pub(crate) fn of_ik(refused: AreaRefused) -> Self {
        match refused {
            AreaRefused::Weak(weak) => Self::IkWeak(weak),
            other => match structural(&other) {
                Some(reason) => Self::AreaUnreadable { object: "IK", reason },
                None => Self::IkOffTemplate(other),
            },
        }
    }

    /// Turns a refusal of a parent's area into "weak", "off template" or "unreadable".
    pub(crate) fn of_parent(refused: AreaRefused) -> Self {
        match refused {
            AreaRefused::Weak(weak) => Self::ParentWeak(weak),
            other => match structural(&other) {
                Some(reason) => Self::AreaUnreadable { object: "parent", reason },
                None => Self::ParentOffTemplate(other),
            },
        }
    }
}

/// A quarter of the time that a device has waited: operators approve new devices within minutes,
/// and old ones when they come to it.
fn come_back_after(waited: Duration) -> u32 {
    let quarter = waited.whole_seconds() / 4;
    let bounded = quarter.clamp(SHORTEST_PENDING_S.into(), LONGEST_PENDING_S.into());
    u32::try_from(bounded).unwrap_or(LONGEST_PENDING_S)
}

/// A device's clock, if it shows a time that a calendar has.
fn clock(seconds: u64) -> String {
    let time =
        i64::try_from(seconds).ok().and_then(|it| OffsetDateTime::from_unix_timestamp(it).ok());
    time.map_or_else(|| format!("{seconds} s after 1970"), |time| time.to_string())
}

/// The rest of the operator's command. An EK that is not on the enrolment list must be added first.
fn allow_plain_srk(ek: &EkId, is_enrolled: bool) -> String {
    if is_enrolled { format!("update {ek} --plain-srk") } else { "add FILE --plain-srk".to_owned() }
}

/// The error, if the bytes are not a public area at all; `None` if they are one that no template
/// has.
fn structural(refused: &AreaRefused) -> Option<AreaError> {
    match refused {
        AreaRefused::Area(error) => match error {
            AreaError::Truncated | AreaError::TrailingBytes(_) | AreaError::Oversize { .. } => {
                Some(error.clone())
            }
            AreaError::Unsupported { .. } | AreaError::UnsupportedCurve(_) => None,
        },
        AreaRefused::Weak(_)
        | AreaRefused::OffTemplate { .. }
        | AreaRefused::NoSuchIndex(_)
        | AreaRefused::NoTemplate { .. } => None,
    }
}

/// A failure that is no device's fault.
///
/// Its text is for the operator's log. The device gets [`ProblemCode::Internal`] and nothing else.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)] // each variant's message is its documentation
pub enum Fault {
    #[error("the cryptographic library failed at {0}")]
    Crypto(&'static str),
    #[error("{field} is longer than the protocol allows: {limit}")]
    Oversize { field: &'static str, limit: Limit },
    #[error(
        "the issuing certificate is valid until {}; the time is {}",
        rfc3339(not_after),
        rfc3339(now)
    )]
    IssuerExpired { not_after: OffsetDateTime, now: OffsetDateTime },
    #[error("the certificate library failed at {operation}: {reason}")]
    Certificate { operation: &'static str, reason: String },
    #[error("the issuing key, which is elsewhere, does not sign now")]
    KeyAway,
}

impl Fault {
    /// What a signer's failure means: that of a key elsewhere passes.
    pub(crate) fn of_signer(operation: &'static str) -> impl Fn(rcgen::Error) -> Self {
        move |error| match error {
            rcgen::Error::RemoteKeyError => Self::KeyAway,
            error => Self::Certificate { operation, reason: error.to_string() },
        }
    }
}

/// Makes a field of a reply from bytes that the CA made.
pub(crate) fn fitting<const MAX: usize>(
    field: &'static str,
    bytes: Vec<u8>,
) -> Result<Bytes<MAX>, Fault> {
    bytes.try_into().map_err(|limit| Fault::Oversize { field, limit })
}

/// Why a decision has no result: the device's fault or the CA's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// The device failed a check. The CA tells it which.
    #[error(transparent)]
    Rejection(#[from] Rejection),
    /// The CA tells the device that something failed, and no more.
    #[error(transparent)]
    Fault(#[from] Fault),
}

/// The quota is for a day and becomes free bit by bit, so the device need not wait for a whole day.
const RETRY_AFTER_QUOTA_S: u32 = 3600;
/// An operator who waits beside the device should not wait for it.
const SHORTEST_PENDING_S: u32 = 5;
/// How late a device learns that it is approved. A hundred thousand that wait ask a hundred times a
/// second.
const LONGEST_PENDING_S: u32 = 900;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn advice_to_a_device_that_waits_grows_and_has_an_end() {
        let advice = |seconds| come_back_after(Duration::seconds(seconds));
        assert_eq!([-9, 0, 20, 40, 400].map(advice), [5, 5, 5, 10, 100]);
        assert_eq!([3600, i64::MAX].map(advice), [900, 900]);
    }
}

//! Why an EK is trusted.

use std::fmt;
use std::str::FromStr;

/// What makes an EK trusted. Certificates carry it as a policy, so that relying parties can read
/// it.
///
/// `FromStr` reads what `Display` writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, minicbor::Encode, minicbor::Decode)]
#[cbor(index_only)]
pub enum Assurance {
    /// The EK's certificate leads to a TPM vendor that the operator trusts.
    #[n(1)]
    VendorCertificate,
    /// The operator put the EK on the enrolment list.
    #[n(2)]
    EnrolmentList,
}

impl fmt::Display for Assurance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::VendorCertificate => "vendor-certificate",
            Self::EnrolmentList => "enrolment-list",
        })
    }
}

impl FromStr for Assurance {
    type Err = UnknownAssurance;

    fn from_str(text: &str) -> Result<Self, UnknownAssurance> {
        let all = [Self::VendorCertificate, Self::EnrolmentList];
        all.into_iter().find(|assurance| assurance.to_string() == text).ok_or(UnknownAssurance)
    }
}

/// The text is not the name of an assurance.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("neither vendor-certificate nor enrolment-list")]
pub struct UnknownAssurance;

//! The flows by which a device may be provisioned, by name.

use core::fmt;
use core::str::FromStr;

use crate::IdError;

/// A way to be provisioned.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Flow {
    /// `ticket`: the TPM is proven, then a certificate is issued. Two round trips.
    Ticket,
    /// `sealed`: a certificate that only the TPM can read, and a confirmation that it could.
    Sealed,
    /// `shared-key`: an HMAC key that only the TPM can load, in place of a certificate.
    SharedKey,
}

impl Flow {
    /// Every flow.
    pub const ALL: [Self; 3] = [Self::Ticket, Self::Sealed, Self::SharedKey];

    /// The flow as people and settings name it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ticket => "ticket",
            Self::Sealed => "sealed",
            Self::SharedKey => "shared-key",
        }
    }
}

impl fmt::Display for Flow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Flow {
    type Err = IdError;

    fn from_str(name: &str) -> Result<Self, IdError> {
        let error = IdError { kind: "flow", shape: "ticket, sealed or shared-key" };
        Self::ALL.into_iter().find(|flow| flow.name() == name).ok_or(error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flows_read_back_from_their_names() {
        for flow in Flow::ALL {
            assert_eq!(flow.name().parse(), Ok(flow));
        }
        assert!("tickets".parse::<Flow>().is_err());
    }
}

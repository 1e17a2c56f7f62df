//! The flows in which the CA may provision a device.

use core::fmt;
use core::str::FromStr;

use crate::IdError;

/// How a device talks with the CA, and what it gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Flow {
    /// `ticket`: a certificate for an identity key in two round trips. The CA keeps nothing between
    /// them, and issues nothing before the TPM proves itself.
    Ticket,
    /// `sealed`: a certificate for an identity key in one round trip, which only the TPM can read.
    /// The device then confirms that it could read it.
    Sealed,
    /// `shared-key`: an HMAC key for the TPM, and no certificate. The device signs in with tokens.
    SharedKey,
}

impl Flow {
    /// Every flow.
    pub const ALL: [Self; 3] = [Self::Ticket, Self::Sealed, Self::SharedKey];

    /// The flow's name in settings and in text for people.
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

//! The ways in which a device can prove its TPM, and what it gets for it.

use crate::named::named_kind;

/// How a device talks with the CA, and what it is given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flow {
    /// A certificate for an identity key in two round trips. The CA keeps nothing in between and issues nothing before the TPM has
    /// proved itself.
    Ticket,
    /// A certificate for an identity key in one round trip, readable for the TPM alone, and a confirmation that it could be read.
    Sealed,
    /// An HMAC key for the TPM, and no certificate: the device signs in with a token.
    SharedKey,
}

impl Flow {
    /// Every flow.
    pub const ALL: [Self; 3] = [Self::Ticket, Self::Sealed, Self::SharedKey];

    const fn name(self) -> &'static str {
        match self {
            Self::Ticket => "ticket",
            Self::Sealed => "sealed",
            Self::SharedKey => "shared-key",
        }
    }
}

named_kind!(Flow, "flow");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flows_read_back_from_their_names() {
        for flow in Flow::ALL {
            assert_eq!(flow.to_string().parse(), Ok(flow));
        }
        assert!("x509".parse::<Flow>().unwrap_err().contains("ticket, sealed, shared-key"));
    }
}

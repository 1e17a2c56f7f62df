//! Who a certificate of this CA speaks for, as its URI says and access rules read it.

use std::fmt;
use std::str::FromStr;

use assay_wire::{DeviceId, Scope};
use x509_parser::prelude::GeneralName;

use crate::x509::parse_certificate;

/// The holder of a client certificate.
///
/// Its text is the URI in the certificate's subject alternative name, e.g.
/// `urn:assay:device:plant-7:pump-1`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Identity {
    /// A device, provisioned in a scope.
    Device {
        /// The scope.
        scope: Scope,
        /// The device's id, unique in it.
        device_id: DeviceId,
    },
    /// A person or dashboard that watches devices.
    Operator,
    /// A CA worker.
    Worker,
}

impl Identity {
    /// Reads the identity from a certificate in DER, whose path must have been verified by TLS.
    ///
    /// A certificate with several URIs of ours speaks for nobody.
    pub fn from_certificate(der: &[u8]) -> Result<Self, IdentityError> {
        let certificate = parse_certificate(der).ok_or(IdentityError::Unreadable)?;
        let names =
            certificate.subject_alternative_name().map_err(|_| IdentityError::Unreadable)?;
        let names = names.map_or(&[][..], |names| &names.value.general_names);
        let mut ours = names.iter().filter_map(|name| match name {
            GeneralName::URI(uri) if uri.starts_with(PREFIX) => Some(*uri),
            _ => None,
        });
        match (ours.next(), ours.next()) {
            (Some(uri), None) => uri.parse(),
            (None, _) => Err(IdentityError::None),
            (Some(_), Some(_)) => Err(IdentityError::Several),
        }
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Device { scope, device_id } => write!(f, "{PREFIX}device:{scope}:{device_id}"),
            Self::Operator => write!(f, "{PREFIX}operator"),
            Self::Worker => write!(f, "{PREFIX}worker"),
        }
    }
}

impl FromStr for Identity {
    type Err = IdentityError;

    fn from_str(uri: &str) -> Result<Self, IdentityError> {
        let unknown = || IdentityError::Unknown { uri: uri.to_owned() };
        let name = uri.strip_prefix(PREFIX).ok_or_else(unknown)?;
        match name {
            "operator" => Ok(Self::Operator),
            "worker" => Ok(Self::Worker),
            device => {
                // A scope has no colon; a device id may.
                let ids = device.strip_prefix("device:").and_then(|ids| ids.split_once(':'));
                let (scope, device_id) = ids.ok_or_else(unknown)?;
                Ok(Self::Device {
                    scope: scope.parse().map_err(|_| unknown())?,
                    device_id: device_id.parse().map_err(|_| unknown())?,
                })
            }
        }
    }
}

/// Why a certificate speaks for nobody.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)] // each variant's message is its documentation
pub enum IdentityError {
    #[error("the certificate cannot be read")]
    Unreadable,
    #[error("the certificate has no URI that begins with {PREFIX}")]
    None,
    #[error("the certificate has several URIs that begin with {PREFIX}")]
    Several,
    #[error("{uri} names neither a device nor a role")]
    Unknown { uri: String },
}

const PREFIX: &str = "urn:assay:";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uris_read_back() {
        for uri in ["urn:assay:operator", "urn:assay:worker", "urn:assay:device:plant-7:a:b.c_d"] {
            assert_eq!(uri.parse::<Identity>().unwrap().to_string(), uri);
        }
    }

    #[test]
    fn other_uris_name_nobody() {
        for uri in [
            "",
            "urn:assay:",
            "urn:assay:admin",
            "urn:assay:device:x",
            "urn:assay:device:X:y",
            "urn:other:worker",
        ] {
            assert!(uri.parse::<Identity>().is_err(), "{uri}");
        }
    }
}

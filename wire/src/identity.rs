//! The identity that a certificate of this CA carries as a URI, and that access rules read.

use core::fmt;
use core::str::FromStr;

use crate::{DeviceId, IdentityName, Scope};

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
        /// The device's id, unique in the scope.
        device_id: DeviceId,
    },
    /// A service that reads what it may read, and sends commands that it may send.
    Backend {
        /// What operators call it.
        name: IdentityName,
    },
    /// A person or dashboard that watches devices.
    Operator,
    /// A CA worker.
    Worker,
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Device { scope, device_id } => {
                write!(f, "{}device:{scope}:{device_id}", Self::PREFIX)
            }
            Self::Backend { name } => write!(f, "{}backend:{name}", Self::PREFIX),
            Self::Operator => write!(f, "{}operator", Self::PREFIX),
            Self::Worker => write!(f, "{}worker", Self::PREFIX),
        }
    }
}

impl FromStr for Identity {
    type Err = IdentityError;

    fn from_str(uri: &str) -> Result<Self, IdentityError> {
        let name = uri.strip_prefix(Self::PREFIX).ok_or(IdentityError)?;
        match name {
            "operator" => Ok(Self::Operator),
            "worker" => Ok(Self::Worker),
            other => {
                let (kind, name) = other.split_once(':').ok_or(IdentityError)?;
                match kind {
                    "backend" => {
                        Ok(Self::Backend { name: name.parse().map_err(|_| IdentityError)? })
                    }
                    "device" => {
                        // A scope has no colon; a device id may.
                        let (scope, device_id) = name.split_once(':').ok_or(IdentityError)?;
                        Ok(Self::Device {
                            scope: scope.parse().map_err(|_| IdentityError)?,
                            device_id: device_id.parse().map_err(|_| IdentityError)?,
                        })
                    }
                    _ => Err(IdentityError),
                }
            }
        }
    }
}

/// A text is not the URI of an [`Identity`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IdentityError;

impl fmt::Display for IdentityError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "a URI that begins with {} and names a device, a backend or a role was expected",
            Identity::PREFIX
        )
    }
}

impl core::error::Error for IdentityError {}

impl Identity {
    /// How the URI begins.
    pub const PREFIX: &str = "urn:assay:";
}

#[cfg(test)]
mod tests {
    use alloc::string::ToString;

    use super::*;

    #[test]
    fn uris_read_back() {
        for uri in [
            "urn:assay:operator",
            "urn:assay:worker",
            "urn:assay:backend:sink",
            "urn:assay:backend:a:b.c_d",
            "urn:assay:device:plant-7:a:b.c_d",
        ] {
            assert_eq!(uri.parse::<Identity>().unwrap().to_string(), uri);
        }
    }

    #[test]
    fn other_uris_name_nobody() {
        for uri in [
            "",
            "urn:assay:",
            "urn:assay:admin",
            "urn:assay:backend",
            "urn:assay:backend:",
            "urn:assay:backend:a@b",
            "urn:assay:backend:.a",
            "urn:assay:operator:alice",
            "urn:assay:device:x",
            "urn:assay:device:X:y",
            "urn:other:worker",
        ] {
            assert!(uri.parse::<Identity>().is_err(), "{uri}");
        }
    }
}

//! The device's certificate: what it must be before a device uses it.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use assay_wire::{DeviceId, Scope};
use rustls_pki_types::CertificateDer;

use crate::answer::{AnswerError, rfc3339};

/// The device's certificate and its issuers, found to be good for this device's identity key.
///
/// Only [`DeviceCertificate::check`] makes one.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct DeviceCertificate {
    /// The device's certificate, then its issuers, without the root.
    pub chain: Vec<CertificateDer<'static>>,
    /// The name of the device in it.
    pub device_id: DeviceId,
    /// The provisioning domain in it.
    pub scope: Scope,
    /// Its serial number, lower-case hexadecimal, two digits a byte.
    pub serial: String,
    /// Until when it is valid, e.g. `2027-02-20T20:08:40Z`.
    pub not_after: String,
}

/// What the first certificate of a chain says, once its path is verified.
///
/// The code that makes a `VerifiedPath` has verified that the chain leads to a pinned root, by the
/// rules of RFC 5280 §6.1, for TLS client authentication, at the device's time. A `VerifiedPath`
/// does not say for whom the certificate is: [`DeviceCertificate::check`] decides that.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VerifiedPath {
    /// SHA-256 of its SubjectPublicKeyInfo (RFC 5280 §4.1.2.7).
    pub key_id: [u8; 32],
    /// Whether its extended key usage names clientAuth. False for a certificate without the
    /// extension.
    pub is_for_clients: bool,
    /// The common name of its subject; empty if it has none.
    pub common_name: String,
    /// The URIs among its alternative names.
    pub uris: Vec<String>,
    /// Its serial number, lower-case hexadecimal, two digits a byte.
    pub serial: String,
    /// The last moment at which it is valid, in seconds since 1970.
    pub not_after: u64,
}

impl DeviceCertificate {
    /// Checks that a certificate is for this device: it is for TLS clients and for the key
    /// `key_id`, and its common name and its only URI name the same device of `scope`.
    ///
    /// `path` must be the result of verifying this `chain`. The device does not check whether the
    /// certificate is revoked; the broker checks that at every connection.
    pub fn check(
        chain: Vec<CertificateDer<'static>>,
        path: VerifiedPath,
        key_id: &[u8; 32],
        scope: &Scope,
    ) -> Result<Self, AnswerError> {
        let VerifiedPath { key_id: found, is_for_clients, common_name, uris, serial, not_after } =
            path;
        if found != *key_id {
            return Err(AnswerError::OtherKey);
        }
        if !is_for_clients {
            return Err(AnswerError::NotForClients);
        }
        let Ok(device_id) = common_name.parse::<DeviceId>() else {
            return Err(AnswerError::OtherDevice {
                wanted: "a device id".into(),
                found: common_name,
            });
        };
        let wanted = format!("urn:assay:device:{scope}:{device_id}");
        if uris != [wanted.as_str()] {
            return Err(AnswerError::OtherDevice { wanted, found: uris.join(", ") });
        }
        let (scope, not_after) = (scope.clone(), rfc3339(not_after));
        Ok(Self { chain, device_id, scope, serial, not_after })
    }
}

/// Checks that the CA speaks of the device that was asked for.
pub(crate) fn check_device_id(wanted: &DeviceId, found: &DeviceId) -> Result<(), AnswerError> {
    if wanted == found {
        return Ok(());
    }
    Err(AnswerError::OtherDevice { wanted: wanted.to_string(), found: found.to_string() })
}

#[cfg(test)]
mod tests {
    use alloc::vec;

    use super::*;

    fn path() -> VerifiedPath {
        VerifiedPath {
            key_id: [1; 32],
            is_for_clients: true,
            common_name: "pump-17".into(),
            uris: vec!["urn:assay:device:default:pump-17".into()],
            serial: "0a".into(),
            not_after: 0,
        }
    }

    fn check(path: VerifiedPath) -> Result<DeviceCertificate, AnswerError> {
        DeviceCertificate::check(Vec::new(), path, &[1; 32], &"default".parse().unwrap())
    }

    #[test]
    fn certificate_for_this_device_is_taken() {
        assert_eq!(check(path()).unwrap().device_id.as_str(), "pump-17");
    }

    #[test]
    fn certificate_for_another_key_is_refused() {
        assert_eq!(check(VerifiedPath { key_id: [2; 32], ..path() }), Err(AnswerError::OtherKey));
    }

    #[test]
    fn certificate_that_is_not_for_clients_is_refused() {
        let path = VerifiedPath { is_for_clients: false, ..path() };
        assert_eq!(check(path), Err(AnswerError::NotForClients));
    }

    #[test]
    fn certificate_whose_names_are_not_one_device_of_the_scope_is_refused() {
        for (common_name, uris) in [
            ("", vec!["urn:assay:device:default:pump-17"]),
            ("no device id", vec!["urn:assay:device:default:no device id"]),
            ("pump-18", vec!["urn:assay:device:default:pump-17"]),
            ("pump-17", vec!["urn:assay:device:other:pump-17"]),
            ("pump-17", vec![]),
            ("pump-17", vec!["urn:assay:device:default:pump-17", "urn:assay:device:default:x"]),
        ] {
            let uris = uris.into_iter().map(String::from).collect();
            let outcome = check(VerifiedPath { common_name: common_name.into(), uris, ..path() });
            assert!(matches!(outcome, Err(AnswerError::OtherDevice { .. })), "{outcome:?}");
        }
    }

    #[test]
    fn another_device_id_than_the_one_asked_for_is_refused() {
        let id = |text: &str| text.parse().unwrap();
        assert_eq!(check_device_id(&id("pump-17"), &id("pump-17")), Ok(()));
        assert!(check_device_id(&id("pump-17"), &id("pump-18")).is_err());
    }
}

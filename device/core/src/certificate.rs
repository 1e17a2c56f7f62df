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
    /// When the device is to renew it, in seconds since 1970; see [`renew_at`].
    pub renew_at: u64,
    /// What the CA said of `renew_at`.
    pub(crate) advice: Option<u64>,
    /// Its first and its last moment, in seconds since 1970.
    pub(crate) validity: (u64, u64),
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
    /// The first moment at which it is valid, in seconds since 1970.
    pub not_before: u64,
    /// The last moment at which it is valid, in seconds since 1970.
    pub not_after: u64,
}

/// When a device renews a certificate, in seconds since 1970: when the CA said (`advice`), else a
/// third of the lifetime before its end.
///
/// The CA's advice may come in clear, so anybody on the way can change it. Therefore a device never
/// waits longer than until a twentieth of the lifetime is left. If that is before the time that the
/// CA meant, the CA answers that the renewal is not due.
pub fn renew_at(advice: Option<u64>, not_before: u64, not_after: u64) -> u64 {
    let lifetime = not_after.saturating_sub(not_before);
    let before_end = |part: u64| not_after - lifetime / part;
    advice.unwrap_or_else(|| before_end(3)).max(not_before).min(before_end(20))
}

impl DeviceCertificate {
    /// Checks that a certificate is for this device: it is for TLS clients and for the key
    /// `key_id`, and its common name and its only URI name the same device of `scope`.
    ///
    /// `path` must be the result of verifying this `chain`, and `advice` is when the CA said that
    /// the device is to renew it. The device does not check whether the certificate is revoked; the
    /// broker checks that at every connection.
    pub fn check(
        chain: Vec<CertificateDer<'static>>,
        path: VerifiedPath,
        advice: Option<u64>,
        key_id: &[u8; 32],
        scope: &Scope,
    ) -> Result<Self, AnswerError> {
        let VerifiedPath { key_id: found, is_for_clients, common_name, uris, serial, .. } = path;
        let validity = (path.not_before, path.not_after);
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
        let (scope, not_after) = (scope.clone(), rfc3339(validity.1));
        let renew_at = renew_at(advice, validity.0, validity.1);
        Ok(Self { chain, device_id, scope, serial, not_after, renew_at, advice, validity })
    }

    /// The same certificate, with another advice of the CA.
    pub(crate) fn advised(self, advice: Option<u64>) -> Self {
        let renew_at = renew_at(advice, self.validity.0, self.validity.1);
        Self { renew_at, advice, ..self }
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
            not_before: 0,
            not_after: 0,
        }
    }

    fn check(path: VerifiedPath) -> Result<DeviceCertificate, AnswerError> {
        DeviceCertificate::check(Vec::new(), path, None, &[1; 32], &"default".parse().unwrap())
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
    fn certificate_is_renewed_when_the_ca_said_or_else_a_third_of_its_lifetime_before_its_end() {
        assert_eq!(renew_at(Some(1_600), 1_000, 1_900), 1_600);
        assert_eq!(renew_at(None, 1_000, 1_900), 1_600);
        assert_eq!(renew_at(None, 5, 5), 5);
        // No certificate ends before it begins, but nothing has checked that here.
        assert_eq!(renew_at(None, 5, 4), 4);
    }

    #[test]
    fn advice_that_somebody_changed_never_makes_a_device_wait_until_the_end() {
        for (advice, expected) in [(0, 1_000), (1_854, 1_854), (1_856, 1_855), (u64::MAX, 1_855)] {
            assert_eq!(renew_at(Some(advice), 1_000, 1_900), expected);
        }
    }

    #[test]
    fn another_device_id_than_the_one_asked_for_is_refused() {
        let id = |text: &str| text.parse().unwrap();
        assert_eq!(check_device_id(&id("pump-17"), &id("pump-17")), Ok(()));
        assert!(check_device_id(&id("pump-17"), &id("pump-18")).is_err());
    }
}

//! The MQTT client ids of a provisioned device.

use core::fmt;
use core::str::FromStr;

use crate::{ConnectionName, DeviceId, IdError};

/// The MQTT client id of a provisioned device: its device id, or its device id, a slash and the
/// name of one of its connections.
///
/// A device id has no slash in it, so no device has a client id of another. Neither has a
/// [bootstrapping client](crate::ClientId::is_bootstrap), and no device id has the `@` in it that
/// workers and operators have in front of any slash.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceClientId {
    /// The device.
    pub device: DeviceId,
    /// Which of its connections; `None` is the one that is not named.
    pub connection: Option<ConnectionName>,
}

impl fmt::Display for DeviceClientId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.connection {
            None => write!(f, "{}", self.device),
            Some(connection) => write!(f, "{}/{connection}", self.device),
        }
    }
}

impl FromStr for DeviceClientId {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        let (device, connection) = match text.split_once('/') {
            None => (text, None),
            Some((device, connection)) => (device, Some(connection.parse()?)),
        };
        Ok(Self { device: device.parse()?, connection })
    }
}

impl From<DeviceId> for DeviceClientId {
    fn from(device: DeviceId) -> Self {
        Self { device, connection: None }
    }
}

#[cfg(test)]
mod tests {
    use alloc::string::ToString;

    use super::*;

    #[test]
    fn client_ids_of_devices_read_back() {
        for text in ["pump-17", "a:b", "pump-17/x", "a:b/Node-RED_1.2", "p/abcdefghijklmnopqrstuvw"]
        {
            assert_eq!(text.parse::<DeviceClientId>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn device_id_and_connection_name_are_all_that_a_client_id_holds() {
        for text in [
            "",
            "/",
            "/x",
            "pump-17/",
            "pump-17//",
            "pump-17/x/",
            "pump-17/x/y",
            "pump-17/x:y",
            "pump-17/+",
            "pump-17/#",
            "pump-17/a b",
            "pump-17/é",
            "pump-17/abcdefghijklmnopqrstuvwx",
            "worker@1",
            "operator@desk/x",
            "0123456789abcdef0123456789abcdef",
            "0123456789abcdef0123456789abcdef/x",
        ] {
            assert!(text.parse::<DeviceClientId>().is_err(), "{text}");
        }
    }
}

//! The only module that puts MQTT topic names together and takes them apart.

use alloc::format;
use alloc::string::String;
use core::fmt;

use crate::{ClientId, DeviceId, KeyId, Scope};

/// The first level in a device's tree of the topics that operators and backends publish on.
pub const COMMAND: &str = "command";

/// A topic of the protocol. A client uses exactly two while it is being provisioned, so an access
/// list needs two lines on any broker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Topic {
    /// `ca/v1/{scope}/chain`: the CA's certificates, retained.
    Chain(Scope),
    /// `ca/v1/{scope}/configuration`: which configurations are new, retained.
    Configuration(Scope),
    /// `ca/v1/{scope}/crl`: the revocation list of the issuing CA in use, retained.
    Crl(Scope),
    /// `ca/v1/{scope}/crl/{key}`: the revocation list of the issuing CA with this key, retained.
    CrlOf(Scope, KeyId),
    /// `device/v1/{scope}/{device}/…`: what a provisioned device publishes and receives.
    Device(Scope, DeviceId, String),
    /// `fleet/v1/{scope}/{device}/event`: what the CA tells operators of a device.
    Event(Scope, DeviceId),
    /// `fleet/v1/{scope}/@ca/event`: what it tells them of itself, and of those who are no device
    /// yet. No device id has this form.
    EventOfCa(Scope),
    /// `provision/v1/{scope}/{client}/reply`: CA to device.
    Reply(Scope, ClientId),
    /// `provision/v1/{scope}/{client}/request`: device to CA; QoS 1, never retained.
    Request(Scope, ClientId),
}

impl Topic {
    /// Reads a topic name. `None` if it is not a topic of the protocol, for example a topic filter.
    pub fn parse(name: &str) -> Option<Self> {
        let mut levels = name.splitn(5, '/');
        let mut level = || levels.next();
        let (tree, version, scope, fourth) = (level()?, level()?, level()?, level()?);
        let fifth = level();
        let scope: Scope = scope.parse().ok()?;
        if version != "v1" {
            return None;
        }
        match (tree, fourth, fifth) {
            ("ca", "chain", None) => Some(Self::Chain(scope)),
            ("ca", "configuration", None) => Some(Self::Configuration(scope)),
            ("ca", "crl", None) => Some(Self::Crl(scope)),
            ("ca", "crl", Some(key)) => Some(Self::CrlOf(scope, key.parse().ok()?)),
            ("device", device, Some(rest)) if is_topic_tail(rest) => {
                Some(Self::Device(scope, device.parse().ok()?, rest.into()))
            }
            ("fleet", "@ca", Some("event")) => Some(Self::EventOfCa(scope)),
            ("fleet", device, Some("event")) => Some(Self::Event(scope, device.parse().ok()?)),
            ("provision", client, Some("reply")) => Some(Self::Reply(scope, client.parse().ok()?)),
            ("provision", client, Some("request")) => {
                Some(Self::Request(scope, client.parse().ok()?))
            }
            _ => None,
        }
    }

    /// The topic filter that matches every client's requests of a scope.
    pub fn requests(scope: &Scope) -> String {
        format!("provision/v1/{scope}/+/request")
    }

    /// The same filter as a shared subscription (MQTT 5 §4.8.2), so that each request reaches one
    /// worker of the group `ca`.
    pub fn shared_requests(scope: &Scope) -> String {
        format!("$share/ca/{}", Self::requests(scope))
    }
}

impl fmt::Display for Topic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Chain(scope) => write!(f, "ca/v1/{scope}/chain"),
            Self::Configuration(scope) => write!(f, "ca/v1/{scope}/configuration"),
            Self::Crl(scope) => write!(f, "ca/v1/{scope}/crl"),
            Self::CrlOf(scope, key) => write!(f, "ca/v1/{scope}/crl/{key}"),
            Self::Device(scope, device, rest) => write!(f, "device/v1/{scope}/{device}/{rest}"),
            Self::Event(scope, device) => write!(f, "fleet/v1/{scope}/{device}/event"),
            Self::EventOfCa(scope) => write!(f, "fleet/v1/{scope}/@ca/event"),
            Self::Reply(scope, client) => write!(f, "provision/v1/{scope}/{client}/reply"),
            Self::Request(scope, client) => write!(f, "provision/v1/{scope}/{client}/request"),
        }
    }
}

/// One or more levels without wildcards and without U+0000 (MQTT 5 §4.7.3).
fn is_topic_tail(rest: &str) -> bool {
    !rest.is_empty() && !rest.contains(['+', '#', '\0'])
}

#[cfg(test)]
mod tests {
    use alloc::string::ToString;

    use super::*;

    #[test]
    fn topics_read_back_as_what_was_written() {
        for name in [
            "ca/v1/default/chain",
            "ca/v1/default/configuration",
            "ca/v1/default/crl",
            "ca/v1/default/crl/00112233445566778899aabbccddeeff00112233",
            "device/v1/default/pump-17/telemetry/temperature",
            "fleet/v1/default/@ca/event",
            "fleet/v1/default/pump-17/event",
            "provision/v1/default/abc/reply",
            "provision/v1/default/abc/request",
        ] {
            assert_eq!(Topic::parse(name).unwrap().to_string(), name);
        }
    }

    #[test]
    fn filters_and_strangers_are_not_topics() {
        for name in [
            "",
            "#",
            "provision/v1/default/+/request",
            "provision/v1/default/abc/request/more",
            "provision/v1/default//request",
            "provision/v2/default/abc/request",
            "provision/v1/Default/abc/request",
            "/provision/v1/default/abc/request",
            "$share/ca/provision/v1/default/abc/request",
            "device/v1/default/pump-17",
            "device/v1/default/pump-17/",
            "device/v1/default/pump-17/#",
            "device/v1/default/pump-17/a/+/b",
            "ca/v1/default/chain/more",
            "ca/v1/default/crl/",
            "ca/v1/default/crl/+",
            "ca/v1/default/crl/0",
            "ca/v1/default/crl/AB",
            "ca/v1/default/crl/00/11",
        ] {
            assert_eq!(Topic::parse(name), None, "{name}");
        }
    }
}

//! Who may connect under which client id, and on which topics they may then publish and subscribe.
//!
//! A second CONNECT under the same client id ends the first connection (MQTT 5 §3.1.4-3). So that
//! no role can end another's connection, each has client ids of its own:
//!
//! | role | its client ids |
//! |---|---|
//! | bootstrapping | 32 lower-case hex digits, which a [`DeviceId`] cannot be |
//! | device | its device id, or its device id, a slash and the name of a connection |
//! | worker | [`WORKER_PREFIX`] and a name; no device id contains an `@` |
//! | operator | [`OPERATOR_PREFIX`] and a name |
//! | backend | [`BACKEND_PREFIX`] and its own name; then, for another connection, `@` and more |

use std::sync::Arc;

pub use assay_wire::Identity;
use assay_wire::filter::{covers, is_filter, is_plain};
use assay_wire::{COMMAND, ClientId, DeviceClientId, DeviceId, IdentityName, Rights, Scope, Topic};

/// How a worker's client id begins. A name of its choice follows.
pub const WORKER_PREFIX: &str = "worker@";

/// How an operator's client id begins. A name of its choice follows.
pub const OPERATOR_PREFIX: &str = "operator@";

/// How a backend's client id begins. Its own name follows.
pub const BACKEND_PREFIX: &str = "backend@";

/// The last level of the only topic that a device's Will may be for.
const PRESENCE: &str = "presence";

/// Why a client gets no access.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AccessDenied {
    /// The client id belongs to another role or device.
    #[error("its client id is {client:?}; it must be {due}")]
    ClientId {
        /// As the client sent it.
        client: String,
        /// What it would have to be.
        due: String,
    },
    /// The device is of another scope than the broker.
    #[error("it is a device of scope {0}, but this broker serves another scope")]
    OtherScope(Scope),
    /// Workers, operators and backends need a certificate.
    #[error("only devices may log in with user name and password")]
    NoDevice,
}

/// What one connected client may do in one scope.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Access {
    scope: Scope,
    role: Role,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Role {
    Bootstrapping(ClientId),
    Device {
        device: DeviceId,
        /// Whether its client id names the connection.
        is_named: bool,
    },
    Operator,
    Worker,
    /// With the topic filters that it may use, in this scope.
    Backend(IdentityName, Arc<Granted>),
}

/// What one backend may do.
#[derive(Debug, Default, PartialEq, Eq)]
struct Granted {
    publish: Vec<String>,
    subscribe: Vec<String>,
}

impl Access {
    /// The access of a client that has shown no certificate: its own request and reply topic.
    pub fn bootstrapping(scope: &Scope, client: &str) -> Result<Self, AccessDenied> {
        match client.parse::<ClientId>() {
            Ok(id) if id.is_bootstrap() => Ok(Self::new(scope, Role::Bootstrapping(id))),
            _ => Err(AccessDenied::client_id(client, "32 lower-case hexadecimal digits")),
        }
    }

    /// The access of a client whose certificate names `identity`.
    pub fn identified(
        scope: &Scope,
        identity: &Identity,
        client: &str,
    ) -> Result<Self, AccessDenied> {
        match identity {
            Identity::Device { scope: other, .. } if other != scope => {
                Err(AccessDenied::OtherScope(other.clone()))
            }
            Identity::Device { device_id: device, .. } => match client.parse() {
                Ok(DeviceClientId { device: named, connection }) if named == *device => {
                    let is_named = connection.is_some();
                    Ok(Self::new(scope, Role::Device { device: named, is_named }))
                }
                _ => Err(AccessDenied::client_id(client, &format!("{device} or {device}/…"))),
            },
            Identity::Operator if client.starts_with(OPERATOR_PREFIX) => {
                Ok(Self::new(scope, Role::Operator))
            }
            Identity::Operator => Err(AccessDenied::client_id(client, "operator@…")),
            Identity::Worker if client.starts_with(WORKER_PREFIX) => {
                Ok(Self::new(scope, Role::Worker))
            }
            Identity::Worker => Err(AccessDenied::client_id(client, "worker@…")),
            // Until the record says what it may do, it may do nothing.
            Identity::Backend { name } if is_backends(client, name) => {
                Ok(Self::new(scope, Role::Backend(name.clone(), Arc::default())))
            }
            Identity::Backend { name } => {
                let due = format!("{BACKEND_PREFIX}{name} or {BACKEND_PREFIX}{name}@…");
                Err(AccessDenied::client_id(client, &due))
            }
        }
    }

    /// The same access with the rights that are on record for this client. Only a backend has any.
    #[must_use]
    pub fn granted(mut self, rights: &Rights) -> Self {
        if let Role::Backend(_, granted) = &mut self.role {
            *granted = Arc::new(Granted {
                publish: rights.publish_in(&self.scope),
                subscribe: rights.subscribe_in(&self.scope),
            });
        }
        self
    }

    /// The access of a client that has logged in as `identity`. Only a device may.
    pub fn logged_in(
        scope: &Scope,
        identity: &Identity,
        client: &str,
    ) -> Result<Self, AccessDenied> {
        match identity {
            Identity::Device { .. } => Self::identified(scope, identity, client),
            Identity::Operator | Identity::Worker | Identity::Backend { .. } => {
                Err(AccessDenied::NoDevice)
            }
        }
    }

    fn new(scope: &Scope, role: Role) -> Self {
        Self { scope: scope.clone(), role }
    }

    /// Whether the client may publish on this topic name.
    pub fn may_publish(&self, topic: &str) -> bool {
        if !is_plain(topic) {
            return false;
        }
        let Some(parsed) = Topic::parse(topic) else {
            return false;
        };
        match (&self.role, parsed) {
            (Role::Bootstrapping(own), Topic::Request(scope, client)) => {
                scope == self.scope && client == *own
            }
            (Role::Device { device: own, .. }, Topic::Request(scope, client)) => {
                scope == self.scope && client.as_str() == own.as_str()
            }
            // Not its own commands: whoever speaks through the device's tunnel would command it.
            (Role::Device { device: own, .. }, Topic::Device(scope, device, rest)) => {
                scope == self.scope && device == *own && !is_command(&rest)
            }
            (Role::Operator, Topic::Device(scope, _, rest)) => {
                scope == self.scope && is_command(&rest)
            }
            // Whatever is on record: commands and nothing else.
            (Role::Backend(_, granted), Topic::Device(scope, _, rest)) => {
                scope == self.scope
                    && is_command(&rest)
                    && granted.publish.iter().any(|filter| covers(filter, topic))
            }
            (
                Role::Worker,
                Topic::Chain(scope)
                | Topic::Configuration(scope)
                | Topic::Crl(scope)
                | Topic::CrlOf(scope, _)
                | Topic::Event(scope, _)
                | Topic::EventOfCa(scope)
                | Topic::Reply(scope, _),
            ) => scope == self.scope,
            _ => false,
        }
    }

    /// Whether the broker may retain what the client publishes on this topic: what the CA publishes
    /// for everybody, and what a device publishes in its own tree.
    pub fn may_retain(&self, topic: &str) -> bool {
        self.may_publish(topic)
            && match Topic::parse(topic) {
                Some(
                    Topic::Chain(_) | Topic::Configuration(_) | Topic::Crl(_) | Topic::CrlOf(..),
                ) => true,
                Some(Topic::Device(..)) => matches!(self.role, Role::Device { .. }),
                _ => false,
            }
    }

    /// Whether the client may subscribe to this topic filter (MQTT 5 §4.7, shared subscriptions
    /// §4.8.2).
    pub fn may_subscribe(&self, filter: &str) -> bool {
        if !is_filter(filter) {
            return false;
        }
        let scope = &self.scope;
        match &self.role {
            Role::Bootstrapping(own) => {
                filter == Topic::Reply(scope.clone(), own.clone()).to_string()
            }
            Role::Device { device: own, .. } => {
                filter.starts_with(&format!("device/v1/{scope}/{own}/"))
                    || filter == Topic::Reply(scope.clone(), own.into()).to_string()
                    || filter == Topic::Chain(scope.clone()).to_string()
                    || filter == Topic::Configuration(scope.clone()).to_string()
                    || filter == Topic::Crl(scope.clone()).to_string()
                    || matches!(Topic::parse(filter), Some(Topic::CrlOf(other, _)) if other == *scope)
            }
            Role::Operator => is_readable(filter),
            // Whatever is on record: nothing that an operator may not read.
            Role::Backend(_, granted) => {
                is_readable(filter)
                    && granted.subscribe.iter().any(|granted| covers(granted, filter))
            }
            Role::Worker => {
                let requests = Topic::requests(scope);
                filter == requests
                    || filter
                        .strip_prefix("$share/")
                        .and_then(|shared| shared.split_once('/'))
                        .is_some_and(|(group, filter)| {
                            !group.contains(['+', '#']) && filter == requests
                        })
            }
        }
    }

    /// Whether the client has no certificate and no shared key yet.
    pub fn is_bootstrapping(&self) -> bool {
        matches!(self.role, Role::Bootstrapping(_))
    }

    /// Whether the client is one of the CA's own workers.
    pub fn is_worker(&self) -> bool {
        matches!(self.role, Role::Worker)
    }

    /// In whose name a bootstrapping client or a device is counted: by client id or, over all its
    /// connections, by device id. `None` for workers, operators and backends, who are not counted.
    pub fn account(&self) -> Option<&str> {
        match &self.role {
            Role::Bootstrapping(own) => Some(own.as_str()),
            Role::Device { device, .. } => Some(device.as_str()),
            Role::Operator | Role::Worker | Role::Backend(..) => None,
        }
    }

    /// With which connections this one is counted: the named ones of its device, or all of its
    /// backend. No device id has the `@` in it that a backend's client id has.
    pub fn counted_with(&self) -> Option<String> {
        match &self.role {
            Role::Device { device, is_named: true } => Some(device.to_string()),
            Role::Backend(name, _) => Some(format!("{BACKEND_PREFIX}{name}")),
            _ => None,
        }
    }

    /// Whether the client is a backend.
    pub fn is_backend(&self) -> bool {
        matches!(self.role, Role::Backend(..))
    }
}

/// Whether the broker may publish a Will (MQTT 5 §3.1.2.5) of this client on this topic. Only
/// devices may leave one, to say that they are gone. It takes a client id and no [`Access`], so
/// that it can be checked before an admission, which may cost more. That suffices: no other role
/// has a client id that a device has.
pub fn may_leave_will(scope: &Scope, client: &str, topic: &str) -> bool {
    match Topic::parse(topic).filter(|_| is_plain(topic)) {
        Some(Topic::Device(other, device, rest)) => {
            let client = client.parse::<DeviceClientId>();
            other == *scope
                && rest == PRESENCE
                && client.is_ok_and(|client| client.device == device)
        }
        _ => false,
    }
}

/// Whether a client id belongs to this backend. No name has an `@`, so it belongs to no other.
fn is_backends(client: &str, name: &IdentityName) -> bool {
    let own = client.strip_prefix(BACKEND_PREFIX).and_then(|id| id.strip_prefix(name.as_str()));
    own.is_some_and(|more| more.is_empty() || more.starts_with('@'))
}

/// Whether a topic with these levels in a device's tree is a command.
fn is_command(rest: &str) -> bool {
    rest.split('/').next() == Some(COMMAND)
}

/// Whether all that matches is what devices publish and hear, and what the CA tells everybody.
fn is_readable(filter: &str) -> bool {
    ["device/", "fleet/", "ca/"].iter().any(|tree| filter.starts_with(tree))
}

impl AccessDenied {
    fn client_id(client: &str, due: &str) -> Self {
        Self::ClientId { client: client.into(), due: due.into() }
    }
}

#[cfg(test)]
mod tests {
    use assay_wire::filter::{MAX_LEVELS, MAX_TOPIC};

    use super::*;

    const CLIENT: &str = "0123456789abcdef0123456789abcdef";
    const OTHER: &str = "fedcba9876543210fedcba9876543210";

    fn scope() -> Scope {
        "default".parse().unwrap()
    }

    fn device_identity(scope: &str, device: &str) -> Identity {
        Identity::Device { scope: scope.parse().unwrap(), device_id: device.parse().unwrap() }
    }

    fn bootstrapping() -> Access {
        Access::bootstrapping(&scope(), CLIENT).unwrap()
    }

    fn device() -> Access {
        Access::identified(&scope(), &device_identity("default", "pump-17"), "pump-17").unwrap()
    }

    fn operator() -> Access {
        Access::identified(&scope(), &Identity::Operator, "operator@desk").unwrap()
    }

    fn worker() -> Access {
        Access::identified(&scope(), &Identity::Worker, "worker@1").unwrap()
    }

    fn backend_identity(name: &str) -> Identity {
        Identity::Backend { name: name.parse().unwrap() }
    }

    fn backend(publish: &[&str], subscribe: &[&str]) -> Access {
        let rights = Rights::new(publish.iter().copied(), subscribe.iter().copied()).unwrap();
        let access = Access::identified(&scope(), &backend_identity("sink"), "backend@sink");
        access.unwrap().granted(&rights)
    }

    /// A backend that may do all that one may do.
    fn greatest_backend() -> Access {
        backend(&["device/+/command/#"], &["device/#", "fleet/#", "ca/#"])
    }

    /// Names and filters nobody may use, whatever their role.
    const NOBODYS: &[&str] = &[
        "",
        "/",
        "#",
        "+",
        "+/#",
        "+/+",
        "+/v1/default/pump-17/#",
        "$SYS/#",
        "$SYS/broker/uptime",
        "$share/x/#",
        "$share/x/+/v1/default/+/request",
        "$share//provision/v1/default/+/request",
        "$share/+/provision/v1/default/+/request",
        "$share/a#/provision/v1/default/+/request",
        "$share/x",
        "$share",
        "$queue/provision/v1/default/+/request",
        "é/x",
        "é",
        "provision",
        "provision/#",
        "provision/+/#",
        "provision/v1/#",
        "provision/v1/+/+/request",
        "provision/v1/default/#",
        "provision/v1/default/+",
        "provision/v1/default/+/#",
        "provision/v1/default/+/+",
        "provision/v1/other/+/request",
        "provision/v1/default/+/reques",
        "provision/v1/default/+/requests",
        "/provision/v1/default/+/request",
        "provision/v1/default/+/request/",
        "provision//v1/default/+/request",
        "provision/v1/default//request",
        "provision/v1/default//reply",
        "device",
        "device/",
        "device//#",
        "device/v1/default/pump-17//x",
        "device/v1/default/pump-17/x/",
        "device/v1/default/pump-17/é",
        "device/v1/default/pump-17/\u{1b}[2J",
        "device/v1/default/pump-17/a b",
        "device/v1/default/pump-17/a\0",
        "device/v1/default/pump-17/a#",
        "device/v1/default/pump-17/#/b",
        "device/v1/default/pump-17/a+/b",
        "fleet",
        "ca",
        "ca/",
        "ca/v1/default/chain/",
    ];

    #[test]
    fn no_role_may_use_malformed_or_general_topics() {
        for access in [bootstrapping(), device(), operator(), worker(), greatest_backend()] {
            for topic in NOBODYS {
                assert!(!access.may_publish(topic), "{access:?} publishes {topic}");
                assert!(!access.may_retain(topic), "{access:?} retains {topic}");
                assert!(!access.may_subscribe(topic), "{access:?} hears {topic}");
            }
        }
    }

    #[test]
    fn topics_longer_than_the_limit_are_refused() {
        let fits = format!("device/v1/default/pump-17/{}", "x".repeat(MAX_TOPIC - 26));
        assert_eq!(fits.len(), MAX_TOPIC);
        assert!(device().may_publish(&fits) && device().may_subscribe(&fits));
        let longer = fits + "x";
        assert!(!device().may_publish(&longer) && !device().may_subscribe(&longer));
    }

    #[test]
    fn filters_of_too_many_levels_are_refused() {
        let fits = format!("device/v1/default/pump-17{}", "/+".repeat(MAX_LEVELS - 4));
        assert!(device().may_subscribe(&fits) && !device().may_subscribe(&(fits + "/+")));
    }

    #[test]
    fn bootstrapping_client_speaks_on_its_own_two_topics() {
        let access = bootstrapping();
        let request = format!("provision/v1/default/{CLIENT}/request");
        let reply = format!("provision/v1/default/{CLIENT}/reply");
        assert!(access.is_bootstrapping());
        assert_eq!(access.account(), Some(CLIENT));
        assert!(access.may_publish(&request) && !access.may_subscribe(&request));
        assert!(access.may_subscribe(&reply) && !access.may_publish(&reply));
    }

    #[test]
    fn bootstrapping_client_may_do_nothing_else() {
        let access = bootstrapping();
        let strange = [
            format!("provision/v1/default/{OTHER}/request"),
            format!("provision/v1/default/{OTHER}/reply"),
            format!("provision/v1/other/{CLIENT}/request"),
            format!("provision/v1/other/{CLIENT}/reply"),
            format!("provision/v1/Default/{CLIENT}/reply"),
            format!("provision/v1/+/{CLIENT}/reply"),
            format!("provision/v2/default/{CLIENT}/request"),
            format!("provision/v2/default/{CLIENT}/reply"),
            format!("provision/v1/default/{CLIENT}"),
            format!("provision/v1/default/{CLIENT}/"),
            format!("provision/v1/default/{CLIENT}/#"),
            format!("provision/v1/default/{CLIENT}/+"),
            format!("provision/v1/default/{CLIENT}/reply/#"),
            format!("provision/v1/default/{CLIENT}/reply/x"),
            format!("provision/v1/default/{CLIENT}/request/x"),
            format!("provision/v1/default/{CLIENT}/repl"),
            format!("provision/v1/default/{CLIENT}/reques"),
            format!("provision/v1/default/{CLIENT}/Reply"),
            format!("provision/v1/default/{}/reply", &CLIENT[1..]),
            format!("provision/v1/default/{}/request", &CLIENT[..31]),
            format!("provision/v1/default/{}/request", CLIENT.to_uppercase()),
            format!("/provision/v1/default/{CLIENT}/request"),
            format!("provision/v1/default/{CLIENT}/reply\0"),
            format!(" provision/v1/default/{CLIENT}/reply"),
            format!("$share/x/provision/v1/default/{CLIENT}/reply"),
            format!("device/v1/default/{CLIENT}/x"),
            format!("device/v1/default/{CLIENT}/#"),
            format!("fleet/v1/default/{CLIENT}/event"),
            "$share/ca/provision/v1/default/+/request".into(),
            "provision/v1/default/+/request".into(),
            "provision/v1/default/+/reply".into(),
            "ca/v1/default/chain".into(),
            "ca/v1/default/crl".into(),
            "ca/v1/default/crl/00ff".into(),
        ];
        for topic in &strange {
            assert!(!access.may_publish(topic), "publishes {topic}");
            assert!(!access.may_subscribe(topic), "hears {topic}");
        }
        for topic in [format!("provision/v1/default/{CLIENT}/request"), strange[0].clone()] {
            assert!(!access.may_retain(&topic), "retains {topic}");
        }
    }

    #[test]
    fn bootstrap_client_id_other_than_32_lower_case_hex_is_refused() {
        let upper = CLIENT.to_uppercase();
        let longer = format!("{CLIENT}0");
        let non_ascii = format!("{}é", &CLIENT[..30]);
        for client in [
            "",
            "+",
            "#",
            "pump-17",
            "worker@1",
            &CLIENT[1..],
            &upper,
            &longer,
            &non_ascii,
            "0123456789abcdef0123456789abcdeg",
            "0123456789abcdef/123456789abcdef",
        ] {
            assert!(
                matches!(
                    Access::bootstrapping(&scope(), client),
                    Err(AccessDenied::ClientId { .. })
                ),
                "{client}"
            );
        }
    }

    #[test]
    fn device_speaks_and_hears_below_its_own_tree() {
        let access = device();
        for topic in [
            "device/v1/default/pump-17/telemetry",
            "device/v1/default/pump-17/telemetry/temperature",
            "provision/v1/default/pump-17/request",
        ] {
            assert!(access.may_publish(topic), "{topic}");
            assert_eq!(access.may_retain(topic), topic.starts_with("device/"), "{topic}");
        }
        for command in ["device/v1/default/pump-17/command", "device/v1/default/pump-17/command/x"]
        {
            assert!(!access.may_publish(command), "{command}");
        }
        for filter in [
            "device/v1/default/pump-17/#",
            "device/v1/default/pump-17/+",
            "device/v1/default/pump-17/+/set/#",
            "device/v1/default/pump-17/command",
            "provision/v1/default/pump-17/reply",
            "ca/v1/default/chain",
            "ca/v1/default/crl",
            "ca/v1/default/crl/00ff",
        ] {
            assert!(access.may_subscribe(filter), "{filter}");
        }
    }

    #[test]
    fn will_is_for_the_devices_own_presence_and_nobody_elses() {
        for client in ["pump-17", "pump-17/node-red"] {
            assert!(may_leave_will(&scope(), client, "device/v1/default/pump-17/presence"));
        }
        for (client, topic) in [
            ("pump-17", "device/v1/default/pump-18/presence"),
            ("pump-17", "device/v1/other/pump-17/presence"),
            ("pump-17/pump-18", "device/v1/default/pump-18/presence"),
            ("pump-17/", "device/v1/default/pump-17/presence"),
            ("pump-18/pump-17", "device/v1/default/pump-17/presence"),
            ("pump-17", "device/v1/default/pump-17/presence/x"),
            ("pump-17", "device/v1/default/pump-17/telemetry"),
            ("pump-17", "provision/v1/default/pump-17/request"),
            (CLIENT, "provision/v1/default/0123456789abcdef0123456789abcdef/request"),
            (CLIENT, "device/v1/default/0123456789abcdef0123456789abcdef/presence"),
            ("operator@desk", "device/v1/default/operator@desk/presence"),
            ("worker@1", "device/v1/default/worker@1/presence"),
            ("backend@sink", "device/v1/default/backend@sink/presence"),
            ("backend@sink", "device/v1/default/pump-17/command"),
        ] {
            assert!(!may_leave_will(&scope(), client, topic), "{client} {topic}");
        }
    }

    #[test]
    fn device_may_do_nothing_outside_its_own_tree() {
        let access = device();
        for topic in [
            "device/#",
            "device/v1/#",
            "device/v1/+/pump-17/x",
            "device/v1/default/#",
            "device/v1/default/+/x",
            "device/v1/default/pump-17",
            "device/v1/default/pump-1/x",
            "device/v1/default/pump-177/x",
            "device/v1/default/pump-18/x",
            "device/v1/default/Pump-17/x",
            "device/v1/other/pump-17/x",
            "device/v2/default/pump-17/x",
            "$share/x/device/v1/default/pump-17/x",
            "fleet/v1/default/pump-17/event",
            "fleet/#",
            "ca/#",
            "ca/v1/default/+",
            "ca/v1/other/chain",
            "ca/v1/default/key",
            "ca/v1/default/crl/+",
            "ca/v1/default/crl/0",
            "ca/v1/other/crl/00ff",
            "provision/v1/default/pump-18/request",
            "provision/v1/default/pump-18/reply",
            "provision/v1/default/+/reply",
            "provision/v1/other/pump-17/request",
            "provision/v1/other/pump-17/reply",
        ] {
            assert!(!access.may_publish(topic), "publishes {topic}");
            assert!(!access.may_subscribe(topic), "hears {topic}");
        }
        for topic in [
            "ca/v1/default/chain",
            "ca/v1/default/crl",
            "ca/v1/default/crl/00ff",
            "provision/v1/default/pump-17/reply",
        ] {
            assert!(!access.may_publish(topic), "publishes {topic}");
        }
        assert!(!access.may_subscribe("provision/v1/default/pump-17/request"));
    }

    #[test]
    fn device_client_id_other_than_the_certificates_is_refused() {
        let identity = device_identity("default", "pump-17");
        for client in [
            "",
            "pump-18",
            "Pump-17",
            "pump-17 ",
            "+",
            CLIENT,
            "worker@1",
            "operator@1",
            "backend@pump-17",
            "pump-18/x",
            "pump-18/pump-17",
            "pump-1/7",
            "pump-17/",
            "pump-17//x",
            "pump-17/x/y",
            "pump-17/+",
            "pump-17/a:b",
            "pump-17/abcdefghijklmnopqrstuvwx",
        ] {
            assert!(
                matches!(
                    Access::identified(&scope(), &identity, client),
                    Err(AccessDenied::ClientId { .. })
                ),
                "{client}"
            );
        }
    }

    #[test]
    fn named_connection_of_a_device_may_do_what_the_device_may_and_is_counted_with_it() {
        let identity = device_identity("default", "pump-17");
        let named = Access::identified(&scope(), &identity, "pump-17/node-red").unwrap();
        assert_eq!(named.account(), Some("pump-17"));
        assert_eq!(named.counted_with().as_deref(), Some("pump-17"));
        assert_eq!(device().counted_with(), None);
        for topic in ["device/v1/default/pump-17/telemetry", "provision/v1/default/pump-17/request"]
        {
            assert!(named.may_publish(topic), "{topic}");
        }
        for topic in [
            "device/v1/default/pump-17/node-red/x",
            "device/v1/default/pump-17/presence",
            "device/v1/default/pump-18/x",
            "device/v1/default/node-red/x",
            "provision/v1/default/node-red/request",
            "provision/v1/default/pump-18/request",
        ] {
            assert_eq!(named.may_publish(topic), device().may_publish(topic), "{topic}");
            assert_eq!(named.may_retain(topic), device().may_retain(topic), "{topic}");
        }
        for filter in ["device/v1/default/pump-17/#", "provision/v1/default/node-red/reply", "ca/#"]
        {
            assert_eq!(named.may_subscribe(filter), device().may_subscribe(filter), "{filter}");
        }
        assert_eq!(
            Access::logged_in(&scope(), &identity, "pump-17/node-red").as_ref(),
            Ok(&named),
            "with a token too"
        );
    }

    #[test]
    fn device_of_another_scope_is_refused() {
        let identity = device_identity("other", "pump-17");
        assert_eq!(
            Access::identified(&scope(), &identity, "pump-17"),
            Err(AccessDenied::OtherScope("other".parse().unwrap()))
        );
    }

    #[test]
    fn device_that_logs_in_may_do_what_its_certificate_would_let_it() {
        let identity = device_identity("default", "pump-17");
        assert_eq!(Access::logged_in(&scope(), &identity, "pump-17"), Ok(device()));
        assert!(matches!(
            Access::logged_in(&scope(), &identity, "pump-18"),
            Err(AccessDenied::ClientId { .. })
        ));
        let stranger = device_identity("other", "pump-17");
        assert!(matches!(
            Access::logged_in(&scope(), &stranger, "pump-17"),
            Err(AccessDenied::OtherScope(_))
        ));
    }

    #[test]
    fn nobody_but_a_device_may_log_in() {
        for (identity, client) in [
            (Identity::Operator, "operator@desk"),
            (Identity::Worker, "worker@1"),
            (backend_identity("sink"), "backend@sink"),
        ] {
            assert_eq!(Access::logged_in(&scope(), &identity, client), Err(AccessDenied::NoDevice));
        }
    }

    #[test]
    fn no_device_id_can_be_another_roles_client_id() {
        assert!(CLIENT.parse::<DeviceId>().is_err());
        for id in ["worker@1", "operator@desk", "backend@sink", "backend@sink@2"] {
            assert!(id.parse::<DeviceId>().is_err());
            assert!(id.parse::<ClientId>().is_err());
        }
        for other in ["worker@1", "operator@desk", "worker@1/x", "operator@pump-17/x", CLIENT] {
            assert!(other.parse::<DeviceClientId>().is_err(), "{other}");
        }
        for (identity, wrong) in [
            (Identity::Worker, ["", "worker", "worker-1", "operator@1", CLIENT, "pump-17/x"]),
            (Identity::Operator, ["", "operator", "operator-1", "worker@1", CLIENT, "pump-17/x"]),
        ] {
            for client in wrong {
                assert!(
                    matches!(
                        Access::identified(&scope(), &identity, client),
                        Err(AccessDenied::ClientId { .. })
                    ),
                    "{identity:?} as {client}"
                );
            }
        }
    }

    #[test]
    fn operator_hears_devices_fleet_and_ca_and_publishes_nothing_but_commands() {
        let access = operator();
        for filter in [
            "device/#",
            "device/v1/default/#",
            "device/v1/+/+/#",
            "device/v1/default/pump-17/telemetry",
            "fleet/#",
            "fleet/v1/default/+/event",
            "ca/#",
            "ca/v1/default/chain",
        ] {
            assert!(access.may_subscribe(filter), "{filter}");
        }
        for topic in
            ["device/v1/default/pump-17/command", "device/v1/default/pump-17/command/reboot"]
        {
            assert!(access.may_publish(topic) && !access.may_retain(topic), "{topic}");
        }
        for topic in [
            "device/v1/default/pump-17/commands",
            "device/v1/default/pump-17/telemetry",
            "device/v1/default/pump-17/presence",
            "device/v1/other/pump-17/command",
            "fleet/v1/default/pump-17/event",
            "ca/v1/default/chain",
            "provision/v1/default/pump-17/request",
            "provision/v1/default/pump-17/reply",
        ] {
            assert!(!access.may_publish(topic), "{topic}");
        }
        for filter in [
            "provision/v1/default/pump-17/request",
            "provision/v1/default/pump-17/reply",
            "provision/v1/default/+/request",
            "$share/x/device/v1/default/#",
            "devices/#",
        ] {
            assert!(!access.may_subscribe(filter), "{filter}");
        }
    }

    #[test]
    fn backend_has_client_ids_of_its_own_and_several_of_them() {
        let identity = backend_identity("sink");
        for client in ["backend@sink", "backend@sink@", "backend@sink@2", "backend@sink@host-7.b@x"]
        {
            assert!(Access::identified(&scope(), &identity, client).is_ok(), "{client}");
        }
        for client in [
            "",
            "sink",
            "backend",
            "backend@",
            "backend@sin",
            "backend@sink2",
            "backend@sink-2",
            "backend@Sink",
            "backend@other",
            "backend@other@sink",
            "backend@@sink",
            "operator@sink",
            "worker@sink",
            "pump-17",
            CLIENT,
        ] {
            let access = Access::identified(&scope(), &identity, client);
            assert!(matches!(access, Err(AccessDenied::ClientId { .. })), "{client}");
        }
    }

    #[test]
    fn backend_may_do_nothing_before_its_rights_are_known() {
        let access =
            Access::identified(&scope(), &backend_identity("sink"), "backend@sink").unwrap();
        for topic in ["device/v1/default/pump-17/command", "device/v1/default/#", "ca/v1/default/#"]
        {
            assert!(!access.may_publish(topic) && !access.may_subscribe(topic), "{topic}");
        }
        assert_eq!(access.account(), None);
        assert!(!access.is_worker() && !access.is_bootstrapping());
    }

    #[test]
    fn backend_hears_and_says_what_its_rights_cover() {
        let access = backend(
            &["device/+/command/reboot", "device/pump-17/command/#"],
            &["device/+/telemetry/#", "fleet/pump-17/event", "ca/crl"],
        );
        for topic in [
            "device/v1/default/pump-18/command/reboot",
            "device/v1/default/pump-17/command",
            "device/v1/default/pump-17/command/set/x",
        ] {
            assert!(access.may_publish(topic) && !access.may_retain(topic), "{topic}");
        }
        for topic in [
            "device/v1/default/pump-18/command",
            "device/v1/default/pump-18/command/set",
            "device/v1/default/pump-18/command/reboot/now",
            "device/v1/other/pump-17/command",
            "device/v1/default/pump-17/telemetry",
            "device/v1/default/+/command/reboot",
            "device/v1/default/pump-17/command/#",
        ] {
            assert!(!access.may_publish(topic), "{topic}");
        }
        for filter in [
            "device/v1/default/+/telemetry/#",
            "device/v1/default/+/telemetry",
            "device/v1/default/pump-17/telemetry/temperature",
            "fleet/v1/default/pump-17/event",
            "ca/v1/default/crl",
        ] {
            assert!(access.may_subscribe(filter), "{filter}");
        }
        for filter in [
            "device/#",
            "device/v1/#",
            "device/v1/default/#",
            "device/v1/default/+/#",
            "device/v1/default/+/command",
            "device/v1/+/+/telemetry",
            "device/v1/other/+/telemetry",
            "fleet/v1/default/+/event",
            "ca/v1/default/+",
            "ca/v1/default/chain",
            "$share/g/device/v1/default/+/telemetry",
        ] {
            assert!(!access.may_subscribe(filter), "{filter}");
        }
    }

    #[test]
    fn backend_with_every_right_is_no_worker_and_no_device() {
        let access = greatest_backend();
        assert!(access.may_subscribe("device/v1/default/#"));
        assert!(access.may_publish("device/v1/default/pump-17/command/x"));
        for topic in [
            "provision/v1/default/pump-17/request",
            "provision/v1/default/pump-17/reply",
            "ca/v1/default/crl",
            "ca/v1/default/chain",
            "fleet/v1/default/pump-17/event",
            "device/v1/default/pump-17/telemetry",
            "device/v1/default/pump-17/presence",
            "device/v1/default/pump-17/commands",
            "device/v1/other/pump-17/command",
        ] {
            assert!(!access.may_publish(topic) && !access.may_retain(topic), "{topic}");
        }
        for filter in [
            "provision/v1/default/+/request",
            "provision/v1/default/pump-17/reply",
            "$share/ca/provision/v1/default/+/request",
            "$share/x/device/v1/default/#",
            "device/v1/other/#",
            "device/#",
            "fleet/#",
            "ca/#",
        ] {
            assert!(!access.may_subscribe(filter), "{filter}");
        }
    }

    #[test]
    fn backend_is_no_more_than_a_backend_whatever_its_rights_are() {
        let everything = ["#", "device/v1/default/#", "provision/v1/default/#", "$share/g/#"];
        let everything = everything.map(str::to_owned).to_vec();
        let granted = Granted { publish: everything.clone(), subscribe: everything };
        let access = Access::new(&scope(), Role::Backend("sink".parse().unwrap(), granted.into()));
        assert!(access.may_publish("device/v1/default/pump-17/command"));
        assert!(access.may_subscribe("device/v1/default/pump-17/telemetry"));
        for topic in [
            "device/v1/default/pump-17/telemetry",
            "device/v1/other/pump-17/command",
            "provision/v1/default/pump-17/request",
            "provision/v1/default/pump-17/reply",
        ] {
            assert!(!access.may_publish(topic), "{topic}");
        }
        for filter in ["#", "provision/v1/default/+/request", "$share/g/device/v1/default/#"] {
            assert!(!access.may_subscribe(filter), "{filter}");
        }
    }

    #[test]
    fn worker_hears_requests_and_publishes_replies_events_and_ca() {
        let access = worker();
        for filter in [
            "provision/v1/default/+/request",
            "$share/ca/provision/v1/default/+/request",
            "$share/other-group/provision/v1/default/+/request",
        ] {
            assert!(access.may_subscribe(filter), "{filter}");
        }
        for (topic, retain) in [
            (format!("provision/v1/default/{CLIENT}/reply"), false),
            ("provision/v1/default/pump-17/reply".into(), false),
            ("fleet/v1/default/pump-17/event".into(), false),
            ("fleet/v1/default/@ca/event".into(), false),
            ("ca/v1/default/chain".into(), true),
            ("ca/v1/default/crl".into(), true),
            ("ca/v1/default/crl/00ff".into(), true),
        ] {
            assert!(access.may_publish(&topic), "{topic}");
            assert_eq!(access.may_retain(&topic), retain, "{topic}");
        }
    }

    #[test]
    fn worker_may_do_nothing_else() {
        let access = worker();
        for topic in [
            "provision/v1/other/pump-17/reply",
            "provision/v1/default/pump-17/request",
            "fleet/v1/other/pump-17/event",
            "fleet/v1/default/pump-17/other",
            "ca/v1/other/chain",
            "ca/v1/other/crl/00ff",
            "ca/v1/default/crl/not-hex",
            "ca/v1/default/key",
            "device/v1/default/pump-17/command",
        ] {
            assert!(!access.may_publish(topic), "{topic}");
        }
        for filter in [
            "provision/v1/default/+/reply",
            "provision/v1/default/pump-17/request",
            "$share/ca/provision/v1/other/+/request",
            "$share/ca/$share/ca/provision/v1/default/+/request",
            "$share/ca/provision/v1/default/+/reply",
            "device/#",
            "device/v1/default/#",
            "fleet/#",
            "ca/v1/default/chain",
        ] {
            assert!(!access.may_subscribe(filter), "{filter}");
        }
    }
}

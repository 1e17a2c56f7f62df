//! What a backend may publish and subscribe to, as an operator writes it.

use alloc::borrow::ToOwned;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

use crate::filter::{MAX_LEVELS, MAX_TOPIC, is_filter};
use crate::topic::COMMAND;
use crate::{DeviceId, Scope};

/// The topics of one backend.
///
/// An operator writes topic filters without version and scope: `device/#` is
/// `device/v1/{scope}/#`. What no backend may have is not in the list of what can be written:
///
/// | | below |
/// |---|---|
/// | publish | `device/{device}/command`, with `+` for every device |
/// | subscribe | `device/`, `fleet/` and `ca/` |
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rights {
    publish: Vec<String>,
    subscribe: Vec<String>,
}

impl Rights {
    /// The most filters of each kind: as many as one connection may hold subscriptions of at the
    /// built-in broker.
    pub const MAX_FILTERS: usize = 64;

    /// The longest filter, in bytes: with a version and the longest scope it is a
    /// [longest topic](MAX_TOPIC).
    pub const MAX_LENGTH: usize = MAX_TOPIC - "v1/".len() - Scope::MAX - "/".len();

    /// The most levels of a filter: version and scope are two more.
    pub const MAX_LEVELS: usize = MAX_LEVELS - 2;

    /// Reads what an operator wrote, or what is on record. A filter that is there twice counts
    /// once.
    ///
    /// # Errors
    /// No backend may have one of the filters, or there are too many.
    pub fn new<'a>(
        publish: impl IntoIterator<Item = &'a str>,
        subscribe: impl IntoIterator<Item = &'a str>,
    ) -> Result<Self, RightsError> {
        let publish = read(publish, |filter| match is_command(filter) {
            true => Ok(()),
            false => Err(Flaw::NotACommand),
        })?;
        Ok(Self { publish, subscribe: read(subscribe, |_| Ok(()))? })
    }

    /// The filters of what the backend may publish, as they were written.
    pub fn publish(&self) -> impl Iterator<Item = &str> {
        self.publish.iter().map(String::as_str)
    }

    /// The filters of what it may subscribe to, as they were written.
    pub fn subscribe(&self) -> impl Iterator<Item = &str> {
        self.subscribe.iter().map(String::as_str)
    }

    /// Whether it may do nothing.
    pub fn is_empty(&self) -> bool {
        self.publish.is_empty() && self.subscribe.is_empty()
    }

    /// The filters of what it may publish in a scope, as they stand in MQTT.
    pub fn publish_in(&self, scope: &Scope) -> Vec<String> {
        self.publish().map(|filter| in_scope(filter, scope)).collect()
    }

    /// The filters of what it may subscribe to in a scope, as they stand in MQTT.
    pub fn subscribe_in(&self, scope: &Scope) -> Vec<String> {
        self.subscribe().map(|filter| in_scope(filter, scope)).collect()
    }
}

/// Why a backend cannot have a filter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RightsError {
    filter: String,
    flaw: Flaw,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Flaw {
    TooMany,
    TooLong,
    NoFilter,
    Shared,
    OtherTree,
    Versioned,
    NoDevice,
    NotACommand,
}

impl fmt::Display for RightsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: ", self.filter)?;
        match self.flaw {
            Flaw::TooMany => write!(
                f,
                "a backend has at most {} filters of each kind; use wildcards",
                Rights::MAX_FILTERS
            ),
            Flaw::TooLong => write!(
                f,
                "a filter has at most {} bytes and {} levels",
                Rights::MAX_LENGTH,
                Rights::MAX_LEVELS
            ),
            Flaw::NoFilter => f.write_str(
                "not a topic filter: levels of printable ASCII with / in between, + alone in its \
                 level, # alone and at the end",
            ),
            Flaw::Shared => f.write_str(
                "only workers have shared subscriptions; write the filter without $share/GROUP",
            ),
            Flaw::OtherTree => {
                f.write_str("a backend reads below device/, fleet/ and ca/, and nothing else")
            }
            Flaw::Versioned => f.write_str(
                "write filters without version and scope: device/#, not device/v1/SCOPE/#",
            ),
            Flaw::NoDevice => f.write_str(
                "the second level is a device id, + for every device, or # for all that follows",
            ),
            Flaw::NotACommand => f.write_str(
                "a backend publishes commands and nothing else: device/DEVICE/command/#, with + \
                 as DEVICE for every device",
            ),
        }
    }
}

impl core::error::Error for RightsError {}

fn read<'a>(
    filters: impl IntoIterator<Item = &'a str>,
    check: impl Fn(&str) -> Result<(), Flaw>,
) -> Result<Vec<String>, RightsError> {
    let mut read = Vec::<String>::new();
    for filter in filters {
        let checked = check_filter(filter).and_then(|()| check(filter));
        let is_new = !read.iter().any(|other| other == filter);
        let checked = match checked {
            Ok(()) if is_new && read.len() >= Rights::MAX_FILTERS => Err(Flaw::TooMany),
            checked => checked,
        };
        checked.map_err(|flaw| RightsError { filter: filter.chars().take(80).collect(), flaw })?;
        if is_new {
            read.push(filter.to_owned());
        }
    }
    Ok(read)
}

fn check_filter(filter: &str) -> Result<(), Flaw> {
    if filter.len() > Rights::MAX_LENGTH || filter.split('/').count() > Rights::MAX_LEVELS {
        return Err(Flaw::TooLong);
    }
    if filter.starts_with("$share/") {
        return Err(Flaw::Shared);
    }
    if !is_filter(filter) {
        return Err(Flaw::NoFilter);
    }
    let (tree, rest) = filter.split_once('/').ok_or(Flaw::OtherTree)?;
    if rest == "v1" || rest.starts_with("v1/") {
        return Err(Flaw::Versioned);
    }
    let second = rest.split('/').next().unwrap_or_default();
    match tree {
        "ca" => Ok(()),
        "device" | "fleet" => match second {
            "+" | "#" => Ok(()),
            id => id.parse::<DeviceId>().map(drop).map_err(|_| Flaw::NoDevice),
        },
        _ => Err(Flaw::OtherTree),
    }
}

/// Whether all topics that match are commands of one device or of every device.
fn is_command(filter: &str) -> bool {
    let mut levels = filter.split('/');
    levels.next() == Some("device") && levels.nth(1) == Some(COMMAND)
}

/// `device/#` as `device/v1/{scope}/#`.
fn in_scope(filter: &str, scope: &Scope) -> String {
    match filter.split_once('/') {
        Some((tree, rest)) => format!("{tree}/v1/{scope}/{rest}"),
        None => filter.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use alloc::string::ToString;
    use alloc::vec;

    use super::*;

    fn refused(publish: &[&str], subscribe: &[&str]) -> Flaw {
        let rights = Rights::new(publish.iter().copied(), subscribe.iter().copied());
        rights.expect_err("no backend may have it").flaw
    }

    #[test]
    fn filters_stand_in_the_scope_of_the_ca() {
        let rights = Rights::new(
            ["device/+/command/#", "device/pump-1/command"],
            ["device/#", "fleet/+/event", "ca/crl", "device/#"],
        );
        let rights = rights.unwrap();
        let scope: Scope = "plant-7".parse().unwrap();
        assert_eq!(
            rights.publish_in(&scope),
            ["device/v1/plant-7/+/command/#", "device/v1/plant-7/pump-1/command"]
        );
        assert_eq!(
            rights.subscribe_in(&scope),
            ["device/v1/plant-7/#", "fleet/v1/plant-7/+/event", "ca/v1/plant-7/crl"],
            "what is written twice counts once"
        );
    }

    #[test]
    fn backend_may_publish_commands_and_nothing_else() {
        for filter in [
            "device/#",
            "device/+/#",
            "device/+/+",
            "device/+/telemetry",
            "device/+/commands",
            "device/pump-1",
            "fleet/+/event",
            "fleet/+/command",
            "ca/crl",
            "ca/chain",
            "ca/x/command",
        ] {
            assert_eq!(refused(&[filter], &[]), Flaw::NotACommand, "{filter}");
        }
    }

    #[test]
    fn backend_may_have_nothing_of_other_trees() {
        for filter in [
            "provision/#",
            "provision/+/request",
            "provision/pump-1/reply",
            "provision/+/command",
            "+/#",
            "#",
            "+",
            "device",
            "$SYS/#",
            "devices/#",
            "+/+/command",
        ] {
            assert_eq!(refused(&[], &[filter]), Flaw::OtherTree, "{filter}");
            assert_eq!(refused(&[filter], &[]), Flaw::OtherTree, "{filter}");
        }
        assert_eq!(refused(&[], &["$share/g/device/#"]), Flaw::Shared);
        assert_eq!(refused(&[], &["device/v1/default/#"]), Flaw::Versioned);
        assert_eq!(refused(&[], &["device/pump*/#"]), Flaw::NoDevice);
        for filter in ["", "/", "device//x", "device/#/x", "device/a+", "device/a b", "device/é"] {
            assert_eq!(refused(&[], &[filter]), Flaw::NoFilter, "{filter}");
        }
    }

    #[test]
    fn rights_are_bounded_and_fit_the_longest_scope() {
        let longest = format!("device/+/{}", "x".repeat(Rights::MAX_LENGTH - 9));
        let deepest = format!("device{}", "/+".repeat(Rights::MAX_LEVELS - 1));
        let scope: Scope = "s".repeat(Scope::MAX).parse().unwrap();
        let rights = Rights::new([], [&*longest, &deepest]).unwrap();
        assert!(rights.subscribe_in(&scope).iter().all(|filter| is_filter(filter)));
        assert_eq!(rights.subscribe_in(&scope)[0].len(), MAX_TOPIC);
        assert_eq!(refused(&[], &[&format!("{longest}x")]), Flaw::TooLong);
        assert_eq!(refused(&[], &[&format!("{deepest}/+")]), Flaw::TooLong);

        let mut many: Vec<_> = (0..Rights::MAX_FILTERS).map(|n| format!("device/{n}/#")).collect();
        assert!(Rights::new([], many.iter().map(String::as_str)).is_ok());
        many.push("device/last/#".into());
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        assert_eq!(refused(&[], &many), Flaw::TooMany);
        let many: Vec<_> =
            (0..=Rights::MAX_FILTERS).map(|n| format!("device/{n}/command")).collect();
        assert_eq!(
            refused(&many.iter().map(String::as_str).collect::<Vec<_>>(), &[]),
            Flaw::TooMany
        );
    }

    #[test]
    fn refusal_shows_no_more_of_a_filter_than_a_line_holds() {
        let long = "x".repeat(10_000);
        assert!(Rights::new([], vec![&*long]).unwrap_err().to_string().len() < 200);
    }
}

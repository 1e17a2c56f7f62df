//! Documents that operators attach to devices or to the scope, and their revisions.

use assay_wire::{ConfigurationNews, DeviceId};
use time::OffsetDateTime;

use crate::error::StoreError;

/// What is attached to one device or to the scope.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigurationRow {
    /// The device; `None` for the scope.
    pub device_id: Option<DeviceId>,
    /// Grows with each change, and is no less than the microseconds from 1970 to that change.
    pub revision: u64,
    /// `None` once it was removed.
    pub document: Option<Vec<u8>>,
    /// When it was set or removed.
    pub set_at: OffsetDateTime,
}

/// What is due to one device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DueConfiguration {
    /// Never less than what was due to the device before.
    pub revision: u64,
    /// `None` if the one that was due before was removed.
    pub document: Option<Vec<u8>>,
}

/// What changed last.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ConfigurationChanges {
    /// Its revisions are those of [`ConfigurationNews`]; its spread is left at 0.
    pub news: ConfigurationNews,
    /// How many devices are registered.
    pub devices: u64,
}

/// What is due to a device, of what is attached to it (`own`) and to the scope.
///
/// The device's own document wins. Where it has none, a removed one of its own still counts by its
/// revision: what follows it must be newer.
pub(crate) fn due(
    own: Option<(u64, Option<Vec<u8>>)>,
    scope: Option<(u64, Option<Vec<u8>>)>,
) -> Option<DueConfiguration> {
    match (own, scope) {
        (None, None) => None,
        (Some((revision, Some(document))), _) => {
            Some(DueConfiguration { revision, document: Some(document) })
        }
        (own, scope) => {
            let (own, _) = own.unwrap_or_default();
            let (revision, document) = scope.unwrap_or_default();
            Some(DueConfiguration { revision: revision.max(own), document })
        }
    }
}

/// The news of the newest changes of devices, newest first, of which there is one more than fits,
/// and of the newest change of the scope.
pub(crate) fn news(scope: u64, devices: Vec<(DeviceId, u64)>) -> ConfigurationNews {
    let mut devices = devices;
    let older = devices.get(ConfigurationNews::MAX_DEVICES).map_or(0, |(_, revision)| *revision);
    devices.truncate(ConfigurationNews::MAX_DEVICES);
    ConfigurationNews { for_all: scope.max(older), spread: 0, devices }
}

/// The key of a row. No device id is empty.
pub(crate) fn key(device: Option<&DeviceId>) -> &str {
    device.map_or("", DeviceId::as_str)
}

/// The device of a row with this key.
pub(crate) fn device(key: &str) -> Result<Option<DeviceId>, StoreError> {
    if key.is_empty() {
        return Ok(None);
    }
    key.parse().map(Some).map_err(StoreError::unreadable)
}

/// The least revision that is given at that time: the microseconds since 1970. So what a device has
/// and nobody gave is passed by the next change a day later, because a device takes none that is
/// further ahead of its clock (docs/protocol.md, *Configuration*).
pub(crate) fn least_revision(now: OffsetDateTime) -> i64 {
    let microseconds = now.unix_timestamp_nanos() / 1_000;
    i64::try_from(microseconds).expect("a year of four digits has so many microseconds")
}

/// A revision on record.
pub(crate) fn revision(number: i64) -> Result<u64, StoreError> {
    u64::try_from(number).map_err(StoreError::unreadable)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn document(text: &str) -> Option<Vec<u8>> {
        Some(text.into())
    }

    fn found(revision: u64, text: &str) -> Option<DueConfiguration> {
        Some(DueConfiguration { revision, document: document(text) })
    }

    #[test]
    fn own_document_wins_and_whatever_follows_it_is_newer() {
        assert_eq!(due(None, None), None);
        assert_eq!(due(None, Some((3, document("scope")))), found(3, "scope"));
        assert_eq!(due(Some((2, document("own"))), Some((3, document("scope")))), found(2, "own"));
        // The own one was removed at 4: the scope's is older than that.
        assert_eq!(due(Some((4, None)), Some((3, document("scope")))), found(4, "scope"));
        assert_eq!(due(Some((4, None)), Some((5, document("scope")))), found(5, "scope"));
        let nothing = Some(DueConfiguration { revision: 5, document: None });
        assert_eq!(due(Some((4, None)), Some((5, None))), nothing);
    }

    #[test]
    fn changes_that_do_not_fit_into_the_news_concern_everybody() {
        let most = ConfigurationNews::MAX_DEVICES as u64;
        let devices = |count: u64| {
            (0..count).map(|n| (format!("pump-{n}").parse().unwrap(), 1000 - n)).collect()
        };
        assert_eq!(news(7, devices(most)).for_all, 7);
        let full = news(7, devices(most + 1));
        assert_eq!((full.for_all, full.devices.len() as u64), (1000 - most, most));
        assert_eq!(news(2000, devices(most + 1)).for_all, 2000);
    }
}

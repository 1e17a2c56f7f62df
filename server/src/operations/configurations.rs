//! Documents that an operator attaches to devices, or to all of them.

use assay_store::ConfigurationRow;
use assay_wire::{DeviceId, MAX_CONFIGURATION};
use minicbor::Decoder;
use serde::de::IgnoredAny;
use time::OffsetDateTime;

use crate::directory::Directory;

/// A document that a device can be sent: JSON or CBOR, and not too long.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Document(Vec<u8>);

impl Document {
    /// Checks that the bytes are one JSON text (RFC 8259 §2) or one well-formed data item of CBOR
    /// (RFC 8949 §5.3.1). What they mean is between the operator and the device.
    ///
    /// # Errors
    /// They are neither, or there are too many.
    pub fn read(bytes: Vec<u8>) -> Result<Self, DocumentError> {
        if bytes.len() > MAX_CONFIGURATION {
            return Err(DocumentError::TooLong(bytes.len()));
        }
        match serde_json::from_slice::<IgnoredAny>(&bytes) {
            Ok(_) => Ok(Self(bytes)),
            Err(_) if is_cbor(&bytes) => Ok(Self(bytes)),
            Err(json) => Err(DocumentError::Neither(json.to_string())),
        }
    }

    /// The document itself.
    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

fn is_cbor(bytes: &[u8]) -> bool {
    let mut decoder = Decoder::new(bytes);
    decoder.skip().is_ok() && decoder.position() == bytes.len()
}

/// Why bytes are no document for a device.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DocumentError {
    /// It would not fit into a reply.
    #[error("the document has {0} bytes; a device takes {MAX_CONFIGURATION}")]
    TooLong(usize),
    /// A device could not read it. The text says why it is not JSON.
    #[error("the document is neither JSON ({0}) nor CBOR")]
    Neither(String),
}

/// Attaches a document to a device, or to the scope if `device` is `None`. Returns its revision.
///
/// # Errors
/// The store fails.
pub fn set(
    directory: &Directory,
    device: Option<&DeviceId>,
    Document(document): &Document,
    now: OffsetDateTime,
) -> anyhow::Result<u64> {
    let revision = directory.store()?.set_configuration(device, Some(document), now)?;
    revision.ok_or_else(|| anyhow::anyhow!("the store gave no revision"))
}

/// Removes the document of a device or of the scope. Returns the revision of that; `None` if there
/// is no document.
///
/// # Errors
/// The store fails.
pub fn remove(
    directory: &Directory,
    device: Option<&DeviceId>,
    now: OffsetDateTime,
) -> anyhow::Result<Option<u64>> {
    Ok(directory.store()?.set_configuration(device, None, now)?)
}

/// What is attached to a device, or to the scope, itself.
///
/// # Errors
/// The store fails.
pub fn find(
    directory: &Directory,
    device: Option<&DeviceId>,
) -> anyhow::Result<Option<ConfigurationRow>> {
    let rows = directory.store()?.configurations()?;
    Ok(rows.into_iter().find(|row| row.device_id.as_ref() == device))
}

/// Everything that is attached: the scope's first, then by device id.
///
/// # Errors
/// The store fails.
pub fn list(directory: &Directory) -> anyhow::Result<Vec<ConfigurationRow>> {
    let rows = directory.store()?.configurations()?;
    Ok(rows.into_iter().filter(|row| row.document.is_some()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_and_cbor_are_taken() {
        for good in [
            &b"{\"interval\": 30}"[..],
            b" [1, 2]\n",
            b"\"text\"",
            // {"a": 1}, [1, 2], and a definite text.
            b"\xa1\x61a\x01",
            b"\x82\x01\x02",
            b"\x63abc",
        ] {
            assert!(Document::read(good.to_vec()).is_ok(), "{good:?}");
        }
        let longest = format!("\"{}\"", "x".repeat(MAX_CONFIGURATION - 2));
        assert!(Document::read(longest.into()).is_ok());
    }

    #[test]
    fn what_is_neither_is_refused() {
        for bad in [
            &b""[..],
            b"interval = 30",
            b"{\"interval\": 30",
            b"{} {}",
            // Two data items, and a map without its value.
            b"\xa0\xa0",
            b"\xa1\x61a",
        ] {
            let refused = Document::read(bad.to_vec());
            assert!(matches!(refused, Err(DocumentError::Neither(_))), "{bad:?}: {refused:?}");
        }
    }

    #[test]
    fn longer_document_than_a_device_takes_is_refused() {
        let long = format!("\"{}\"", "x".repeat(MAX_CONFIGURATION - 1));
        let length = MAX_CONFIGURATION + 1;
        assert_eq!(Document::read(long.into()), Err(DocumentError::TooLong(length)));
    }
}

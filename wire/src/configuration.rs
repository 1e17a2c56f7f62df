//! A document of the operator's for one device, as the CA signs it, and the news of a change.

use alloc::borrow::ToOwned;
use alloc::vec::Vec;

use minicbor::{Decoder, Encoder};

use crate::message::only_encoding;
use crate::{Bytes, CertificateDer, CertificateList, DecodeError, DeviceId, MAX_MESSAGE, Scope};

/// The longest document, in bytes. It travels with a certificate in one message.
pub const MAX_CONFIGURATION: usize = 4096;
/// The longest signed document, in bytes: the longest document, a chain of two P-256 certificates,
/// and room for longer certificates.
pub const MAX_SIGNED_CONFIGURATION: usize = 8192;

/// What the operator wants a device to know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Configuration {
    /// The provisioning domain.
    pub scope: Scope,
    /// The one device that it is for.
    pub device_id: DeviceId,
    /// Grows with each change.
    pub revision: u64,
    /// The document, opaque to Assay; `None` if the operator removed it.
    pub document: Option<Bytes<MAX_CONFIGURATION>>,
}

impl Configuration {
    /// The payload that is signed: a CBOR array of the text `assay configuration v1`, the scope,
    /// the device id, the revision, and the document or null.
    pub fn encode(&self) -> Vec<u8> {
        let mut payload = Vec::new();
        // Unwrap safety: writing to a Vec cannot fail.
        Encoder::new(&mut payload)
            .array(5)
            .and_then(|e| e.str(LABEL))
            .and_then(|e| e.str(self.scope.as_str()))
            .and_then(|e| e.str(self.device_id.as_str()))
            .and_then(|e| e.u64(self.revision))
            .and_then(|e| match &self.document {
                Some(document) => e.bytes(document),
                None => e.null(),
            })
            .unwrap();
        payload
    }

    /// Reads a payload. Whether somebody signed it is for the caller to find out, before.
    ///
    /// # Errors
    /// The bytes are not the one encoding of a configuration; see [`DecodeError`].
    pub fn decode(payload: &[u8]) -> Result<Self, DecodeError> {
        let mut d = Decoder::new(payload);
        if d.array()? != Some(5) || d.str()? != LABEL {
            return Err(DecodeError::Malformed("no configuration".to_owned()));
        }
        let read = Self {
            scope: d.decode()?,
            device_id: d.decode()?,
            revision: d.u64()?,
            document: d.decode()?,
        };
        only_encoding(payload, read.encode())?;
        Ok(read)
    }
}

/// A [`Configuration`] with a signature that nobody has verified: COSE_Sign1 (RFC 9052 §4.2) with
/// ES256 (RFC 9053 §2.1), and the signer's certificates in `x5chain` (RFC 9360 §2), which is not
/// protected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SignedConfiguration {
    /// The signer's certificate, then its issuers, without the root.
    pub chain: CertificateList<1>,
    /// What [`Configuration::decode`] reads.
    pub payload: Vec<u8>,
    /// r, then s.
    pub signature: [u8; 64],
}

impl SignedConfiguration {
    /// What the signature is of: the Sig_structure of RFC 9052 §4.4, without external data.
    pub fn signed(payload: &[u8]) -> Vec<u8> {
        let mut signed = Vec::new();
        // Unwrap safety: writing to a Vec cannot fail.
        Encoder::new(&mut signed)
            .array(4)
            .and_then(|e| e.str("Signature1"))
            .and_then(|e| e.bytes(PROTECTED))
            .and_then(|e| e.bytes(&[]))
            .and_then(|e| e.bytes(payload))
            .unwrap();
        signed
    }

    /// The bytes of the COSE_Sign1, without a tag.
    pub fn encode(&self) -> Vec<u8> {
        let mut message = Vec::new();
        let mut e = Encoder::new(&mut message);
        // Unwrap safety: writing to a Vec cannot fail.
        e.array(4)
            .and_then(|e| e.bytes(PROTECTED))
            .and_then(|e| e.map(1))
            .and_then(|e| e.u8(X5CHAIN))
            .unwrap();
        // One certificate stands alone (RFC 9360 §2).
        match &self.chain[..] {
            [one] => e.bytes(one).unwrap(),
            chain => e.encode(chain).unwrap(),
        };
        e.bytes(&self.payload).and_then(|e| e.bytes(&self.signature)).unwrap();
        message
    }

    /// Reads a COSE_Sign1 that anybody may have made.
    ///
    /// # Errors
    /// The bytes are not the one encoding of a signed configuration; see [`DecodeError`].
    pub fn decode(message: &[u8]) -> Result<Self, DecodeError> {
        let malformed = |what: &str| DecodeError::Malformed(what.to_owned());
        let mut d = Decoder::new(message);
        if d.array()? != Some(4) || d.bytes()? != PROTECTED {
            return Err(malformed("not a COSE_Sign1 with ES256 and no other protected header"));
        }
        if d.map()? != Some(1) || d.u8()? != X5CHAIN {
            return Err(malformed("not one unprotected header, x5chain"));
        }
        let chain = match d.datatype()? {
            minicbor::data::Type::Bytes => {
                let one: CertificateDer = d.decode()?;
                alloc::vec![one].try_into().map_err(|_| malformed("no certificate"))?
            }
            _ => d.decode()?,
        };
        let payload = d.bytes()?.to_vec();
        let signature = d.bytes()?.try_into().map_err(|_| malformed("not a signature by ES256"))?;
        let read = Self { chain, payload, signature };
        only_encoding(message, read.encode())?;
        Ok(read)
    }
}

/// What the CA tells everybody when configurations change: enough for a device to know whether it
/// should ask. It is not signed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ConfigurationNews {
    /// The newest revision that may concern any device.
    pub for_all: u64,
    /// Over how many seconds devices should spread their requests.
    pub spread: u32,
    /// The newest changes for single devices, at most [`MAX_DEVICES`](Self::MAX_DEVICES).
    pub devices: Vec<(DeviceId, u64)>,
}

impl ConfigurationNews {
    /// Devices that are named in one message. Changes that are older concern any device.
    pub const MAX_DEVICES: usize = 32;

    /// The newest revision for this device, as far as the news say.
    pub fn newest_for(&self, device: &DeviceId) -> u64 {
        let own = self.devices.iter().filter(|(other, _)| other == device);
        own.map(|(_, revision)| *revision).fold(self.for_all, u64::max)
    }

    /// The newest revision of all.
    pub fn newest(&self) -> u64 {
        self.devices.iter().map(|(_, revision)| *revision).fold(self.for_all, u64::max)
    }

    /// The message to publish: a CBOR array of `for_all`, `spread`, and an array of device id and
    /// revision for each device.
    pub fn encode(&self) -> Vec<u8> {
        let mut message = Vec::new();
        let mut e = Encoder::new(&mut message);
        // Unwrap safety: writing to a Vec cannot fail.
        e.array(3)
            .and_then(|e| e.u64(self.for_all))
            .and_then(|e| e.u32(self.spread))
            .and_then(|e| e.array(self.devices.len() as u64))
            .unwrap();
        for (device, revision) in &self.devices {
            e.array(2).and_then(|e| e.str(device.as_str())).and_then(|e| e.u64(*revision)).unwrap();
        }
        message
    }

    /// Reads a message that anybody who may write to the topic may have published.
    ///
    /// # Errors
    /// The bytes are not the one encoding of such news; see [`DecodeError`].
    pub fn decode(message: &[u8]) -> Result<Self, DecodeError> {
        let malformed = |what: &str| DecodeError::Malformed(what.to_owned());
        let mut d = Decoder::new(message);
        if d.array()? != Some(3) {
            return Err(malformed("not an array of three"));
        }
        let (for_all, spread) = (d.u64()?, d.u32()?);
        let count = d.array()?.unwrap_or(u64::MAX);
        if count > Self::MAX_DEVICES as u64 {
            return Err(malformed("too many devices"));
        }
        let mut devices = Vec::new();
        for _ in 0..count {
            if d.array()? != Some(2) {
                return Err(malformed("not a device and a revision"));
            }
            devices.push((d.decode()?, d.u64()?));
        }
        let read = Self { for_all, spread, devices };
        only_encoding(message, read.encode())?;
        Ok(read)
    }
}

const LABEL: &str = "assay configuration v1";
/// `{1: -7}`: the algorithm is ES256.
const PROTECTED: &[u8] = &[0xA1, 0x01, 0x26];
/// RFC 9360 §2.
const X5CHAIN: u8 = 33;

// A signed document and a full chain of our certificates fit into one message.
const _: () = assert!(MAX_SIGNED_CONFIGURATION < MAX_MESSAGE);

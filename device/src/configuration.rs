//! The operator's document for this device: verified, and kept.

use std::path::Path;

use assay_device_core::{AnswerError, ReceivedConfiguration, rfc3339};
use assay_wire::{Configuration, DecodeError, DeviceId, Identity, Scope, SignedConfiguration};
use ring::signature::{ECDSA_P256_SHA256_FIXED, UnparsedPublicKey};
use rustls::RootCertStore;
use rustls::pki_types::{CertificateDer, UnixTime};

use crate::clock::{self, Clock};
use crate::error::Error;
use crate::state::{self, StateDirectory};
use crate::verify;

/// The document that an operator attached to this device, as the state directory has it. It was
/// verified when it came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceConfiguration {
    /// The device that it is for.
    pub device_id: DeviceId,
    /// Grows with each change, and is no less than the microseconds from 1970 to that change.
    pub revision: u64,
    /// JSON or CBOR; `None` if the operator removed it.
    pub document: Option<Vec<u8>>,
}

/// Reads the document for this device from its state directory; `None` if none ever came.
///
/// # Errors
/// The file cannot be read.
pub fn configuration(state: &Path) -> Result<Option<DeviceConfiguration>, Error> {
    let Some(signed) = state::configuration(state)? else { return Ok(None) };
    let broken = |error: DecodeError| Error::State {
        path: state::configuration_path(state),
        reason: format!("broken ({error}): remove it, and the CA sends it again"),
    };
    let signed = SignedConfiguration::decode(&signed).map_err(broken)?;
    let Configuration { device_id, revision, document, .. } =
        Configuration::decode(&signed.payload).map_err(broken)?;
    let document = document.map(|document| document.to_vec());
    Ok(Some(DeviceConfiguration { device_id, revision, document }))
}

/// A configuration that a worker of the device's own CA signed for this device. Only
/// [`verify`](Self::verify) makes one.
#[derive(Clone, Debug, PartialEq, Eq)]
struct VerifiedConfiguration(Configuration);

impl VerifiedConfiguration {
    /// Checks that the chain leads to a pinned root at that time (RFC 5280 §6.1), that the signer
    /// is a worker of the CA, that the signature is the worker's (RFC 9052 §4.4), and that the
    /// document is for this device of this scope. In this order: nothing is read of a payload that
    /// no worker signed.
    ///
    /// Whether it is newer than another one is for the caller to find out; whether the worker's
    /// certificate was revoked is not checked.
    fn verify(
        signed: &[u8],
        roots: &RootCertStore,
        now: impl FnOnce(&[CertificateDer<'_>]) -> UnixTime,
        scope: &Scope,
        device_id: &DeviceId,
    ) -> Result<Self, ConfigurationError> {
        let signed = SignedConfiguration::decode(signed)?;
        let chain: Vec<_> =
            signed.chain.iter().map(|der| CertificateDer::from(der.to_vec())).collect();
        let path = verify::path(&chain, roots, now(&chain))?;
        match &path.uris[..] {
            [uri] if uri.parse() == Ok(Identity::Worker) => {}
            uris => return Err(ConfigurationError::NotAWorker(uris.join(" "))),
        }
        let message = SignedConfiguration::signed(&signed.payload);
        UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, verify::public_key(&chain[0])?)
            .verify(&message, &signed.signature)
            .map_err(|_| ConfigurationError::Signature)?;
        let configuration = Configuration::decode(&signed.payload)?;
        if configuration.scope != *scope || configuration.device_id != *device_id {
            return Err(ConfigurationError::OtherDevice {
                device: configuration.device_id,
                scope: configuration.scope,
            });
        }
        Ok(Self(configuration))
    }

    /// Refuses a revision that the CA does not give before a time that is not past yet: it gives
    /// none that is further from 1970, in microseconds, than its clock. Otherwise somebody who had
    /// a worker's key for a moment could give a revision that no document ever passes.
    ///
    /// This establishes that the operator's own documents of that time are newer, and not that this
    /// one is theirs.
    fn no_later_than(self, latest: u64) -> Result<Self, ConfigurationError> {
        let revision = self.0.revision;
        if revision / MICROSECONDS > latest {
            let from = revision / MICROSECONDS;
            return Err(ConfigurationError::FromLater { revision, from, latest });
        }
        Ok(self)
    }

    /// Refuses what is older than `stored`, and another document of the same revision. Returns
    /// whether this one is newer.
    fn is_newer_than(&self, stored: &Self) -> Result<bool, ConfigurationError> {
        let (new, stored) = (&self.0, &stored.0);
        if new.revision < stored.revision || (new.revision == stored.revision && new != stored) {
            let (revision, stored) = (new.revision, stored.revision);
            return Err(ConfigurationError::Older { revision, stored });
        }
        Ok(new.revision > stored.revision)
    }
}

/// Verifies what came with a certificate, and keeps it in place of an older one. Returns its
/// revision if it is new.
///
/// # Errors
/// The outer ones are those of the state directory; the inner ones say why it is not kept.
pub(crate) fn keep(
    received: &ReceivedConfiguration,
    state: &StateDirectory,
    roots: &RootCertStore,
    clock: &Clock,
) -> Result<Result<Option<u64>, ConfigurationError>, Error> {
    let ReceivedConfiguration { signed, scope, device_id, not_after } = received;
    let latest = clock.latest(*not_after);
    let verified =
        VerifiedConfiguration::verify(signed, roots, |chain| clock.at(chain), scope, device_id);
    let verified = match verified.and_then(|verified| verified.no_later_than(latest)) {
        Ok(verified) => verified,
        Err(error) => return Ok(Err(error)),
    };
    // What is kept counts only if it is of the same CA and device: its revisions are others
    // otherwise. Its signer's certificate may have ended meanwhile. One from a time that is still
    // to come was taken while this clock was ahead.
    let kept = state::configuration(state.path())?.and_then(|kept| {
        VerifiedConfiguration::verify(&kept, roots, clock::beginning_of, scope, device_id)
            .and_then(|kept| kept.no_later_than(latest))
            .ok()
    });
    if let Some(kept) = kept {
        match verified.is_newer_than(&kept) {
            Ok(true) => {}
            Ok(false) => return Ok(Ok(None)),
            Err(error) => return Ok(Err(error)),
        }
    }
    state.keep_configuration(signed)?;
    Ok(Ok(Some(verified.0.revision)))
}

/// Why a device does not take a configuration. The certificate that it came with is another matter.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ConfigurationError {
    #[error("unreadable: {0}")]
    Unreadable(#[from] DecodeError),
    #[error(transparent)]
    Signer(#[from] AnswerError),
    #[error("its signer is not a worker of the CA: {0:?}")]
    NotAWorker(String),
    #[error("its signature is wrong")]
    Signature,
    #[error("it cannot be kept: {0}")]
    NotKept(String),
    #[error("it is for device {device} of scope {scope}")]
    OtherDevice { device: DeviceId, scope: Scope },
    #[error("it has revision {revision}, and this device has revision {stored} already")]
    Older { revision: u64, stored: u64 },
    #[error(
        "its revision {revision} is of {}, and this device takes none of later than {}",
        rfc3339(*.from),
        rfc3339(*.latest)
    )]
    FromLater { revision: u64, from: u64, latest: u64 },
}

/// In a second. Revisions are microseconds since 1970, or a little more.
const MICROSECONDS: u64 = 1_000_000;

#[cfg(test)]
mod tests;

//! The status of a device, from its state directory.

use std::path::{Path, PathBuf};

use assay_device_core::{
    Attempt, CertificateGrant, DeviceRecord, Grant, HmacRecord, IdentityRecord, SharedKeyGrant,
    Shown, rfc3339,
};
use assay_wire::{Flow, Scope};

use crate::clock::Clock;
use crate::error::Error;
use crate::state;
use crate::tpm::{EkKind, IkKind, ParentKind};
use crate::verify::{self, Summary, Validity};

/// The contents of a state directory. The TPM was not asked, and nothing is verified.
#[derive(Clone, Debug)]
pub struct Status {
    /// The keys that the credential is for. If there is no credential, the keys of the last
    /// request.
    pub keys: KeyStatus,
    /// What the device signs in with, if there is anything.
    pub credential: Option<CredentialStatus>,
    /// The keys of a later request that the CA has not agreed to, or of a sealed certificate that
    /// the CA has not confirmed, if they are others. The credential stays in use.
    pub attempt: Option<KeyStatus>,
}

/// The keys that a credential is for, or is to be for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyStatus {
    /// The provisioning domain.
    pub scope: Scope,
    /// The flow used.
    pub flow: Flow,
    /// The kind of EK shown.
    pub ek: EkKind,
    /// The id under which an operator knows that EK.
    pub ek_id: String,
    /// The device's own key.
    pub key: OwnKey,
}

/// A device's own key in the TPM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OwnKey {
    /// An identity key, for the flows that give a certificate. The TPM made it.
    Identity {
        /// The kind of the identity key.
        ik: IkKind,
        /// Its persistent handle.
        ik_handle: u32,
    },
    /// An HMAC key, for the flow that gives a shared key. The CA sent it.
    Hmac {
        /// The parent that it was sent to.
        parent: ParentKind,
        /// Its persistent handle.
        hmac_handle: u32,
    },
}

/// What a device signs in with.
#[derive(Clone, Debug)]
pub enum CredentialStatus {
    /// A certificate.
    Certificate {
        /// The file.
        path: PathBuf,
        /// What is in it.
        summary: Summary,
        /// Whether the CA has said that it knows that the device has the certificate. If not, the
        /// next `provision` tells the CA.
        is_confirmed: bool,
    },
    /// The HMAC key that the status names.
    SharedKey {
        /// The name under which the CA registered it.
        device_id: String,
        /// When the device asks for the next one, e.g. `2027-02-20T20:08:40Z`.
        rotate_at: String,
        /// Whether that time has come.
        is_due: bool,
        /// Whether the device has settled that this key stays. If not, the one before it stays,
        /// too, until a broker has taken a token of this one.
        is_settled: bool,
    },
}

impl Status {
    /// Reads a state directory; `None` if no request was ever made with it.
    pub fn read(state: &Path) -> Result<Option<Self>, Error> {
        let memory = state::memory(state)?;
        let credential = memory.credentials().next();
        let is_renewed = matches!(memory.attempt, Some(Attempt::Renewed(_)));
        let is_rotated = matches!(memory.attempt, Some(Attempt::Rotated(_)));
        let attempt = memory.attempt.map(|attempt| KeyStatus::from(attempt.record()));
        let Some(grant) = credential else {
            return Ok(attempt.map(|keys| Self { keys, credential: None, attempt: None }));
        };
        let keys = grant.record().into();
        let credential = match grant {
            Grant::Certificate(grant) => {
                certificate(state, &grant, grant.unconfirmed.is_none() && !is_renewed)?
            }
            Grant::SharedKey(SharedKeyGrant { device_id, rotation, .. }) => {
                let now = Clock::new(true, &[]).now().as_secs();
                CredentialStatus::SharedKey {
                    device_id: device_id.to_string(),
                    rotate_at: rfc3339(rotation.at),
                    is_due: rotation.at <= now,
                    is_settled: !is_rotated,
                }
            }
        };
        // An attempt for the same keys says nothing new.
        let attempt = attempt.filter(|attempt| *attempt != keys);
        Ok(Some(Self { keys, credential: Some(credential), attempt }))
    }

    /// What the device can sign in with, by its state directory and its clock alone.
    ///
    /// # Errors
    /// [`Error::NotProvisioned`] if nothing was granted, [`Error::Expired`] if its certificate has
    /// ended, [`Error::Clock`] if the clock is more than a day before the certificate's first
    /// moment.
    pub fn usable(&self) -> Result<&CredentialStatus, Error> {
        let Some(credential) = &self.credential else {
            return Err(Error::NotProvisioned("the CA has granted nothing yet".into()));
        };
        let CredentialStatus::Certificate { path, summary, .. } = credential else {
            return Ok(credential);
        };
        let now = Clock::new(true, &[]).now().as_secs();
        match summary.validity {
            Validity::Valid => Ok(credential),
            Validity::Expired => Err(Error::Expired {
                path: path.clone(),
                not_after: summary.not_after.clone(),
                clock: rfc3339(now),
            }),
            Validity::NotYet => {
                let from = format!(
                    "the certificate in {} is valid from {}",
                    path.display(),
                    summary.not_before
                );
                Err(Error::wrong_clock(now, &from))
            }
        }
    }
}

fn certificate(
    state: &Path,
    grant: &CertificateGrant,
    is_confirmed: bool,
) -> Result<CredentialStatus, Error> {
    let path = state::certificate_path(state);
    let leaf = grant.chain.first().map(|leaf| leaf.as_ref()).unwrap_or_default();
    match verify::summary(leaf, grant.renew_at, Clock::new(true, &[]).now()) {
        Ok(summary) => Ok(CredentialStatus::Certificate { path, summary, is_confirmed }),
        Err(error) => Err(Error::State { path, reason: error.to_string() }),
    }
}

impl From<DeviceRecord> for KeyStatus {
    fn from(record: DeviceRecord) -> Self {
        let flow = record.flow();
        let (Shown { scope, ek, ek_id, .. }, key) = match record {
            DeviceRecord::Identity(IdentityRecord { shown, ik, ik_handle, .. }) => {
                (shown, OwnKey::Identity { ik, ik_handle })
            }
            DeviceRecord::Hmac(HmacRecord { shown, parent, hmac_handle, .. }) => {
                (shown, OwnKey::Hmac { parent, hmac_handle })
            }
        };
        Self { scope, flow, ek, ek_id: ek_id.to_string(), key }
    }
}

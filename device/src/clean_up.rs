//! Removes what a device keeps: its keys in the TPM, and its state directory.

use assay_device_core::{Attempt, Grant};

use crate::device::Device;
use crate::error::Error;
use crate::state;
use crate::status::{KeyStatus, OwnKey};

/// A key of a device that is in its TPM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceKey {
    /// Its kind and where it is.
    pub key: OwnKey,
    /// Its TPMT_PUBLIC.
    public: Vec<u8>,
}

impl DeviceKey {
    /// Its persistent handle.
    pub fn handle(&self) -> u32 {
        handle(self.key)
    }
}

impl Device {
    /// The keys that the state directory names and that are in the TPM.
    pub fn keys(&self) -> Result<Vec<DeviceKey>, Error> {
        let memory = self.memory()?;
        let records = memory.in_use.as_ref().map(Grant::record);
        let records = records.into_iter().chain(memory.attempt.as_ref().map(Attempt::record));
        let mut keys: Vec<DeviceKey> = Vec::new();
        for KeyStatus { key, .. } in records.map(KeyStatus::from) {
            if keys.iter().any(|found| found.handle() == handle(key)) {
                continue;
            }
            let public = self.tpm().call("looking for a key", move |tpm| match key {
                OwnKey::Identity { ik, ik_handle } => {
                    Ok(tpm.identity_key(ik, ik_handle)?.map(|found| found.bytes))
                }
                OwnKey::Hmac { hmac_handle, .. } => tpm.hmac_key(hmac_handle),
            })?;
            keys.extend(public.map(|public| DeviceKey { key, public }));
        }
        Ok(keys)
    }

    /// Removes these keys from the TPM, and then the state directory's files. The CA still knows
    /// the device.
    ///
    /// If the TPM fails, the state stays, so that it can be tried again.
    ///
    /// # Errors
    /// [`Error::State`] if a resident agent uses the directory.
    pub fn clean_up(&self, keys: &[DeviceKey]) -> Result<(), Error> {
        let _no_agent = state::hold_for_agent(self.state_path())?;
        for key in keys {
            let DeviceKey { public, .. } = key.clone();
            let handle = key.handle();
            self.tpm().call("removing a key", move |tpm| tpm.remove_key(handle, &public))?;
        }
        state::remove_files(self.state_path())
    }
}

fn handle(key: OwnKey) -> u32 {
    match key {
        OwnKey::Identity { ik_handle, .. } => ik_handle,
        OwnKey::Hmac { hmac_handle, .. } => hmac_handle,
    }
}

//! A device with an HMAC key from the CA.

use std::time::Duration;

use assay_wire::{DeviceId, Flow, ParentBundle};

use super::{
    Credential, DEFAULT_HMAC_HANDLE, Device, Meter, ProvisionRequest, Provisioned, too_long,
};
use crate::error::Error;
use crate::provision::{Progress, Registrant, Registration, Step};
use crate::state::{Attempt, Grant, HmacPublic, HmacRecord, Memory, SharedKeyGrant};
use crate::token::{self, Token};
use crate::tpm::{EkKind, ParentKind, TpmError};

impl Device {
    pub(super) fn provision_shared_key(
        &self,
        ek: Option<EkKind>,
        request: &ProvisionRequest,
        memory: &Memory,
        progress: Progress<'_>,
    ) -> Result<Provisioned, Error> {
        let mut meter = Meter::start(&self.tpm);
        let before = memory.hmac();
        // A plain SRK is an exception, for which somebody asks each time.
        let parent = request.parent.or_else(|| Some(before.as_ref()?.parent.import_parent()));
        let parent = parent.unwrap_or(ParentKind::P256);
        let handle = request
            .hmac_handle
            .or_else(|| Some(before.as_ref()?.hmac_handle))
            .unwrap_or(DEFAULT_HMAC_HANDLE);
        let mut step = Step { started: meter.started, progress };

        let found = self.tpm.call("looking for the HMAC key", move |tpm| tpm.hmac_key(handle))?;
        // Any other key of this shape is somebody else's, such as Azure's.
        let own = found.map(HmacPublic).filter(|found| memory.knows(found));
        if !request.again
            && let Some(Grant::SharedKey(grant)) = &memory.in_use
            && grant.record.keys.as_slice() == own.as_slice()
            && own.is_some()
            && grant.record.shown.scope == request.scope
            && request.parent.is_none_or(|wanted| wanted == grant.record.parent)
            && grant.record.hmac_handle == handle
            && request.takes_ek(grant.record.shown.ek)
            && request.device_id.as_ref().is_none_or(|wanted| *wanted == grant.device_id)
        {
            step.done("provisioned already: the TPM holds the HMAC key");
            return Ok(provisioned(&grant.record, grant.device_id.clone(), true, &meter));
        }

        let (ek, shown) = self.endorsement_key(ek, request, memory, &mut step)?;
        let parent_public = self.tpm.call("making the parent", move |tpm| tpm.parent(parent))?;
        let parent_public =
            parent_public.ok_or_else(|| TpmError::Unsupported(format!("{parent} storage")))?;
        let record = |keys| HmacRecord { shown: shown.clone(), parent, hmac_handle: handle, keys };
        let asking = |keys| Memory {
            in_use: memory.in_use.clone(),
            attempt: Some(Attempt::Hmac(record(keys))),
        };
        let asked = asking(own.iter().cloned().collect());
        let line = self.line(request, meter.started)?;
        line.connect_during(|| self.remember(memory, &asked, &mut step))?;
        step.done(&format!("parent {parent} ready"));

        let registrant = Registrant {
            line: &line,
            tpm: &self.tpm,
            bundle: ParentBundle {
                device_id: request.device_id.clone(),
                ek_public: ek.public_area().map_err(too_long)?,
                ek_certificates: ek.certificate_list().map_err(too_long)?,
                parent_public: parent_public.bytes.try_into().map_err(too_long)?,
                other_eks: ek.other_ids().map_err(too_long)?,
            },
            ek: ek.kind,
            parent,
            handle,
            replaced: own.clone().map(|HmacPublic(public)| public),
        };
        let remember = |new: &[u8]| {
            let keys = own.iter().cloned().chain([HmacPublic(new.into())]);
            self.state.store(&asking(keys.collect()))
        };
        let Registration { device_id, public } =
            meter.talk(&line, registrant.obtain(remember, &mut *step.progress))?;
        let record = record(vec![HmacPublic(public)]);
        let grant = SharedKeyGrant { record: record.clone(), device_id: device_id.clone() };
        let granted = Memory { in_use: Some(Grant::SharedKey(grant)), attempt: None };
        self.remember(&asked, &granted, &mut step)?;
        Ok(provisioned(&record, device_id, false, &meter))
    }

    /// A token with which any MQTT client signs in as this device for a while.
    ///
    /// `lifetime` counts in whole seconds, from this device's clock; a CA takes
    /// [`Token::MAX_LIFETIME`] at most.
    ///
    /// # Errors
    /// [`Error::NotProvisioned`] if this device has no shared key, [`Error::Usage`] if the TPM no
    /// longer holds it or the lifetime is too long.
    pub fn token(&self, lifetime: Duration) -> Result<Token, Error> {
        if lifetime > Token::MAX_LIFETIME {
            let limit = Token::MAX_LIFETIME.as_secs();
            return Err(Error::Usage(format!("a token is valid for {limit} s at most")));
        }
        let Some(Grant::SharedKey(grant)) = self.state.memory()?.in_use else {
            let reason =
                "this device has no shared key: run `assay-device provision --flow shared-key`";
            return Err(Error::NotProvisioned(reason.into()));
        };
        let handle = grant.record.hmac_handle;
        let found = self.tpm.call("looking for the HMAC key", move |tpm| tpm.hmac_key(handle))?;
        let found = found.map(HmacPublic);
        if found.is_none() || grant.record.keys.as_slice() != found.as_slice() {
            return Err(Error::Usage(format!(
                "the TPM no longer holds this device's HMAC key at {handle:#010x}: it was \
                 cleared, or it is another TPM; run `assay-device provision`"
            )));
        }
        let hmac =
            |data: Vec<u8>| self.tpm.call("computing an HMAC", move |tpm| tpm.hmac(handle, &data));
        token::sign(
            &grant.record.shown.scope,
            &grant.device_id,
            token::expiry(&self.clock, lifetime),
            hmac,
        )
    }
}

fn provisioned(
    record: &HmacRecord,
    device_id: DeviceId,
    was_provisioned: bool,
    meter: &Meter<'_>,
) -> Provisioned {
    Provisioned {
        flow: Flow::SharedKey,
        scope: record.shown.scope.clone(),
        device_id,
        ek: record.shown.ek,
        credential: Credential::SharedKey {
            parent: record.parent,
            hmac_handle: record.hmac_handle,
        },
        was_provisioned,
        cost: meter.cost(),
    }
}

//! A device with a certificate for an identity key.

use assay_wire::{Bundle, DeviceId, Flow, Scope};
use rustls::ClientConfig;

use super::{
    Credential, DEFAULT_IK_HANDLE, Device, Meter, ProvisionRequest, Provisioned, too_long,
};
use crate::clock::{self, is_more_than_a_day, rfc3339};
use crate::ek::EndorsementKey;
use crate::error::Error;
use crate::key::IdentityKey;
use crate::provision::{Applicant, Progress, Step};
use crate::state::{Attempt, CertificateGrant, Confirmation, Grant, IdentityRecord, Memory};
use crate::tpm::{EkKind, IkKind, PublicArea, PublicKey};
use crate::verify::{self, AnswerError, DeviceCertificate};

impl Device {
    pub(super) fn provision_certificate(
        &self,
        flow: Flow,
        ek: Option<EkKind>,
        request: &ProvisionRequest,
        memory: &Memory,
        progress: Progress<'_>,
    ) -> Result<Provisioned, Error> {
        let mut meter = Meter::start(&self.tpm);
        let before = memory.identity();
        let kind = request.ik.or_else(|| Some(before.as_ref()?.ik)).unwrap_or(IkKind::P256);
        let handle = request
            .ik_handle
            .or_else(|| Some(before.as_ref()?.ik_handle))
            .unwrap_or(DEFAULT_IK_HANDLE);
        let mut step = Step { started: meter.started, progress };

        let found = self
            .tpm
            .call("looking for the identity key", move |tpm| tpm.identity_key(kind, handle))?;
        let mut pending = None;
        if !request.again
            && let Some((grant, certificate)) =
                self.granted_certificate(flow, memory, request, found.as_ref())
        {
            match &grant.unconfirmed {
                None => {
                    step.done(
                        "provisioned already: the certificate is valid and the TPM holds its key",
                    );
                    return Ok(self.provisioned(&grant.record, certificate, true, &meter));
                }
                Some(confirmation) if flow == Flow::Sealed => {
                    pending = Some((grant.record.shown.ek, certificate, confirmation.clone()))
                }
                // Another flow gets the same certificate in its own way.
                Some(_) => {}
            }
        }

        let (ek, shown) = self.endorsement_key(ek, request, memory, &mut step)?;
        // To the CA another EK is another device, whose certificate this is not.
        let pending = pending
            .filter(|(ek, ..)| *ek == shown.ek)
            .map(|(_, certificate, confirmation)| (certificate, confirmation));
        let (ik, origin) = match found {
            Some(public) => (public, "found"),
            None => {
                let create = self.tpm.call("creating the identity key", move |tpm| {
                    tpm.create_identity_key(kind, handle)
                });
                (create?, "created")
            }
        };
        let key = IdentityKey { tpm: self.tpm.clone(), handle, kind, public: ik.key };
        let record = IdentityRecord { shown, flow, ik: kind, ik_handle: handle };
        let asked = memory.asking_for(&record);
        let line = self.line(request, meter.started)?;
        let bundle = line.connect_during(|| {
            self.remember(memory, &asked, &mut step)?;
            step.done(&format!("identity key {kind} {origin} at {handle:#010x}"));
            let bundle = bundle(request.device_id.clone(), &ek, ik.bytes, &key)?;
            step.done("certificate request signed");
            Ok(bundle)
        })?;
        if pending.is_some() {
            step.done("an earlier run stored the certificate: it is still to be confirmed");
        }

        let applicant = Applicant {
            line: &line,
            roots: &self.roots,
            clock: &self.clock,
            bundle,
            ek: ek.kind,
            ek_id: ek.id(),
            ik: &key,
        };
        let grant = |certificate: &DeviceCertificate, unconfirmed: Option<&Confirmation>| {
            CertificateGrant {
                record: record.clone(),
                chain: certificate.chain.clone(),
                unconfirmed: unconfirmed.cloned(),
            }
        };
        let mut known = asked;
        let certificate = if flow == Flow::Sealed {
            let remember = |certificate: &DeviceCertificate, confirmation: &Confirmation| {
                known = known.with_unconfirmed(grant(certificate, Some(confirmation)));
                self.state.store(&known)
            };
            meter.talk(&line, applicant.obtain_sealed(pending, remember, &mut *step.progress))?
        } else {
            meter.talk(&line, applicant.obtain(&mut *step.progress))?
        };
        let granted =
            Memory { in_use: Some(Grant::Certificate(grant(&certificate, None))), attempt: None };
        self.remember(&known, &granted, &mut step)?;
        Ok(self.provisioned(&record, certificate, false, &meter))
    }

    /// The stored certificate, if it is what the request asks for and good for the key that was
    /// found in the TPM. In the sealed flow, one that waits for its confirmation comes first.
    fn granted_certificate<'a>(
        &self,
        flow: Flow,
        memory: &'a Memory,
        request: &ProvisionRequest,
        found: Option<&PublicArea>,
    ) -> Option<(&'a CertificateGrant, DeviceCertificate)> {
        let waiting = match &memory.attempt {
            Some(Attempt::Unconfirmed(grant)) if flow == Flow::Sealed => Some(grant),
            _ => None,
        };
        let in_use = match &memory.in_use {
            Some(Grant::Certificate(grant)) => Some(grant),
            _ => None,
        };
        waiting.into_iter().chain(in_use).find_map(|grant| {
            let certificate = self.verify(grant, &request.scope, &found?.key).ok()?;
            let is_wanted =
                request.device_id.as_ref().is_none_or(|wanted| *wanted == certificate.device_id);
            (is_wanted && request.takes_ek(grant.record.shown.ek)).then_some((grant, certificate))
        })
    }

    fn provisioned(
        &self,
        record: &IdentityRecord,
        certificate: DeviceCertificate,
        was_provisioned: bool,
        meter: &Meter<'_>,
    ) -> Provisioned {
        Provisioned {
            flow: record.flow,
            scope: certificate.scope.clone(),
            device_id: certificate.device_id.clone(),
            ek: record.shown.ek,
            credential: Credential::Certificate {
                certificate,
                path: self.state.certificate_path(),
                ik: record.ik,
            },
            was_provisioned,
            cost: meter.cost(),
        }
    }

    /// The stored certificate, verified against the CA's root and the key that the TPM holds now.
    ///
    /// # Errors
    /// [`Error::NotProvisioned`] if this device has to be provisioned first, [`Error::Usage`] if it
    /// has a shared key instead, [`Error::Expired`] if the certificate has ended.
    pub fn certificate(&self) -> Result<DeviceCertificate, Error> {
        self.identity().map(|(_, certificate)| certificate)
    }

    /// A TLS configuration for MQTT over mutual TLS with the key in the TPM, for rumqttc or
    /// whatever else takes rustls.
    ///
    /// Each handshake makes the TPM sign, in the thread that polls the connection; a chip takes up
    /// to some hundred milliseconds for it.
    ///
    /// # Errors
    /// [`Error::NotProvisioned`] if this device has to be provisioned first, [`Error::Usage`] if it
    /// has a shared key instead, [`Error::Expired`] if the certificate has ended.
    pub fn mqtt_tls_config(&self) -> Result<ClientConfig, Error> {
        let (key, certificate) = self.identity()?;
        self.mutual_tls(&key, certificate.chain)
    }

    pub(super) fn identity(&self) -> Result<(IdentityKey, DeviceCertificate), Error> {
        let grant = match self.state.memory()?.in_use {
            Some(Grant::Certificate(grant)) => grant,
            Some(Grant::SharedKey(_)) => {
                let reason = "this device has a shared key and no certificate: use a token, or \
                              run `assay-device provision` with another --flow";
                return Err(Error::Usage(reason.into()));
            }
            None => {
                let reason = "this device has no certificate yet: run `assay-device provision`";
                return Err(Error::NotProvisioned(reason.into()));
            }
        };
        let (kind, handle) = (grant.record.ik, grant.record.ik_handle);
        let found = self
            .tpm
            .call("looking for the identity key", move |tpm| tpm.identity_key(kind, handle))?;
        let public = found.ok_or_else(|| {
            Error::Usage(format!(
                "the TPM no longer holds an identity key at {handle:#010x}: it was cleared, or it \
                 is another TPM; run `assay-device provision`"
            ))
        })?;
        let certificate = self
            .verify(&grant, &grant.record.shown.scope, &public.key)
            .map_err(|error| self.unusable(&error))?;
        Ok((IdentityKey { tpm: self.tpm.clone(), handle, kind, public: public.key }, certificate))
    }

    fn unusable(&self, error: &AnswerError) -> Error {
        let path = self.state.certificate_path();
        match *error {
            AnswerError::NotYetValid { clock, not_before }
                if is_more_than_a_day(clock, not_before) =>
            {
                clock::wrong(
                    clock,
                    &format!(
                        "the certificate in {} is valid from {}",
                        path.display(),
                        rfc3339(not_before)
                    ),
                )
            }
            AnswerError::Expired { clock, not_after } => {
                Error::Expired { path, not_after: rfc3339(not_after), clock: rfc3339(clock) }
            }
            _ => Error::State { path, reason: format!("{error}; run `assay-device provision`") },
        }
    }

    fn verify(
        &self,
        grant: &CertificateGrant,
        scope: &Scope,
        key: &PublicKey,
    ) -> Result<DeviceCertificate, AnswerError> {
        verify::device_certificate(
            grant.chain.clone(),
            &self.roots,
            key,
            scope,
            self.clock.at(&grant.chain),
        )
    }
}

fn bundle(
    device_id: Option<DeviceId>,
    ek: &EndorsementKey,
    ik_public: Vec<u8>,
    key: &IdentityKey,
) -> Result<Bundle, Error> {
    let csr = key.certificate_request(device_id.as_ref())?;
    Ok(Bundle {
        device_id,
        ek_public: ek.public_area().map_err(too_long)?,
        ek_certificates: ek.certificate_list().map_err(too_long)?,
        ik_public: ik_public.try_into().map_err(too_long)?,
        csr: csr.try_into().map_err(too_long)?,
        other_eks: ek.other_ids().map_err(too_long)?,
    })
}

//! How a provisioned device signs in: by its certificate, or by tokens of its HMAC key.

use std::sync::Arc;
use std::time::Duration;

use assay_device_core::{
    AnswerError, CertificateGrant, DeviceCertificate, Grant, HmacPublic, rfc3339,
};
use assay_mqtt::BrokerUrl;
use assay_wire::{ClientId, DeviceId, Scope, Topic};
use rustls::ClientConfig;
use rustls::pki_types::CertificateDer;

use super::Device;
use crate::broker_certificate;
use crate::error::Error;
use crate::key::IdentityKey;
use crate::publish;
use crate::times::is_more_than_a_day;
use crate::token::{self, DEFAULT_LIFETIME, Token};
use crate::tpm::PublicKey;
use crate::verify;

/// What a device shows at the operational listener.
pub(crate) struct SignIn {
    pub(crate) scope: Scope,
    pub(crate) device_id: DeviceId,
    /// With the device's certificate, if it has one.
    pub(crate) tls: ClientConfig,
    /// A token, if the device has a shared key.
    pub(crate) password: Option<String>,
    /// The serial number of the certificate.
    pub(crate) serial: Option<String>,
}

impl Device {
    /// Publishes one message, QoS 1, on a topic below `device/v1/{scope}/{device id}/`: over mutual
    /// TLS with the certificate, or over TLS with a fresh token of the shared key.
    ///
    /// Blocks, and runs an event loop of its own: call it from a thread, not from an async task.
    pub fn publish(
        &self,
        broker: &BrokerUrl,
        sub_topic: &str,
        message: Vec<u8>,
    ) -> Result<String, Error> {
        let SignIn { scope, device_id, tls, password, .. } =
            self.sign_in(broker, DEFAULT_LIFETIME)?;
        let topic = Topic::Device(scope, device_id.clone(), sub_topic.into());
        if Topic::parse(&topic.to_string()).as_ref() != Some(&topic) {
            return Err(Error::Usage(format!(
                "{sub_topic:?} is not a topic to publish to: it is empty, or it has + or # in it"
            )));
        }
        let client = ClientId::from(&device_id);
        publish::publish(broker, &Arc::new(tls), &topic, &client, password, message)?;
        Ok(topic.to_string())
    }

    /// What this device shows to sign in at a broker. A token is good for `lifetime`.
    pub(crate) fn sign_in(&self, broker: &BrokerUrl, lifetime: Duration) -> Result<SignIn, Error> {
        if !broker.is_tls() {
            return Err(Error::Usage(
                "a device signs in over TLS: the broker's URL must begin with mqtts://".into(),
            ));
        }
        self.clock.refuse_if_behind()?;
        match self.state.memory()?.in_use {
            Some(Grant::SharedKey(grant)) => {
                let Token { device_id, password, .. } = self.token(lifetime)?;
                let roots = self.roots.clone();
                let tls = broker_certificate::server_authenticated_tls(roots, self.clock.clone())?;
                let scope = grant.record.shown.scope;
                Ok(SignIn { scope, device_id, tls, password: Some(password), serial: None })
            }
            _ => {
                let (key, certificate) = self.identity()?;
                let tls = self.mutual_tls(&key, certificate.chain)?;
                let (scope, device_id) = (certificate.scope, certificate.device_id);
                Ok(SignIn {
                    scope,
                    device_id,
                    tls,
                    password: None,
                    serial: Some(certificate.serial),
                })
            }
        }
    }

    /// The stored certificate, verified against the CA's root and the key that the TPM holds now.
    ///
    /// # Errors
    /// [`Error::NotProvisioned`] if this device has to be provisioned first,
    /// [`Error::NoCertificate`] if it has a shared key instead, [`Error::Expired`] if the
    /// certificate has ended.
    pub fn certificate(&self) -> Result<DeviceCertificate, Error> {
        self.identity().map(|(_, certificate)| certificate)
    }

    /// Has the identity key sign, if the certificate is good. Returns how long the TPM took.
    pub(crate) fn test_signature(&self) -> Result<Duration, Error> {
        self.identity().and_then(|(key, _)| key.test_signature())
    }

    /// A TLS configuration for MQTT over mutual TLS with the key in the TPM, for rumqttc or any
    /// other client on rustls.
    ///
    /// Each handshake makes the TPM sign, in the thread that polls the connection. A chip needs up
    /// to some hundred milliseconds for it.
    ///
    /// # Errors
    /// [`Error::NotProvisioned`] if this device has to be provisioned first,
    /// [`Error::NoCertificate`] if it has a shared key instead, [`Error::Expired`] if the
    /// certificate has ended.
    pub fn mqtt_tls_config(&self) -> Result<ClientConfig, Error> {
        let (key, certificate) = self.identity()?;
        self.mutual_tls(&key, certificate.chain)
    }

    /// The key and the certificate that this device signs in with. If a renewed certificate cannot
    /// be used, that is the one before it.
    fn identity(&self) -> Result<(IdentityKey, DeviceCertificate), Error> {
        let mut first = None;
        for grant in self.state.memory()?.credentials() {
            let found = match grant {
                Grant::Certificate(grant) => self.identity_of(grant),
                Grant::SharedKey(_) => Err(Error::NoCertificate),
            };
            match found {
                Ok(found) => return Ok(found),
                Err(error) => first = first.or(Some(error)),
            }
        }
        let none = || Error::NotProvisioned("this device has no certificate yet".into());
        Err(first.unwrap_or_else(none))
    }

    fn identity_of(
        &self,
        grant: CertificateGrant,
    ) -> Result<(IdentityKey, DeviceCertificate), Error> {
        let (kind, handle) = (grant.record.ik, grant.record.ik_handle);
        let found = self
            .tpm
            .call("looking for the identity key", move |tpm| tpm.identity_key(kind, handle))?;
        let public = found.ok_or(Error::KeyGone { key: "an identity key", handle })?;
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
                let (path, from) = (path.display(), rfc3339(not_before));
                Error::wrong_clock(
                    clock,
                    &format!("the certificate in {path} is valid from {from}"),
                )
            }
            AnswerError::Expired { clock, not_after } => {
                Error::Expired { path, not_after: rfc3339(not_after), clock: rfc3339(clock) }
            }
            _ => Error::BrokenState { path, reason: error.to_string() },
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
            grant.renew_at,
            &self.roots,
            key,
            scope,
            self.clock.at(&grant.chain),
        )
    }

    /// A token with which any MQTT client signs in as this device for a while.
    ///
    /// `lifetime` counts in whole seconds, from this device's clock; a CA takes
    /// [`Token::MAX_LIFETIME`] at most.
    ///
    /// # Errors
    /// [`Error::NoSharedKey`] if this device has none, [`Error::KeyGone`] if the TPM no longer
    /// holds it, [`Error::Usage`] if the lifetime is too long.
    pub fn token(&self, lifetime: Duration) -> Result<Token, Error> {
        if lifetime > Token::MAX_LIFETIME {
            let limit = Token::MAX_LIFETIME.as_secs();
            return Err(Error::Usage(format!("a token is valid for {limit} s at most")));
        }
        let Some(Grant::SharedKey(grant)) = self.state.memory()?.in_use else {
            return Err(Error::NoSharedKey);
        };
        let handle = grant.record.hmac_handle;
        let found = self.tpm.call("looking for the HMAC key", move |tpm| tpm.hmac_key(handle))?;
        let found = found.map(HmacPublic);
        if found.is_none() || grant.record.keys.as_slice() != found.as_slice() {
            return Err(Error::KeyGone { key: "this device's HMAC key", handle });
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

    fn mutual_tls(
        &self,
        key: &IdentityKey,
        chain: Vec<CertificateDer<'static>>,
    ) -> Result<ClientConfig, Error> {
        let mut config = key.tls_config(self.roots.clone(), chain)?;
        broker_certificate::judge_by(&mut config, self.roots.clone(), self.clock.clone())?;
        Ok(config)
    }
}

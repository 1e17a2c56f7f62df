//! How a provisioned device signs in.

use std::sync::Arc;
use std::time::Duration;

use assay_device_core::{DeviceCertificate, Verdict};
use assay_mqtt::BrokerUrl;
use assay_wire::{Scope, Topic};
use rustls::ClientConfig;

use super::{Device, ProvisionRequest};
use crate::credentials::{Credentials, SignIn};
use crate::dial::refuse_plain;
use crate::error::Error;
use crate::publish;
use crate::token::{DEFAULT_LIFETIME, Token};

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
        let SignIn { scope, device_id, tls, password, key, .. } =
            self.sign_in(broker, DEFAULT_LIFETIME)?;
        let topic = Topic::Device(scope.clone(), device_id.clone(), sub_topic.into());
        if Topic::parse(&topic.to_string()).as_ref() != Some(&topic) {
            return Err(Error::Usage(format!(
                "{sub_topic:?} is not a topic to publish to: it is empty, or it has + or # in it"
            )));
        }
        publish::publish(broker, &Arc::new(tls), &topic, &device_id, password, message)
            .inspect_err(|error| {
                if matches!(error, Error::LoginRefused { .. }) {
                    // If this is not remembered, `provision --again` helps all the same.
                    _ = self.login_was_refused();
                }
            })?;
        if key.is_some() && key == self.key_to_prove()? {
            // If this fails, the next one that is let in does it.
            _ = self.settle(Verdict::Accepted, &settling(broker, scope), &mut |_, _| ());
        }
        Ok(topic.to_string())
    }

    /// Has the next [`provision`](Self::provision) ask the CA, although the credential looks good:
    /// a broker refused it. The CA may have been restored from a backup that does not know it.
    ///
    /// [`publish`](Self::publish) calls this itself.
    pub fn login_was_refused(&self) -> Result<(), Error> {
        self.state.set_refused(true)
    }

    /// What this device shows to sign in at a broker. A token is good for `lifetime`.
    pub(crate) fn sign_in(&self, broker: &BrokerUrl, lifetime: Duration) -> Result<SignIn, Error> {
        refuse_plain(broker)?;
        self.credentials().sign_in(lifetime)
    }

    /// The stored certificate, verified against the CA's root and the key that the TPM holds now.
    ///
    /// # Errors
    /// [`Error::NotProvisioned`] if this device has to be provisioned first,
    /// [`Error::NoCertificate`] if it has a shared key instead, [`Error::Expired`] if the
    /// certificate has ended.
    pub fn certificate(&self) -> Result<DeviceCertificate, Error> {
        self.credentials().identity().map(|(_, certificate)| certificate)
    }

    /// Has the identity key sign, if the certificate is good. Returns how long the TPM took.
    pub(crate) fn test_signature(&self) -> Result<Duration, Error> {
        self.credentials().identity().and_then(|(key, _)| key.test_signature())
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
        let (key, certificate) = self.credentials().identity()?;
        self.credentials().mutual_tls(&key, certificate.chain)
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
        self.credentials().token(lifetime)
    }

    fn credentials(&self) -> Credentials<'_> {
        let Self { tpm, state, roots, clock } = self;
        Credentials { tpm, state: state.path(), roots, clock }
    }
}

/// A run that asks nobody.
fn settling(broker: &BrokerUrl, scope: Scope) -> ProvisionRequest {
    ProvisionRequest {
        broker: broker.clone(),
        scope,
        flow: None,
        ek: None,
        ek_certificates: Vec::new(),
        ik: None,
        ik_handle: None,
        parent: None,
        hmac_handle: None,
        device_id: None,
        again: false,
        deadline: Duration::ZERO,
    }
}

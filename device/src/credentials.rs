//! What a provisioned device signs in with: its certificate, or tokens of its HMAC key.

use std::path::Path;
use std::time::Duration;

use assay_device_core::{
    AnswerError, CertificateGrant, DeviceCertificate, Grant, HmacPublic, HmacRecord,
    SharedKeyGrant, rfc3339,
};
use assay_wire::{DeviceId, Scope};
use rustls::pki_types::CertificateDer;
use rustls::{ClientConfig, RootCertStore};

use crate::broker_certificate;
use crate::clock::Clock;
use crate::error::Error;
use crate::key::IdentityKey;
use crate::roots;
use crate::state;
use crate::times::is_more_than_a_day;
use crate::token::{self, Token};
use crate::tpm::{PublicKey, TpmThread};
use crate::verify;

/// The credentials in a state directory, and the TPM that has their keys. Whoever reads them needs
/// no lock, because the files are replaced as wholes.
pub(crate) struct Credentials<'a> {
    pub(crate) tpm: &'a TpmThread,
    pub(crate) state: &'a Path,
    /// Those that the device was given.
    pub(crate) roots: &'a [CertificateDer<'static>],
    pub(crate) clock: &'a Clock,
}

/// What one connection to the operational listener needs.
pub(crate) struct SignIn {
    pub(crate) scope: Scope,
    pub(crate) device_id: DeviceId,
    /// Shows the certificate, if the device has one.
    pub(crate) tls: ClientConfig,
    /// A fresh token, if the device has an HMAC key instead.
    pub(crate) password: Option<String>,
    /// The HMAC key that signed the token.
    pub(crate) key: Option<HmacPublic>,
    /// The serial number of the certificate.
    pub(crate) serial: Option<String>,
}

impl Credentials<'_> {
    /// What the next connection signs in with. A token is good for `lifetime`.
    pub(crate) fn sign_in(&self, lifetime: Duration) -> Result<SignIn, Error> {
        self.clock.refuse_if_behind()?;
        if let Some(Grant::SharedKey(_)) = self.memory()?.credentials().next() {
            let (HmacRecord { shown, keys, .. }, token) = self.token_of_key(lifetime)?;
            let Token { device_id, password, .. } = token;
            let (roots, clock) = (self.trusted()?, self.clock.clone());
            let tls = broker_certificate::server_authenticated_tls(roots, clock)?;
            let (scope, key) = (shown.scope, keys.into_iter().next());
            let password = Some(password);
            return Ok(SignIn { scope, device_id, tls, password, key, serial: None });
        }
        let (key, certificate) = self.identity()?;
        let DeviceCertificate { scope, device_id, chain, serial, .. } = certificate;
        let tls = self.mutual_tls(&key, chain)?;
        Ok(SignIn { scope, device_id, tls, password: None, key: None, serial: Some(serial) })
    }

    /// The key and the certificate that this device signs in with. If a renewed certificate cannot
    /// be used, that is the one before it.
    pub(crate) fn identity(&self) -> Result<(IdentityKey, DeviceCertificate), Error> {
        let mut first = None;
        for grant in self.memory()?.credentials() {
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

    fn trusted(&self) -> Result<RootCertStore, Error> {
        roots::trusted(self.roots, self.state)
    }

    fn memory(&self) -> Result<assay_device_core::Memory, Error> {
        state::memory(self.state)
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
        let roots = self.trusted()?;
        let certificate = self
            .verify(&grant, &roots, &grant.record.shown.scope, &public.key)
            .map_err(|error| self.unusable(&error))?;
        Ok((IdentityKey { tpm: self.tpm.clone(), handle, kind, public: public.key }, certificate))
    }

    fn unusable(&self, error: &AnswerError) -> Error {
        let path = state::certificate_path(self.state);
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
        roots: &RootCertStore,
        scope: &Scope,
        key: &PublicKey,
    ) -> Result<DeviceCertificate, AnswerError> {
        verify::device_certificate(
            grant.chain.clone(),
            grant.renew_at,
            roots,
            key,
            scope,
            self.clock.at(&grant.chain),
        )
    }

    /// A token that is valid for a while.
    pub(crate) fn token(&self, lifetime: Duration) -> Result<Token, Error> {
        self.token_of_key(lifetime).map(|(_, token)| token)
    }

    /// A token, and the key that signed it. If the next key cannot be used, that is the one before
    /// it.
    fn token_of_key(&self, lifetime: Duration) -> Result<(HmacRecord, Token), Error> {
        if lifetime > Token::MAX_LIFETIME {
            let limit = Token::MAX_LIFETIME.as_secs();
            return Err(Error::Usage(format!("a token is valid for {limit} s at most")));
        }
        let mut first = None;
        for grant in self.memory()?.credentials() {
            let Grant::SharedKey(grant) = grant else { continue };
            match self.token_of(&grant, lifetime) {
                Ok(token) => return Ok((grant.record, token)),
                Err(error) => first = first.or(Some(error)),
            }
        }
        Err(first.unwrap_or(Error::NoSharedKey))
    }

    fn token_of(&self, grant: &SharedKeyGrant, lifetime: Duration) -> Result<Token, Error> {
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
            token::expiry(self.clock, lifetime),
            hmac,
        )
    }

    pub(crate) fn mutual_tls(
        &self,
        key: &IdentityKey,
        chain: Vec<CertificateDer<'static>>,
    ) -> Result<ClientConfig, Error> {
        let roots = self.trusted()?;
        let mut config = key.tls_config(roots.clone(), chain)?;
        broker_certificate::judge_by(&mut config, roots, self.clock.clone())?;
        Ok(config)
    }
}

//! Signed device certificates: those that may be sent, and those that may leave only sealed.

use std::fmt;
use std::marker::PhantomData;

use assay_wire::{CertificateList, CertificateReply};
use rand_core::CryptoRng;
use sha2::{Digest, Sha256};

use super::issuer::Issuer;
use super::prepare::{CertificateFacts, Prepared, Proven, Renewed, Unproven};
use crate::Fault;
use crate::flows::mac::TicketKey;
use crate::flows::sealed::{EncryptedCertificate, Waits};

/// A signed device certificate.
///
/// Outside of this crate, only the stored form of an [`Unproven`] one can be read. It becomes part
/// of a reply only by [`Sealing`](crate::Sealing):
///
/// ```compile_fail,E0599
/// # use assay_ca_core::{Issued, Issuer, Unproven};
/// fn in_clear(certificate: &Issued<Unproven>, issuer: &Issuer) {
///     certificate.reply(issuer);
/// }
/// ```
pub struct Issued<P> {
    facts: CertificateFacts,
    der: Vec<u8>,
    stored: Vec<u8>,
    renew_at: Option<u64>,
    proof: PhantomData<P>,
}

impl Issued<Proven> {
    /// Signs a certificate. This may be slow if the key is in hardware.
    pub fn sign(prepared: Prepared<Proven>, issuer: &Issuer) -> Result<Self, Fault> {
        let renew_at = Some(prepared.renew_at());
        let (facts, der) = prepared.sign(issuer)?;
        Ok(Self { renew_at, ..Self::new(facts, der) })
    }

    fn new(facts: CertificateFacts, der: Vec<u8>) -> Self {
        Self { facts, stored: der.clone(), der, renew_at: None, proof: PhantomData }
    }

    #[cfg(feature = "unchecked")]
    pub(crate) fn unchecked(facts: CertificateFacts, der: Vec<u8>) -> Self {
        Self::new(facts, der)
    }

    /// The certificate in DER.
    pub fn der(&self) -> &[u8] {
        &self.der
    }

    /// The reply to the device. Send it once the certificate is on record.
    pub fn reply(&self, issuer: &Issuer) -> Result<CertificateReply, Fault> {
        Ok(CertificateReply {
            chain: issuer.chain(&self.der)?,
            renew_at: self.renew_at,
            configuration: None,
        })
    }
}

impl Issued<Renewed> {
    /// Signs a certificate, and encrypts it for as long as it waits, as one that was renewed.
    pub fn sign(
        prepared: Prepared<Renewed>,
        issuer: &Issuer,
        key: &TicketKey,
        rng: &mut dyn CryptoRng,
    ) -> Result<Self, Fault> {
        Self::waiting(prepared, Waits::Renewed, issuer, key, rng)
    }

    #[cfg(feature = "unchecked")]
    pub(crate) fn unchecked(
        facts: CertificateFacts,
        der: Vec<u8>,
        key: &TicketKey,
        rng: &mut dyn CryptoRng,
    ) -> Result<Self, Fault> {
        Self::encrypted_as(Waits::Renewed, facts, der, key, rng)
    }

    /// The certificate in DER.
    pub fn der(&self) -> &[u8] {
        &self.der
    }

    /// The reply to the device. Send it once the certificate is on record.
    pub fn reply(&self, issuer: &Issuer) -> Result<CertificateReply, Fault> {
        Ok(CertificateReply {
            chain: issuer.chain(&self.der)?,
            renew_at: self.renew_at,
            configuration: None,
        })
    }
}

impl Issued<Unproven> {
    /// Signs a certificate, and encrypts it for as long as it waits for its confirmation, so that
    /// nobody who reads the store can read it.
    pub fn sign(
        prepared: Prepared<Unproven>,
        issuer: &Issuer,
        key: &TicketKey,
        rng: &mut dyn CryptoRng,
    ) -> Result<Self, Fault> {
        Self::waiting(prepared, Waits::Sealed, issuer, key, rng)
    }

    #[cfg(feature = "unchecked")]
    pub(crate) fn unchecked(
        facts: CertificateFacts,
        der: Vec<u8>,
        key: &TicketKey,
        rng: &mut dyn CryptoRng,
    ) -> Result<Self, Fault> {
        Self::encrypted_as(Waits::Sealed, facts, der, key, rng)
    }

    pub(crate) fn chain(&self, issuer: &Issuer) -> Result<CertificateList<1>, Fault> {
        issuer.chain(&self.der)
    }
}

impl<P> Issued<P> {
    fn waiting(
        prepared: Prepared<P>,
        waits: Waits,
        issuer: &Issuer,
        key: &TicketKey,
        rng: &mut dyn CryptoRng,
    ) -> Result<Self, Fault> {
        let renew_at = Some(prepared.renew_at());
        let (facts, der) = prepared.sign(issuer)?;
        Ok(Self { renew_at, ..Self::encrypted_as(waits, facts, der, key, rng)? })
    }

    fn encrypted_as(
        waits: Waits,
        facts: CertificateFacts,
        der: Vec<u8>,
        key: &TicketKey,
        rng: &mut dyn CryptoRng,
    ) -> Result<Self, Fault> {
        let stored = key.encrypt(&der, &facts.serial, waits, rng)?.as_bytes().to_vec();
        Ok(Self { facts, der, stored, renew_at: None, proof: PhantomData })
    }

    /// When the device is to renew it, in seconds since 1970.
    pub(crate) fn renew_at(&self) -> Option<u64> {
        self.renew_at
    }

    /// What a store keeps besides the certificate.
    pub fn facts(&self) -> &CertificateFacts {
        &self.facts
    }

    /// The bytes that a store keeps: the certificate in DER, encrypted if it waits.
    pub fn stored(&self) -> &[u8] {
        &self.stored
    }

    /// The same, if the certificate waits.
    pub fn encrypted(&self) -> EncryptedCertificate {
        EncryptedCertificate::new(self.stored.clone())
    }

    /// SHA-256 of the certificate.
    pub fn sha256(&self) -> [u8; 32] {
        Sha256::digest(&self.der).into()
    }
}

impl<P> fmt::Debug for Issued<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Issued").field("facts", &self.facts).finish_non_exhaustive()
    }
}

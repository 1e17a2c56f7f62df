//! Signed device certificates: those that may be sent, and those that may leave only sealed.

use std::fmt;
use std::marker::PhantomData;

use assay_wire::{CertificateList, CertificateReply};
use rand_core::CryptoRng;
use sha2::{Digest, Sha256};

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
/// # use assay_ca_core::{Issued, Unproven};
/// fn in_clear(certificate: &Issued<Unproven>) {
///     certificate.reply();
/// }
/// ```
pub struct Issued<P> {
    facts: CertificateFacts,
    /// The certificate, followed by that of the issuer that signed it.
    chain: CertificateList<1>,
    stored: Vec<u8>,
    renew_at: Option<u64>,
    proof: PhantomData<P>,
}

impl Issued<Proven> {
    /// Signs a certificate. This may be slow if the key is in hardware.
    pub fn sign(prepared: Prepared<Proven>) -> Result<Self, Fault> {
        let renew_at = Some(prepared.renew_at());
        let (facts, chain) = prepared.sign()?;
        Ok(Self { renew_at, ..Self::new(facts, chain) })
    }

    fn new(facts: CertificateFacts, chain: CertificateList<1>) -> Self {
        let stored = chain[0].to_vec();
        Self { facts, chain, stored, renew_at: None, proof: PhantomData }
    }

    #[cfg(feature = "unchecked")]
    pub(crate) fn unchecked(facts: CertificateFacts, der: Vec<u8>) -> Self {
        Self::new(facts, alone(der))
    }

    /// The certificate in DER.
    pub fn der(&self) -> &[u8] {
        &self.chain[0]
    }

    /// The reply to the device. Send it once the certificate is on record.
    pub fn reply(&self) -> CertificateReply {
        self.in_clear()
    }
}

impl Issued<Renewed> {
    /// Signs a certificate, and encrypts it for as long as it waits, as one that was renewed.
    pub fn sign(
        prepared: Prepared<Renewed>,
        key: &TicketKey,
        rng: &mut dyn CryptoRng,
    ) -> Result<Self, Fault> {
        Self::waiting(prepared, Waits::Renewed, key, rng)
    }

    #[cfg(feature = "unchecked")]
    pub(crate) fn unchecked(
        facts: CertificateFacts,
        der: Vec<u8>,
        key: &TicketKey,
        rng: &mut dyn CryptoRng,
    ) -> Result<Self, Fault> {
        Self::encrypted_as(Waits::Renewed, facts, alone(der), key, rng)
    }

    /// The certificate in DER.
    pub fn der(&self) -> &[u8] {
        &self.chain[0]
    }

    /// The reply to the device. Send it once the certificate is on record.
    pub fn reply(&self) -> CertificateReply {
        self.in_clear()
    }
}

impl Issued<Unproven> {
    /// Signs a certificate, and encrypts it for as long as it waits for its confirmation, so that
    /// nobody who reads the store can read it.
    pub fn sign(
        prepared: Prepared<Unproven>,
        key: &TicketKey,
        rng: &mut dyn CryptoRng,
    ) -> Result<Self, Fault> {
        Self::waiting(prepared, Waits::Sealed, key, rng)
    }

    #[cfg(feature = "unchecked")]
    pub(crate) fn unchecked(
        facts: CertificateFacts,
        der: Vec<u8>,
        key: &TicketKey,
        rng: &mut dyn CryptoRng,
    ) -> Result<Self, Fault> {
        Self::encrypted_as(Waits::Sealed, facts, alone(der), key, rng)
    }

    pub(crate) fn chain(&self) -> &CertificateList<1> {
        &self.chain
    }
}

impl<P> Issued<P> {
    /// The reply with the certificate, for those that need not be sealed.
    fn in_clear(&self) -> CertificateReply {
        let (chain, renew_at) = (self.chain.clone(), self.renew_at);
        CertificateReply { chain, renew_at, configuration: None, new_root: None }
    }

    fn waiting(
        prepared: Prepared<P>,
        waits: Waits,
        key: &TicketKey,
        rng: &mut dyn CryptoRng,
    ) -> Result<Self, Fault> {
        let renew_at = Some(prepared.renew_at());
        let (facts, chain) = prepared.sign()?;
        Ok(Self { renew_at, ..Self::encrypted_as(waits, facts, chain, key, rng)? })
    }

    fn encrypted_as(
        waits: Waits,
        facts: CertificateFacts,
        chain: CertificateList<1>,
        key: &TicketKey,
        rng: &mut dyn CryptoRng,
    ) -> Result<Self, Fault> {
        let stored = key.encrypt(&chain[0], &facts.serial, waits, rng)?.as_bytes().to_vec();
        Ok(Self { facts, chain, stored, renew_at: None, proof: PhantomData })
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
        Sha256::digest(&*self.chain[0]).into()
    }
}

impl<P> fmt::Debug for Issued<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Issued").field("facts", &self.facts).finish_non_exhaustive()
    }
}

/// A certificate that no issuer of ours signed.
#[cfg(feature = "unchecked")]
fn alone(der: Vec<u8>) -> CertificateList<1> {
    let der = assay_wire::CertificateDer::try_from(der).expect("a test's certificate is short");
    vec![der].try_into().expect("one certificate")
}

//! The confirmation: proof that a device could read its sealed certificate.

use assay_wire::{EkId, Proof, Receipt, Scope};
use time::OffsetDateTime;

use super::claim::{CONFIRMATION_LABEL, Claim, RECEIPT_LABEL};
use super::waiting::Unconfirmed;
use crate::Rejection;
use crate::flows::mac::{Checked, TicketKey};
use crate::secret::Overlapping;

/// A device that could read its sealed certificate: the EK and the IK are in one TPM, and it has
/// that TPM.
///
/// Does not establish that the certificate may become active: see [`Confirmed`](crate::Confirmed).
#[derive(Clone, Debug)]
pub struct Confirmation {
    claim: Claim,
    receipt: Receipt,
}

impl Confirmation {
    /// Checks a claim and its ticket. Nobody but the device has seen the ticket, because it was
    /// only in the box.
    pub fn verify(
        request: &Proof,
        scope: &Scope,
        keys: &Overlapping<TicketKey>,
        now: OffsetDateTime,
    ) -> Result<Self, Rejection> {
        let claim: Claim =
            minicbor::decode(&request.claim).map_err(|_| Rejection::ClaimUnreadable)?;
        let Checked { key, .. } =
            claim.terms().check(request, CONFIRMATION_LABEL, scope, keys, now)?;
        // The device compares the receipt with a digest that was made with the claim.
        Ok(Self { claim, receipt: Receipt::from(*key.mac(RECEIPT_LABEL, &request.claim)) })
    }

    /// The EK's id.
    pub fn ek_id(&self) -> EkId {
        self.claim.ek_id
    }

    /// SHA-256 of the certificate that it confirms.
    pub fn certificate_sha256(&self) -> &[u8; 32] {
        &self.claim.certificate
    }

    /// The receipt. It tells the device that the certificate is active, and that the CA said so.
    pub(crate) fn into_receipt(self) -> Receipt {
        self.receipt
    }

    /// Why there is nothing to confirm: the certificate was superseded or revoked meanwhile.
    pub(crate) fn outdated(&self) -> Rejection {
        match OffsetDateTime::from_unix_timestamp(self.claim.issued_at) {
            Ok(issued_at) => Rejection::CertificateEnded { issued_at },
            Err(_) => Rejection::ClaimUnreadable,
        }
    }
}

/// A certificate that waits for its confirmation, and that its device has.
///
/// Before the confirmation, a sealed certificate leaves the CA only in the box, and the record
/// keeps it encrypted. So a client that knows its bytes, and has its key, had the TPM that could
/// open the box. This rests on a signature of the issuing CA that nobody can foresee.
///
/// A renewed certificate is no secret. Its device proved before that its EK and its IK are in one
/// TPM, so the IK is enough: in a TLS handshake, or for an [adoption](Self::by_adoption).
#[derive(Clone, Debug)]
pub struct Shown(Unconfirmed);

impl Shown {
    /// Joins a confirmation to the certificate that it confirms.
    ///
    /// # Errors
    /// The confirmation is for another certificate.
    pub fn by_confirmation(
        certificate: Unconfirmed,
        confirmation: &Confirmation,
    ) -> Result<Self, Rejection> {
        let confirmed = (confirmation.ek_id(), *confirmation.certificate_sha256());
        if confirmed != (certificate.ek_id, certificate.sha256) {
            return Err(confirmation.outdated());
        }
        Ok(Self(certificate))
    }

    /// The device has shown a certificate with this SHA-256 digest in a TLS handshake.
    ///
    /// The caller must have computed the digest of the certificate that TLS received: the digest
    /// alone is no secret, because the claim has it. TLS must have established that the client has
    /// the certificate's key, by its CertificateVerify (RFC 8446 §4.4.3, RFC 5246 §7.4.8).
    ///
    /// # Errors
    /// It is another certificate.
    pub fn by_handshake(certificate: Unconfirmed, sha256: &[u8; 32]) -> Result<Self, Rejection> {
        if *sha256 != certificate.sha256 {
            return Err(certificate.outdated());
        }
        Ok(Self(certificate))
    }

    pub(crate) fn of(certificate: Unconfirmed) -> Self {
        Self(certificate)
    }

    pub(super) fn into_certificate(self) -> Unconfirmed {
        self.0
    }
}

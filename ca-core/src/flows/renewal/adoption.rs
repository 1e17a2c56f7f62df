//! The adoption of a renewed certificate: what *certConf* is in CMP (RFC 4210 §5.3.18, as RFC 9480
//! updates it).

use assay_wire::{Adoption, EkId, Scope};
use sha2::{Digest, Sha256};
use time::OffsetDateTime;

use super::statement::Statement;
use crate::Rejection;
use crate::flows::mac::TicketKey;
use crate::flows::sealed::{Shown, Unconfirmed, Waits};
use crate::key::PublicKey;
use crate::secret::Overlapping;

/// An adoption that was made now, as far as its time says.
///
/// The sender chose everything in it.
#[derive(Clone, Debug)]
pub struct AdoptionEvidence {
    ek_id: EkId,
    statement: Statement,
}

impl AdoptionEvidence {
    /// Compares the device's clock with the CA's.
    pub fn parse(adoption: Adoption, now: OffsetDateTime) -> Result<Self, Rejection> {
        let Adoption { certificate, time, signature, ek_id } = adoption;
        let statement = Statement::read(certificate, time, signature.into_vec(), now)?;
        Ok(Self { ek_id, statement })
    }

    /// The EK among whose certificates the adopted one should be.
    pub fn ek_id(&self) -> EkId {
        self.ek_id
    }

    /// SHA-256 of the certificate that it adopts.
    pub fn certificate_sha256(&self) -> &[u8; 32] {
        &self.statement.certificate
    }

    /// Why there is nothing to adopt.
    pub(crate) fn nothing_to_adopt(&self) -> Rejection {
        let certificate = crate::hex(&self.statement.certificate);
        Rejection::NothingToAdopt { ek: self.ek_id, certificate }
    }
}

/// A device that has a certificate and the IK that it is for, and says so now.
#[derive(Clone, Debug)]
pub struct AdoptionProof(());

impl AdoptionProof {
    /// Checks that the adoption is of this certificate, and that the certificate's IK signed it:
    /// for this certificate, in this scope, and now.
    pub fn verify(
        evidence: &AdoptionEvidence,
        der: &[u8],
        scope: &Scope,
    ) -> Result<Self, Rejection> {
        let AdoptionEvidence { statement, .. } = evidence;
        let ik = PublicKey::from_certificate(der).map_err(|_| evidence.nothing_to_adopt())?;
        if Sha256::digest(der)[..] != statement.certificate {
            return Err(evidence.nothing_to_adopt());
        }
        let message = Adoption::signed(scope, &statement.certificate, statement.time);
        statement.signed(&message, &ik)?;
        Ok(Self(()))
    }
}

impl Shown {
    /// The device adopts a renewed certificate.
    ///
    /// A sealed certificate is never adopted. Its digest is in its claim, which travels in clear,
    /// so somebody could sign an adoption who could not open the box: with an IK in software.
    ///
    /// # Errors
    /// It is a sealed certificate or another one, or its IK did not sign the adoption.
    pub fn by_adoption(
        certificate: Unconfirmed,
        evidence: &AdoptionEvidence,
        scope: &Scope,
        keys: &Overlapping<TicketKey>,
    ) -> Result<Self, Rejection> {
        let der = keys
            .decrypt(&certificate.encrypted, &certificate.serial, Waits::Renewed)
            .ok_or_else(|| evidence.nothing_to_adopt())?;
        let AdoptionProof(()) = AdoptionProof::verify(evidence, &der, scope)?;
        Ok(Self::of(certificate))
    }
}

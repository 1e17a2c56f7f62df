//! The box that only one TPM can open.

use assay_wire::{
    Bytes, CertificateList, MAX_SEALED, MAX_SIGNED_CONFIGURATION, SealedCertificate, SealedReply,
    Ticket,
};
use rand_core::CryptoRng;
use sha2::{Digest, Sha256};
use time::OffsetDateTime;
use zeroize::Zeroizing;

use super::candidate::Candidate;
use super::claim::{CONFIRMATION_LABEL, Claim, RECEIPT_LABEL};
use super::encryption::{SEALING_KEY_LEN, SEALING_OVERHEAD, encrypt};
use crate::Fault;
use crate::flows::mac::{Terms, TicketKey};
use crate::rejection::fitting;
use crate::tpm::credential::make_credential;

/// A certificate in the form in which it may leave the CA before any proof.
pub(crate) struct SealedBox(SealedReply);

impl SealedBox {
    /// Encrypts a chain to the TPM that has the EK and the IK. The box also has what the device
    /// needs to confirm, until `confirm_by`.
    ///
    /// The key is fresh and travels as the secret of a credential (TPM 2.0 Part 1, 24) for the Name
    /// of the IK. The box opens only with its claim, for this EK and this IK (SP 800-38D,
    /// associated data).
    #[expect(clippy::too_many_arguments, reason = "each is one part of the box")]
    pub(crate) fn new(
        candidate: &Candidate,
        chain: CertificateList<1>,
        renew_at: Option<u64>,
        configuration: Option<Bytes<MAX_SIGNED_CONFIGURATION>>,
        confirm_by: OffsetDateTime,
        key: &TicketKey,
        now: OffsetDateTime,
        rng: &mut dyn CryptoRng,
    ) -> Result<Self, Fault> {
        let subject = &candidate.subject;
        let Terms { scope, key_id, issued_at, expires_at } =
            key.terms(&subject.scope, now, confirm_by);
        let certificate = Sha256::digest(&*chain[0]).into();
        let ek_id = subject.ek_id;
        let claim = Claim { scope, ek_id, certificate, key_id, issued_at, expires_at };
        let claim = minicbor::to_vec(claim).expect("writing to memory does not fail");
        let ticket = Ticket::from(*key.mac(CONFIRMATION_LABEL, &claim));
        let receipt_sha256 = Sha256::digest(*key.mac(RECEIPT_LABEL, &claim)).into();
        let mut content =
            SealedCertificate { chain, ticket, receipt_sha256, renew_at, configuration };
        if content.encode().len() > MAX_SEALED - SEALING_OVERHEAD {
            // The device asks for it when it hears that there is one.
            content.configuration = None;
        }
        let content = Zeroizing::new(content.encode());

        let mut secret = Zeroizing::new([0; SEALING_KEY_LEN]);
        rng.fill_bytes(&mut *secret);
        let credential = make_credential(&candidate.ek_area, &candidate.ik_name, &*secret, rng)?;
        let data = SealedReply::associated_data(&claim, &ek_id, &subject.ik_id());
        Ok(Self(SealedReply {
            claim: fitting("the claim", claim)?,
            credential_blob: fitting("the credential blob", credential.id_object)?,
            encrypted_seed: fitting("the encrypted seed", credential.encrypted_seed)?,
            sealed: fitting("the sealed certificate", encrypt(&secret, &data, &content, rng)?)?,
        }))
    }

    /// The reply to the device.
    pub(crate) fn into_reply(self) -> SealedReply {
        self.0
    }
}

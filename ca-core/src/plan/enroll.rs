//! The sealed flow's first step: a certificate that counts once its device opened it.

use assay_wire::{CertificateList, DeviceId, SealedReply};
use rand_core::CryptoRng;
use time::OffsetDateTime;

use crate::flows::mac::TicketKey;
use crate::flows::sealed::{Candidate, SealedBox, Unconfirmed, may_be_confirmed};
use crate::issue::{Issued, Issuer, Prepared, Unproven};
use crate::profile::Profile;
use crate::records::{ActiveCertificate, Records};
use crate::{Failure, Fault};

/// A sealed certificate for a candidate.
#[derive(Debug)]
pub struct Sealing {
    candidate: Candidate,
    confirm_by: OffsetDateTime,
    content: Content,
}

#[derive(Debug)]
enum Content {
    /// The certificate that the device has in force, or one that waits for its confirmation.
    OnRecord(CertificateList<1>),
    New(Box<Prepared<Unproven>>),
}

impl Sealing {
    /// A candidate gets the certificate that it has for this IK: the one in force, or else one that
    /// waits for its confirmation, or else a new one.
    ///
    /// `active` is the EK's certificate in force, if it is for this IK and not expired. `waiting`
    /// are the certificates that were sealed to this EK for this IK, the newest first. One that
    /// waits under another ticket key can never be confirmed and is skipped.
    #[expect(clippy::too_many_arguments, reason = "each is one input of the decision")]
    pub fn plan(
        candidate: Candidate,
        records: &Records,
        active: Option<&ActiveCertificate>,
        waiting: &[Unconfirmed],
        key: &TicketKey,
        profile: &Profile,
        issuer: &Issuer,
        now: OffsetDateTime,
        rng: &mut dyn CryptoRng,
    ) -> Result<Self, Failure> {
        let confirm_by = now + profile.confirm_within();
        let active = active
            .filter(|active| active.ik_id == candidate.ik_id() && issuer.has_signed(&active.der));
        if let Some(active) = active {
            let content = Content::OnRecord(issuer.chain(&active.der)?);
            return Ok(Self { candidate, confirm_by, content });
        }
        for certificate in waiting {
            let fits = is_for(&candidate, certificate)
                && may_be_confirmed(certificate, records, now).is_ok();
            let der = key.decrypt(&certificate.encrypted, &certificate.serial);
            if let Some(der) = der.filter(|der| fits && issuer.has_signed(der)) {
                let content = Content::OnRecord(issuer.chain(&der)?);
                return Ok(Self { candidate, confirm_by: certificate.confirm_by, content });
            }
        }
        let prepared = Prepared::<Unproven>::new(&candidate, records, profile, issuer, now, rng)?;
        Ok(Self { candidate, confirm_by, content: Content::New(Box::new(prepared)) })
    }

    /// The device id that the EK would get.
    pub fn device_id(&self) -> &DeviceId {
        &self.candidate.subject.device_id
    }

    /// Signs a new certificate and makes the reply. Record the certificate before you send the
    /// reply.
    pub fn sign(
        self,
        issuer: &Issuer,
        key: &TicketKey,
        now: OffsetDateTime,
        rng: &mut dyn CryptoRng,
    ) -> Result<(SealedReply, Option<Issued<Unproven>>), Fault> {
        let Self { candidate, confirm_by, content } = self;
        let (chain, issued) = match content {
            Content::OnRecord(chain) => (chain, None),
            Content::New(prepared) => {
                let issued = Issued::<Unproven>::sign(*prepared, issuer, key, rng)?;
                (issued.chain(issuer)?, Some(issued))
            }
        };
        let sealed = SealedBox::new(&candidate, chain, confirm_by, key, now, rng)?;
        Ok((sealed.into_reply(), issued))
    }
}

/// Whether a certificate that waits is for the same subject as a new one.
fn is_for(candidate: &Candidate, waiting: &Unconfirmed) -> bool {
    let subject = &candidate.subject;
    (waiting.ek_id, &waiting.device_id, waiting.assurance, waiting.ik_id)
        == (subject.ek_id, &subject.device_id, subject.assurance, subject.ik_id())
}

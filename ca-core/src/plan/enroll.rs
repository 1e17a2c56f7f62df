//! The sealed flow's first step: a certificate that counts once its device opened it.

use assay_wire::{Bytes, CertificateList, DeviceId, MAX_SIGNED_CONFIGURATION, SealedReply};
use rand_core::CryptoRng;
use time::OffsetDateTime;

use crate::flows::mac::TicketKey;
use crate::flows::sealed::{Candidate, SealedBox, Unconfirmed, Waits, may_be_confirmed};
use crate::issue::{Issued, Issuer, Issuers, Prepared, Term, Unproven};
use crate::profile::Profile;
use crate::records::{ActiveCertificate, Records};
use crate::secret::Overlapping;
use crate::{Failure, Fault};

/// A sealed certificate for a candidate.
#[derive(Debug)]
pub struct Sealing {
    candidate: Candidate,
    confirm_by: OffsetDateTime,
    content: Content,
    configuration: Option<Bytes<MAX_SIGNED_CONFIGURATION>>,
}

#[derive(Debug)]
enum Content {
    /// The certificate that the device has in force, or one that waits for its confirmation; and
    /// when to renew it.
    OnRecord(CertificateList<1>, Option<u64>),
    New(Box<Prepared<Unproven>>),
}

impl Content {
    fn on_record(der: &[u8], profile: &Profile, issuer: &Issuer) -> Result<Self, Fault> {
        let renew_at = Term::of(der).map(|term| term.renew_at(profile));
        Ok(Self::OnRecord(issuer.chain(der)?, renew_at))
    }
}

impl Sealing {
    /// A candidate gets the certificate that it has for this IK: the one in force, or else one that
    /// waits for its confirmation, or else a new one.
    ///
    /// `active` is the EK's certificate in force, if it is for this IK and not expired. `waiting`
    /// are the certificates that were sealed to this EK for this IK, the newest first. One that
    /// waits under another ticket key can never be confirmed and is skipped, and so is a renewed
    /// one.
    #[expect(clippy::too_many_arguments, reason = "each is one input of the decision")]
    pub fn plan(
        candidate: Candidate,
        records: &Records,
        active: Option<&ActiveCertificate>,
        waiting: &[Unconfirmed],
        keys: &Overlapping<TicketKey>,
        profile: &Profile,
        issuers: &Issuers,
        now: OffsetDateTime,
        rng: &mut dyn CryptoRng,
    ) -> Result<Self, Failure> {
        let confirm_by = now + profile.confirm_within();
        let active = active.filter(|active| active.ik_id == candidate.ik_id());
        if let Some((active, issuer)) =
            active.and_then(|active| Some((active, issuers.of(&active.der)?)))
        {
            let content = Content::on_record(&active.der, profile, issuer)?;
            return Ok(Self { candidate, confirm_by, content, configuration: None });
        }
        for certificate in waiting {
            let fits = certificate.is_for(&candidate.subject)
                && may_be_confirmed(certificate, records, now).is_ok();
            let der = keys.decrypt(&certificate.encrypted, &certificate.serial, Waits::Sealed);
            if let Some(der) = der.filter(|_| fits)
                && let Some(issuer) = issuers.of(&der)
            {
                let content = Content::on_record(&der, profile, issuer)?;
                let confirm_by = certificate.confirm_by;
                return Ok(Self { candidate, confirm_by, content, configuration: None });
            }
        }
        let issuer = issuers.current(now);
        let prepared = Prepared::<Unproven>::new(&candidate, records, profile, issuer, now, rng)?;
        let content = Content::New(Box::new(prepared));
        Ok(Self { candidate, confirm_by, content, configuration: None })
    }

    /// The same with this configuration in the box, if there is room.
    #[must_use]
    pub fn with_configuration(
        self,
        configuration: Option<Bytes<MAX_SIGNED_CONFIGURATION>>,
    ) -> Self {
        Self { configuration, ..self }
    }

    /// The device id that the EK would get.
    pub fn device_id(&self) -> &DeviceId {
        &self.candidate.subject.device_id
    }

    /// Whether a key that is elsewhere has to sign, so that [`sign`](Self::sign) may take long.
    pub fn signs_elsewhere(&self) -> bool {
        matches!(&self.content, Content::New(prepared) if prepared.signs_elsewhere())
    }

    /// Signs a new certificate and makes the reply. Record the certificate before you send the
    /// reply.
    pub fn sign(
        self,
        key: &TicketKey,
        now: OffsetDateTime,
        rng: &mut dyn CryptoRng,
    ) -> Result<(SealedReply, Option<Issued<Unproven>>), Fault> {
        let Self { candidate, confirm_by, content, configuration } = self;
        let (chain, renew_at, issued) = match content {
            Content::OnRecord(chain, renew_at) => (chain, renew_at, None),
            Content::New(prepared) => {
                let issued = Issued::<Unproven>::sign(*prepared, key, rng)?;
                (issued.chain().clone(), issued.renew_at(), Some(issued))
            }
        };
        let sealed =
            SealedBox::new(&candidate, chain, renew_at, configuration, confirm_by, key, now, rng)?;
        Ok((sealed.into_reply(), issued))
    }
}

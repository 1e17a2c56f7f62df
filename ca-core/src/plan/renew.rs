//! Renewal: the next certificate for the same IK, which waits while the one in force stays good.

use assay_wire::{CertificateReply, DeviceId};
use rand_core::CryptoRng;
use time::OffsetDateTime;

use crate::flows::mac::TicketKey;
use crate::flows::renewal::RenewalProof;
use crate::flows::sealed::{Unconfirmed, Waits, may_be_confirmed};
use crate::issue::{Issued, Issuer, Issuers, Prepared, Renewed, Term};
use crate::profile::Profile;
use crate::records::{QUOTA, QUOTA_PERIOD, Records};
use crate::secret::Overlapping;
use crate::subject::Subject;
use crate::{Failure, Fault, Rejection};

/// What a device gets that has a certificate, and asks for the one that is to take its place.
#[derive(Debug)]
pub struct Renewing {
    device_id: DeviceId,
    answer: Answer,
}

#[derive(Debug)]
enum Answer {
    /// The certificate in force, which is not due; or one that waits.
    OnRecord(CertificateReply),
    New(Box<Prepared<Renewed>>),
}

impl Renewing {
    /// A certificate is due from [`Profile::renew_before`] its end on, if a new one would end
    /// later; and at any time if its issuing CA is not known any more. One that is not due is sent
    /// again. One that is due is renewed, unless a renewed one waits that says what a new one would
    /// say.
    ///
    /// `waiting` are the EK's certificates for this IK that wait, the newest first. Those that were
    /// sealed are passed over: they must not be sent in clear, and do not keep a device from
    /// renewing, because anybody can ask for them. If the one that waits would not do any more, the
    /// next may be made an hour later. So a device cannot ask for more in a day than by other
    /// flows.
    #[expect(clippy::too_many_arguments, reason = "each is one input of the decision")]
    pub fn plan(
        proof: RenewalProof,
        records: &Records,
        waiting: &[Unconfirmed],
        keys: &Overlapping<TicketKey>,
        profile: &Profile,
        issuers: &Issuers,
        now: OffsetDateTime,
        rng: &mut dyn CryptoRng,
    ) -> Result<Self, Failure> {
        let device_id = proof.device_id().clone();
        let current = issuers.current(now);
        let is_due = now >= proof.term.due_from(profile)
            && current.end_of_validity(profile, now) > proof.term.not_after;
        if !is_due && let Some(issuer) = issuers.of(&proof.der) {
            return Self::on_record(device_id, &proof.der, profile, issuer);
        }
        let waiting = waiting.iter();
        if let Some((der, issuer)) =
            renewed_one(waiting, &proof.subject, records, keys, issuers, now)?
        {
            return Self::on_record(device_id, &der, profile, issuer);
        }
        let prepared = Prepared::<Renewed>::new(&proof, records, profile, current, now, rng)?;
        Ok(Self::new(device_id, prepared))
    }

    pub(super) fn new(device_id: DeviceId, prepared: Prepared<Renewed>) -> Self {
        Self { device_id, answer: Answer::New(Box::new(prepared)) }
    }

    pub(super) fn on_record(
        device_id: DeviceId,
        der: &[u8],
        profile: &Profile,
        issuer: &Issuer,
    ) -> Result<Self, Failure> {
        let renew_at = Term::of(der).map(|term| term.renew_at(profile));
        let answer = Answer::OnRecord(CertificateReply {
            chain: issuer.chain(der)?,
            renew_at,
            configuration: None,
            new_root: None,
        });
        Ok(Self { device_id, answer })
    }

    /// The device's id.
    pub fn device_id(&self) -> &DeviceId {
        &self.device_id
    }

    /// Whether it gets another certificate than it has, or waits for it.
    pub fn is_new(&self) -> bool {
        matches!(self.answer, Answer::New(_))
    }

    /// Whether a key that is elsewhere has to sign, so that [`sign`](Self::sign) may take long.
    pub fn signs_elsewhere(&self) -> bool {
        matches!(&self.answer, Answer::New(prepared) if prepared.signs_elsewhere())
    }

    /// Signs a new certificate and makes the reply. Record the certificate before you send the
    /// reply.
    pub fn sign(
        self,
        key: &TicketKey,
        rng: &mut dyn CryptoRng,
    ) -> Result<(CertificateReply, Option<Issued<Renewed>>), Fault> {
        match self.answer {
            Answer::OnRecord(reply) => Ok((reply, None)),
            Answer::New(prepared) => {
                let issued = Issued::<Renewed>::sign(*prepared, key, rng)?;
                Ok((issued.reply(), Some(issued)))
            }
        }
    }
}

/// The first of these certificates that is good for the subject, and who signed it. `None` if the
/// next one may be made. Those that were sealed are passed over.
pub(super) fn renewed_one<'i, 'w>(
    waiting: impl Iterator<Item = &'w Unconfirmed>,
    subject: &Subject,
    records: &Records,
    keys: &Overlapping<TicketKey>,
    issuers: &'i Issuers,
    now: OffsetDateTime,
) -> Result<Option<(Vec<u8>, &'i Issuer)>, Rejection> {
    for certificate in waiting {
        let Some(der) = keys.decrypt(&certificate.encrypted, &certificate.serial, Waits::Renewed)
        else {
            continue;
        };
        let is_good =
            certificate.is_for(subject) && may_be_confirmed(certificate, records, now).is_ok();
        if is_good && let Some(issuer) = issuers.of(&der) {
            return Ok(Some((der, issuer)));
        }
        // So a device gets no more in a day than by other flows.
        let next = certificate.issued_at + QUOTA_PERIOD / i32::try_from(QUOTA).unwrap_or(1);
        if now < next {
            return Err(Rejection::RenewedTooOften { ek: subject.ek_id, next });
        }
    }
    Ok(None)
}

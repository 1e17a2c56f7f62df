//! Rekey: the certificate for another IK, while the one in force stays good.

use rand_core::CryptoRng;
use time::OffsetDateTime;

use super::renew::{Renewing, earliest_next};
use crate::flows::mac::TicketKey;
use crate::flows::sealed::{Unconfirmed, Waits, may_be_confirmed};
use crate::flows::ticket::{ProvenDevice, Readmitted};
use crate::issue::{Issuers, Prepared, Renewed};
use crate::profile::Profile;
use crate::records::{ActiveCertificate, Records};
use crate::secret::Overlapping;
use crate::{Failure, Rejection};

impl Renewing {
    /// A device that proved itself with another IK gets a certificate for it that waits, as a
    /// renewed one does. If it has one for this IK, in force or waiting, it gets that again.
    ///
    /// `active` is the EK's certificate in force, if it is for this IK and not expired. `waiting`
    /// are all certificates of the EK that wait, the newest first. Those that were sealed are passed
    /// over, because anybody can ask for them. So are those for the IK in force, if it is another:
    /// they renew the certificate that stays good. If another one waits to be adopted, the next may be made an
    /// hour later. So a device cannot ask for more in a day than by other flows.
    #[expect(clippy::too_many_arguments, reason = "each is one input of the decision")]
    pub fn rekey(
        device: ProvenDevice,
        records: &Records,
        active: Option<&ActiveCertificate>,
        waiting: &[Unconfirmed],
        keys: &Overlapping<TicketKey>,
        profile: &Profile,
        issuers: &Issuers,
        now: OffsetDateTime,
        rng: &mut dyn CryptoRng,
    ) -> Result<Self, Failure> {
        let device = Readmitted::decide(device, records)?;
        let subject = device.subject().clone();
        let device_id = subject.device_id.clone();
        let active = active
            .filter(|active| device.keeps_its_key() && active.ik_id == subject.ik_id())
            .and_then(|active| Some((active, issuers.of(&active.der)?)));
        if let Some((active, issuer)) = active {
            return Self::on_record(device_id, &active.der, profile, issuer);
        }
        let ik_id = subject.ik_id();
        let in_force = records.registration.as_ref().and_then(|it| it.certificate.as_ref());
        let kept = in_force.map(|it| it.ik_id).filter(|in_force| *in_force != ik_id);
        for certificate in waiting {
            if kept == Some(certificate.ik_id) {
                continue;
            }
            let Some(der) =
                keys.decrypt(&certificate.encrypted, &certificate.serial, Waits::Renewed)
            else {
                continue;
            };
            let is_good =
                certificate.is_for(&subject) && may_be_confirmed(certificate, records, now).is_ok();
            if is_good && let Some(issuer) = issuers.of(&der) {
                return Self::on_record(device_id, &der, profile, issuer);
            }
            let next = earliest_next(certificate);
            if now < next {
                return Err(Rejection::RenewedTooOften { ek: subject.ek_id, next }.into());
            }
        }
        let current = issuers.current(now);
        let prepared = Prepared::<Renewed>::rekeyed(device, records, profile, current, now, rng)?;
        Ok(Self::new(device_id, prepared))
    }
}

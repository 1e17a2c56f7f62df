//! Rekey: the certificate for another IK, while the one in force stays good.

use rand_core::CryptoRng;
use time::OffsetDateTime;

use super::renew::{Renewing, renewed_one};
use crate::Failure;
use crate::flows::mac::TicketKey;
use crate::flows::sealed::Unconfirmed;
use crate::flows::ticket::{ProvenDevice, Readmitted};
use crate::issue::{Issuers, Prepared, Renewed};
use crate::profile::Profile;
use crate::records::{ActiveCertificate, Records};
use crate::secret::Overlapping;

impl Renewing {
    /// A device that proved itself with another IK gets a certificate for it that waits, as a
    /// renewed one does. If it has one for this IK, in force or waiting, it gets that again.
    ///
    /// `active` is the EK's certificate in force, if it is for this IK and not expired. `waiting`
    /// are all certificates of the EK that wait, the newest first. Those that were sealed are passed
    /// over, because anybody can ask for them. So are those for the IK in force, if it is another:
    /// they renew the certificate that stays good. If another one waits to be adopted, the next may
    /// be made an hour later. So a device cannot ask for more in a day than by other flows.
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
        let waiting = waiting.iter().filter(|certificate| kept != Some(certificate.ik_id));
        if let Some((der, issuer)) = renewed_one(waiting, &subject, records, keys, issuers, now)? {
            return Self::on_record(device_id, &der, profile, issuer);
        }
        let current = issuers.current(now);
        let prepared = Prepared::<Renewed>::rekeyed(device, records, profile, current, now, rng)?;
        Ok(Self::new(device_id, prepared))
    }
}

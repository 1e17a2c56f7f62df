//! Whether an EK is admitted, and the device id that it gets.

use assay_wire::{DeviceId, EkId, Flow};
use time::{Duration, OffsetDateTime};

use crate::Rejection;
use crate::ek::assurance::Assurance;
use crate::ek::facts::EkFacts;
use crate::ek::trust::TrustedEk;
use crate::flaws::Flaws;
use crate::groups::{Answer, Applicant, Comer, Groups, Naming, Place, Unadmitted};
use crate::ik::IkKind;
use crate::profile::Offered;
use crate::records::{Records, Registration, due_device_id};

/// A trusted EK, the device id that it may have, and the flow that it asks for.
///
/// It may change afterwards, because an operator can act at any time.
#[derive(Clone, Debug)]
pub struct Admitted<F> {
    pub(crate) ek: TrustedEk,
    pub(crate) device_id: DeviceId,
    place: Option<Place>,
    lifetime: Option<Duration>,
    naming: Option<Naming>,
    _offered: Offered<F>,
}

impl<F> Admitted<F> {
    /// Lets the groups decide on the EK. Then gives it the device id that is [due](due_device_id),
    /// or refuses another id that it asked for.
    ///
    /// Whether another EK has the id that was asked for makes no difference to the answer.
    /// Otherwise any TPM of a trusted vendor could find out which ids there are and who has them.
    pub fn decide(
        offered: Offered<F>,
        ek: TrustedEk,
        records: &Records,
        admission: &Admission<'_>,
    ) -> Result<Self, Rejection> {
        let standing = Standing::decide(ek.ek_id(), ek.assurance(), records)?;
        // A device that lost its state should not become a second device because it shows another
        // EK. This protects an honest device from its own choice. A dishonest device need not name
        // its other EKs.
        let is_unknown = records.enrolment.is_none() && records.registration.is_none();
        let known_other = records.other_ek.filter(|_| is_unknown);
        let granted = match known_other {
            None => admission.judge(&ek, offered.flow, records)?,
            Some(_) => Granted::default(),
        };
        let due = due_device_id(
            ek.derived_device_id(),
            records.enrolment.as_ref(),
            records.registration.as_ref(),
        );
        let device_id = standing.grant(ek.requested_device_id().unwrap_or(due), due)?;
        match known_other {
            Some(other) => Err(Rejection::OtherEkOnRecord { ek: ek.ek_id(), other }),
            None => {
                let Granted { place, lifetime, naming } = granted;
                Ok(Self { ek, device_id, place, lifetime, naming, _offered: offered })
            }
        }
    }

    /// The EK's id.
    pub fn ek_id(&self) -> EkId {
        self.ek.ek_id()
    }

    /// The id that the device gets.
    pub fn device_id(&self) -> &DeviceId {
        &self.device_id
    }

    /// How long its certificates are valid, if its group says so.
    pub fn lifetime(&self) -> Option<Duration> {
        self.lifetime
    }

    /// The names of which it is to get one before anything is made for it, if its group gives
    /// names.
    pub fn naming(&self) -> Option<&Naming> {
        self.naming.as_ref()
    }

    /// What its certificate says of its TPM, if it has shown one.
    pub fn facts(&self) -> Option<&EkFacts> {
        self.ek.facts()
    }

    /// The place that it must have in its group before anything is made for it. If the group has
    /// none left, the answer is [`full`](Self::full).
    pub fn place(&self) -> Option<&Place> {
        self.place.as_ref()
    }

    /// Refuses it because its group has no place left.
    pub fn full(self) -> Rejection {
        let ek = self.ek.ek_id();
        let group_full = |Place { group, quota }| Unadmitted::Full { group, quota };
        match self.place.map(group_full) {
            Some(reason) => Rejection::NotAdmitted { ek, reason },
            None => unreachable!("only a group with places can be full"),
        }
    }
}

/// What admission depends on besides the EK and what is on record about it.
#[derive(Clone, Copy, Debug)]
pub struct Admission<'a> {
    /// The groups that hold now.
    pub groups: &'a Groups,
    /// The flaws that are known.
    pub flaws: &'a Flaws,
    /// Since when an operator is asked about the EK, if one is.
    pub waits_since: Option<OffsetDateTime>,
    /// The kind of the identity key that is to be certified; `None` if none is, or the one that the
    /// device has.
    pub ik: Option<IkKind>,
    /// The time of the request.
    pub now: OffsetDateTime,
}

/// What a group grants.
#[derive(Default)]
struct Granted {
    /// The place that the device needs there, if it needs one.
    place: Option<Place>,
    lifetime: Option<Duration>,
    /// For a new device that has no enrolment.
    naming: Option<Naming>,
}

impl Admission<'_> {
    /// Finds the group that the EK belongs to, and does what that says.
    ///
    /// A registered device was admitted before, so neither the absence of a group nor the time
    /// stops it. Nor do they stop a renewal, which only a device with a certificate gets. A group
    /// that refuses stops both.
    fn judge(
        &self,
        ek: &TrustedEk,
        flow: Option<Flow>,
        records: &Records,
    ) -> Result<Granted, Rejection> {
        let refused = |reason| Rejection::NotAdmitted { ek: ek.ek_id(), reason };
        let is_enrolled = records.enrolment.is_some();
        let on_record = records.enrolment.as_ref().and_then(|enrolment| enrolment.facts.as_ref());
        let facts = ek.facts().or(on_record);
        let comer = Comer { ek: ek.ek_id(), facts, flaws: self.flaws, is_enrolled };
        let new = flow.filter(|_| records.registration.is_none());
        let Some(group) = self.groups.of(&comer) else {
            return match new {
                Some(_) => Err(refused(Unadmitted::NoGroup(describe(facts)))),
                None => Ok(Granted::default()),
            };
        };
        let (name, terms) = (|| group.name.clone(), &group.terms);
        if group.answer == Answer::Refuse {
            return Err(refused(Unadmitted::Refused(name())));
        }
        if let Some(flow) = flow
            && !terms.flows.is_empty()
            && !terms.flows.contains(&flow)
        {
            let allowed = terms.flows.iter().map(Flow::to_string).collect::<Vec<_>>().join(", ");
            return Err(Rejection::FlowNotInGroup { group: name(), flow, allowed });
        }
        if let Some(found) = self.ik.filter(|ik| !allows(&terms.ik_kinds, ik)) {
            let allowed = terms.ik_kinds.iter().map(IkKind::to_string).collect::<Vec<_>>();
            let allowed = allowed.join(", ");
            return Err(refused(Unadmitted::IkKind { group: name(), found, allowed }));
        }
        let lifetime = terms.lifetime;
        let Some(flow) = new else { return Ok(Granted { lifetime, ..Granted::default() }) };
        if let Some(from) = terms.not_before.filter(|from| self.now < *from) {
            return Err(refused(Unadmitted::TooEarly { group: name(), from }));
        }
        if let Some(until) = terms.not_after.filter(|until| self.now >= *until) {
            return Err(refused(Unadmitted::TooLate { group: name(), until }));
        }
        if group.answer == Answer::Ask && !is_enrolled {
            return Err(Rejection::Pending(Box::new(Applicant {
                ek_id: ek.ek_id(),
                facts: facts.cloned().unwrap_or_default(),
                flow,
                device_id: ek.requested_device_id().cloned(),
                waited: self.waits_since.map_or(Duration::ZERO, |since| self.now - since),
            })));
        }
        let place = terms.quota.map(|quota| Place { group: name(), quota });
        let names = terms.names.clone().filter(|_| !is_enrolled);
        let naming = names.map(|names| Naming { group: name(), names });
        Ok(Granted { place, lifetime, naming })
    }
}

fn allows(kinds: &[IkKind], kind: &IkKind) -> bool {
    kinds.is_empty() || kinds.contains(kind)
}

/// The TPM, for people who look for the group that it should be in.
fn describe(facts: Option<&EkFacts>) -> String {
    facts.and_then(|facts| facts.tpm.as_ref()).map_or_else(
        || "no vendor's certificate says what TPM it is in".to_owned(),
        |tpm| {
            format!(
                "manufacturer {}, model {}, firmware {}",
                tpm.manufacturer, tpm.model, tpm.version
            )
        },
    )
}

/// An EK that no operator disabled. It is enrolled, if the CA trusts it because of its enrolment.
pub(crate) struct Standing<'r> {
    ek: EkId,
    records: &'r Records,
}

impl<'r> Standing<'r> {
    pub(crate) fn decide(
        ek: EkId,
        assurance: Assurance,
        records: &'r Records,
    ) -> Result<Self, Rejection> {
        // First, so that a disabled device learns nothing else.
        if records.disabled {
            return Err(Rejection::DeviceDisabled { ek });
        }
        if assurance == Assurance::EnrolmentList && records.enrolment.is_none() {
            return Err(Rejection::EkNotEnrolled { ek });
        }
        Ok(Self { ek, records })
    }

    /// Grants a device id if it is the due one and no other EK has it.
    pub(crate) fn grant(&self, wanted: &DeviceId, due: &DeviceId) -> Result<DeviceId, Rejection> {
        let ek = self.ek;
        if wanted != due {
            let requested = wanted.clone();
            return Err(match &self.records.registration {
                Some(Registration { device_id, .. }) => {
                    Rejection::EkRegistered { ek, registered: device_id.clone(), requested }
                }
                None => Rejection::DeviceIdNotEnrolled { ek, requested, due: due.clone() },
            });
        }
        match self.records.id_holder.filter(|holder| *holder != ek) {
            Some(_) => Err(Rejection::DeviceIdTaken { device_id: due.clone(), ek }),
            None => Ok(due.clone()),
        }
    }
}

//! Which EKs the operator's groups admit.

use assay_ca_core::{
    Admission, Admitted, Answer, Applicant, Conditions, EkFacts, Enrolment, Flaw, Flaws, FlowKind,
    Group, Groups, IkKind, Offered, Profile, Records, Registration, Rejection, RenewFlow,
    SealedFlow, Terms, TicketFlow, TpmModel, Unadmitted, VendorCertificate,
};
use assay_wire::{Flow, ProblemCode};
use time::{Duration, OffsetDateTime};

use crate::fixture::*;

/// The TPM of every EK certificate of the fixture.
const MANUFACTURER: &str = "id:41434D45";
const MODEL: &str = "Model 7";
const FIRMWARE: &str = "id:00010002";

fn group(name: &str, answer: Answer) -> Group {
    let (conditions, terms) = (Conditions::default(), Terms::default());
    Group { name: name.parse().unwrap(), conditions, answer, terms }
}

fn registered() -> Records {
    let registration = Registration {
        device_id: Device::of(&Vendor::new("Acme")).evidence().ek.derived_device_id(),
        certificate: None,
        recent_certificates: 0,
    };
    Records { registration: Some(registration), ..nothing_on_record() }
}

fn list<T: std::str::FromStr<Err: std::fmt::Debug>>(text: &str) -> Vec<T> {
    vec![text.parse().unwrap()]
}

/// A device of a trusted vendor, and a CA with groups.
struct Gate {
    vendor: Vendor,
    device: Device,
    records: Records,
    flaws: Flaws,
    at: OffsetDateTime,
}

impl Gate {
    fn new() -> Self {
        let vendor = Vendor::new("Acme");
        let device = Device::of(&vendor);
        Self { vendor, device, records: nothing_on_record(), flaws: Flaws::default(), at: now() }
    }

    fn ask<F: FlowKind>(&self, groups: Vec<Group>) -> Result<(), Rejection> {
        self.ask_for(offered::<F>(), groups)
    }

    fn ask_for<F>(&self, offered: Offered<F>, groups: Vec<Group>) -> Result<(), Rejection> {
        self.ask_with(offered, groups, None)
    }

    fn ask_with<F>(
        &self,
        offered: Offered<F>,
        groups: Vec<Group>,
        ik: Option<IkKind>,
    ) -> Result<(), Rejection> {
        self.admitted(offered, groups, ik).map(drop)
    }

    fn admitted<F>(
        &self,
        offered: Offered<F>,
        groups: Vec<Group>,
        ik: Option<IkKind>,
    ) -> Result<Admitted<F>, Rejection> {
        let ek = Ca::trusting(&self.vendor).trust(&self.device, self.records.enrolment.as_ref())?;
        let groups = Groups::new(groups).unwrap();
        let admission =
            Admission { groups: &groups, flaws: &self.flaws, waits_since: None, ik, now: self.at };
        Admitted::decide(offered, ek, &self.records, &admission)
    }

    /// Whether a group with these conditions is the EK's.
    fn fits(&self, change: impl FnOnce(&mut Conditions)) -> bool {
        let mut only = group("only", Answer::Admit);
        change(&mut only.conditions);
        match self.ask::<TicketFlow>(vec![only]) {
            Ok(()) => true,
            Err(Rejection::NotAdmitted { reason: Unadmitted::NoGroup(_), .. }) => false,
            Err(other) => panic!("{other}"),
        }
    }
}

#[test]
fn without_a_group_nobody_is_admitted() {
    let refused = Gate::new().ask::<TicketFlow>(vec![]).unwrap_err();
    assert_eq!(refused.code(), ProblemCode::NotAdmitted);
    let text = refused.to_string();
    assert!([MANUFACTURER, MODEL, FIRMWARE].iter().all(|part| text.contains(part)), "{text}");
}

#[test]
fn each_condition_must_hold() {
    let gate = Gate::new();
    assert!(gate.fits(|_| {}));
    assert!(gate.fits(|it| it.manufacturers = list(MANUFACTURER)));
    assert!(gate.fits(|it| it.manufacturers = list("id:41434d45")));
    assert!(!gate.fits(|it| it.manufacturers = list("id:41434D46")));
    assert!(gate.fits(|it| it.models = vec!["Model 6".into(), MODEL.into()]));
    assert!(!gate.fits(|it| it.models = vec!["model 7".into()]));
    let least = |text: &str| Some(text.parse().unwrap());
    assert!(gate.fits(|it| it.firmware = least(FIRMWARE)));
    assert!(gate.fits(|it| it.firmware = least("id:00010001")));
    assert!(!gate.fits(|it| it.firmware = least("id:00010003")));
    assert!(!gate.fits(|it| it.firmware = least("id:0000000000000001")));
    let ek = gate.device.evidence().ek.ek_id();
    assert!(gate.fits(|it| it.eks = vec![ek.into()]));
    assert!(gate.fits(|it| it.eks = list(&ek.to_string()[..7])));
    assert!(!gate.fits(|it| it.eks = list(&"0".repeat(64))));
    assert!(gate.fits(|it| it.enrolled = Some(false)) && !gate.fits(|it| it.enrolled = Some(true)));
    // All of several.
    assert!(!gate.fits(|it| {
        it.manufacturers = list(MANUFACTURER);
        it.models = vec!["Model 6".into()];
    }));
}

#[test]
fn firmware_with_a_known_flaw_is_a_condition() {
    let mut gate = Gate::new();
    let flawed = |wanted| move |it: &mut Conditions| it.flawed = Some(wanted);
    assert!(!gate.fits(flawed(true)) && gate.fits(flawed(false)));
    let version = |text: &str| text.parse().unwrap();
    gate.flaws = Flaws::new(vec![Flaw {
        name: "test".into(),
        manufacturer: MANUFACTURER.parse().unwrap(),
        versions: vec![(version("id:00010001"), version(FIRMWARE))],
        source: "test".into(),
    }]);
    assert!(gate.fits(flawed(true)) && !gate.fits(flawed(false)));
    // A device that says nothing of its TPM is not known to have it.
    gate.device.ek_certificates.clear();
    gate.records.enrolment = Some(enrolled());
    assert!(!gate.fits(flawed(true)) && gate.fits(flawed(false)));
}

#[test]
fn every_ca_on_the_path_can_be_named_and_no_other() {
    let gate = Gate::new();
    let key = |vendor: &Vendor, root: bool| {
        let der = if root { &vendor.root } else { &vendor.intermediate };
        vec![VendorCertificate::read(der).unwrap().ca_key()]
    };
    for is_root in [true, false] {
        assert!(gate.fits(|it| it.issuers = key(&gate.vendor, is_root)));
        assert!(!gate.fits(|it| it.issuers = key(&Vendor::new("Acme"), is_root)));
    }
}

#[test]
fn enrolled_ek_without_a_vendors_certificate_has_no_vendor_in_any_condition() {
    let mut gate = Gate::new();
    gate.device.ek_certificates.clear();
    gate.records.enrolment = Some(enrolled());
    assert!(gate.fits(|_| {}) && gate.fits(|it| it.enrolled = Some(true)));
    let acme = |it: &mut Conditions| it.manufacturers = vec![MANUFACTURER.parse().unwrap()];
    assert!(!gate.fits(acme));
    assert!(!gate.fits(|it| it.models = vec![MODEL.into()]));
    assert!(!gate.fits(|it| it.firmware = Some("id:00000000".parse().unwrap())));
}

#[test]
fn enrolled_ek_that_leaves_its_certificate_out_is_in_the_group_that_it_was_in() {
    let mut gate = Gate::new();
    gate.records.enrolment = Some(enrolled());
    let shown = Ca::trusting(&gate.vendor).trust(&gate.device, None).unwrap();
    gate.records.enrolment.as_mut().unwrap().facts = shown.facts().cloned();
    let root = VendorCertificate::read(&gate.vendor.root).unwrap().ca_key();
    let conditions: [&dyn Fn(&mut Conditions); 4] = [
        &|it| it.manufacturers = list(MANUFACTURER),
        &|it| it.models = vec![MODEL.into()],
        &|it| it.firmware = Some(FIRMWARE.parse().unwrap()),
        &|it| it.issuers = vec![root],
    ];
    for shows_one in [true, false] {
        for condition in conditions {
            assert!(gate.fits(condition), "{shows_one}");
        }
        let mut refuse = group("bad", Answer::Refuse);
        refuse.conditions.models = vec![MODEL.into()];
        let groups = vec![refuse, group("rest", Answer::Admit)];
        let refused = gate.ask::<TicketFlow>(groups).unwrap_err();
        assert!(matches!(refused, Rejection::NotAdmitted { .. }), "{refused}");
        gate.device.ek_certificates.clear();
    }
}

#[test]
fn certificate_that_is_shown_counts_and_not_what_is_on_record() {
    let mut gate = Gate::new();
    let tpm = TpmModel {
        manufacturer: MANUFACTURER.into(),
        model: "Model 6".into(),
        version: FIRMWARE.into(),
    };
    let facts = Some(EkFacts::of_file(Some(tpm)));
    gate.records.enrolment = Some(Enrolment { facts, ..enrolled() });
    assert!(gate.fits(|it| it.models = vec![MODEL.into()]));
    assert!(!gate.fits(|it| it.models = vec!["Model 6".into()]));
}

#[test]
fn the_first_group_that_fits_decides() {
    let gate = Gate::new();
    let mut others = group("others", Answer::Refuse);
    others.conditions.models = vec!["Model 6".into()];
    let (admit, refuse) = (group("admit", Answer::Admit), group("refuse", Answer::Refuse));
    gate.ask::<TicketFlow>(vec![others.clone(), admit.clone(), refuse.clone()]).unwrap();
    let refused = gate.ask::<TicketFlow>(vec![others, refuse.clone(), admit]).unwrap_err();
    let reason = Unadmitted::Refused(refuse.name);
    let ek = gate.device.evidence().ek.ek_id();
    assert_eq!(refused, Rejection::NotAdmitted { ek, reason });
}

#[test]
fn an_ek_that_no_operator_has_approved_waits_and_an_enrolled_one_does_not() {
    let mut gate = Gate::new();
    gate.device = gate.device.asking_for("pump-17");
    let ask = || vec![group("vendors", Answer::Ask)];
    let refused = gate.ask::<SealedFlow>(ask()).unwrap_err();
    let Rejection::Pending(applicant) = &refused else { panic!("{refused}") };
    let Applicant { ek_id, facts, flow, device_id, waited } = &**applicant;
    assert_eq!(*ek_id, gate.device.evidence().ek.ek_id());
    assert!(facts.vendor.contains("Acme"), "{facts:?}");
    assert_eq!(facts.tpm.as_ref().unwrap().model, MODEL);
    assert_eq!((*flow, device_id.as_ref().unwrap().as_str()), (Flow::Sealed, "pump-17"));
    assert_eq!(*waited, Duration::ZERO);
    let problem = refused.problem();
    assert_eq!((problem.code, problem.retry_after), (ProblemCode::Pending, Some(5)));

    gate.device = Device::of(&gate.vendor);
    gate.records.enrolment = Some(enrolled());
    gate.ask::<SealedFlow>(ask()).unwrap();
}

#[test]
fn flows_of_a_group_are_the_only_ones() {
    let mut gate = Gate::new();
    let mut pumps = group("pumps", Answer::Admit);
    pumps.terms.flows = vec![Flow::Ticket];
    gate.ask::<TicketFlow>(vec![pumps.clone()]).unwrap();
    for records in [nothing_on_record(), registered()] {
        gate.records = records;
        let refused = gate.ask::<SealedFlow>(vec![pumps.clone()]).unwrap_err();
        assert_eq!(refused.code(), ProblemCode::FlowNotOffered);
    }
}

#[test]
fn identity_keys_of_a_group_are_of_its_kinds_alone() {
    let gate = Gate::new();
    let asks = |ik, kinds: &[IkKind]| {
        let mut group = group("bench", Answer::Admit);
        group.terms.ik_kinds = kinds.to_vec();
        gate.ask_with(offered::<TicketFlow>(), vec![group], ik)
    };
    for kind in IkKind::ALL {
        assert!(asks(Some(kind), &[]).is_ok() && asks(Some(kind), &[kind]).is_ok());
        let others: Vec<_> = IkKind::ALL.into_iter().filter(|other| *other != kind).collect();
        let refused = asks(Some(kind), &others).unwrap_err();
        assert!(matches!(
            refused,
            Rejection::NotAdmitted { reason: Unadmitted::IkKind { .. }, .. }
        ));
        // Where no key is certified, none is looked at.
        assert!(asks(None, &others).is_ok());
    }
}

#[test]
fn certificates_of_a_group_are_valid_for_as_long_as_it_says() {
    let gate = Gate::new();
    let mut group = group("bench", Answer::Admit);
    let lifetime = Some(Duration::days(2));
    group.terms.lifetime = lifetime;
    let admitted = gate.admitted(offered::<TicketFlow>(), vec![group], None).unwrap();
    assert_eq!(admitted.lifetime(), lifetime);
    let profile = Profile::default();
    assert_eq!(profile.lasting(lifetime).validity(), Duration::days(2));
    for no_shorter in [None, Some(profile.validity() + Duration::DAY)] {
        assert_eq!(*profile.lasting(no_shorter), profile);
    }
}

#[test]
fn a_group_admits_within_its_time_alone() {
    let mut gate = Gate::new();
    let mut pumps = group("pumps", Answer::Admit);
    pumps.terms.not_before = Some(now());
    pumps.terms.not_after = Some(now() + Duration::DAY);
    for (after, is_admitted) in [
        (-Duration::SECOND, false),
        (Duration::ZERO, true),
        (Duration::DAY - Duration::SECOND, true),
        (Duration::DAY, false),
    ] {
        gate.at = now() + after;
        let answer = gate.ask::<TicketFlow>(vec![pumps.clone()]);
        assert_eq!(answer.is_ok(), is_admitted, "{after}");
    }
}

#[test]
fn what_a_registered_device_has_ends_by_a_group_that_refuses_alone() {
    let renew = Offered::<RenewFlow>::ALWAYS;
    let mut late = group("late", Answer::Admit);
    late.terms.not_after = Some(now() - Duration::DAY);
    let mut gate = Gate::new();
    gate.records.registration = registered().registration.map(|registration| Registration {
        device_id: gate.device.evidence().ek.derived_device_id(),
        ..registration
    });
    for groups in [vec![], vec![late], vec![group("vendors", Answer::Ask)]] {
        gate.ask::<TicketFlow>(groups.clone()).unwrap();
        gate.ask_for(renew, groups).unwrap();
    }
    let refuse = || vec![group("stolen", Answer::Refuse)];
    assert_eq!(gate.ask::<TicketFlow>(refuse()).unwrap_err().code(), ProblemCode::NotAdmitted);
    assert_eq!(gate.ask_for(renew, refuse()).unwrap_err().code(), ProblemCode::NotAdmitted);
}

#[test]
fn a_device_whose_other_ek_is_known_is_told_so_before_anybody_is_asked() {
    let mut gate = Gate::new();
    gate.records.other_ek = Some([7; 32].into());
    let refused = gate.ask::<TicketFlow>(vec![group("vendors", Answer::Ask)]).unwrap_err();
    assert_eq!(refused.code(), ProblemCode::OtherEkOnRecord);
}

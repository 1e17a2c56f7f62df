//! Who is admitted as what and for how long. The register says what the test wants.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use assay_broker_plugin::access::{Access, AccessDenied, Identity};
use assay_broker_plugin::certificate::ClientCertificate;
use assay_broker_plugin::doorkeeper::{
    Admission, Denial, Doorkeeper, Good, LoggedIn, NotGood, Question, Register, Shown,
};
use assay_wire::{Rights, Scope};

const STRANGER: &str = "0123456789abcdef0123456789abcdef";
const BOOTSTRAPPING: Duration = Duration::from_secs(360);
const HOUR: Duration = Duration::from_secs(3600);
const PASSWORD: &[u8] = b"open sesame";

#[test]
fn stranger_is_admitted_to_its_own_topics_for_the_bootstrapping_time() {
    let before = Instant::now();
    let admission = Record::silent().admit(Shown::Nothing, STRANGER).unwrap();
    assert_eq!(admission.access(), &Access::bootstrapping(&scope(), STRANGER).unwrap());
    assert_ends(&admission, before, BOOTSTRAPPING);
    assert_eq!(admission.expiry(), "it was connected for too long without a certificate");
}

#[test]
fn stranger_under_another_roles_client_id_is_refused() {
    for client in ["pump-17", "worker@1", "operator@desk", ""] {
        let denial = Record::silent().admit(Shown::Nothing, client).err();
        assert!(is_about_client_id(&denial), "{client}: {denial:?}");
    }
}

#[test]
fn stranger_stays_no_longer_for_being_decided_about_again() {
    let admission = Record::silent().admit(Shown::Nothing, STRANGER).unwrap();
    std::thread::sleep(Duration::from_millis(5));
    let again = admission.decide_again().unwrap();
    assert_eq!(again.until(), admission.until());
    assert_eq!(again.access(), admission.access());
}

#[test]
fn only_strangers_are_decided_about_without_the_register() {
    let doorkeeper = Record::silent().doorkeeper();
    for (shown, client, question) in [
        (Shown::Nothing, STRANGER, Question::None),
        (of(pump()), "pump-17", Question::Certificate),
        (login(PASSWORD), "pump-17", Question::Login),
    ] {
        let visitor = doorkeeper.receive(shown, client).ok().unwrap();
        assert_eq!(visitor.question(), question);
    }
}

#[test]
fn backend_has_the_rights_that_the_register_says_each_time() {
    let identity = Identity::Backend { name: "sink".parse().unwrap() };
    let rights = [["device/#"], ["ca/crl"]].map(|filters| Rights::new([], filters).unwrap());
    let record = Record::of_certificates(rights.map(|rights| Ok(Good { rights })));
    let first = record.admit(of(identity), "backend@sink").unwrap();
    let hears = |admission: &Admission| {
        ["device/v1/default/#", "ca/v1/default/crl"].map(|f| admission.access().may_subscribe(f))
    };
    assert_eq!(hears(&first), [true, false]);
    assert_eq!(hears(&first.decide_again().unwrap()), [false, true]);
}

#[test]
fn rights_make_nobody_but_a_backend_more_than_it_is() {
    let rights = Rights::new(["device/+/command/#"], ["device/#", "fleet/#"]).unwrap();
    let good = Good { rights };
    for (identity, client) in [(pump(), "pump-17"), (Identity::Worker, "worker@1")] {
        let record = Record::of_certificates([Ok(good.clone())]);
        let admission = record.admit(of(identity), client).unwrap();
        assert!(!admission.access().may_subscribe("fleet/v1/default/#"), "{client}");
        assert!(!admission.access().may_publish("device/v1/default/pump-18/command"), "{client}");
    }
}

#[test]
fn certificate_admits_whom_it_names_until_it_expires() {
    for (identity, client) in
        [(pump(), "pump-17"), (Identity::Operator, "operator@desk"), (Identity::Worker, "worker@1")]
    {
        let before = Instant::now();
        let record = Record::of_certificates([Ok(Good::default())]);
        let admission = record.admit(of(identity.clone()), client).unwrap();
        assert_eq!(admission.access(), &Access::identified(&scope(), &identity, client).unwrap());
        assert_ends(&admission, before, HOUR);
        assert_eq!(admission.expiry(), "its certificate expired");
        let asked = record.asked_about.lock().unwrap();
        assert_eq!(*asked, [format!("{identity:?} [7, 7]")], "about that very certificate");
    }
}

#[test]
fn certificate_that_expired_is_refused_without_asking() {
    let not_after = SystemTime::now() - Duration::from_secs(1);
    let shown = Shown::Certificate(ClientCertificate { not_after, ..certificate(pump()) });
    let denial = Record::silent().admit(shown, "pump-17").err();
    assert_eq!(denial, Some(Denial::Certificate("its certificate expired".into())));
}

#[test]
fn client_id_other_than_the_certificates_is_refused_without_asking() {
    for client in ["pump-18", STRANGER, "worker@1", ""] {
        let denial = Record::silent().admit(of(pump()), client).err();
        assert!(is_about_client_id(&denial), "{client}: {denial:?}");
    }
}

#[test]
fn certificate_of_another_scope_is_refused_without_asking() {
    let denial = Record::silent().admit(of(device("other", "pump-17")), "pump-17").err();
    let other = AccessDenied::OtherScope("other".parse().unwrap());
    assert_eq!(denial, Some(Denial::Access(other)));
}

#[test]
fn certificate_that_the_register_refuses_admits_nobody() {
    let record = Record::of_certificates([Err(NotGood::Refused("revoked".into()))]);
    let denial = record.admit(of(pump()), "pump-17").err();
    assert_eq!(denial, Some(Denial::Certificate("revoked".into())));
}

#[test]
fn what_the_register_cannot_find_out_is_no_refusal() {
    let unknown = || NotGood::Unknown("locked".into());
    let denial = Some(Denial::Unknown("locked".into()));
    let record = Record::of_certificates([Err(unknown())]);
    assert_eq!(record.admit(of(pump()), "pump-17").err(), denial);
    let record = Record::of_logins([Err(unknown())]);
    assert_eq!(record.admit(login(PASSWORD), "pump-17").err(), denial);
}

#[test]
fn certificate_that_is_revoked_later_is_refused_when_decided_about_again() {
    let revoked = Err(NotGood::Refused("revoked".into()));
    let admission = Record::of_certificates([Ok(Good::default()), Ok(Good::default()), revoked])
        .admit(of(pump()), "pump-17")
        .unwrap();
    let again = admission.decide_again().unwrap();
    assert_eq!(again.until(), admission.until());
    assert_eq!(again.decide_again().err(), Some(Denial::Certificate("revoked".into())));
}

#[test]
fn device_that_logs_in_is_admitted_until_its_login_expires() {
    let before = Instant::now();
    let record = Record::of_logins([Ok(logged_in(pump(), HOUR))]);
    let admission = record.admit(login(PASSWORD), "pump-17").unwrap();
    assert_eq!(admission.access(), &Access::logged_in(&scope(), &pump(), "pump-17").unwrap());
    assert_ends(&admission, before, HOUR);
    assert_eq!(admission.expiry(), "its login expired");
    assert_eq!(*record.asked_about.lock().unwrap(), [format!("pump-17 {PASSWORD:?}")]);
}

/// The time that the register gives counts from the question, and the register may be slow to
/// answer.
#[test]
fn login_is_no_longer_for_a_slow_answer() {
    let slow = Duration::from_millis(50);
    let record = Record { slow, ..Record::of_logins([Ok(logged_in(pump(), HOUR))]) };
    let admission = record.admit(login(PASSWORD), "pump-17").unwrap();
    assert!(admission.until().unwrap() <= Instant::now() - slow + HOUR);
}

#[test]
fn login_without_end_is_admitted_without_end() {
    let record = Record::of_logins([Ok(logged_in(pump(), Duration::MAX))]);
    assert_eq!(record.admit(login(PASSWORD), "pump-17").unwrap().until(), None);
}

#[test]
fn login_without_user_name_or_password_is_refused_without_asking() {
    for (user_name, password) in [(None, None), (Some("pump-17"), None), (None, Some(PASSWORD))] {
        let denial = Record::silent().admit(Shown::Login { user_name, password }, "pump-17").err();
        assert!(matches!(denial, Some(Denial::Login(_))), "{denial:?}");
    }
}

#[test]
fn long_user_names_and_passwords_are_refused_without_asking() {
    let rest = 1024 - "pump-17".len();
    let record = Record::of_logins([Ok(logged_in(pump(), HOUR))]);
    assert!(record.admit(login(&vec![b'x'; rest]), "pump-17").is_ok());
    let denial = Record::silent().admit(login(&vec![b'x'; rest + 1]), "pump-17").err();
    assert!(matches!(denial, Some(Denial::Login(_))), "{denial:?}");
}

#[test]
fn password_that_the_register_refuses_admits_nobody() {
    let record = Record::of_logins([Err(NotGood::Refused("wrong password".into()))]);
    let denial = record.admit(login(PASSWORD), "pump-17").err();
    assert_eq!(denial, Some(Denial::Login("wrong password".into())));
}

#[test]
fn login_admits_a_device_of_the_scope_under_its_own_client_id_and_nobody_else() {
    for (identity, client) in
        [(Identity::Operator, "operator@desk"), (Identity::Worker, "worker@1")]
    {
        let record = Record::of_logins([Ok(logged_in(identity, HOUR))]);
        let denial = record.admit(login(PASSWORD), client).err();
        assert_eq!(denial, Some(Denial::Access(AccessDenied::NoDevice)));
    }
    let record = Record::of_logins([Ok(logged_in(device("other", "pump-17"), HOUR))]);
    let denial = record.admit(login(PASSWORD), "pump-17").err();
    assert!(matches!(denial, Some(Denial::Access(AccessDenied::OtherScope(_)))), "{denial:?}");
    let record = Record::of_logins([Ok(logged_in(pump(), HOUR))]);
    let denial = record.admit(login(PASSWORD), "pump-18").err();
    assert!(is_about_client_id(&denial), "{denial:?}");
}

#[test]
fn login_that_is_refused_or_anothers_later_is_refused_when_decided_about_again() {
    let disabled = Err(NotGood::Refused("disabled".into()));
    let anothers = Ok(logged_in(device("default", "pump-18"), HOUR));
    for later in [disabled, anothers] {
        let record = Record::of_logins([Ok(logged_in(pump(), HOUR)), later]);
        assert!(record.admit(login(PASSWORD), "pump-17").unwrap().decide_again().is_err());
    }
}

#[test]
fn deciding_again_shortens_a_login_but_never_lengthens_it() {
    let answers = [HOUR, Duration::MAX, 2 * HOUR, HOUR / 2];
    let record = Record::of_logins(answers.map(|left| Ok(logged_in(pump(), left))));
    let first = record.admit(login(PASSWORD), "pump-17").unwrap();
    let second = first.decide_again().unwrap();
    let third = second.decide_again().unwrap();
    assert_eq!([second.until(), third.until()], [first.until(); 2]);
    assert!(third.decide_again().unwrap().until() < first.until());
}

/// A register that gives its answers one after another, and panics if it is asked once more.
#[derive(Clone, Default)]
struct Record {
    certificates: Arc<Mutex<VecDeque<Result<Good, NotGood>>>>,
    logins: Arc<Mutex<VecDeque<Result<LoggedIn, NotGood>>>>,
    slow: Duration,
    asked_about: Arc<Mutex<Vec<String>>>,
}

impl Register for Record {
    fn certificate(&self, certificate: &ClientCertificate) -> Result<Good, NotGood> {
        let ClientCertificate { identity, serial, .. } = certificate;
        self.asked_about.lock().unwrap().push(format!("{identity:?} {serial:?}"));
        self.certificates.lock().unwrap().pop_front().expect("it is not asked")
    }

    fn login(&self, user_name: &str, password: &[u8]) -> Result<LoggedIn, NotGood> {
        std::thread::sleep(self.slow);
        self.asked_about.lock().unwrap().push(format!("{user_name} {password:?}"));
        self.logins.lock().unwrap().pop_front().expect("it is not asked")
    }
}

impl Record {
    /// A register that must not be asked.
    fn silent() -> Self {
        Self::default()
    }

    fn of_certificates(answers: impl IntoIterator<Item = Result<Good, NotGood>>) -> Self {
        let certificates = Mutex::new(answers.into_iter().collect()).into();
        Self { certificates, ..Self::default() }
    }

    fn of_logins(answers: impl IntoIterator<Item = Result<LoggedIn, NotGood>>) -> Self {
        Self { logins: Mutex::new(answers.into_iter().collect()).into(), ..Self::default() }
    }

    fn doorkeeper(&self) -> Arc<Doorkeeper> {
        Doorkeeper::new(scope(), Arc::new(self.clone()), BOOTSTRAPPING).into()
    }

    fn admit(&self, shown: Shown<'_>, client: &str) -> Result<Admission, Denial> {
        self.doorkeeper().receive(shown, client)?.decide()
    }
}

fn scope() -> Scope {
    "default".parse().unwrap()
}

fn device(scope: &str, device_id: &str) -> Identity {
    Identity::Device { scope: scope.parse().unwrap(), device_id: device_id.parse().unwrap() }
}

fn pump() -> Identity {
    device("default", "pump-17")
}

fn certificate(identity: Identity) -> ClientCertificate {
    let not_after = SystemTime::now() + HOUR;
    ClientCertificate { identity, serial: vec![7, 7], sha256: [7; 32], not_after }
}

fn of(identity: Identity) -> Shown<'static> {
    Shown::Certificate(certificate(identity))
}

fn login(password: &[u8]) -> Shown<'_> {
    Shown::Login { user_name: Some("pump-17"), password: Some(password) }
}

fn logged_in(identity: Identity, expires_in: Duration) -> LoggedIn {
    LoggedIn { identity, expires_in }
}

/// Asserts that an admission that began between `before` and now lasts that long.
fn assert_ends(admission: &Admission, before: Instant, lasts: Duration) {
    let began = admission.until().unwrap() - lasts;
    // The wall clock may be set a little while a test runs.
    let leeway = Duration::from_secs(1);
    assert!((before - leeway..=Instant::now() + leeway).contains(&began), "{began:?} {before:?}");
}

fn is_about_client_id(denial: &Option<Denial>) -> bool {
    matches!(denial, Some(Denial::Access(AccessDenied::ClientId { .. })))
}

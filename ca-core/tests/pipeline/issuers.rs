//! Several issuing CAs, each used from its time on.

use assay_ca_core::{
    Authority, CaKind, CaRequest, FirstRoot, HANDOVER, ISSUING_LIFETIME, Issuer, IssuerError,
    Issuers, IssuersError, KeyAndCertificate, NotANewRoot, ROOT_LIFETIME, issuing_request,
    new_ca_key, service_request,
};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use time::{Duration, OffsetDateTime};
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::prelude::FromDer;

use crate::fixture::*;

struct Desk {
    root: Authority,
    rng: CountingRng,
}

impl Desk {
    fn new() -> Self {
        let mut rng = CountingRng::new();
        Self { root: Authority::root("Test", now(), &mut rng).unwrap(), rng }
    }

    fn make(&mut self, name: &str, at: OffsetDateTime) -> KeyAndCertificate {
        self.root.issuing(name, at, &mut self.rng).unwrap().to_pem()
    }

    fn root_der(&self) -> CertificateDer<'static> {
        CertificateDer::from_pem_slice(self.root.to_pem().certificate.as_bytes()).unwrap()
    }

    fn issuers(
        &self,
        all: &[(Option<OffsetDateTime>, &KeyAndCertificate)],
        at: OffsetDateTime,
    ) -> Result<Issuers, IssuersError> {
        let all = all.iter().map(|(from, pair)| (*from, read(pair))).collect();
        Issuers::new(all, &[self.root_der()], at)
    }
}

fn read(pair: &KeyAndCertificate) -> Issuer {
    Issuer::from_pem(&pair.certificate, &pair.key).unwrap()
}

fn in_days(days: i64) -> OffsetDateTime {
    now() + Duration::days(days)
}

#[test]
fn what_an_older_root_needs_comes_last_in_the_chain() {
    let mut desk = Desk::new();
    let (new, cross) = desk.root.next_root(now(), &mut desk.rng).unwrap();
    let cross = CertificateDer::from_pem_slice(cross.as_bytes()).unwrap();
    let issuing = new.issuing("Test", now(), &mut desk.rng).unwrap().to_pem();
    let issuer = read(&issuing).below(Some(cross.clone())).unwrap();
    let chain = issuer.chain(b"leaf").unwrap();
    assert_eq!(chain.len(), 3);
    assert_eq!(*chain[2], *cross);
    assert_eq!(read(&issuing).below(None).unwrap().chain(b"leaf").unwrap().len(), 2);
}

#[test]
fn each_is_used_from_its_time_to_the_second_until_the_next_one_is() {
    let mut desk = Desk::new();
    let [one, two, three] = ["One", "Two", "Three"].map(|name| desk.make(name, now()));
    let (second, third) = (in_days(7), in_days(400));
    let all = [(Some(third), &three), (None, &one), (Some(second), &two)];
    let issuers = desk.issuers(&all, now()).unwrap();
    let used_at = |at| issuers.current(at).key_id().to_vec();
    let [one, two, three] = [one, two, three].map(|pair| read(&pair).key_id().to_vec());
    assert!(one != two && two != three && three != one);
    assert_eq!(used_at(now() - Duration::days(9999)), one);
    assert_eq!(used_at(second - Duration::NANOSECOND), one);
    assert_eq!(used_at(second), two);
    assert_eq!(used_at(third - Duration::NANOSECOND), two);
    assert_eq!(used_at(third), three);
    let order: Vec<_> = issuers.all().iter().map(|it| it.issuer.key_id().to_vec()).collect();
    assert_eq!(order, [one, two, three]);
}

#[test]
fn the_first_that_is_left_is_used_before_its_time_too() {
    let mut desk = Desk::new();
    let two = desk.make("Two", now());
    let issuers = desk.issuers(&[(Some(in_days(7)), &two)], now()).unwrap();
    assert_eq!(issuers.current(now()).key_id(), read(&two).key_id());
    assert_eq!(desk.issuers(&[], now()).unwrap_err(), IssuersError::None);
}

#[test]
fn the_one_in_use_is_valid_now_and_the_next_at_its_time_and_one_of_before_may_have_ended() {
    let mut desk = Desk::new();
    let (one, two) = (desk.make("One", now()), desk.make("Two", in_days(3)));
    let both = |from| [(None, &one), (Some(from), &two)];
    desk.issuers(&both(in_days(3)), now()).unwrap();
    let later = now() + ISSUING_LIFETIME + Duration::DAY;
    desk.issuers(&both(in_days(3)), later).unwrap();
    let refused = |from, at| match desk.issuers(&both(from), at).unwrap_err() {
        IssuersError::Unusable { from, error: IssuerError::NotValid { .. } } => from,
        other => panic!("{other}"),
    };
    assert_eq!(refused(in_days(2), now()), Some(in_days(2)), "it is not valid yet");
    let ended = in_days(3) + ISSUING_LIFETIME + Duration::DAY;
    assert_eq!(refused(ended, now()), Some(ended), "it has ended by then");
    assert_eq!(refused(in_days(3), ended), Some(in_days(3)), "the one in use has ended");
    assert_eq!(refused(later + Duration::DAY, later), None, "the one in use has ended");
}

#[test]
fn all_lead_to_a_root_also_those_of_before() {
    let mut desk = Desk::new();
    let mut other = Desk::new();
    let (own, foreign) = (desk.make("One", now()), other.make("Other", now()));
    for all in [
        [(None, &foreign), (Some(in_days(-1)), &own)],
        [(None, &own), (Some(in_days(-1)), &foreign)],
        [(None, &own), (Some(in_days(1)), &foreign)],
    ] {
        assert!(matches!(
            desk.issuers(&all, now()).unwrap_err(),
            IssuersError::Unusable { error: IssuerError::OtherRoot, .. }
        ));
    }
    let roots = [desk.root_der(), other.root_der()];
    let all = vec![(None, read(&own)), (Some(in_days(1)), read(&foreign))];
    Issuers::new(all, &roots, now()).unwrap();
    assert!(now() + ROOT_LIFETIME > in_days(1));
}

#[test]
fn no_two_have_a_time_a_name_or_a_key_in_common() {
    let mut desk = Desk::new();
    let [one, two, namesake] = ["One", "Two", "One"].map(|name| desk.make(name, now()));
    for all in [
        [(None, &one), (Some(in_days(1)), &namesake)],
        [(None, &one), (Some(in_days(1)), &one)],
        [(None, &one), (None, &two)],
        [(Some(in_days(1)), &one), (Some(in_days(1)), &two)],
    ] {
        let refused = desk.issuers(&all, now()).unwrap_err();
        assert!(matches!(refused, IssuersError::Alike { .. }), "{refused}");
    }
}

#[test]
fn the_issuer_of_a_certificate_is_the_one_that_signed_it() {
    let mut desk = Desk::new();
    let (one, two) = (desk.make("One", now()), desk.make("Two", now()));
    let issuers = desk.issuers(&[(None, &one), (Some(in_days(7)), &two)], now()).unwrap();
    for pair in [&one, &two] {
        let scope = "plant-7".parse().unwrap();
        let (_, leaf) = read(pair).throw_away_device(&scope, now(), &mut desk.rng).unwrap();
        let leaf = CertificateDer::from_pem_slice(leaf.certificate.as_bytes()).unwrap();
        assert_eq!(issuers.of(&leaf).unwrap().key_id(), read(pair).key_id());
        let mut forged = leaf.to_vec();
        *forged.last_mut().unwrap() ^= 1;
        assert!(issuers.of(&forged).is_none());
    }
    let stranger = Desk::new().make("One", now());
    let authority = Authority::from_pem(&stranger.certificate, &stranger.key).unwrap();
    let leaf = authority.operator(Duration::DAY, now(), &mut desk.rng).unwrap();
    let leaf = CertificateDer::from_pem_slice(leaf.certificate.as_bytes()).unwrap();
    assert!(issuers.of(&leaf).is_none(), "the same name, and another key");
    assert!(issuers.of(b"no certificate").is_none());
}

#[test]
fn one_may_have_signed_what_was_issued_from_a_day_before_its_time_on() {
    let mut desk = Desk::new();
    let (one, two) = (desk.make("One", now()), desk.make("Two", now()));
    let from = in_days(7);
    let issuers = desk.issuers(&[(None, &one), (Some(from), &two)], now()).unwrap();
    let serial = |at: OffsetDateTime| {
        let mut serial = [7; 16];
        serial[0] = 0x40;
        serial[1..6].copy_from_slice(&at.unix_timestamp().to_be_bytes()[3..]);
        serial
    };
    let [first, second] = issuers.all() else { panic!("two") };
    for at in [now(), from - HANDOVER, from, in_days(400)] {
        assert!(first.may_have_signed(&serial(at)), "a worker may not have read the next one");
    }
    assert!(!second.may_have_signed(&serial(from - HANDOVER - Duration::SECOND)));
    assert!(second.may_have_signed(&serial(from - HANDOVER)));
    assert!(second.may_have_signed(&[7; 16]), "it says no time");
}

#[test]
fn what_a_root_makes_is_fit_to_issue_until_its_end_comes_near() {
    let mut desk = Desk::new();
    let lifetime = Duration::days(90);
    let two = desk.root.issuing_called("Two", now(), &mut desk.rng).unwrap().to_pem();
    let (last, fit) =
        (now() + ISSUING_LIFETIME - lifetime, |from| read(&two).fit_to_issue(lifetime, from));
    assert_eq!(fit(last).unwrap().common_name().as_deref(), Some("Two"));
    assert!(matches!(fit(last + Duration::SECOND).unwrap_err(), IssuerError::EndsTooSoon { .. }));
    let refused = |pair: &KeyAndCertificate| read(pair).fit_to_issue(lifetime, now()).unwrap_err();
    let service = desk.root.service("Test", now(), &mut desk.rng).unwrap();
    assert_eq!(refused(&service.to_pem()), IssuerError::ExtendedKeyUsage);
    assert_eq!(refused(&desk.root.to_pem()), IssuerError::NameOfRoot);
}

#[test]
fn no_issuing_ca_outlives_its_root() {
    let mut desk = Desk::new();
    let late = now() + ROOT_LIFETIME - Duration::days(30);
    let issuing = desk.make("Late", late);
    assert_eq!(read(&issuing).not_after(), now() + ROOT_LIFETIME);
}

#[test]
fn issuing_ca_is_no_service_ca_nor_the_other_way_round() {
    let mut desk = Desk::new();
    let issuing = desk.make("Test", now());
    let service = desk.root.service("Test", now(), &mut desk.rng).unwrap().to_pem();
    read(&service).fit_to_serve().unwrap();
    assert_eq!(read(&issuing).fit_to_serve().unwrap_err(), IssuerError::NotOfServers);
    let refused = read(&service).fit_to_issue(Duration::DAY, now()).unwrap_err();
    assert_eq!(refused, IssuerError::ExtendedKeyUsage);
    let root = desk.root.to_pem();
    assert_eq!(read(&root).fit_to_serve().unwrap_err(), IssuerError::NameOfRoot);
}

#[test]
fn root_certifies_a_request_as_what_it_asks_for_unless_a_byte_was_altered() {
    let mut desk = Desk::new();
    let (key, root) = (rcgen::KeyPair::generate().unwrap(), desk.root_der());
    for (pem, kind, name) in [
        (issuing_request("Plant A", &key).unwrap(), CaKind::Issuing, "Plant A"),
        (service_request("Plant B", &key).unwrap(), CaKind::Service, "Plant B"),
    ] {
        let (_, der) = x509_parser::pem::parse_x509_pem(pem.as_bytes()).unwrap();
        let request = CaRequest::check(&der.contents).unwrap();
        assert_eq!((request.kind(), request.common_name()), (kind, name));
        let made = desk.root.certify_request(&request, now(), &mut desk.rng).unwrap();
        let issuer = Issuer::from_pem(&made, &key.serialize_pem()).unwrap();
        let issuer = issuer.under(std::slice::from_ref(&root)).unwrap();
        assert_eq!(issuer.common_name().as_deref(), Some(name));
        match kind {
            CaKind::Issuing => issuer.fit_to_issue(Duration::DAY, now()).unwrap(),
            CaKind::Service => issuer.fit_to_serve().unwrap(),
        };
        // Every byte counts that the key signed: all but the lengths and the name of the algorithm
        // that stand around it.
        let (_, parsed) = X509CertificationRequest::from_der(&der.contents).unwrap();
        let signed = parsed.certification_request_info.raw;
        let begin = der.contents.windows(signed.len()).position(|it| it == signed).unwrap();
        for at in begin..begin + signed.len() {
            let mut altered = der.contents.clone();
            altered[at] ^= 1;
            assert!(CaRequest::check(&altered).is_err(), "byte {at}");
        }
        assert!(CaRequest::check(&[&der.contents[..], &[0]].concat()).is_err());
    }
}

#[test]
fn ca_begins_with_a_root_that_signed_itself_has_no_limits_and_is_valid() {
    let mut desk = Desk::new();
    let root = desk.root_der();
    assert_eq!(*FirstRoot::check(root.clone(), now()).unwrap().certificate(), root);
    let refused = |der, at| FirstRoot::check(der, at).unwrap_err();
    assert!(matches!(refused(root.clone(), in_days(-1)), NotANewRoot::NotValid { .. }));
    let after = now() + ROOT_LIFETIME + Duration::DAY;
    assert!(matches!(refused(root, after), NotANewRoot::NotValid { .. }));
    let der = |pem: &str| CertificateDer::from_pem_slice(pem.as_bytes()).unwrap();
    let (_, cross) = desk.root.next_root(now(), &mut desk.rng).unwrap();
    assert_eq!(refused(der(&cross), now()), NotANewRoot::NotSelfSigned);
    assert_eq!(refused(b"none".to_vec().into(), now()), NotANewRoot::Unreadable);
    // One that may certify no further CA.
    let mut params = rcgen::CertificateParams::default();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Constrained(0));
    params.key_usages = vec![rcgen::KeyUsagePurpose::KeyCertSign];
    (params.not_before, params.not_after) = (in_days(-1), in_days(1));
    let limited = params.self_signed(&rcgen::KeyPair::generate().unwrap()).unwrap();
    assert_eq!(refused(limited.der().clone(), now()), NotANewRoot::Limited);
}

#[test]
fn a_request_is_signed_by_its_key_and_asks_for_what_an_issuing_ca_needs() {
    let key = rcgen::KeyPair::from_pem(&new_ca_key().unwrap()).unwrap();
    let request = issuing_request("Plant Issuing CA 2", &key).unwrap();
    let (_, pem) = x509_parser::pem::parse_x509_pem(request.as_bytes()).unwrap();
    assert_eq!(pem.label, "CERTIFICATE REQUEST");
    let (_, request) = X509CertificationRequest::from_der(&pem.contents).unwrap();
    request.verify_signature().unwrap();
    assert_eq!(request.certification_request_info.subject.to_string(), "CN=Plant Issuing CA 2");
    assert_eq!(request.requested_extensions().unwrap().count(), 3);
}

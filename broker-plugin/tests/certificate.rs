//! Whom a certificate speaks for.

use std::time::{Duration, SystemTime};

use assay_broker_plugin::certificate::{ClientCertificate, NoIdentity, identity};
use assay_wire::Identity;
use sha2::{Digest, Sha256};

#[test]
fn certificate_speaks_for_whom_its_uri_names() {
    let worker = certificate(&["urn:other:worker", "urn:assay:worker"]);
    assert_eq!(identity(&worker), Ok(Identity::Worker));
}

#[test]
fn garbage_speaks_for_nobody() {
    assert_eq!(identity(b"garbage"), Err(NoIdentity::Unreadable));
}

#[test]
fn certificate_without_a_uri_of_ours_speaks_for_nobody() {
    assert_eq!(identity(&certificate(&[])), Err(NoIdentity::None));
    assert_eq!(identity(&certificate(&["urn:other:worker"])), Err(NoIdentity::None));
    let unknown = Err(NoIdentity::Unknown { uri: "urn:assay:admin".into() });
    assert_eq!(identity(&certificate(&["urn:assay:admin"])), unknown);
}

/// One reader could take the first URI as the identity, and another reader the second.
#[test]
fn certificate_with_two_identities_speaks_for_nobody() {
    let both = certificate(&["urn:assay:worker", "urn:assay:operator"]);
    assert_eq!(identity(&both), Err(NoIdentity::Several));
}

#[test]
fn client_certificate_has_what_the_register_and_the_doorkeeper_ask_for() {
    let der = certificate(&["urn:assay:worker"]);
    let client = ClientCertificate::new(&der).unwrap();
    assert_eq!(client.identity, Identity::Worker);
    assert_eq!(client.serial, [0x41, 0x42]);
    assert_eq!(client.sha256, *Sha256::digest(&der));
    // 2030-01-01T00:00:00Z
    assert_eq!(client.not_after, SystemTime::UNIX_EPOCH + Duration::from_secs(1_893_456_000));
    assert_eq!(ClientCertificate::new(&certificate(&[])), Err(NoIdentity::None));
}

fn certificate(uris: &[&str]) -> Vec<u8> {
    let mut params = rcgen::CertificateParams::default();
    let name = |uri: &&str| rcgen::SanType::URI((*uri).try_into().unwrap());
    params.subject_alt_names = uris.iter().map(name).collect();
    params.serial_number = Some(vec![0x41, 0x42].into());
    params.not_after = rcgen::date_time_ymd(2030, 1, 1);
    params.self_signed(&rcgen::KeyPair::generate().unwrap()).unwrap().der().to_vec()
}

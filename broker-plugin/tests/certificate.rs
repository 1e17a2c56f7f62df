//! Whom a certificate speaks for.

use assay_broker_plugin::certificate::{NoIdentity, identity};
use assay_wire::Identity;

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

/// Two URIs could be read as one identity by one reader and as another by the next.
#[test]
fn certificate_with_two_identities_speaks_for_nobody() {
    let both = certificate(&["urn:assay:worker", "urn:assay:operator"]);
    assert_eq!(identity(&both), Err(NoIdentity::Several));
}

fn certificate(uris: &[&str]) -> Vec<u8> {
    let mut params = rcgen::CertificateParams::default();
    let name = |uri: &&str| rcgen::SanType::URI((*uri).try_into().unwrap());
    params.subject_alt_names = uris.iter().map(name).collect();
    params.self_signed(&rcgen::KeyPair::generate().unwrap()).unwrap().der().to_vec()
}

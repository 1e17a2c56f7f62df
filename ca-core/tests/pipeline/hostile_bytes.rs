//! No parser of a device's or an operator's bytes panics, and none accepts a changed area as
//! another spelling of the same one.

use assay_ca_core::key::PublicKey;
use assay_ca_core::tpm::public::PublicArea;
use assay_ca_core::tpm::template::{EkArea, IkArea, ParentArea};
use assay_ca_core::{BoundKey, EkIdentity, Evidence, TrustedEk, VendorCertificate};
use assay_wire::{Bundle, EkPublic, Proof};

use crate::fixture::*;

/// Every truncation of `bytes`, and every byte changed in three ways.
fn damaged(bytes: &[u8]) -> impl Iterator<Item = Vec<u8>> {
    let truncated = (0..bytes.len()).map(|length| bytes[..length].to_vec());
    let changed = (0..bytes.len()).flat_map(|at| {
        [0x01, 0x80, 0xFF].map(|change| {
            let mut changed = bytes.to_vec();
            changed[at] ^= change;
            changed
        })
    });
    truncated.chain(changed)
}

#[test]
fn areas() {
    for file in [
        "ek-rsa2048",
        "ek-p384",
        "ik-p256",
        "ik-rsa2048",
        "srk-p256",
        "srk-rsa2048",
        "parent-p256",
        "parent-rsa2048",
    ] {
        for bytes in damaged(&golden(&format!("{file}.tpm2b"))[2..]) {
            if let Ok(area) = PublicArea::parse(&bytes) {
                assert_eq!(area.encode(), bytes, "there is one spelling of an area");
                drop((
                    EkArea::recognise(&area),
                    IkArea::recognise(&area),
                    ParentArea::recognise(&area),
                ));
            }
        }
    }
}

#[test]
fn ek_certificates() {
    let vendor = Vendor::new("Acme");
    let mut device = Device::of(&vendor);
    let anchors = vendor.anchors();
    let certificate = device.ek_certificates[0].clone();
    for bytes in damaged(&certificate) {
        device.ek_certificates[0] = bytes.into();
        let verified = TrustedEk::verify(&device.evidence().ek, &anchors, None, now());
        verified.expect_err("every byte is signed, or is the signature");
        let brief = Bundle { ek_public: EkPublic::OfCertificate(0x01C0_000A), ..device.request() };
        if let Ok(evidence) = Evidence::parse(brief) {
            let verified = TrustedEk::verify(&evidence.ek, &anchors, None, now());
            verified.expect_err("every byte is signed, or is the signature");
        }
    }
}

#[test]
fn issuers_and_anchors() {
    let vendor = Vendor::new("Acme");
    let mut device = Device::of(&vendor);
    let intermediate = device.ek_certificates[1].clone();
    for bytes in damaged(&intermediate) {
        drop(VendorCertificate::read(&bytes));
        device.ek_certificates[1] = bytes.into();
        let verified = TrustedEk::verify(&device.evidence().ek, &vendor.anchors(), None, now());
        verified.expect_err("every byte is signed, or is the signature");
    }
}

#[test]
fn requests() {
    let mut device = Device::of(&Vendor::new("Acme"));
    for bytes in damaged(&device.csr.clone()) {
        device.csr = bytes;
        let bound = BoundKey::verify(&Evidence::parse(device.request()).unwrap());
        bound.expect_err("every byte is signed, or is the signature");
    }
}

#[test]
fn claims() {
    let vendor = Vendor::new("Acme");
    let (mut ca, device) = (Ca::trusting(&vendor), Device::of(&vendor));
    let challenge = ca.challenge(&device, &nothing_on_record()).unwrap();
    let answer = device.answer(&challenge);
    for bytes in damaged(&answer.claim) {
        let request = Proof { claim: bytes.try_into().unwrap(), ticket: answer.ticket.clone() };
        ca.prove(&request).unwrap_err();
    }
}

#[test]
fn operators_files() {
    let ek = SoftwareEk::golden("p256");
    let certificate = Vendor::new("Acme").certify(&ek.key(), |_| ())[0].to_vec();
    for file in [certificate, ek.key().spki(), ek.area.encode(), ek.area.encode_sized()] {
        for bytes in damaged(&file) {
            drop((EkIdentity::recognise(&bytes), PublicKey::from_spki(&bytes)));
        }
    }
}

//! A device's TPM layer and library, against software TPMs as manufacturers make them.

mod activation;
/// The binary's module, to test what people are told.
#[path = "../../src/cli/advice.rs"]
mod advice;
mod doctor;
mod fake_ca;
mod faults;
mod flows;
mod interposer;
mod keys;
mod mistakes;
mod nv;
mod outside;
mod provisioning;
mod proxy;
mod renewal;
mod responses;
mod shared_key;
mod sockets;
mod tls;
mod wrap;

use anyhow::Result;
use assay_device::Error;
use assay_device::tpm::{EkKind, HierarchyPasswords, Password, PublicArea, Tpm2};
use assay_tests::{Swtpm, VendorCa, trusted_vendor};

/// The handle that tests keep an identity key at.
const IK: u32 = 0x8100_0200;

/// The handle that tests keep an HMAC key at.
const HMAC_KEY: u32 = 0x8100_0100;

/// EKs of every kind that swtpm's own manufacturer makes, and P-256.
const EKS: [(EkKind, assay_tests::EkKind); 3] = [
    (EkKind::Rsa2048, assay_tests::EkKind::Rsa2048),
    (EkKind::P256, assay_tests::EkKind::P256),
    (EkKind::P384, assay_tests::EkKind::P384),
];

fn vendor() -> VendorCa {
    trusted_vendor().unwrap()
}

/// A manufactured TPM with a P-256 EK certificate.
fn a_tpm() -> Swtpm {
    vendor().device(assay_tests::EkKind::P256, 0).unwrap()
}

fn open(swtpm: &Swtpm) -> Tpm2 {
    Tpm2::new(swtpm.tcti().parse().unwrap(), HierarchyPasswords::default())
}

fn open_with_passwords(swtpm: &Swtpm, owner: &str, endorsement: &str) -> Tpm2 {
    Tpm2::new(swtpm.tcti().parse().unwrap(), passwords(owner, endorsement))
}

fn passwords(owner: &str, endorsement: &str) -> HierarchyPasswords {
    let password = |text: &str| Password::new(text.into()).unwrap();
    HierarchyPasswords { owner: password(owner), endorsement: password(endorsement) }
}

fn assert_nothing_loaded(swtpm: &Swtpm) -> Result<()> {
    assert_eq!(swtpm.transient_handles()?, [0; 0], "transient objects");
    assert_eq!(swtpm.loaded_sessions()?, [0; 0], "sessions");
    Ok(())
}

/// What the program says of an error.
fn told(error: impl Into<Error>) -> String {
    advice::with_advice(&error.into())
}

/// The Name of a key with a SHA-256 `nameAlg` (TPM 2.0 Part 1, 16).
fn name_of(public: &PublicArea) -> Vec<u8> {
    let digest = ring::digest::digest(&ring::digest::SHA256, &public.bytes);
    [&[0x00, 0x0B], digest.as_ref()].concat()
}

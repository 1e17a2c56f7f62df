//! The machines of all flows, against a CA, a TPM and a network that do as a test says, in
//! simulated time. Cryptography is simulated as well: the shell does it.

mod ca;
mod crash;
mod eks;
mod network;
mod refusals;
mod rekey;
mod renew;
mod rotate;
mod runs;
mod sequences;
mod tpm;
mod world;

use assay_device_core::{Credential, ProvisionRequest, Provisioned};
use assay_wire::Flow;

/// How many replies a run of each flow needs.
const FLOWS: [(Flow, usize); 3] = [(Flow::Ticket, 2), (Flow::Sealed, 2), (Flow::SharedKey, 1)];

fn request(flow: Flow) -> ProvisionRequest {
    ProvisionRequest { flow: Some(flow), ..ProvisionRequest::new("default".parse().unwrap()) }
}

fn serial(provisioned: &Provisioned) -> &str {
    match &provisioned.credential {
        Credential::Certificate { certificate, .. } => &certificate.serial,
        Credential::SharedKey { .. } => panic!("a shared key"),
    }
}

/// A stand-in for hashes, MACs and signatures. No test alters data in such a way that the tag stays
/// the same.
fn tag(parts: &[&[u8]]) -> [u8; 8] {
    let mut hash = 0xCBF2_9CE4_8422_2325_u64;
    for part in parts {
        for byte in (part.len() as u32).to_be_bytes().iter().chain(*part) {
            hash = (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01B3);
        }
    }
    hash.to_be_bytes()
}

/// A tag of 32 bytes.
fn tag32(parts: &[&[u8]]) -> [u8; 32] {
    let mut tags = [0; 32];
    for (number, chunk) in tags.chunks_exact_mut(8).enumerate() {
        chunk.copy_from_slice(&tag(&[&[number as u8][..], &parts.concat()]));
    }
    tags
}

//! Many sequences of runs, with faults chosen by chance. After any of them, a run without faults
//! succeeds.

use std::time::Duration;

use assay_device_core::{Credential, Grant, Memory, ProvisionRequest, Trouble};
use assay_wire::{Flow, Problem, ProblemCode};

use crate::request;
use crate::world::{Fate, World};

#[test]
fn run_without_faults_succeeds_after_any_sequence_of_faults() {
    for seed in 1..=5_000 {
        let mut chance = Chance(seed);
        // A device that changes to a certificate forgets its HMAC key, and then does not touch it.
        let flows = match chance.below(3) {
            0 => &[Flow::SharedKey][..],
            _ => &[Flow::Ticket, Flow::Sealed],
        };
        let mut world = World::default();
        world.ca.rotate_after = [None, Some(20 * 86_400)][chance.below(2)];
        for _ in 0..chance.below(6) {
            world.fates = (0..chance.below(5)).map(|_| fate(&mut chance)).collect();
            world.troubles =
                (0..chance.below(3)).map(|_| Trouble::Passing("away".into())).collect();
            world.ca.problems = (0..chance.below(3)).map(|_| problem(&mut chance)).collect();
            world.power_for = Some(chance.below(60)).filter(|actions| *actions < 40);
            world.is_noisy = chance.below(2) == 0;
            let (again, renew) = (chance.below(3) == 0, chance.below(4) == 0);
            let flow = flows[chance.below(flows.len())];
            _ = world.run(ProvisionRequest { again, renew, ..request(flow) });
            if chance.below(2) == 0 {
                world.sign_in_by_key();
            }
            // So that certificates are due for renewal, or expire.
            world.now += Duration::from_secs(86_400 * [0, 0, 30, 61][chance.below(4)]);
            if chance.below(6) == 0 {
                world.tpm.clear();
            }
            // Without its state, a device does not touch an HMAC key that may be somebody else's.
            if chance.below(6) == 0 && world.tpm.hmac_keys.is_empty() {
                world.memory = Memory::default();
            }
        }
        world.fates.clear();
        world.troubles.clear();
        world.ca.problems.clear();
        world.power_for = None;
        let flow = flows[chance.below(flows.len())];
        let provisioned = world.run(request(flow)).unwrap();
        let provisioned = provisioned.unwrap_or_else(|error| panic!("seed {seed}: {error}"));
        // The certificate may have come by the other of the two flows.
        assert_eq!(provisioned.flow == Flow::SharedKey, flow == Flow::SharedKey, "seed {seed}");
        match (&provisioned.credential, &world.memory.in_use) {
            (Credential::Certificate { certificate, .. }, Some(Grant::Certificate(grant))) => {
                assert_eq!(certificate.chain, grant.chain);
                assert_eq!(grant.chain[0][..32], world.tpm.ik().unwrap(), "seed {seed}");
                assert_eq!(grant.unconfirmed, None);
                assert!(world.is_let_in(), "seed {seed}");
            }
            (Credential::SharedKey { .. }, Some(Grant::SharedKey(grant))) => {
                let held = world.key_at(grant.record.hmac_handle);
                assert_eq!(grant.record.keys.as_slice(), held.as_slice(), "seed {seed}");
                assert!(world.sign_in_by_key(), "seed {seed}");
                // A rotation that the power cut short leaves a key that the next one replaces.
                assert!(world.remembers_all_keys(), "seed {seed}");
            }
            other => panic!("seed {seed}: {other:?}"),
        }
    }
}

fn fate(chance: &mut Chance) -> Fate {
    match chance.below(6) {
        0 => Fate::Lost,
        1 => Fate::Twice,
        2 => Fate::Late,
        3 => Fate::Corrupted(chance.below(300)),
        4 => Fate::BreaksConnection,
        _ => Fate::Arrives,
    }
}

fn problem(chance: &mut Chance) -> Problem {
    let codes = [
        ProblemCode::Busy,
        ProblemCode::Internal,
        ProblemCode::ClaimExpired,
        ProblemCode::TicketRefused,
        ProblemCode::EkNotEnrolled,
        ProblemCode::DeviceDisabled,
        ProblemCode::CertificateNotInForce,
    ];
    Problem::new(codes[chance.below(codes.len())], "as chance has it".into()).retry_after(3)
}

/// Numbers that look random (xorshift64*).
struct Chance(u64);

impl Chance {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) as usize % limit
    }
}

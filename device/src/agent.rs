//! The shell around the core: does what a [`Machine`] asks, until it has a result.

use std::time::Duration;

use assay_device_core::{
    Action, Event, Failure, Machine, Pinning, Provisioned, SealedBox, Step, TpmOperation, Traffic,
};
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use ring::digest;
use rustls::pki_types::CertificateDer;
use zeroize::Zeroizing;

use crate::clock::Clock;
use crate::configuration;
use crate::ek_certificate;
use crate::error::Error;
use crate::link::Broker;
use crate::operational_line::OperationalLine;
use crate::operations::Operations;
use crate::progress::{Progress, Steps};
use crate::roots;
use crate::state::StateDirectory;
use crate::talk::Talk;
use crate::tpm::{TpmError, TpmThread};
use crate::verify;

/// What a device has, and what it trusts.
pub(crate) struct Agent<'a> {
    pub(crate) tpm: &'a TpmThread,
    pub(crate) state: &'a StateDirectory,
    /// Those that the device was given.
    pub(crate) roots: &'a [CertificateDer<'static>],
    pub(crate) clock: &'a Clock,
}

/// What a run took.
#[derive(Clone, Copy, Debug)]
pub struct Cost {
    /// Time spent in the TPM.
    pub tpm_time: Duration,
    /// Time in which the device only waited for the broker and the CA.
    pub wire_time: Duration,
    /// Time spent altogether.
    pub total_time: Duration,
    /// How many requests were sent to the CA.
    pub requests: u32,
    /// The total length of the requests, in bytes, as MQTT payloads: without topics, TLS and TCP.
    pub bytes_sent: usize,
    /// The total length of the replies, in bytes, as MQTT payloads.
    pub bytes_received: usize,
}

impl Agent<'_> {
    /// Runs a machine that began at time zero and may take until `deadline`. It asks over the
    /// `operational` connection first, if there is one. `ek_certificate` is
    /// the EK certificate that its request has.
    pub(crate) fn run(
        &self,
        mut machine: Machine<Provisioned>,
        broker: Broker,
        operational: Option<OperationalLine>,
        deadline: Duration,
        ek_certificate: Option<&[u8]>,
        progress: Progress<'_>,
    ) -> Result<(Provisioned, Cost), Error> {
        let tpm_before = self.tpm.spent();
        let mut operations = Operations::new(self.tpm);
        let connected = format!("connected to {}", broker.url);
        let mut talk = Talk::start(broker).by(operational);
        let mut steps = Steps::start(progress);
        while let Some(action) = machine.poll_action() {
            let event = match action {
                Action::Tpm(operation) => {
                    let removed = match &operation {
                        TpmOperation::RemoveKey { handle, .. } => Some(*handle),
                        _ => None,
                    };
                    let answer = operations.run(operation);
                    if let (Some(handle), Ok(_)) = (removed, &answer) {
                        self.state.forget_private(handle)?;
                    }
                    if let Some((handle, private)) = operations.take_created() {
                        self.state.keep_private(handle, &private)?;
                    }
                    Some(Event::Tpm(answer))
                }
                Action::Store(memory) => {
                    self.state.store(&memory)?;
                    Some(Event::Stored)
                }
                Action::VerifyPath(chain) => {
                    let now = self.clock.at(&chain);
                    let roots = roots::trusted(self.roots, self.state.path())?;
                    Some(Event::PathVerified(verify::path(&chain, &roots, now)))
                }
                Action::Pin(root) => {
                    let now = self.clock.at([&root]);
                    // The certificate that it came with is worth more.
                    let pinning = roots::pin(&root, self.roots, self.state, now)
                        .unwrap_or_else(|error| Pinning::Refused(error.to_string()));
                    Some(Event::Pinned(pinning))
                }
                Action::Unseal(sealed) => Some(Event::Unsealed(unseal(&sealed))),
                Action::Digest(bytes) => Some(Event::Digest(sha256(&bytes))),
                Action::Configuration(received) => {
                    let roots = roots::trusted(self.roots, self.state.path())?;
                    let kept = configuration::keep(&received, self.state, &roots, self.clock)
                        .unwrap_or_else(|error| {
                            Err(configuration::ConfigurationError::NotKept(error.to_string()))
                        });
                    Some(Event::Configuration(kept.map_err(|error| error.to_string())))
                }
                Action::Clock => Some(Event::Clock(self.clock.now().as_secs())),
                Action::Progress(step) => {
                    match &step {
                        Step::Connected => steps.done(&connected),
                        Step::Retry { .. } => steps.tell(&step.to_string(), talk.now()),
                        Step::TryingEk { .. }
                        | Step::NotDue(_)
                        | Step::RotationNotDue(_)
                        | Step::RenewalRefused(_)
                        | Step::RekeyRefused(_)
                        | Step::RootRefused(_)
                        | Step::ConfigurationRefused(_) => {
                            steps.tell(&step.to_string(), Duration::ZERO)
                        }
                        Step::RenewalPostponed(_) => {
                            // The core knows only that a setting is wrong.
                            let step = match talk.take_error() {
                                Some(error) => Step::RenewalPostponed(error.to_string()),
                                None => step.clone(),
                            };
                            steps.tell(&step.to_string(), Duration::ZERO);
                        }
                        Step::NotRotated(_) => {
                            let step = match talk.take_error() {
                                Some(error) => Step::NotRotated(error.to_string()),
                                None => step.clone(),
                            };
                            steps.tell(&step.to_string(), Duration::ZERO);
                        }
                        step => steps.done(&step.to_string()),
                    }
                    None
                }
                action => talk.perform(action)?,
            };
            if let Some(event) = event {
                machine.handle(talk.now(), event);
            }
        }
        let Traffic { requests, bytes_sent, bytes_received } = machine.traffic();
        let cost = Cost {
            tpm_time: self.tpm.spent() - tpm_before,
            wire_time: talk.waited(),
            total_time: talk.now(),
            requests,
            bytes_sent,
            bytes_received,
        };
        let fault = |failure: Failure| Error::Internal(failure.to_string());
        let provisioned = machine.into_result().map_err(|failure| match failure {
            Failure::Tpm(_) => operations.take_error().unwrap_or_else(|| fault(failure)),
            Failure::Unsupported(keys) => TpmError::Unsupported(keys).into(),
            Failure::UnknownKindOfEk => Error::UnknownKindOfEk(ek_certificate::why_of_no_kind(
                ek_certificate.unwrap_or_default(),
            )),
            Failure::CertificateForLegacyEk | Failure::TooLong(_) => {
                Error::Usage(failure.to_string())
            }
            Failure::Lasting => talk.take_error().unwrap_or_else(|| fault(failure)),
            Failure::Refused(problem) => Error::Refused { problem },
            Failure::Pending(problem) => Error::Pending { deadline, problem },
            Failure::Answer(error) => error.into(),
            Failure::NotReached { reason } => Error::NotReached { deadline, reason },
            Failure::Unfinished => fault(failure),
        })?;
        Ok((provisioned, cost))
    }
}

/// Opens a box of AES-256-GCM (SP 800-38D), for [`Action::Unseal`]. `None` if its tag does not
/// match.
pub fn unseal(sealed: &SealedBox) -> Option<Zeroizing<Vec<u8>>> {
    let key = LessSafeKey::new(UnboundKey::new(&AES_256_GCM, &*sealed.key).ok()?);
    let nonce = Nonce::assume_unique_for_key(sealed.nonce);
    let mut contents = Zeroizing::new(sealed.sealed.clone());
    let length =
        key.open_in_place(nonce, Aad::from(&sealed.associated_data), &mut contents).ok()?.len();
    contents.truncate(length);
    Some(contents)
}

fn sha256(bytes: &[u8]) -> [u8; 32] {
    // Unwrap safety: SHA-256 has 32 bytes.
    digest::digest(&digest::SHA256, bytes).as_ref().try_into().unwrap()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sealed(contents: &[u8]) -> SealedBox {
        let (key, nonce, associated_data) = ([0x42; 32], [9; 12], vec![0xC1; 20]);
        let mut sealed = contents.to_vec();
        LessSafeKey::new(UnboundKey::new(&AES_256_GCM, &key).unwrap())
            .seal_in_place_append_tag(
                Nonce::assume_unique_for_key(nonce),
                Aad::from(&associated_data),
                &mut sealed,
            )
            .unwrap();
        SealedBox { key: Zeroizing::new(key), nonce, associated_data, sealed }
    }

    #[test]
    fn box_opens_with_its_key_and_what_stands_beside_it() {
        assert_eq!(unseal(&sealed(b"contents")).unwrap().as_slice(), b"contents");
    }

    #[test]
    fn box_altered_in_any_byte_does_not_open() {
        let good = sealed(b"contents");
        for at in 0..good.sealed.len() {
            let mut altered = good.clone();
            altered.sealed[at] ^= 1;
            assert!(unseal(&altered).is_none(), "byte {at}");
        }
        for at in 0..good.associated_data.len() {
            let mut altered = good.clone();
            altered.associated_data[at] ^= 1;
            assert!(unseal(&altered).is_none(), "byte {at} beside it");
        }
        for length in 0..good.sealed.len() {
            let cut = SealedBox { sealed: good.sealed[..length].to_vec(), ..good.clone() };
            assert!(unseal(&cut).is_none(), "{length} bytes");
        }
        assert!(unseal(&SealedBox { key: Zeroizing::new([0x43; 32]), ..good }).is_none());
    }
}

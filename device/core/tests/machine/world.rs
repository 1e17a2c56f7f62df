//! A device, its store, and the network to its CA. Time passes only while somebody waits.

use std::collections::VecDeque;
use std::time::Duration;

use assay_device_core::{
    Action, AnswerError, Attempt, CertificateGrant, DeviceRecord, Event, Failure, Grant,
    HmacPublic, Machine, Memory, Pinning, ProvisionRequest, Provisioned, ReceivedConfiguration,
    SharedKeyGrant, Step, TpmOperation, Trouble, Verdict, VerifiedPath, provision,
};
use assay_wire::{Flow, Proof, Reply, Request, RequestBody};
use rustls_pki_types::CertificateDer;

use crate::ca::{FakeCa, LIFETIME, box_tag};
use crate::tpm::FakeTpm;
use crate::{request, tag, tag32};

/// What becomes of a reply on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    Arrives,
    Lost,
    Twice,
    /// It comes together with the reply to the next request, and before it.
    Late,
    /// One bit of this byte is flipped.
    Corrupted(usize),
    /// The connection breaks instead.
    BreaksConnection,
}

#[derive(Default)]
pub(crate) struct World {
    pub(crate) now: Duration,
    /// By how much the device's clock is wrong, in seconds.
    pub(crate) clock_error: i64,
    /// What is stored: all that outlives a crash.
    pub(crate) memory: Memory,
    pub(crate) tpm: FakeTpm,
    pub(crate) ca: FakeCa,
    /// What becomes of the next replies; those after them arrive.
    pub(crate) fates: VecDeque<Fate>,
    /// What becomes of the next connections; those after them come about.
    pub(crate) troubles: VecDeque<Trouble>,
    /// The run ends as if by a loss of power after this many actions.
    pub(crate) power_for: Option<usize>,
    /// The connection breaks during the first action for which this returns true.
    pub(crate) breaks_in: Option<fn(&Action) -> bool>,
    /// Whether events that nobody asked for come between all others.
    pub(crate) is_noisy: bool,
    /// All actions of the last run.
    pub(crate) actions: Vec<Action>,
    /// When each request was sent.
    pub(crate) sent: Vec<Duration>,
    pub(crate) inbox: VecDeque<Event>,
    pub(crate) late: Vec<Event>,
    pub(crate) draws: u8,
    /// The new roots that are pinned.
    pub(crate) pinned: Vec<Vec<u8>>,
    /// What was given to be verified and kept.
    pub(crate) configurations: Vec<ReceivedConfiguration>,
}

impl World {
    /// A run of the device; `None` if the power failed in it.
    pub(crate) fn run(
        &mut self,
        request: ProvisionRequest,
    ) -> Option<Result<Provisioned, Failure>> {
        let machine = provision(request, self.memory.clone(), self.now);
        self.drive(machine)
    }

    pub(crate) fn drive<T>(&mut self, mut machine: Machine<T>) -> Option<Result<T, Failure>> {
        self.actions.clear();
        self.inbox.clear();
        while let Some(action) = machine.poll_action() {
            if self.power_for == Some(self.actions.len()) {
                return None;
            }
            assert!(self.actions.len() < 10_000, "it does not end");
            self.actions.push(action.clone());
            if self.is_noisy {
                for event in noise() {
                    machine.handle(self.now, event);
                }
            }
            if self.breaks_in.take_if(|breaks_in| breaks_in(&action)).is_some() {
                machine.handle(self.now, Event::Lost(Trouble::Passing("broken".into())));
            }
            if let Some(event) = self.perform(action) {
                machine.handle(self.now, event);
            }
        }
        Some(machine.into_result())
    }

    /// Pins what the CA calls a root, once.
    fn pin(&mut self, root: &[u8]) -> Pinning {
        if !root.starts_with(b"root") {
            return Pinning::Refused("it is none".into());
        }
        if self.pinned.iter().any(|pinned| pinned == root) {
            return Pinning::Known;
        }
        self.pinned.push(root.to_vec());
        Pinning::New(String::from_utf8_lossy(root).into())
    }

    /// What the device's clock says.
    fn clock(&self) -> u64 {
        (BEGIN + self.now.as_secs()).saturating_add_signed(self.clock_error)
    }

    /// Whether a broker lets the device in with what it signs in with.
    pub(crate) fn is_let_in(&self) -> bool {
        match self.memory.credentials().next() {
            Some(Grant::Certificate(grant)) => self.ca.lets_in(&grant.chain[0]),
            _ => false,
        }
    }

    /// The HMAC key at a handle.
    pub(crate) fn key_at(&self, handle: u32) -> Option<HmacPublic> {
        self.tpm.hmac_keys.get(&handle).cloned().map(HmacPublic)
    }

    /// Whether the device remembers each HMAC key that is in the TPM.
    pub(crate) fn remembers_all_keys(&self) -> bool {
        let in_use = self.memory.in_use.as_ref().map(Grant::record);
        let attempt = self.memory.attempt.as_ref().map(Attempt::record);
        let records: Vec<_> = in_use.into_iter().chain(attempt).collect();
        self.tpm.hmac_keys.iter().all(|(handle, key)| {
            records.iter().any(|record| match record {
                DeviceRecord::Hmac(record) => {
                    record.hmac_handle == *handle && record.keys.iter().any(|it| it.0 == *key)
                }
                DeviceRecord::Identity(_) => false,
            })
        })
    }

    /// Whether the TPM has an HMAC key that is stored and that the CA takes.
    pub(crate) fn has_good_key(&self) -> bool {
        self.memory.credentials().any(|grant| {
            let Grant::SharedKey(SharedKeyGrant { record, .. }) = grant else { return false };
            let held = self.key_at(record.hmac_handle);
            held.is_some_and(|held| record.keys.contains(&held) && self.ca.takes_key(&held.0))
        })
    }

    /// Connects with the HMAC key that comes first, and settles what a broker says to it. Returns
    /// whether the device is let in.
    pub(crate) fn sign_in_by_key(&mut self) -> bool {
        let key = self.memory.credentials().find_map(|grant| {
            let Grant::SharedKey(SharedKeyGrant { record, .. }) = grant else { return None };
            self.key_at(record.hmac_handle).filter(|held| record.keys.contains(held))
        });
        let Some(HmacPublic(key)) = key else { return false };
        let is_let_in = self.ca.takes_key(&key);
        if is_let_in {
            self.ca.key_in_use = key[0];
        }
        let verdict = if is_let_in { Verdict::Accepted } else { Verdict::Refused };
        self.settle(verdict);
        is_let_in
    }

    /// The run after a broker said something to a key that waits for its first use.
    pub(crate) fn settle(
        &mut self,
        verdict: Verdict,
    ) -> Option<Option<Result<Provisioned, Failure>>> {
        matches!(self.memory.attempt, Some(Attempt::Rotated(_))).then(|| {
            let broker_said = Some(verdict);
            self.run(ProvisionRequest { broker_said, ..request(Flow::SharedKey) })
        })
    }

    /// What people were told.
    pub(crate) fn steps(&self) -> Vec<Step> {
        let step = |action: &Action| match action {
            Action::Progress(step) => Some(step.clone()),
            _ => None,
        };
        self.actions.iter().filter_map(step).collect()
    }

    pub(crate) fn perform(&mut self, action: Action) -> Option<Event> {
        Some(match action {
            Action::Tpm(operation) => {
                if let TpmOperation::KeepHmacKey { key, .. } = &operation {
                    assert!(self.remembers_hmac_key(&key.public), "kept before it was stored");
                }
                Event::Tpm(self.tpm.run(operation))
            }
            Action::Store(memory) => {
                self.memory = *memory;
                Event::Stored
            }
            Action::VerifyPath(chain) => Event::PathVerified(verify(&chain, self.clock())),
            Action::Pin(root) => Event::Pinned(self.pin(&root)),
            Action::Unseal(sealed) => Event::Unsealed((|| {
                let (contents, found) = sealed.sealed.split_last_chunk()?;
                let (key, beside) = (&sealed.key, &sealed.associated_data);
                let expected = box_tag(key, &sealed.nonce, beside, contents);
                (*found == expected).then(|| contents.to_vec().into())
            })()),
            Action::Digest(bytes) => Event::Digest(tag32(&[b"digest", &bytes])),
            Action::Configuration(received) => {
                self.configurations.push(*received);
                Event::Configuration(Ok(Some(self.configurations.len() as u64)))
            }
            Action::Draw => {
                self.draws = self.draws.wrapping_add(1);
                Event::Random([self.draws; 16])
            }
            Action::Clock => Event::Clock(self.clock()),
            Action::Connect(_) => {
                self.inbox.clear();
                let trouble = self.troubles.pop_front();
                self.inbox.push_back(trouble.map_or(Event::Connected, Event::Lost));
                return None;
            }
            Action::Send(message) => {
                self.send(&message);
                return None;
            }
            Action::Disconnect => {
                self.inbox.clear();
                return None;
            }
            Action::Progress(_) => return None,
            Action::Wait { until } => match self.inbox.pop_front() {
                Some(event) => {
                    self.now += Duration::from_millis(10);
                    event
                }
                None => {
                    assert!(until < Duration::MAX, "it waits for an answer that it has");
                    self.now = self.now.max(until);
                    Event::Time
                }
            },
        })
    }

    fn send(&mut self, message: &[u8]) {
        let request = Request::decode(message).unwrap();
        self.assert_stored_before(&request.body);
        self.sent.push(self.now);
        self.ca.clock = BEGIN + self.now.as_secs();
        let body = self.ca.answer(&request.body);
        let reply = Reply { id: request.id, body }.encode();
        self.inbox.extend(self.late.drain(..));
        match self.fates.pop_front().unwrap_or(Fate::Arrives) {
            Fate::Arrives => self.inbox.push_back(Event::Reply(reply)),
            Fate::Lost => {}
            Fate::Twice => {
                self.inbox.push_back(Event::Reply(reply.clone()));
                self.inbox.push_back(Event::Reply(reply.clone()));
                // It comes once more after the next request.
                self.late.push(Event::Reply(reply));
            }
            Fate::Late => self.late.push(Event::Reply(reply)),
            Fate::Corrupted(at) => {
                let mut corrupted = reply;
                let at = at % corrupted.len();
                corrupted[at] ^= 1;
                self.inbox.push_back(Event::Reply(corrupted));
            }
            Fate::BreaksConnection => {
                self.inbox.push_back(Event::Lost(Trouble::Passing("broken".into())));
            }
        }
    }

    /// What a later run needs is stored before the request that depends on it.
    fn assert_stored_before(&self, request: &RequestBody) {
        let is_stored = match request {
            RequestBody::Challenge(_) | RequestBody::Enroll(_) => {
                matches!(
                    (&self.memory.attempt, &self.memory.in_use),
                    (Some(Attempt::Identity(_) | Attempt::Unconfirmed(_)), _)
                        | (_, Some(Grant::Certificate(_)))
                )
            }
            RequestBody::Rekey(_) => matches!(self.memory.attempt, Some(Attempt::Rekey(_))),
            RequestBody::Register(_) => matches!(self.memory.attempt, Some(Attempt::Hmac(_))),
            RequestBody::Confirm(proof) => self.unconfirmed().as_ref() == Some(proof),
            RequestBody::Certify(_) | RequestBody::Ping => true,
            RequestBody::Renew(renewal) => {
                let is_it = |grant: &CertificateGrant| is_of(grant, &renewal.certificate);
                matches!(&self.memory.in_use, Some(Grant::Certificate(it)) if is_it(it))
            }
            RequestBody::Adopt(adoption) => {
                let is_it = |grant: &CertificateGrant| is_of(grant, &adoption.certificate);
                matches!(&self.memory.attempt, Some(Attempt::Renewed(it)) if is_it(it))
            }
        };
        assert!(is_stored, "{request:?} was sent while {:?} was stored", self.memory);
    }

    fn unconfirmed(&self) -> Option<Proof> {
        let grant = match (&self.memory.attempt, &self.memory.in_use) {
            (Some(Attempt::Unconfirmed(grant)), _) => grant,
            (_, Some(Grant::Certificate(grant))) => grant,
            _ => return None,
        };
        grant.unconfirmed.as_ref().map(|confirmation| confirmation.proof.clone())
    }

    fn remembers_hmac_key(&self, public: &[u8]) -> bool {
        match &self.memory.attempt {
            Some(Attempt::Hmac(record)) => record.keys.iter().any(|key| key.0 == public),
            _ => false,
        }
    }
}

fn is_of(grant: &CertificateGrant, sha256: &[u8; 32]) -> bool {
    tag32(&[b"digest", &grant.chain[0]]) == *sha256
}

/// Verifies a path and reads its certificate, as the shell does.
fn verify(chain: &[CertificateDer<'_>], clock: u64) -> Result<VerifiedPath, AnswerError> {
    let (contents, signature) =
        chain[0].split_last_chunk().ok_or_else(|| AnswerError::Unreadable("too short".into()))?;
    if *signature != tag(&[b"certificate", contents]) {
        return Err(AnswerError::Path("another signature".into()));
    }
    let (key_id, rest) = contents.split_first_chunk().unwrap();
    let (begins, name) = rest[1..].split_first_chunk().unwrap();
    let (not_before, name) = (u64::from_be_bytes(*begins), str::from_utf8(name).unwrap());
    let not_after = not_before + LIFETIME;
    if clock < not_before {
        return Err(AnswerError::NotYetValid { clock, not_before });
    }
    if clock > not_after {
        return Err(AnswerError::Expired { clock, not_after });
    }
    Ok(VerifiedPath {
        key_id: *key_id,
        is_for_clients: true,
        common_name: name.into(),
        uris: vec![format!("urn:assay:device:default:{name}")],
        serial: rest[0].to_string(),
        not_before,
        not_after,
    })
}

/// When the tests begin, in seconds since 1970.
pub(crate) const BEGIN: u64 = 1_800_000_000;

/// Events that answer nothing, such as replies that strangers write to the topic.
fn noise() -> Vec<Event> {
    let stranger = Reply { id: [0xEE; 16].into(), body: assay_wire::ReplyBody::Pong };
    vec![
        Event::Reply(stranger.encode()),
        Event::Reply(Vec::new()),
        Event::Reply(vec![0xFF; 100]),
        Event::Time,
    ]
}

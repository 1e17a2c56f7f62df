//! What a device remembers between two runs: which keys are its own, and what the CA gave for them.

use alloc::vec::Vec;
use core::time::Duration;

use assay_wire::{DeviceId, EkId, Flow, Proof, Scope};
use rustls_pki_types::CertificateDer;

use crate::kinds::{EkKind, IkKind, ParentKind};

/// All that a device remembers. It holds no key: the keys stay in the TPM.
///
/// Replace the stored memory as a whole, so that a reader finds the old or the new one whenever the
/// power fails. One such replacement makes an attempt, together with its certificate, what is in
/// use. An attempt that fails does not change what is in use.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Memory {
    /// What the device signs in with.
    pub in_use: Option<Grant>,
    /// What the CA has not agreed to yet.
    pub attempt: Option<Attempt>,
}

impl Memory {
    /// The EK for which the CA granted what is in use.
    pub fn granted_for(&self) -> Option<Shown> {
        self.in_use.as_ref().map(|grant| grant.record().into_shown())
    }

    /// What the device signs in with, best first.
    ///
    /// A renewed certificate comes first, or one for another key, or the next HMAC key. The CA
    /// takes it as it takes the one in use, until it is adopted or used. If the CA has heard of the
    /// adoption and its answer was lost, the one in use is no longer good.
    pub fn credentials(&self) -> impl Iterator<Item = Grant> {
        let renewed = match &self.attempt {
            Some(Attempt::Renewed(grant)) => Some(Grant::Certificate(grant.clone())),
            Some(Attempt::Rotated(grant)) => Some(Grant::SharedKey(grant.clone())),
            _ => None,
        };
        renewed.into_iter().chain(self.in_use.clone())
    }

    /// Adds a certificate that waits for its confirmation.
    ///
    /// It is in use at once if nothing else is. Otherwise what is in use stays so until the
    /// confirmation, because anybody who carries the messages can forge a refusal.
    pub(crate) fn with_unconfirmed(&self, grant: CertificateGrant) -> Self {
        match self.credentials().next() {
            None => Self { in_use: Some(Grant::Certificate(grant)), attempt: None },
            Some(_) => self.attempting(Attempt::Unconfirmed(grant)),
        }
    }

    /// The same memory, but the certificate in use is due for its renewal.
    pub(crate) fn due_at_once(self) -> Self {
        match self.in_use {
            Some(Grant::Certificate(grant)) => {
                let grant = CertificateGrant { renew_at: Some(0), ..grant };
                Self { in_use: Some(Grant::Certificate(grant)), ..self }
            }
            _ => self,
        }
    }

    /// Adds a renewed certificate that is not adopted yet.
    pub(crate) fn with_renewed(&self, grant: CertificateGrant) -> Self {
        Self { in_use: self.in_use.clone(), attempt: Some(Attempt::Renewed(grant)) }
    }

    /// The memory while the device asks for what `record` says. A certificate for the same record
    /// that waits for its confirmation, and a renewed one for the same key, are kept until another
    /// one takes their place.
    pub(crate) fn asking_for(&self, record: &IdentityRecord) -> Self {
        match &self.attempt {
            Some(Attempt::Unconfirmed(grant)) if grant.record == *record => self.clone(),
            Some(Attempt::Renewed(grant)) if grant.record.is_of_the_key_of(record) => self.clone(),
            _ => self.attempting(Attempt::Identity(record.clone())),
        }
    }

    /// The memory while the device attempts something else. What the device signs in with stays in
    /// use, because the CA may still hear of an adoption that was sent.
    pub(crate) fn attempting(&self, attempt: Attempt) -> Self {
        Self { in_use: self.credentials().next(), attempt: Some(attempt) }
    }

    /// The flow that the next run uses if its request names none.
    pub(crate) fn flow(&self) -> Option<Flow> {
        self.records().next().map(|record| record.flow())
    }

    /// The EK that the next run shows if its request names none. This is the EK for which the CA
    /// granted something, because to the CA another EK is another device; else the EK of an
    /// attempt, if a request named it.
    pub(crate) fn shown(&self) -> Option<Shown> {
        let granted = match (&self.attempt, &self.in_use) {
            (Some(Attempt::Unconfirmed(grant) | Attempt::Renewed(grant)), _) => {
                Some(grant.record.shown.clone())
            }
            (Some(Attempt::Rotated(grant)), _) => Some(grant.record.shown.clone()),
            _ => self.granted_for(),
        };
        let named = || {
            Some(self.attempt.as_ref()?.record().into_shown()).filter(|shown| shown.ek_was_named)
        };
        granted.or_else(named)
    }

    /// The identity key that the next run uses if its request names none.
    pub(crate) fn identity(&self) -> Option<IdentityRecord> {
        self.records().find_map(|record| match record {
            DeviceRecord::Identity(record) => Some(record),
            DeviceRecord::Hmac(_) => None,
        })
    }

    /// The HMAC key that the next run uses if its request names none.
    pub(crate) fn hmac(&self) -> Option<HmacRecord> {
        self.records().find_map(|record| match record {
            DeviceRecord::Identity(_) => None,
            DeviceRecord::Hmac(record) => Some(record),
        })
    }

    /// Whether this is an HMAC key that the CA sent to this device.
    pub(crate) fn knows(&self, key: &HmacPublic) -> bool {
        self.records().any(|record| match record {
            DeviceRecord::Identity(_) => false,
            DeviceRecord::Hmac(record) => record.keys.contains(key),
        })
    }

    /// The keys that `next` no longer knows, and their handles.
    pub(crate) fn keys_dropped_by(&self, next: &Self) -> Vec<(KeyPurpose, u32)> {
        let kept: Vec<_> = next.records().map(|record| record.key()).collect();
        let mut dropped: Vec<_> = self.records().map(|record| record.key()).collect();
        dropped.retain(|key| !kept.contains(key));
        dropped.dedup();
        dropped
    }

    /// All records. First comes the one that the next run continues with: the record of a
    /// certificate that waits for its confirmation or its adoption, or of an HMAC key that waits
    /// for its first use, else that of what is in use.
    fn records(&self) -> impl Iterator<Item = DeviceRecord> {
        let in_use = self.in_use.as_ref().map(Grant::record);
        let attempt = self.attempt.as_ref().map(Attempt::record);
        let is_first = matches!(
            self.attempt,
            Some(Attempt::Unconfirmed(_) | Attempt::Renewed(_) | Attempt::Rotated(_))
        );
        let (first, second) = if is_first { (attempt, in_use) } else { (in_use, attempt) };
        first.into_iter().chain(second)
    }
}

/// How far the device has come in asking for another certificate or HMAC key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Attempt {
    /// It asked for a certificate.
    Identity(IdentityRecord),
    /// It asked for an HMAC key.
    Hmac(HmacRecord),
    /// A sealed certificate has come, and waits for its confirmation.
    Unconfirmed(CertificateGrant),
    /// A renewed certificate, or one for another key, has come, and the CA is to hear that it is
    /// stored.
    Renewed(CertificateGrant),
    /// It makes another identity key, and asks for a certificate for it. The one in use stays.
    Rekey(IdentityRecord),
    /// The next HMAC key has come, and is kept at a handle of its own. The one before it stays in
    /// use until a broker has accepted a token of this one.
    Rotated(SharedKeyGrant),
}

impl Attempt {
    /// The record of the key that the attempt is about.
    pub fn record(&self) -> DeviceRecord {
        match self {
            Self::Identity(record)
            | Self::Rekey(record)
            | Self::Unconfirmed(CertificateGrant { record, .. })
            | Self::Renewed(CertificateGrant { record, .. }) => {
                DeviceRecord::Identity(record.clone())
            }
            Self::Hmac(record) | Self::Rotated(SharedKeyGrant { record, .. }) => {
                DeviceRecord::Hmac(record.clone())
            }
        }
    }
}

/// What the CA agreed to, and what it gave for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Grant {
    /// A certificate.
    Certificate(CertificateGrant),
    /// An HMAC key.
    SharedKey(SharedKeyGrant),
}

impl Grant {
    /// The record of the key that the grant is about.
    pub fn record(&self) -> DeviceRecord {
        match self {
            Self::Certificate(grant) => DeviceRecord::Identity(grant.record.clone()),
            Self::SharedKey(grant) => DeviceRecord::Hmac(grant.record.clone()),
        }
    }
}

/// A certificate from the CA.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificateGrant {
    /// The key that it is for.
    pub record: IdentityRecord,
    /// The certificate, then its issuers, without the root. Verify the chain again before each use,
    /// because anybody who can write to the store can change it.
    pub chain: Vec<CertificateDer<'static>>,
    /// When the CA said that the device is to renew it, in seconds since 1970. Anybody on the way
    /// may have changed it: use [`renew_at`](crate::renew_at).
    pub renew_at: Option<u64>,
    /// For a sealed certificate, what still has to be sent to the CA before the CA revokes the
    /// certificate. The certificate can be used meanwhile.
    pub unconfirmed: Option<Confirmation>,
}

/// What confirms a sealed certificate, and how to recognise the answer of the CA that sealed it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Confirmation {
    /// The request.
    pub proof: Proof,
    /// SHA-256 of the receipt that answers it.
    pub receipt_sha256: [u8; 32],
}

/// An HMAC key from the CA.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SharedKeyGrant {
    /// Where the key is.
    pub record: HmacRecord,
    /// The name under which the CA registered it.
    pub device_id: DeviceId,
    /// When the device asks for the next key.
    pub rotation: Rotation,
}

/// When a device asks for its next HMAC key, in seconds since 1970 by the clock of the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rotation {
    /// When this was decided.
    pub from: u64,
    /// When the device asks.
    pub at: u64,
}

impl Rotation {
    /// Of a key that an earlier version of this software got, so that nobody knows how old it is.
    pub const AT_ONCE: Self = Self { from: 0, at: 0 };

    /// A device asks a day after it asked last at the earliest, and after ten years at the latest,
    /// whatever it is told: anybody on the way may have changed the CA's advice. A CA that says
    /// nothing may be of an earlier version, and say something the next time.
    pub(crate) fn advised(rotate_after: Option<u32>, clock: u64) -> Self {
        let after = rotate_after.map(|seconds| Duration::from_secs(seconds.into()));
        Self::after(after.map_or(USUAL_USE, |after| after.clamp(SHORTEST_USE, LONGEST_USE)), clock)
    }

    /// Not now, but soon.
    pub(crate) fn postponed(clock: u64) -> Self {
        Self::after(SHORTEST_USE, clock)
    }

    /// Later, because the operator's policy is against it.
    pub(crate) fn refused(clock: u64) -> Self {
        Self::after(USUAL_USE, clock)
    }

    fn after(time: Duration, clock: u64) -> Self {
        Self { from: clock, at: clock.saturating_add(time.as_secs()) }
    }
}

/// A CA has keys rotated once a day at most.
const SHORTEST_USE: Duration = Duration::from_hours(24);
/// As long as a CA lets a key be used if its operator did not say otherwise.
const USUAL_USE: Duration = Duration::from_hours(90 * 24);
/// As long as a CA may let a key be used.
const LONGEST_USE: Duration = Duration::from_hours(3650 * 24);

/// The device's own key in the TPM, and where the device shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DeviceRecord {
    /// An identity key.
    Identity(IdentityRecord),
    /// An HMAC key.
    Hmac(HmacRecord),
}

impl DeviceRecord {
    /// The flow that the key is used in.
    pub fn flow(&self) -> Flow {
        match self {
            Self::Identity(record) => record.flow,
            Self::Hmac(_) => Flow::SharedKey,
        }
    }

    /// Which TPM is shown to which CA.
    pub fn into_shown(self) -> Shown {
        match self {
            Self::Identity(record) => record.shown,
            Self::Hmac(record) => record.shown,
        }
    }

    fn key(&self) -> (KeyPurpose, u32) {
        match self {
            Self::Identity(record) => (KeyPurpose::Identity, record.ik_handle),
            Self::Hmac(record) => (KeyPurpose::Hmac, record.hmac_handle),
        }
    }
}

/// The kinds of key that belong to a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyPurpose {
    /// An identity key.
    Identity,
    /// An HMAC key.
    Hmac,
}

/// An identity key, and where the device shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdentityRecord {
    /// Which TPM is shown to which CA.
    pub shown: Shown,
    /// One of the flows that give certificates.
    pub flow: Flow,
    /// The kind of key.
    pub ik: IkKind,
    /// Its persistent handle.
    pub ik_handle: u32,
}

impl IdentityRecord {
    /// Whether both records are of the same key, shown beside the same EK to the same CA.
    pub(crate) fn is_of_the_key_of(&self, other: &Self) -> bool {
        let key = |it: &Self| (it.shown.scope.clone(), it.shown.ek_id, it.ik, it.ik_handle);
        key(self) == key(other)
    }
}

/// An HMAC key, and where the device shows its TPM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HmacRecord {
    /// Which TPM is shown to which CA.
    pub shown: Shown,
    /// The parent that the key is sent to.
    pub parent: ParentKind,
    /// Its persistent handle.
    pub hmac_handle: u32,
    /// The handle of the key before all rotations, which move it. A request that names this handle
    /// means this key.
    pub first_handle: u32,
    /// The keys that may be at the handle: one, or two while one takes the place of the other. By
    /// them the device tells its own keys from those of others.
    pub keys: Vec<HmacPublic>,
}

/// The TPMT_PUBLIC of an HMAC key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HmacPublic(pub Vec<u8>);

/// Which TPM is shown to which CA.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shown {
    /// The CA's provisioning domain.
    pub scope: Scope,
    /// The kind of EK.
    pub ek: EkKind,
    /// Whether a request named this kind. If not, the device took an EK that has a certificate.
    pub ek_was_named: bool,
    /// The EK.
    pub ek_id: EkId,
}

#[cfg(test)]
mod tests {
    use alloc::vec;

    use super::*;

    fn a_record() -> IdentityRecord {
        let scope = "default".parse().unwrap();
        let shown = Shown { scope, ek: EkKind::P384, ek_was_named: false, ek_id: [7; 32].into() };
        IdentityRecord { shown, flow: Flow::Ticket, ik: IkKind::P256, ik_handle: 0x8100_0200 }
    }

    fn a_certificate() -> CertificateGrant {
        let chain = vec![CertificateDer::from(vec![1; 100]), CertificateDer::from(vec![2; 3])];
        CertificateGrant { record: a_record(), chain, renew_at: None, unconfirmed: None }
    }

    fn a_memory() -> Memory {
        let attempt = IdentityRecord { ik_handle: 0x8100_0201, ..a_record() };
        Memory {
            in_use: Some(Grant::Certificate(a_certificate())),
            attempt: Some(Attempt::Identity(attempt)),
        }
    }

    fn an_hmac_record() -> HmacRecord {
        HmacRecord {
            shown: a_record().shown,
            parent: ParentKind::Rsa2048,
            hmac_handle: 0x8100_0100,
            first_handle: 0x8100_0100,
            keys: vec![HmacPublic(vec![0xAB; 48])],
        }
    }

    fn a_shared_key() -> Memory {
        let device_id = "pump-17".parse().unwrap();
        let rotation = Rotation::AT_ONCE;
        let grant = SharedKeyGrant { record: an_hmac_record(), device_id, rotation };
        Memory {
            in_use: Some(Grant::SharedKey(grant)),
            attempt: Some(Attempt::Hmac(an_hmac_record())),
        }
    }

    #[test]
    fn next_run_does_what_is_in_use_does_or_else_what_was_attempted() {
        assert_eq!(Memory::default().flow(), None);
        assert_eq!(Memory { in_use: None, ..a_shared_key() }.flow(), Some(Flow::SharedKey));
        let both = Memory { attempt: a_shared_key().attempt, ..a_memory() };
        assert_eq!(both.flow(), Some(Flow::Ticket));
        assert_eq!(both.identity(), Some(a_record()));
        assert_eq!(both.hmac(), Some(an_hmac_record()));
    }

    #[test]
    fn certificate_that_waits_for_its_confirmation_leaves_what_is_in_use_alone_and_comes_first_in_the_next_run()
     {
        let record = IdentityRecord { flow: Flow::Sealed, ik_handle: 0x8100_0207, ..a_record() };
        let waiting = CertificateGrant { record: record.clone(), ..a_certificate() };
        for before in [a_memory(), a_shared_key()] {
            let after = before.with_unconfirmed(waiting.clone());
            assert_eq!(after.in_use, before.in_use);
            assert_eq!(
                (after.flow(), after.identity()),
                (Some(Flow::Sealed), Some(record.clone()))
            );
            assert_eq!(after.asking_for(&record), after);
            assert_eq!(after.asking_for(&a_record()).attempt, Some(Attempt::Identity(a_record())));
        }
    }

    fn a_renewed_certificate() -> CertificateGrant {
        let chain = vec![CertificateDer::from(vec![3; 100])];
        CertificateGrant { chain, ..a_certificate() }
    }

    #[test]
    fn renewed_certificate_comes_first_at_sign_in_and_the_one_in_use_is_kept_beside_it() {
        let renewed = Grant::Certificate(a_renewed_certificate());
        let memory = a_memory().with_renewed(a_renewed_certificate());
        assert_eq!(memory.in_use, a_memory().in_use);
        assert_eq!(
            memory.credentials().collect::<Vec<_>>(),
            [renewed, Grant::Certificate(a_certificate())]
        );
        assert_eq!(a_memory().credentials().collect::<Vec<_>>(), a_memory().in_use.as_slice());
    }

    #[test]
    fn renewed_certificate_is_not_lost_to_another_attempt() {
        let memory = a_memory().with_renewed(a_renewed_certificate());
        // The flow may be another one: the key is the same.
        let by_another_flow = IdentityRecord { flow: Flow::Sealed, ..a_record() };
        assert_eq!(memory.asking_for(&by_another_flow), memory);
        let of_another_key = IdentityRecord { ik_handle: 0x8100_0209, ..a_record() };
        let renewed = Some(Grant::Certificate(a_renewed_certificate()));
        for next in [
            memory.asking_for(&of_another_key),
            memory.attempting(Attempt::Hmac(an_hmac_record())),
            memory.with_unconfirmed(a_renewed_certificate()),
            // A delayed adoption may arrive after the CA sealed this one.
            memory.with_unconfirmed(a_certificate()),
        ] {
            assert_eq!(next.in_use, renewed, "{:?}", next.attempt);
        }
    }

    #[test]
    fn next_hmac_key_comes_first_at_sign_in_and_the_one_in_use_is_kept_beside_it() {
        let Some(Grant::SharedKey(old)) = a_shared_key().in_use else { panic!() };
        let record = HmacRecord { hmac_handle: 0x8100_0101, ..an_hmac_record() };
        let new = SharedKeyGrant { record: record.clone(), ..old.clone() };
        let attempt = Some(Attempt::Rotated(new.clone()));
        let memory = Memory { attempt, ..a_shared_key() };
        let credentials: Vec<_> = memory.credentials().collect();
        assert_eq!(credentials, [Grant::SharedKey(new), Grant::SharedKey(old)]);
        assert_eq!(memory.hmac(), Some(record.clone()));
        let next = memory.attempting(Attempt::Identity(a_record()));
        assert_eq!(next.in_use.map(|grant| grant.record()), Some(DeviceRecord::Hmac(record)));
    }

    #[test]
    fn advice_to_rotate_is_bounded_whoever_gave_it() {
        let after = |advice| Rotation::advised(advice, 1000).at - 1000;
        let day = 86_400;
        assert_eq!([0, 1, 40 * 86_400].map(|it| after(Some(it))), [day, day, 40 * day]);
        assert_eq!((after(Some(u32::MAX)), after(None)), (3650 * day, 90 * day));
    }

    #[test]
    fn next_run_shows_the_ek_of_what_was_granted_or_else_one_that_was_named() {
        let shown = |ek, ek_was_named| Shown { ek, ek_was_named, ..a_record().shown };
        let attempt = |shown| Some(Attempt::Identity(IdentityRecord { shown, ..a_record() }));
        let found = shown(EkKind::Rsa2048, false);
        let named = shown(EkKind::LegacyDps, true);
        assert_eq!(Memory { in_use: None, attempt: attempt(found) }.shown(), None);
        assert_eq!(
            Memory { in_use: None, attempt: attempt(named.clone()) }.shown(),
            Some(named.clone())
        );
        assert_eq!(
            Memory { attempt: attempt(named.clone()), ..a_memory() }.shown(),
            Some(a_record().shown)
        );
        let record = IdentityRecord { shown: named.clone(), ..a_record() };
        let waiting = a_memory().with_unconfirmed(CertificateGrant { record, ..a_certificate() });
        assert_eq!(waiting.shown(), Some(named));
    }

    #[test]
    fn hmac_keys_of_what_is_in_use_and_of_an_attempt_are_known() {
        let attempt =
            HmacRecord { keys: vec![HmacPublic(vec![1]), HmacPublic(vec![2])], ..an_hmac_record() };
        let memory = Memory { attempt: Some(Attempt::Hmac(attempt)), ..a_shared_key() };
        for (key, is_known) in
            [(vec![0xAB; 48], true), (vec![1], true), (vec![2], true), (vec![3], false)]
        {
            assert_eq!(memory.knows(&HmacPublic(key)), is_known);
        }
        assert!(!a_memory().knows(&HmacPublic(vec![1])));
    }

    #[test]
    fn handle_of_a_key_that_is_no_longer_known_is_reported() {
        let at = |ik_handle| IdentityRecord { ik_handle, ..a_record() };
        let attempt = |ik_handle| Some(Attempt::Identity(at(ik_handle)));
        let in_use = |ik_handle| {
            Some(Grant::Certificate(CertificateGrant { record: at(ik_handle), ..a_certificate() }))
        };
        let before = Memory { in_use: in_use(1), attempt: attempt(2) };
        let other_attempt = Memory { attempt: attempt(3), ..before.clone() };
        let granted = Memory { in_use: in_use(2), attempt: None };
        assert_eq!(before.keys_dropped_by(&before), []);
        assert_eq!(before.keys_dropped_by(&other_attempt), [(KeyPurpose::Identity, 2)]);
        assert_eq!(before.keys_dropped_by(&granted), [(KeyPurpose::Identity, 1)]);
        assert_eq!(a_shared_key().keys_dropped_by(&granted), [(KeyPurpose::Hmac, 0x8100_0100)]);
    }
}

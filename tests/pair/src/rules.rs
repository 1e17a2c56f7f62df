//! The rules, which must always hold: a model of the record that only changes for reasons that were
//! played.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;

use assay_ca_core::{CertificateFacts, Reprovision};
use assay_device_core::{Grant, Memory};
use assay_wire::{DeviceId, EkId, ReplyBody};
use sha2::{Digest, Sha256};
use time::{Duration, OffsetDateTime};

/// A rule was broken: which, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Broken(pub String);

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Returns `Broken` unless the condition holds.
macro_rules! rule {
    ($holds:expr, $($words:tt)+) => {
        if !$holds {
            return Err($crate::rules::Broken(format!($($words)+)));
        }
    };
}
pub(crate) use rule;

/// Something that the CA put on record.
#[derive(Debug)]
pub(crate) enum Deed {
    Certified { facts: CertificateFacts, sha256: [u8; 32] },
    Sealed { facts: CertificateFacts, sha256: [u8; 32] },
    Activated { serial: [u8; 16] },
    Offered { ek_id: EkId, generation: u32, is_plain: bool },
    Accepted { ek_id: EkId, device_id: DeviceId, generation: u32 },
}

/// What is on record.
#[derive(Debug)]
pub(crate) struct Dump {
    pub(crate) devices: Vec<(EkId, DeviceId)>,
    pub(crate) certificates: Vec<DumpedCertificate>,
}

#[derive(Debug)]
pub(crate) struct DumpedCertificate {
    pub(crate) serial: Vec<u8>,
    pub(crate) device_id: DeviceId,
    pub(crate) status: String,
}

/// The model of the record.
#[derive(Default)]
pub(crate) struct Rules {
    /// How often something changed that a broker's decision may depend on.
    pub(crate) changes: u64,
    eks: BTreeMap<EkId, Standing>,
    certificates: BTreeMap<[u8; 16], Certificate>,
    /// The EK that a shared key was offered to, and the key's generation, by the key's TPMT_PUBLIC.
    offers: HashMap<Vec<u8>, (EkId, u32)>,
}

/// The state of an EK.
#[derive(Default)]
pub(crate) struct Standing {
    pub(crate) disabled: bool,
    pub(crate) enrolment: Option<Enrolment>,
    registered: Option<DeviceId>,
    /// For each IK, the time of the newest claim whose credential the TPM opened.
    claims: BTreeMap<[u8; 32], OffsetDateTime>,
    /// SHA-256 of each certificate in a box that the TPM opened.
    boxes: BTreeSet<[u8; 32]>,
    /// The generations of shared keys that the TPM opened.
    keys: BTreeSet<u32>,
    /// Every generation below this one is retired.
    floor: u32,
    highest_offer: u32,
    /// The highest generation that was offered to a plain storage root key.
    highest_plain_offer: u32,
    generation_on_record: u32,
}

pub(crate) struct Enrolment {
    pub(crate) name: Option<DeviceId>,
    pub(crate) reprovision: Reprovision,
}

/// Whether a certificate should be good at a broker.
pub(crate) struct Worth {
    pub(crate) serial: [u8; 16],
    pub(crate) sha256: [u8; 32],
    pub(crate) device_id: DeviceId,
    pub(crate) is_good: bool,
}

struct Certificate {
    facts: CertificateFacts,
    sha256: [u8; 32],
    status: Status,
    was_active: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Status {
    Unconfirmed,
    Active,
    Superseded,
    Revoked,
    /// It was superseded or revoked, has expired, and is no longer on record.
    Forgotten,
}

impl Status {
    fn name(self) -> &'static str {
        match self {
            Self::Unconfirmed => "unconfirmed",
            Self::Active => "active",
            Self::Superseded => "superseded",
            Self::Revoked => "revoked",
            Self::Forgotten => "forgotten",
        }
    }
}

/// What TPMs do.
impl Rules {
    /// A TPM opened the credential of a claim that was made at `made_at`.
    pub(crate) fn claim_opened(&mut self, ek: EkId, ik_id: [u8; 32], made_at: OffsetDateTime) {
        let newest = self.of(ek).claims.entry(ik_id).or_insert(made_at);
        *newest = made_at.max(*newest);
    }

    /// A TPM opened a box with this certificate.
    pub(crate) fn box_opened(&mut self, ek: EkId, certificate: &[u8]) -> Result<(), Broken> {
        let sha256 = Sha256::digest(certificate).into();
        rule!(self.by_hash(&sha256).is_some(), "a certificate was sent before it was on record");
        self.of(ek).boxes.insert(sha256);
        Ok(())
    }

    /// A TPM opened a shared key.
    pub(crate) fn key_opened(&mut self, ek: EkId, public: &[u8]) -> Result<(), Broken> {
        let offer = self.offers.get(public).copied();
        rule!(offer.is_some(), "a shared key was sent before its offer was on record");
        if let Some((owner, generation)) = offer {
            rule!(owner == ek, "a TPM opened the shared key of another");
            self.of(ek).keys.insert(generation);
        }
        Ok(())
    }
}

/// What operators and time do.
impl Rules {
    pub(crate) fn of(&mut self, ek: EkId) -> &mut Standing {
        self.changes += 1;
        self.eks.entry(ek).or_default()
    }

    pub(crate) fn enrolled(
        &mut self,
        ek: EkId,
        name: Option<DeviceId>,
        reprovision: Reprovision,
    ) -> Result<(), Broken> {
        if let Some(name) = &name {
            self.check_nobody_else_has(ek, name)?;
        }
        self.of(ek).enrolment = Some(Enrolment { name, reprovision });
        Ok(())
    }

    pub(crate) fn removed(&mut self, ek: EkId) {
        let standing = self.of(ek);
        (standing.enrolment, standing.registered) = (None, None);
        self.key_retired(ek);
        let of_ek = |it: &&mut Certificate| it.facts.ek_id == ek;
        for certificate in self.certificates.values_mut().filter(of_ek) {
            if matches!(certificate.status, Status::Unconfirmed | Status::Active) {
                certificate.status = Status::Revoked;
            }
        }
    }

    pub(crate) fn key_retired(&mut self, ek: EkId) {
        let standing = self.of(ek);
        if standing.highest_offer > 0 {
            standing.floor = standing.floor.max(standing.highest_offer + 1);
        }
    }

    pub(crate) fn pruned(&mut self, now: OffsetDateTime) {
        self.changes += 1;
        let now = whole(now);
        for certificate in self.certificates.values_mut() {
            let Certificate { facts, status, was_active, .. } = certificate;
            if *status == Status::Unconfirmed && facts.confirm_by.is_some_and(|by| by <= now) {
                *status = Status::Revoked;
            }
            let kept = if *was_active { Duration::days(30) } else { Duration::ZERO };
            let has_ended = matches!(status, Status::Superseded | Status::Revoked);
            if has_ended && facts.not_after <= now - kept {
                *status = Status::Forgotten;
            }
        }
    }
}

/// What the CA does.
impl Rules {
    /// Checks what the CA put on record, and adds it to the model.
    pub(crate) fn done(
        &mut self,
        deed: Deed,
        reply: Option<&ReplyBody>,
        now: OffsetDateTime,
    ) -> Result<(), Broken> {
        match deed {
            Deed::Certified { facts, sha256 } => {
                self.check_new(&facts, now)?;
                let claim = self.of(facts.ek_id).claims.get(&facts.ik_id).copied();
                rule!(claim.is_some(), "certified without a proof: {}", facts.device_id);
                self.becomes_active(&facts, claim.unwrap_or(now))?;
                self.add(facts, sha256, Status::Active);
            }
            Deed::Sealed { facts, sha256 } => {
                self.check_new(&facts, now)?;
                self.add(facts, sha256, Status::Unconfirmed);
            }
            Deed::Activated { serial } => {
                let Some(certificate) = self.certificates.get(&serial) else {
                    return Err(Broken("a certificate became active that nobody issued".into()));
                };
                let (facts, sha256) = (certificate.facts.clone(), certificate.sha256);
                rule!(
                    certificate.status == Status::Unconfirmed,
                    "a certificate that was {} became active",
                    certificate.status.name()
                );
                rule!(
                    facts.confirm_by.is_some_and(|by| now < by),
                    "a certificate became active after its time to be confirmed"
                );
                rule!(
                    self.of(facts.ek_id).boxes.contains(&sha256),
                    "a certificate was confirmed whose box no TPM opened"
                );
                self.becomes_active(&facts, facts.issued_at)?;
                self.set(serial, Status::Active);
            }
            Deed::Offered { ek_id, generation, is_plain } => {
                self.check_not_disabled(ek_id)?;
                let standing = self.of(ek_id);
                rule!(generation >= standing.floor, "a retired key was offered");
                rule!(
                    is_plain || generation > standing.highest_plain_offer,
                    "a key that was offered to a plain SRK was offered again to an import parent"
                );
                if is_plain {
                    standing.highest_plain_offer = standing.highest_plain_offer.max(generation);
                }
                standing.highest_offer = standing.highest_offer.max(generation);
                if let Some(ReplyBody::Activation(activation)) = reply {
                    self.offers.insert(activation.key_public.to_vec(), (ek_id, generation));
                }
            }
            Deed::Accepted { ek_id, device_id, generation } => {
                self.check_not_disabled(ek_id)?;
                self.check_nobody_else_has(ek_id, &device_id)?;
                let standing = self.of(ek_id);
                rule!(
                    standing.keys.contains(&generation),
                    "generation {generation} was used, but no TPM opened that key"
                );
                rule!(generation >= standing.floor, "a retired key was accepted");
                standing.floor = generation;
                self.registers(ek_id, &device_id)?;
            }
        }
        Ok(())
    }

    /// Checks a reply of the CA about an EK.
    pub(crate) fn answered(&mut self, ek: Option<EkId>, reply: &ReplyBody) -> Result<(), Broken> {
        if matches!(reply, ReplyBody::Problem(_) | ReplyBody::Pong) {
            return Ok(());
        }
        if let Some(ek) = ek {
            self.check_not_disabled(ek)?;
        }
        if let ReplyBody::Certificate(reply) = reply {
            let sent = self.by_hash(&Sha256::digest(&*reply.chain[0]).into());
            rule!(
                sent.is_some_and(|sent| sent.status == Status::Active),
                "a certificate was sent in clear that is not active"
            );
        }
        Ok(())
    }

    /// Checks a token that the CA accepted.
    pub(crate) fn signed_in(&mut self, public: &[u8]) -> Result<(), Broken> {
        let Some((ek, generation)) = self.offers.get(public).copied() else {
            return Err(Broken("a token was accepted for a key that was never offered".into()));
        };
        self.check_not_disabled(ek)?;
        let floor = self.of(ek).floor;
        rule!(generation >= floor, "generation {generation} was accepted after {floor}");
        Ok(())
    }

    /// Compares the record with the model.
    pub(crate) fn check(&mut self, dump: &Dump) -> Result<(), Broken> {
        let due = self.eks.iter();
        let due: BTreeMap<_, _> =
            due.filter_map(|(ek, it)| Some((*ek, it.registered.clone()?))).collect();
        let found: BTreeMap<_, _> = dump.devices.iter().cloned().collect();
        rule!(found == due, "the record has the devices {found:?}, but {due:?} are due");
        let names: BTreeSet<_> = found.values().collect();
        rule!(names.len() == dump.devices.len(), "two EKs have one name: {found:?}");

        let mut active = BTreeSet::new();
        for row in &dump.certificates {
            let known = <[u8; 16]>::try_from(&*row.serial).ok();
            let Some(known) = known.and_then(|serial| self.certificates.get(&serial)) else {
                return Err(Broken("a certificate is on record that nobody issued".into()));
            };
            rule!(
                row.status == known.status.name(),
                "the certificate of {} is {} where {} is due",
                row.device_id,
                row.status,
                known.status.name()
            );
            if known.status == Status::Active {
                let ek = known.facts.ek_id;
                rule!(active.insert(ek), "{} has two active certificates", row.device_id);
                rule!(
                    found.get(&ek) == Some(&row.device_id),
                    "an active certificate belongs to no device on record"
                );
            }
        }
        let due = self.certificates.values().filter(|it| it.status != Status::Forgotten).count();
        rule!(
            dump.certificates.len() == due,
            "{} certificates are on record where {due} are due",
            dump.certificates.len()
        );
        Ok(())
    }

    /// Checks that the generation on record is never lower than before.
    pub(crate) fn check_generation(&mut self, ek: EkId, found: u32) -> Result<(), Broken> {
        let before = &mut self.eks.entry(ek).or_default().generation_on_record;
        rule!(found >= *before, "generation {found} is on record after {before}");
        *before = found;
        Ok(())
    }

    /// Checks that the CA gave a device what the device has in use.
    pub(crate) fn check_belief(&mut self, ek: EkId, memory: &Memory) -> Result<(), Broken> {
        match &memory.in_use {
            Some(Grant::Certificate(grant)) => {
                let sha256 = Sha256::digest(&grant.chain[0]).into();
                let Some(certificate) = self.by_hash(&sha256) else {
                    return Err(Broken("a device has a certificate that nobody issued".into()));
                };
                rule!(
                    grant.unconfirmed.is_some() || certificate.was_active,
                    "a device believes in a certificate that never was active"
                );
                rule!(certificate.facts.ek_id == ek, "a device has the certificate of another");
            }
            Some(Grant::SharedKey(grant)) => {
                let known = |key: &assay_device_core::HmacPublic| {
                    self.offers.get(&key.0).is_some_and(|(owner, _)| *owner == ek)
                };
                rule!(grant.record.keys.iter().all(known), "a device has the key of another");
            }
            None => {}
        }
        Ok(())
    }

    /// Which certificates should be good at a broker.
    pub(crate) fn certificates(&self) -> impl Iterator<Item = Worth> {
        self.certificates.values().map(|Certificate { facts, sha256, status, .. }| {
            let is_disabled = self.eks.get(&facts.ek_id).is_some_and(|it| it.disabled);
            let (serial, device_id) = (facts.serial, facts.device_id.clone());
            let is_good = *status == Status::Active && !is_disabled;
            Worth { serial, sha256: *sha256, device_id, is_good }
        })
    }

    /// Whether a shared key may never be accepted again.
    pub(crate) fn is_retired(&self, public: &[u8]) -> bool {
        let offer = self.offers.get(public);
        offer.is_some_and(|(ek, generation)| {
            self.eks.get(ek).is_some_and(|standing| *generation < standing.floor)
        })
    }

    fn check_not_disabled(&self, ek: EkId) -> Result<(), Broken> {
        let is_disabled = self.eks.get(&ek).is_some_and(|standing| standing.disabled);
        rule!(!is_disabled, "a disabled device got something");
        Ok(())
    }

    fn check_nobody_else_has(&self, ek: EkId, name: &DeviceId) -> Result<(), Broken> {
        let has = |standing: &Standing| {
            let enrolled = standing.enrolment.as_ref().and_then(|it| it.name.as_ref());
            standing.registered.as_ref() == Some(name) || enrolled == Some(name)
        };
        let other = self.eks.iter().any(|(other, standing)| *other != ek && has(standing));
        rule!(!other, "a second EK got the name {name}");
        Ok(())
    }

    /// Checks that a certificate may be issued, proven or unproven.
    fn check_new(&mut self, facts: &CertificateFacts, now: OffsetDateTime) -> Result<(), Broken> {
        self.check_not_disabled(facts.ek_id)?;
        let again = |it: &&Certificate| it.facts.ik_id == facts.ik_id && it.facts.not_after > now;
        let repeated = self.active(facts.ek_id).filter(again).is_some();
        rule!(!repeated, "a second certificate was issued for the key of one in force");
        Ok(())
    }

    /// A certificate that the CA decided on at `decided_at` takes the place of the one in force.
    fn becomes_active(
        &mut self,
        facts: &CertificateFacts,
        decided_at: OffsetDateTime,
    ) -> Result<(), Broken> {
        let CertificateFacts { ek_id, ik_id, device_id, .. } = facts;
        self.check_not_disabled(*ek_id)?;
        self.check_nobody_else_has(*ek_id, device_id)?;
        self.registers(*ek_id, device_id)?;
        let standing = self.of(*ek_id);
        let policy = standing.enrolment.as_ref().map(|it| it.reprovision).unwrap_or_default();
        let Some(before) = self.active(*ek_id) else { return Ok(()) };
        if before.facts.ik_id != *ik_id {
            rule!(policy != Reprovision::Never, "a key was replaced that may not be");
            rule!(
                whole(decided_at) > before.facts.issued_at,
                "an old claim took the place of a newer certificate"
            );
        }
        let serial = before.facts.serial;
        self.set(serial, Status::Superseded);
        Ok(())
    }

    fn registers(&mut self, ek: EkId, device_id: &DeviceId) -> Result<(), Broken> {
        let standing = self.of(ek);
        let enrolled = standing.enrolment.as_ref().and_then(|it| it.name.as_ref());
        let given = standing.registered.as_ref().or(enrolled);
        match given {
            Some(given) => rule!(given == device_id, "{device_id} is registered for {given}"),
            None => rule!(
                !device_id.as_str().starts_with("pump-"),
                "{device_id} is registered, but nobody gave that name to this EK"
            ),
        }
        standing.registered = Some(device_id.clone());
        Ok(())
    }

    fn active(&self, ek: EkId) -> Option<&Certificate> {
        let is_active = |it: &&Certificate| it.facts.ek_id == ek && it.status == Status::Active;
        self.certificates.values().find(is_active)
    }

    fn by_hash(&self, sha256: &[u8; 32]) -> Option<&Certificate> {
        self.certificates.values().find(|it| it.sha256 == *sha256)
    }

    fn add(&mut self, facts: CertificateFacts, sha256: [u8; 32], status: Status) {
        let was_active = status == Status::Active;
        let serial = facts.serial;
        self.certificates.insert(serial, Certificate { facts, sha256, status, was_active });
    }

    fn set(&mut self, serial: [u8; 16], status: Status) {
        if let Some(certificate) = self.certificates.get_mut(&serial) {
            certificate.status = status;
            certificate.was_active |= status == Status::Active;
        }
    }
}

/// The record keeps times in whole seconds.
fn whole(time: OffsetDateTime) -> OffsetDateTime {
    time.replace_nanosecond(0).expect("0 is a nanosecond")
}

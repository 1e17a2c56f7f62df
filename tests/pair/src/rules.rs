//! The rules, which must always hold: a model of the record that only changes for reasons that were
//! played.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;

use assay_ca_core::{CertificateFacts, Reprovision};
use assay_device_core::{Attempt, CertificateGrant, Grant, Memory};
use assay_wire::{DeviceId, EkId, ReplyBody};
use memchr::memmem;
use sha2::{Digest, Sha256};
use time::{Duration, OffsetDateTime};

use crate::device::Device;

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
    Renewed { facts: CertificateFacts, sha256: [u8; 32] },
    Rekeyed { facts: CertificateFacts, sha256: [u8; 32] },
    Activated { serial: [u8; 16] },
    Offered { ek_id: EkId, generation: u32, is_plain: bool },
    Accepted { ek_id: EkId, device_id: DeviceId, generation: u32 },
}

impl Deed {
    /// The serial number of the certificate that was issued, if one was.
    pub(crate) fn issued(&self) -> Option<[u8; 16]> {
        match self {
            Self::Certified { facts, .. }
            | Self::Sealed { facts, .. }
            | Self::Renewed { facts, .. }
            | Self::Rekeyed { facts, .. } => Some(facts.serial),
            Self::Activated { .. } | Self::Offered { .. } | Self::Accepted { .. } => None,
        }
    }
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
    /// What the TPM signed with its identity keys, besides certificate requests.
    statements: Vec<Vec<u8>>,
    /// SHA-256 of each certificate that the device showed in a handshake.
    shown: BTreeSet<[u8; 32]>,
    /// SHA-256 of each renewed certificate that the device gave up.
    given_up: BTreeSet<[u8; 32]>,
    /// The generations of shared keys that the TPM opened.
    keys: BTreeSet<u32>,
    /// Whether the CA ever accepted a token. Until then it may forget what it offered.
    has_used_a_key: bool,
    /// Every generation below this one is retired.
    floor: u32,
    highest_offer: u32,
    /// When a key was last offered.
    offered_at: Option<OffsetDateTime>,
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
    /// Whether it came by a renewal or a rekey, so that it waits to be adopted.
    is_renewed: bool,
    /// Whether the CA had another ticket key when it was issued. Then the CA cannot read it while
    /// it waits.
    is_of_old_key: bool,
    /// SHA-256 of the renewed certificate that took its place.
    renewed_by: Option<[u8; 32]>,
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

    /// A TPM was cleared. The device has no certificate any more, because the keys are gone.
    pub(crate) fn tpm_cleared(&mut self, ek: EkId) {
        let certificates = self.certificates_of(ek);
        self.of(ek).given_up.extend(certificates);
    }

    /// A TPM signed a statement with an identity key.
    pub(crate) fn stated(&mut self, ek: EkId, statement: Vec<u8>) {
        self.eks.entry(ek).or_default().statements.push(statement);
    }

    /// A device showed a certificate in a handshake.
    pub(crate) fn shown(&mut self, ek: EkId, sha256: [u8; 32]) {
        self.eks.entry(ek).or_default().shown.insert(sha256);
    }

    /// What a device remembers changes. It may give a certificate up that waits if a flow gave it
    /// another one, if it forgets everything, or if the CA seemed to refuse the one for another
    /// key.
    pub(crate) fn remembers(
        &mut self,
        ek: EkId,
        before: &Memory,
        after: &Memory,
    ) -> Result<(), Broken> {
        if let (Some(Grant::Certificate(old)), Some(Attempt::Renewed(new))) =
            (&after.in_use, &after.attempt)
        {
            let issued_at = |grant: &CertificateGrant| {
                let certificate = self.by_hash(&Sha256::digest(&grant.chain[0]).into());
                certificate.map(|certificate| certificate.facts.issued_at)
            };
            // One for another key cannot be an earlier one, and may be of the same second.
            let is_of_another_key = new.record.ik_handle != old.record.ik_handle;
            let is_newer = is_of_another_key || issued_at(new) > issued_at(old);
            rule!(is_newer, "a device took an earlier certificate for a renewed one");
        }
        if matches!(after.attempt, None | Some(Attempt::Rekey(_))) {
            let kept = digests(after);
            let lost = digests(before).into_iter().filter(|sha256| !kept.contains(sha256));
            self.eks.entry(ek).or_default().given_up.extend(lost);
        }
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

    /// The CA cannot read any more what waits.
    pub(crate) fn ticket_key_changed(&mut self) {
        self.certificates.values_mut().for_each(|certificate| certificate.is_of_old_key = true);
    }

    /// The CA planned this certificate under the ticket key before, and cannot read it either.
    pub(crate) fn was_of_old_ticket_key(&mut self, serial: [u8; 16]) {
        if let Some(certificate) = self.certificates.get_mut(&serial) {
            certificate.is_of_old_key = true;
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
            let kept = if *was_active { Duration::days(30) } else { Duration::days(1) };
            let has_ended = matches!(status, Status::Superseded | Status::Revoked);
            if has_ended && facts.not_after <= now - kept {
                *status = Status::Forgotten;
            }
        }
        // The offer of a first key that nobody used is forgotten, unless it changed something.
        for standing in self.eks.values_mut() {
            let changed_nothing = standing.floor == 0 && standing.highest_plain_offer == 0;
            let is_old = standing.offered_at.is_some_and(|at| at <= now - Duration::days(30));
            if changed_nothing && is_old {
                (standing.highest_offer, standing.generation_on_record) = (0, 0);
                standing.offered_at = None;
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
                self.becomes_active(&facts, claim.unwrap_or(now), facts.issued_at)?;
                self.add(facts, sha256, Status::Active);
            }
            Deed::Sealed { facts, sha256 } => {
                self.check_new(&facts, now)?;
                self.add(facts, sha256, Status::Unconfirmed);
            }
            Deed::Renewed { facts, sha256 } => {
                self.check_renewal(&facts, now)?;
                self.ends_what_waits(&facts);
                self.add(facts, sha256, Status::Unconfirmed);
                self.certificates.values_mut().filter(|it| it.sha256 == sha256).for_each(|it| {
                    it.is_renewed = true;
                });
            }
            Deed::Rekeyed { facts, sha256 } => {
                self.check_rekey(&facts, now)?;
                self.ends_other_waiting(&facts);
                self.add(facts, sha256, Status::Unconfirmed);
                self.certificates.values_mut().filter(|it| it.sha256 == sha256).for_each(|it| {
                    it.is_renewed = true;
                });
            }
            Deed::Activated { serial } => {
                let Some(certificate) = self.certificates.get(&serial) else {
                    return Err(Broken("a certificate became active that nobody issued".into()));
                };
                let (facts, sha256) = (certificate.facts.clone(), certificate.sha256);
                let is_renewed = certificate.is_renewed;
                rule!(
                    certificate.status == Status::Unconfirmed,
                    "a certificate that was {} became active",
                    certificate.status.name()
                );
                rule!(
                    facts.confirm_by.is_some_and(|by| now < by),
                    "a certificate became active after its time to be confirmed"
                );
                let standing = self.of(facts.ek_id);
                if is_renewed {
                    let is_adopted = standing.has_stated("assay adopt v1", &sha256, now);
                    rule!(
                        is_adopted || standing.shown.contains(&sha256),
                        "a renewed certificate became active that nobody adopted or showed"
                    );
                } else {
                    rule!(
                        standing.boxes.contains(&sha256),
                        "a certificate was confirmed whose box no TPM opened"
                    );
                }
                let before = self.active(facts.ek_id).map(|before| before.facts.serial);
                self.becomes_active(&facts, facts.issued_at, now.max(facts.issued_at))?;
                self.set(serial, Status::Active);
                if let (Some(before), true) = (before, is_renewed)
                    && let Some(before) = self.certificates.get_mut(&before)
                {
                    before.renewed_by = Some(sha256);
                }
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
                standing.offered_at = Some(whole(now));
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
                standing.has_used_a_key = true;
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
            let waits = |sent: &Certificate| sent.is_renewed && sent.status == Status::Unconfirmed;
            rule!(
                sent.is_some_and(|sent| sent.status == Status::Active || waits(sent)),
                "a certificate was sent in clear that is neither active nor renewed"
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
                // A dishonest broker may have swallowed the adoption of a renewed certificate. The
                // CA takes such a certificate as it takes the one before it.
                rule!(
                    grant.unconfirmed.is_some() || certificate.was_active || certificate.is_renewed,
                    "a device believes in a certificate that never was active"
                );
                rule!(certificate.facts.ek_id == ek, "a device has the certificate of another");
                let is_good =
                    |sha256: &[u8; 32]| self.by_hash(sha256).is_some_and(|it| it.is_good());
                let renewed_by = certificate.renewed_by.filter(is_good);
                if let Some(renewed_by) = renewed_by {
                    let is_there = digests(memory).contains(&renewed_by);
                    rule!(
                        is_there || self.of(ek).given_up.contains(&renewed_by),
                        "a renewal left a device without the certificate that is in force"
                    );
                }
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

    /// Whether the CA takes a certificate for a key that is in the device's TPM. Once it does, only
    /// whoever clears the TPM, or acts at the CA, can change that.
    ///
    /// A certificate that the CA cannot read any more may wait. A broker that says that it was
    /// adopted then has the device remove its old key, and the device proves its TPM again.
    pub(crate) fn check_key(&self, device: &Device) -> Result<bool, Broken> {
        let (ek, iks) = (device.tpm.ek_id(), device.tpm.ik_ids());
        let own = self
            .certificates
            .values()
            .filter(|it| it.facts.ek_id == ek && iks.contains(&it.facts.ik_id) && it.is_good());
        let is_unreadable =
            |it: &&Certificate| it.status == Status::Unconfirmed && it.is_of_old_key;
        let (unreadable, usable): (Vec<_>, Vec<_>) = own.partition(is_unreadable);
        if !unreadable.is_empty() {
            return Ok(false);
        }
        let has_good_key = !usable.is_empty();
        rule!(
            has_good_key || !device.has_good_key,
            "a device has no certificate any more whose key is in its TPM"
        );
        Ok(has_good_key)
    }

    /// Whether the CA takes a shared key that is in the device's TPM. Once it does, only whoever
    /// clears the TPM, or acts at the CA, can change that.
    pub(crate) fn check_shared_key(&self, device: &Device) -> Result<bool, Broken> {
        let has_good_key = device.tpm.hmac_publics().any(|public| self.takes(public));
        rule!(
            has_good_key || !device.has_good_shared_key,
            "a device has no shared key any more that the CA takes"
        );
        Ok(has_good_key)
    }

    /// Whether the CA takes a shared key, of an EK that has used one.
    pub(crate) fn takes(&self, public: &[u8]) -> bool {
        self.offers.get(public).is_some_and(|(ek, generation)| {
            let standing = self.eks.get(ek);
            standing.is_some_and(|it| it.has_used_a_key && *generation >= it.floor)
        })
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

    /// When a device of this EK is certainly due to renew its certificate.
    pub(crate) fn due(&self, ek: EkId) -> Option<OffsetDateTime> {
        // The CA tells the device to come within the first quarter of this time.
        Some(self.active(ek)?.facts.not_after - RENEW_BEFORE * 3 / 4)
    }

    /// SHA-256 of every certificate of this EK.
    pub(crate) fn certificates_of(&self, ek: EkId) -> Vec<[u8; 32]> {
        let of_ek = |it: &&Certificate| it.facts.ek_id == ek;
        self.certificates.values().filter(of_ek).map(|it| it.sha256).collect()
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

    /// Checks that the certificate in force may be renewed: its device asks for that now, and it is
    /// due.
    fn check_renewal(
        &mut self,
        facts: &CertificateFacts,
        now: OffsetDateTime,
    ) -> Result<(), Broken> {
        let CertificateFacts { ek_id, ik_id, device_id, .. } = facts;
        self.check_not_disabled(*ek_id)?;
        self.check_nobody_else_has(*ek_id, device_id)?;
        let Some(before) = self.active(*ek_id) else {
            return Err(Broken("a certificate was renewed that is not in force".into()));
        };
        let (old, sha256) = (before.facts.clone(), before.sha256);
        rule!(now < old.not_after, "a certificate was renewed that has expired");
        rule!(old.ik_id == *ik_id, "a renewed certificate is for another key");
        rule!(old.device_id == *device_id, "a renewed certificate is for another device");
        rule!(facts.not_after > old.not_after, "a renewed certificate ends no later");
        rule!(now >= old.not_after - RENEW_BEFORE, "a certificate was renewed that was not due");
        let asked = self.of(*ek_id).has_stated("assay renew v1", &sha256, now);
        rule!(asked, "a certificate was renewed though its key did not ask for that now");
        let lately = self.certificates.values().find(|it| {
            it.is_renewed
                && !it.is_of_old_key
                && (it.facts.ek_id, it.facts.ik_id) == (*ek_id, *ik_id)
                && (it.facts.issued_at - now).abs() < Duration::hours(1)
        });
        rule!(lately.is_none(), "a certificate was renewed twice within an hour");
        Ok(())
    }

    /// Checks that a certificate for another IK may be issued, beside the one in force.
    fn check_rekey(&mut self, facts: &CertificateFacts, now: OffsetDateTime) -> Result<(), Broken> {
        let CertificateFacts { ek_id, ik_id, device_id, .. } = facts;
        self.check_not_disabled(*ek_id)?;
        self.check_nobody_else_has(*ek_id, device_id)?;
        let standing = self.of(*ek_id);
        let claim = standing.claims.get(ik_id).copied();
        rule!(claim.is_some(), "rekeyed without a proof: {device_id}");
        let policy = standing.enrolment.as_ref().map(|it| it.reprovision).unwrap_or_default();
        let in_force = self.active(*ek_id).map(|it| it.facts.clone());
        if let Some(in_force) = &in_force
            && in_force.ik_id != *ik_id
        {
            rule!(policy != Reprovision::Never, "a key is to be replaced that may not be");
            rule!(
                claim.is_some_and(|claim| whole(claim) > in_force.issued_at),
                "an old claim is to take the place of a newer certificate"
            );
        }
        let in_force = in_force.map(|it| it.ik_id);
        let lately = self.certificates.values().find(|it| {
            let is_of_other_ik = it.facts.ek_id == *ek_id && Some(it.facts.ik_id) != in_force;
            (is_of_other_ik || it.facts.ik_id == facts.ik_id)
                && it.facts.ek_id == *ek_id
                && it.is_renewed
                && it.status == Status::Unconfirmed
                && !it.is_of_old_key
                && (it.facts.issued_at - now).abs() < Duration::hours(1)
        });
        rule!(lately.is_none(), "a device rekeyed twice within an hour");
        Ok(())
    }

    /// A certificate for another IK takes the place of whatever waits for its EK, except for the IK
    /// in force.
    fn ends_other_waiting(&mut self, facts: &CertificateFacts) {
        let in_force = self.active(facts.ek_id).map(|it| it.facts.ik_id);
        for Certificate { facts: other, status, .. } in self.certificates.values_mut() {
            let is_replaced = Some(other.ik_id) != in_force || other.ik_id == facts.ik_id;
            let is_of_it = other.ek_id == facts.ek_id && is_replaced;
            if is_of_it && *status == Status::Unconfirmed {
                *status = Status::Revoked;
            }
        }
    }

    /// A renewed certificate takes the place of whatever waits for its EK and IK.
    fn ends_what_waits(&mut self, facts: &CertificateFacts) {
        for certificate in self.certificates.values_mut() {
            let is_of_it =
                (certificate.facts.ek_id, certificate.facts.ik_id) == (facts.ek_id, facts.ik_id);
            if is_of_it && certificate.status == Status::Unconfirmed {
                certificate.status = Status::Revoked;
            }
        }
    }

    /// What waits for an EK and another IK ends, unless it was issued after `since`, when this one
    /// comes into force. What waits for the IK that was in force before ends in any case.
    fn ends_what_is_outdated(&mut self, in_force: &CertificateFacts, since: OffsetDateTime) {
        let before = self.active(in_force.ek_id).map(|it| it.facts.ik_id);
        for Certificate { facts, status, .. } in self.certificates.values_mut() {
            let is_of_other_ik = facts.ek_id == in_force.ek_id && facts.ik_id != in_force.ik_id;
            let is_outdated = is_of_other_ik
                && (facts.issued_at.unix_timestamp() <= since.unix_timestamp()
                    || Some(facts.ik_id) == before);
            if is_outdated && *status == Status::Unconfirmed {
                *status = Status::Revoked;
            }
        }
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
        since: OffsetDateTime,
    ) -> Result<(), Broken> {
        let CertificateFacts { ek_id, ik_id, device_id, .. } = facts;
        self.check_not_disabled(*ek_id)?;
        self.check_nobody_else_has(*ek_id, device_id)?;
        self.registers(*ek_id, device_id)?;
        self.ends_what_is_outdated(facts, since);
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
        let certificate = Certificate {
            facts,
            sha256,
            status,
            was_active,
            is_renewed: false,
            is_of_old_key: false,
            renewed_by: None,
        };
        self.certificates.insert(serial, certificate);
    }

    fn set(&mut self, serial: [u8; 16], status: Status) {
        if let Some(certificate) = self.certificates.get_mut(&serial) {
            certificate.status = status;
            certificate.was_active |= status == Status::Active;
        }
    }
}

impl Certificate {
    /// Whether the CA takes it, or would take it at its first use.
    fn is_good(&self) -> bool {
        match self.status {
            Status::Active => true,
            Status::Unconfirmed => self.is_renewed,
            Status::Superseded | Status::Revoked | Status::Forgotten => false,
        }
    }
}

impl Standing {
    /// Whether the TPM signed this about a certificate, at about this time.
    fn has_stated(&self, label: &str, sha256: &[u8; 32], now: OffsetDateTime) -> bool {
        self.statements.iter().any(|statement| {
            let time = statement.last_chunk().map(|time| u32::from_be_bytes(*time));
            let is_now = time.is_some_and(|time| {
                now.unix_timestamp().abs_diff(time.into()) <= STATEMENT_LIFETIME
            });
            // The head of an array, the head of a text, and the text.
            statement[2..].starts_with(label.as_bytes())
                && memmem::find(statement, sha256).is_some()
                && is_now
        })
    }
}

/// SHA-256 of the certificates that a device has, and that it signs in with.
fn digests(memory: &Memory) -> BTreeSet<[u8; 32]> {
    let certificates = memory.credentials().filter_map(|grant| match grant {
        Grant::Certificate(grant) => Some(Sha256::digest(&grant.chain[0]).into()),
        Grant::SharedKey(_) => None,
    });
    certificates.collect()
}

/// How long before its end the CA renews a certificate. It is long, so that certificates of before
/// a renewal and even of before the last one have not expired, and a dishonest broker can use them.
pub(crate) const RENEW_BEFORE: Duration = Duration::days(75);

/// How far a statement's time may be from the CA's clock, in seconds: the lifetime of a statement,
/// and the skew of clocks.
const STATEMENT_LIFETIME: u64 = 360;

/// The record keeps times in whole seconds.
fn whole(time: OffsetDateTime) -> OffsetDateTime {
    time.replace_nanosecond(0).expect("0 is a nanosecond")
}

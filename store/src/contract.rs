//! What every store promises, and what each wrong answer would cost.
//!
//! A request goes through *plan* (pure, on a [`Snapshot`]), *sign* (outside of any lock) and
//! *record*. So the hot path is two calls that exchange plain values: [`Store::snapshot`] and
//! [`Store::record`]. Both can be repeated.
//!
//! These promises hold however many processes work on one database at once, and whichever of them
//! dies:
//!
//! 1. an EK has at most one device id, and a device id at most one EK;
//! 2. an EK has at most one active certificate;
//! 3. a retired generation of a shared key is never accepted again;
//! 4. a revocation is never lost, and the counters of [`Changes`] only grow;
//! 5. an entry is recorded whole, with its audit, or not at all;
//! 6. once a call has returned `Ok`, what it recorded survives a crash of the process and of the
//!    machine.

use std::ops::{ControlFlow, Range};
use std::time::Duration;

use assay_ca_core::{Groups, Place, Reprovision, Revoked, SealedOnRecord, SharedKeyHolder};
use assay_wire::{DeviceId, EkId, Identity, Rights, Scope};
use time::OffsetDateTime;

use crate::act::{Entry, Question, Recorded, Snapshot};
use crate::audit::{Actor, AuditRow, Deed};
use crate::certificates::{CertificateRow, CertificateStatus, Counts, DeviceRow, InForce};
use crate::chain::Walked;
use crate::clock::Clocks;
use crate::configurations::{ConfigurationChanges, ConfigurationRow, DueConfiguration};
use crate::enrolments::{
    EnrolError, EnrolResults, EnrolmentRow, NewEnrolment, Removed, Replaced, Replacement, Tenure,
};
use crate::epoch::{Epoch, PublishedList, TakenOver};
use crate::error::StoreError;
use crate::events::{Teller, Told, Untold};
use crate::groups::GroupsVersion;
use crate::identities::{IdentityCertificate, IdentityRow, NewIdentity, Renewed, Which};
use crate::pending::PendingRow;
use crate::retention::{Pruned, Retention};
use crate::revocation::{Changes, RevokedCertificates};
use crate::secrets::MadeBefore;
use crate::trust::{AnchorRow, Trusted};

/// One connection to a database. Each thread has its own, from
/// [`Database::open`](crate::Database::open).
///
/// A call may wait for another process that writes, or for a server that cannot be reached. After
/// some ten seconds it fails. A thread that runs asynchronous tasks should leave these calls to
/// another thread.
///
/// Errors: the database could not be reached, read or written. If a call that writes returns an
/// error, nothing was written. Only [`StoreError::Undecided`] means that this is not known.
pub trait Store: Send {
    /// What is on record about one EK and a device id, all at one moment.
    ///
    /// The answer may be out of date when it arrives; [`record`](Self::record) finds that out. If
    /// it mixed two moments, a plan could pass that fits neither of them: for example, the device
    /// id was free at one moment, and an enrolment granted it at the other.
    fn snapshot(&mut self, question: &Question) -> Result<Snapshot, StoreError>;

    /// Records the entries in one durable transaction, each entry as a whole or not at all. An
    /// entry is [`Recorded::Stale`], and nothing of it is recorded, if the question of its plan has
    /// another answer now. An entry sees what the entries before it recorded. An entry without a
    /// basis depends on nothing; if the record forbids it, the call fails. A renewed certificate
    /// takes the place of whatever else waits for its EK and IK, so that one waits at most.
    ///
    /// A wrong `Done` breaks invariants: two active certificates of one EK, one device id for two
    /// EKs, or a certificate for a disabled device. A wrong `Stale` costs a second plan and
    /// signature. After an `Ok` that is not durable, a device can have a certificate that the CA
    /// does not know; the broker then refuses it. `scope` is checked because a certificate of
    /// another scope than the one on record names topics that nobody serves.
    fn record(&mut self, scope: &Scope, entries: &[Entry]) -> Result<Vec<Recorded>, StoreError>;

    /// How long a recorder waits for more entries at most, while several arrive at a time. It is
    /// zero where a transaction costs little besides its entries. A wrong answer costs time only.
    fn longest_pause(&self) -> Duration;

    /// What became of the certificate with this digest, which a device with this EK confirms or
    /// adopts; and what is on record about the device, all at one moment. A certificate whose time
    /// to be confirmed is over has ended, unless it is active: an active certificate is sealed
    /// again to a device that asks again.
    ///
    /// [`record`](Self::record) finds a wrong `Unconfirmed`. A wrong `Active` tells a device that
    /// it may use a certificate that the broker refuses. A wrong `Ended` sends the device through
    /// the whole flow again.
    fn sealed_certificate(
        &mut self,
        ek: &EkId,
        sha256: &[u8; 32],
        now: OffsetDateTime,
    ) -> Result<SealedOnRecord, StoreError>;

    /// The EKs to which a shared key was offered under this device id. There is more than one only
    /// if the id passed from one EK to another; admission knows which EK has it now.
    ///
    /// If one is missing, a device is locked out. One too many costs a check of a token.
    fn shared_key_holders(&mut self, device: &DeviceId)
    -> Result<Vec<SharedKeyHolder>, StoreError>;

    /// What was made before this time, and is still needed `now`: certificates that wait, and shared
    /// keys. With too little of it, a secret is dropped that devices still need.
    fn made_before(
        &mut self,
        time: OffsetDateTime,
        now: OffsetDateTime,
    ) -> Result<MadeBefore, StoreError>;

    /// Whether an EK is on the enrolment list.
    ///
    /// The answer is for people; decisions are made on a [`snapshot`](Self::snapshot).
    fn is_enrolled(&mut self, ek: &EkId) -> Result<bool, StoreError>;

    /// The status of the certificate with this serial number and digest, which somebody shows as
    /// this device's.
    ///
    /// A wrong `Active` lets in somebody who stole the issuing key, or a device that an operator
    /// removed. The answer must not be out of date: it counts every revocation that was committed.
    fn certificate_status(
        &mut self,
        device: &DeviceId,
        serial: &[u8],
        sha256: &[u8; 32],
    ) -> Result<CertificateStatus, StoreError>;

    /// The status of a certificate that somebody shows as this identity's; and if it is a good one
    /// of a backend, what the backend may do now. A wrong `Active` costs more here: an operator may
    /// read and send everything. Rights that are out of date let a backend read what an operator
    /// took from it.
    fn identity_status(
        &mut self,
        identity: &Identity,
        sha256: &[u8; 32],
    ) -> Result<(CertificateStatus, Rights), StoreError>;

    /// Puts on record the scope that a CA is going to serve. It may differ from the scope on record
    /// as long as nothing was granted in that one. Afterwards this fails with
    /// [`StoreError::Scope`].
    ///
    /// After a wrong `Ok`, new devices have other names and topics than the old ones, for ever.
    fn record_scope(&mut self, scope: &Scope) -> Result<(), StoreError>;

    /// Whether [`record_scope`](Self::record_scope) would take this scope.
    fn may_serve(&mut self, scope: &Scope) -> Result<(), StoreError>;

    /// Puts EKs on the enrolment list: all of them, or none if one of them cannot be enrolled. The
    /// results are in the order of the EKs.
    ///
    /// If half a list were enrolled as if it were whole, an operator would believe devices to be
    /// enrolled that are not.
    fn enroll(&mut self, new: &[NewEnrolment]) -> Result<EnrolResults, StoreError>;

    /// Says what [`enroll`](Self::enroll) would do, and does nothing.
    fn rehearse_enroll(&mut self, new: &[NewEnrolment]) -> Result<EnrolResults, StoreError>;

    /// Changes what happens when a device asks again, and whether its shared key may be sent to a
    /// plain storage root key. What is `None` stays as it is. Returns `false` if the EK is not on
    /// the list.
    fn update_enrolment(
        &mut self,
        ek: &EkId,
        reprovision: Option<Reprovision>,
        plain_srk: Option<bool>,
    ) -> Result<bool, StoreError>;

    /// Forgets an EK: its enrolment and its registration go, its certificates are revoked, its
    /// shared key is retired, and its device id is free. A disabled EK remains disabled.
    /// Certificates and shared keys that were only offered to the EK are withdrawn too. Returns
    /// `None` if there is nothing to forget.
    ///
    /// If the device id were free before the certificates are revoked, two devices would have it.
    fn remove(&mut self, ek: &EkId, now: OffsetDateTime) -> Result<Option<Removed>, StoreError>;

    /// Gives a device another TPM in one transaction: the EK that holds the device id is [removed](Self::remove) and disabled, and the new one is enrolled under that id.
    ///
    /// If it were done by halves, the old TPM and the new one would be one device at the same time,
    /// or none.
    fn replace(
        &mut self,
        replacement: &Replacement,
    ) -> Result<Result<Replaced, EnrolError>, StoreError>;

    /// The EKs that were registered under a device id, the first one first, and the one that is.
    fn history(&mut self, device: &DeviceId) -> Result<Vec<Tenure>, StoreError>;

    /// Disables or enables an EK, whether the CA knows it or not. Returns `false` if it was so
    /// before.
    ///
    /// If disabling is lost, a device can connect that an operator believes to be locked out.
    fn set_disabled(
        &mut self,
        ek: &EkId,
        disabled: bool,
        now: OffsetDateTime,
    ) -> Result<bool, StoreError>;

    /// Retires the shared key of an EK, and every generation that was offered but not used yet.
    /// Returns `false` if no shared key was ever offered to the EK.
    ///
    /// If a retired generation were accepted again, somebody who copied its key could connect.
    fn retire_shared_key(&mut self, ek: &EkId) -> Result<bool, StoreError>;

    /// The groups, and their version. A version that did not change with the groups would let
    /// devices in by rules that an operator has withdrawn.
    fn groups(&mut self) -> Result<(GroupsVersion, Groups), StoreError>;

    /// Puts these groups in place of those that have the version `seen`. Returns `false`, and
    /// changes nothing, if they have another version now: what somebody else changed meanwhile must
    /// not be lost.
    fn set_groups(&mut self, seen: GroupsVersion, groups: &Groups) -> Result<bool, StoreError>;

    /// Gives an EK a place in a group, or keeps the one that it has. Returns `false` if as many
    /// have one as may. An EK keeps its place while it is enrolled or registered or uses a shared
    /// key, and else for 25 hours; and it loses it when it is [removed](Self::remove).
    ///
    /// With one place too many, a group has more devices than the operator allowed. One too few
    /// keeps a device out.
    fn take_place(
        &mut self,
        ek: &EkId,
        place: &Place,
        now: OffsetDateTime,
    ) -> Result<bool, StoreError>;

    /// Whether an EK has a place in a group. This is cheap, unlike to take one in a group that is
    /// full.
    fn has_place(&mut self, ek: &EkId, place: &Place) -> Result<bool, StoreError>;

    /// The EKs about which an operator is asked, and which are neither enrolled nor registered nor
    /// disabled since; those that came first are first. There are ten thousand at most.
    fn pending(&mut self) -> Result<Vec<PendingRow>, StoreError>;

    /// As [`enroll`](Self::enroll), for EKs that an operator approves. Nobody is asked about them
    /// any more.
    fn approve(&mut self, new: &[NewEnrolment]) -> Result<EnrolResults, StoreError>;

    /// Disables EKs that an operator does not approve. Nobody is asked about them any more.
    ///
    /// If it is lost, the operator is asked again, and may answer otherwise.
    fn turn_away(&mut self, eks: &[EkId], now: OffsetDateTime) -> Result<(), StoreError>;

    /// Every EK that the CA knows, oldest first.
    fn enrolments(&mut self) -> Result<Vec<EnrolmentRow>, StoreError>;

    /// The EK with this id, if the CA knows it.
    fn enrolment(&mut self, ek: &EkId) -> Result<Option<EnrolmentRow>, StoreError>;

    /// The EK that holds a device id, by registration or by enrolment.
    fn ek_of_device(&mut self, device: &DeviceId) -> Result<Option<EkId>, StoreError>;

    /// Every device, in the order of registration.
    fn devices(&mut self) -> Result<Vec<DeviceRow>, StoreError>;

    /// Every certificate, in the order of issuance. A certificate that was never confirmed comes
    /// without its DER, which would name a device to people who should not know of it.
    fn certificates(&mut self) -> Result<Vec<CertificateRow>, StoreError>;

    /// As many devices as `count`, in the order of their ids, from this one on; it need not exist.
    /// An index finds them.
    fn devices_from(&mut self, from: &str, count: u32) -> Result<Vec<DeviceRow>, StoreError>;

    /// The same for certificates, in the order of their serial numbers.
    fn certificates_from(
        &mut self,
        from: &[u8],
        count: u32,
    ) -> Result<Vec<CertificateRow>, StoreError>;

    /// The certificates of an EK, and no more than `count`; the newest first. An index finds them.
    fn certificates_of(&mut self, ek: &EkId, count: u32)
    -> Result<Vec<CertificateRow>, StoreError>;

    /// How many devices and certificates there are. At a million this takes a tenth of a second, so
    /// ask once a minute.
    fn counts(&mut self) -> Result<Counts, StoreError>;

    /// How many certificates of devices are in force now that name the issuing CA with this key
    /// identifier; and how many wait that were issued within `at_work`. Nobody can see who signed
    /// one that waits, because it is encrypted. This reads every certificate: a million takes some
    /// seconds.
    ///
    /// If a certificate is left out, an operator removes an issuing CA that devices still need, and
    /// its revocation list ends too soon. One too many keeps an issuing CA.
    fn in_force(
        &mut self,
        key_id: &[u8],
        at_work: Range<OffsetDateTime>,
        now: OffsetDateTime,
    ) -> Result<InForce, StoreError>;

    /// Puts an identity on record, with its first certificate. A certificate that is not on record
    /// lets nobody in. Returns `false` if there is an identity of this name.
    fn add_identity(
        &mut self,
        identity: &NewIdentity,
        now: OffsetDateTime,
    ) -> Result<bool, StoreError>;

    /// Puts another certificate of an identity on record. A revoked identity gets none: if it did,
    /// somebody could undo a revocation by a renewal.
    fn renew_identity(
        &mut self,
        name: &str,
        certificate: &IdentityCertificate,
        now: OffsetDateTime,
    ) -> Result<Renewed, StoreError>;

    /// Gives a backend these rights in place of those that it has. Returns `false` if there is no
    /// backend of this name. If they differ, [`Changes::connections`] grows.
    fn set_rights(&mut self, name: &str, rights: &Rights) -> Result<bool, StoreError>;

    /// Every identity, in the order in which they were made.
    fn identities(&mut self) -> Result<Vec<IdentityRow>, StoreError>;

    /// The name of the identity whose certificate has this digest, be it good or not.
    ///
    /// If it is another's name, the audit says that somebody did what another person did.
    fn identity_named(&mut self, sha256: &[u8; 32]) -> Result<Option<String>, StoreError>;

    /// Revokes certificates of an identity. Returns how many of them were good before, and `None`
    /// if there is no such identity. If a
    /// revocation is lost, an operator who left can still connect.
    fn revoke_identity(
        &mut self,
        name: &str,
        which: Which<'_>,
        now: OffsetDateTime,
    ) -> Result<Option<usize>, StoreError>;

    /// Puts on record, and into the audit, a certificate for a device that does not exist. A broker
    /// is tried with it. The device is not registered, and the certificate counts as one that never
    /// came into force.
    fn add_throw_away(
        &mut self,
        device: &DeviceId,
        der: &[u8],
        now: OffsetDateTime,
    ) -> Result<(), StoreError>;

    /// Revokes certificates that [`add_throw_away`](Self::add_throw_away) put on record, and never
    /// one of a device that exists.
    fn revoke_throw_away(&mut self, ders: &[&[u8]], now: OffsetDateTime) -> Result<(), StoreError>;

    /// Adds a vendor's certificate, or makes an anchor of one that is there.
    ///
    /// With a row that no operator added, the CA would trust every TPM that a stranger certifies.
    fn add_anchor(&mut self, anchor: &AnchorRow) -> Result<Trusted, StoreError>;

    /// Removes a vendor's certificate; `false` if it was not there. Nobody waits any more: some did
    /// because of that vendor, and the others come back.
    fn remove_anchor(&mut self, fingerprint: &[u8; 32]) -> Result<bool, StoreError>;

    /// Every vendor's certificate, oldest first.
    fn anchors(&mut self) -> Result<Vec<AnchorRow>, StoreError>;

    /// What a revocation list of devices must name now, and the number of that list. Each number is
    /// given once, and a higher number stands for a later state (RFC 5280 §5.2.3): a list with an
    /// older state and a higher number would make revoked certificates good again. First this
    /// revokes certificates that were not confirmed in time.
    ///
    /// Half a million certificates take a second. Others can write meanwhile, unless the list
    /// changes faster than it is read.
    fn revocation_list(
        &mut self,
        now: OffsetDateTime,
    ) -> Result<(RevokedCertificates, u32), StoreError>;

    /// Every certificate of a device that is no longer good and has not expired, with the reason
    /// (RFC 5280 §5.3.1): *superseded*; *certificate hold* while its device is disabled; *cessation
    /// of operation* if nobody confirmed it or its device was removed.
    fn revoked(&mut self, now: OffsetDateTime) -> Result<RevokedCertificates, StoreError>;

    /// The same for identities, with *cessation of operation*.
    fn revoked_identities(&mut self, now: OffsetDateTime) -> Result<Vec<Revoked>, StoreError>;

    /// The number of the next revocation list. Each number is given once.
    fn next_revocation_list(&mut self) -> Result<u32, StoreError>;

    /// How often something happened that revokes. Cheap enough to ask every second.
    fn changes(&mut self) -> Result<Changes, StoreError>;

    /// Returns what [`changes`](Self::changes) returns: as soon as that differs from `seen`, and
    /// after `timeout` at the latest.
    ///
    /// As long as this is late, a revoked device stays connected. So it must return within a second
    /// of the commit, on whatever machine that was. After each return, the caller looks at every
    /// connection, so it should leave some time between two calls.
    fn wait_for_changes(&mut self, seen: Changes, timeout: Duration)
    -> Result<Changes, StoreError>;

    /// How often this CA was restored from a backup, and whether it waits for an operator since.
    ///
    /// A wrong answer lets a restored CA serve that does not know what was revoked since its
    /// backup.
    fn epoch(&mut self) -> Result<Epoch, StoreError>;

    /// What the clock of a worker is compared with.
    ///
    /// A wrong answer keeps a worker from answering, or lets one answer whose clock is wrong.
    fn clocks(&mut self) -> Result<Clocks, StoreError>;

    /// Puts on record that it was this time. The time on record never goes back.
    fn mark_clock(&mut self, now: OffsetDateTime) -> Result<(), StoreError>;

    /// Puts on record that this time is right, although it is before the one on record, or after it
    /// by a step.
    fn accept_clock(&mut self, now: OffsetDateTime) -> Result<(), StoreError>;

    /// Lets a restored CA serve. Returns `false` if it might already.
    fn resume(&mut self, now: OffsetDateTime) -> Result<bool, StoreError>;

    /// Makes no longer good what a list names that the CA published before it was restored, and
    /// disables the EKs of certificates that are on hold. What the record does not know is put on
    /// the next lists until `until`, because a relying party would otherwise believe that it is
    /// good again. The next list gets a higher number than this one. Nothing that is revoked
    /// becomes good.
    ///
    /// If part of a list is lost, what it names is good again.
    fn take_over(
        &mut self,
        list: &PublishedList,
        until: OffsetDateTime,
    ) -> Result<TakenOver, StoreError>;

    /// Attaches a document to a device, or to the scope if `target` is `None`, or removes it if
    /// `document` is `None`. Returns the new revision, which is higher than every one before, and
    /// no less than the microseconds from 1970 to `now`; `None` if there is nothing to remove. The
    /// device need not be registered.
    ///
    /// If a revision were given twice, a device that has one document would not take the other. If
    /// revisions did not follow the clock, a device that somebody gave a forged one would never
    /// take the operator's documents again.
    fn set_configuration(
        &mut self,
        target: Option<&DeviceId>,
        document: Option<&[u8]>,
        now: OffsetDateTime,
    ) -> Result<Option<u64>, StoreError>;

    /// The document that is due to a device: its own one, or else the scope's. `None` if there
    /// never was one for it. For one device, the revision never goes back, whatever is removed.
    ///
    /// If it goes back, the device takes the answer for a replay, and keeps what it has.
    fn configuration(&mut self, device: &DeviceId) -> Result<Option<DueConfiguration>, StoreError>;

    /// Everything that is attached, or was; the scope's first, then by device id.
    fn configurations(&mut self) -> Result<Vec<ConfigurationRow>, StoreError>;

    /// The newest revision; 0 if nothing was ever attached. Cheap enough to ask every second.
    fn newest_configuration(&mut self) -> Result<u64, StoreError>;

    /// What changed last, for devices to know whether to ask. If a change is missing, a device
    /// hears of it only when it renews.
    fn configuration_changes(&mut self) -> Result<ConfigurationChanges, StoreError>;

    /// From now on, whatever this connection changes is an act of an operator, and is put into the
    /// audit, in the same transaction. Without it, only decisions are.
    fn act_as(&mut self, actor: Actor);

    /// Puts into the audit what an operator did elsewhere, e.g. to keys.
    fn note(&mut self, deed: Deed) -> Result<(), StoreError>;

    /// Reads the audit to verify it: how each chain begins, and then every entry, in order, all at
    /// one moment, until `each` breaks. Entries of before there were chains are left out.
    ///
    /// If an entry were left out, it would seem that somebody removed it.
    fn walk_audit(
        &mut self,
        each: &mut (dyn FnMut(Walked) -> ControlFlow<()> + Send),
    ) -> Result<(), StoreError>;

    /// Reads what is to be told next as events, after what is on record as told and after `from`.
    /// It looks at `count` entries at most.
    ///
    /// If an entry is left out, nobody hears of it.
    fn untold(&mut self, from: Told, count: u32) -> Result<Untold, StoreError>;

    /// Puts on record how far events were told. It is the turn of this worker from now on for some
    /// seconds, so that others do not tell the same events. Returns `false`, and changes nothing, if
    /// it is the turn of another one.
    ///
    /// If more is put on record than was told, events are lost. If it goes back, they are told
    /// twice.
    fn mark_told(
        &mut self,
        told: Told,
        teller: &Teller,
        now: OffsetDateTime,
    ) -> Result<bool, StoreError>;

    /// The newest `count` entries, oldest first.
    fn audit(&mut self, count: u32) -> Result<Vec<AuditRow>, StoreError>;

    /// Revokes certificates that were not confirmed in time, and forgets what `retention` says. One
    /// call takes a limited number of each kind, so that others wait only for milliseconds. Call it
    /// again while it returns [`Pruned::more`].
    ///
    /// To forget too little costs room. If too much is forgotten, nobody knows any more whose a
    /// certificate was, or a retired generation is accepted again. So a store that several machines
    /// share fails if the clock of this machine is ahead of the server's ([`StoreError::Clock`]). A
    /// file has only the clock of this machine.
    fn prune(&mut self, retention: &Retention, now: OffsetDateTime) -> Result<Pruned, StoreError>;

    /// Makes a durable write that changes nothing, and finds out whether there is room for what
    /// comes next, as far as that can be known.
    fn check_writable(&mut self) -> Result<(), StoreError>;

    /// Does maintenance that a store needs now and then, so that no write has to wait for it.
    /// Without it, nothing is lost.
    fn checkpoint(&mut self) -> Result<(), StoreError>;
}

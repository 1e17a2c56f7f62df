//! What every store promises, and what each wrong answer would cost.
//!
//! A request goes through *plan* (pure, on a [`Snapshot`]), *sign* (outside of any lock) and
//! *record*. So the hot path is two calls over values: [`Store::snapshot`] and [`Store::record`].
//! Both can be run again.
//!
//! Whatever processes work on one database at once, and whichever of them dies:
//!
//! 1. an EK has at most one device id, and a device id at most one EK;
//! 2. an EK has at most one active certificate;
//! 3. a generation of a shared key that was retired is never accepted again;
//! 4. a revocation is never lost, and the counters of [`Changes`] only grow;
//! 5. an entry is recorded whole, with its audit, or not at all;
//! 6. what a call that returned `Ok` recorded survives a crash of the process and of the machine.

use std::time::Duration;

use assay_ca_core::{Reprovision, Revoked, SealedOnRecord, SharedKeyHolder};
use assay_wire::{DeviceId, EkId, Identity, Scope};
use time::OffsetDateTime;

use crate::act::{Entry, Question, Recorded, Snapshot};
use crate::audit::AuditRow;
use crate::certificates::{CertificateRow, CertificateStatus, DeviceRow};
use crate::credentials::{Credential, CredentialRow};
use crate::enrolments::{EnrolResults, EnrolmentRow, NewEnrolment, Removed};
use crate::error::StoreError;
use crate::retention::{Pruned, Retention};
use crate::revocation::{Changes, RevokedCertificates};
use crate::trust::{AnchorRow, AnchorsVersion, Trusted};

/// One connection to a database. Each thread has its own, from
/// [`Database::open`](crate::Database::open).
///
/// Every call may wait for another process that writes, or for a server that is away: ten seconds
/// or so, then it fails. A thread that runs asynchronous tasks should leave it to another.
///
/// Errors: the database could not be reached, read or written. An error of a call that writes
/// means that nothing was written; [`StoreError::Undecided`] alone, that this is not known.
pub trait Store: Send {
    /// What is on record about one EK and a device id, all of one moment.
    ///
    /// It may be out of date when it arrives: [`record`](Self::record) finds that out. A mixture of
    /// two moments would let a plan pass that fits neither, for example a device id that was free
    /// in one and an enrolment that granted it in the other.
    fn snapshot(&mut self, question: &Question) -> Result<Snapshot, StoreError>;

    /// Records each entry whole or not at all, all in one durable transaction. An entry is
    /// [`Recorded::Stale`], and leaves nothing, if the question of its plan has another answer now.
    /// An entry sees what those before it recorded. One without a basis depends on nothing, and is
    /// an error if the record forbids it.
    ///
    /// A wrong `Done` costs invariants: two active certificates, a device id of two EKs, a
    /// certificate for a device that was disabled. A wrong `Stale` costs a second plan and
    /// signature. An `Ok` that is not durable costs a certificate that a device has and the CA does
    /// not know, which the broker then refuses. `scope` is checked because a certificate of another
    /// scope than the one on record names topics that nobody serves.
    fn record(&mut self, scope: &Scope, entries: &[Entry]) -> Result<Vec<Recorded>, StoreError>;

    /// What became of the certificate with this digest that a device of this EK confirms, of one
    /// moment with what is on record about it. One whose time is over has ended, unless it is in
    /// force: an active one is sealed to a device that asks again.
    ///
    /// A wrong `Unconfirmed` is found by [`record`](Self::record). A wrong `Active` tells a device
    /// that it may use a certificate that the broker refuses; a wrong `Ended` sends it through the
    /// whole flow again.
    fn sealed_certificate(
        &mut self,
        ek: &EkId,
        sha256: &[u8; 32],
        now: OffsetDateTime,
    ) -> Result<SealedOnRecord, StoreError>;

    /// The EKs to which a shared key was offered under this device id. More than one only if the id
    /// changed hands; admission knows whose it is now.
    ///
    /// One too few locks a device out; one too many costs a check of a token.
    fn shared_key_holders(&mut self, device: &DeviceId)
    -> Result<Vec<SharedKeyHolder>, StoreError>;

    /// Whether an EK is on the enrolment list.
    ///
    /// It is for people who ask: what is decided is decided by a [`snapshot`](Self::snapshot).
    fn is_enrolled(&mut self, ek: &EkId) -> Result<bool, StoreError>;

    /// What a certificate with this serial number and digest, which somebody shows as this
    /// device's, is worth now.
    ///
    /// A wrong `Active` lets somebody in who stole the issuing key, or whom an operator removed. It
    /// must not be out of date: the answer is that of the last revocation that was committed.
    fn certificate_status(
        &mut self,
        device: &DeviceId,
        serial: &[u8],
        sha256: &[u8; 32],
    ) -> Result<CertificateStatus, StoreError>;

    /// The same of a certificate that somebody shows as an operator's or a worker's. A wrong
    /// `Active` costs more here: an operator may read and send everything.
    fn credential_status(
        &mut self,
        identity: &Identity,
        sha256: &[u8; 32],
    ) -> Result<CertificateStatus, StoreError>;

    /// Puts the scope on record that a CA is going to serve. It may be another than before as long
    /// as nothing was granted in that; afterwards it is [`StoreError::Scope`].
    ///
    /// A wrong `Ok` gives new devices names and topics that the old ones do not have, for ever.
    fn record_scope(&mut self, scope: &Scope) -> Result<(), StoreError>;

    /// Whether [`record_scope`](Self::record_scope) would take this scope.
    fn may_serve(&mut self, scope: &Scope) -> Result<(), StoreError>;

    /// Puts EKs on the list: all of them, or none if one cannot be. Each result stands where its EK
    /// does.
    ///
    /// Half a list that looks whole leaves devices out that an operator believes to be in.
    fn enroll(&mut self, new: &[NewEnrolment]) -> Result<EnrolResults, StoreError>;

    /// Says what [`enroll`](Self::enroll) would do, and does nothing.
    fn rehearse_enroll(&mut self, new: &[NewEnrolment]) -> Result<EnrolResults, StoreError>;

    /// Changes what happens when a device asks again, and whether its shared key may be sent to a
    /// plain storage root key; what is `None` stays as it is. `false` if the EK is not on the list.
    fn update_enrolment(
        &mut self,
        ek: &EkId,
        reprovision: Option<Reprovision>,
        plain_srk: Option<bool>,
    ) -> Result<bool, StoreError>;

    /// Forgets an EK: its enrolment and its registration go, its certificates are revoked, its
    /// shared key is retired, and its device id is free. If it is disabled it remains so. What was
    /// only offered to it is withdrawn too. `None` if there is nothing to forget.
    ///
    /// If the device id were free before the certificates are revoked, two devices would have it.
    fn remove(&mut self, ek: &EkId, now: OffsetDateTime) -> Result<Option<Removed>, StoreError>;

    /// Switches an EK off or on, whether the CA knows it or not; `false` if it was so before.
    ///
    /// A lost "off" leaves a device in that an operator believes to be out.
    fn set_disabled(
        &mut self,
        ek: &EkId,
        disabled: bool,
        now: OffsetDateTime,
    ) -> Result<bool, StoreError>;

    /// Retires the shared key of an EK, and those that were offered but not used yet; `false` if it
    /// never had one.
    ///
    /// A generation that comes back lets in whoever copied the key for which it was retired.
    fn retire_shared_key(&mut self, ek: &EkId) -> Result<bool, StoreError>;

    /// Every EK that the CA knows, oldest first.
    fn enrolments(&mut self) -> Result<Vec<EnrolmentRow>, StoreError>;

    /// The EK with this id, if the CA knows it.
    fn enrolment(&mut self, ek: &EkId) -> Result<Option<EnrolmentRow>, StoreError>;

    /// The EK that holds a device id, by registration or by enrolment.
    fn ek_of_device(&mut self, device: &DeviceId) -> Result<Option<EkId>, StoreError>;

    /// Every device, in the order of registration.
    fn devices(&mut self) -> Result<Vec<DeviceRow>, StoreError>;

    /// Every certificate, in the order of issuance. One that was never confirmed comes without its
    /// DER: it names a device to people who should not know of it.
    fn certificates(&mut self) -> Result<Vec<CertificateRow>, StoreError>;

    /// Puts a certificate of an operator or a worker on record, without which it lets nobody in;
    /// `false` if there is one of this name.
    fn add_credential(
        &mut self,
        name: &str,
        credential: &Credential,
        now: OffsetDateTime,
    ) -> Result<bool, StoreError>;

    /// Every such certificate, in the order of issuance.
    fn credentials(&mut self) -> Result<Vec<CredentialRow>, StoreError>;

    /// Revokes the certificate of this name; `None` if there is none, `false` if it was revoked
    /// before. If this is lost, an operator who left stays in.
    fn revoke_credential(
        &mut self,
        name: &str,
        now: OffsetDateTime,
    ) -> Result<Option<bool>, StoreError>;

    /// Puts the certificate of a device that does not exist on record, with which a broker is
    /// tried; and in the audit. The device is not registered, and the certificate counts as one
    /// that never came into force.
    fn add_throw_away(
        &mut self,
        device: &DeviceId,
        der: &[u8],
        now: OffsetDateTime,
    ) -> Result<(), StoreError>;

    /// Revokes what [`add_throw_away`](Self::add_throw_away) put on record, and no certificate of a
    /// device that exists.
    fn revoke_throw_away(&mut self, ders: &[&[u8]], now: OffsetDateTime) -> Result<(), StoreError>;

    /// Adds a vendor's certificate, or makes an anchor of one that is there.
    ///
    /// A row that nobody added trusts every TPM of a stranger.
    fn add_anchor(&mut self, anchor: &AnchorRow) -> Result<Trusted, StoreError>;

    /// Removes a vendor's certificate; `false` if it was not there.
    fn remove_anchor(&mut self, fingerprint: &[u8; 32]) -> Result<bool, StoreError>;

    /// Every vendor's certificate, oldest first.
    fn anchors(&mut self) -> Result<Vec<AnchorRow>, StoreError>;

    /// Which set of vendors' certificates there is now, without reading them. A version that did
    /// not change with the set leaves a worker trusting a vendor that an operator removed.
    fn anchors_version(&mut self) -> Result<AnchorsVersion, StoreError>;

    /// What a revocation list of devices names as things are, with its number. Numbers are given
    /// once, and later numbers stand for later states (RFC 5280 §5.2.3): a list with an older state
    /// and a newer number would bring back what was revoked. What is overdue is revoked first.
    ///
    /// There may be half a million certificates, which takes a second. It keeps nobody from
    /// writing, unless the list changes faster than it is read.
    fn revocation_list(
        &mut self,
        now: OffsetDateTime,
    ) -> Result<(RevokedCertificates, u32), StoreError>;

    /// Every certificate of a device that is no longer good and has not expired, with the reason
    /// (RFC 5280 §5.3.1): *superseded*; *certificate hold* while its device is disabled; *cessation
    /// of operation* if nobody confirmed it or its device was removed.
    fn revoked(&mut self, now: OffsetDateTime) -> Result<RevokedCertificates, StoreError>;

    /// The same of operators and workers.
    fn revoked_credentials(&mut self, now: OffsetDateTime) -> Result<Vec<Revoked>, StoreError>;

    /// The number of the next revocation list: each is given once.
    fn next_revocation_list(&mut self) -> Result<u32, StoreError>;

    /// How often something happened that revokes. Cheap enough to ask every second.
    fn changes(&mut self) -> Result<Changes, StoreError>;

    /// Returns what [`changes`](Self::changes) does as soon as that is other than `seen`, and after
    /// `timeout` at the latest.
    ///
    /// Late, it leaves a revoked device connected for as long; so it is to be within a second of
    /// the commit, on whatever machine that was. Too often costs a look at every connection: a
    /// caller that acts on each return should leave some time between.
    fn wait_for_changes(&mut self, seen: Changes, timeout: Duration)
    -> Result<Changes, StoreError>;

    /// The newest `count` decisions, oldest first.
    fn audit(&mut self, count: u32) -> Result<Vec<AuditRow>, StoreError>;

    /// Revokes certificates that were not confirmed in time, and forgets what `retention` says. At
    /// most some hundreds of each kind at a time, so that others wait for milliseconds: call it
    /// again while it returns [`Pruned::more`].
    ///
    /// Too little costs room. Too much forgets whose a certificate was, or lets a retired
    /// generation return. So a store that several machines share fails if this machine's clock is
    /// ahead of its own ([`StoreError::Clock`]); a file has only this one.
    fn prune(&mut self, retention: &Retention, now: OffsetDateTime) -> Result<Pruned, StoreError>;

    /// Makes a durable write that changes nothing, and finds out whether there is room for what
    /// comes next, as far as that can be known.
    fn check_writable(&mut self) -> Result<(), StoreError>;

    /// Does what a store needs done now and then so that no write has to wait for it. Nothing is
    /// lost without.
    fn checkpoint(&mut self) -> Result<(), StoreError>;
}

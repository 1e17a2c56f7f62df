//! The default store: one SQLite file in the CA's directory.
//!
//! What a committed transaction wrote survives a crash of the process and of the machine
//! (write-ahead log, `synchronous=FULL`). SQLite lets one connection of all processes write at a
//! time. Each transaction here that writes takes that lock before it reads. So these transactions
//! happen one after another, and what a check finds holds until the transaction has written what
//! the check allows. Besides, the schema has constraints: one device id per EK, one EK per device
//! id, and one active certificate per EK.

mod alone;
mod audit;
mod certificates;
mod clock;
mod columns;
mod configurations;
mod connection;
pub(crate) mod dump;
mod enrolments;
mod epoch;
mod events;
mod groups;
mod identities;
mod migrations;
mod pending;
mod record;
mod records;
mod revocation;
mod shared_keys;
mod throw_away;
mod trust;

use std::ops::{ControlFlow, Range};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use assay_ca_core::{Groups, Place, Reprovision, Revoked, SealedOnRecord, SharedKeyHolder};
use assay_wire::{DeviceId, EkId, Identity, Rights, Scope};
use time::OffsetDateTime;

use crate::act::{Entry, Question, Recorded, Snapshot};
use crate::audit::{Actor, AuditRow, Deed};
use crate::certificates::{CertificateRow, CertificateStatus, Counts, DeviceRow, InForce};
use crate::chain::Walked;
use crate::clock::Clocks;
use crate::configurations::{ConfigurationChanges, ConfigurationRow, DueConfiguration};
use crate::contract::Store;
use crate::deeds;
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

pub use connection::{Sqlite, Transaction};

/// The schema version of a file, and the version of Assay that gave it that schema.
///
/// # Errors
/// It cannot be read.
pub(crate) fn version(path: &Path) -> Result<(i64, String), StoreError> {
    let _opening = alone::keep_from_upgrade(path)?;
    let flags = rusqlite::OpenFlags::SQLITE_OPEN_READ_ONLY;
    let connection = rusqlite::Connection::open_with_flags(path, flags)?;
    Ok((migrations::version(&connection)?, migrations::writer(&connection)?))
}

impl Store for Sqlite {
    fn snapshot(&mut self, question: &Question) -> Result<Snapshot, StoreError> {
        Self::snapshot(self, question)
    }

    fn record(&mut self, scope: &Scope, entries: &[Entry]) -> Result<Vec<Recorded>, StoreError> {
        self.record(scope, entries)
    }

    fn longest_pause(&self) -> Duration {
        Duration::ZERO
    }

    fn sealed_certificate(
        &mut self,
        ek: &EkId,
        sha256: &[u8; 32],
        now: OffsetDateTime,
    ) -> Result<SealedOnRecord, StoreError> {
        certificates::sealed(&self.connection, ek, sha256, now)
    }

    fn shared_key_holders(
        &mut self,
        device: &DeviceId,
    ) -> Result<Vec<SharedKeyHolder>, StoreError> {
        Self::shared_key_holders(self, device)
    }

    fn is_enrolled(&mut self, ek: &EkId) -> Result<bool, StoreError> {
        Self::is_enrolled(self, ek)
    }

    fn certificate_status(
        &mut self,
        device: &DeviceId,
        serial: &[u8],
        sha256: &[u8; 32],
    ) -> Result<CertificateStatus, StoreError> {
        Self::certificate_status(self, device, serial, sha256)
    }

    fn identity_status(
        &mut self,
        identity: &Identity,
        sha256: &[u8; 32],
    ) -> Result<(CertificateStatus, Rights), StoreError> {
        Self::identity_status(self, identity, sha256)
    }

    fn record_scope(&mut self, scope: &Scope) -> Result<(), StoreError> {
        self.record_scope(scope)
    }

    fn may_serve(&mut self, scope: &Scope) -> Result<(), StoreError> {
        Self::may_serve(self, scope)
    }

    fn enroll(&mut self, new: &[NewEnrolment]) -> Result<EnrolResults, StoreError> {
        self.enroll(new)
    }

    fn rehearse_enroll(&mut self, new: &[NewEnrolment]) -> Result<EnrolResults, StoreError> {
        self.rehearse_enroll(new)
    }

    fn update_enrolment(
        &mut self,
        ek: &EkId,
        reprovision: Option<Reprovision>,
        plain_srk: Option<bool>,
    ) -> Result<bool, StoreError> {
        self.update_enrolment(ek, reprovision, plain_srk)
    }

    fn remove(&mut self, ek: &EkId, now: OffsetDateTime) -> Result<Option<Removed>, StoreError> {
        self.remove(ek, now)
    }

    fn set_disabled(
        &mut self,
        ek: &EkId,
        disabled: bool,
        now: OffsetDateTime,
    ) -> Result<bool, StoreError> {
        self.set_disabled(ek, disabled, now)
    }

    fn replace(
        &mut self,
        replacement: &Replacement,
    ) -> Result<Result<Replaced, EnrolError>, StoreError> {
        self.replace(replacement)
    }

    fn history(&mut self, device: &DeviceId) -> Result<Vec<Tenure>, StoreError> {
        Self::history(self, device)
    }

    fn retire_shared_key(&mut self, ek: &EkId) -> Result<bool, StoreError> {
        self.act(|transaction, done| {
            let is_retired = transaction.retire_shared_key(ek)?;
            if is_retired {
                done.push(deeds::key_retired(ek, enrolments::device_of(transaction.0, ek)?));
            }
            Ok(is_retired)
        })
    }

    fn groups(&mut self) -> Result<(GroupsVersion, Groups), StoreError> {
        Self::groups(self)
    }

    fn set_groups(&mut self, seen: GroupsVersion, groups: &Groups) -> Result<bool, StoreError> {
        self.set_groups(seen, groups)
    }

    fn take_place(
        &mut self,
        ek: &EkId,
        place: &Place,
        now: OffsetDateTime,
    ) -> Result<bool, StoreError> {
        self.take_place(ek, place, now)
    }

    fn has_place(&mut self, ek: &EkId, place: &Place) -> Result<bool, StoreError> {
        Self::has_place(self, ek, place)
    }

    fn pending(&mut self) -> Result<Vec<PendingRow>, StoreError> {
        Self::pending(self)
    }

    fn approve(&mut self, new: &[NewEnrolment]) -> Result<EnrolResults, StoreError> {
        self.approve(new)
    }

    fn turn_away(&mut self, eks: &[EkId], now: OffsetDateTime) -> Result<(), StoreError> {
        self.turn_away(eks, now)
    }

    fn enrolments(&mut self) -> Result<Vec<EnrolmentRow>, StoreError> {
        Self::enrolments(self)
    }

    fn enrolment(&mut self, ek: &EkId) -> Result<Option<EnrolmentRow>, StoreError> {
        Self::enrolment(self, ek)
    }

    fn ek_of_device(&mut self, device: &DeviceId) -> Result<Option<EkId>, StoreError> {
        Self::ek_of_device(self, device)
    }

    fn devices(&mut self) -> Result<Vec<DeviceRow>, StoreError> {
        Self::devices(self)
    }

    fn certificates(&mut self) -> Result<Vec<CertificateRow>, StoreError> {
        Self::certificates(self)
    }

    fn devices_from(&mut self, from: &str, count: u32) -> Result<Vec<DeviceRow>, StoreError> {
        Self::devices_from(self, from, count)
    }

    fn certificates_from(
        &mut self,
        from: &[u8],
        count: u32,
    ) -> Result<Vec<CertificateRow>, StoreError> {
        Self::certificates_from(self, from, count)
    }

    fn certificates_of(
        &mut self,
        ek: &EkId,
        count: u32,
    ) -> Result<Vec<CertificateRow>, StoreError> {
        Self::certificates_of(self, ek, count)
    }

    fn counts(&mut self) -> Result<Counts, StoreError> {
        Self::counts(self)
    }

    fn identity_named(&mut self, sha256: &[u8; 32]) -> Result<Option<String>, StoreError> {
        Self::identity_named(self, sha256)
    }

    fn in_force(
        &mut self,
        key_id: &[u8],
        at_work: Range<OffsetDateTime>,
        now: OffsetDateTime,
    ) -> Result<InForce, StoreError> {
        Self::in_force(self, key_id, &at_work, now)
    }

    fn add_identity(
        &mut self,
        identity: &NewIdentity,
        now: OffsetDateTime,
    ) -> Result<bool, StoreError> {
        self.add_identity(identity, now)
    }

    fn renew_identity(
        &mut self,
        name: &str,
        certificate: &IdentityCertificate,
        now: OffsetDateTime,
    ) -> Result<Renewed, StoreError> {
        self.renew_identity(name, certificate, now)
    }

    fn set_rights(&mut self, name: &str, rights: &Rights) -> Result<bool, StoreError> {
        self.set_rights(name, rights)
    }

    fn made_before(
        &mut self,
        time: OffsetDateTime,
        now: OffsetDateTime,
    ) -> Result<MadeBefore, StoreError> {
        Self::made_before(self, time, now)
    }

    fn identities(&mut self) -> Result<Vec<IdentityRow>, StoreError> {
        Self::identities(self)
    }

    fn set_configuration(
        &mut self,
        target: Option<&DeviceId>,
        document: Option<&[u8]>,
        now: OffsetDateTime,
    ) -> Result<Option<u64>, StoreError> {
        self.set_configuration(target, document, now)
    }

    fn configuration(&mut self, device: &DeviceId) -> Result<Option<DueConfiguration>, StoreError> {
        Self::configuration(self, device)
    }

    fn configurations(&mut self) -> Result<Vec<ConfigurationRow>, StoreError> {
        Self::configurations(self)
    }

    fn newest_configuration(&mut self) -> Result<u64, StoreError> {
        Self::newest_configuration(self)
    }

    fn configuration_changes(&mut self) -> Result<ConfigurationChanges, StoreError> {
        Self::configuration_changes(self)
    }

    fn revoke_identity(
        &mut self,
        name: &str,
        which: Which<'_>,
        now: OffsetDateTime,
    ) -> Result<Option<usize>, StoreError> {
        self.revoke_identity(name, which, now)
    }

    fn add_throw_away(
        &mut self,
        device: &DeviceId,
        der: &[u8],
        now: OffsetDateTime,
    ) -> Result<(), StoreError> {
        self.add_throw_away(device, der, now)
    }

    fn revoke_throw_away(&mut self, ders: &[&[u8]], now: OffsetDateTime) -> Result<(), StoreError> {
        self.revoke_throw_away(ders.iter().copied(), now)
    }

    fn add_anchor(&mut self, anchor: &AnchorRow) -> Result<Trusted, StoreError> {
        Self::add_anchor(self, anchor)
    }

    fn remove_anchor(&mut self, fingerprint: &[u8; 32]) -> Result<bool, StoreError> {
        Self::remove_anchor(self, fingerprint)
    }

    fn anchors(&mut self) -> Result<Vec<AnchorRow>, StoreError> {
        Self::anchors(self)
    }

    fn revocation_list(
        &mut self,
        now: OffsetDateTime,
    ) -> Result<(RevokedCertificates, u32), StoreError> {
        self.revocation_list(now)
    }

    fn revoked(&mut self, now: OffsetDateTime) -> Result<RevokedCertificates, StoreError> {
        Self::revoked(self, now)
    }

    fn revoked_identities(&mut self, now: OffsetDateTime) -> Result<Vec<Revoked>, StoreError> {
        Self::revoked_identities(self, now)
    }

    fn next_revocation_list(&mut self) -> Result<u32, StoreError> {
        self.transaction(|transaction| transaction.next_revocation_list())
    }

    fn changes(&mut self) -> Result<Changes, StoreError> {
        Self::changes(self)
    }

    /// SQLite does not tell one process what another wrote, so this looks every now and then.
    fn wait_for_changes(
        &mut self,
        seen: Changes,
        timeout: Duration,
    ) -> Result<Changes, StoreError> {
        let deadline = Instant::now() + timeout;
        loop {
            let changes = Self::changes(self)?;
            let left = deadline.saturating_duration_since(Instant::now());
            if changes != seen || left.is_zero() {
                return Ok(changes);
            }
            thread::sleep(left.min(POLL));
        }
    }

    fn epoch(&mut self) -> Result<Epoch, StoreError> {
        Self::epoch(self)
    }

    fn clocks(&mut self) -> Result<Clocks, StoreError> {
        Self::clocks(self)
    }

    fn mark_clock(&mut self, now: OffsetDateTime) -> Result<(), StoreError> {
        Self::mark_clock(self, now)
    }

    fn accept_clock(&mut self, now: OffsetDateTime) -> Result<(), StoreError> {
        Self::accept_clock(self, now)
    }

    fn resume(&mut self, now: OffsetDateTime) -> Result<bool, StoreError> {
        self.resume(now)
    }

    fn take_over(
        &mut self,
        list: &PublishedList,
        until: OffsetDateTime,
    ) -> Result<TakenOver, StoreError> {
        self.take_over(list, until)
    }

    fn act_as(&mut self, actor: Actor) {
        self.actor = Some(actor);
    }

    fn note(&mut self, deed: Deed) -> Result<(), StoreError> {
        self.act(|_, done| {
            done.push(deed);
            Ok(())
        })
    }

    fn untold(&mut self, from: Told, count: u32) -> Result<Untold, StoreError> {
        self.not_told(from, count)
    }

    fn mark_told(
        &mut self,
        told: Told,
        teller: &Teller,
        now: OffsetDateTime,
    ) -> Result<bool, StoreError> {
        self.have_told(told, teller, now)
    }

    fn audit(&mut self, count: u32) -> Result<Vec<AuditRow>, StoreError> {
        Self::audit(self, count)
    }

    fn walk_audit(
        &mut self,
        each: &mut (dyn FnMut(Walked) -> ControlFlow<()> + Send),
    ) -> Result<(), StoreError> {
        Self::walk_audit(self, each)
    }

    fn prune(&mut self, retention: &Retention, now: OffsetDateTime) -> Result<Pruned, StoreError> {
        self.prune(retention, now)
    }

    fn check_writable(&mut self) -> Result<(), StoreError> {
        self.check_writable()
    }

    fn checkpoint(&mut self) -> Result<(), StoreError> {
        Self::checkpoint(self)
    }
}

/// How late a revocation is noticed. A look takes some 10 µs.
const POLL: Duration = Duration::from_millis(500);

//! The store for workers on several machines: PostgreSQL 15 or later.
//!
//! Why no invariant can break between processes: a connection can only read
//! (`default_transaction_read_only`), except in a transaction that says that it writes. Such a
//! transaction first locks the table `write_lock` for itself alone. So transactions that write
//! happen one after another, and each takes its snapshot after the one before it has committed.
//! What a transaction checks holds until it has written what the check allowed. No order of
//! processes, crashes and retries can give a result that one process alone could not have.
//! Transactions are `REPEATABLE READ`: if somebody wrote by hand without the lock, a transaction
//! would fail and be tried again. Besides, the schema has constraints: one device id per EK, one EK
//! per device id, and one active certificate per EK. Decision 0011 says what `SERIALIZABLE` without
//! the lock would cost instead.

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
mod revocation;
mod scope;
mod session;
mod settings;
mod shared_keys;
mod snapshots;
mod trust;

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
use crate::contract::Store;
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

pub use connection::Postgres;
pub use settings::Settings;

impl Postgres {
    /// Connects to a CA that is there.
    ///
    /// # Errors
    /// The server cannot be reached or does not let us in, there is no CA, or another version of
    /// Assay wrote it.
    pub fn open(settings: &Settings) -> Result<Self, StoreError> {
        let mut store = Self::new(settings);
        migrations::check(&mut store)?;
        Ok(store)
    }

    /// Makes today's schema where there is no schema or an earlier one.
    ///
    /// # Errors
    /// A later version of Assay wrote it, or it cannot be made.
    pub fn upgrade(settings: &Settings) -> Result<(), StoreError> {
        connection::apart(|| migrations::upgrade(settings))
    }

    /// The version of the schema, and the version of Assay that made it; 0 if there is none.
    ///
    /// # Errors
    /// The server cannot be reached or does not let us in.
    pub(crate) fn version(settings: &Settings) -> Result<(i64, String), StoreError> {
        Self::new(settings).read(migrations::version)
    }
}

impl Store for Postgres {
    fn snapshot(&mut self, question: &Question) -> Result<Snapshot, StoreError> {
        self.snapshot_of(question)
    }

    fn record(&mut self, scope: &Scope, entries: &[Entry]) -> Result<Vec<Recorded>, StoreError> {
        self.record_all(scope, entries)
    }

    /// A transaction is some ten calls between two processes, however many entries it has.
    fn longest_pause(&self) -> Duration {
        Duration::from_millis(5)
    }

    fn sealed_certificate(
        &mut self,
        ek: &EkId,
        sha256: &[u8; 32],
        now: OffsetDateTime,
    ) -> Result<SealedOnRecord, StoreError> {
        self.sealed(ek, sha256, now)
    }

    fn shared_key_holders(
        &mut self,
        device: &DeviceId,
    ) -> Result<Vec<SharedKeyHolder>, StoreError> {
        self.holders(device)
    }

    fn is_enrolled(&mut self, ek: &EkId) -> Result<bool, StoreError> {
        self.is_on_list(ek)
    }

    fn certificate_status(
        &mut self,
        device: &DeviceId,
        serial: &[u8],
        sha256: &[u8; 32],
    ) -> Result<CertificateStatus, StoreError> {
        self.status(device, serial, sha256)
    }

    fn identity_status(
        &mut self,
        identity: &Identity,
        sha256: &[u8; 32],
    ) -> Result<(CertificateStatus, Rights), StoreError> {
        self.status_of_identity(identity, sha256)
    }

    fn record_scope(&mut self, scope: &Scope) -> Result<(), StoreError> {
        self.put_scope(scope)
    }

    fn may_serve(&mut self, scope: &Scope) -> Result<(), StoreError> {
        self.could_serve(scope)
    }

    fn enroll(&mut self, new: &[NewEnrolment]) -> Result<EnrolResults, StoreError> {
        self.enroll_all(new)
    }

    fn rehearse_enroll(&mut self, new: &[NewEnrolment]) -> Result<EnrolResults, StoreError> {
        self.rehearse(new)
    }

    fn update_enrolment(
        &mut self,
        ek: &EkId,
        reprovision: Option<Reprovision>,
        plain_srk: Option<bool>,
    ) -> Result<bool, StoreError> {
        self.change_enrolment(ek, reprovision, plain_srk)
    }

    fn remove(&mut self, ek: &EkId, now: OffsetDateTime) -> Result<Option<Removed>, StoreError> {
        self.forget(ek, now)
    }

    fn set_disabled(
        &mut self,
        ek: &EkId,
        disabled: bool,
        now: OffsetDateTime,
    ) -> Result<bool, StoreError> {
        self.switch(ek, disabled, now)
    }

    fn replace(
        &mut self,
        replacement: &Replacement,
    ) -> Result<Result<Replaced, EnrolError>, StoreError> {
        self.replace_ek(replacement)
    }

    fn history(&mut self, device: &DeviceId) -> Result<Vec<Tenure>, StoreError> {
        self.history_of(device)
    }

    fn retire_shared_key(&mut self, ek: &EkId) -> Result<bool, StoreError> {
        self.retire(ek)
    }

    fn groups(&mut self) -> Result<(GroupsVersion, Groups), StoreError> {
        self.all_groups()
    }

    fn set_groups(&mut self, seen: GroupsVersion, groups: &Groups) -> Result<bool, StoreError> {
        self.put_groups(seen, groups)
    }

    fn take_place(
        &mut self,
        ek: &EkId,
        place: &Place,
        now: OffsetDateTime,
    ) -> Result<bool, StoreError> {
        self.give_place(ek, place, now)
    }

    fn has_place(&mut self, ek: &EkId, place: &Place) -> Result<bool, StoreError> {
        self.keeps_place(ek, place)
    }

    fn pending(&mut self) -> Result<Vec<PendingRow>, StoreError> {
        self.all_pending()
    }

    fn approve(&mut self, new: &[NewEnrolment]) -> Result<EnrolResults, StoreError> {
        self.approve_all(new)
    }

    fn turn_away(&mut self, eks: &[EkId], now: OffsetDateTime) -> Result<(), StoreError> {
        self.turn_eks_away(eks, now)
    }

    fn enrolments(&mut self) -> Result<Vec<EnrolmentRow>, StoreError> {
        self.all_enrolments()
    }

    fn enrolment(&mut self, ek: &EkId) -> Result<Option<EnrolmentRow>, StoreError> {
        self.enrolment_of(ek)
    }

    fn ek_of_device(&mut self, device: &DeviceId) -> Result<Option<EkId>, StoreError> {
        self.holder(device)
    }

    fn devices(&mut self) -> Result<Vec<DeviceRow>, StoreError> {
        self.all_devices()
    }

    fn certificates(&mut self) -> Result<Vec<CertificateRow>, StoreError> {
        self.all_certificates()
    }

    fn devices_from(&mut self, from: &str, count: u32) -> Result<Vec<DeviceRow>, StoreError> {
        self.page_of_devices(from, count)
    }

    fn certificates_from(
        &mut self,
        from: &[u8],
        count: u32,
    ) -> Result<Vec<CertificateRow>, StoreError> {
        self.page_of_certificates(from, count)
    }

    fn certificates_of(
        &mut self,
        ek: &EkId,
        count: u32,
    ) -> Result<Vec<CertificateRow>, StoreError> {
        self.newest_certificates_of(ek, count)
    }

    fn counts(&mut self) -> Result<Counts, StoreError> {
        self.count()
    }

    fn identity_named(&mut self, sha256: &[u8; 32]) -> Result<Option<String>, StoreError> {
        self.name_of_identity(sha256)
    }

    fn in_force(
        &mut self,
        key_id: &[u8],
        at_work: Range<OffsetDateTime>,
        now: OffsetDateTime,
    ) -> Result<InForce, StoreError> {
        self.count_in_force(key_id, &at_work, now)
    }

    fn add_identity(
        &mut self,
        identity: &NewIdentity,
        now: OffsetDateTime,
    ) -> Result<bool, StoreError> {
        self.put_identity(identity, now)
    }

    fn renew_identity(
        &mut self,
        name: &str,
        certificate: &IdentityCertificate,
        now: OffsetDateTime,
    ) -> Result<Renewed, StoreError> {
        self.put_renewed_identity(name, certificate, now)
    }

    fn set_rights(&mut self, name: &str, rights: &Rights) -> Result<bool, StoreError> {
        self.put_rights(name, rights)
    }

    fn made_before(
        &mut self,
        time: OffsetDateTime,
        now: OffsetDateTime,
    ) -> Result<MadeBefore, StoreError> {
        self.needed_before(time, now)
    }

    fn identities(&mut self) -> Result<Vec<IdentityRow>, StoreError> {
        self.all_identities()
    }

    fn set_configuration(
        &mut self,
        target: Option<&DeviceId>,
        document: Option<&[u8]>,
        now: OffsetDateTime,
    ) -> Result<Option<u64>, StoreError> {
        self.put_configuration(target, document, now)
    }

    fn configuration(&mut self, device: &DeviceId) -> Result<Option<DueConfiguration>, StoreError> {
        Self::due_configuration(self, device)
    }

    fn configurations(&mut self) -> Result<Vec<ConfigurationRow>, StoreError> {
        Self::all_configurations(self)
    }

    fn newest_configuration(&mut self) -> Result<u64, StoreError> {
        Self::newest_revision(self)
    }

    fn configuration_changes(&mut self) -> Result<ConfigurationChanges, StoreError> {
        Self::changed_configurations(self)
    }

    fn revoke_identity(
        &mut self,
        name: &str,
        which: Which<'_>,
        now: OffsetDateTime,
    ) -> Result<Option<usize>, StoreError> {
        self.end_identity(name, which, now)
    }

    fn add_throw_away(
        &mut self,
        device: &DeviceId,
        der: &[u8],
        now: OffsetDateTime,
    ) -> Result<(), StoreError> {
        self.throw_away(device, der, now)
    }

    fn revoke_throw_away(&mut self, ders: &[&[u8]], now: OffsetDateTime) -> Result<(), StoreError> {
        self.revoke_thrown_away(ders, now)
    }

    fn add_anchor(&mut self, anchor: &AnchorRow) -> Result<Trusted, StoreError> {
        self.put_anchor(anchor)
    }

    fn remove_anchor(&mut self, fingerprint: &[u8; 32]) -> Result<bool, StoreError> {
        self.take_anchor(fingerprint)
    }

    fn anchors(&mut self) -> Result<Vec<AnchorRow>, StoreError> {
        self.all_anchors()
    }

    fn revocation_list(
        &mut self,
        now: OffsetDateTime,
    ) -> Result<(RevokedCertificates, u32), StoreError> {
        self.list_of_revoked(now)
    }

    fn revoked(&mut self, now: OffsetDateTime) -> Result<RevokedCertificates, StoreError> {
        self.all_revoked(now)
    }

    fn revoked_identities(&mut self, now: OffsetDateTime) -> Result<Vec<Revoked>, StoreError> {
        self.all_revoked_identities(now)
    }

    fn next_revocation_list(&mut self) -> Result<u32, StoreError> {
        self.next_list()
    }

    fn changes(&mut self) -> Result<Changes, StoreError> {
        self.all_changes()
    }

    fn wait_for_changes(
        &mut self,
        seen: Changes,
        timeout: Duration,
    ) -> Result<Changes, StoreError> {
        self.wait(seen, timeout)
    }

    fn epoch(&mut self) -> Result<Epoch, StoreError> {
        self.last_epoch()
    }

    fn clocks(&mut self) -> Result<Clocks, StoreError> {
        self.all_clocks()
    }

    fn mark_clock(&mut self, now: OffsetDateTime) -> Result<(), StoreError> {
        self.mark(now)
    }

    fn accept_clock(&mut self, now: OffsetDateTime) -> Result<(), StoreError> {
        self.accept(now)
    }

    fn resume(&mut self, now: OffsetDateTime) -> Result<bool, StoreError> {
        self.let_serve(now)
    }

    fn take_over(
        &mut self,
        list: &PublishedList,
        until: OffsetDateTime,
    ) -> Result<TakenOver, StoreError> {
        self.take_list_over(list, until)
    }

    fn act_as(&mut self, actor: Actor) {
        self.actor = Some(actor);
    }

    fn note(&mut self, deed: Deed) -> Result<(), StoreError> {
        self.act(|_, done| {
            done.push(deed.clone());
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
        self.newest_entries(count)
    }

    fn walk_audit(
        &mut self,
        each: &mut (dyn FnMut(Walked) -> ControlFlow<()> + Send),
    ) -> Result<(), StoreError> {
        self.walk(each)
    }

    fn prune(&mut self, retention: &Retention, now: OffsetDateTime) -> Result<Pruned, StoreError> {
        self.prune_all(retention, now)
    }

    /// A client cannot know how much room the server's disk has.
    fn check_writable(&mut self) -> Result<(), StoreError> {
        self.write(|session| {
            session.execute("UPDATE revocation_lists SET number = number", &[])?;
            Ok(())
        })
    }

    /// The server makes its own checkpoints.
    fn checkpoint(&mut self) -> Result<(), StoreError> {
        Ok(())
    }
}

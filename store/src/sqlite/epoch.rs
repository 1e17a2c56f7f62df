//! Epochs, and revocation lists of before a restore.

use assay_ca_core::Revoked;
use rusqlite::{Connection, OptionalExtension, params};
use time::OffsetDateTime;

use super::columns::{optional_time, time};
use super::connection::{Sqlite, Transaction};
use crate::configurations::least_revision;
use crate::deeds;
use crate::epoch::{
    Epoch, HELD, ListedAre, PublishedList, Raised, Restored, SharedKeys, TakenOver, list_number,
    status,
};
use crate::error::StoreError;
use crate::random::random_bytes;

impl Sqlite {
    /// How often this CA was restored.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn epoch(&self) -> Result<Epoch, StoreError> {
        epoch(&self.connection)
    }

    /// Begins the next epoch, in a file that was restored and that nobody uses yet. The CA is held
    /// from then on. Everything that proves something by its number, or by a secret that is
    /// replaced with this, moves forward: the number of revocation lists, generations of shared
    /// keys, the counters of [`Changes`](crate::Changes). Certificates that wait to be confirmed
    /// are revoked, because they are encrypted under the ticket key of before.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn raise_epoch(
        &mut self,
        backed_up_at: OffsetDateTime,
        shared_keys: SharedKeys,
        now: OffsetDateTime,
    ) -> Result<Raised, StoreError> {
        self.transaction(|Transaction(connection)| {
            let number = epoch(connection)?.number + 1;
            connection.execute(
                "INSERT INTO restores (epoch, backed_up_at, restored_at) VALUES (?1, ?2, ?3)",
                params![number, backed_up_at.unix_timestamp(), now.unix_timestamp()],
            )?;
            let waiting = connection.execute(
                "UPDATE certificates SET status = 'revoked', ended_at = ?1, der = x''
                 WHERE status = 'unconfirmed'",
                [now.unix_timestamp()],
            )?;
            let retired = match shared_keys {
                SharedKeys::Keep => 0,
                // As `retire_shared_key`, so that policy `never` gives each device another one.
                SharedKeys::Retire => connection.execute(
                    "UPDATE shared_keys SET generation = max(generation, plain_srk_generation) + 2, \
                     is_used = 0",
                    [],
                )?,
            };
            // These two only grow, and by less than one a microsecond.
            connection.execute(
                "UPDATE revocations SET connections = max(connections + 1, ?1), \
                 list = max(list + 1, ?1)",
                [now.unix_timestamp() * 1_000_000],
            )?;
            // A device keeps a document that it got between the backup and now, unless what it gets
            // later has a higher revision.
            let next = "UPDATE configuration_revisions SET newest = max(newest + 1, ?1)
                        RETURNING newest";
            let was: i64 =
                connection.query_row("SELECT newest FROM configuration_revisions", [], |row| row.get(0))?;
            let next: i64 =
                connection.query_row(next, [least_revision(now)], |row| row.get(0))?;
            if was > 0 {
                connection.execute("UPDATE configurations SET revision = ?1", [next])?;
                // What was attached to the scope first after the backup is there no more.
                connection.execute(
                    "INSERT INTO configurations (device_id, revision, document, set_at)
                     VALUES ('', ?1, NULL, ?2) ON CONFLICT (device_id) DO NOTHING",
                    params![next, now.unix_timestamp()],
                )?;
            }
            let before: u32 =
                connection.query_row("SELECT number FROM revocation_lists", [], |row| row.get(0))?;
            let after = list_number(before, backed_up_at, now);
            connection.execute("UPDATE revocation_lists SET number = ?1", [after])?;
            Ok(Raised {
                epoch: number,
                waiting: waiting as u64,
                shared_keys: retired as u64,
                list: (before, after),
            })
        })
    }

    /// See [`Store::resume`](crate::contract::Store::resume).
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn resume(&mut self, now: OffsetDateTime) -> Result<bool, StoreError> {
        self.act(|transaction, done| {
            let resume = "UPDATE restores SET resumed_at = ?1 WHERE resumed_at IS NULL";
            let is_resumed = transaction.0.execute(resume, [now.unix_timestamp()])? > 0;
            if is_resumed {
                done.push(deeds::resumed());
            }
            Ok(is_resumed)
        })
    }

    /// See [`Store::take_over`](crate::contract::Store::take_over).
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn take_over(
        &mut self,
        list: &PublishedList,
        until: OffsetDateTime,
    ) -> Result<TakenOver, StoreError> {
        self.act(|transaction, done| {
            let mut taken = TakenOver::default();
            for revoked in &list.revoked {
                match list.about {
                    ListedAre::Devices => transaction.end_listed(revoked, until, &mut taken)?,
                    ListedAre::Identities => {
                        transaction.end_identity(revoked, until, &mut taken)?;
                    }
                }
            }
            let raise = "UPDATE revocation_lists SET number = max(number, ?1)";
            transaction.0.execute(raise, [list.number])?;
            done.push(deeds::list_taken_over(list, &taken));
            Ok(taken)
        })
    }
}

impl Transaction<'_> {
    fn end_listed(
        &self,
        revoked: &Revoked,
        until: OffsetDateTime,
        taken: &mut TakenOver,
    ) -> Result<(), StoreError> {
        let (serial, since) = (&revoked.serial, revoked.since.unix_timestamp());
        let found: Option<(Vec<u8>, bool)> = self
            .0
            .prepare_cached(
                "SELECT ek_id, status IN ('active', 'unconfirmed') FROM certificates
                 WHERE serial = ?1",
            )?
            .query_row([serial], |row| Ok((row.get(0)?, row.get(1)?)))
            .optional()?;
        match (found, status(revoked)) {
            (None, status) => {
                self.0.prepare_cached(ADD_UNKNOWN)?.execute(params![
                    serial,
                    random_bytes::<32>(),
                    since,
                    until.unix_timestamp()
                ])?;
                taken.unknown += 1;
                taken.unknown_disabled += u64::from(status == HELD);
            }
            (Some((_, false)), _) => {}
            (Some((ek_id, true)), HELD) => {
                let disable = "INSERT OR IGNORE INTO disabled_eks (ek_id, since) VALUES (?1, ?2)";
                let rows = self.0.prepare_cached(disable)?.execute(params![ek_id, since])?;
                taken.disabled += rows as u64;
            }
            (Some((_, true)), status) => {
                self.0.prepare_cached(END)?.execute(params![serial, status, since])?;
                taken.ended += 1;
            }
        }
        Ok(())
    }

    fn end_identity(
        &self,
        revoked: &Revoked,
        until: OffsetDateTime,
        taken: &mut TakenOver,
    ) -> Result<(), StoreError> {
        let (serial, since) = (&revoked.serial, revoked.since.unix_timestamp());
        let known = "SELECT EXISTS (SELECT 1 FROM identity_certificates WHERE serial = ?1)";
        if self.0.query_row(known, [serial], |row| row.get(0))? {
            let end = "UPDATE identity_certificates SET revoked_at = ?2
                       WHERE serial = ?1 AND revoked_at IS NULL";
            taken.ended += self.0.execute(end, params![serial, since])? as u64;
            return Ok(());
        }
        let add = "INSERT OR IGNORE INTO identities (name, role, publish, subscribe)
                   VALUES ('unknown-' || lower(hex(?1)), 'operator', '', '')";
        self.0.execute(add, [serial])?;
        self.0.execute(
            "INSERT INTO identity_certificates
                 (sha256, name, serial, issued_at, not_after, revoked_at)
             VALUES (?1, 'unknown-' || lower(hex(?2)), ?2, ?3, ?4, ?3)",
            params![random_bytes::<32>(), serial, since, until.unix_timestamp()],
        )?;
        taken.unknown += 1;
        Ok(())
    }
}

fn epoch(connection: &Connection) -> Result<Epoch, StoreError> {
    let mut statement = connection.prepare_cached(
        "SELECT epoch, backed_up_at, restored_at, resumed_at FROM restores
         ORDER BY epoch DESC LIMIT 1",
    )?;
    let found = statement.query_row([], |row| {
        let restored = Restored {
            backed_up_at: time(1, row.get(1)?)?,
            restored_at: time(2, row.get(2)?)?,
            resumed_at: optional_time(3, row.get(3)?)?,
        };
        Ok(Epoch { number: row.get(0)?, restored: Some(restored) })
    });
    Ok(found.optional()?.unwrap_or_default())
}

const END: &str = "UPDATE certificates SET der = iif(status = 'active', der, x''), status = ?2,
        ended_at = ?3 WHERE serial = ?1";
/// A certificate of which nothing is known but that it was revoked. It counts as one that was in
/// force, so no list leaves it out before it must have expired.
const ADD_UNKNOWN: &str = "INSERT INTO certificates (serial, device_id, ek_id, ik_id, assurance, \
     status, not_before, not_after, issued_at, confirmed_at, ended_at, sha256, der)
     VALUES (?1, 'unknown', ?2, zeroblob(32), 'none', 'revoked', ?3, ?4, ?3, ?3, ?3, zeroblob(32), \
     x'')";

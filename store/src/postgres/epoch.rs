//! Epochs, and revocation lists of before a restore.

use time::OffsetDateTime;

use super::columns::{small, time};
use super::connection::Postgres;
use super::session::Session;
use crate::deeds;
use crate::epoch::{Epoch, ListedAre, PublishedList, Restored, TakenOver, status};
use crate::error::StoreError;
use crate::random::random_bytes;

impl Postgres {
    pub(super) fn last_epoch(&mut self) -> Result<Epoch, StoreError> {
        self.read(epoch)
    }

    pub(super) fn let_serve(&mut self, now: OffsetDateTime) -> Result<bool, StoreError> {
        self.act(|session, done| {
            let is_resumed = session.execute(RESUME, &[&now.unix_timestamp()])? > 0;
            if is_resumed {
                done.push(deeds::resumed());
            }
            Ok(is_resumed)
        })
    }

    pub(super) fn take_list_over(
        &mut self,
        list: &PublishedList,
        until: OffsetDateTime,
    ) -> Result<TakenOver, StoreError> {
        let serials: Vec<&[u8]> = list.revoked.iter().map(|it| &it.serial[..]).collect();
        let since: Vec<_> = list.revoked.iter().map(|it| it.since.unix_timestamp()).collect();
        let statuses: Vec<_> = list.revoked.iter().map(status).collect();
        // Ids of no EK, and digests of no certificate.
        let random: Vec<_> = serials.iter().map(|_| random_bytes::<32>().to_vec()).collect();
        let until = until.unix_timestamp();
        self.act(|session, done| {
            // The list may be long, and these statements are not of the hot path.
            session.client.batch_execute(PLAN_FREELY)?;
            let taken = match list.about {
                ListedAre::Devices => {
                    let row = session.query_one(COUNT_UNKNOWN, &[&serials, &statuses])?;
                    let (unknown, unknown_disabled) = (small(&row, 0)?, small(&row, 1)?);
                    let disabled = session.execute(DISABLE, &[&serials, &since, &statuses])?;
                    let ended = session.execute(END, &[&serials, &since, &statuses])?;
                    session.execute(ADD_UNKNOWN, &[&serials, &since, &random, &until])?;
                    TakenOver { ended, disabled, unknown, unknown_disabled }
                }
                ListedAre::Identities => {
                    let ended = session.execute(END_IDENTITIES, &[&serials, &since])?;
                    let add = [&serials as _, &since as _, &random as _, &until as _];
                    let unknown = session.execute(ADD_UNKNOWN_IDENTITIES, &add)?;
                    TakenOver { ended, unknown, ..TakenOver::default() }
                }
            };
            session.execute(RAISE, &[&i64::from(list.number)])?;
            done.push(deeds::list_taken_over(list, &taken));
            Ok(taken)
        })
    }
}

fn epoch(session: &mut Session) -> Result<Epoch, StoreError> {
    let Some(row) = session.query_opt(EPOCH, &[])? else { return Ok(Epoch::default()) };
    let restored = Restored {
        backed_up_at: time(row.get(1))?,
        restored_at: time(row.get(2))?,
        resumed_at: row.get::<_, Option<i64>>(3).map(time).transpose()?,
    };
    Ok(Epoch { number: small(&row, 0)?, restored: Some(restored) })
}

const EPOCH: &str = "SELECT epoch, backed_up_at, restored_at, resumed_at FROM restores
    ORDER BY epoch DESC LIMIT 1";
const RESUME: &str = "UPDATE restores SET resumed_at = $1 WHERE resumed_at IS NULL";
const PLAN_FREELY: &str = "SET LOCAL plan_cache_mode = auto; SET LOCAL enable_seqscan = on;
    SET LOCAL enable_hashjoin = on; SET LOCAL enable_mergejoin = on";
const COUNT_UNKNOWN: &str = "SELECT count(*), count(*) FILTER (WHERE l.status = 'held')
    FROM unnest($1::bytea[], $2::text[]) l (serial, status)
    WHERE NOT EXISTS (SELECT FROM certificates c WHERE c.serial = l.serial)";
const DISABLE: &str = "INSERT INTO disabled_eks (ek_id, since)
    SELECT c.ek_id, min(l.since)
    FROM unnest($1::bytea[], $2::int8[], $3::text[]) l (serial, since, status)
    JOIN certificates c USING (serial)
    WHERE l.status = 'held' AND c.status IN ('active', 'unconfirmed') GROUP BY c.ek_id
    ON CONFLICT DO NOTHING";
const END: &str = "UPDATE certificates c
    SET status = l.status, ended_at = l.since,
        der = CASE WHEN c.status = 'active' THEN c.der ELSE '' END
    FROM unnest($1::bytea[], $2::int8[], $3::text[]) l (serial, since, status)
    WHERE c.serial = l.serial AND l.status <> 'held' AND c.status IN ('active', 'unconfirmed')";
/// See the store in a file.
const ADD_UNKNOWN: &str = "INSERT INTO certificates (serial, device_id, ek_id, ik_id, assurance,
        status, not_before, not_after, issued_at, confirmed_at, ended_at, sha256, der)
    SELECT serial, 'unknown', random, decode(repeat('00', 32), 'hex'), 'none',
        'revoked', since, $4, since, since, since, decode(repeat('00', 32), 'hex'), ''
    FROM unnest($1::bytea[], $2::int8[], $3::bytea[]) l (serial, since, random)
    ON CONFLICT DO NOTHING";
const END_IDENTITIES: &str = "UPDATE identity_certificates c SET revoked_at = l.since
    FROM unnest($1::bytea[], $2::int8[]) l (serial, since)
    WHERE c.serial = l.serial AND c.revoked_at IS NULL";
const ADD_UNKNOWN_IDENTITIES: &str = "WITH unknown AS (
        SELECT 'unknown-' || encode(serial, 'hex') AS name, serial, since, random
        FROM unnest($1::bytea[], $2::int8[], $3::bytea[]) l (serial, since, random)
        WHERE NOT EXISTS (SELECT FROM identity_certificates c WHERE c.serial = l.serial)),
    named AS (INSERT INTO identities (name, role, publish, subscribe)
        SELECT name, 'operator', '', '' FROM unknown ON CONFLICT DO NOTHING)
    INSERT INTO identity_certificates (sha256, name, serial, issued_at, not_after, revoked_at)
    SELECT random, name, serial, since, $4, since FROM unknown";
const RAISE: &str = "UPDATE revocation_lists SET number = greatest(number, $1)";

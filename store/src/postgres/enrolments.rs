//! The enrolment list: EKs that an operator vouches for, and devices that an operator disabled or
//! removed.

use std::collections::HashMap;

use assay_ca_core::{EkFacts, Reprovision, SharedKeyOnRecord};
use assay_wire::{DeviceId, EkId};
use postgres::Row;
use time::OffsetDateTime;

use super::columns::{device_id, ek_facts, ek_id, optional, optional_small, parsed, small};
use super::connection::Postgres;
use super::pending::forget;
use super::session::Session;
use super::shared_keys::retire;
use crate::audit::Deed;
use crate::deeds;
use crate::enrolments::{
    EnrolError, EnrolResults, Enrolled, EnrolmentRow, NewEnrolment, Removed, Replaced, Replacement,
    Tags, Tenure, decide,
};
use crate::error::StoreError;
use crate::facts;

impl Postgres {
    pub(super) fn enroll_all(&mut self, new: &[NewEnrolment]) -> Result<EnrolResults, StoreError> {
        self.act(|session, done| {
            let (results, known) = judge(session, new)?;
            if results.iter().all(Result::is_ok) {
                put_on_list(session, new, &results, &known)?;
                done.extend(deeds::enrolled(new, &results));
            }
            Ok(results)
        })
    }

    pub(super) fn approve_all(&mut self, new: &[NewEnrolment]) -> Result<EnrolResults, StoreError> {
        let eks: Vec<_> = new.iter().map(|new| new.ek_id).collect();
        self.act(|session, done| {
            let (results, known) = judge(session, new)?;
            if results.iter().all(Result::is_ok) {
                put_on_list(session, new, &results, &known)?;
                forget(session, &eks)?;
                done.extend(deeds::approved(new, &results));
            }
            Ok(results)
        })
    }

    pub(super) fn rehearse(&mut self, new: &[NewEnrolment]) -> Result<EnrolResults, StoreError> {
        self.read_together(|session| Ok(judge(session, new)?.0))
    }

    pub(super) fn change_enrolment(
        &mut self,
        ek: &EkId,
        reprovision: Option<Reprovision>,
        plain_srk: Option<bool>,
    ) -> Result<bool, StoreError> {
        let policy = reprovision.map(Reprovision::name);
        self.act(|session, done| {
            let changed = session.execute(CHANGE, &[&&ek.as_bytes()[..], &policy, &plain_srk])?;
            if changed == 1 {
                done.push(deeds::updated(ek, reprovision, plain_srk));
            }
            Ok(changed == 1)
        })
    }

    pub(super) fn forget(
        &mut self,
        ek: &EkId,
        now: OffsetDateTime,
    ) -> Result<Option<Removed>, StoreError> {
        self.act(|session, done| remove(session, ek, now, done))
    }

    pub(super) fn replace_ek(
        &mut self,
        replacement: &Replacement,
    ) -> Result<Result<Replaced, EnrolError>, StoreError> {
        let Replacement { device_id, old, new } = replacement;
        self.act(|session, done| {
            let held = session.query(HOLDERS, &[&vec![device_id.as_str()]])?;
            if held.first().map(|row| ek_id(row, 1)).transpose()? != Some(*old) {
                return Ok(Ok(Replaced::NotHeld));
            }
            let enrolment = [replacement.enrolment(known(session, old)?.as_ref())];
            // As long as the old one holds the id, that is the only thing that may be wrong.
            match judge(session, &enrolment)?.0.pop() {
                Some(Err(EnrolError::DeviceIdTaken(_, holder))) if holder == *old => {}
                Some(Err(error)) => return Ok(Err(error)),
                Some(Ok(_)) | None => return Ok(Ok(Replaced::NotHeld)),
            }
            let ended = session.query_opt(IN_FORCE, &[&&old.as_bytes()[..]])?;
            let ended = ended.map(|row| row.get(0));
            let removed = remove(session, old, new.added_at, &mut Vec::new())?.unwrap_or_default();
            let (results, known) = judge(session, &enrolment)?;
            put_on_list(session, &enrolment, &results, &known)?;
            let disabled = (vec![&old.as_bytes()[..]], vec![new.added_at.unix_timestamp()]);
            session.execute(DISABLE, &[&disabled.0, &disabled.1])?;
            forget(session, &[new.ek_id])?;
            done.extend(deeds::replaced(replacement, ended));
            Ok(Ok(Replaced::Done(removed)))
        })
    }

    pub(super) fn history_of(&mut self, device: &DeviceId) -> Result<Vec<Tenure>, StoreError> {
        self.read(|session| {
            let rows = session.query(HISTORY, &[&device.as_str()])?;
            rows.iter()
                .map(|row| {
                    Ok(Tenure { ek_id: ek_id(row, 0)?, since: row.get(1), until: row.get(2) })
                })
                .collect()
        })
    }

    pub(super) fn all_enrolments(&mut self) -> Result<Vec<EnrolmentRow>, StoreError> {
        self.read_together(|session| session.query(ALL, &[])?.iter().map(enrolment_row).collect())
    }

    pub(super) fn enrolment_of(&mut self, ek: &EkId) -> Result<Option<EnrolmentRow>, StoreError> {
        self.read(|session| known(session, ek))
    }

    pub(super) fn is_on_list(&mut self, ek: &EkId) -> Result<bool, StoreError> {
        self.read(|session| Ok(session.query_one(IS_ON_LIST, &[&&ek.as_bytes()[..]])?.get(0)))
    }

    pub(super) fn holder(&mut self, device: &DeviceId) -> Result<Option<EkId>, StoreError> {
        self.read(|session| {
            let rows = session.query(HOLDERS, &[&vec![device.as_str()]])?;
            rows.first().map(|row| ek_id(row, 1)).transpose()
        })
    }

    pub(super) fn switch(
        &mut self,
        ek: &EkId,
        disabled: bool,
        now: OffsetDateTime,
    ) -> Result<bool, StoreError> {
        let bytes = &ek.as_bytes()[..];
        self.act(|session, done| {
            let changed = if disabled {
                session.execute(DISABLE, &[&vec![bytes], &vec![now.unix_timestamp()]])?
            } else {
                session.execute("DELETE FROM disabled_eks WHERE ek_id = $1", &[&bytes])?
            };
            if changed == 1 {
                done.push(deeds::switched(ek, device_of(session, ek)?, disabled));
            }
            Ok(changed == 1)
        })
    }
}

/// What is known of an EK.
fn known(session: &mut Session, ek: &EkId) -> Result<Option<EnrolmentRow>, StoreError> {
    let rows = session.query(KNOWN, &[&vec![&ek.as_bytes()[..]]])?;
    rows.first().map(enrolment_row).transpose()
}

/// The device id that an EK has, by registration or by enrolment.
pub(super) fn device_of(session: &mut Session, ek: &EkId) -> Result<Option<DeviceId>, StoreError> {
    Ok(known(session, ek)?.and_then(|known| known.device_id))
}

fn remove(
    session: &mut Session,
    ek: &EkId,
    now: OffsetDateTime,
    done: &mut Vec<Deed>,
) -> Result<Option<Removed>, StoreError> {
    let (bytes, at) = (&ek.as_bytes()[..], now.unix_timestamp());
    let device = device_of(session, ek)?;
    let in_force = session.query_opt(IN_FORCE, &[&bytes])?.map(|row| row.get(0));
    session.execute(LEAVE, &[&bytes, &at])?;
    let enrolments = session.execute("DELETE FROM enrolments WHERE ek_id = $1", &[&bytes])?;
    let devices = session.execute("DELETE FROM devices WHERE ek_id = $1", &[&bytes])?;
    session.execute("DELETE FROM places WHERE ek_id = $1", &[&bytes])?;
    let certificates = session.execute(REVOKE, &[&bytes, &at])?;
    let removed = Removed {
        certificates: usize::try_from(certificates).map_err(StoreError::unreadable)?,
        shared_key: retire(session, ek)?,
    };
    let is_known = enrolments + devices > 0 || removed != Removed::default();
    if is_known {
        done.push(deeds::removed(ek, device, removed, in_force));
    }
    Ok(is_known.then_some(removed))
}

/// What is known of EKs.
type Known = HashMap<EkId, EnrolmentRow>;

/// What would become of each enrolment, one after another. It takes two statements, however many
/// enrolments there are.
fn judge(session: &mut Session, new: &[NewEnrolment]) -> Result<(EnrolResults, Known), StoreError> {
    let eks: Vec<_> = new.iter().map(|new| &new.ek_id.as_bytes()[..]).collect();
    let rows = session.query(KNOWN, &[&eks])?;
    let rows = rows.iter().map(|row| enrolment_row(row).map(|known| (known.ek_id, known)));
    let on_record: Known = rows.collect::<Result<_, _>>()?;
    let wanted: Vec<_> =
        new.iter().filter_map(|new| new.device_id.as_ref().map(DeviceId::as_str)).collect();
    let mut holders = HashMap::new();
    for row in session.query(HOLDERS, &[&wanted])? {
        // The rows of registrations come before those of enrolments, so a registration counts
        // first.
        holders.entry(parsed::<DeviceId>(&row, 0)?).or_insert(ek_id(&row, 1)?);
    }
    let mut known = on_record.clone();
    let results = new.iter().map(|new| {
        let holder = |device: &DeviceId| Ok(holders.get(device).copied());
        let result = decide(known.get(&new.ek_id), new, holder)?;
        match result {
            Ok(Enrolled::Added) => {
                if let Some(device) = &new.device_id {
                    holders.insert(device.clone(), new.ek_id);
                }
                let row = enrolled(known.remove(&new.ek_id), new);
                known.insert(new.ek_id, row);
            }
            Ok(Enrolled::Retagged) => {
                if let Some(row) = known.get_mut(&new.ek_id) {
                    row.tags.clone_from(&new.tags);
                }
            }
            Ok(Enrolled::Unchanged) | Err(_) => {}
        }
        Ok(result)
    });
    let results = results.collect::<Result<_, StoreError>>()?;
    Ok((results, on_record))
}

/// What is known of an EK once it is enrolled.
fn enrolled(known: Option<EnrolmentRow>, new: &NewEnrolment) -> EnrolmentRow {
    let registered_as =
        known.as_ref().filter(|known| known.registered).and_then(|known| known.device_id.clone());
    EnrolmentRow {
        ek_id: new.ek_id,
        device_id: registered_as.or_else(|| new.device_id.clone()),
        recognised: Some(new.recognised.clone()),
        reprovision: Some(new.reprovision.unwrap_or_default()),
        legacy_dps_ek: new.legacy_dps_ek.unwrap_or_default(),
        plain_srk: new.plain_srk.unwrap_or_default(),
        disabled: new.disabled == Some(true) || known.as_ref().is_some_and(|known| known.disabled),
        registered: known.as_ref().is_some_and(|known| known.registered),
        shared_key: known.and_then(|known| known.shared_key),
        tags: new.tags.clone(),
        facts: new.facts.clone(),
        added_at: new.added_at.unix_timestamp(),
    }
}

fn put_on_list(
    session: &mut Session,
    new: &[NewEnrolment],
    results: &EnrolResults,
    known: &Known,
) -> Result<(), StoreError> {
    let with = |wanted: Enrolled| {
        new.iter()
            .zip(results)
            .filter(move |(_, result)| matches!(result, Ok(result) if *result == wanted))
            .map(|(new, _)| new)
    };
    let tags =
        |new: &NewEnrolment| serde_json::to_string(&new.tags).expect("text has a form in JSON");
    let added: Vec<_> = with(Enrolled::Added).collect();
    if !added.is_empty() {
        let eks: Vec<_> = added.iter().map(|new| &new.ek_id.as_bytes()[..]).collect();
        let devices: Vec<_> =
            added.iter().map(|new| new.device_id.as_ref().map(DeviceId::as_str)).collect();
        let recognised: Vec<_> = added.iter().map(|new| &*new.recognised).collect();
        let reprovision: Vec<_> =
            added.iter().map(|new| new.reprovision.unwrap_or_default().name()).collect();
        let legacy: Vec<_> =
            added.iter().map(|new| new.legacy_dps_ek.unwrap_or_default()).collect();
        let times: Vec<_> = added.iter().map(|new| new.added_at.unix_timestamp()).collect();
        let all_tags: Vec<_> = added.iter().map(|new| tags(new)).collect();
        let plain: Vec<_> = added.iter().map(|new| new.plain_srk.unwrap_or_default()).collect();
        let known: Vec<_> = added.iter().map(|new| new.facts.as_ref().map(facts::json)).collect();
        session.execute(
            ADD,
            &[
                &eks,
                &devices,
                &recognised,
                &reprovision,
                &legacy,
                &times,
                &all_tags,
                &plain,
                &known,
            ],
        )?;
    }
    let disabled: Vec<_> = added
        .iter()
        .filter(|new| {
            new.disabled == Some(true) && !known.get(&new.ek_id).is_some_and(|known| known.disabled)
        })
        .collect();
    if !disabled.is_empty() {
        let eks: Vec<_> = disabled.iter().map(|new| &new.ek_id.as_bytes()[..]).collect();
        let times: Vec<_> = disabled.iter().map(|new| new.added_at.unix_timestamp()).collect();
        session.execute(DISABLE, &[&eks, &times])?;
    }
    // If there are several for one EK, the last one counts.
    let retagged: HashMap<_, _> =
        with(Enrolled::Retagged).map(|new| (&new.ek_id.as_bytes()[..], tags(new))).collect();
    if !retagged.is_empty() {
        let (eks, tags): (Vec<_>, Vec<_>) = retagged.into_iter().unzip();
        session.execute(RETAG, &[&eks, &tags])?;
    }
    Ok(())
}

/// Notes what certificates said of EKs, of each the last, if they are enrolled.
pub(super) fn learn(
    session: &mut Session,
    learnt: impl Iterator<Item = (EkId, EkFacts)>,
) -> Result<(), StoreError> {
    let last: HashMap<_, _> = learnt.collect();
    if last.is_empty() {
        return Ok(());
    }
    let eks: Vec<_> = last.keys().map(|ek| &ek.as_bytes()[..]).collect();
    let known: Vec<_> = last.values().map(facts::json).collect();
    session.execute(LEARN, &[&eks, &known])?;
    Ok(())
}

fn enrolment_row(row: &Row) -> Result<EnrolmentRow, StoreError> {
    let shared_key = match optional_small(row, 7)? {
        None => None,
        Some(generation) => Some(SharedKeyOnRecord {
            generation,
            is_used: row.get(8),
            plain_srk_generation: small(row, 12)?,
        }),
    };
    Ok(EnrolmentRow {
        ek_id: ek_id(row, 0)?,
        device_id: device_id(row, 1)?,
        recognised: row.get(2),
        reprovision: optional(row, 3)?,
        legacy_dps_ek: row.get(4),
        disabled: row.get(5),
        registered: row.get(6),
        shared_key,
        added_at: row.get(9),
        tags: match row.get::<_, Option<&str>>(10) {
            Some(tags) => serde_json::from_str(tags).map_err(StoreError::unreadable)?,
            None => Tags::new(),
        },
        plain_srk: row.get(11),
        facts: ek_facts(row, 13)?,
    })
}

const KNOWN: &str = "SELECT k.ek_id, coalesce(d.device_id, e.device_id), e.recognised,
        e.reprovision, coalesce(e.legacy_dps_ek, false), l.since IS NOT NULL, d.ek_id IS NOT NULL,
        s.generation, s.is_used, coalesce(e.added_at, d.registered_at, l.since), e.tags,
        coalesce(e.plain_srk, false), s.plain_srk_generation, e.facts
    FROM (SELECT DISTINCT unnest($1::bytea[]) AS ek_id) k LEFT JOIN enrolments e USING (ek_id)
         LEFT JOIN devices d USING (ek_id) LEFT JOIN disabled_eks l USING (ek_id)
         LEFT JOIN shared_keys s USING (ek_id)
    WHERE coalesce(e.ek_id, d.ek_id, l.ek_id) IS NOT NULL";
const ALL: &str = "SELECT k.ek_id, coalesce(d.device_id, e.device_id), e.recognised,
        e.reprovision, coalesce(e.legacy_dps_ek, false), l.since IS NOT NULL, d.ek_id IS NOT NULL,
        s.generation, s.is_used, coalesce(e.added_at, d.registered_at, l.since) AS added_at, e.tags,
        coalesce(e.plain_srk, false), s.plain_srk_generation, e.facts
    FROM (SELECT ek_id FROM enrolments UNION SELECT ek_id FROM devices
          UNION SELECT ek_id FROM disabled_eks) k LEFT JOIN enrolments e USING (ek_id)
         LEFT JOIN devices d USING (ek_id) LEFT JOIN disabled_eks l USING (ek_id)
         LEFT JOIN shared_keys s USING (ek_id)
    ORDER BY added_at, k.ek_id";
const HOLDERS: &str = "SELECT device_id, ek_id FROM (
        SELECT 1 AS part, d.device_id, d.ek_id FROM unnest($1::text[]) w(device_id)
            JOIN devices d USING (device_id)
        UNION ALL
        SELECT 2, e.device_id, e.ek_id FROM unnest($1::text[]) w(device_id)
            JOIN enrolments e USING (device_id)) holders
    ORDER BY part";
const IS_ON_LIST: &str = "SELECT EXISTS (SELECT FROM enrolments WHERE ek_id = $1)";
const CHANGE: &str = "UPDATE enrolments SET reprovision = coalesce($2::text, reprovision),
    plain_srk = coalesce($3::bool, plain_srk) WHERE ek_id = $1";
const IN_FORCE: &str = "SELECT serial FROM certificates
    WHERE ek_id = $1 AND (CASE WHEN status = 'active' THEN 1 END) = 1";
const LEAVE: &str = "INSERT INTO former_eks (device_id, ek_id, since, until)
    SELECT device_id, ek_id, registered_at, $2::int8 FROM devices WHERE ek_id = $1";
const HISTORY: &str = "SELECT ek_id, since, until FROM (
        SELECT ek_id, since, until, number FROM former_eks WHERE device_id = $1
        UNION ALL SELECT ek_id, registered_at, NULL, NULL FROM devices WHERE device_id = $1) held
    ORDER BY number NULLS LAST";
const REVOKE: &str =
    "UPDATE certificates SET der = CASE WHEN status = 'active' THEN der ELSE '' END,
    status = 'revoked', ended_at = $2 WHERE ek_id = $1 AND status IN ('unconfirmed', 'active')";
const ADD: &str = "INSERT INTO enrolments
    (ek_id, device_id, recognised, reprovision, legacy_dps_ek, added_at, tags, plain_srk,
     facts)
    SELECT * FROM unnest($1::bytea[], $2::text[], $3::text[], $4::text[], $5::bool[], $6::int8[],
                         $7::text[], $8::bool[], $9::text[])";
pub(super) const DISABLE: &str = "INSERT INTO disabled_eks (ek_id, since)
    SELECT * FROM unnest($1::bytea[], $2::int8[]) ON CONFLICT DO NOTHING";
const LEARN: &str = "UPDATE enrolments e SET facts = n.facts
    FROM unnest($1::bytea[], $2::text[]) n(ek_id, facts) WHERE e.ek_id = n.ek_id";
const RETAG: &str = "UPDATE enrolments e SET tags = n.tags
    FROM unnest($1::bytea[], $2::text[]) n(ek_id, tags) WHERE e.ek_id = n.ek_id";

//! The hot path: reads what is on record about an EK, and records acts that were planned on it.
//!
//! A batch of any length costs the same few statements, because each statement works on arrays.

use std::collections::{HashMap, HashSet};

use assay_ca_core::{Assurance, QUOTA_PERIOD};
use assay_wire::Scope;

use super::audit::append;
use super::connection::Postgres;
use super::enrolments::learn;
use super::pending::ask;
use super::scope::check_scope;
use super::session::Session;
use super::snapshots::{Answer, Der, answers};
use crate::act::{Act, Entry, Question, Recorded, Snapshot};
use crate::audit::{AuditRow, Effect, Waited};
use crate::error::StoreError;
use crate::writes::{
    NewCertificate, NewDevice, NewOffer, NewUse, Planned, Write, active_ik, is_same, touched,
};

impl Postgres {
    pub(super) fn snapshot_of(&mut self, question: &Question) -> Result<Snapshot, StoreError> {
        self.read(|session| Ok(answers(session, &[question], Der::With)?.remove(0).snapshot))
    }

    pub(super) fn record_all(
        &mut self,
        scope: &Scope,
        entries: &[Entry],
    ) -> Result<Vec<Recorded>, StoreError> {
        let planned = entries.iter().enumerate().filter_map(|(place, entry)| {
            Some(entry.planned().transpose()?.map(|planned| (place, planned)))
        });
        let groups = apart(planned.collect::<Result<Vec<_>, _>>()?);
        self.write(|session| {
            check_scope(session, scope)?;
            let mut recorded = vec![Recorded::Done; entries.len()];
            let mut effects = vec![Effect::default(); entries.len()];
            for group in &groups {
                for stale in record(session, group, &mut effects)? {
                    recorded[stale] = Recorded::Stale;
                }
            }
            let asked = entries.iter().filter_map(|entry| match &entry.act {
                Act::Ask(waiting) => Some(waiting),
                _ => None,
            });
            let mut new = ask(session, &asked.collect::<Vec<_>>())?;
            for (entry, effect) in entries.iter().zip(&mut effects) {
                if let Act::Ask(waiting) = &entry.act
                    && new.remove(&waiting.ek_id)
                {
                    effect.event = Some("pending");
                }
            }
            let learnt = entries.iter().filter_map(|entry| match &entry.act {
                Act::Learn(ek, facts) => Some((*ek, facts.clone())),
                _ => None,
            });
            learn(session, learnt)?;
            let done = entries.iter().zip(&recorded).zip(effects);
            let rows = done.filter(|((_, is), _)| **is == Recorded::Done).filter_map(
                |((entry, _), effect)| Some(AuditRow::of_decision(entry.audit.as_ref()?, effect)),
            );
            append(session, rows.collect())?;
            Ok(recorded)
        })
    }
}

/// An entry that writes something, and where it stands among the entries.
type Placed<'a> = (usize, Planned<'a>);

/// Splits entries into groups, in order. No two entries of a group depend on the same EK or device
/// id, so all of them can be recorded at once.
fn apart(planned: Vec<Placed<'_>>) -> Vec<Vec<Placed<'_>>> {
    let mut groups: Vec<Vec<Placed<'_>>> = Vec::new();
    let mut taken = HashSet::new();
    for placed in planned {
        let touched = touched(&placed.1);
        if groups.is_empty() || touched.iter().any(|one| taken.contains(one)) {
            groups.push(Vec::new());
            taken.clear();
        }
        taken.extend(touched);
        groups.last_mut().expect("there is one").push(placed);
    }
    groups
}

/// A write whose basis still holds, and what is on record about its EK.
struct Holding<'a> {
    write: &'a Write<'a>,
    answer: &'a Answer,
}

/// Records the entries whose basis still holds, says in `effects` what they do, and returns the
/// places of the others.
fn record(
    session: &mut Session,
    group: &[Placed<'_>],
    effects: &mut [Effect],
) -> Result<Vec<usize>, StoreError> {
    let questions: Vec<_> = group.iter().map(|(_, planned)| &planned.question).collect();
    let answers = answers(session, &questions, Der::Without)?;
    let waiting = waiting(session, group)?;
    let (mut holding, mut stale) = (Vec::new(), Vec::new());
    for ((place, Planned { basis, write, .. }), answer) in group.iter().zip(&answers) {
        let is_as_it_was = basis.is_none_or(|basis| is_same(&basis.snapshot, &answer.snapshot));
        let waited = match write {
            Write::Activation(activation) => waiting.get(&activation.serial[..]),
            _ => None,
        };
        let waits = waited.is_some() || !matches!(write, Write::Activation(_));
        if is_as_it_was && waits {
            let records = &answer.snapshot.records;
            let ik_id = active_ik(records).unwrap_or_default().to_vec();
            let replaced = answer.active.clone().map(|serial| (serial, ik_id));
            effects[*place] = write.effect(records.registration.is_none(), waited, replaced);
            holding.push(Holding { write, answer });
        } else {
            stale.push(*place);
        }
    }
    register(session, &holding)?;
    supersede(session, &holding)?;
    end_waiting(session, &holding)?;
    end_other_waiting(session, &holding)?;
    add_certificates(session, &holding)?;
    put_into_force(session, &holding)?;
    end_outdated(session, &holding)?;
    offer_keys(session, &holding)?;
    take_into_use(session, &holding)?;
    Ok(stale)
}

/// The certificates that are to come into force and still wait for that, by serial number. One that
/// waits for its whole life was renewed; the others were sealed.
fn waiting(
    session: &mut Session,
    group: &[Placed<'_>],
) -> Result<HashMap<Vec<u8>, Waited>, StoreError> {
    let serials: Vec<_> = group
        .iter()
        .filter_map(|(_, planned)| match &planned.write {
            Write::Activation(activation) => Some(&activation.serial[..]),
            _ => None,
        })
        .collect();
    if serials.is_empty() {
        return Ok(HashMap::new());
    }
    let rows = session.query(WAITING, &[&serials])?;
    let waited =
        rows.iter().map(|row| (row.get(0), Waited { sealed: row.get(1), ik_id: row.get(2) }));
    Ok(waited.collect())
}

fn register(session: &mut Session, group: &[Holding<'_>]) -> Result<(), StoreError> {
    let (mut new, mut known) = (Rows::default(), Rows::default());
    for Holding { write, answer } in group {
        let Some(NewDevice { device_id, ek_id, assurance, at }) = write.device() else { continue };
        let rows = match &answer.snapshot.records.registration {
            None => &mut new,
            Some(registered) if registered.device_id == *device_id => &mut known,
            Some(_) => {
                return Err(StoreError::Inconsistent("the EK is registered under another id"));
            }
        };
        rows.devices.push(device_id.as_str());
        rows.eks.push(ek_id.as_bytes().to_vec());
        rows.assurances.push(assurance.to_string());
        rows.times.push(at.unix_timestamp());
    }
    if !new.eks.is_empty() {
        session.execute(REGISTER, &[&new.devices, &new.eks, &new.assurances, &new.times])?;
    }
    if !known.eks.is_empty() {
        session.execute(CHANGE_ASSURANCE, &[&known.eks, &known.assurances])?;
    }
    Ok(())
}

/// Columns of rows for `devices`.
#[derive(Default)]
struct Rows<'a> {
    devices: Vec<&'a str>,
    eks: Vec<Vec<u8>>,
    assurances: Vec<String>,
    times: Vec<i64>,
}

/// Supersedes the active certificates of EKs that get another.
fn supersede(session: &mut Session, group: &[Holding<'_>]) -> Result<(), StoreError> {
    let (mut serials, mut times) = (vec![], vec![]);
    for Holding { write, answer } in group {
        if let (Some((_, at)), Some(active)) = (write.in_force(), &answer.active) {
            serials.push(&active[..]);
            times.push(at.unix_timestamp());
        }
    }
    if serials.is_empty() {
        return Ok(());
    }
    let rows = session.execute(SUPERSEDE, &[&serials, &times])?;
    expect(rows, serials.len(), "another certificate is active")
}

/// Revokes whatever waits for the EKs and the IKs of certificates that are renewed.
fn end_waiting(session: &mut Session, group: &[Holding<'_>]) -> Result<(), StoreError> {
    let (mut eks, mut iks, mut times) = (vec![], vec![], vec![]);
    for holding in group {
        let Write::Renewal(new) = holding.write else { continue };
        eks.push(&new.ek_id.as_bytes()[..]);
        iks.push(&new.ik_id[..]);
        times.push(new.issued_at.unix_timestamp());
    }
    if !eks.is_empty() {
        session.execute(END_WAITING, &[&eks, &iks, &times])?;
    }
    Ok(())
}

/// Revokes whatever waits for the EKs of certificates for another IK, except for the IK in force if
/// that is another.
fn end_other_waiting(session: &mut Session, group: &[Holding<'_>]) -> Result<(), StoreError> {
    let (mut eks, mut iks, mut kept, mut times) = (vec![], vec![], vec![], vec![]);
    for Holding { write, answer } in group {
        let Write::Rekey(new) = write else { continue };
        eks.push(&new.ek_id.as_bytes()[..]);
        iks.push(&new.ik_id[..]);
        kept.push(active_ik(&answer.snapshot.records).map(|ik_id| ik_id.to_vec()));
        times.push(new.issued_at.unix_timestamp());
    }
    if !eks.is_empty() {
        session.execute(END_OTHER_WAITING, &[&eks, &kept, &times, &iks])?;
    }
    Ok(())
}

fn add_certificates(session: &mut Session, group: &[Holding<'_>]) -> Result<(), StoreError> {
    let new: Vec<_> = group.iter().filter_map(|holding| certificate(holding.write)).collect();
    if new.is_empty() {
        return Ok(());
    }
    let serials: Vec<_> = new.iter().map(|new| &new.serial[..]).collect();
    let devices: Vec<_> = new.iter().map(|new| new.device_id.as_str()).collect();
    let eks: Vec<_> = new.iter().map(|new| &new.ek_id.as_bytes()[..]).collect();
    let iks: Vec<_> = new.iter().map(|new| &new.ik_id[..]).collect();
    let assurances: Vec<_> = new.iter().map(|new| new.assurance.to_string()).collect();
    let not_before: Vec<_> = new.iter().map(|new| new.not_before.unix_timestamp()).collect();
    let not_after: Vec<_> = new.iter().map(|new| new.not_after.unix_timestamp()).collect();
    let issued: Vec<_> = new.iter().map(|new| new.issued_at.unix_timestamp()).collect();
    let confirm_by: Vec<_> =
        new.iter().map(|new| new.confirm_by.map(|time| time.unix_timestamp())).collect();
    let confirmed: Vec<_> =
        new.iter().map(|new| new.confirmed_at.map(|time| time.unix_timestamp())).collect();
    let digests: Vec<_> = new.iter().map(|new| &new.sha256[..]).collect();
    let stored: Vec<_> = new.iter().map(|new| new.stored).collect();
    session.execute(
        ADD_CERTIFICATES,
        &[
            &serials,
            &devices,
            &eks,
            &iks,
            &assurances,
            &not_before,
            &not_after,
            &issued,
            &confirm_by,
            &digests,
            &stored,
            &confirmed,
        ],
    )?;
    Ok(())
}

fn certificate<'a>(write: &'a Write<'a>) -> Option<&'a NewCertificate<'a>> {
    match write {
        Write::Certificate(new) | Write::Waiting(new) | Write::Renewal(new) | Write::Rekey(new) => {
            Some(new)
        }
        _ => None,
    }
}

fn put_into_force(session: &mut Session, group: &[Holding<'_>]) -> Result<(), StoreError> {
    let (mut serials, mut times, mut ders) = (vec![], vec![], vec![]);
    for holding in group {
        let Write::Activation(activation) = holding.write else { continue };
        serials.push(&activation.serial[..]);
        times.push(activation.confirmed_at.unix_timestamp());
        ders.push(activation.der);
    }
    if serials.is_empty() {
        return Ok(());
    }
    let rows = session.execute(PUT_INTO_FORCE, &[&serials, &times, &ders])?;
    expect(rows, serials.len(), "the certificate does not wait for confirmation")
}

/// Revokes what waits for the EKs, but can no longer come into force because another certificate
/// did: what was issued before that, and what renews the certificate that ended. A renewal of a key
/// that was replaced must not bring the key back.
fn end_outdated(session: &mut Session, group: &[Holding<'_>]) -> Result<(), StoreError> {
    let (mut serials, mut times, mut replaced) = (vec![], vec![], vec![]);
    for Holding { write, answer } in group {
        let records = &answer.snapshot.records;
        if let Some((serial, at)) = write.in_force() {
            serials.push(&serial[..]);
            times.push(at.unix_timestamp());
            replaced.push(active_ik(records).map(|ik_id| ik_id.to_vec()));
        }
    }
    if !serials.is_empty() {
        session.execute(END_OUTDATED, &[&serials, &times, &replaced])?;
    }
    Ok(())
}

fn offer_keys(session: &mut Session, group: &[Holding<'_>]) -> Result<(), StoreError> {
    let new: Vec<&NewOffer<'_>> = group
        .iter()
        .filter_map(|holding| match holding.write {
            Write::Offer(offer) => Some(offer),
            _ => None,
        })
        .collect();
    if new.is_empty() {
        return Ok(());
    }
    let eks: Vec<_> = new.iter().map(|new| &new.ek_id.as_bytes()[..]).collect();
    let devices: Vec<_> = new.iter().map(|new| new.device_id.as_str()).collect();
    let assurances: Vec<_> = new.iter().map(|new| new.assurance.to_string()).collect();
    let generations: Vec<_> = new.iter().map(|new| i64::from(new.generation)).collect();
    let plain: Vec<_> = new.iter().map(|new| i64::from(new.plain_srk_generation)).collect();
    let times: Vec<_> = new.iter().map(|new| new.offered_at.unix_timestamp()).collect();
    // Once a vendor's certificate was seen, this assurance stays, because anybody may leave the
    // certificate out of a later request.
    let vendor = Assurance::VendorCertificate.to_string();
    session
        .execute(OFFER, &[&eks, &devices, &assurances, &generations, &plain, &times, &vendor])?;
    Ok(())
}

fn take_into_use(session: &mut Session, group: &[Holding<'_>]) -> Result<(), StoreError> {
    let new: Vec<&NewUse<'_>> = group
        .iter()
        .filter_map(|holding| match holding.write {
            Write::Use(new) => Some(new),
            _ => None,
        })
        .collect();
    if new.is_empty() {
        return Ok(());
    }
    let eks: Vec<_> = new.iter().map(|new| &new.ek_id.as_bytes()[..]).collect();
    let generations: Vec<_> = new.iter().map(|new| i64::from(new.generation)).collect();
    let times: Vec<_> = new.iter().map(|new| new.used_at.unix_timestamp()).collect();
    let period = QUOTA_PERIOD.whole_seconds();
    let rows = session.execute(TAKE_INTO_USE, &[&eks, &generations, &times, &period])?;
    expect(rows, eks.len(), "no shared key was offered to the EK")
}

fn expect(rows: u64, count: usize, otherwise: &'static str) -> Result<(), StoreError> {
    if rows == count as u64 { Ok(()) } else { Err(StoreError::Inconsistent(otherwise)) }
}

/// The condition on the status is none that an index has. On a table that was small when the
/// statement was planned, PostgreSQL would read the whole index of certificates that wait.
const WAITING: &str = "SELECT serial, coalesce(confirm_by < not_after, true), ik_id
    FROM certificates
    WHERE serial = ANY($1::bytea[]) AND (CASE WHEN status = 'unconfirmed' THEN 1 END) = 1";
const REGISTER: &str = "INSERT INTO devices (device_id, ek_id, assurance, registered_at)
    SELECT * FROM unnest($1::text[], $2::bytea[], $3::text[], $4::int8[])";
const CHANGE_ASSURANCE: &str = "UPDATE devices d SET assurance = n.assurance
    FROM unnest($1::bytea[], $2::text[]) n(ek_id, assurance)
    WHERE d.ek_id = n.ek_id AND d.assurance <> n.assurance";
const SUPERSEDE: &str = "UPDATE certificates c SET status = 'superseded', ended_at = n.ended_at
    FROM unnest($1::bytea[], $2::int8[]) n(serial, ended_at)
    WHERE c.serial = n.serial AND c.status = 'active'";
const END_WAITING: &str = "UPDATE certificates c
    SET status = 'revoked', ended_at = n.ended_at, der = ''
    FROM unnest($1::bytea[], $2::bytea[], $3::int8[]) n(ek_id, ik_id, ended_at)
    WHERE c.ek_id = n.ek_id AND c.ik_id = n.ik_id
        AND (CASE WHEN c.status = 'unconfirmed' THEN 1 END) = 1";
const END_OTHER_WAITING: &str = "UPDATE certificates c
    SET status = 'revoked', ended_at = n.ended_at, der = ''
    FROM unnest($1::bytea[], $2::bytea[], $3::int8[], $4::bytea[]) n(ek_id, kept, ended_at, ik_id)
    WHERE c.ek_id = n.ek_id AND (c.ik_id = n.ik_id OR c.ik_id IS DISTINCT FROM n.kept)
        AND (CASE WHEN c.status = 'unconfirmed' THEN 1 END) = 1";
const ADD_CERTIFICATES: &str = "INSERT INTO certificates
    (serial, device_id, ek_id, ik_id, assurance, not_before, not_after, issued_at, confirm_by,
     sha256, der, status, confirmed_at)
    SELECT n.serial, n.device_id, n.ek_id, n.ik_id, n.assurance, n.not_before, n.not_after,
           n.issued_at, n.confirm_by, n.sha256, n.der,
           CASE WHEN n.confirmed_at IS NULL THEN 'unconfirmed' ELSE 'active' END, n.confirmed_at
    FROM unnest($1::bytea[], $2::text[], $3::bytea[], $4::bytea[], $5::text[], $6::int8[],
                $7::int8[], $8::int8[], $9::int8[], $10::bytea[], $11::bytea[], $12::int8[])
         n(serial, device_id, ek_id, ik_id, assurance, not_before, not_after, issued_at, confirm_by,
           sha256, der, confirmed_at)";
const PUT_INTO_FORCE: &str = "UPDATE certificates c
    SET status = 'active', confirmed_at = n.confirmed_at, der = n.der
    FROM unnest($1::bytea[], $2::int8[], $3::bytea[]) n(serial, confirmed_at, der)
    WHERE c.serial = n.serial AND (CASE WHEN c.status = 'unconfirmed' THEN 1 END) = 1";
const END_OUTDATED: &str = "UPDATE certificates c
    SET status = 'revoked', ended_at = n.ended_at, der = ''
    FROM unnest($1::bytea[], $2::int8[], $3::bytea[]) n(serial, ended_at, replaced)
         JOIN certificates a USING (serial)
    WHERE c.ek_id = a.ek_id AND c.ik_id <> a.ik_id
        AND (c.issued_at <= greatest(a.confirmed_at, a.issued_at) OR c.ik_id = n.replaced)
        AND (CASE WHEN c.status = 'unconfirmed' THEN 1 END) = 1";
const OFFER: &str = "INSERT INTO shared_keys AS s
    (ek_id, device_id, assurance, generation, is_used, plain_srk_generation, offered_at)
    SELECT n.ek_id, n.device_id, n.assurance, n.generation, false, n.plain, n.offered_at
    FROM unnest($1::bytea[], $2::text[], $3::text[], $4::int8[], $5::int8[], $6::int8[])
         n(ek_id, device_id, assurance, generation, plain, offered_at)
    ON CONFLICT (ek_id) DO UPDATE SET device_id = excluded.device_id,
        assurance = CASE WHEN s.assurance = $7::text THEN s.assurance ELSE excluded.assurance END,
        plain_srk_generation = greatest(s.plain_srk_generation, excluded.plain_srk_generation),
        offered_at = excluded.offered_at";
const TAKE_INTO_USE: &str = "UPDATE shared_keys s SET generation = n.generation, is_used = true,
        day = CASE WHEN s.day > n.now - $4::int8 THEN s.day ELSE n.now END,
        today = CASE WHEN s.day > n.now - $4::int8 THEN s.today ELSE 0 END + 1
    FROM unnest($1::bytea[], $2::int8[], $3::int8[]) n(ek_id, generation, now)
    WHERE s.ek_id = n.ek_id";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::postgres::session::assert_indexed;

    #[test]
    fn every_row_is_found_by_an_index() {
        assert_indexed(&[
            WAITING,
            CHANGE_ASSURANCE,
            SUPERSEDE,
            END_WAITING,
            END_OTHER_WAITING,
            END_OUTDATED,
            PUT_INTO_FORCE,
            TAKE_INTO_USE,
        ]);
    }
}

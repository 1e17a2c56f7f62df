//! The hot path: what is on record about an EK, and acts that were planned by it.
//!
//! A batch of any length costs the same few statements, for each works on arrays.

use std::collections::HashSet;

use assay_ca_core::{Assurance, QUOTA_PERIOD};
use assay_wire::Scope;

use super::audit::add_to_audit;
use super::connection::Postgres;
use super::scope::check_scope;
use super::session::Session;
use super::snapshots::{Der, snapshots};
use crate::act::{Entry, NewCertificate, NewOffer, NewUse, Recorded, Write, touched};
use crate::error::StoreError;
use crate::snapshot::{Basis, Question, Snapshot};

impl Postgres {
    pub(super) fn snapshot_of(&mut self, question: &Question) -> Result<Snapshot, StoreError> {
        self.read(|session| {
            let answer = snapshots(session, &[question], Der::With)?.pop();
            answer.ok_or_else(|| StoreError::unreadable("a question without an answer"))
        })
    }

    pub(super) fn record_all(
        &mut self,
        scope: &Scope,
        entries: &[Entry],
    ) -> Result<Vec<Recorded>, StoreError> {
        let planned = entries.iter().enumerate().filter_map(|(place, entry)| {
            let write = entry.act.write().transpose()?;
            Some(write.map(|(basis, write)| Planned { place, basis, write }))
        });
        let groups = apart(planned.collect::<Result<Vec<_>, _>>()?);
        self.write(|session| {
            check_scope(session, scope)?;
            let mut recorded = vec![Recorded::Done; entries.len()];
            for group in &groups {
                for stale in record(session, group)? {
                    recorded[stale] = Recorded::Stale;
                }
            }
            let done = entries.iter().zip(&recorded).filter(|(_, is)| **is == Recorded::Done);
            let audits: Vec<_> = done.filter_map(|(entry, _)| entry.audit.as_ref()).collect();
            add_to_audit(session, &audits)?;
            Ok(recorded)
        })
    }
}

/// What an entry writes.
struct Planned<'a> {
    /// Where it stands among the entries.
    place: usize,
    basis: &'a Basis,
    write: Write<'a>,
}

/// Puts entries one after another that depend on the same EK or device id; those of one group can be
/// recorded at once.
fn apart(planned: Vec<Planned<'_>>) -> Vec<Vec<Planned<'_>>> {
    let mut groups: Vec<Vec<Planned<'_>>> = Vec::new();
    let mut taken = HashSet::new();
    for planned in planned {
        let touched = touched(planned.basis, &planned.write);
        if groups.is_empty() || touched.iter().any(|one| taken.contains(one)) {
            groups.push(Vec::new());
            taken.clear();
        }
        taken.extend(touched);
        groups.last_mut().expect("there is one").push(planned);
    }
    groups
}

/// Records those that still hold, and returns the places of the others.
fn record(session: &mut Session, group: &[Planned<'_>]) -> Result<Vec<usize>, StoreError> {
    let questions: Vec<_> = group.iter().map(|planned| &planned.basis.question).collect();
    let answers = snapshots(session, &questions, Der::Without)?;
    let waiting = waiting(session, group)?;
    let (holding, stale): (Vec<_>, Vec<_>) =
        group.iter().zip(&answers).partition(|(planned, answer)| {
            planned.basis.snapshot == **answer
                && match &planned.write {
                    Write::Activation(activation) => waiting.contains(activation.serial),
                    _ => true,
                }
        });
    let holding: Vec<_> = holding.into_iter().map(|(planned, _)| planned).collect();
    register(session, &holding)?;
    supersede(session, &holding)?;
    add_certificates(session, &holding)?;
    put_into_force(session, &holding)?;
    offer_keys(session, &holding)?;
    take_into_use(session, &holding)?;
    Ok(stale.into_iter().map(|(planned, _)| planned.place).collect())
}

/// The certificates that are to come into force and wait for that.
fn waiting(
    session: &mut Session,
    group: &[Planned<'_>],
) -> Result<HashSet<Vec<u8>>, StoreError> {
    let serials: Vec<_> = group.iter().filter_map(activated).collect();
    if serials.is_empty() {
        return Ok(HashSet::new());
    }
    let rows = session.query(WAITING, &[&serials])?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

fn activated<'a>(planned: &'a Planned<'_>) -> Option<&'a [u8]> {
    match &planned.write {
        Write::Activation(activation) => Some(activation.serial),
        _ => None,
    }
}

fn register(session: &mut Session, group: &[&Planned<'_>]) -> Result<(), StoreError> {
    let (mut new, mut known) = (Rows::default(), Rows::default());
    for planned in group {
        let Some((device, ek, assurance, at)) = planned.write.registration() else { continue };
        let is_known = planned.basis.snapshot.records.registration.is_some();
        let rows = if is_known { &mut known } else { &mut new };
        rows.devices.push(device.as_str());
        rows.eks.push(ek.as_bytes());
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

/// Columns of several statements.
#[derive(Default)]
struct Rows<'a> {
    devices: Vec<&'a str>,
    eks: Vec<&'a [u8]>,
    assurances: Vec<String>,
    times: Vec<i64>,
}

/// The active certificates of those that get another.
fn supersede(session: &mut Session, group: &[&Planned<'_>]) -> Result<(), StoreError> {
    let (mut serials, mut times) = (vec![], vec![]);
    for planned in group {
        let at = match &planned.write {
            Write::Certificate(new) => new.issued_at,
            Write::Activation(activation) => activation.confirmed_at,
            _ => continue,
        };
        if let Some(active) = &planned.basis.snapshot.active {
            serials.push(&active.serial[..]);
            times.push(at.unix_timestamp());
        }
    }
    if serials.is_empty() {
        return Ok(());
    }
    let rows = session.execute(SUPERSEDE, &[&serials, &times])?;
    expect(rows, serials.len(), "the active certificate is another")
}

fn add_certificates(session: &mut Session, group: &[&Planned<'_>]) -> Result<(), StoreError> {
    let new: Vec<_> = group.iter().filter_map(|planned| certificate(&planned.write)).collect();
    if new.is_empty() {
        return Ok(());
    }
    let serials: Vec<_> = new.iter().map(|new| new.serial).collect();
    let devices: Vec<_> = new.iter().map(|new| new.device_id.as_str()).collect();
    let eks: Vec<_> = new.iter().map(|new| &new.ek_id.as_bytes()[..]).collect();
    let iks: Vec<_> = new.iter().map(|new| &new.ik_id[..]).collect();
    let assurances: Vec<_> = new.iter().map(|new| new.assurance.to_string()).collect();
    let not_before: Vec<_> = new.iter().map(|new| new.not_before.unix_timestamp()).collect();
    let not_after: Vec<_> = new.iter().map(|new| new.not_after.unix_timestamp()).collect();
    let issued: Vec<_> = new.iter().map(|new| new.issued_at.unix_timestamp()).collect();
    let confirm_by: Vec<_> =
        new.iter().map(|new| new.confirm_by.map(|time| time.unix_timestamp())).collect();
    let digests: Vec<_> = new.iter().map(|new| &new.sha256[..]).collect();
    let stored: Vec<_> = new.iter().map(|new| new.stored).collect();
    session.execute(
        ADD_CERTIFICATES,
        &[
            &serials, &devices, &eks, &iks, &assurances, &not_before, &not_after, &issued,
            &confirm_by, &digests, &stored,
        ],
    )?;
    Ok(())
}

fn certificate<'a>(write: &'a Write<'a>) -> Option<&'a NewCertificate<'a>> {
    match write {
        Write::Certificate(new) | Write::Waiting(new) => Some(new),
        _ => None,
    }
}

fn put_into_force(session: &mut Session, group: &[&Planned<'_>]) -> Result<(), StoreError> {
    let (mut serials, mut times, mut ders) = (vec![], vec![], vec![]);
    for planned in group {
        let Write::Activation(activation) = &planned.write else { continue };
        serials.push(activation.serial);
        times.push(activation.confirmed_at.unix_timestamp());
        ders.push(activation.der);
    }
    if serials.is_empty() {
        return Ok(());
    }
    let rows = session.execute(PUT_INTO_FORCE, &[&serials, &times, &ders])?;
    expect(rows, serials.len(), "the certificate does not wait")
}

fn offer_keys(session: &mut Session, group: &[&Planned<'_>]) -> Result<(), StoreError> {
    let new: Vec<&NewOffer<'_>> = group
        .iter()
        .filter_map(|planned| match &planned.write {
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
    // Once seen, a vendor's word stays: anybody may leave the certificate out of a request.
    let vendor = Assurance::VendorCertificate.to_string();
    session.execute(
        OFFER,
        &[&eks, &devices, &assurances, &generations, &plain, &times, &vendor],
    )?;
    Ok(())
}

fn take_into_use(session: &mut Session, group: &[&Planned<'_>]) -> Result<(), StoreError> {
    let new: Vec<&NewUse<'_>> = group
        .iter()
        .filter_map(|planned| match &planned.write {
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
    expect(rows, eks.len(), "the EK was offered no shared key")
}

fn expect(rows: u64, count: usize, otherwise: &'static str) -> Result<(), StoreError> {
    if rows == count as u64 { Ok(()) } else { Err(StoreError::Inconsistent(otherwise)) }
}

const WAITING: &str =
    "SELECT serial FROM certificates WHERE serial = ANY($1::bytea[]) AND status = 'unconfirmed'";
const REGISTER: &str = "INSERT INTO devices (device_id, ek_id, assurance, registered_at)
    SELECT * FROM unnest($1::text[], $2::bytea[], $3::text[], $4::int8[])";
const CHANGE_ASSURANCE: &str = "UPDATE devices d SET assurance = n.assurance
    FROM unnest($1::bytea[], $2::text[]) n(ek_id, assurance)
    WHERE d.ek_id = n.ek_id AND d.assurance <> n.assurance";
const SUPERSEDE: &str = "UPDATE certificates c SET status = 'superseded', ended_at = n.ended_at
    FROM unnest($1::bytea[], $2::int8[]) n(serial, ended_at)
    WHERE c.serial = n.serial AND c.status = 'active'";
const ADD_CERTIFICATES: &str = "INSERT INTO certificates
    (serial, device_id, ek_id, ik_id, assurance, not_before, not_after, issued_at, confirm_by,
     sha256, der, status, confirmed_at)
    SELECT n.*, CASE WHEN n.confirm_by IS NULL THEN 'active' ELSE 'unconfirmed' END,
           CASE WHEN n.confirm_by IS NULL THEN n.issued_at END
    FROM unnest($1::bytea[], $2::text[], $3::bytea[], $4::bytea[], $5::text[], $6::int8[],
                $7::int8[], $8::int8[], $9::int8[], $10::bytea[], $11::bytea[])
         n(serial, device_id, ek_id, ik_id, assurance, not_before, not_after, issued_at, confirm_by,
           sha256, der)";
const PUT_INTO_FORCE: &str = "UPDATE certificates c
    SET status = 'active', confirmed_at = n.confirmed_at, der = n.der
    FROM unnest($1::bytea[], $2::int8[], $3::bytea[]) n(serial, confirmed_at, der)
    WHERE c.serial = n.serial AND c.status = 'unconfirmed'";
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

//! What is on record about EKs: one statement answers many questions.

use assay_ca_core::{
    ActiveCertificate, CertificateOnRecord, EncryptedCertificate, Enrolment, QUOTA_PERIOD, Records,
    Registration, SharedKeyOnRecord, Unconfirmed,
};
use assay_wire::EkId;
use postgres::Row;

use super::columns::{
    array, device_id, ek_facts, optional_ek_id, optional_small, parsed, small, time,
};
use super::session::Session;
use crate::act::{IdInQuestion, IkInQuestion, Question, Snapshot, WaitingInQuestion};
use crate::error::StoreError;
use crate::groups::GroupsVersion;
use crate::trust::AnchorsVersion;

/// Whether certificates come with their DER. To compare snapshots, it is not needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Der {
    With,
    Without,
}

/// The answer to a question.
pub(super) struct Answer {
    pub(super) snapshot: Snapshot,
    /// The serial number of the EK's active certificate, for any IK.
    pub(super) active: Option<Vec<u8>>,
}

/// The answers, in the order of the questions, all at one moment.
pub(super) fn answers(
    session: &mut Session,
    questions: &[&Question],
    der: Der,
) -> Result<Vec<Answer>, StoreError> {
    let (mut eks, mut iks, mut named, mut derived, mut waiting, mut nows) =
        (vec![], vec![], vec![], vec![], vec![], vec![]);
    let (mut others, mut askers, mut of_active, mut of_ek) = (vec![], vec![], vec![], vec![]);
    for (number, question) in (1_i64..).zip(questions) {
        eks.push(&question.ek.as_bytes()[..]);
        iks.push(match &question.ik {
            IkInQuestion::Is(ik_id) => Some(&ik_id[..]),
            IkInQuestion::None | IkInQuestion::OfActive => None,
        });
        of_active.push(question.ik == IkInQuestion::OfActive);
        waiting.push(question.waiting != WaitingInQuestion::None);
        of_ek.push(question.waiting == WaitingInQuestion::OfEk);
        nows.push(question.now.unix_timestamp());
        match &question.device {
            IdInQuestion::Is(device) => {
                named.push(Some(device.as_str()));
                derived.push(None);
            }
            IdInQuestion::Due { derived: id, other_eks } => {
                named.push(None);
                derived.push(Some(id.as_str()));
                others.extend(other_eks.iter().map(|ek| &ek.as_bytes()[..]));
                askers.extend(other_eks.iter().map(|_| number));
            }
        }
    }
    let wants_der = der == Der::With;
    let period = QUOTA_PERIOD.whole_seconds();
    let rows = session.query(
        SNAPSHOTS,
        &[
            &eks, &iks, &named, &derived, &waiting, &nows, &others, &askers, &wants_der, &period,
            &of_active, &of_ek,
        ],
    )?;
    if rows.len() != questions.len() {
        return Err(StoreError::unreadable("an EK has two rows where it may have one"));
    }
    rows.iter().zip(questions).map(|(row, question)| answer(row, question)).collect()
}

fn answer(row: &Row, question: &Question) -> Result<Answer, StoreError> {
    let enrolment = match row.get::<_, Option<bool>>(3) {
        None => None,
        Some(legacy_dps_ek) => Some(Enrolment {
            device_id: device_id(row, 1)?,
            reprovision: parsed(row, 2)?,
            legacy_dps_ek,
            plain_srk: row.get(4),
            facts: ek_facts(row, 33)?,
        }),
    };
    let serial: Option<Vec<u8>> = row.get(6);
    let certificate = match &serial {
        None => None,
        Some(_) => {
            let (issued_at, in_force_since) = (time(row.get(8))?, time(row.get(29))?);
            Some(CertificateOnRecord { ik_id: array(row.get(7))?, issued_at, in_force_since })
        }
    };
    let registration = match device_id(row, 5)? {
        None => None,
        Some(device_id) => {
            Some(Registration { device_id, certificate, recent_certificates: small(row, 10)? })
        }
    };
    let shared_key = match optional_small(row, 12)? {
        None => None,
        Some(generation) => Some(SharedKeyOnRecord {
            generation,
            is_used: row.get(13),
            plain_srk_generation: small(row, 14)?,
        }),
    };
    let active = match &serial {
        Some(serial) if row.get(9) => {
            let (ik_id, der): (_, Option<Vec<u8>>) = (array(row.get(7))?, row.get(24));
            Some(ActiveCertificate { serial: array(serial)?, ik_id, der: der.unwrap_or_default() })
        }
        _ => None,
    };
    let records = Records {
        disabled: row.get(0),
        enrolment,
        registration,
        recent_unconfirmed: small(row, 11)?,
        shared_key,
        recent_generations: small(row, 15)?,
        key_used_since: row.get::<_, Option<i64>>(30).map(time).transpose()?,
        id_holder: optional_ek_id(row, 16)?,
        other_ek: optional_ek_id(row, 17)?,
    };
    let waiting = waiting(row, &question.ek)?;
    let (anchors, groups, waits_since) = match question.device {
        IdInQuestion::Due { .. } => (
            Some(AnchorsVersion { newest: row.get(26), count: row.get(27) }),
            Some(GroupsVersion(row.get(31))),
            row.get::<_, Option<i64>>(32).map(time).transpose()?,
        ),
        IdInQuestion::Is(_) => (None, None, None),
    };
    let snapshot = Snapshot { records, active, waiting, anchors, groups, waits_since };
    Ok(Answer { snapshot, active: serial })
}

/// The query returns these certificates as arrays, one for each column.
fn waiting(row: &Row, ek_id: &EkId) -> Result<Vec<Unconfirmed>, StoreError> {
    let Some(serials) = row.get::<_, Option<Vec<&[u8]>>>(18) else { return Ok(Vec::new()) };
    let devices: Vec<&str> = row.get(19);
    let assurances: Vec<&str> = row.get(20);
    let issued: Vec<i64> = row.get(21);
    let confirm_by: Vec<i64> = row.get(22);
    let stored: Vec<Option<&[u8]>> = row.get(23);
    let digests: Vec<&[u8]> = row.get(25);
    let iks: Vec<&[u8]> = row.get(28);
    let columns = devices.into_iter().zip(assurances).zip(issued).zip(confirm_by);
    let rows = serials.into_iter().zip(columns).zip(digests.into_iter().zip(iks).zip(stored));
    rows.map(|((serial, columns), ((sha256, ik_id), stored))| {
        let (((device, assurance), issued_at), confirm_by) = columns;
        Ok(Unconfirmed {
            serial: array(serial)?,
            device_id: device.parse().map_err(StoreError::unreadable)?,
            ek_id: *ek_id,
            ik_id: array(ik_id)?,
            assurance: assurance.parse().map_err(StoreError::unreadable)?,
            issued_at: time(issued_at)?,
            confirm_by: time(confirm_by)?,
            sha256: array(sha256)?,
            encrypted: EncryptedCertificate::new(stored.unwrap_or_default().to_vec()),
        })
    })
    .collect()
}

/// Asks for many EKs what `sqlite/records.rs` asks for one, also who holds the device id in
/// question and which of the other EKs is on record. The query names both columns of the index of
/// active certificates, so that PostgreSQL uses it. The anchors are few, and read from their index
/// once for all questions.
const SNAPSHOTS: &str = "SELECT
    l.ek_id IS NOT NULL,
    e.device_id, e.reprovision, e.legacy_dps_ek, e.plain_srk,
    d.device_id,
    c.serial, c.ik_id, c.issued_at,
    coalesce(c.ik_id = k.ik AND c.not_after > q.now, false),
    (SELECT count(*) FROM certificates r WHERE r.ek_id = q.ek AND r.confirmed_at > q.now - $10::int8),
    (SELECT count(*) FROM certificates u
     WHERE u.ek_id = q.ek AND u.confirmed_at IS NULL AND u.issued_at > q.now - $10::int8),
    s.generation, s.is_used, s.plain_srk_generation,
    coalesce(CASE WHEN s.day > q.now - $10::int8 THEN s.today END, 0),
    coalesce((SELECT h.ek_id FROM devices h WHERE h.device_id = i.device),
             (SELECT h.ek_id FROM enrolments h WHERE h.device_id = i.device)),
    (SELECT o.ek FROM unnest($7::bytea[], $8::int8[]) WITH ORDINALITY o(ek, asker, place)
     WHERE o.asker = q.number
       AND (EXISTS (SELECT FROM enrolments x WHERE x.ek_id = o.ek)
            OR EXISTS (SELECT FROM devices x WHERE x.ek_id = o.ek)
            OR EXISTS (SELECT FROM disabled_eks x WHERE x.ek_id = o.ek))
     ORDER BY o.place LIMIT 1),
    w.serials, w.devices, w.assurances, w.issued, w.confirm_by, w.stored,
    CASE WHEN $9::bool AND c.ik_id = k.ik AND c.not_after > q.now THEN c.der END, w.digests,
    a.newest, a.count, w.iks,
    (SELECT max(greatest(r.confirmed_at, r.issued_at)) FROM certificates r
     WHERE r.ek_id = q.ek AND r.confirmed_at IS NOT NULL),
    nullif(s.day, 0),
    (SELECT v.number FROM admission_version v WHERE v.id = 1),
    (SELECT p.first_seen FROM pending p WHERE p.ek_id = q.ek),
    e.facts
FROM unnest($1::bytea[], $2::bytea[], $3::text[], $4::text[], $5::bool[], $6::int8[], $11::bool[],
            $12::bool[])
         WITH ORDINALITY q(ek, ik, named, derived, waiting, now, of_active, of_ek, number)
     LEFT JOIN disabled_eks l ON l.ek_id = q.ek
     LEFT JOIN enrolments e ON e.ek_id = q.ek
     LEFT JOIN devices d ON d.ek_id = q.ek
     LEFT JOIN certificates c ON c.ek_id = q.ek AND (CASE WHEN c.status = 'active' THEN 1 END) = 1
     LEFT JOIN shared_keys s ON s.ek_id = q.ek
     CROSS JOIN LATERAL (SELECT coalesce(q.named, d.device_id, e.device_id, q.derived)) i(device)
     CROSS JOIN LATERAL (SELECT CASE WHEN q.of_active THEN c.ik_id ELSE q.ik END) k(ik)
     LEFT JOIN LATERAL (
         SELECT array_agg(v.serial ORDER BY v.issued_at DESC, v.number DESC) AS serials,
                array_agg(v.device_id ORDER BY v.issued_at DESC, v.number DESC) AS devices,
                array_agg(v.assurance ORDER BY v.issued_at DESC, v.number DESC) AS assurances,
                array_agg(v.issued_at ORDER BY v.issued_at DESC, v.number DESC) AS issued,
                array_agg(v.confirm_by ORDER BY v.issued_at DESC, v.number DESC) AS confirm_by,
                array_agg(CASE WHEN $9::bool THEN v.der END
                          ORDER BY v.issued_at DESC, v.number DESC) AS stored,
                array_agg(v.sha256 ORDER BY v.issued_at DESC, v.number DESC) AS digests,
                array_agg(v.ik_id ORDER BY v.issued_at DESC, v.number DESC) AS iks
         FROM certificates v
         WHERE v.ek_id = q.ek AND (q.of_ek OR v.ik_id = k.ik)
             AND (CASE WHEN v.status = 'unconfirmed' THEN 1 END) = 1) w ON q.waiting
     CROSS JOIN (SELECT coalesce(max(id), 0) AS newest, count(*) AS count
                 FROM anchors WHERE id > 0) a
ORDER BY q.number";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::postgres::session::assert_indexed;

    #[test]
    fn every_row_is_found_by_an_index() {
        assert_indexed(&[SNAPSHOTS]);
    }
}

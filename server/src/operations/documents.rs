//! What is on record, in JSON: the same fields in every face.

use assay_ca_core::{Conditions, EkFacts, Firmware, Flaw, Flaws, Group, Reprovision, Role, Terms};
use assay_store::{
    AnchorRow, AuditRow, CertificateRow, ConfigurationRow, DeviceRow, EnrolmentRow,
    IdentityCertificateRow, IdentityRow, PendingRow, Tenure, Waiting,
};
use assay_wire::{DeviceId, EkId, ProblemCode, Scope};
use serde_json::{Value, json};
use time::OffsetDateTime;

use super::{issuing, trust};
use crate::{expiry, rfc3339};

/// A device. Times are in RFC 3339, digests and serial numbers in hexadecimal, here and below.
pub fn device(row: &DeviceRow) -> Value {
    json!({
        "device_id": row.device_id.as_str(),
        "ek_id": row.ek_id.to_string(),
        "assurance": row.assurance,
        "disabled": row.disabled,
        "registered_at": rfc3339::seconds(row.registered_at),
        "serial": row.serial.as_ref().map(hex::encode),
        "not_after": row.not_after.map(rfc3339::seconds),
        "shared_key": row.shared_key,
    })
}

/// An EK that a device has, or had.
pub fn tenure(row: &Tenure) -> Value {
    json!({
        "ek_id": row.ek_id.to_string(),
        "since": rfc3339::seconds(row.since),
        "until": row.until.map(rfc3339::seconds),
    })
}

/// A certificate of a device.
pub fn certificate(row: &CertificateRow) -> Value {
    json!({
        "serial": hex::encode(&row.serial),
        "device_id": row.device_id.as_str(),
        "status": row.status,
        "not_before": rfc3339::seconds(row.not_before),
        "not_after": rfc3339::seconds(row.not_after),
        "issued_at": rfc3339::seconds(row.issued_at),
        "confirm_by": row.confirm_by.map(rfc3339::seconds),
        "der": row.der.as_ref().map(hex::encode),
    })
}

/// A certificate of an identity, and what a backend may do in this scope.
pub fn identity(
    row: &IdentityRow,
    certificate: &IdentityCertificateRow,
    scope: &Scope,
    now: OffsetDateTime,
) -> Value {
    json!({
        "name": row.name,
        "role": row.role.name(),
        "publish": row.rights.publish_in(scope),
        "subscribe": row.rights.subscribe_in(scope),
        "serial": hex::encode(&certificate.serial),
        "fingerprint": hex::encode(certificate.sha256),
        "issued_at": rfc3339::seconds(certificate.issued_at),
        "not_after": rfc3339::seconds(certificate.not_after),
        "days_left": expiry::days_left(certificate.not_after, now),
        "renew": expiry::is_due(row, certificate, now),
        "revoked_at": certificate.revoked_at.map(rfc3339::seconds),
    })
}

/// An issuing CA, and the devices' certificates in force that it signed.
pub fn issuing_ca(row: &issuing::Row) -> Value {
    let (certified, broken) = match &row.certificate {
        Some(Ok(certified)) => (Some(certified), None),
        Some(Err(reason)) => (None, Some(reason)),
        None => (None, None),
    };
    let time = |time: OffsetDateTime| rfc3339::seconds(time.unix_timestamp());
    json!({
        "files": row.files,
        "state": issuing_state(row.state),
        "from": row.from.map(time),
        "broken": broken,
        "key_id": certified.map(|it| it.key_id.as_str()),
        "subject": certified.map(|it| &it.subject),
        "not_after": certified.map(|it| time(it.ends)),
        "in_force": certified.map(|it| it.in_force.active),
        "may_wait": certified.map(|it| it.in_force.waiting),
        "listed": certified.map(|it| it.in_force.listed),
        "last_ends": certified.and_then(|it| it.in_force.last_ends).map(rfc3339::seconds),
    })
}

/// What an issuing CA is for, in a word or two.
pub fn issuing_state(state: issuing::State) -> &'static str {
    match state {
        issuing::State::Old => "old",
        issuing::State::InUse => "in use",
        issuing::State::Next => "next",
        issuing::State::Unfinished => "unfinished",
    }
}

/// A document that is attached to a device or, without a device id, to the scope.
pub fn configuration(row: &ConfigurationRow) -> Value {
    let document = row.document.as_deref().unwrap_or_default();
    json!({
        "device_id": row.device_id.as_ref().map(DeviceId::as_str),
        "revision": row.revision,
        "set_at": rfc3339::seconds(row.set_at.unix_timestamp()),
        "json": serde_json::from_slice::<Value>(document).ok(),
        "document": hex::encode(document),
    })
}

/// A group, and its place, counted from 1.
pub fn group(place: usize, group: &Group) -> Value {
    let Conditions { issuers, manufacturers, models, firmware, flawed, enrolled, eks } =
        &group.conditions;
    let Terms { flows, not_before, not_after, quota, ik_kinds, lifetime, names } = &group.terms;
    let time = |time: &OffsetDateTime| rfc3339::seconds(time.unix_timestamp());
    json!({
        "place": place,
        "name": group.name.as_str(),
        "answer": group.answer.name(),
        "issuers": texts(issuers),
        "manufacturers": texts(manufacturers),
        "models": models,
        "firmware": firmware.map(|least| least.to_string()),
        "flawed": flawed,
        "enrolled": enrolled,
        "eks": texts(eks),
        "flows": texts(flows),
        "not_before": not_before.as_ref().map(time),
        "not_after": not_after.as_ref().map(time),
        "quota": quota,
        "iks": texts(ik_kinds),
        "names": names.as_ref().map(ToString::to_string),
        "lifetime_days": lifetime.map(time::Duration::whole_days),
    })
}

fn texts(entries: &[impl ToString]) -> Vec<String> {
    entries.iter().map(ToString::to_string).collect()
}

/// Firmware with a flaw.
pub fn flaw(flaw: &Flaw) -> Value {
    json!({
        "name": flaw.name,
        "manufacturer": flaw.manufacturer.to_string(),
        "firmware": versions(flaw),
        "source": flaw.source,
    })
}

/// The versions that have a flaw.
pub fn versions(flaw: &Flaw) -> Vec<String> {
    let range = |(first, last): &(Firmware, Firmware)| match first == last {
        true => first.to_string(),
        false => format!("{first} to {last}"),
    };
    flaw.versions.iter().map(range).collect()
}

fn names_of(flaws: &Flaws, facts: &EkFacts) -> Vec<String> {
    flaws.of(facts).map(|flaw| flaw.name.clone()).collect()
}

/// An EK about which an operator is asked.
pub fn pending(PendingRow { waiting, first_seen }: &PendingRow, flaws: &Flaws) -> Value {
    let Waiting { ek_id, facts, flow, device_id, asked_at } = waiting;
    let tpm = facts.tpm.as_ref();
    json!({
        "ek_id": ek_id.to_string(),
        "vendor": facts.vendor,
        "manufacturer": tpm.map(|tpm| &tpm.manufacturer),
        "model": tpm.map(|tpm| &tpm.model),
        "firmware": tpm.map(|tpm| &tpm.version),
        "flaws": names_of(flaws, facts),
        "flow": flow.to_string(),
        "device_id": device_id.as_ref().map(DeviceId::as_str),
        "first_seen": rfc3339::seconds(*first_seen),
        "last_seen": rfc3339::seconds(asked_at.unix_timestamp()),
    })
}

/// An EK.
pub fn ek(row: &EnrolmentRow, flaws: &Flaws) -> Value {
    json!({
        "ek_id": row.ek_id.to_string(),
        "device_id": row.device_id.as_ref().map(DeviceId::as_str),
        "enrolled_from": row.recognised,
        "registered": row.registered,
        "disabled": row.disabled,
        "reprovision": row.reprovision.map(Reprovision::name),
        "legacy_dps_ek": row.legacy_dps_ek,
        "plain_srk": row.plain_srk,
        "shared_key": row.shared_key.map(|key| json!({
            "generation": key.generation,
            "used": key.is_used,
            "plain_srk": key.is_of_plain_srk(),
        })),
        "added_at": rfc3339::seconds(row.added_at),
        "tags": row.tags,
        "tpm": row.facts.as_ref().and_then(|facts| facts.tpm.as_ref()).map(|tpm| json!({
            "manufacturer": tpm.manufacturer,
            "model": tpm.model,
            "firmware": tpm.version,
            "flaws": row.facts.as_ref().map(|facts| names_of(flaws, facts)),
        })),
    })
}

/// A vendor's certificate.
pub fn anchor(row: &AnchorRow) -> Value {
    json!({
        "fingerprint": hex::encode(row.fingerprint),
        "kind": trust::kind(row.role),
        "allow_missing": match row.role {
            Role::Anchor(allowances) => Some(allowances.to_string()),
            Role::Root | Role::Issuer => None,
        },
        "subject": row.subject,
        "not_after": rfc3339::seconds(row.not_after),
        "added_at": rfc3339::seconds(row.added_at),
    })
}

/// A decision of the CA, or what an operator did.
pub fn decision(row: &AuditRow) -> Value {
    json!({
        "chain": row.chain.name(),
        "id": row.id,
        "time": rfc3339::microseconds(row.time_us),
        "client": row.client,
        "action": row.action,
        "ek_id": row.ek_id.as_ref().map(EkId::to_string),
        "device_id": row.proven,
        "due_device_id": row.due,
        "code": row.code,
        "problem": row.code.map(|number| ProblemCode::from_number(number).name()),
        "detail": row.detail,
        "duration_us": row.duration_us,
        "event": row.event,
        "serial": row.serial.as_ref().map(hex::encode),
        "replaced": row.replaced.as_ref().map(hex::encode),
    })
}

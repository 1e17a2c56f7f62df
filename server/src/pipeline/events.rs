//! What others hear of an entry of the audit: events, in the form of CloudEvents 1.0.

use assay_broker_plugin::meter::{Budget, Rate};
use assay_store::{AuditRow, Chain};
use assay_wire::{ProblemCode, Scope, Topic};
use serde_json::{Map, Value, json};
use std::time::Instant;

use crate::rfc3339;

/// An event, and where it is published.
#[derive(Debug)]
pub(super) struct Event {
    pub(super) topic: Topic,
    pub(super) content: String,
}

/// Makes events of entries. Strangers cause refusals, and EKs that wait: of each, only so many are
/// told. The audit has all.
#[derive(Default)]
pub(super) struct Events {
    refused: Bounded,
    pending: Bounded,
}

/// Events of which there may be too many, and how many were left out since the last.
#[derive(Default)]
struct Bounded {
    budget: Budget,
    left_out: u64,
}

impl Bounded {
    /// How many were left out before this one; `None` if it is left out, too.
    fn pass(&mut self, now: Instant) -> Option<u64> {
        if self.budget.allows(1, BOUND, now) {
            return Some(std::mem::take(&mut self.left_out));
        }
        self.left_out += 1;
        None
    }
}

impl Events {
    /// What others hear of an entry. Of one that ended a certificate, they hear twice.
    pub(super) fn of(&mut self, row: &AuditRow, scope: &Scope, now: Instant) -> Vec<Event> {
        let Some(kind) = kind_of(row) else { return Vec::new() };
        let left_out = match &*kind {
            "device.refused" => self.refused.pass(now),
            "device.pending" => self.pending.pass(now),
            _ => Some(0),
        };
        let Some(left_out) = left_out else { return Vec::new() };
        let ended = match row.chain {
            Chain::Acts => "device.revoked",
            Chain::Changes | Chain::Others => "device.superseded",
        };
        let ended = row.replaced.as_ref().map(|serial| {
            let by = row.serial.as_ref().map(hex::encode);
            event(row, scope, ended, json!({ "serial": hex::encode(serial), "by": by }))
        });
        let of_itself = json!({
            "serial": row.serial.as_ref().map(hex::encode),
            "left_out": (left_out > 0).then_some(left_out),
        });
        let of_itself = event(row, scope, &kind, of_itself);
        // What took its place comes first, and so does the end of what a removed device had.
        match row.chain {
            Chain::Acts => ended.into_iter().chain([of_itself]).collect(),
            Chain::Changes | Chain::Others => [of_itself].into_iter().chain(ended).collect(),
        }
    }
}

/// The type of the event, without the prefix that all have.
fn kind_of(row: &AuditRow) -> Option<String> {
    if row.chain != Chain::Acts {
        return row.event.as_ref().map(|event| format!("device.{event}"));
    }
    Some(match &*row.action {
        "approve" => "device.approved".into(),
        "turn-away" | "disable" => "device.disabled".into(),
        "enable" => "device.enabled".into(),
        "remove" => "device.removed".into(),
        // By another TPM, and the other TPM is the device's from then on.
        "replaced" => "device.replaced".into(),
        "replace" => "device.approved".into(),
        "retire-shared-key" => "device.key-retired".into(),
        "update" => "device.updated".into(),
        action if row.due.is_some() => format!("device.{action}"),
        action => format!("ca.{action}"),
    })
}

fn event(row: &AuditRow, scope: &Scope, kind: &str, own: Value) -> Event {
    let device_id = row.proven.as_ref().or(row.due.as_ref());
    let ek_id = row.ek_id.map(|ek| ek.to_string());
    let mut data = json!({
        "device_id": device_id,
        "proven": device_id.map(|_| row.proven.is_some()),
        "ek_id": ek_id,
        "actor": row.client,
        "action": row.action,
        "code": row.code,
        "problem": row.code.map(|number| ProblemCode::from_number(number).name()),
        "detail": row.detail,
        "chain": row.chain.name(),
        "entry": row.id,
        "number": row.number,
    });
    let members = |value: Value| match value {
        Value::Object(members) => members,
        _ => Map::new(),
    };
    if let Value::Object(all) = &mut data {
        all.extend(members(own));
        all.retain(|_, value| !value.is_null());
    }
    // The hash of the entry is nobody else's, also after a restore from a backup.
    let id = hex::encode(&row.hash.unwrap_or_default()[..16]);
    let content = json!({
        "specversion": "1.0",
        "id": format!("{id}.{}", kind.rsplit('.').next().unwrap_or(kind)),
        "source": format!("/assay/{scope}"),
        "type": format!("assay.{kind}"),
        "subject": device_id.or(ek_id.as_ref()).map_or("@ca", String::as_str),
        "time": rfc3339::microseconds(row.time_us),
        "datacontenttype": "application/json",
        "data": data,
    });
    let topic = match device_id.and_then(|id| id.parse().ok()) {
        Some(device) => Topic::Event(scope.clone(), device),
        None => Topic::EventOfCa(scope.clone()),
    };
    Event { topic, content: content.to_string() }
}

/// Of refusals, and of EKs that wait. As many as have a line in the log: a fleet that arrives at
/// once has room, and strangers cannot fill the broker.
const BOUND: Rate = Rate::per_second(50, 500);

#[cfg(test)]
mod tests {
    use super::*;

    fn row(chain: Chain, action: &str, event: Option<&str>) -> AuditRow {
        AuditRow {
            chain,
            id: 7,
            number: 19,
            time_us: 1_800_000_000_000_000,
            client: "pump-17".into(),
            action: action.into(),
            ek_id: Some([0xee; 32].into()),
            proven: Some("pump-17".into()),
            due: None,
            code: None,
            detail: None,
            duration_us: 1,
            serial: Some(vec![2; 16]),
            replaced: Some(vec![1; 16]),
            event: event.map(str::to_owned),
            hash: Some([0xab; 32]),
        }
    }

    fn scope() -> Scope {
        "default".parse().unwrap()
    }

    #[test]
    fn event_is_a_cloud_event_that_says_what_came_into_force_and_what_ended() {
        let row = row(Chain::Changes, "certify", Some("provisioned"));
        let told = Events::default().of(&row, &scope(), Instant::now());
        let [provisioned, superseded] = &told[..] else { panic!("{told:?}") };
        assert_eq!(provisioned.topic.to_string(), "fleet/v1/default/pump-17/event");
        let found: Value = serde_json::from_str(&provisioned.content).unwrap();
        let ab = "ab".repeat(16);
        assert_eq!(
            found,
            json!({
                "specversion": "1.0",
                "id": format!("{ab}.provisioned"),
                "source": "/assay/default",
                "type": "assay.device.provisioned",
                "subject": "pump-17",
                "time": "2027-01-15T08:00:00.000000Z",
                "datacontenttype": "application/json",
                "data": {
                    "device_id": "pump-17",
                    "proven": true,
                    "ek_id": "ee".repeat(32),
                    "actor": "pump-17",
                    "action": "certify",
                    "serial": "02".repeat(16),
                    "chain": "changes",
                    "entry": 7,
                    "number": 19,
                },
            })
        );
        let found: Value = serde_json::from_str(&superseded.content).unwrap();
        assert_eq!(found["id"], format!("{ab}.superseded"));
        assert_eq!(found["type"], "assay.device.superseded");
        assert_eq!(found["data"]["serial"], "01".repeat(16));
        assert_eq!(found["data"]["by"], "02".repeat(16));
    }

    #[test]
    fn what_names_no_device_is_told_on_the_cas_own_topic() {
        let row = AuditRow {
            proven: None,
            ek_id: None,
            serial: None,
            replaced: None,
            detail: Some("root ab CN=vendor".into()),
            ..row(Chain::Acts, "trust", None)
        };
        let told = Events::default().of(&row, &scope(), Instant::now());
        let [told] = &told[..] else { panic!("{told:?}") };
        assert_eq!(told.topic.to_string(), "fleet/v1/default/@ca/event");
        let found: Value = serde_json::from_str(&told.content).unwrap();
        assert_eq!((&found["type"], &found["subject"]), (&json!("assay.ca.trust"), &json!("@ca")));
    }

    #[test]
    fn refusals_without_end_are_few_events_and_keep_no_other_back() {
        let (mut events, now) = (Events::default(), Instant::now());
        let plain = |chain, action, event| AuditRow { replaced: None, ..row(chain, action, event) };
        let refused = plain(Chain::Others, "challenge", Some("refused"));
        let told: usize = (0..2_000).map(|_| events.of(&refused, &scope(), now).len()).sum();
        assert_eq!(told, 500);
        let other = plain(Chain::Changes, "adopt", Some("renewed"));
        assert_eq!(events.of(&other, &scope(), now).len(), 1);
        let later = events.of(&refused, &scope(), now + std::time::Duration::from_secs(1));
        let found: Value = serde_json::from_str(&later[0].content).unwrap();
        assert_eq!(found["data"]["left_out"], 1_500);
    }
}

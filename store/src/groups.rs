//! Groups as they are on record: conditions and terms in JSON.

use assay_ca_core::{Conditions, Group, GroupError, Groups, IkKind, Terms};
use assay_wire::Flow;
use serde_json::{Map, Value, json};
use time::{Duration, OffsetDateTime};

use crate::error::StoreError;

/// Identifies the groups at one moment. It grows with every change of them. If it did not, a worker
/// would go on admitting devices by rules that an operator has withdrawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GroupsVersion(pub(crate) i64);

/// A row of `admission_groups`, besides its place.
pub(crate) struct Columns {
    pub(crate) name: String,
    pub(crate) answer: String,
    pub(crate) rule: String,
}

impl Columns {
    pub(crate) fn of(group: &Group) -> Self {
        let (name, answer) = (group.name.to_string(), group.answer.name().to_owned());
        Self { name, answer, rule: rule(group).to_string() }
    }

    fn read(&self) -> Result<Group, StoreError> {
        let rule: Map<String, Value> =
            serde_json::from_str(&self.rule).map_err(StoreError::unreadable)?;
        let (mut conditions, mut terms) = (Conditions::default(), Terms::default());
        for (key, value) in &rule {
            match key.as_str() {
                ISSUERS => conditions.issuers = list(value)?,
                MANUFACTURERS => conditions.manufacturers = list(value)?,
                MODELS => conditions.models = list(value)?,
                FIRMWARE => conditions.firmware = Some(parsed(value)?),
                FLAWED => {
                    let flawed = value.as_bool().ok_or_else(|| unreadable(value))?;
                    conditions.flawed = Some(flawed);
                }
                ENROLLED => {
                    let enrolled = value.as_bool().ok_or_else(|| unreadable(value))?;
                    conditions.enrolled = Some(enrolled);
                }
                EKS => conditions.eks = list(value)?,
                FLOWS => terms.flows = list::<Flow>(value)?,
                NOT_BEFORE => terms.not_before = Some(time(value)?),
                NOT_AFTER => terms.not_after = Some(time(value)?),
                IKS => terms.ik_kinds = list::<IkKind>(value)?,
                NAMES => terms.names = Some(parsed(value)?),
                LIFETIME => {
                    let seconds = value.as_i64().ok_or_else(|| unreadable(value))?;
                    terms.lifetime = Some(Duration::seconds(seconds));
                }
                QUOTA => {
                    let quota = value.as_u64().and_then(|quota| quota.try_into().ok());
                    terms.quota = Some(quota.ok_or_else(|| unreadable(value))?);
                }
                // A condition that is not understood must not be taken for one that holds.
                _ => return Err(unreadable(value)),
            }
        }
        let broken = |error: GroupError| StoreError::unreadable(error);
        let (name, answer) = (self.name.parse(), self.answer.parse());
        Ok(Group {
            name: name.map_err(broken)?,
            conditions,
            answer: answer.map_err(broken)?,
            terms,
        })
    }
}

/// The groups in these rows, which are in order.
pub(crate) fn read(rows: &[Columns]) -> Result<Groups, StoreError> {
    let groups = rows.iter().map(Columns::read).collect::<Result<_, _>>()?;
    Groups::new(groups).map_err(StoreError::unreadable)
}

/// Whatever differs from a group without conditions and terms.
fn rule(Group { conditions, terms, .. }: &Group) -> Value {
    let Conditions { issuers, manufacturers, models, firmware, flawed, enrolled, eks } = conditions;
    let Terms { flows, not_before, not_after, quota, ik_kinds, lifetime, names } = terms;
    let mut rule = Map::new();
    let mut put = |key: &str, value: Option<Value>| {
        if let Some(value) = value {
            rule.insert(key.to_owned(), value);
        }
    };
    put(ISSUERS, texts(issuers));
    put(MANUFACTURERS, texts(manufacturers));
    put(MODELS, texts(models));
    put(FIRMWARE, firmware.map(|least| json!(least.to_string())));
    put(FLAWED, flawed.map(|flawed| json!(flawed)));
    put(ENROLLED, enrolled.map(|enrolled| json!(enrolled)));
    put(EKS, texts(eks));
    put(FLOWS, texts(flows));
    put(NOT_BEFORE, not_before.map(|time| json!(time.unix_timestamp())));
    put(NOT_AFTER, not_after.map(|time| json!(time.unix_timestamp())));
    put(QUOTA, quota.map(|quota| json!(quota)));
    put(IKS, texts(ik_kinds));
    put(LIFETIME, lifetime.map(|lifetime| json!(lifetime.whole_seconds())));
    put(NAMES, names.as_ref().map(|names| json!(names.to_string())));
    rule.into()
}

fn texts(entries: &[impl ToString]) -> Option<Value> {
    let texts: Vec<_> = entries.iter().map(ToString::to_string).collect();
    (!texts.is_empty()).then(|| json!(texts))
}

fn list<T: std::str::FromStr>(value: &Value) -> Result<Vec<T>, StoreError> {
    value.as_array().ok_or_else(|| unreadable(value))?.iter().map(parsed).collect()
}

fn parsed<T: std::str::FromStr>(value: &Value) -> Result<T, StoreError> {
    value.as_str().and_then(|text| text.parse().ok()).ok_or_else(|| unreadable(value))
}

fn time(value: &Value) -> Result<OffsetDateTime, StoreError> {
    let seconds = value.as_i64().ok_or_else(|| unreadable(value))?;
    OffsetDateTime::from_unix_timestamp(seconds).map_err(StoreError::unreadable)
}

fn unreadable(value: &Value) -> StoreError {
    StoreError::unreadable(format!("{value} in the rule of a group"))
}

const ISSUERS: &str = "issuers";
const MANUFACTURERS: &str = "manufacturers";
const MODELS: &str = "models";
const FIRMWARE: &str = "firmware";
const FLAWED: &str = "flawed";
const ENROLLED: &str = "enrolled";
const EKS: &str = "eks";
const FLOWS: &str = "flows";
const NOT_BEFORE: &str = "not_before";
const NOT_AFTER: &str = "not_after";
const QUOTA: &str = "quota";
const IKS: &str = "iks";
const NAMES: &str = "names";
const LIFETIME: &str = "lifetime_s";

/// How long a place is kept for a device that has not proved itself, and to which no shared key was
/// offered: longer than a sealed certificate may wait to be confirmed.
pub(crate) const PLACE_KEPT: Duration = Duration::hours(25);
/// A place that was taken so short a time ago is not taken anew: whoever asks again and again makes
/// nothing to write.
pub(crate) const PLACE_FRESH: Duration = Duration::minutes(30);

#[cfg(test)]
mod tests {
    use assay_ca_core::Answer;

    use super::*;

    #[test]
    fn every_condition_and_term_reads_back_as_it_is_written() {
        let at = OffsetDateTime::UNIX_EPOCH;
        let full = Group {
            name: "pumps".parse().unwrap(),
            conditions: Conditions {
                issuers: vec!["ab".repeat(32).parse().unwrap()],
                manufacturers: vec!["id:494E5443".parse().unwrap()],
                models: vec!["SLB \"9670\"".to_owned()],
                firmware: Some("id:00070055".parse().unwrap()),
                flawed: Some(true),
                enrolled: Some(false),
                eks: vec!["0123".parse().unwrap()],
            },
            answer: Answer::Admit,
            terms: Terms {
                flows: Flow::ALL.to_vec(),
                not_before: Some(at),
                not_after: Some(at + Duration::DAY),
                quota: Some(17),
                ik_kinds: IkKind::ALL.to_vec(),
                lifetime: Some(Duration::DAY),
                names: Some("pump-{n}".parse().unwrap()),
            },
        };
        let empty = Group {
            name: "rest".parse().unwrap(),
            conditions: Conditions::default(),
            answer: Answer::Refuse,
            terms: Terms::default(),
        };
        let groups = Groups::new(vec![full, empty]).unwrap();
        let rows: Vec<_> = groups.all().iter().map(Columns::of).collect();
        assert_eq!(read(&rows).unwrap(), groups);
        assert_eq!(rows[1].rule, "{}");
    }

    #[test]
    fn a_rule_of_a_later_version_is_not_taken_for_an_easier_one() {
        let row = |rule: &str| Columns {
            name: "pumps".into(),
            answer: "admit".into(),
            rule: rule.into(),
        };
        assert!(read(&[row("{}")]).is_ok());
        for rule in ["{\"pcrs\": []}", "{\"enrolled\": 1}", "{\"eks\": \"ab\"}", "[]", ""] {
            assert!(read(&[row(rule)]).is_err(), "{rule}");
        }
    }
}

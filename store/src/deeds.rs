//! What operators do to the record, as the audit has it.

use assay_ca_core::{Groups, Reprovision};
use assay_wire::{DeviceId, EkId, Rights};
use sha2::{Digest, Sha256};

use crate::audit::Deed;
use crate::enrolments::{EnrolResults, Enrolled, NewEnrolment, Removed, Replacement};
use crate::epoch::{PublishedList, TakenOver};
use crate::groups::Columns;
use crate::identities::{IdentityCertificate, NewIdentity, Which, columns};
use crate::trust::AnchorRow;

pub(crate) fn enrolled(new: &[NewEnrolment], results: &EnrolResults) -> Vec<Deed> {
    let deed = |(new, result): (&NewEnrolment, &Result<Enrolled, _>)| {
        let action = match result {
            Ok(Enrolled::Added) => "enroll",
            Ok(Enrolled::Retagged) => "retag",
            Ok(Enrolled::Unchanged) | Err(_) => return None,
        };
        let deed = on(action, new.ek_id, new.device_id.clone());
        let is_locked = action == "enroll" && new.disabled == Some(true);
        Some(if is_locked { Deed { detail: Some("disabled".into()), ..deed } } else { deed })
    };
    new.iter().zip(results).filter_map(deed).collect()
}

pub(crate) fn approved(new: &[NewEnrolment], results: &EnrolResults) -> Vec<Deed> {
    // A hook says the same again whenever a device asks.
    let changed = |(new, result): (&NewEnrolment, &Result<Enrolled, _>)| match result {
        Ok(Enrolled::Added | Enrolled::Retagged) => {
            Some(on("approve", new.ek_id, new.device_id.clone()))
        }
        Ok(Enrolled::Unchanged) | Err(_) => None,
    };
    new.iter().zip(results).filter_map(changed).collect()
}

pub(crate) fn turned_away(eks: &[EkId]) -> Vec<Deed> {
    eks.iter().map(|ek| on("turn-away", *ek, None)).collect()
}

pub(crate) fn updated(ek: &EkId, policy: Option<Reprovision>, plain_srk: Option<bool>) -> Deed {
    let policy = policy.map(|policy| format!("reprovision={policy}"));
    let plain_srk = plain_srk.map(|may| format!("plain-srk={may}"));
    let detail = policy.into_iter().chain(plain_srk).collect::<Vec<_>>().join(" ");
    Deed { detail: Some(detail), ..on("update", *ek, None) }
}

/// `ended` is the certificate that was in force.
pub(crate) fn removed(
    ek: &EkId,
    device: Option<DeviceId>,
    removed: Removed,
    ended: Option<Vec<u8>>,
) -> Deed {
    let Removed { certificates, shared_key } = removed;
    let detail = format!("certificates={certificates} shared-key={shared_key}");
    Deed { detail: Some(detail), ended, ..on("remove", *ek, device) }
}

/// `ended` is the certificate of the old TPM that was in force.
pub(crate) fn replaced(replacement: &Replacement, ended: Option<Vec<u8>>) -> Vec<Deed> {
    let Replacement { device_id, old, new } = replacement;
    let [was, is] = [("replaced", *old), ("replace", new.ek_id)]
        .map(|(action, ek)| on(action, ek, Some(device_id.clone())));
    vec![Deed { ended, ..was }, is]
}

pub(crate) fn switched(ek: &EkId, device: Option<DeviceId>, disabled: bool) -> Deed {
    on(if disabled { "disable" } else { "enable" }, *ek, device)
}

pub(crate) fn key_retired(ek: &EkId, device: Option<DeviceId>) -> Deed {
    on("retire-shared-key", *ek, device)
}

/// All of them, as they are now. Of long rules, the digest stands for the rest: a rule may have
/// thousands of entries, and an event must fit into a message.
pub(crate) fn groups_set(groups: &Groups) -> Deed {
    let group = |group| {
        let Columns { name, answer, rule } = Columns::of(group);
        if rule.len() <= LONGEST_RULE {
            return format!("{name} {answer} {rule}");
        }
        format!("{name} {answer} sha256={}", hex::encode(Sha256::digest(&rule)))
    };
    let all = groups.all().iter().map(group).collect::<Vec<_>>().join("; ");
    if all.len() <= LONGEST_DETAIL {
        return Deed::of_ca("set-groups", all);
    }
    let digest = hex::encode(Sha256::digest(&all));
    Deed::of_ca("set-groups", format!("{} groups sha256={digest}", groups.all().len()))
}

/// A few issuers.
const LONGEST_RULE: usize = 512;
/// Some tens of groups; far below the 64 KiB of a message.
const LONGEST_DETAIL: usize = 8 * 1024;

pub(crate) fn identity_added(new: &NewIdentity) -> Deed {
    let rights = rights(&new.rights);
    let digest = hex::encode(new.certificate.sha256);
    let detail = format!("{} {} {rights} certificate={digest}", new.name, new.role.name());
    Deed::of_ca("add-identity", detail)
}

pub(crate) fn identity_renewed(name: &str, certificate: &IdentityCertificate) -> Deed {
    let digest = hex::encode(certificate.sha256);
    Deed::of_ca("renew-identity", format!("{name} certificate={digest}"))
}

pub(crate) fn rights_set(name: &str, to: &Rights) -> Deed {
    Deed::of_ca("set-rights", format!("{name} {}", rights(to)))
}

pub(crate) fn identity_revoked(name: &str, which: Which<'_>, count: usize) -> Deed {
    let which = match which {
        Which::Every => "every certificate".to_owned(),
        Which::EveryBut(sha256) => format!("every certificate but {}", hex::encode(sha256)),
        Which::Only(sha256) => format!("certificate {}", hex::encode(sha256)),
    };
    Deed::of_ca("revoke-identity", format!("{name}: {which}; good before: {count}"))
}

pub(crate) fn trusted(anchor: &AnchorRow) -> Deed {
    let (kind, allowances) = anchor.kind();
    let AnchorRow { fingerprint, subject, .. } = anchor;
    let allows =
        if allowances.is_empty() { String::new() } else { format!(" allows={allowances}") };
    Deed::of_ca("trust", format!("{kind}{allows} {} {subject}", hex::encode(fingerprint)))
}

pub(crate) fn distrusted(fingerprint: &[u8; 32]) -> Deed {
    Deed::of_ca("distrust", hex::encode(fingerprint))
}

/// `target` is none for the scope.
pub(crate) fn configured(target: Option<&DeviceId>, document: Option<&[u8]>, next: i64) -> Deed {
    let (action, detail) = match document {
        Some(document) => {
            let digest = hex::encode(Sha256::digest(document));
            ("set-configuration", format!("revision={next} sha256={digest}"))
        }
        None => ("remove-configuration", format!("revision={next}")),
    };
    Deed { device: target.cloned(), ..Deed::of_ca(action, detail) }
}

pub(crate) fn clock_accepted() -> Deed {
    Deed { detail: None, ..Deed::of_ca("accept-clock", String::new()) }
}

pub(crate) fn resumed() -> Deed {
    Deed { detail: None, ..Deed::of_ca("resume", String::new()) }
}

pub(crate) fn list_taken_over(list: &PublishedList, taken: &TakenOver) -> Deed {
    let TakenOver { ended, disabled, unknown, .. } = taken;
    let detail =
        format!("number={} ended={ended} disabled={disabled} unknown={unknown}", list.number);
    Deed::of_ca("take-over-list", detail)
}

fn on(action: &'static str, ek_id: EkId, device: Option<DeviceId>) -> Deed {
    Deed { action, ek_id: Some(ek_id), device, detail: None, ended: None }
}

fn rights(rights: &Rights) -> String {
    let [publish, subscribe] = columns(rights);
    format!("publish=[{publish}] subscribe=[{subscribe}]")
}

#[cfg(test)]
mod tests {
    use assay_ca_core::{Answer, Conditions, Group, Terms};

    use super::*;

    /// Otherwise the event of one change would keep back all later ones.
    #[test]
    fn deed_about_groups_fits_into_a_message_however_many_there_are() {
        let group = |n: usize| Group {
            name: format!("g{n}").parse().unwrap(),
            conditions: Conditions {
                eks: vec!["ab".parse().unwrap(); Conditions::MAX_ENTRIES],
                ..Conditions::default()
            },
            answer: Answer::Refuse,
            terms: Terms::default(),
        };
        for count in [1, Groups::MAX] {
            let groups = Groups::new((0..count).map(group).collect()).unwrap();
            let detail = groups_set(&groups).detail.unwrap();
            assert!(detail.len() <= LONGEST_DETAIL && detail.contains("sha256="), "{detail}");
        }
        let detail = groups_set(&Groups::of_new_ca()).detail.unwrap();
        assert_eq!(detail, "enrolled admit {\"enrolled\":true}; vendors ask {}");
    }
}

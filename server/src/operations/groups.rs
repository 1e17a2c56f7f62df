//! Who is admitted: the operator's groups, in order.

use std::path::Path;

use anyhow::{Result, bail, ensure};
use assay_ca_core::{
    Answer, CaKey, Conditions, Group, GroupError, GroupName, Groups, Role, Terms,
    VendorCertificate, certificates_in,
};
use assay_store::{AnchorRow, Store};

use super::trust::Good;
use crate::anchors::read_anchor;
use crate::vendor_files;

/// The groups, in order.
///
/// # Errors
/// The record cannot be read.
pub fn list(store: &mut dyn Store) -> Result<Groups> {
    Ok(store.groups()?.1)
}

/// Changes the groups. If somebody else changes them at the same time, `change` sees what they did.
///
/// # Errors
/// `change` fails, or the record cannot be read or written.
pub fn edit(
    store: &mut dyn Store,
    change: impl Fn(&Groups) -> Result<Groups, GroupError>,
) -> Result<()> {
    for _ in 0..ATTEMPTS {
        let (version, groups) = store.groups()?;
        if store.set_groups(version, &change(&groups)?)? {
            return Ok(());
        }
    }
    bail!("somebody else changed the groups each time; try again")
}

/// Where a group stands among the others.
#[derive(Clone, Debug)]
pub enum Position {
    /// In front of this one.
    Before(GroupName),
    /// Counted from 1; behind all others if there are fewer.
    Number(usize),
    /// In front of the first one that is for every EK: behind it, a group would never be asked. One
    /// that is itself for every EK stands behind all others.
    Asked,
}

impl Position {
    /// The groups with this one, which is not among them.
    ///
    /// # Errors
    /// See [`Groups::with`].
    pub fn put(&self, groups: &Groups, group: Group) -> Result<Groups, GroupError> {
        match self {
            Self::Before(name) => groups.with(group, Some(name)),
            Self::Number(number) => {
                let behind = groups.all().get(number.saturating_sub(1));
                groups.with(group, behind.map(|behind| &behind.name))
            }
            Self::Asked => {
                let behind = match is_for_all(&group) {
                    true => None,
                    false => groups.all().iter().find(|other| is_for_all(other)),
                };
                groups.with(group, behind.map(|behind| &behind.name))
            }
        }
    }
}

/// Admits every EK under these roots and anchors: each gets a group of its own, before the first
/// one that asks, but behind those that refuse and are asked at all. Returns the names of those that
/// are new. An issuer counts for nothing by itself.
///
/// # Errors
/// The record cannot be read or written.
pub fn admit_vendors<'a>(
    store: &mut dyn Store,
    vendors: impl IntoIterator<Item = &'a Good>,
) -> Result<Vec<GroupName>> {
    let mut new = Vec::new();
    let vendors = vendors.into_iter().filter(|good| good.vendor.role() != Role::Issuer);
    for Good { vendor, row, .. } in vendors {
        let name: GroupName =
            format!("{VENDOR_GROUP}{}", hex::encode(&row.fingerprint[..NAME_BYTES])).parse()?;
        if let Ok(group) = list(store)?.get(&name) {
            ensure!(
                group.answer == Answer::Admit,
                "it is trusted, and its group {name} says {}: assay group update {name} --admit",
                group.answer.name()
            );
            continue;
        }
        let group = Group {
            name: name.clone(),
            conditions: Conditions { issuers: vec![vendor.ca_key()], ..Conditions::default() },
            answer: Answer::Admit,
            terms: Terms::default(),
        };
        edit(store, |groups| groups.with(group.clone(), behind_vendors(groups)))?;
        new.push(name);
    }
    Ok(new)
}

fn is_for_all(group: &Group) -> bool {
    group.conditions == Conditions::default()
}

/// The group in front of which a vendor's stands: the first one that asks, or one behind it, because
/// a group that refuses and is asked at all goes first.
fn behind_vendors(groups: &Groups) -> Option<&GroupName> {
    let all = groups.all();
    let asked = all.iter().position(is_for_all).unwrap_or(all.len());
    let refuses = |group: &Group| group.answer == Answer::Refuse;
    let behind_refusals = all[..asked].iter().rposition(refuses).map_or(0, |last| last + 1);
    let asks = all.iter().position(|group| group.answer == Answer::Ask).unwrap_or(all.len());
    all.get(asks.max(behind_refusals)).map(|group| &group.name)
}

/// The groups that `trust add --admit` made for CAs that are trusted no more.
///
/// # Errors
/// The record cannot be read.
pub fn of_no_vendor(store: &mut dyn Store) -> Result<Vec<GroupName>> {
    let anchors = store.anchors()?;
    let keys = anchors.iter().map(|row| Ok(read_anchor(row)?.ca_key()));
    let keys = keys.collect::<Result<Vec<_>>>()?;
    let groups = list(store)?;
    let is_left = |group: &&Group| {
        let issuers = &group.conditions.issuers;
        group.name.as_str().starts_with(VENDOR_GROUP)
            && !issuers.is_empty()
            && issuers.iter().all(|issuer| !keys.contains(issuer))
    };
    Ok(groups.all().iter().filter(is_left).map(|group| group.name.clone()).collect())
}

/// The keys of the CAs that are on record, and what these are called.
///
/// # Errors
/// The record cannot be read.
pub fn issuers_on_record(store: &mut dyn Store) -> Result<Vec<(CaKey, String)>> {
    let named = |row: &AnchorRow| Ok((read_anchor(row)?.ca_key(), row.subject.clone()));
    store.anchors()?.iter().map(named).collect()
}

/// The key of a CA: of the certificate in a file, or of a trusted one, by the beginning of its
/// fingerprint or key.
///
/// # Errors
/// There is no such CA.
pub fn find_issuer(store: &mut dyn Store, which: &str) -> Result<CaKey> {
    let file = Path::new(which);
    if file.exists() {
        let certificates = certificates_in(&vendor_files::read_bounded(file)?)?;
        let [only] = &certificates[..] else { bail!("{which} holds several certificates") };
        return Ok(VendorCertificate::read(only)?.ca_key());
    }
    let prefix = which.to_ascii_lowercase().replace(':', "");
    ensure!(
        prefix.len() >= MIN_PREFIX,
        "{which} is neither a file nor the beginning of a fingerprint, of {MIN_PREFIX} digits or \
         more, as `assay trust list` shows it"
    );
    let mut keys = Vec::new();
    for row in store.anchors()? {
        let key = read_anchor(&row)?.ca_key();
        let fits = [hex::encode(row.fingerprint), key.to_string()];
        if fits.iter().any(|text| text.starts_with(&prefix)) && !keys.contains(&key) {
            keys.push(key);
        }
    }
    match keys[..] {
        [key] => Ok(key),
        [] => bail!("no trusted certificate has the fingerprint {which}; see `assay trust list`"),
        _ => bail!("several trusted certificates have a fingerprint that begins with {which}"),
    }
}

/// How the name of a vendor's group begins.
const VENDOR_GROUP: &str = "vendor-";
/// How often a change is tried.
const ATTEMPTS: u32 = 5;
/// Of a fingerprint, in the name of a vendor's group.
const NAME_BYTES: usize = 4;
/// Enough to name one certificate, and too much to type by accident.
const MIN_PREFIX: usize = 8;

#[cfg(test)]
mod tests {
    use super::*;

    fn named(name: &str, manufacturer: Option<&str>, answer: Answer) -> Group {
        let manufacturers = manufacturer.map(|id| id.parse().unwrap()).into_iter().collect();
        Group {
            name: name.parse().unwrap(),
            conditions: Conditions { manufacturers, ..Conditions::default() },
            answer,
            terms: Terms::default(),
        }
    }

    #[test]
    fn group_stands_where_it_is_asked_unless_it_is_for_every_ek() {
        let groups = Groups::of_new_ca();
        let put = |group| {
            let groups = Position::Asked.put(&groups, group).unwrap();
            groups.all().iter().map(|group| group.name.to_string()).collect::<Vec<_>>()
        };
        let pumps = named("pumps", Some("id:49465800"), Answer::Admit);
        assert_eq!(put(pumps), ["enrolled", "pumps", "vendors"]);
        assert_eq!(put(named("rest", None, Answer::Admit)), ["enrolled", "vendors", "rest"]);
    }

    #[test]
    fn vendor_stands_before_the_first_group_that_asks_and_behind_those_that_refuse() {
        let new = Groups::of_new_ca();
        assert_eq!(behind_vendors(&new).unwrap().as_str(), "vendors");
        let with = |groups: &Groups, group| Position::Asked.put(groups, group).unwrap();
        let odd = with(&new, named("odd", Some("id:49465800"), Answer::Ask));
        assert_eq!(behind_vendors(&odd).unwrap().as_str(), "odd");
        let bad = with(&odd, named("bad", Some("id:00001014"), Answer::Refuse));
        assert_eq!(behind_vendors(&bad).unwrap().as_str(), "vendors");
        // Behind the one for every EK, a refusal is not asked.
        let unasked = with(&odd, named("rest", None, Answer::Refuse));
        assert_eq!(behind_vendors(&unasked).unwrap().as_str(), "odd");
        assert_eq!(behind_vendors(&Groups::default()), None);
    }
}

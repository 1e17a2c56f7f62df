//! Who is admitted: the operator's groups, in order.

use std::path::Path;

use anyhow::{Result, bail, ensure};
use assay_ca_core::{
    Answer, CaKey, Conditions, Group, GroupError, GroupName, Groups, Role, Terms,
    VendorCertificate, certificates_in,
};
use assay_store::Store;

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
pub enum Place {
    /// In front of this one.
    Before(GroupName),
    /// Counted from 1; behind all others if there are fewer.
    Number(usize),
    /// Behind all others.
    Last,
}

impl Place {
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
            Self::Last => groups.with(group, None),
        }
    }
}

/// Admits every EK under these roots and anchors: each gets a group of its own, before the first
/// one that asks. Returns the names of those that are new. An issuer counts for nothing by itself.
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
            format!("vendor-{}", hex::encode(&row.fingerprint[..NAME_BYTES])).parse()?;
        if list(store)?.get(&name).is_ok() {
            continue;
        }
        let group = Group {
            name: name.clone(),
            conditions: Conditions { issuers: vec![vendor.ca_key()], ..Conditions::default() },
            answer: Answer::Admit,
            terms: Terms::default(),
        };
        edit(store, |groups| {
            let asks = groups.all().iter().find(|other| other.answer == Answer::Ask);
            groups.with(group.clone(), asks.map(|asks| &asks.name))
        })?;
        new.push(name);
    }
    Ok(new)
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

/// How often a change is tried.
const ATTEMPTS: u32 = 5;
/// Of a fingerprint, in the name of a vendor's group.
const NAME_BYTES: usize = 4;
/// Enough to name one certificate, and too much to type by accident.
const MIN_PREFIX: usize = 8;

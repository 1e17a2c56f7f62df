//! EKs about which an operator is asked: which there are, and what the operator answers.

use anyhow::{Context, Result, bail, ensure};
use assay_ca_core::{Manufacturer, NamePattern};
use assay_store::{NewEnrolment, PendingRow, Store, StoreError, Tags};
use assay_wire::{DeviceId, EkId};
use time::OffsetDateTime;

/// Which of those that wait are meant.
#[derive(Clone, Debug, Default)]
pub struct Selection {
    /// These: EK ids, or their first digits.
    pub eks: Vec<String>,
    /// All of them.
    pub all: bool,
    /// Those whose TPM is of this manufacturer.
    pub manufacturer: Option<Manufacturer>,
}

impl Selection {
    /// Finds them on record.
    ///
    /// # Errors
    /// One that is named does not wait, or its digits stand for several; or nothing is meant.
    pub fn find(&self, store: &mut dyn Store) -> Result<Vec<PendingRow>> {
        let waiting = store.pending()?;
        let mut found: Vec<PendingRow> = Vec::new();
        for which in &self.eks {
            let prefix = which.to_ascii_lowercase();
            ensure!(
                prefix.len() >= MIN_PREFIX,
                "give at least {MIN_PREFIX} digits of the EK id, as `assay pending list` shows it"
            );
            let fits = |row: &&PendingRow| row.waiting.ek_id.to_string().starts_with(&prefix);
            let mut fitting = waiting.iter().filter(fits);
            match (fitting.next(), fitting.next()) {
                (Some(row), None) => found.push(row.clone()),
                (None, _) => bail!("no EK {which} waits; see `assay pending list`"),
                (Some(_), Some(_)) => bail!("several EKs begin with {which}; give more of it"),
            }
        }
        let is_meant = |row: &PendingRow| {
            self.all
                || self.manufacturer.is_some_and(|wanted| {
                    let tpm = row.waiting.facts.tpm.as_ref();
                    tpm.and_then(|tpm| tpm.manufacturer.parse().ok()) == Some(wanted)
                })
        };
        for row in waiting {
            if is_meant(&row) && !found.contains(&row) {
                found.push(row);
            }
        }
        ensure!(!found.is_empty(), "no EK waits that is meant; see `assay pending list`");
        Ok(found)
    }
}

/// Which device ids approved devices get.
#[derive(Clone, Debug)]
pub enum Naming {
    /// The one that follows from the EK.
    Derived,
    /// The one that each asked for, or else the one that follows from its EK.
    AsAsked,
    /// This one, for one device.
    Name(DeviceId),
    /// With the next number that is free in place of `{n}`.
    Numbered(NamePattern),
}

/// Approves EKs: all of them, or none if one cannot be. They are on the enrolment list from then
/// on. Returns the device id that each got, or `None` if it is derived from its EK.
///
/// Whoever asks for another id than it would get takes no other, and is left out; unless the name is
/// for this one EK, because somebody else may have asked in its place.
///
/// # Errors
/// A device id belongs to another EK, also if somebody else gave it away at this moment.
pub fn approve(
    store: &mut dyn Store,
    rows: &[PendingRow],
    naming: &Naming,
    now: OffsetDateTime,
) -> Result<Vec<(EkId, Option<DeviceId>)>> {
    let new = enrolments(store, rows, naming, now)?;
    for result in store.approve(&new)? {
        result.context("nothing is approved")?;
    }
    Ok(named(new))
}

/// Says what [`approve`] would do, and does nothing.
///
/// # Errors
/// As there.
pub fn rehearse(
    store: &mut dyn Store,
    rows: &[PendingRow],
    naming: &Naming,
    now: OffsetDateTime,
) -> Result<Vec<(EkId, Option<DeviceId>)>> {
    let new = enrolments(store, rows, naming, now)?;
    for result in store.rehearse_enroll(&new)? {
        result.context("nothing would be approved")?;
    }
    Ok(named(new))
}

fn named(new: Vec<NewEnrolment>) -> Vec<(EkId, Option<DeviceId>)> {
    new.into_iter().map(|new| (new.ek_id, new.device_id)).collect()
}

/// What an approval puts on the enrolment list.
fn enrolments(
    store: &mut dyn Store,
    rows: &[PendingRow],
    naming: &Naming,
    now: OffsetDateTime,
) -> Result<Vec<NewEnrolment>> {
    let (mut new, mut number) = (Vec::new(), 0);
    for PendingRow { waiting, .. } in rows {
        let ek_id = waiting.ek_id;
        let asks_for_another = match naming {
            Naming::Name(_) | Naming::AsAsked => false,
            Naming::Numbered(_) | Naming::Derived => waiting.device_id.is_some(),
        };
        if asks_for_another {
            continue;
        }
        let device_id = match (naming, &waiting.device_id) {
            (Naming::Name(_), _) if rows.len() > 1 => {
                bail!("--name is for one EK, and {} wait that are meant", rows.len())
            }
            (Naming::Name(name), _) => Some(name.clone()),
            (Naming::Numbered(pattern), _) => {
                let free = next_free(store, pattern, number + 1)?;
                let (found, name) = free.context("every number is taken")?;
                number = found;
                Some(name)
            }
            (Naming::AsAsked, asked) => asked.clone(),
            (Naming::Derived, _) => None,
        };
        new.push(NewEnrolment {
            ek_id,
            device_id,
            recognised: "approval".into(),
            reprovision: None,
            legacy_dps_ek: None,
            plain_srk: None,
            disabled: None,
            tags: Tags::new(),
            facts: Some(waiting.facts.clone()),
            added_at: now,
        });
    }
    Ok(new)
}

/// A number from this one on whose id is nobody's, and the id; `None` if none is found. It is the
/// first one if few are taken. If many are, not all are tried: it is the first one after some that
/// are taken.
///
/// # Errors
/// The record cannot be read.
pub(crate) fn next_free(
    store: &mut dyn Store,
    names: &NamePattern,
    first: u32,
) -> Result<Option<(u32, DeviceId)>, StoreError> {
    let mut is_free = |number| store.ek_of_device(&names.at(number)).map(|ek| ek.is_none());
    let (mut taken, mut step, mut number) = (None, 1, first);
    let mut free = loop {
        if is_free(number)? {
            break number;
        }
        // The first ones one by one, the others further and further apart.
        step = if number - first < TRIED_ONE_BY_ONE { 1 } else { step * 2 };
        let Some(next) = number.checked_add(step) else { return Ok(None) };
        (taken, number) = (Some(number), next);
    };
    while let Some(below) = taken.filter(|below| free - below > 1) {
        let middle = below + (free - below) / 2;
        match is_free(middle)? {
            true => free = middle,
            false => taken = Some(middle),
        }
    }
    Ok(Some((free, names.at(free))))
}

/// Some tens of queries cost a few milliseconds.
const TRIED_ONE_BY_ONE: u32 = 32;

/// Refuses EKs: they are disabled from then on.
///
/// # Errors
/// The record cannot be written.
pub fn turn_away(store: &mut dyn Store, rows: &[PendingRow], now: OffsetDateTime) -> Result<()> {
    let eks: Vec<_> = rows.iter().map(|row| row.waiting.ek_id).collect();
    Ok(store.turn_away(&eks, now)?)
}

/// Enough to name one EK.
const MIN_PREFIX: usize = 8;

#[cfg(test)]
mod tests {
    use assay_store::Database;

    use super::*;
    use crate::directory::Directory;

    #[test]
    fn next_free_number_is_found_without_trying_all() {
        let parent = tempfile::tempdir().unwrap();
        Directory::create(&parent.path().join("ca"), "Test", &[]).unwrap();
        let database = Database::Sqlite(parent.path().join("ca/assay.db"));
        let mut store = database.open().unwrap();
        let names: NamePattern = "pump-{n}".parse().unwrap();
        let mut enrol = |numbers: std::ops::Range<u32>| {
            let new: Vec<_> = numbers
                .map(|number| NewEnrolment {
                    ek_id: std::array::from_fn(
                        |at| if at < 4 { number.to_be_bytes()[at] } else { 1 },
                    )
                    .into(),
                    device_id: Some(names.at(number)),
                    recognised: "test".into(),
                    reprovision: None,
                    legacy_dps_ek: None,
                    plain_srk: None,
                    disabled: None,
                    tags: Tags::new(),
                    facts: None,
                    added_at: OffsetDateTime::now_utc(),
                })
                .collect();
            assert!(store.enroll(&new).unwrap().iter().all(Result::is_ok));
        };
        enrol(1..5);
        enrol(6..1_001);
        let mut next = |first| next_free(&mut *store, &names, first).unwrap().unwrap().0;
        assert_eq!((next(1), next(6), next(1_001)), (5, 1_001, 1_001));
    }
}

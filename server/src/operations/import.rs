//! Enrols many EKs at once: all of them, or none.

use std::path::Path;

use anyhow::Result;
use assay_store::{Enrolled, NewEnrolment, Store};

use crate::ek_list::{self, Defaults, Entry, Place, Progress};

/// What came of a list.
pub enum Import {
    /// All of it is enrolled, or would be.
    Done(Vec<(Enrolled, NewEnrolment)>),
    /// Nothing is enrolled, because these entries cannot be. In the order of the list.
    Refused(Vec<Refused>),
}

/// An entry that cannot be enrolled.
pub struct Refused {
    /// Where it stands.
    pub place: Place,
    /// Why.
    pub reason: String,
}

/// Enrols every EK of a CSV file or a directory; in a `rehearsal`, only says what would come of it.
/// `progress` hears how far the list is read.
///
/// # Errors
/// The list cannot be read as a whole, or the store fails.
pub fn import(
    store: &mut dyn Store,
    path: &Path,
    defaults: Defaults,
    rehearsal: bool,
    progress: impl FnMut(Progress<'_>),
) -> Result<Import> {
    let (mut places, mut new, mut refused) = (Vec::new(), Vec::new(), Vec::new());
    let entries = ek_list::read(path, defaults, progress)?;
    for (position, Entry { place, content }) in entries.into_iter().enumerate() {
        match content {
            Ok(enrolment) => {
                places.push((position, place));
                new.push(enrolment);
            }
            Err(error) => {
                refused.push((position, Refused { place, reason: format!("{error:#}") }));
            }
        }
    }
    let results = if rehearsal || !refused.is_empty() {
        store.rehearse_enroll(&new)?
    } else {
        store.enroll(&new)?
    };
    let mut done = Vec::with_capacity(new.len());
    for ((result, (position, place)), new) in results.into_iter().zip(places).zip(new) {
        match result {
            Ok(enrolled) => done.push((enrolled, new)),
            Err(error) => refused.push((position, Refused { place, reason: error.to_string() })),
        }
    }
    if refused.is_empty() {
        return Ok(Import::Done(done));
    }
    refused.sort_by_key(|(position, _)| *position);
    Ok(Import::Refused(refused.into_iter().map(|(_, refused)| refused).collect()))
}

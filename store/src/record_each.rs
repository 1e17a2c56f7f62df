//! Records a batch even if some of its entries cannot be recorded.

use assay_wire::Scope;

use crate::act::{Entry, Recorded};
use crate::contract::Store;
use crate::error::StoreError;

/// Calls [`Store::record`]. If that fails because of an entry, this records each entry alone, so
/// that one bad entry does not keep the others out. A result is `None` if its entry is not on
/// record, or if that is not known; `failed` gets each error.
pub fn record_each(
    store: &mut dyn Store,
    scope: &Scope,
    entries: &[Entry],
    mut failed: impl FnMut(&StoreError),
) -> Vec<Option<Recorded>> {
    let error = match store.record(scope, entries) {
        Ok(recorded) => return recorded.into_iter().map(Some).collect(),
        Err(error) => error,
    };
    if entries.len() < 2 || !error.is_of_an_entry() {
        failed(&error);
        return entries.iter().map(|_| None).collect();
    }
    let mut all = Vec::new();
    for entry in entries {
        match store.record(scope, std::slice::from_ref(entry)) {
            Ok(recorded) => all.extend(recorded.into_iter().map(Some)),
            Err(error) => {
                failed(&error);
                all.push(None);
                if !error.is_of_an_entry() {
                    break;
                }
            }
        }
    }
    all.resize(entries.len(), None);
    all
}

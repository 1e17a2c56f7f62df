//! The revocation lists as they were signed last, for those who do not ask the broker.

use std::sync::{Arc, Mutex, PoisonError};

use assay_wire::KeyId;
use bytes::Bytes;

use crate::ca::SignedList;

/// The lists that a worker signed last; none until it has a connection to its broker. Copies show
/// the same.
#[derive(Clone, Default)]
pub struct Bulletin(Arc<Mutex<Vec<Posted>>>);

/// A revocation list. A copy costs no memory, for a list may be long.
#[derive(Clone)]
pub struct Posted {
    /// The identifier of the issuing CA's key.
    pub key_id: KeyId,
    /// Whether this issuing CA signs certificates now.
    pub in_use: bool,
    /// The list in DER.
    pub der: Bytes,
}

impl Bulletin {
    /// All lists.
    pub fn lists(&self) -> Vec<Posted> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Puts these lists in place of those before, except for those of issuing CAs that are `away`.
    pub(super) fn post(&self, signed: &[SignedList], away: &[KeyId]) {
        let posted = signed.iter().map(|SignedList { key_id, in_use, der }| Posted {
            key_id: key_id.clone(),
            in_use: *in_use,
            der: Bytes::copy_from_slice(der),
        });
        let mut lists = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        lists.retain(|list| away.contains(&list.key_id));
        lists.extend(posted);
    }
}

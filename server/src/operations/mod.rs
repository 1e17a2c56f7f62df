//! What operators do to a CA: functions that print nothing, for every face of them.

pub mod backup;
pub mod configurations;
pub mod documents;
pub mod enrol;
pub mod identities;
pub mod import;
pub mod restore;
pub mod revocation_lists;
pub mod store;
pub mod trust;

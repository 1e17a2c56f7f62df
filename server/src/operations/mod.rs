//! What operators do to a CA: functions that print nothing, for every face of them.

pub mod enrol;
pub mod trust;

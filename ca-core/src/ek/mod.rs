//! Endorsement keys: what a device shows of one, and why one is believed to be in a genuine TPM.

pub(crate) mod anchors;
pub(crate) mod assurance;
pub(crate) mod container;
pub(crate) mod evidence;
pub(crate) mod file;
pub(crate) mod hardware;
pub(crate) mod trust;

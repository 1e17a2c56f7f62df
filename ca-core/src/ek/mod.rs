//! Endorsement keys: what a device shows of its EK, and why the CA believes that it is in a genuine
//! TPM.

pub(crate) mod anchors;
pub(crate) mod assurance;
pub(crate) mod ca_key;
pub(crate) mod container;
pub(crate) mod evidence;
pub(crate) mod facts;
pub(crate) mod file;
pub(crate) mod hardware;
pub(crate) mod model;
pub(crate) mod trust;

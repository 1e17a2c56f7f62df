//! The flows: what each sends to a device, and what it takes as proof.

pub(crate) mod mac;
pub(crate) mod renewal;
pub(crate) mod sealed;
pub(crate) mod shared_key;
pub(crate) mod ticket;

//! What any broker asks or links: who may connect as what, what they may say and hear, and when a
//! connection must end.
//!
//! | module | knows |
//! |---|---|
//! | [`access`] | which client ids and topics belong to which role |
//! | [`certificate`] | whom a certificate speaks for |
//! | [`doorkeeper`] | who may connect as what, and until when; it asks the CA's record |
//! | [`meter`] | how much of something a payer may have in a time |
//! | [`places`] | which connections are closed when a listener has too many |
//! | [`embedded`] | the adapter for our own broker, and that broker itself |
//!
//! No type of a broker or of MQTT appears outside of adapters.

pub mod access;
pub mod certificate;
pub mod doorkeeper;
pub mod embedded;
pub mod meter;
pub mod places;

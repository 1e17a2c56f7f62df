//! What any broker asks or links: who may connect as what, and who may say and hear what.
//!
//! | module | knows |
//! |---|---|
//! | [`access`] | which client ids and topics belong to which role |
//! | [`certificate`] | whom a certificate speaks for |
//! | [`embedded`] | the broker of our own, the first that asks |
//! | [`meter`] | how much of something a payer may have in a time |

pub mod access;
pub mod certificate;
pub mod embedded;
pub mod meter;

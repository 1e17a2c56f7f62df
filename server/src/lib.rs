//! Everything on the server that blocks: broker, worker, store, files, commands.
//!
//! The decisions are `assay-ca-core`'s. This crate brings requests to them and carries what they
//! decide: the worker ([`worker`]) speaks to any MQTT 5 broker, of which one is built in
//! ([`broker`]) with its access rules ([`access`]).

pub mod ca;
pub mod directory;
pub mod worker;

mod random;
pub use random::{random_bytes, random_u32};

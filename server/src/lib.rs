//! Everything on the server that blocks: pipeline, store, files, commands.
//!
//! The decisions are `assay-ca-core`'s. This crate brings requests to them and carries what they
//! decide: the [`pipeline`] speaks to any MQTT 5 broker, of which one is built in
//! (`assay_broker_plugin::embedded`).

pub mod age;
pub mod anchors;
pub mod backup_file;
pub mod ca;
pub mod clock;
pub mod directory;
pub mod ek_list;
pub mod expiry;
pub mod hook;
pub mod http;
pub mod issuing_files;
pub mod operations;
pub mod pipeline;
pub mod register;
pub mod revocations;
pub mod rfc3339;
pub mod shared_secrets;

mod dated;
mod flaws;
mod issuing_keys;
mod new_files;
mod operator;
mod random;
mod root_files;
mod root_key;
mod shares;
mod staging;
mod successor;
mod transcript;
mod vendor_files;
pub use issuing_keys::TokenPlace;
pub use new_files::pem_of;
pub use random::{random_bytes, random_u32};
pub use root_key::{Dice, Unlock};
pub use shares::{Share, Split};
pub use transcript::{Witness, Written};

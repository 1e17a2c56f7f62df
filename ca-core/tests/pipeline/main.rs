//! The pipeline from evidence to certificate, against golden values and against everything that
//! must be refused.

mod authority;
mod certificate;
mod claims;
mod ek_files;
mod fixture;
mod forge;
mod golden;
mod groups;
mod hostile_bytes;
mod issuers;
mod oracle;
mod paths;
mod refusals;
mod rekey;
mod renewal;
mod sealed;
mod shared_key;
mod token;
mod worked_example;

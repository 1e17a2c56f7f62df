//! .
mod der;
pub mod tpm;

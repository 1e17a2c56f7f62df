//! The TPM 2.0 structures that the CA reads and makes, and nothing more of the library
//! specification.
//!
//! Clause numbers refer to the TCG "Trusted Platform Module Library", family 2.0, revision 1.59:
//! Part 1 is its architecture, Part 2 its structures.

pub mod algorithms;
pub mod credential;
pub mod duplicate;
pub mod kdf;
mod outer_wrapper;
pub mod public;
pub mod template;

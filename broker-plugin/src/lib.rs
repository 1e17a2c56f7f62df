//! .
pub mod access;
pub mod broker;

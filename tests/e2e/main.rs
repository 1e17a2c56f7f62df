//! The product as users have it: real processes, real sockets, software TPMs that came from a manufacturer.

mod advice;
mod commands;
mod costs;
mod crash;
mod external_brokers;
mod fleet;
mod interoperability;
mod lab;
mod matrix;
mod operators;
mod raw_client;
mod refusals;
mod sealed;
mod shared_key;
mod shared_key_tools;
mod snooping;
mod tools_device;
mod trust;

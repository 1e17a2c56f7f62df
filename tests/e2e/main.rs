//! The product as users have it: real processes, real sockets, software TPMs that came from a manufacturer.

mod access_broker;
mod advice;
mod commands;
mod costs;
mod crash;
mod eks;
mod external_brokers;
mod fleet;
mod health;
mod interoperability;
mod lab;
mod matrix;
mod mistakes;
mod operators;
mod raw_client;
mod refusals;
mod reload;
mod sealed;
mod shared_key;
mod shared_key_tools;
mod snooping;
mod stopping;
mod systemd;
mod tools_device;
mod trust;
mod version;

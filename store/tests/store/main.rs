//! What every store promises, whoever calls it, and what is particular to each.

mod acts;
mod contract;
mod copy;
mod fixture;
mod postgres;
mod race;
mod sqlite;
mod upgrade;

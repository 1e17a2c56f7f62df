//! Tests of what every store promises, and of what only one of them does.

mod acts;
mod audit;
mod contract;
mod copy;
mod events;
mod fixture;
mod postgres;
mod race;
mod restore;
mod sqlite;
mod upgrade;

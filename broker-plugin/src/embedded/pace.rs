//! Who pays for the work that a client makes, and how long the client must wait for that.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use super::limits::CALM;
use super::packet::Packet;
use super::shared::Entrance;
use crate::access::Access;
use crate::meter::{Budget, Rate};

/// Packets that one connection of a device or of a bootstrapping client is heard with (see
/// [`cost`]). A client that sends more is heard later.
const PACE: Rate = Rate::per_second(128, 512);

/// What a device pays in packets when it is cut for breaking a rule: two seconds' worth.
const OFFENCE: u32 = 256;

/// What a packet costs: one, and one more for each 4 KiB and for each filter after the first.
pub(super) fn cost(packet: &Packet, length: usize) -> u32 {
    let filters = match packet {
        Packet::Subscribe(_, filters) => filters.len(),
        Packet::Unsubscribe(_, filters) => filters.len(),
        _ => 1,
    };
    u32::try_from(filters + length / 4096).unwrap_or(u32::MAX)
}

/// The budgets that one connection's work is paid from. Workers, operators and backends pay
/// nothing.
pub(super) struct Pace(Option<Budgets>);

struct Budgets {
    /// The connection's own.
    own: Budget,
    /// For what a stranger may always send, however much others send.
    calm: Budget,
    payer: Payer,
}

/// Who pays for the work of all its connections together.
enum Payer {
    Network(IpAddr),
    Device(String),
}

impl Pace {
    pub(super) fn of(access: &Access, network: IpAddr) -> Self {
        Self(access.account().map(|account| Budgets {
            own: Budget::default(),
            calm: Budget::default(),
            payer: match access.is_bootstrapping() {
                true => Payer::Network(network),
                false => Payer::Device(account.to_owned()),
            },
        }))
    }

    /// Pays for `work`. Returns how long to wait before the client is heard again.
    pub(super) fn spend(&mut self, work: u32, entrance: &Entrance) -> Duration {
        let now = Instant::now();
        let Some(Budgets { own, calm, payer }) = self.0.as_mut().filter(|_| work > 0) else {
            return Duration::ZERO;
        };
        let (shared, is_calm) = match payer {
            Payer::Network(network) => {
                (entrance.core.networks.spend(*network, work, now), calm.allows(work, CALM, now))
            }
            Payer::Device(device) => (
                entrance.core.clients.spend(device.clone(), work, now),
                entrance.core.calm.allows(device.clone(), work, now),
            ),
        };
        let rush = if is_calm { Duration::ZERO } else { entrance.rush.spend((), work, now) };
        own.spend(work, PACE, now).max(shared).max(rush)
    }

    /// Makes a device that was cut for breaking a rule wait when it comes back. Its network does
    /// not pay, because many other devices may be in it.
    pub(super) fn charge_offence(&self, entrance: &Entrance) {
        if let Some(Budgets { payer: Payer::Device(device), .. }) = &self.0 {
            entrance.core.clients.spend(device.clone(), OFFENCE, Instant::now());
        }
    }
}

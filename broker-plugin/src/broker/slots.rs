//! Counts a listener's connections, in total and per address, and says when there are enough.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::Places;

/// A listener's places.
pub(super) struct Slots {
    places: Places,
    taken: Mutex<Taken>,
}

#[derive(Default)]
struct Taken {
    total: usize,
    by_network: HashMap<IpAddr, usize>,
}

/// One connection's place, given back when dropped.
pub(super) struct Slot {
    slots: Arc<Slots>,
    network: IpAddr,
}

impl Slots {
    pub(super) fn new(places: Places) -> Arc<Self> {
        Arc::new(Self { places, taken: Mutex::default() })
    }

    /// A place for a connection from `peer`, unless the listener or the peer's network has enough.
    pub(super) fn take(self: &Arc<Self>, peer: IpAddr) -> Option<Slot> {
        let network = network(peer);
        let mut taken = self.taken();
        let here = taken.by_network.get(&network).copied().unwrap_or(0);
        if taken.total >= self.places.total || here >= self.places.per_address {
            return None;
        }
        taken.total += 1;
        taken.by_network.insert(network, here + 1);
        Some(Slot { slots: self.clone(), network })
    }

    /// The counts are consistent after each statement below, so a panic elsewhere does not spoil them.
    fn taken(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut taken = self.slots.taken();
        taken.total -= 1;
        if let Some(here) = taken.by_network.get_mut(&self.network) {
            *here -= 1;
            if *here == 0 {
                taken.by_network.remove(&self.network);
            }
        }
    }
}

/// The address itself for IPv4 (also when mapped into IPv6), the /64 network for IPv6.
fn network(peer: IpAddr) -> IpAddr {
    match peer.to_canonical() {
        IpAddr::V6(address) => {
            let prefix = address.to_bits() >> 64 << 64;
            Ipv6Addr::from_bits(prefix).into()
        }
        v4 => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slots(total: usize, per_address: usize) -> Arc<Slots> {
        Slots::new(Places { total, per_address })
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn one_address_gets_its_share_and_no_more_until_it_gives_back() {
        let slots = slots(10, 2);
        let first = slots.take(ip("192.0.2.1")).unwrap();
        let _second = slots.take(ip("192.0.2.1")).unwrap();
        assert!(slots.take(ip("192.0.2.1")).is_none());
        assert!(slots.take(ip("::ffff:192.0.2.1")).is_none());
        assert!(slots.take(ip("192.0.2.2")).is_some());
        drop(first);
        assert!(slots.take(ip("192.0.2.1")).is_some());
    }

    #[test]
    fn addresses_of_one_ipv6_network_share() {
        let slots = slots(10, 1);
        let _first = slots.take(ip("2001:db8::1")).unwrap();
        assert!(slots.take(ip("2001:db8::ffff:2")).is_none());
        assert!(slots.take(ip("2001:db8:0:1::1")).is_some());
    }

    #[test]
    fn total_is_capped_over_all_addresses() {
        let slots = slots(2, 2);
        let first = slots.take(ip("192.0.2.1")).unwrap();
        let _second = slots.take(ip("192.0.2.2")).unwrap();
        assert!(slots.take(ip("192.0.2.3")).is_none());
        drop(first);
        assert!(slots.take(ip("192.0.2.3")).is_some());
    }

    #[test]
    fn nothing_is_remembered_of_addresses_that_left() {
        let slots = slots(10, 2);
        drop(slots.take(ip("192.0.2.1")));
        assert!(slots.taken().by_network.is_empty());
        assert_eq!(slots.taken().total, 0);
    }
}

//! Bounded sets of connections of unknown clients: those that have not been let in yet, and clients
//! without a certificate.

use std::cmp::Reverse;
use std::collections::{HashMap, VecDeque};
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::SetOnce;

/// A bounded number of connections. When it is full, it turns out the oldest connection of the
/// network that has most, so that no network keeps the others out.
#[derive(Debug)]
pub struct Lobby {
    places: usize,
    guests: Mutex<Guests>,
}

#[derive(Debug, Default)]
struct Guests {
    total: usize,
    arrivals: u64,
    by_network: HashMap<IpAddr, VecDeque<Arc<Ticket>>>,
}

#[derive(Debug)]
struct Ticket {
    number: u64,
    turned_out: SetOnce<()>,
}

/// One connection's place. It is free again when this is dropped.
#[derive(Debug)]
pub struct Place {
    room: Arc<Lobby>,
    network: IpAddr,
    ticket: Arc<Ticket>,
}

impl Lobby {
    /// With so many places.
    pub fn new(places: usize) -> Arc<Self> {
        Arc::new(Self { places, guests: Mutex::default() })
    }

    /// Takes a place for a connection from `network`. `None` if all are taken, and no network has
    /// more than this one.
    pub fn enter(self: &Arc<Self>, network: IpAddr) -> Option<Place> {
        let mut guests = self.guests();
        if guests.total >= self.places {
            guests.make_room_for(network)?;
        }
        guests.arrivals += 1;
        let ticket = Arc::new(Ticket { number: guests.arrivals, turned_out: SetOnce::new() });
        guests.total += 1;
        guests.by_network.entry(network).or_default().push_back(ticket.clone());
        Some(Place { room: self.clone(), network, ticket })
    }

    fn guests(&self) -> MutexGuard<'_, Guests> {
        self.guests.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Guests {
    /// Turns out the oldest connection of the network that has most. Of that network, the oldest is
    /// the one that most likely says nothing.
    fn make_room_for(&mut self, network: IpAddr) -> Option<()> {
        let here = self.by_network.get(&network).map_or(0, VecDeque::len);
        let age =
            |tickets: &VecDeque<Arc<Ticket>>| tickets.front().map(|oldest| Reverse(oldest.number));
        let (_, most) =
            self.by_network.iter_mut().max_by_key(|(_, tickets)| (tickets.len(), age(tickets)))?;
        if here >= most.len() {
            return None;
        }
        let oldest = most.pop_front()?;
        // It is not set twice: the ticket was removed from the lobby above.
        _ = oldest.turned_out.set(());
        self.total -= 1;
        Some(())
    }
}

impl Place {
    /// Returns when another connection needs the place.
    pub async fn turned_out(&self) {
        self.ticket.turned_out.wait().await;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut guests = self.room.guests();
        let Some(tickets) = guests.by_network.get_mut(&self.network) else { return };
        let before = tickets.len();
        tickets.retain(|other| !Arc::ptr_eq(other, &self.ticket));
        let after = tickets.len();
        if after == 0 {
            guests.by_network.remove(&self.network);
        }
        // A connection that was turned out is no longer counted.
        guests.total -= before - after;
    }
}

/// The network of an address: for IPv4, also mapped into IPv6, the address itself; for IPv6, its
/// /64 (what one subscriber is given, RFC 6177).
pub fn network(peer: IpAddr) -> IpAddr {
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

    fn ip(text: &str) -> IpAddr {
        network(text.parse().unwrap())
    }

    #[test]
    fn networks_are_ipv4_addresses_and_ipv6_prefixes() {
        assert_eq!(ip("192.0.2.1"), ip("::ffff:192.0.2.1"));
        assert_ne!(ip("192.0.2.1"), ip("192.0.2.2"));
        assert_eq!(ip("2001:db8::1"), ip("2001:db8::ffff:2"));
        assert_ne!(ip("2001:db8::1"), ip("2001:db8:0:1::1"));
    }

    #[test]
    fn full_lobby_turns_out_the_oldest_of_the_network_that_has_most() {
        let room = Lobby::new(3);
        let is_out = |place: &Place| place.ticket.turned_out.get().is_some();
        let many: Vec<_> = (0..3).map(|_| room.enter(ip("192.0.2.1")).unwrap()).collect();
        assert!(room.enter(ip("192.0.2.1")).is_none(), "the crowd itself gets no more");
        let other = room.enter(ip("192.0.2.2")).unwrap();
        assert!(is_out(&many[0]) && !is_out(&many[1]));
        let _third = room.enter(ip("192.0.2.3")).unwrap();
        assert!(is_out(&many[1]) && !is_out(&many[2]));
        let _fourth = room.enter(ip("192.0.2.4")).unwrap();
        assert!(
            is_out(&many[2]) && !is_out(&other),
            "of equal networks, the one that has waited longest"
        );
    }

    #[test]
    fn who_leaves_makes_room_once() {
        let room = Lobby::new(2);
        let (first, second) =
            (room.enter(ip("192.0.2.1")).unwrap(), room.enter(ip("192.0.2.1")).unwrap());
        let third = room.enter(ip("192.0.2.2")).unwrap();
        drop(first);
        assert_eq!(room.guests().total, 2, "it had been turned out");
        drop((second, third));
        assert_eq!(room.guests().total, 0);
        assert!(room.guests().by_network.is_empty());
    }
}

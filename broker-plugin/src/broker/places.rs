//! Counts connections and says when there are enough: those that have yet to introduce themselves, and those that have.

use std::cmp::Reverse;
use std::collections::{HashMap, VecDeque};
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::SetOnce;

/// Where connections wait until their CONNECT is accepted: a few, for a short time. Full, it makes room by turning out the network that
/// has most of them, so that silent connections keep nobody else out.
#[derive(Debug)]
pub(super) struct WaitingRoom {
    places: usize,
    waiting: Mutex<Waiting>,
}

#[derive(Debug, Default)]
struct Waiting {
    total: usize,
    arrivals: u64,
    by_network: HashMap<IpAddr, VecDeque<Arc<Ticket>>>,
}

#[derive(Debug)]
struct Ticket {
    number: u64,
    turned_out: SetOnce<()>,
}

/// One connection's place in the waiting room, given back when dropped.
#[derive(Debug)]
pub(super) struct Wait {
    room: Arc<WaitingRoom>,
    network: IpAddr,
    ticket: Arc<Ticket>,
}

impl WaitingRoom {
    pub(super) fn new(places: usize) -> Arc<Self> {
        Arc::new(Self { places, waiting: Mutex::default() })
    }

    /// A place for a connection from `network`, unless the room is full of that network's.
    pub(super) fn enter(self: &Arc<Self>, network: IpAddr) -> Option<Wait> {
        let mut waiting = self.waiting();
        if waiting.total >= self.places {
            waiting.make_room_for(network)?;
        }
        waiting.arrivals += 1;
        let ticket = Arc::new(Ticket { number: waiting.arrivals, turned_out: SetOnce::new() });
        waiting.total += 1;
        waiting.by_network.entry(network).or_default().push_back(ticket.clone());
        Some(Wait { room: self.clone(), network, ticket })
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Waiting {
    /// Turns out the oldest connection of the network that has most, which is most likely to have nothing to say.
    fn make_room_for(&mut self, network: IpAddr) -> Option<()> {
        let here = self.by_network.get(&network).map_or(0, VecDeque::len);
        let age = |tickets: &VecDeque<Arc<Ticket>>| tickets.front().map(|oldest| Reverse(oldest.number));
        let (_, most) = self.by_network.iter_mut().max_by_key(|(_, tickets)| (tickets.len(), age(tickets)))?;
        if here >= most.len() {
            return None;
        }
        let oldest = most.pop_front()?;
        // Nobody else turns it out: it is in the room no more.
        _ = oldest.turned_out.set(());
        self.total -= 1;
        Some(())
    }
}

impl Wait {
    /// Returns when somebody else needs the place.
    pub(super) async fn turned_out(&self) {
        self.ticket.turned_out.wait().await;
    }
}

impl Drop for Wait {
    fn drop(&mut self) {
        let mut waiting = self.room.waiting();
        let Some(tickets) = waiting.by_network.get_mut(&self.network) else { return };
        let before = tickets.len();
        tickets.retain(|other| !Arc::ptr_eq(other, &self.ticket));
        let after = tickets.len();
        if after == 0 {
            waiting.by_network.remove(&self.network);
        }
        // One that was turned out is counted no more.
        waiting.total -= before - after;
    }
}

/// Places for clients that are in: in total, and per network where clients are strangers.
#[derive(Debug)]
pub(super) struct Places {
    total: usize,
    per_network: usize,
    taken: Mutex<Taken>,
}

#[derive(Debug, Default)]
struct Taken {
    total: usize,
    by_network: HashMap<IpAddr, usize>,
}

/// One client's place, given back when dropped.
#[derive(Debug)]
pub(super) struct Place {
    places: Arc<Places>,
    network: IpAddr,
}

impl Places {
    pub(super) fn new(total: usize, per_network: usize) -> Arc<Self> {
        Arc::new(Self { total, per_network, taken: Mutex::default() })
    }

    /// A place for a client from `network`, unless all or the network's are taken.
    pub(super) fn take(self: &Arc<Self>, network: IpAddr) -> Option<Place> {
        let mut taken = self.taken();
        let here = taken.by_network.get(&network).copied().unwrap_or(0);
        if taken.total >= self.total || here >= self.per_network {
            return None;
        }
        taken.total += 1;
        taken.by_network.insert(network, here + 1);
        Some(Place { places: self.clone(), network })
    }

    /// The counts are consistent after each statement below, so a panic elsewhere does not spoil them.
    fn taken(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.places.taken();
        taken.total -= 1;
        if let Some(here) = taken.by_network.get_mut(&self.network) {
            *here -= 1;
            if *here == 0 {
                taken.by_network.remove(&self.network);
            }
        }
    }
}

/// Whom an address belongs to: the address itself for IPv4 (also when mapped into IPv6), the /64 network for IPv6 (what one subscriber
/// is given, RFC 6177).
pub(super) fn network(peer: IpAddr) -> IpAddr {
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
    fn one_network_gets_its_share_and_no_more_until_it_gives_back() {
        let places = Places::new(10, 2);
        let first = places.take(ip("192.0.2.1")).unwrap();
        let _second = places.take(ip("192.0.2.1")).unwrap();
        assert!(places.take(ip("192.0.2.1")).is_none());
        assert!(places.take(ip("::ffff:192.0.2.1")).is_none());
        assert!(places.take(ip("192.0.2.2")).is_some());
        drop(first);
        assert!(places.take(ip("192.0.2.1")).is_some());
    }

    #[test]
    fn addresses_of_one_ipv6_network_share() {
        let places = Places::new(10, 1);
        let _first = places.take(ip("2001:db8::1")).unwrap();
        assert!(places.take(ip("2001:db8::ffff:2")).is_none());
        assert!(places.take(ip("2001:db8:0:1::1")).is_some());
    }

    #[test]
    fn total_is_capped_over_all_networks() {
        let places = Places::new(2, 2);
        let first = places.take(ip("192.0.2.1")).unwrap();
        let _second = places.take(ip("192.0.2.2")).unwrap();
        assert!(places.take(ip("192.0.2.3")).is_none());
        drop(first);
        assert!(places.take(ip("192.0.2.3")).is_some());
    }

    #[test]
    fn nothing_is_remembered_of_networks_that_left() {
        let places = Places::new(10, 2);
        drop(places.take(ip("192.0.2.1")));
        assert!(places.taken().by_network.is_empty());
        assert_eq!(places.taken().total, 0);
    }

    #[test]
    fn full_waiting_room_turns_out_the_oldest_of_the_network_that_has_most() {
        let room = WaitingRoom::new(3);
        let is_out = |wait: &Wait| wait.ticket.turned_out.get().is_some();
        let many: Vec<_> = (0..3).map(|_| room.enter(ip("192.0.2.1")).unwrap()).collect();
        assert!(room.enter(ip("192.0.2.1")).is_none(), "the crowd itself gets no more");
        let other = room.enter(ip("192.0.2.2")).unwrap();
        assert!(is_out(&many[0]) && !is_out(&many[1]));
        let _third = room.enter(ip("192.0.2.3")).unwrap();
        assert!(is_out(&many[1]) && !is_out(&many[2]));
        let _fourth = room.enter(ip("192.0.2.4")).unwrap();
        assert!(is_out(&many[2]) && !is_out(&other), "of equal networks, the one that has waited longest");
    }

    #[test]
    fn who_leaves_the_waiting_room_makes_room_once() {
        let room = WaitingRoom::new(2);
        let (first, second) = (room.enter(ip("192.0.2.1")).unwrap(), room.enter(ip("192.0.2.1")).unwrap());
        let third = room.enter(ip("192.0.2.2")).unwrap();
        drop(first);
        assert_eq!(room.waiting().total, 2, "it had been turned out");
        drop((second, third));
        assert_eq!(room.waiting().total, 0);
        assert!(room.waiting().by_network.is_empty());
    }
}

//! How many connections there may be, and how much each client may do.

use std::io;
use std::time::Duration;

use tracing::warn;

use crate::meter::Rate;

/// How many connections there may be, and how long they may take and stay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Of each listener: connections that have not been let in yet. Above this number, the broker
    /// closes the oldest connection of the network that has most. A network is an IPv4 address, or
    /// an IPv6 /64 (what one subscriber is given, RFC 6177).
    pub waiting: usize,
    /// Clients without a certificate. Above this number, the broker closes connections in the same
    /// way.
    pub bootstrap: usize,
    /// Devices, operators and backends. Workers do not count.
    pub operational: usize,
    /// Connections to each listener that may come from one network in a second, and five times as
    /// many at once.
    pub arrivals_per_network: u32,
    /// From TCP accept to the end of the TLS handshake and the arrival of the whole CONNECT packet.
    pub introduction: Duration,
    /// How long a client without a certificate may stay.
    pub bootstrapping: Duration,
}

impl Default for Limits {
    /// - 4096 clients without a certificate: each needs a second or two.
    /// - 12,288 clients with one: 10,000 devices that stay, and room for those that come back
    ///   before the broker notices that their old connection is dead. Each client id has one place.
    ///   Networks have no limit here: thousands of devices behind one NAT gateway are normal, and
    ///   all may come back at once.
    /// - 10 s of introduction: a slow TPM needs them to sign its part of the TLS handshake.
    /// - 360 s of bootstrapping: a device may need its connection as long as its claim is good,
    ///   which is five minutes, and a minute for the rest.
    fn default() -> Self {
        Self {
            waiting: 1024,
            bootstrap: 4096,
            operational: 12288,
            arrivals_per_network: 1000,
            introduction: Duration::from_secs(10),
            bootstrapping: Duration::from_secs(360),
        }
    }
}

/// As many seconds' worth of connections may come from one network at once.
pub(super) const BURST: u32 = 5;

/// The longest keep-alive on the bootstrap listener. The broker gives up a client after one and a
/// half keep-alives without a packet (MQTT 5 §3.1.2.10), or without reading.
pub(super) const KEEP_ALIVE: Duration = Duration::from_secs(60);

/// The longest keep-alive on the operational listener, where devices are idle for most of the time:
/// each ping wakes one. It is below the five minutes after which many NATs forget a connection.
pub(super) const OPERATIONAL_KEEP_ALIVE: Duration = Duration::from_secs(240);

/// What a bootstrapping client may publish over one connection. The ticket flow needs 2; the rest
/// is for retries. Its lane has room for as many replies, so it may read them whenever it likes.
pub(super) const PUBLISHES: u32 = 32;

/// Requests of one client id: this many at once, and one more after each interval.
pub(super) const REQUESTS: Rate = Rate { interval: Duration::from_secs(10), burst: PUBLISHES };

/// Clients that are checked again at the same time. It is small beside the 512 threads that tokio
/// has for blocking calls.
pub(super) const RECHECKS: usize = 32;

/// Logins that are checked at the same time. Anybody may send one, so they must leave most of the
/// 512 threads that tokio has for blocking calls to the checks of certificates.
pub(super) const LOGINS: usize = 64;

/// Certificates that are checked at the same time. They leave most of the 512 threads that tokio
/// has for blocking calls free.
pub(super) const CERTIFICATES: usize = 64;

/// Packets of all bootstrapping clients of one network.
pub(super) const NETWORK_PACE: Rate = Rate::per_second(16_384, 65_536);

/// Named connections of one device, beside the one that is not named: some for programs that stay
/// connected, and room for those that come and go. A device needs one place of the listener for
/// each, so there are few.
pub(super) const NAMED: usize = 8;

/// Connections of one backend: a service with dozens of processes. Each takes a place of the
/// listener, and all others need one, too.
pub(super) const OF_BACKEND: usize = 64;

/// Packets of one device over all its connections.
pub(super) const CLIENT_PACE: Rate = Rate::per_second(128, 1024);

/// Packets that a client is heard with even when all others are busy. A thousand that use up theirs
/// at once cost about what [`rush`] lets all clients have in a second.
pub(super) const CALM: Rate = Rate::per_second(8, 16);

/// Packets above [`CALM`] of all clients of a listener together. `threads` serve connections; this
/// is an eighth of what they can do.
pub(super) fn rush(threads: usize) -> Rate {
    let packets = 16_384 * u32::try_from(threads).unwrap_or(1).clamp(1, 1024);
    Rate::per_second(packets, packets)
}

/// Connections on which one device's certificate is shown, let in or not: each costs a TLS
/// handshake.
pub(super) const SHOWN: Rate = Rate::per_second(8, 64);

/// How long connections may take to end by themselves at shutdown.
pub const DRAIN: Duration = Duration::from_secs(2);

/// File descriptors for everything except the listeners' connections: the store, the worker's own
/// connection, the runtime.
const RESERVE: usize = 256;

impl Limits {
    /// The limits that `descriptors` allow, one for each connection. Bootstrapping clients lose
    /// places first, but keep a quarter; an eighth is for connections that are not let in yet.
    fn within(self, descriptors: usize) -> Self {
        let available = descriptors.saturating_sub(RESERVE);
        let waiting = self.waiting.min(available / 16);
        let available = available - 2 * waiting;
        let operational = self.operational.min(available - available / 4);
        Self {
            waiting,
            operational,
            bootstrap: self.bootstrap.min(available - operational),
            ..self
        }
    }

    /// The limits that the system allows. Raises this process's limit of file descriptors as far as
    /// possible.
    pub(super) fn within_system(self) -> io::Result<Self> {
        let descriptors = rlimit::increase_nofile_limit(u64::MAX)?;
        let limits = self.within(usize::try_from(descriptors).unwrap_or(usize::MAX));
        let Self { bootstrap, operational, .. } = limits;
        if (bootstrap, operational) != (self.bootstrap, self.operational) {
            warn!(
                descriptors,
                bootstrap,
                operational,
                "the limit of file descriptors allows fewer connections than configured"
            );
        }
        Ok(limits)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scarce_descriptors_are_missing_from_the_bootstrap_listener_first() {
        for (descriptors, bootstrap, operational) in [
            (usize::MAX, 4096, 12288),
            (18688, 4096, 12288),
            (18687, 4095, 12288),
            (4096, 840, 2520),
            (1024, 168, 504),
            (256, 0, 0),
            (0, 0, 0),
        ] {
            let limits = Limits::default().within(descriptors);
            assert_eq!(
                (limits.bootstrap, limits.operational),
                (bootstrap, operational),
                "{descriptors}"
            );
        }
    }
}

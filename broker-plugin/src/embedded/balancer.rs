//! Where a connection comes from that a balancer passes on: PROXY protocol, version 2.

use std::io;
use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use ppp::v2::{Addresses, Command, Header, ParseError};
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;

/// The balancers whose word counts on where a connection comes from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Balancers(Vec<IpNet>);

impl Balancers {
    /// Those in these networks.
    pub fn new(networks: Vec<IpNet>) -> Self {
        Self(networks)
    }

    pub(super) fn are_at(&self, address: IpAddr) -> bool {
        // A listener on `[::]` has IPv4 clients as IPv6 addresses.
        let address = address.to_canonical();
        self.0.iter().any(|network| network.contains(&address))
    }
}

/// Reads the header that a balancer sends before the bytes of its client, and not a byte more
/// (HAProxy's proxy-protocol.txt, 2.2). A balancer that speaks for itself, to see whether we live,
/// says so (`LOCAL`): then the connection is the balancer's own.
///
/// # Errors
/// There is no such header, or the client has no address of IP.
pub(super) async fn read_source(
    stream: &mut TcpStream,
    peer: SocketAddr,
) -> io::Result<SocketAddr> {
    let mut header = vec![0; FIXED];
    stream.read_exact(&mut header).await?;
    let rest = match Header::try_from(&header[..]) {
        Err(ParseError::Partial(_, length)) => length,
        // It says nothing but that it is one.
        Ok(_) => 0,
        Err(error) => return Err(invalid(error)),
    };
    if rest > LONGEST {
        return Err(invalid("it is too long"));
    }
    header.resize(FIXED + rest, 0);
    stream.read_exact(&mut header[FIXED..]).await?;
    let header = Header::try_from(&header[..]).map_err(invalid)?;
    match (header.command, header.addresses) {
        (Command::Local, _) => Ok(peer),
        (Command::Proxy, Addresses::IPv4(it)) => Ok((it.source_address, it.source_port).into()),
        (Command::Proxy, Addresses::IPv6(it)) => Ok((it.source_address, it.source_port).into()),
        (Command::Proxy, Addresses::Unspecified | Addresses::Unix(_)) => {
            Err(invalid("it names no address"))
        }
    }
}

fn invalid(error: impl ToString) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error.to_string())
}

/// The part of the header that is always there.
const FIXED: usize = 16;
/// The longest rest: the longest addresses, of Unix sockets, have 216 bytes, and balancers append
/// some hundred bytes about TLS and themselves.
const LONGEST: usize = 1024;

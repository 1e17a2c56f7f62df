//! Finds out which protocol a port speaks, TLS or MQTT without TLS, if a connection ended before
//! any conversation.

use std::io::{self, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::sync::Arc;
use std::time::Duration;

use assay_mqtt::BrokerUrl;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection};

use crate::error::{Error, Setting};

/// Asks in the other protocol. If the answer is in that protocol, the URL is wrong. Blocks for a
/// few seconds at most.
pub(crate) fn other_protocol(broker: &BrokerUrl, tls: &Arc<ClientConfig>) -> Option<Error> {
    let hello = if broker.is_tls() { CONNECT.to_vec() } else { client_hello(tls)? };
    let answer = first_bytes(broker, &hello).ok()?;
    let (host, port) = (broker.host(), broker.port());
    let (found, setting) = match (broker.is_tls(), answer) {
        // A handshake record or an alert (RFC 8446 §5.1).
        (false, [0x15 | 0x16, 3, _]) => {
            ("TLS", Setting::SchemeWithTls { host: host.to_owned(), port })
        }
        // CONNACK (MQTT 5.0, 3.2.1), with a remaining length of one byte. Anybody who can answer in
        // the broker's place can send it, so it must not be a reason to do without TLS.
        (true, [0x20, 2..0x80, _]) => ("MQTT without TLS", Setting::PortWithoutTls),
        _ => return None,
    };
    Some(Error::Misconfigured {
        found: format!("{host}:{port} speaks {found}, but the URL says otherwise"),
        setting,
    })
}

fn first_bytes(broker: &BrokerUrl, hello: &[u8]) -> io::Result<[u8; 3]> {
    let mut answer = [0; 3];
    for address in (broker.host(), broker.port()).to_socket_addrs()? {
        let Ok(mut stream) = TcpStream::connect_timeout(&address, LIMIT) else { continue };
        stream.set_write_timeout(Some(LIMIT))?;
        stream.set_read_timeout(Some(LIMIT))?;
        stream.write_all(hello)?;
        stream.read_exact(&mut answer)?;
        break;
    }
    Ok(answer)
}

fn client_hello(tls: &Arc<ClientConfig>) -> Option<Vec<u8>> {
    let name = ServerName::try_from("localhost").ok()?;
    let mut hello = Vec::new();
    ClientConnection::new(Arc::clone(tls), name).ok()?.write_tls(&mut hello).ok()?;
    Some(hello)
}

/// MQTT 5.0, 3.1: no client id, clean start, a minute between pings. Every MQTT broker answers with
/// a CONNACK, if only to refuse.
const CONNECT: &[u8] = &[0x10, 13, 0, 4, b'M', b'Q', b'T', b'T', 5, 2, 0, 60, 0, 0, 0];
/// A near broker answers in milliseconds, a distant one in some hundreds of milliseconds.
const LIMIT: Duration = Duration::from_secs(2);

//! Strangers that do not keep to MQTT: one that says nothing, and one that says too much.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use super::party::Persona;
use super::rules::{Found, Tried};

/// A stranger that has connected, with TLS if the broker speaks it, and never sends its CONNECT
/// (MQTT 5 §3.1.4 leaves the time open).
pub(super) async fn silent(stranger: Result<Persona, String>) -> Tried {
    let mut stream = open(&stranger?).await?;
    let cut = async { while stream.read_u8().await.is_ok() {} };
    let started = tokio::time::Instant::now();
    Ok(match timeout(SILENCE, cut).await {
        Ok(()) => Found::Kept(format!("cut after {} s", started.elapsed().as_secs())),
        Err(_) => Found::Broken(format!("still connected after {} s", SILENCE.as_secs())),
    })
}

/// A stranger that publishes 128 KiB, where no worker hears it. To take that from a stranger costs
/// the broker, and a worker that gets it is cut off. It counts as refused if the connection ends,
/// or the answer is *packet too large*.
pub(super) async fn oversize(stranger: Result<Persona, String>) -> Tried {
    let persona = stranger?;
    let mut stream = open(&persona).await?;
    let said = async {
        stream.write_all(&connect_packet(&persona.id)).await?;
        let connack = read_packet(&mut stream).await?;
        if connack.first() != Some(&CONNACK) || connack.get(2) != Some(&0) {
            return Ok(Err("a stranger is not let in".to_owned()));
        }
        // The broker may cut the connection before all is written.
        let packet = publish_packet(&format!("provision/v1/check/{}/check", persona.id), OVERSIZE);
        let written = stream.write_all(&packet).await;
        let answer = match written {
            Ok(()) => read_packet(&mut stream).await,
            Err(error) => Err(error),
        };
        Ok::<_, io::Error>(match answer.as_deref() {
            Ok([DISCONNECT, ..] | [PUBACK, _, _, TOO_LARGE, ..]) => {
                Ok(Found::Kept("refused".into()))
            }
            Ok([PUBACK, ..]) => Ok(Found::Broken("it is read to the end".into())),
            Ok(packet) => Err(format!("an odd answer: {packet:02x?}")),
            Err(error) if error.kind() == io::ErrorKind::InvalidData => Err(error.to_string()),
            Err(_) => Ok(Found::Kept("the connection was ended".into())),
        })
    };
    match timeout(ANSWER, said).await {
        Ok(Ok(tried)) => tried,
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err(format!("no answer within {} s", ANSWER.as_secs())),
    }
}

trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<S: AsyncRead + AsyncWrite + Unpin + Send> Stream for S {}

async fn open(persona: &Persona) -> Result<Box<dyn Stream>, String> {
    let broker = &persona.broker;
    let opened = async {
        let tcp = TcpStream::connect((broker.host(), broker.port())).await?;
        if !broker.is_tls() {
            return Ok(Box::new(tcp) as Box<dyn Stream>);
        }
        let name = ServerName::try_from(broker.host().to_owned()).map_err(io::Error::other)?;
        let tls = TlsConnector::from(Arc::clone(&persona.tls)).connect(name, tcp).await?;
        Ok::<_, io::Error>(Box::new(tls) as Box<dyn Stream>)
    };
    match timeout(ANSWER, opened).await {
        Ok(opened) => opened.map_err(|error| error.to_string()),
        Err(_) => Err(format!("no connection within {} s", ANSWER.as_secs())),
    }
}

/// MQTT 5, clean start, no properties.
fn connect_packet(id: &str) -> Vec<u8> {
    let body = [b"\0\x04MQTT\x05\x02\0\x3c\0", &string(id)[..]].concat();
    packet(0x10, &body)
}

/// At QoS 1, with packet identifier 1 and no properties.
fn publish_packet(topic: &str, length: usize) -> Vec<u8> {
    let head = [&string(topic)[..], b"\0\x01\0"].concat();
    packet(0x32, &[head, vec![b'x'; length]].concat())
}

fn string(text: &str) -> Vec<u8> {
    // Unwrap safety: client ids and topics of ours have a few dozen bytes.
    [&u16::try_from(text.len()).unwrap().to_be_bytes()[..], text.as_bytes()].concat()
}

/// A packet with its length (§2.1.4): seven bits a byte, the lowest first.
fn packet(first: u8, body: &[u8]) -> Vec<u8> {
    let (mut packet, mut length) = (vec![first], body.len());
    while length >= 0x80 {
        packet.push((length % 0x80) as u8 | 0x80);
        length /= 0x80;
    }
    packet.push(length as u8);
    packet.extend(body);
    packet
}

/// Reads a packet. Returns its type and what comes after the length. Refuses a packet that is
/// longer than any answer that is due.
async fn read_packet(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Vec<u8>> {
    let mut packet = vec![stream.read_u8().await?];
    let (mut length, mut shift) = (0, 0);
    loop {
        let byte = stream.read_u8().await?;
        length |= usize::from(byte & 0x7f) << shift;
        shift += 7;
        if byte & 0x80 == 0 {
            break;
        }
        if shift > 7 {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "a long answer"));
        }
    }
    packet.resize(1 + length, 0);
    stream.read_exact(&mut packet[1..]).await?;
    Ok(packet)
}

const CONNACK: u8 = 0x20;
const PUBACK: u8 = 0x40;
const DISCONNECT: u8 = 0xE0;
/// Reason code 0x95, after the packet identifier.
const TOO_LARGE: u8 = 0x95;
const OVERSIZE: usize = 128 * 1024;
/// The built-in broker gives ten seconds.
const SILENCE: Duration = Duration::from_secs(15);
const ANSWER: Duration = Duration::from_secs(5);

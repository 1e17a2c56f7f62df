//! An MQTT client that keeps no rules (MQTT 5, or 3.1.1 on request): it sends any bytes that a test
//! wants, and reads the answers.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rustls::ClientConfig;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// Long enough, even on a busy machine, for anything that should happen.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);

/// If nothing has arrived after this time, nothing will.
pub(crate) const SILENCE: Duration = Duration::from_millis(300);

pub(crate) const CONNACK: u8 = 0x20;
pub(crate) const PUBACK: u8 = 0x40;
pub(crate) const SUBACK: u8 = 0x90;
pub(crate) const DISCONNECT: u8 = 0xe0;

/// MQTT 5 §2.4.
pub(crate) const SUCCESS: u8 = 0;
pub(crate) const GRANTED_QOS_1: u8 = 1;
pub(crate) const NO_MATCHING_SUBSCRIBERS: u8 = 0x10;
pub(crate) const MALFORMED_PACKET: u8 = 0x81;
pub(crate) const CLIENT_ID_NOT_VALID: u8 = 0x85;
pub(crate) const BAD_USER_NAME_OR_PASSWORD: u8 = 0x86;
pub(crate) const NOT_AUTHORIZED: u8 = 0x87;
pub(crate) const SERVER_UNAVAILABLE: u8 = 0x88;
pub(crate) const SERVER_BUSY: u8 = 0x89;
pub(crate) const SERVER_SHUTTING_DOWN: u8 = 0x8b;
pub(crate) const BAD_AUTHENTICATION_METHOD: u8 = 0x8c;
pub(crate) const SESSION_TAKEN_OVER: u8 = 0x8e;
pub(crate) const QUOTA_EXCEEDED: u8 = 0x97;
pub(crate) const ADMINISTRATIVE_ACTION: u8 = 0x98;
pub(crate) const CONNECTION_RATE_EXCEEDED: u8 = 0x9f;
pub(crate) const TOPIC_ALIAS_INVALID: u8 = 0x94;
pub(crate) const PACKET_TOO_LARGE: u8 = 0x95;
pub(crate) const RETAIN_NOT_SUPPORTED: u8 = 0x9a;
pub(crate) const QOS_NOT_SUPPORTED: u8 = 0x9b;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Message {
    pub(crate) topic: String,
    pub(crate) payload: Vec<u8>,
    pub(crate) retain: bool,
}

pub(crate) struct Connect<'a> {
    pub(crate) client: &'a str,
    pub(crate) version: u8,
    pub(crate) clean_start: bool,
    pub(crate) keep_alive: u16,
    /// The topic of a Will, and whether it is to be retained.
    pub(crate) will: Option<(&'a str, bool)>,
    /// As they stand on the wire, without their length.
    pub(crate) will_properties: Vec<u8>,
    pub(crate) user_name: Option<&'a str>,
    pub(crate) password: Option<&'a [u8]>,
    /// As they stand on the wire, without their length.
    pub(crate) properties: Vec<u8>,
}

impl<'a> Connect<'a> {
    pub(crate) fn new(client: &'a str) -> Self {
        Self {
            client,
            version: 5,
            clean_start: true,
            keep_alive: 30,
            will: None,
            will_properties: Vec::new(),
            user_name: None,
            password: None,
            properties: Vec::new(),
        }
    }

    pub(crate) fn packet(&self) -> Vec<u8> {
        let mut body = string("MQTT");
        body.push(self.version);
        let mut flags = u8::from(self.clean_start) << 1;
        if let Some((_, retain)) = self.will {
            flags |= 0x04 | 0x08 | u8::from(retain) << 5;
        }
        flags |= u8::from(self.user_name.is_some()) << 7 | u8::from(self.password.is_some()) << 6;
        body.push(flags);
        body.extend(self.keep_alive.to_be_bytes());
        if self.version == 5 {
            body.push(self.properties.len().try_into().unwrap());
            body.extend(&self.properties);
        }
        body.extend(string(self.client));
        if let Some((topic, _)) = self.will {
            if self.version == 5 {
                body.push(self.will_properties.len().try_into().unwrap());
                body.extend(&self.will_properties);
            }
            body.extend(string(topic));
            body.extend(string("last words"));
        }
        if let Some(user_name) = self.user_name {
            body.extend(string(user_name));
        }
        if let Some(password) = self.password {
            body.extend(binary(password));
        }
        packet(0x10, body)
    }
}

pub(crate) fn packet(first: u8, body: Vec<u8>) -> Vec<u8> {
    let mut bytes = vec![first];
    let mut length = body.len();
    loop {
        let low = u8::try_from(length % 128).unwrap();
        length /= 128;
        bytes.push(if length > 0 { low | 0x80 } else { low });
        if length == 0 {
            break;
        }
    }
    bytes.extend(body);
    bytes
}

pub(crate) fn string(text: &str) -> Vec<u8> {
    binary(text.as_bytes())
}

fn binary(data: &[u8]) -> Vec<u8> {
    let mut bytes = u16::try_from(data.len()).unwrap().to_be_bytes().to_vec();
    bytes.extend(data);
    bytes
}

pub(crate) struct Raw {
    pub(crate) stream: TlsStream<TcpStream>,
    /// The body of the CONNACK.
    pub(crate) connack: Vec<u8>,
    version: u8,
    /// Whether messages are acknowledged.
    pub(crate) acknowledges: bool,
    inbox: VecDeque<Message>,
    next_id: u16,
}

impl Raw {
    /// TCP and TLS, no MQTT yet.
    pub(crate) async fn open(
        address: SocketAddr,
        tls: &Arc<ClientConfig>,
    ) -> std::io::Result<Self> {
        Self::over(TcpStream::connect(address).await?, tls).await
    }

    /// TLS over an existing TCP connection.
    pub(crate) async fn over(tcp: TcpStream, tls: &Arc<ClientConfig>) -> std::io::Result<Self> {
        tcp.set_nodelay(true)?;
        let stream =
            TlsConnector::from(tls.clone()).connect("localhost".try_into().unwrap(), tcp).await?;
        Ok(Self {
            stream,
            connack: Vec::new(),
            version: 5,
            acknowledges: true,
            inbox: VecDeque::new(),
            next_id: 1,
        })
    }

    /// Sends CONNECT. Returns the reason code of the CONNACK.
    pub(crate) async fn connect(&mut self, connect: &Connect<'_>) -> Option<u8> {
        self.version = connect.version;
        self.send(&connect.packet()).await;
        let (first, body) = self.packet().await?;
        assert_eq!(first, CONNACK);
        self.connack = body;
        Some(self.connack[1])
    }

    /// Subscribes at QoS 1. Returns the reason code of the SUBACK.
    pub(crate) async fn subscribe(&mut self, filter: &str) -> Option<u8> {
        self.subscribe_with(filter, 1).await
    }

    /// Subscribes with these options (MQTT 5 §3.8.3.1). Returns the reason code of the SUBACK.
    pub(crate) async fn subscribe_with(&mut self, filter: &str, options: u8) -> Option<u8> {
        let mut body = self.fresh_id();
        self.end_properties(&mut body);
        body.extend(string(filter));
        body.push(options);
        self.send(&packet(0x82, body)).await;
        self.answer(SUBACK).await?.last().copied()
    }

    /// Publishes at QoS 1. Returns the reason code of the PUBACK.
    pub(crate) async fn publish(&mut self, topic: &str, payload: &[u8]) -> Option<u8> {
        self.publish_flags(topic, payload, 0x32).await
    }

    pub(crate) async fn publish_retained(&mut self, topic: &str, payload: &[u8]) -> Option<u8> {
        self.publish_flags(topic, payload, 0x33).await
    }

    async fn publish_flags(&mut self, topic: &str, payload: &[u8], first: u8) -> Option<u8> {
        self.send_publish(topic, payload, first).await;
        let body = self.answer(PUBACK).await?;
        Some(body.get(2).copied().unwrap_or(SUCCESS))
    }

    /// Sends a PUBLISH and does not wait for its PUBACK.
    pub(crate) async fn send_publish(&mut self, topic: &str, payload: &[u8], first: u8) {
        self.send_publish_with(&[], topic, payload, first).await;
    }

    /// The same with properties as they stand on the wire, without their length.
    pub(crate) async fn send_publish_with(
        &mut self,
        properties: &[u8],
        topic: &str,
        payload: &[u8],
        first: u8,
    ) {
        let mut body = string(topic);
        if first & 0x06 != 0 {
            body.extend(self.fresh_id());
        }
        if self.version == 5 {
            body.push(properties.len().try_into().unwrap());
            body.extend(properties);
        }
        body.extend(payload);
        self.send(&packet(first, body)).await;
    }

    /// The next message, unless the connection ends or nothing arrives `within` that time.
    pub(crate) async fn message(&mut self, within: Duration) -> Option<Message> {
        if let Some(message) = self.inbox.pop_front() {
            return Some(message);
        }
        timeout(within, async {
            while self.inbox.is_empty() {
                self.packet().await?;
            }
            self.inbox.pop_front()
        })
        .await
        .ok()?
    }

    /// Reads until the broker ends the connection. Returns the reason code of its DISCONNECT, if it
    /// sent one.
    pub(crate) async fn end(&mut self) -> Result<Option<u8>, tokio::time::error::Elapsed> {
        timeout(PATIENCE, async {
            let mut reason = None;
            while let Some((first, body)) = self.packet().await {
                if first == DISCONNECT {
                    reason = Some(body.first().copied().unwrap_or(SUCCESS));
                }
            }
            reason
        })
        .await
    }

    /// Whether the connection still answers.
    pub(crate) async fn is_alive(&mut self) -> bool {
        self.send(&[0xc0, 0]).await;
        timeout(PATIENCE, self.answer(0xd0)).await.ok().flatten().is_some()
    }

    /// Ignores a broken pipe: the next read will notice it.
    pub(crate) async fn send(&mut self, bytes: &[u8]) {
        let _ = self.stream.write_all(bytes).await;
        let _ = self.stream.flush().await;
    }

    /// The body of the next packet that begins with `kind`.
    pub(crate) async fn answer(&mut self, kind: u8) -> Option<Vec<u8>> {
        timeout(PATIENCE, async {
            loop {
                let (first, body) = self.packet().await?;
                if first == kind {
                    return Some(body);
                }
            }
        })
        .await
        .ok()?
    }

    /// The first byte and the body of the next packet. Acknowledges messages, and also puts them
    /// into the inbox. `None` at the end.
    pub(crate) async fn packet(&mut self) -> Option<(u8, Vec<u8>)> {
        let first = self.stream.read_u8().await.ok()?;
        let (mut length, mut shift) = (0, 0);
        loop {
            let byte = self.stream.read_u8().await.ok()?;
            length |= usize::from(byte & 0x7f) << shift;
            shift += 7;
            if byte & 0x80 == 0 {
                break;
            }
        }
        let mut body = vec![0; length];
        self.stream.read_exact(&mut body).await.ok()?;
        if first >> 4 == 3 {
            self.keep(first, &body).await;
        }
        Some((first, body))
    }

    async fn keep(&mut self, first: u8, body: &[u8]) {
        let (topic, rest) = body[2..].split_at(usize::from(u16::from_be_bytes([body[0], body[1]])));
        let rest = if first & 0x06 != 0 {
            if self.acknowledges {
                self.send(&packet(PUBACK, rest[..2].to_vec())).await;
            }
            &rest[2..]
        } else {
            rest
        };
        // The broker's own properties are short, so their length is one byte.
        let payload = if self.version == 5 { &rest[1 + usize::from(rest[0])..] } else { rest };
        self.inbox.push_back(Message {
            topic: String::from_utf8(topic.to_vec()).unwrap(),
            payload: payload.to_vec(),
            retain: first & 1 != 0,
        });
    }

    fn fresh_id(&mut self) -> Vec<u8> {
        self.next_id += 1;
        self.next_id.to_be_bytes().to_vec()
    }

    fn end_properties(&self, body: &mut Vec<u8>) {
        if self.version == 5 {
            body.push(0);
        }
    }
}

//! An MQTT client so small that a measurement shows the broker and not the client.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use assay_tests::AssayDir;
use rustls::client::WantsClientCert;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, IpAddr, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ConfigBuilder, RootCertStore};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// A small MQTT 5 client over TLS.
pub(super) struct Client {
    stream: TlsStream<TcpStream>,
}

impl Client {
    pub(super) async fn connect(
        address: SocketAddr,
        tls: &Arc<ClientConfig>,
        id: &str,
        home: u8,
    ) -> Result<Self> {
        let socket = TcpSocket::new_v4()?;
        if home > 0 {
            socket.bind((Ipv4Addr::new(127, 0, 0, home), 0).into())?;
        }
        let tcp = socket.connect(address).await?;
        tcp.set_nodelay(true)?;
        let mut stream = TlsConnector::from(tls.clone()).connect(host(address), tcp).await?;
        stream.write_all(&connect_packet(id)).await?;
        let connack = read_packet(&mut stream).await?;
        ensure!(connack.get(3) == Some(&0), "CONNACK {connack:02x?}");
        Ok(Self { stream })
    }

    pub(super) async fn subscribe(&mut self, filter: &str) -> Result<()> {
        self.stream.write_all(&subscribe_packet(filter)).await?;
        let suback = read_packet(&mut self.stream).await?;
        ensure!(suback[0] == 0x90 && suback.last() == Some(&1), "SUBACK {suback:02x?}");
        Ok(())
    }

    /// Returns without waiting for the PUBACK.
    pub(super) async fn publish(&mut self, topic: &str, payload: &[u8]) -> Result<()> {
        self.stream.write_all(&publish_packet(topic, payload, 0x32)).await?;
        Ok(self.stream.flush().await?)
    }

    /// Waits for the next message, acknowledges it, and returns its topic.
    pub(super) async fn message(&mut self) -> Result<String> {
        loop {
            let packet = read_packet(&mut self.stream).await?;
            if packet[0] >> 4 != 3 {
                ensure!(packet[0] == 0x40, "{packet:02x?}");
                continue;
            }
            let body = &packet[1
                + packet[1..].iter().position(|byte| byte & 0x80 == 0).context("a length")?
                + 1..];
            let length = usize::from(u16::from_be_bytes([body[0], body[1]]));
            let topic = std::str::from_utf8(&body[2..2 + length])?.to_owned();
            let id = &body[2 + length..4 + length];
            self.stream.write_all(&[0x40, 2, id[0], id[1]]).await?;
            return Ok(topic);
        }
    }
}

pub(super) fn connect_packet(id: &str) -> Vec<u8> {
    // Receive Maximum 1024, as for our worker.
    let head = b"\0\x04MQTT\x05\x02\0\x3c\x03\x21\x04\0";
    packet(0x10, &[head, &string(id)[..]].concat())
}

pub(super) fn subscribe_packet(filter: &str) -> Vec<u8> {
    packet(0x82, &[b"\0\x01\0", &string(filter)[..], b"\x01"].concat())
}

pub(super) fn publish_packet(topic: &str, payload: &[u8], first: u8) -> Vec<u8> {
    packet(first, &[&string(topic)[..], b"\0\x01\0", payload].concat())
}

pub(super) fn string(text: &str) -> Vec<u8> {
    [&(text.len() as u16).to_be_bytes()[..], text.as_bytes()].concat()
}

pub(super) fn packet(first: u8, body: &[u8]) -> Vec<u8> {
    let mut packet = vec![first];
    let mut length = body.len();
    while length >= 128 {
        packet.push((length % 128) as u8 | 0x80);
        length /= 128;
    }
    packet.push(length as u8);
    packet.extend(body);
    packet
}

pub(super) async fn read_packet(
    stream: &mut (impl AsyncReadExt + Unpin),
) -> std::io::Result<Vec<u8>> {
    let mut packet = vec![stream.read_u8().await?];
    let (mut length, mut shift) = (0, 0);
    loop {
        let byte = stream.read_u8().await?;
        packet.push(byte);
        length |= usize::from(byte & 0x7f) << shift;
        shift += 7;
        if byte & 0x80 == 0 {
            break;
        }
    }
    let head = packet.len();
    packet.resize(head + length, 0);
    stream.read_exact(&mut packet[head..]).await?;
    Ok(packet)
}

pub(super) fn host(address: SocketAddr) -> ServerName<'static> {
    ServerName::IpAddress(IpAddr::from(address.ip()))
}

pub(super) fn operator_tls(dir: &AssayDir) -> Result<Arc<ClientConfig>> {
    tls(dir, Some("operator"))
}

pub(super) fn tls(dir: &AssayDir, who: Option<&str>) -> Result<Arc<ClientConfig>> {
    let config = tls_builder(dir)?;
    let Some(who) = who else { return Ok(config.with_no_client_auth().into()) };
    let chain = CertificateDer::pem_file_iter(dir.path().join(format!("{who}.pem")))?
        .collect::<Result<Vec<_>, _>>()?;
    let key = PrivateKeyDer::from_pem_file(dir.path().join(format!("{who}.key")))?;
    Ok(config.with_client_auth_cert(chain, key)?.into())
}

pub(super) fn tls_builder(dir: &AssayDir) -> Result<ConfigBuilder<ClientConfig, WantsClientCert>> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(dir.root_pem())?)?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config =
        ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
    Ok(config.with_root_certificates(roots))
}

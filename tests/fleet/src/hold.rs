//! Provisioned devices that connect with their certificates and stay, to see what a connection
//! costs a server.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use assay_wire::{CertificateList, DeviceId};
use indicatif::ProgressBar;
use rustls::pki_types::{CertificateDer, IpAddr, PrivatePkcs8KeyDer, ServerName};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::Semaphore;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// A device that has what it needs to connect.
pub(crate) struct Member {
    pub(crate) device_id: DeviceId,
    pub(crate) chain: CertificateList<1>,
    /// PKCS#8.
    pub(crate) key: Vec<u8>,
}

/// A silent MQTT connection. The clients of this program's other modes take too much memory for ten
/// thousand connections.
pub(crate) struct Held(TlsStream<TcpStream>);

/// Connects all of `members` to the operational listener, each under its own device id. The results
/// are in the order of the members.
pub(crate) async fn connect(
    members: Vec<Member>,
    listener: SocketAddr,
    roots: &RootCertStore,
    bar: &ProgressBar,
) -> Result<Vec<Result<Held>>> {
    rlimit::increase_nofile_limit(u64::MAX)?;
    let roots = Arc::new(roots.clone());
    let places = Arc::new(Semaphore::new(AT_ONCE));
    let mut connecting = Vec::new();
    for (number, member) in members.into_iter().enumerate() {
        let (roots, places, bar) = (Arc::clone(&roots), Arc::clone(&places), bar.clone());
        connecting.push(tokio::spawn(async move {
            // Unwrap safety: the semaphore is never closed.
            let _place = places.acquire().await.unwrap();
            let held = Held::open(number, &member, listener, &roots).await;
            bar.inc(1);
            held.with_context(|| format!("device {} cannot connect", member.device_id))
        }));
    }
    let mut connected = Vec::new();
    for connection in connecting {
        connected.push(connection.await?);
    }
    Ok(connected)
}

impl Held {
    async fn open(
        number: usize,
        member: &Member,
        listener: SocketAddr,
        roots: &RootCertStore,
    ) -> Result<Self> {
        let socket = TcpSocket::new_v4()?;
        socket.bind(SocketAddr::new(home(number).into(), 0))?;
        let tcp = socket.connect(listener).await?;
        tcp.set_nodelay(true)?;
        let name = ServerName::IpAddress(IpAddr::from(listener.ip()));
        let mut stream =
            TlsConnector::from(Arc::new(tls(member, roots)?)).connect(name, tcp).await?;
        stream.write_all(&connect_packet(member.device_id.as_str())?).await?;
        let [kind, length] = read(&mut stream).await?;
        ensure!(kind == CONNACK, "the broker answers CONNECT with {kind:#04x}");
        let mut body = vec![0; length.into()];
        stream.read_exact(&mut body).await?;
        let reason = body.get(1).context("CONNACK without a reason code")?;
        ensure!(*reason == 0, "the broker refuses the connection with reason code {reason:#04x}");
        Ok(Self(stream))
    }

    /// Fails if the broker has cut the connection.
    pub(crate) async fn ping(&mut self) -> Result<()> {
        self.0.write_all(&[PINGREQ, 0]).await?;
        ensure!(read(&mut self.0).await? == [PINGRESP, 0], "the broker does not answer a PINGREQ");
        Ok(())
    }
}

async fn read(stream: &mut TlsStream<TcpStream>) -> Result<[u8; 2]> {
    let mut head = [0; 2];
    stream.read_exact(&mut head).await?;
    Ok(head)
}

fn tls(member: &Member, roots: &RootCertStore) -> Result<ClientConfig> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let chain =
        member.chain.iter().map(|certificate| CertificateDer::from(certificate.to_vec())).collect();
    let key = PrivatePkcs8KeyDer::from(member.key.clone()).into();
    let certified = CertifiedKey::from_der(chain, key, &provider)?;
    let resolver = Arc::new(SingleCertAndKey::from(certified));
    Ok(assay_mqtt::tls_config(provider, roots.clone(), Some(resolver))?)
}

/// CONNECT of MQTT 5 (section 3.1) with Clean Start, and without properties.
fn connect_packet(client: &str) -> Result<Vec<u8>> {
    let mut body = b"\x00\x04MQTT\x05\x02".to_vec();
    body.extend(KEEP_ALIVE_S.to_be_bytes());
    body.push(0);
    body.extend(u16::try_from(client.len())?.to_be_bytes());
    body.extend(client.as_bytes());
    let length = u8::try_from(body.len())?;
    ensure!(length < 128, "a length of one byte");
    Ok([vec![CONNECT, length], body].concat())
}

/// The address from which a device connects. The operational listener takes no more than 1024
/// connections from one address.
fn home(number: usize) -> Ipv4Addr {
    let network = u32::from(Ipv4Addr::LOCALHOST);
    Ipv4Addr::from(network + (number / PER_ADDRESS) as u32)
}

const CONNECT: u8 = 0x10;
const CONNACK: u8 = 0x20;
const PINGREQ: u8 = 0xC0;
const PINGRESP: u8 = 0xD0;
/// The broker's keep-alive. All devices are connected and pinged within half of it.
const KEEP_ALIVE_S: u16 = 60;
/// Below 1024, because a connection that is given up counts until the broker notices.
const PER_ADDRESS: usize = 1000;
/// Handshakes under way.
const AT_ONCE: usize = 64;

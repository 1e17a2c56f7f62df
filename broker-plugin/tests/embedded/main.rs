//! The embedded broker over real sockets: strangers cannot harm it, and everybody else is served
//! meanwhile.

mod balancer;
mod conformance;
mod login;
mod named;
mod pki;
mod raw;

use std::fs;
use std::net::SocketAddr;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use assay_broker_plugin::access::Identity;
use assay_broker_plugin::certificate::ClientCertificate;
use assay_broker_plugin::doorkeeper::{Good, LoggedIn, NotGood, Register};
use assay_broker_plugin::embedded::{
    Balancers, ClientCertificates, EmbeddedBroker, EmbeddedBrokerConfig, Limits, Tls,
};
use assay_mqtt::rumqttc::v5::mqttbytes::QoS;
use assay_mqtt::rumqttc::v5::mqttbytes::v5::{Packet, Publish};
use assay_mqtt::rumqttc::v5::{AsyncClient, Event, EventLoop};
use assay_wire::{ClientId, Rights};
use pki::{Credential, Pki};
use raw::*;
use rustls::{CipherSuite, ClientConfig, HandshakeKind, RootCertStore, ServerConfig};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio::time::timeout;

const SHARED_REQUESTS: &str = "$share/ca/provision/v1/default/+/request";
const INTRODUCTION: Duration = Duration::from_secs(2);

/// What a test's register says of a certificate, and of a user name and password.
type Admit = dyn Fn(&Identity, &ClientCertificate) -> Result<Good, NotGood> + Send + Sync;
type Login = dyn Fn(&str, &[u8]) -> Result<LoggedIn, NotGood> + Send + Sync;

struct Answers {
    admit: Arc<Admit>,
    login: Arc<Login>,
}

impl Register for Answers {
    fn certificate(&self, certificate: &ClientCertificate) -> Result<Good, NotGood> {
        (self.admit)(&certificate.identity, certificate)
    }

    fn login(&self, user_name: &str, password: &[u8]) -> Result<LoggedIn, NotGood> {
        (self.login)(user_name, password)
    }
}

/// Every certificate is good.
fn everybody() -> Arc<Admit> {
    Arc::new(|_, _| Ok(Good::default()))
}

/// No password is good.
fn no_logins() -> Arc<Login> {
    Arc::new(|_, _| Err(NotGood::Refused("nobody logs in here".into())))
}

/// A running broker and its CA.
struct World {
    pki: Pki,
    broker: EmbeddedBroker,
    anonymous: Arc<ClientConfig>,
}

impl World {
    async fn new() -> Self {
        Self::with(limits(), everybody()).await
    }

    async fn with(limits: Limits, admit: Arc<Admit>) -> Self {
        let pki = Pki::new();
        let operational = pki.operational_tls(ClientCertificates::Mandatory);
        Self::with_tls(pki, operational, limits, admit, no_logins()).await
    }

    async fn with_tls(
        pki: Pki,
        operational_tls: ServerConfig,
        limits: Limits,
        admit: Arc<Admit>,
        login: Arc<Login>,
    ) -> Self {
        let world = Self::closed(pki, operational_tls, limits, admit, login).await;
        world.broker.open();
        world
    }

    /// With a balancer at 127.0.0.3.
    async fn behind_a_balancer(limits: Limits) -> Self {
        let pki = Pki::new();
        let operational = pki.operational_tls(ClientCertificates::Mandatory);
        let balancers = Balancers::new(vec!["127.0.0.3/32".parse().unwrap()]);
        let (admit, login) = (everybody(), no_logins());
        let world = Self::starting(pki, operational, limits, admit, login, balancers).await;
        world.broker.open();
        world
    }

    /// A world whose broker is not opened yet: it has no worker.
    async fn closed(
        pki: Pki,
        operational_tls: ServerConfig,
        limits: Limits,
        admit: Arc<Admit>,
        login: Arc<Login>,
    ) -> Self {
        let balancers = Balancers::default();
        Self::starting(pki, operational_tls, limits, admit, login, balancers).await
    }

    async fn starting(
        pki: Pki,
        operational_tls: ServerConfig,
        limits: Limits,
        admit: Arc<Admit>,
        login: Arc<Login>,
        balancers: Balancers,
    ) -> Self {
        let broker = EmbeddedBroker::start(EmbeddedBrokerConfig {
            bootstrap: "127.0.0.1:0".parse().unwrap(),
            operational: "127.0.0.1:0".parse().unwrap(),
            tls: Tls { bootstrap: pki.bootstrap_tls().into(), operational: operational_tls.into() },
            scope: "default".parse().unwrap(),
            register: Arc::new(Answers { admit, login }),
            limits,
            balancers,
        })
        .await
        .unwrap();
        let anonymous = pki.client_tls(None).into();
        Self { pki, broker, anonymous }
    }

    fn bootstrap(&self) -> SocketAddr {
        self.broker.bootstrap_addr()
    }

    /// A bootstrapping client, connected, and its client id.
    async fn stranger(&self) -> (Raw, String) {
        let client = fresh_client();
        let mut raw = Raw::open(self.bootstrap(), &self.anonymous).await.unwrap();
        assert_eq!(raw.connect(&Connect::new(&client)).await, Some(SUCCESS));
        (raw, client)
    }

    /// A TCP connection to the bootstrap listener that the balancer passes on after these bytes.
    async fn passed_on(&self, header: &[u8]) -> TcpStream {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.3:0".parse().unwrap()).unwrap();
        let mut stream = socket.connect(self.bootstrap()).await.unwrap();
        stream.write_all(header).await.unwrap();
        stream
    }

    /// A TLS connection from an address that no other test uses.
    async fn over_another_network(&self, address: SocketAddr, tls: &Arc<ClientConfig>) -> Raw {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.2:0".parse().unwrap()).unwrap();
        Raw::over(socket.connect(address).await.unwrap(), tls).await.unwrap()
    }

    /// The answer to a CONNECT on the bootstrap listener.
    async fn bootstrap_connect(&self, connect: &Connect<'_>) -> Option<u8> {
        Raw::open(self.bootstrap(), &self.anonymous).await.unwrap().connect(connect).await
    }

    /// Shows `credential` on the operational listener and sends CONNECT. A TLS 1.3 client learns
    /// that its certificate was refused only when it reads.
    async fn operational_connect(
        &self,
        credential: Option<&Credential>,
        connect: &Connect<'_>,
    ) -> Option<(Raw, u8)> {
        let tls = self.pki.client_tls(credential).into();
        let mut raw = Raw::open(self.broker.operational_addr(), &tls).await.ok()?;
        let reason = raw.connect(connect).await?;
        Some((raw, reason))
    }

    async fn identified(&self, name: &str, client: &str) -> Raw {
        self.connected_with(&self.pki.client(&[name]), client).await
    }

    async fn connected_with(&self, credential: &Credential, client: &str) -> Raw {
        let (raw, reason) =
            self.operational_connect(Some(credential), &Connect::new(client)).await.unwrap();
        assert_eq!(reason, SUCCESS);
        raw
    }

    async fn device(&self, id: &str) -> Raw {
        self.identified(&format!("urn:assay:device:default:{id}"), id).await
    }

    async fn operator(&self) -> Raw {
        self.identified("urn:assay:operator", "operator@desk").await
    }

    async fn worker(&self) -> Raw {
        let mut worker = self.identified("urn:assay:worker", "worker@1").await;
        assert_eq!(worker.subscribe(SHARED_REQUESTS).await, Some(GRANTED_QOS_1));
        worker
    }

    /// A worker that answers each request with `reply`.
    async fn answering_worker(&self, reply: Vec<u8>) -> JoinHandle<()> {
        let mut worker = self.worker().await;
        tokio::spawn(async move {
            while let Some(request) = worker.message(Duration::from_secs(60)).await {
                let topic = request.topic.replace("/request", "/reply");
                worker.send_publish(&topic, &reply, 0x32).await;
            }
        })
    }

    /// A worker that answers each request with the request. It uses the same MQTT client as our own
    /// programs, and does not reconnect.
    async fn echoing_worker(&self) -> JoinHandle<()> {
        let tls = self.pki.client_tls(Some(&self.pki.client(&["urn:assay:worker"])));
        let (worker, mut events) = polite(self.broker.operational_addr(), tls, "worker@1");
        worker.try_subscribe(SHARED_REQUESTS, QoS::AtLeastOnce).unwrap();
        until_subscribed(&mut events).await;
        tokio::spawn(async move {
            loop {
                let request = next_message(&mut events).await;
                let topic = String::from_utf8(request.topic.to_vec())
                    .unwrap()
                    .replace("/request", "/reply");
                worker.try_publish(topic, QoS::AtLeastOnce, false, request.payload).unwrap();
            }
        })
    }

    /// How long one whole exchange of a stranger takes: connect, subscribe, request, reply.
    async fn exchange(&self) -> Duration {
        let started = Instant::now();
        let (mut raw, client) = self.stranger().await;
        assert_eq!(raw.subscribe(&reply_topic(&client)).await, Some(GRANTED_QOS_1));
        assert_eq!(raw.publish(&request_topic(&client), b"request").await, Some(SUCCESS));
        let reply = raw.message(PATIENCE).await.expect("a reply");
        assert_eq!(reply.topic, reply_topic(&client));
        started.elapsed()
    }
}

fn limits() -> Limits {
    Limits { introduction: INTRODUCTION, ..Limits::default() }
}

fn fresh_client() -> String {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let mut random = [0; 16];
    random[..8].copy_from_slice(&NEXT.fetch_add(1, Ordering::Relaxed).to_be_bytes());
    ClientId::bootstrap(random).to_string()
}

fn request_topic(client: &str) -> String {
    format!("provision/v1/default/{client}/request")
}

fn reply_topic(client: &str) -> String {
    format!("provision/v1/default/{client}/reply")
}

#[tokio::test(flavor = "multi_thread")]
async fn request_reaches_a_sharing_worker_and_its_reply_the_client() {
    let world = World::new().await;
    let _worker = world.answering_worker(b"reply".to_vec()).await;
    let (mut raw, client) = world.stranger().await;
    assert_eq!(raw.subscribe(&reply_topic(&client)).await, Some(GRANTED_QOS_1));
    assert_eq!(raw.publish(&request_topic(&client), b"request").await, Some(SUCCESS));
    let reply = raw.message(PATIENCE).await.unwrap();
    assert_eq!(
        reply,
        Message { topic: reply_topic(&client), payload: b"reply".to_vec(), retain: false }
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn mqtt_3_1_1_client_is_served_on_the_same_topics() {
    let world = World::new().await;
    let _worker = world.answering_worker(b"reply".to_vec()).await;
    let client = fresh_client();
    let mut raw = Raw::open(world.bootstrap(), &world.anonymous).await.unwrap();
    let connect = Connect { version: 4, ..Connect::new(&client) };
    assert_eq!(raw.connect(&connect).await, Some(SUCCESS));
    assert_eq!(raw.subscribe(&reply_topic(&client)).await, Some(GRANTED_QOS_1));
    assert_eq!(raw.publish(&request_topic(&client), b"request").await, Some(SUCCESS));
    assert_eq!(raw.message(PATIENCE).await.unwrap().payload, b"reply");
}

#[tokio::test(flavor = "multi_thread")]
async fn mqtt_3_1_1_keep_alive_beyond_the_brokers_is_refused() {
    let world = World::new().await;
    for (keep_alive, accepted) in
        [(1, true), (60, true), (61, false), (u16::MAX, false), (0, false)]
    {
        let client = fresh_client();
        let connect = Connect { version: 4, keep_alive, ..Connect::new(&client) };
        assert_eq!(
            world.bootstrap_connect(&connect).await == Some(SUCCESS),
            accepted,
            "{keep_alive}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn stranger_overhears_nothing_whatever_it_subscribes_to() {
    let world = World::new().await;
    let _worker = world.answering_worker(b"reply".to_vec()).await;
    let (mut victim, victim_id) = world.stranger().await;
    assert_eq!(victim.subscribe(&reply_topic(&victim_id)).await, Some(GRANTED_QOS_1));

    let (mut snoop, snoop_id) = world.stranger().await;
    for filter in [
        "#",
        "+/#",
        "+/+/+/+/+",
        "provision/#",
        "provision/v1/+/+/request",
        "provision/v1/default/+/reply",
        "$share/x/#",
        SHARED_REQUESTS,
        "$share/x/provision/v1/default/+/request",
        "$SYS/#",
        &reply_topic(&victim_id),
        &request_topic(&victim_id),
        &request_topic(&snoop_id),
        "device/#",
        "fleet/#",
        "ca/#",
    ] {
        assert_eq!(snoop.subscribe(filter).await, Some(NOT_AUTHORIZED), "{filter}");
    }

    assert_eq!(victim.publish(&request_topic(&victim_id), b"request").await, Some(SUCCESS));
    assert_eq!(victim.message(PATIENCE).await.unwrap().payload, b"reply");
    assert_eq!(snoop.message(SILENCE).await, None);
    assert!(snoop.is_alive().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn stranger_speaks_for_nobody_else() {
    let world = World::new().await;
    let mut worker = world.worker().await;
    let mut operator = world.operator().await;
    for filter in ["device/#", "fleet/#", "ca/#"] {
        assert_eq!(operator.subscribe(filter).await, Some(GRANTED_QOS_1));
    }
    let (mut victim, victim_id) = world.stranger().await;
    assert_eq!(victim.subscribe(&reply_topic(&victim_id)).await, Some(GRANTED_QOS_1));

    let (mut forger, forger_id) = world.stranger().await;
    assert_eq!(forger.subscribe(&reply_topic(&forger_id)).await, Some(GRANTED_QOS_1));
    for topic in [
        &request_topic(&victim_id),
        &reply_topic(&victim_id),
        &reply_topic(&forger_id),
        "provision/v1/other/x/request",
        "device/v1/default/pump-17/command",
        "fleet/v1/default/pump-17/event",
        "ca/v1/default/crl",
        "$SYS/broker/uptime",
        "x",
    ] {
        assert_eq!(forger.publish(topic, b"forged").await, Some(NOT_AUTHORIZED), "{topic}");
    }

    for listener in [&mut worker, &mut operator, &mut victim, &mut forger] {
        assert_eq!(listener.message(SILENCE).await, None);
    }
    assert_eq!(forger.publish(&request_topic(&forger_id), b"own").await, Some(SUCCESS));
    assert_eq!(worker.message(PATIENCE).await.unwrap().payload, b"own");
}

#[tokio::test(flavor = "multi_thread")]
async fn will_of_a_stranger_is_refused_at_connect_and_never_published() {
    let world = World::new().await;
    let mut worker = world.worker().await;
    for version in [4, 5] {
        let client = fresh_client();
        let topic = request_topic(&client);
        for will in [
            (topic.as_str(), false),
            (topic.as_str(), true),
            ("device/v1/default/pump-17/x", false),
        ] {
            let connect = Connect { version, will: Some(will), ..Connect::new(&client) };
            let reason = world.bootstrap_connect(&connect).await;
            // MQTT 3.1.1 §3.2.2.3 has 5 for "not authorized".
            assert_eq!(reason, Some(if version == 5 { NOT_AUTHORIZED } else { 5 }), "{will:?}");
        }
    }
    assert_eq!(worker.message(SILENCE).await, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn retained_request_is_neither_delivered_nor_stored_and_its_sender_cut() {
    let world = World::new().await;
    let mut worker = world.worker().await;
    let (mut raw, client) = world.stranger().await;
    raw.publish_retained(&request_topic(&client), b"retained").await;
    assert!(raw.end().await.is_ok(), "the sender is cut");
    assert_eq!(worker.message(SILENCE).await, None);

    let mut late = world.identified("urn:assay:worker", "worker@2").await;
    assert_eq!(late.subscribe("provision/v1/default/+/request").await, Some(GRANTED_QOS_1));
    assert_eq!(late.message(SILENCE).await, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn client_id_of_another_form_is_refused_on_the_bootstrap_listener() {
    let world = World::new().await;
    let upper = fresh_client().replace('0', "A");
    let device = "5bkq5qaoj3xv4l6ys3nkxd3qpl3h3d6rgxqkkmlqeplggmljlfia";
    for client in ["", "+", "#", "pump-17", "worker@1", "operator@desk", &upper, device, "é"] {
        assert_eq!(
            world.bootstrap_connect(&Connect::new(client)).await,
            Some(CLIENT_ID_NOT_VALID),
            "{client}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn enhanced_authentication_is_refused() {
    let world = World::new().await;
    let client = fresh_client();
    // 0x15: Authentication Method (MQTT 5 §3.1.2.11.9).
    let connect = Connect { properties: b"\x15\0\x05PLAIN".to_vec(), ..Connect::new(&client) };
    assert_eq!(world.bootstrap_connect(&connect).await, Some(BAD_AUTHENTICATION_METHOD));
}

#[tokio::test(flavor = "multi_thread")]
async fn client_without_a_certificate_is_refused_on_the_operational_listener() {
    let world = World::new().await;
    for client in [fresh_client().as_str(), "pump-17", "worker@1"] {
        assert!(world.operational_connect(None, &Connect::new(client)).await.is_none(), "{client}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn operational_listener_refuses_clients_without_a_certificate_even_if_tls_lets_them_in() {
    for careless in
        [Pki::bootstrap_tls, |pki: &Pki| pki.operational_tls(ClientCertificates::Optional)]
    {
        let pki = Pki::new();
        let careless = careless(&pki);
        let world = World::with_tls(pki, careless, limits(), everybody(), no_logins()).await;
        for client in [fresh_client().as_str(), "pump-17", "worker@1"] {
            for (user_name, password) in [(None, None), (Some(client), Some(&b"x"[..]))] {
                let connect = Connect { user_name, password, ..Connect::new(client) };
                let (_, reason) = world.operational_connect(None, &connect).await.unwrap();
                assert_eq!(reason, BAD_USER_NAME_OR_PASSWORD, "{client}");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn strangers_wait_until_the_broker_is_opened_and_are_served_then() {
    let pki = Pki::new();
    let operational = pki.operational_tls(ClientCertificates::Mandatory);
    let world = World::closed(pki, operational, limits(), everybody(), no_logins()).await;
    // The port is bound, and the kernel accepts the connection.
    TcpStream::connect(world.bootstrap()).await.unwrap();
    let mut served = std::pin::pin!(world.stranger());
    assert!(timeout(SILENCE, &mut served).await.is_err(), "nobody accepts it yet");
    let _worker = world.worker().await;
    world.broker.open();
    assert!(timeout(PATIENCE, served).await.is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn request_of_a_device_waits_until_the_broker_is_opened() {
    let pki = Pki::new();
    let operational = pki.operational_tls(ClientCertificates::Mandatory);
    let world = World::closed(pki, operational, limits(), everybody(), no_logins()).await;
    let mut device = world.device("pump-17").await;
    device.send_publish("provision/v1/default/pump-17/request", b"early", 0x32).await;
    tokio::time::sleep(SILENCE).await;
    let mut worker = world.worker().await;
    assert!(worker.message(SILENCE).await.is_none());
    world.broker.open();
    assert_eq!(worker.message(PATIENCE).await.unwrap().payload, b"early");
}

#[tokio::test(flavor = "multi_thread")]
async fn replaced_certificates_are_for_new_connections_and_old_ones_stay() {
    let world = World::new().await;
    let (mut old, client) = world.stranger().await;
    let new = Pki::new();
    let operational = new.operational_tls(ClientCertificates::Mandatory);
    world.broker.replace_tls(Tls {
        bootstrap: new.bootstrap_tls().into(),
        operational: operational.into(),
    });
    assert!(
        Raw::open(world.bootstrap(), &world.anonymous).await.is_err(),
        "the old root does not vouch for it"
    );
    let anonymous = Arc::new(new.client_tls(None));
    let mut raw = Raw::open(world.bootstrap(), &anonymous).await.unwrap();
    assert_eq!(raw.connect(&Connect::new(&fresh_client())).await, Some(SUCCESS));
    let worker = new.client_tls(Some(&new.client(&["urn:assay:worker"]))).into();
    let mut raw = Raw::open(world.broker.operational_addr(), &worker).await.unwrap();
    assert_eq!(raw.connect(&Connect::new("worker@2")).await, Some(SUCCESS));
    assert!(
        world
            .operational_connect(
                Some(&world.pki.client(&["urn:assay:worker"])),
                &Connect::new("worker@1")
            )
            .await
            .is_none()
    );
    assert_eq!(
        old.subscribe(&format!("provision/v1/default/{client}/reply")).await,
        Some(GRANTED_QOS_1)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn unfit_certificates_are_refused_on_the_operational_listener() {
    let world = World::new().await;
    let worker = Connect::new("worker@1");
    for (what, credential) in [
        ("of another CA", Pki::new().client(&["urn:assay:worker"])),
        ("expired", world.pki.expired_client("urn:assay:worker")),
        ("for servers", world.pki.server_named_worker()),
        ("without a name", world.pki.client(&[])),
        ("with a stranger's name", world.pki.client(&["urn:example:worker"])),
        ("with two names", world.pki.client(&["urn:assay:worker", "urn:assay:operator"])),
    ] {
        assert!(world.operational_connect(Some(&credential), &worker).await.is_none(), "{what}");
    }
    let good = world.pki.client(&["urn:assay:worker"]);
    assert_eq!(world.operational_connect(Some(&good), &worker).await.unwrap().1, SUCCESS);
}

#[tokio::test(flavor = "multi_thread")]
async fn client_id_other_than_the_certificates_is_refused() {
    let world = World::new().await;
    for (name, clients) in [
        ("urn:assay:device:default:pump-17", ["pump-18", "worker@1", "operator@desk", ""]),
        ("urn:assay:worker", ["pump-17", "worker", "operator@desk", "worker1"]),
        ("urn:assay:operator", ["pump-17", "operator", "worker@1", "+"]),
    ] {
        let credential = world.pki.client(&[name]);
        for client in clients {
            let (_, reason) =
                world.operational_connect(Some(&credential), &Connect::new(client)).await.unwrap();
            assert_eq!(reason, CLIENT_ID_NOT_VALID, "{name} as {client}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn device_of_another_scope_is_refused() {
    let world = World::new().await;
    let credential = world.pki.client(&["urn:assay:device:other:pump-17"]);
    let (_, reason) =
        world.operational_connect(Some(&credential), &Connect::new("pump-17")).await.unwrap();
    assert_eq!(reason, NOT_AUTHORIZED);
}

#[tokio::test(flavor = "multi_thread")]
async fn device_and_stranger_can_never_share_a_client_id() {
    let world = World::new().await;
    let client = fresh_client();
    let credential = world.pki.client(&[&format!("urn:assay:device:default:{client}")]);
    assert!(world.operational_connect(Some(&credential), &Connect::new(&client)).await.is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn certificate_that_is_not_admitted_is_refused_at_each_connect() {
    let admit: Arc<Admit> = Arc::new(|identity, certificate| {
        assert!(!certificate.serial.is_empty() && certificate.sha256 != [0; 32]);
        match identity {
            Identity::Device { device_id, .. } if device_id.as_str() == "pump-17" => {
                Err(NotGood::Refused("revoked".into()))
            }
            _ => Ok(Good::default()),
        }
    });
    let world = World::with(limits(), admit).await;
    let credential = world.pki.client(&["urn:assay:device:default:pump-17"]);
    for _ in 0..2 {
        let (_, reason) =
            world.operational_connect(Some(&credential), &Connect::new("pump-17")).await.unwrap();
        assert_eq!(reason, NOT_AUTHORIZED);
    }
    assert!(world.device("pump-18").await.is_alive().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn panic_in_one_connection_leaves_the_others_served() {
    let admit: Arc<Admit> = Arc::new(|identity, _| match identity {
        Identity::Device { .. } => panic!("as the test wants it"),
        _ => Ok(Good::default()),
    });
    let world = World::with(limits(), admit).await;
    let _worker = world.answering_worker(b"reply".to_vec()).await;
    let credential = world.pki.client(&["urn:assay:device:default:pump-17"]);
    let (_, reason) =
        world.operational_connect(Some(&credential), &Connect::new("pump-17")).await.unwrap();
    assert_eq!(reason, SERVER_UNAVAILABLE);
    world.exchange().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn slow_admission_of_one_client_does_not_delay_others() {
    let admit: Arc<Admit> = Arc::new(|identity, _| {
        if matches!(identity, Identity::Device { .. }) {
            std::thread::sleep(Duration::from_secs(3));
        }
        Ok(Good::default())
    });
    let world = World::with(limits(), admit).await;
    let _worker = world.answering_worker(b"reply".to_vec()).await;
    let tls = Arc::new(
        world.pki.client_tls(Some(&world.pki.client(&["urn:assay:device:default:pump-17"]))),
    );
    let mut slow = Vec::new();
    for _ in 0..8 {
        let mut raw = Raw::open(world.broker.operational_addr(), &tls).await.unwrap();
        raw.send(&Connect::new("pump-17").packet()).await;
        slow.push(raw);
    }
    let took = world.exchange().await;
    assert!(took < Duration::from_secs(1), "{took:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn silent_tcp_connections_delay_nobody_and_are_cut() {
    let world = World::new().await;
    let _worker = world.answering_worker(b"reply".to_vec()).await;
    let mut silent = Vec::new();
    for address in [world.bootstrap(), world.broker.operational_addr()] {
        for _ in 0..100 {
            silent.push(TcpStream::connect(address).await.unwrap());
        }
    }
    let took = world.exchange().await;
    assert!(took < Duration::from_secs(1), "{took:?}");
    for mut stream in silent {
        let ended = timeout(2 * INTRODUCTION, stream.read(&mut [0])).await;
        assert!(matches!(ended, Ok(Ok(0) | Err(_))), "still open");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn connect_that_trickles_in_is_cut_at_the_deadline() {
    let world = World::new().await;
    let packet = Connect::new(&fresh_client()).packet();
    let mut raw = Raw::open(world.bootstrap(), &world.anonymous).await.unwrap();
    let started = Instant::now();
    for byte in &packet[..packet.len() - 1] {
        raw.send(&[*byte]).await;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    raw.end().await.unwrap();
    let took = started.elapsed();
    assert!((INTRODUCTION / 2..2 * INTRODUCTION).contains(&took), "{took:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn introduced_client_outlives_the_introduction_deadline() {
    let world = World::new().await;
    let (mut raw, _) = world.stranger().await;
    tokio::time::sleep(INTRODUCTION + SILENCE).await;
    assert!(raw.is_alive().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn stranger_that_does_not_leave_is_cut() {
    let limits = Limits { bootstrapping: Duration::from_secs(2), ..limits() };
    let world = World::with(limits, everybody()).await;
    let mut device = world.device("pump-17").await;
    let (mut raw, client) = world.stranger().await;
    assert_eq!(raw.subscribe(&reply_topic(&client)).await, Some(GRANTED_QOS_1));
    let started = Instant::now();
    while raw.is_alive().await {
        assert!(started.elapsed() < PATIENCE, "still there");
        tokio::time::sleep(SILENCE).await;
    }
    assert!(started.elapsed() > Duration::from_secs(1), "{:?}", started.elapsed());
    assert!(device.is_alive().await, "a certificate is as good as its own dates");
}

#[tokio::test(flavor = "multi_thread")]
async fn oversize_packet_cuts_its_sender_only() {
    let world = World::new().await;
    let mut worker = world.worker().await;
    let (mut other, other_id) = world.stranger().await;

    let (mut raw, client) = world.stranger().await;
    assert_eq!(raw.publish(&request_topic(&client), &[7; 16 * 1024]).await, Some(SUCCESS));
    assert_eq!(worker.message(PATIENCE).await.unwrap().payload.len(), 16 * 1024);
    raw.publish(&request_topic(&client), &[7; 18 * 1024]).await;
    raw.end().await.unwrap();

    // The length is enough: the broker reserves no memory for the 256 MB that it announces.
    let (mut boaster, _) = world.stranger().await;
    boaster.send(&[0x32, 0xff, 0xff, 0xff, 0x7f]).await;
    boaster.end().await.unwrap();

    assert_eq!(worker.message(SILENCE).await, None);
    assert_eq!(other.publish(&request_topic(&other_id), b"request").await, Some(SUCCESS));
    assert_eq!(worker.message(PATIENCE).await.unwrap().payload, b"request");
}

#[tokio::test(flavor = "multi_thread")]
async fn odd_topics_and_broken_packets_hurt_nobody_else() {
    let world = World::new().await;
    let _worker = world.answering_worker(b"reply".to_vec()).await;
    for topic in ["é/x", "é", "/", "//", "$share/x/y", "$SYS"] {
        let (mut raw, _) = world.stranger().await;
        assert_eq!(raw.publish(topic, b"x").await, Some(NOT_AUTHORIZED), "{topic}");
    }
    for bytes in [
        packet(0x32, b"\0\0\0\x01\0x".to_vec()),
        packet(0x32, b"\0\x01#\0\x01\0x".to_vec()),
        packet(0x32, b"\xff\xff".to_vec()),
        packet(0x36, b"\0\x01x\0\x01\0x".to_vec()),
        packet(0x32, b"\0\0\0\x01\x03\x23\0\x01x".to_vec()),
        packet(0x82, b"\0\x01\0\0\0\x01".to_vec()),
        packet(0x82, b"\0\x01\0".to_vec()),
        packet(0x00, Vec::new()),
        packet(0xf0, b"\x19".to_vec()),
        packet(0x10, b"\0\x04MQTT".to_vec()),
        vec![0x30, 0xff, 0xff, 0xff, 0xff, 0xff],
        b"GET / HTTP/1.1\r\n\r\n".to_vec(),
    ] {
        let (mut raw, _) = world.stranger().await;
        raw.send(&bytes).await;
        let mut unintroduced = Raw::open(world.bootstrap(), &world.anonymous).await.unwrap();
        unintroduced.send(&bytes).await;
    }
    world.exchange().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn second_connect_of_a_device_ends_the_first() {
    let world = World::new().await;
    let mut worker = world.worker().await;
    let mut first = world.device("pump-17").await;
    assert_eq!(first.subscribe(&reply_topic("pump-17")).await, Some(GRANTED_QOS_1));
    let mut second = world.device("pump-17").await;
    assert_eq!(first.end().await, Ok(Some(SESSION_TAKEN_OVER)));
    worker.publish(&reply_topic("pump-17"), b"early").await;
    assert_eq!(second.message(SILENCE).await, None, "subscriptions are not inherited");
    assert_eq!(second.subscribe(&reply_topic("pump-17")).await, Some(GRANTED_QOS_1));
    assert_eq!(worker.publish(&reply_topic("pump-17"), b"reply").await, Some(SUCCESS));
    assert_eq!(second.message(PATIENCE).await.unwrap().payload, b"reply");
}

#[tokio::test(flavor = "multi_thread")]
async fn device_that_comes_back_before_its_old_connection_is_given_up_misses_nothing() {
    let world = World::new().await;
    let mut operator = world.operator().await;
    let mut connections = Vec::new();
    for round in 0..200 {
        // The old connection stays open, as after a network drop.
        let id = format!("pump-{}", round % 5);
        let mut device = world.device(&id).await;
        let command = format!("device/v1/default/{id}/command");
        assert_eq!(device.subscribe(&command).await, Some(GRANTED_QOS_1));
        let said = format!("{round}").into_bytes();
        assert_eq!(operator.publish(&command, &said).await, Some(SUCCESS));
        assert_eq!(device.message(PATIENCE).await.expect("the command").payload, said);
        connections.push(device);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn bootstrapping_client_id_is_good_for_one_connection() {
    let world = World::new().await;
    let (mut first, client) = world.stranger().await;
    assert_eq!(world.bootstrap_connect(&Connect::new(&client)).await, Some(CLIENT_ID_NOT_VALID));
    assert!(first.is_alive().await, "a guess of its client id does not end a client");
    drop(first);
    tokio::time::sleep(SILENCE).await;
    assert_eq!(world.bootstrap_connect(&Connect::new(&client)).await, Some(CLIENT_ID_NOT_VALID));
}

#[tokio::test(flavor = "multi_thread")]
async fn session_does_not_outlive_its_connection() {
    let world = World::new().await;
    let mut worker = world.worker().await;
    let credential = world.pki.client(&["urn:assay:device:default:pump-17"]);
    // 0x11: Session Expiry Interval (MQTT 5 §3.1.2.11.2), here for ever.
    let persistent = Connect {
        clean_start: false,
        properties: b"\x11\xff\xff\xff\xff".to_vec(),
        ..Connect::new("pump-17")
    };
    let (mut device, _) = world.operational_connect(Some(&credential), &persistent).await.unwrap();
    assert!(device.connack.windows(5).any(|property| property == b"\x11\0\0\0\0"), "it is told so");
    assert_eq!(device.subscribe(&reply_topic("pump-17")).await, Some(GRANTED_QOS_1));
    drop(device);
    tokio::time::sleep(SILENCE).await;
    assert_eq!(
        worker.publish(&reply_topic("pump-17"), b"late").await,
        Some(NO_MATCHING_SUBSCRIBERS)
    );
    let (mut device, _) = world.operational_connect(Some(&credential), &persistent).await.unwrap();
    assert_eq!(device.connack[0], 0, "no session is present");
    assert_eq!(device.message(SILENCE).await, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn full_bootstrap_listener_makes_room_for_other_networks_only() {
    let world = World::with(Limits { bootstrap: 4, ..limits() }, everybody()).await;
    let mut inside = Vec::new();
    for _ in 0..4 {
        inside.push(world.stranger().await.0);
    }
    assert_eq!(world.bootstrap_connect(&Connect::new(&fresh_client())).await, Some(SERVER_BUSY));
    let client = fresh_client();
    let old = Connect { version: 4, ..Connect::new(&client) };
    // MQTT 3.1.1 §3.2.2.3: server unavailable.
    assert_eq!(world.bootstrap_connect(&old).await, Some(3));
    assert!(
        world.device("pump-17").await.is_alive().await,
        "the other listener has places of its own"
    );
    assert!(inside[0].is_alive().await);
    let mut other = world.over_another_network(world.bootstrap(), &world.anonymous).await;
    assert_eq!(other.connect(&Connect::new(&fresh_client())).await, Some(SUCCESS));
    assert_eq!(
        inside[0].end().await,
        Ok(Some(SERVER_BUSY)),
        "the oldest of the network that has most"
    );
    assert!(inside[1].is_alive().await);
    drop(inside);
    let started = Instant::now();
    while world.bootstrap_connect(&Connect::new(&fresh_client())).await != Some(SUCCESS) {
        assert!(started.elapsed() < PATIENCE, "the places are not given back");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn devices_beyond_the_total_are_told_to_come_later_and_a_worker_has_a_place() {
    let world = World::with(Limits { operational: 2, ..limits() }, everybody()).await;
    let _inside = [world.device("pump-1").await, world.device("pump-2").await];
    let credential = world.pki.client(&["urn:assay:device:default:pump-3"]);
    let refused =
        world.operational_connect(Some(&credential), &Connect::new("pump-3")).await.unwrap();
    assert_eq!(refused.1, SERVER_BUSY);
    assert!(world.device("pump-1").await.is_alive().await, "who is in may come back");
    world.worker().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn silent_connections_of_one_network_leave_room_for_those_of_others() {
    let world = World::with(Limits { waiting: 8, ..limits() }, everybody()).await;
    let mut silent = Vec::new();
    for _ in 0..8 {
        silent.push(TcpStream::connect(world.broker.operational_addr()).await.unwrap());
    }
    let tls =
        world.pki.client_tls(Some(&world.pki.client(&["urn:assay:device:default:pump-17"]))).into();
    let mut device = world.over_another_network(world.broker.operational_addr(), &tls).await;
    assert_eq!(device.connect(&Connect::new("pump-17")).await, Some(SUCCESS));
    // The oldest went first.
    assert_eq!(timeout(PATIENCE, silent[0].read(&mut [0])).await.unwrap().unwrap_or(0), 0);
    assert!(timeout(SILENCE, silent[7].read(&mut [0])).await.is_err(), "the newest waits on");
}

#[tokio::test(flavor = "multi_thread")]
async fn stranger_that_publishes_without_end_is_cut() {
    let world = World::new().await;
    let mut worker = world.worker().await;
    let (mut raw, client) = world.stranger().await;
    let mut accepted = 0;
    while raw.publish(&request_topic(&client), b"request").await == Some(SUCCESS) {
        accepted += 1;
        assert!(accepted < 100);
    }
    assert_eq!(accepted, 32);
    raw.end().await.unwrap();
    for _ in 0..accepted {
        assert!(worker.message(PATIENCE).await.is_some());
    }
    assert_eq!(worker.message(SILENCE).await, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn device_that_requests_without_end_is_cut() {
    let world = World::new().await;
    let mut worker = world.worker().await;
    let mut device = world.device("pump-17").await;
    for _ in 0..100 {
        assert_eq!(
            device.publish("device/v1/default/pump-17/telemetry", b"21").await,
            Some(NO_MATCHING_SUBSCRIBERS)
        );
    }
    let mut accepted = 0;
    while device.publish(&request_topic("pump-17"), b"request").await == Some(SUCCESS) {
        accepted += 1;
        assert!(accepted < 100);
    }
    assert_eq!(accepted, 32);
    device.end().await.unwrap();
    for _ in 0..accepted {
        assert!(worker.message(PATIENCE).await.is_some());
    }
    assert_eq!(worker.message(SILENCE).await, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn oversize_request_of_a_device_is_not_delivered_and_its_sender_cut() {
    let world = World::new().await;
    let mut worker = world.worker().await;
    let mut device = world.device("pump-17").await;
    assert_eq!(
        device.publish("device/v1/default/pump-17/photo", &[7; 60 * 1024]).await,
        Some(NO_MATCHING_SUBSCRIBERS)
    );
    assert_eq!(device.publish(&request_topic("pump-17"), &[7; 16 * 1024]).await, Some(SUCCESS));
    assert_eq!(worker.message(PATIENCE).await.unwrap().payload.len(), 16 * 1024);
    device.publish(&request_topic("pump-17"), &[7; 18 * 1024]).await;
    device.end().await.unwrap();
    assert_eq!(worker.message(SILENCE).await, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn request_at_qos_0_is_not_delivered_and_its_sender_cut() {
    let world = World::new().await;
    let mut worker = world.worker().await;
    let (stranger, client) = world.stranger().await;
    let device = world.device("pump-17").await;
    for (mut raw, client) in [(stranger, client.as_str()), (device, "pump-17")] {
        raw.send_publish(&request_topic(client), b"request", 0x30).await;
        raw.end().await.unwrap();
    }
    assert_eq!(worker.message(SILENCE).await, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn strangers_that_never_read_their_replies_do_not_hold_up_the_worker() {
    let world = World::new().await;
    let _worker = world.answering_worker(vec![7; 15 * 1024]).await;
    let mut deaf = Vec::new();
    for _ in 0..4 {
        let client = fresh_client();
        let mut raw = Raw::open(world.bootstrap(), &world.anonymous).await.unwrap();
        // 0x21: Receive Maximum (MQTT 5 §3.1.2.11.3), so that the broker must hold all but one
        // reply.
        let connect = Connect { properties: b"\x21\0\x01".to_vec(), ..Connect::new(&client) };
        assert_eq!(raw.connect(&connect).await, Some(SUCCESS));
        assert_eq!(raw.subscribe(&reply_topic(&client)).await, Some(GRANTED_QOS_1));
        for _ in 0..32 {
            raw.send_publish(&request_topic(&client), b"request", 0x32).await;
        }
        deaf.push(raw);
    }
    let took = world.exchange().await;
    assert!(took < Duration::from_secs(1), "{took:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn worker_that_comes_back_is_given_requests_again() {
    let world = World::new().await;
    let worker = world.answering_worker(b"first".to_vec()).await;
    world.exchange().await;
    worker.abort();
    assert!(worker.await.unwrap_err().is_cancelled());
    let _worker = world.answering_worker(b"second".to_vec()).await;
    for _ in 0..4 {
        world.exchange().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_are_shared_among_the_workers_of_a_group() {
    let world = World::new().await;
    let mut workers =
        [world.worker().await, world.identified("urn:assay:worker", "worker@2").await];
    assert_eq!(workers[1].subscribe(SHARED_REQUESTS).await, Some(GRANTED_QOS_1));
    let (mut raw, client) = world.stranger().await;
    for _ in 0..10 {
        assert_eq!(raw.publish(&request_topic(&client), b"request").await, Some(SUCCESS));
    }
    for worker in &mut workers {
        for _ in 0..5 {
            assert!(worker.message(PATIENCE).await.is_some());
        }
        assert_eq!(worker.message(SILENCE).await, None);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn worker_is_given_as_many_requests_as_it_takes_before_it_acknowledges_any() {
    let world = World::new().await;
    let tls = world.pki.client_tls(Some(&world.pki.client(&["urn:assay:worker"])));
    let options = assay_mqtt::Client {
        id: "worker@1".into(),
        window: 16,
        receive_maximum: 1024,
        manual_acks: true,
    };
    let url =
        format!("mqtts://localhost:{}", world.broker.operational_addr().port()).parse().unwrap();
    let (worker, mut events) = assay_mqtt::connect(&url, &Arc::new(tls), options);
    worker.try_subscribe(SHARED_REQUESTS, QoS::AtLeastOnce).unwrap();
    until_subscribed(&mut events).await;
    let (strangers, each) = (10, 20);
    let asking = async {
        for _ in 0..strangers {
            let (mut raw, client) = world.stranger().await;
            for _ in 0..each {
                assert_eq!(raw.publish(&request_topic(&client), b"request").await, Some(SUCCESS));
            }
        }
    };
    let answering = timeout(PATIENCE, async {
        for _ in 0..strangers * each {
            next_message(&mut events).await;
        }
    });
    let ((), answered) = tokio::join!(asking, answering);
    answered.expect("none is held back until another is acknowledged");
}

#[tokio::test(flavor = "multi_thread")]
async fn device_and_operator_talk_below_the_devices_tree_only() {
    let world = World::new().await;
    let mut operator = world.operator().await;
    assert_eq!(operator.subscribe("device/v1/+/+/#").await, Some(GRANTED_QOS_1));
    let mut device = world.device("pump-17").await;
    let mut other = world.device("pump-18").await;
    assert_eq!(other.subscribe("device/v1/default/pump-17/#").await, Some(NOT_AUTHORIZED));
    assert_eq!(other.subscribe("device/v1/default/pump-18/#").await, Some(GRANTED_QOS_1));

    assert_eq!(device.publish("device/v1/default/pump-17/telemetry", b"21").await, Some(SUCCESS));
    assert_eq!(
        device.publish("device/v1/default/pump-18/telemetry", b"22").await,
        Some(NOT_AUTHORIZED)
    );
    assert_eq!(
        operator.publish("device/v1/default/pump-17/setting", b"stop").await,
        Some(NOT_AUTHORIZED)
    );
    let heard = operator.message(PATIENCE).await.unwrap();
    assert_eq!(
        (heard.topic.as_str(), heard.payload.as_slice()),
        ("device/v1/default/pump-17/telemetry", &b"21"[..])
    );
    assert_eq!(operator.message(SILENCE).await, None);
    let command = "device/v1/default/pump-17/command/stop";
    assert_eq!(device.subscribe("device/v1/default/pump-17/command/#").await, Some(GRANTED_QOS_1));
    assert_eq!(operator.publish(command, b"now").await, Some(SUCCESS));
    assert_eq!(device.message(PATIENCE).await.unwrap().topic, command);
    assert_eq!(other.message(SILENCE).await, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn device_leaves_a_will_for_its_own_presence() {
    let world = World::new().await;
    let mut operator = world.operator().await;
    assert_eq!(operator.subscribe("device/v1/default/+/presence").await, Some(GRANTED_QOS_1));
    let presence = "device/v1/default/pump-17/presence";
    let credential = world.pki.client(&["urn:assay:device:default:pump-17"]);
    for version in [4, 5] {
        let connect = Connect { version, will: Some((presence, true)), ..Connect::new("pump-17") };
        let (device, reason) =
            world.operational_connect(Some(&credential), &connect).await.unwrap();
        assert_eq!(reason, SUCCESS);
        drop(device);
        let heard = operator.message(PATIENCE).await.unwrap();
        assert_eq!(
            (heard.topic.as_str(), heard.payload.as_slice()),
            (presence, &b"last words"[..])
        );
        // The Will of a client that disconnects is not published.
        let (mut device, _) = world.operational_connect(Some(&credential), &connect).await.unwrap();
        device.send(&[0xe0, 0]).await;
        device.end().await.unwrap();
        assert_eq!(operator.message(SILENCE).await, None);
    }
    // If a connection is taken over, its Will is published before the new one is let in.
    let connect = Connect { will: Some((presence, true)), ..Connect::new("pump-17") };
    let (_old, _) = world.operational_connect(Some(&credential), &connect).await.unwrap();
    let (mut new, _) = world.operational_connect(Some(&credential), &connect).await.unwrap();
    assert_eq!(new.publish_retained(presence, b"here").await, Some(SUCCESS));
    assert_eq!(operator.message(PATIENCE).await.unwrap().payload, b"last words");
    assert_eq!(operator.message(PATIENCE).await.unwrap().payload, b"here");
    let mut late = world.identified("urn:assay:operator", "operator@late").await;
    assert_eq!(late.subscribe("device/#").await, Some(GRANTED_QOS_1));
    let kept = late.message(PATIENCE).await.unwrap();
    assert_eq!(kept, Message { topic: presence.into(), payload: b"here".to_vec(), retain: true });
}

#[tokio::test(flavor = "multi_thread")]
async fn will_for_any_other_topic_is_refused() {
    let world = World::new().await;
    let mut operator = world.operator().await;
    assert_eq!(operator.subscribe("device/#").await, Some(GRANTED_QOS_1));
    let will = Some(("device/v1/default/pump-17/offline", false));
    for (name, client) in [
        ("urn:assay:device:default:pump-17", "pump-17"),
        ("urn:assay:worker", "worker@1"),
        ("urn:assay:operator", "operator@2"),
    ] {
        let credential = world.pki.client(&[name]);
        let connect = Connect { will, ..Connect::new(client) };
        assert_eq!(
            world.operational_connect(Some(&credential), &connect).await.unwrap().1,
            NOT_AUTHORIZED,
            "{name}"
        );
    }
    assert_eq!(operator.message(SILENCE).await, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_ca_says_to_everyone_is_retained_and_no_reply_is() {
    let world = World::new().await;
    let mut worker = world.worker().await;
    worker.publish_retained("ca/v1/default/chain", b"chain").await;
    let mut device = world.device("pump-17").await;
    assert_eq!(device.subscribe("ca/v1/default/chain").await, Some(GRANTED_QOS_1));
    let chain = device.message(PATIENCE).await.unwrap();
    assert_eq!(
        chain,
        Message { topic: "ca/v1/default/chain".into(), payload: b"chain".to_vec(), retain: true }
    );

    worker.send_publish("provision/v1/default/pump-17/reply", b"reply", 0x33).await;
    assert_eq!(worker.end().await, Ok(Some(RETAIN_NOT_SUPPORTED)));
    assert_eq!(device.subscribe("provision/v1/default/pump-17/reply").await, Some(GRANTED_QOS_1));
    assert_eq!(device.message(SILENCE).await, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn device_retains_a_few_short_messages_in_its_own_tree() {
    let world = World::new().await;
    let mut device = world.device("pump-17").await;
    for number in 0..4 {
        let topic = format!("device/v1/default/pump-17/{number}");
        assert_eq!(device.publish_retained(&topic, b"old").await, Some(NO_MATCHING_SUBSCRIBERS));
        assert_eq!(
            device.publish_retained(&topic, topic.as_bytes()).await,
            Some(NO_MATCHING_SUBSCRIBERS)
        );
    }
    assert_eq!(
        device.publish_retained("device/v1/default/pump-17/5", b"5").await,
        Some(QUOTA_EXCEEDED)
    );
    // An empty message removes what is retained (MQTT 5 §3.3.1-6).
    device.publish_retained("device/v1/default/pump-17/0", b"").await;
    let mut operator = world.operator().await;
    assert_eq!(operator.subscribe("device/v1/+/pump-17/#").await, Some(GRANTED_QOS_1));
    for number in 1..4 {
        let kept = operator.message(PATIENCE).await.unwrap();
        assert_eq!((kept.topic.as_bytes(), kept.retain), (&*kept.payload, true), "{number}");
    }
    assert_eq!(operator.message(SILENCE).await, None);
    device.send_publish("device/v1/default/pump-17/1", &[7; 2000], 0x33).await;
    assert_eq!(device.end().await, Ok(Some(QUOTA_EXCEEDED)));
}

#[tokio::test(flavor = "multi_thread")]
async fn client_that_does_not_read_is_cut_and_delays_nobody() {
    let world = World::new().await;
    let mut operator = world.operator().await;
    let credential = world.pki.client(&["urn:assay:device:default:pump-17"]);
    // 0x21: Receive Maximum (MQTT 5 §3.1.2.11.3).
    let connect = Connect { properties: b"\x21\0\x01".to_vec(), ..Connect::new("pump-17") };
    let (mut deaf, _) = world.operational_connect(Some(&credential), &connect).await.unwrap();
    assert_eq!(deaf.subscribe("device/v1/default/pump-17/command").await, Some(GRANTED_QOS_1));
    let started = Instant::now();
    for _ in 0..300 {
        operator.publish("device/v1/default/pump-17/command", b"command").await;
    }
    assert!(started.elapsed() < Duration::from_secs(1), "{:?}", started.elapsed());
    assert_eq!(deaf.end().await, Ok(Some(QUOTA_EXCEEDED)));
    assert_eq!(
        operator.publish("device/v1/default/pump-17/command", b"command").await,
        Some(NO_MATCHING_SUBSCRIBERS)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn packet_of_more_filters_than_a_client_may_hold_costs_it_the_connection() {
    let world = World::new().await;
    for first in [0x82, 0xa2] {
        let mut device = world.device("pump-17").await;
        let filter =
            [string("device/v1/default/pump-17/x"), if first == 0x82 { vec![1] } else { vec![] }]
                .concat();
        device.send(&packet(first, [&b"\0\x01\0"[..], &filter.repeat(65)].concat())).await;
        assert_eq!(device.end().await, Ok(Some(QUOTA_EXCEEDED)));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn will_of_many_properties_is_refused() {
    let world = World::new().await;
    let credential = world.pki.client(&["urn:assay:device:default:pump-17"]);
    // Twenty user properties take 5 bytes each on the wire, and much more in memory.
    let properties = b"\x26\0\0\0\0".repeat(20);
    let presence = "device/v1/default/pump-17/presence";
    let mut connect = Connect { will: Some((presence, true)), ..Connect::new("pump-17") };
    assert_eq!(world.operational_connect(Some(&credential), &connect).await.unwrap().1, SUCCESS);
    connect.will_properties = properties;
    assert_eq!(
        world.operational_connect(Some(&credential), &connect).await.unwrap().1,
        QUOTA_EXCEEDED
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn client_that_takes_only_short_packets_is_refused() {
    let world = World::new().await;
    let client = fresh_client();
    // 0x27: Maximum Packet Size (MQTT 5 §3.1.2.11.4).
    let connect = |size| Connect { properties: vec![0x27, 0, 0, 0, size], ..Connect::new(&client) };
    assert_eq!(world.bootstrap_connect(&connect(127)).await, Some(PACKET_TOO_LARGE));
    assert_eq!(world.bootstrap_connect(&connect(128)).await, Some(SUCCESS));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_client_has_used_up_is_used_up_when_it_comes_back() {
    let world = World::new().await;
    let credential = world.pki.client(&["urn:assay:device:default:pump-17"]);
    for _ in 0..2 {
        let mut device = world.connected_with(&credential, "pump-17").await;
        device.send(&[0xc0, 0].repeat(2000)).await;
        for _ in 0..512 {
            device.answer(0xd0).await.unwrap();
        }
    }
    let (_, told) =
        world.operational_connect(Some(&credential), &Connect::new("pump-17")).await.unwrap();
    assert_eq!(told, CONNECTION_RATE_EXCEEDED);
}

#[tokio::test(flavor = "multi_thread")]
async fn keep_alive_of_a_second_shortens_no_pause() {
    let world = World::new().await;
    let credential = world.pki.client(&["urn:assay:device:default:pump-17"]);
    let connect = Connect { version: 4, keep_alive: 1, ..Connect::new("pump-17") };
    let (mut device, _) = world.operational_connect(Some(&credential), &connect).await.unwrap();
    let started = Instant::now();
    // 488 packets more than may come at once, at 128 a second, take longer than one and a half
    // keep-alives.
    device.send(&[0xc0, 0].repeat(1000)).await;
    for _ in 0..1000 {
        device.answer(0xd0).await.unwrap();
    }
    assert!(device.is_alive().await);
    assert!(started.elapsed() > Duration::from_secs(3), "{:?}", started.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn client_that_reads_slowly_is_heard_meanwhile() {
    let world = World::new().await;
    let credential = world.pki.client(&["urn:assay:operator"]);
    let connect = Connect { version: 4, keep_alive: 1, ..Connect::new("operator@slow") };
    let (mut operator, _) = world.operational_connect(Some(&credential), &connect).await.unwrap();
    assert_eq!(operator.subscribe_with("fleet/#", 0).await, Some(SUCCESS));
    let mut worker = world.worker().await;
    for _ in 0..1000 {
        worker.send_publish("fleet/v1/default/pump-17/event", &[7; 60 * 1024], 0x30).await;
    }
    // Its backlog fills all buffers for longer than one and a half keep-alives.
    for _ in 0..60 {
        operator.send(&[0xc0, 0]).await;
        assert!(operator.message(PATIENCE).await.is_some(), "it is cut as silent");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn network_of_strangers_that_are_cut_again_and_again_is_let_in_seldom() {
    let world = World::with(Limits { arrivals_per_network: 100, ..limits() }, everybody()).await;
    let offend = async || {
        let Ok(mut raw) = Raw::open(world.bootstrap(), &world.anonymous).await else {
            return false;
        };
        if raw.connect(&Connect::new(&fresh_client())).await.is_none() {
            return false;
        }
        raw.send(&packet(0xf0, vec![])).await;
        raw.end().await.is_ok()
    };
    let mut times = 0;
    while offend().await {
        times += 1;
        assert!(times < 20);
    }
    assert!((4..10).contains(&times), "five seconds' worth of arrivals are five offences: {times}");
    let mut other = world.over_another_network(world.bootstrap(), &world.anonymous).await;
    assert_eq!(other.connect(&Connect::new(&fresh_client())).await, Some(SUCCESS));
    assert!(world.device("pump-17").await.is_alive().await, "the other listener counts for itself");
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_of_a_client_id_are_counted_over_all_its_connections() {
    let world = World::new().await;
    let _worker = world.answering_worker(b"reply".to_vec()).await;
    let mut accepted = 0;
    'connections: for _ in 0..10 {
        let mut device = world.device("pump-17").await;
        for _ in 0..10 {
            if device.publish(&request_topic("pump-17"), b"request").await != Some(SUCCESS) {
                break 'connections;
            }
            accepted += 1;
        }
    }
    assert_eq!(accepted, 32);
}

#[tokio::test(flavor = "multi_thread")]
async fn client_that_sends_without_end_is_heard_at_its_pace() {
    let world = World::new().await;
    let mut device = world.device("pump-17").await;
    let pings = [0xc0, 0].repeat(700);
    device.send(&pings).await;
    let started = Instant::now();
    for _ in 0..700 {
        device.answer(0xd0).await.unwrap();
    }
    device.send(&[0xc0, 0]).await;
    device.answer(0xd0).await.unwrap();
    let took = started.elapsed();
    assert!(
        (Duration::from_secs(1)..Duration::from_secs(4)).contains(&took),
        "188 beyond 512, 128 a second: {took:?}"
    );
}

/// Each connection costs the broker a handshake.
#[tokio::test(flavor = "multi_thread")]
async fn device_that_connects_without_end_is_let_in_at_its_pace() {
    let world = World::new().await;
    let credential = world.pki.client(&["urn:assay:device:default:pump-17"]);
    let mut answers = Vec::new();
    while answers.len() < 200 && !answers.contains(&CONNECTION_RATE_EXCEEDED) {
        let connect = Connect::new("pump-17");
        answers.push(world.operational_connect(Some(&credential), &connect).await.unwrap().1);
    }
    assert_eq!(answers.last(), Some(&CONNECTION_RATE_EXCEEDED));
    assert!(answers.len() > 60, "{answers:02x?}");
    let old = Connect { version: 4, ..Connect::new("pump-17") };
    let mut answers = Vec::new();
    for _ in 0..30 {
        answers.push(world.operational_connect(Some(&credential), &old).await.unwrap().1);
    }
    // On a slow machine, the time may suffice for one more.
    assert!(
        answers.contains(&3) && answers.iter().all(|answer| [SUCCESS, 3].contains(answer)),
        "{answers:02x?}"
    );
    // Another device of its network is let in, too.
    world.device("pump-18").await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    world.device("pump-17").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn certificate_that_is_shown_without_end_counts_though_it_lets_nobody_in() {
    let world = World::new().await;
    let credential = world.pki.client(&["urn:assay:device:default:pump-17"]);
    let mut answers = Vec::new();
    while answers.len() < 200 && !answers.contains(&CONNECTION_RATE_EXCEEDED) {
        answers.push(
            world.operational_connect(Some(&credential), &Connect::new("another")).await.unwrap().1,
        );
    }
    assert_eq!(answers.last(), Some(&CONNECTION_RATE_EXCEEDED));
    assert!(answers.len() > 64, "{answers:02x?}");
    // Another certificate with the same name is let in, because somebody who stole the issuing key
    // may have made the first one.
    world.device("pump-17").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn device_that_is_cut_again_and_again_is_let_in_seldom() {
    let world = World::new().await;
    let credential = world.pki.client(&["urn:assay:device:default:pump-17"]);
    let mut times = 0;
    loop {
        let (mut raw, reason) =
            world.operational_connect(Some(&credential), &Connect::new("pump-17")).await.unwrap();
        if reason == CONNECTION_RATE_EXCEEDED {
            break;
        }
        raw.send(&packet(0xf0, vec![])).await;
        raw.end().await.unwrap();
        times += 1;
        assert!(times < 10);
    }
    assert!((3..6).contains(&times), "{times}");
    world.device("pump-18").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn devices_in_haste_wait_for_each_other_and_nobody_else_does() {
    let world = World::new().await;
    let mut hasty = Vec::new();
    for number in 0..100 {
        hasty.push(world.device(&format!("hasty-{number}")).await);
    }
    let mut calm = world.device("calm").await;
    let started = Instant::now();
    let mut all = tokio::task::JoinSet::new();
    for mut device in hasty {
        all.spawn(async move {
            device.send(&[0xc0, 0].repeat(500)).await;
            for _ in 0..500 {
                device.answer(0xd0).await.unwrap();
            }
        });
    }
    tokio::time::sleep(Duration::from_millis(300)).await;
    let asked = Instant::now();
    calm.send(&[0xc0, 0]).await;
    calm.answer(0xd0).await.unwrap();
    let (took, busy) = (asked.elapsed(), !all.is_empty());
    all.join_all().await;
    assert!(busy && took < Duration::from_millis(300), "{took:?}");
    let took = started.elapsed();
    assert!(
        took > Duration::from_millis(900),
        "37,200 beyond 128 each, 16,384 at once and in a second: {took:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn mqtt_3_1_1_client_gets_mqtt_3_1_1_acknowledgements() {
    let world = World::new().await;
    let _worker = world.worker().await;
    let client = fresh_client();
    let mut raw = Raw::open(world.bootstrap(), &world.anonymous).await.unwrap();
    assert_eq!(raw.connect(&Connect { version: 4, ..Connect::new(&client) }).await, Some(SUCCESS));
    assert_eq!(raw.connack, [0, 0]);
    raw.send_publish(&request_topic(&client), b"request", 0x32).await;
    assert_eq!(raw.answer(PUBACK).await.unwrap().len(), 2);
    raw.send_publish("provision/v1/other/x/request", b"request", 0x32).await;
    assert_eq!(raw.answer(PUBACK).await.unwrap().len(), 2);
    assert_eq!(raw.subscribe(&reply_topic(&client)).await, Some(GRANTED_QOS_1));
    assert_eq!(raw.subscribe("#").await, Some(0x80));
    raw.send(&packet(0xa2, [&[0, 9][..], &[0, 1], b"#"].concat())).await;
    assert_eq!(raw.answer(0xb0).await.unwrap(), [0, 9]);
}

/// A PUBACK of MQTT 3.1.1 says "received" and cannot say that the message was dropped.
#[tokio::test(flavor = "multi_thread")]
async fn request_that_no_worker_hears_is_not_acknowledged_in_mqtt_3_1_1() {
    let world = World::new().await;
    let client = fresh_client();
    let mut raw = Raw::open(world.bootstrap(), &world.anonymous).await.unwrap();
    assert_eq!(raw.connect(&Connect { version: 4, ..Connect::new(&client) }).await, Some(SUCCESS));
    assert_eq!(raw.publish(&request_topic(&client), b"request").await, None);
    let (mut raw, client) = world.stranger().await;
    assert_eq!(
        raw.publish(&request_topic(&client), b"request").await,
        Some(NO_MATCHING_SUBSCRIBERS)
    );
}

/// What a register says of every certificate, until pump-17's is revoked.
fn all_but_pump_17_if(revoked: &Arc<AtomicBool>) -> Arc<Admit> {
    let revoked = revoked.clone();
    Arc::new(move |identity, _| match identity {
        Identity::Device { device_id, .. }
            if device_id.as_str() == "pump-17" && revoked.load(Ordering::SeqCst) =>
        {
            Err(NotGood::Refused("revoked".into()))
        }
        _ => Ok(Good::default()),
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn device_whose_certificate_is_revoked_is_cut_at_the_next_recheck() {
    let revoked = Arc::new(AtomicBool::new(false));
    let world = World::with(limits(), all_but_pump_17_if(&revoked)).await;
    let mut device = world.device("pump-17").await;
    let mut other = world.device("pump-18").await;
    world.broker.recheck();
    assert!(device.is_alive().await);
    revoked.store(true, Ordering::SeqCst);
    world.broker.recheck();
    device.end().await.unwrap();
    assert!(other.is_alive().await);
}

/// What a register says of every backend, until the test changes it.
fn backends_with(rights: &Arc<Mutex<Rights>>) -> Arc<Admit> {
    let rights = rights.clone();
    Arc::new(move |_, _| Ok(Good { rights: rights.lock().unwrap().clone() }))
}

#[tokio::test(flavor = "multi_thread")]
async fn backend_hears_and_says_what_its_rights_are_and_each_refusal_has_a_reason() {
    let rights = Rights::new(["device/+/command/#"], ["device/+/telemetry"]).unwrap();
    let world = World::with(limits(), backends_with(&Arc::new(Mutex::new(rights)))).await;
    let mut device = world.device("pump-17").await;
    let mut other = world.device("pump-18").await;
    for (device, id) in [(&mut device, "pump-17"), (&mut other, "pump-18")] {
        let commands = format!("device/v1/default/{id}/command/#");
        assert_eq!(device.subscribe(&commands).await, Some(GRANTED_QOS_1));
    }
    let mut sink = world.identified("urn:assay:backend:sink", "backend@sink").await;
    let mut second = world.identified("urn:assay:backend:sink", "backend@sink@2").await;
    let telemetry = "device/v1/default/+/telemetry";
    for backend in [&mut sink, &mut second] {
        assert_eq!(backend.subscribe(telemetry).await, Some(GRANTED_QOS_1));
        for filter in [
            "device/v1/default/#",
            "device/v1/default/pump-17/command",
            "fleet/v1/default/+/event",
            "provision/v1/default/+/request",
            "$share/g/device/v1/default/+/telemetry",
        ] {
            assert_eq!(backend.subscribe(filter).await, Some(NOT_AUTHORIZED), "{filter}");
        }
    }
    assert_eq!(device.publish("device/v1/default/pump-17/telemetry", b"21.5").await, Some(SUCCESS));
    for backend in [&mut sink, &mut second] {
        assert_eq!(backend.message(PATIENCE).await.unwrap().payload, b"21.5");
    }

    let command = "device/v1/default/pump-17/command/reboot";
    assert_eq!(sink.publish(command, b"now").await, Some(SUCCESS));
    assert_eq!(device.message(PATIENCE).await.unwrap().topic, command);
    for topic in [
        "device/v1/default/pump-17/telemetry",
        "fleet/v1/default/pump-17/event",
        "ca/v1/default/crl",
        "provision/v1/default/pump-17/reply",
    ] {
        assert_eq!(sink.publish(topic, b"forged").await, Some(NOT_AUTHORIZED), "{topic}");
    }
    // Another device's command is not this one's to send.
    assert_eq!(other.publish(command, b"forged").await, Some(NOT_AUTHORIZED));
    assert!(device.message(SILENCE).await.is_none() && other.message(SILENCE).await.is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn backend_is_cut_when_its_rights_change_and_stays_when_they_do_not() {
    let rights = Arc::new(Mutex::new(Rights::new([], ["device/#"]).unwrap()));
    let world = World::with(limits(), backends_with(&rights)).await;
    let mut sink = world.identified("urn:assay:backend:sink", "backend@sink").await;
    let mut device = world.device("pump-17").await;
    world.broker.recheck();
    assert!(sink.is_alive().await);
    *rights.lock().unwrap() = Rights::new([], ["device/+/telemetry"]).unwrap();
    world.broker.recheck();
    assert_eq!(sink.end().await.unwrap(), Some(ADMINISTRATIVE_ACTION));
    assert!(device.is_alive().await, "it has no rights that could change");
    let mut again = world.identified("urn:assay:backend:sink", "backend@sink").await;
    assert_eq!(again.subscribe("device/v1/default/#").await, Some(NOT_AUTHORIZED));
    assert_eq!(again.subscribe("device/v1/default/+/telemetry").await, Some(GRANTED_QOS_1));
}

#[tokio::test(flavor = "multi_thread")]
async fn backend_under_another_backends_client_id_is_refused() {
    let world = World::new().await;
    let credential = world.pki.client(&["urn:assay:backend:sink"]);
    for client in ["backend@other", "backend@sink2", "operator@sink", "worker@sink", "sink"] {
        let (_, reason) =
            world.operational_connect(Some(&credential), &Connect::new(client)).await.unwrap();
        assert_eq!(reason, CLIENT_ID_NOT_VALID, "{client}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn backend_has_so_many_connections_and_leaves_the_places_to_others() {
    let world = World::new().await;
    let mut held = Vec::new();
    for number in 0..64 {
        let client = format!("backend@sink@{number}");
        held.push(world.identified("urn:assay:backend:sink", &client).await);
    }
    let credential = world.pki.client(&["urn:assay:backend:sink"]);
    let more = Connect::new("backend@sink");
    let (_, reason) = world.operational_connect(Some(&credential), &more).await.unwrap();
    assert_eq!(reason, SERVER_BUSY);
    for connection in &mut held {
        assert!(connection.is_alive().await, "nobody was cut for it");
    }
    world.identified("urn:assay:backend:other", "backend@other").await;
    held.pop();
    tokio::time::sleep(SILENCE).await;
    world.identified("urn:assay:backend:sink", "backend@sink").await;
}

/// A recheck leaves most of the threads that may block to new clients.
#[tokio::test(flavor = "multi_thread")]
async fn recheck_asks_for_a_few_connections_at_a_time() {
    let (at_once, most, asked) = (AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0));
    let counts = Arc::new((at_once, most, asked));
    let admit: Arc<Admit> = Arc::new({
        let counts = counts.clone();
        move |_, _| {
            let (at_once, most, asked) = &*counts;
            most.fetch_max(at_once.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            std::thread::sleep(Duration::from_millis(20));
            at_once.fetch_sub(1, Ordering::SeqCst);
            asked.fetch_add(1, Ordering::SeqCst);
            Ok(Good::default())
        }
    });
    let world = World::with(limits(), admit).await;
    let mut devices = Vec::new();
    for n in 0..40 {
        devices.push(world.device(&format!("pump-{n}")).await);
    }
    let (_, most, asked) = &*counts;
    assert_eq!(asked.swap(0, Ordering::SeqCst), 40);
    most.store(0, Ordering::SeqCst);
    world.broker.recheck();
    while asked.load(Ordering::SeqCst) < 40 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let most = most.load(Ordering::SeqCst);
    assert!((2..=32).contains(&most), "{most}");
}

#[tokio::test(flavor = "multi_thread")]
async fn device_whose_certificate_cannot_be_checked_is_told_to_try_again() {
    let admit: Arc<Admit> = Arc::new(|_, _| Err(NotGood::Unknown("the disk is gone".into())));
    let world = World::with(limits(), admit).await;
    let credential = world.pki.client(&["urn:assay:device:default:pump-17"]);
    let (_, reason) =
        world.operational_connect(Some(&credential), &Connect::new("pump-17")).await.unwrap();
    assert_eq!(reason, SERVER_UNAVAILABLE);
}

/// A world whose register gives these answers about pump-17, the first at its CONNECT, and the
/// others one after another at rechecks. The last answer is repeated.
async fn world_where_checks_say(answers: Vec<Result<Good, NotGood>>) -> (World, Arc<AtomicU64>) {
    let asked = Arc::new(AtomicU64::new(0));
    let admit: Arc<Admit> = Arc::new({
        let asked = asked.clone();
        move |identity, _| match identity {
            Identity::Device { .. } => {
                let turn = usize::try_from(asked.fetch_add(1, Ordering::SeqCst)).unwrap();
                answers[turn.min(answers.len() - 1)].clone()
            }
            _ => Ok(Good::default()),
        }
    });
    (World::with(limits(), admit).await, asked)
}

#[tokio::test(flavor = "multi_thread")]
async fn device_stays_while_a_recheck_finds_nothing_out_and_is_asked_about_again() {
    let unknown = Err(NotGood::Unknown("locked".into()));
    let (world, asked) = world_where_checks_say(vec![
        Ok(Good::default()),
        unknown.clone(),
        unknown,
        Ok(Good::default()),
    ])
    .await;
    let mut device = world.device("pump-17").await;
    world.broker.recheck();
    let started = Instant::now();
    while asked.load(Ordering::SeqCst) < 4 {
        assert!(started.elapsed() < PATIENCE, "nobody asks again");
        assert!(device.is_alive().await);
        tokio::time::sleep(SILENCE).await;
    }
    assert!(device.is_alive().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn revocation_is_found_at_the_recheck_after_one_that_finds_nothing_out() {
    let (unknown, revoked) =
        (Err(NotGood::Unknown("locked".into())), Err(NotGood::Refused("revoked".into())));
    let (world, _) = world_where_checks_say(vec![Ok(Good::default()), unknown, revoked]).await;
    let mut device = world.device("pump-17").await;
    world.broker.recheck();
    device.end().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn device_that_cannot_be_checked_for_long_is_cut() {
    let (world, asked) =
        world_where_checks_say(vec![Ok(Good::default()), Err(NotGood::Unknown("locked".into()))])
            .await;
    let mut device = world.device("pump-17").await;
    world.broker.recheck();
    device.end().await.unwrap();
    assert!(asked.load(Ordering::SeqCst) > 3, "it is not cut at the first failure");
}

#[tokio::test(flavor = "multi_thread")]
async fn device_whose_certificate_is_revoked_while_it_connects_is_cut() {
    let asked = Arc::new(AtomicBool::new(false));
    let admit: Arc<Admit> = Arc::new({
        let asked = asked.clone();
        move |_, _| {
            if asked.swap(true, Ordering::SeqCst) {
                return Err(NotGood::Refused("revoked".into()));
            }
            std::thread::sleep(3 * SILENCE);
            Ok(Good::default())
        }
    });
    let world = World::with(limits(), admit).await;
    let connecting = world.device("pump-17");
    let revoking = async {
        let started = Instant::now();
        while !asked.load(Ordering::SeqCst) {
            assert!(started.elapsed() < PATIENCE, "nobody asks");
            tokio::time::sleep(SILENCE / 10).await;
        }
        world.broker.recheck();
    };
    let (mut device, ()) = tokio::join!(connecting, revoking);
    device.end().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn device_whose_certificate_expires_is_cut() {
    let world = World::new().await;
    let credential =
        world.pki.client_expiring_in("urn:assay:device:default:pump-17", Duration::from_secs(3));
    let mut device = world.connected_with(&credential, "pump-17").await;
    assert!(device.is_alive().await);
    device.end().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn mqtt_5_stranger_is_told_the_limits() {
    let world = World::new().await;
    let (raw, _) = world.stranger().await;
    // MQTT 5 §3.2.2.3
    for (limit, property) in [
        ("keep-alive of 60 s", &b"\x13\0\x3c"[..]),
        ("QoS 1 at most", b"\x24\x01"),
        ("nothing retained", b"\x25\0"),
        ("packets of 17 KiB", b"\x27\0\0\x44\0"),
        ("no wildcards", b"\x28\0"),
        ("no shared subscriptions", b"\x2a\0"),
    ] {
        assert!(
            raw.connack.windows(property.len()).any(|bytes| bytes == property),
            "{limit}: {:02x?}",
            raw.connack
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn topic_aliases_and_qos_2_are_refused() {
    let world = World::new().await;
    let mut worker = world.worker().await;
    let (mut raw, client) = world.stranger().await;
    raw.send_publish(&request_topic(&client), b"request", 0x34).await;
    assert_eq!(raw.end().await, Ok(Some(QOS_NOT_SUPPORTED)));

    let (mut raw, client) = world.stranger().await;
    let topic = request_topic(&client);
    let mut body = u16::try_from(topic.len()).unwrap().to_be_bytes().to_vec();
    body.extend(topic.as_bytes());
    // 0x23: Topic Alias (MQTT 5 §3.3.2.3.4)
    body.extend(b"\0\x09\x03\x23\0\x01request");
    raw.send(&packet(0x32, body)).await;
    assert_eq!(raw.end().await, Ok(Some(TOPIC_ALIAS_INVALID)));
    assert_eq!(worker.message(SILENCE).await, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn device_holds_a_bounded_number_of_subscriptions() {
    let world = World::new().await;
    let mut device = world.device("pump-17").await;
    for number in 0..64 {
        let filter = format!("device/v1/default/pump-17/{number}");
        assert_eq!(device.subscribe(&filter).await, Some(GRANTED_QOS_1), "{filter}");
    }
    assert_eq!(device.subscribe("device/v1/default/pump-17/64").await, Some(QUOTA_EXCEEDED));
}

#[tokio::test(flavor = "multi_thread")]
async fn small_packets_do_not_wait_for_delayed_acknowledgements() {
    let world = World::new().await;
    let mut device = world.device("pump-17").await;
    assert_eq!(device.subscribe("device/v1/default/pump-17/#").await, Some(GRANTED_QOS_1));
    let started = Instant::now();
    for _ in 0..100 {
        assert_eq!(device.publish("device/v1/default/pump-17/echo", b"x").await, Some(SUCCESS));
        assert!(device.message(PATIENCE).await.is_some());
    }
    // With Nagle's algorithm, each would take 40 ms.
    let took = started.elapsed();
    assert!(took < Duration::from_secs(2), "{took:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_sessions_are_never_resumed() {
    let world = World::new().await;
    let credential = world.pki.client(&["urn:assay:device:default:pump-17"]);
    for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
        let provider = world.anonymous.crypto_provider().clone();
        let mut roots = RootCertStore::empty();
        roots.add(world.pki.root()).unwrap();
        let tls = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[version])
            .unwrap()
            .with_root_certificates(roots)
            .with_client_auth_cert(credential.chain.clone(), credential.key.clone_key())
            .unwrap();
        let tls = Arc::new(tls);
        for address in [world.bootstrap(), world.broker.operational_addr()] {
            for _ in 0..3 {
                let mut raw = Raw::open(address, &tls).await.unwrap();
                // The client reads any session ticket before the answer to its CONNECT.
                raw.connect(&Connect::new("pump-17")).await;
                let (_, connection) = raw.stream.get_ref();
                assert_eq!(connection.handshake_kind(), Some(HandshakeKind::Full));
                assert_eq!(connection.tls13_tickets_received(), 0, "nobody could use one");
            }
        }
    }
}

/// Most processors have instructions for SHA-256, and few for SHA-384.
#[tokio::test(flavor = "multi_thread")]
async fn tls_takes_the_suite_that_costs_least_whatever_the_client_prefers() {
    let world = World::new().await;
    let mut provider = (**world.anonymous.crypto_provider()).clone();
    provider
        .cipher_suites
        .sort_by_key(|suite| suite.suite() == CipherSuite::TLS13_AES_128_GCM_SHA256);
    assert_ne!(provider.cipher_suites[0].suite(), CipherSuite::TLS13_AES_128_GCM_SHA256);
    let mut roots = RootCertStore::empty();
    roots.add(world.pki.root()).unwrap();
    let tls = ClientConfig::builder_with_provider(provider.into())
        .with_safe_default_protocol_versions()
        .unwrap();
    let tls = Arc::new(tls.with_root_certificates(roots).with_no_client_auth());
    let raw = Raw::open(world.bootstrap(), &tls).await.unwrap();
    let suite = raw.stream.get_ref().1.negotiated_cipher_suite().unwrap().suite();
    assert_eq!(suite, CipherSuite::TLS13_AES_128_GCM_SHA256);
}

#[tokio::test(flavor = "multi_thread")]
async fn shutdown_tells_clients_and_frees_the_ports() {
    let world = World::new().await;
    let (mut stranger, _) = world.stranger().await;
    let mut device = world.device("pump-17").await;
    let _silent = TcpStream::connect(world.bootstrap()).await.unwrap();
    let (bootstrap, operational) = (world.bootstrap(), world.broker.operational_addr());
    timeout(Duration::from_secs(5), world.broker.shutdown()).await.expect("in time");
    assert_eq!(stranger.end().await, Ok(Some(SERVER_SHUTTING_DOWN)));
    assert_eq!(device.end().await, Ok(Some(SERVER_SHUTTING_DOWN)));
    for address in [bootstrap, operational] {
        assert!(TcpStream::connect(address).await.is_err());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn shutdown_right_after_start_returns() {
    let world = World::new().await;
    timeout(Duration::from_secs(5), world.broker.shutdown()).await.expect("in time");
}

#[tokio::test(flavor = "multi_thread")]
async fn our_own_client_and_worker_exchange_a_request_and_a_reply() {
    let world = World::new().await;
    let _worker = world.echoing_worker().await;
    let client = fresh_client();
    let tls = world.pki.client_tls(None);
    let (device, mut device_events) = polite(world.bootstrap(), tls, &client);
    device.try_subscribe(reply_topic(&client), QoS::AtLeastOnce).unwrap();
    until_subscribed(&mut device_events).await;
    let started = Instant::now();
    device
        .try_publish(request_topic(&client), QoS::AtLeastOnce, false, vec![7; 16 * 1024])
        .unwrap();
    let reply = timeout(PATIENCE, next_message(&mut device_events)).await.unwrap();
    assert_eq!(reply.payload, vec![7; 16 * 1024]);
    assert!(started.elapsed() < Duration::from_secs(1), "{:?}", started.elapsed());
}

/// Each property that MQTT 5 §2.2.2.2 defines, but not for a PUBLISH.
const FOREIGN_PROPERTIES: [&[u8]; 19] = [
    b"\x11\0\0\0\x01",
    b"\x12\0\x01x",
    b"\x13\0\x01",
    b"\x15\0\x01x",
    b"\x16\0\x01x",
    b"\x17\x01",
    b"\x18\0\0\0\x01",
    b"\x19\x01",
    b"\x1a\0\x01x",
    b"\x1c\0\x01x",
    b"\x1f\0\x01x",
    b"\x21\0\x01",
    b"\x22\0\x01",
    b"\x24\x01",
    b"\x25\x01",
    b"\x27\0\0\0\x01",
    b"\x28\x01",
    b"\x29\x01",
    b"\x2a\x01",
];

#[tokio::test(flavor = "multi_thread")]
async fn foreign_properties_cost_their_sender_the_connection_and_reach_nobody() {
    let world = World::new().await;
    let mut worker = world.worker().await;
    let mut operator = world.operator().await;
    assert_eq!(operator.subscribe("device/#").await, Some(GRANTED_QOS_1));
    for (number, properties) in FOREIGN_PROPERTIES.into_iter().enumerate() {
        let (mut raw, client) = world.stranger().await;
        raw.send_publish_with(properties, &request_topic(&client), b"request", 0x32).await;
        assert_eq!(raw.end().await, Ok(Some(MALFORMED_PACKET)), "{properties:02x?}");
        let mut device = world.device(&format!("pump-{number}")).await;
        let telemetry = format!("device/v1/default/pump-{number}/telemetry");
        device.send_publish_with(properties, &telemetry, properties, 0x32).await;
        assert_eq!(device.end().await, Ok(Some(MALFORMED_PACKET)), "{properties:02x?}");
    }
    assert_eq!(worker.message(SILENCE).await, None);
    assert_eq!(operator.message(SILENCE).await, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn operator_gets_a_devices_properties_as_they_were() {
    let world = World::new().await;
    let tls = world.pki.client_tls(Some(&world.pki.client(&["urn:assay:operator"])));
    let (operator, mut events) = polite(world.broker.operational_addr(), tls, "operator@desk");
    operator.try_subscribe("device/#", QoS::AtLeastOnce).unwrap();
    until_subscribed(&mut events).await;
    let mut device = world.device("pump-17").await;
    // MQTT 5 §3.3.2.3: format, expiry, content type, response topic, correlation data, user
    // property.
    let properties = b"\x01\x01\x02\0\0\x0e\x10\x03\0\x01t\x08\0\x01r\x09\0\x01c\x26\0\x01n\0\x01v";
    device.send_publish_with(properties, "device/v1/default/pump-17/telemetry", b"21", 0x32).await;
    let heard = timeout(PATIENCE, next_message(&mut events)).await.unwrap().properties.unwrap();
    assert_eq!(heard.payload_format_indicator, Some(1));
    assert!((3590..=3600).contains(&heard.message_expiry_interval.unwrap()), "{heard:?}");
    assert_eq!(heard.content_type.as_deref(), Some("t"));
    assert_eq!(heard.response_topic.as_deref(), Some("r"));
    assert_eq!(heard.correlation_data.as_deref(), Some(&b"c"[..]));
    assert_eq!(heard.user_properties, [("n".into(), "v".into())]);
}

#[tokio::test(flavor = "multi_thread")]
async fn worker_sees_the_response_topic_of_a_request() {
    let world = World::new().await;
    let tls = world.pki.client_tls(Some(&world.pki.client(&["urn:assay:worker"])));
    let (worker, mut events) = polite(world.broker.operational_addr(), tls, "worker@1");
    worker.try_subscribe(SHARED_REQUESTS, QoS::AtLeastOnce).unwrap();
    until_subscribed(&mut events).await;
    let (mut raw, client) = world.stranger().await;
    raw.send_publish_with(b"\x08\0\x01x", &request_topic(&client), b"request", 0x32).await;
    let request = timeout(PATIENCE, next_message(&mut events)).await.unwrap();
    assert_eq!(request.properties.unwrap().response_topic.as_deref(), Some("x"));
}

fn polite(address: SocketAddr, tls: ClientConfig, id: &str) -> (AsyncClient, EventLoop) {
    let url = format!("mqtts://localhost:{}", address.port()).parse().unwrap();
    let client =
        assay_mqtt::Client { id: id.into(), window: 16, receive_maximum: 16, manual_acks: false };
    assay_mqtt::connect(&url, &Arc::new(tls), client)
}

async fn next_message(events: &mut EventLoop) -> Publish {
    loop {
        if let Event::Incoming(Packet::Publish(message)) = events.poll().await.unwrap() {
            return message;
        }
    }
}

async fn until_subscribed(events: &mut EventLoop) {
    while !matches!(events.poll().await.unwrap(), Event::Incoming(Packet::SubAck(_))) {}
}

#[tokio::test(flavor = "multi_thread")]
async fn two_thousand_passing_strangers_leave_little_behind() {
    if !in_own_process("two_thousand_passing_strangers_leave_little_behind") {
        return;
    }
    let world = Arc::new(World::new().await);
    let _worker = world.answering_worker(vec![7; 4096]).await;
    let pass = |clients: usize| {
        let world = world.clone();
        async move {
            let mut streams = tokio::task::JoinSet::new();
            for _ in 0..16 {
                let world = world.clone();
                streams.spawn(async move {
                    for _ in 0..clients / 16 {
                        world.exchange().await;
                    }
                });
            }
            while let Some(ended) = streams.join_next().await {
                ended.unwrap();
            }
        }
    };
    pass(400).await;
    let before = resident_kib();
    pass(2000).await;
    let grown = resident_kib().saturating_sub(before);
    // For each, a queue of 0.5 kB until the next sweep, and what the allocator does not give back.
    assert!(grown < 8 * 1024, "{grown} KiB");
}

#[tokio::test(flavor = "multi_thread")]
async fn listener_survives_running_out_of_file_descriptors() {
    if !in_own_process("listener_survives_running_out_of_file_descriptors") {
        return;
    }
    let world = World::new().await;
    let _worker = world.answering_worker(b"reply".to_vec()).await;
    world.exchange().await;
    let highest = fs::read_dir("/proc/self/fd")
        .unwrap()
        .filter_map(|entry| entry.unwrap().file_name().to_str()?.parse::<u32>().ok())
        .max()
        .unwrap();
    limit_descriptors(&format!("{}:", highest + 20));
    let mut hoard = Vec::new();
    while let Ok(stream) = TcpStream::connect(world.bootstrap()).await {
        hoard.push(stream);
        assert!(hoard.len() < 1000, "the limit does not hold");
    }
    // One more connection waits and cannot be accepted: this client has the descriptor that it
    // would need.
    drop(hoard.pop());
    let waiting = TcpStream::connect(world.bootstrap()).await;
    tokio::time::sleep(SILENCE).await;
    drop((hoard, waiting));
    tokio::time::sleep(SILENCE).await;
    world.exchange().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn both_listeners_keep_to_the_file_descriptors_there_are() {
    if !in_own_process("both_listeners_keep_to_the_file_descriptors_there_are") {
        return;
    }
    // 256 are reserved. Of the other 44, four are for connections that are not let in yet, and
    // strangers get a quarter of the rest.
    limit_descriptors("64:300");
    let world = World::new().await;
    let mut inside = Vec::new();
    for _ in 0..10 {
        inside.push(world.stranger().await);
    }
    assert_eq!(world.bootstrap_connect(&Connect::new(&fresh_client())).await, Some(SERVER_BUSY));
    assert!(world.device("pump-17").await.is_alive().await);
}

/// Whether this process runs `test` alone, so that no other test uses its memory and file
/// descriptors. If not, runs `test` in a process of its own.
fn in_own_process(test: &str) -> bool {
    const MARK: &str = "ASSAY_TEST_ALONE";
    if std::env::var_os(MARK).is_some() {
        return true;
    }
    let status = Command::new(std::env::current_exe().unwrap())
        .args([test, "--exact"])
        .env(MARK, "1")
        .status()
        .unwrap();
    assert!(status.success(), "{test} failed in its own process");
    false
}

fn resident_kib() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

/// Sets this process's limits, `soft:hard` (prlimit is in util-linux, which Debian marks
/// essential).
fn limit_descriptors(limits: &str) {
    let process = std::process::id().to_string();
    let limit = format!("--nofile={limits}");
    assert!(Command::new("prlimit").args(["--pid", &process, &limit]).status().unwrap().success());
}

//! MQTT clients that send what a test wants: a hostile device, or a curious one.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use assay_mqtt::rumqttc::v5::mqttbytes::QoS;
use assay_mqtt::rumqttc::v5::mqttbytes::v5::{
    Packet, PubAckReason, PublishProperties, SubscribeReasonCode,
};
use assay_mqtt::rumqttc::v5::{AsyncClient, Event, EventLoop};
use assay_mqtt::{BrokerUrl, Client, Login};
use assay_wire::{
    ClientId, ProblemCode, Reply, ReplyBody, Request, RequestBody, RequestId, Scope, Topic,
};
use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use tokio::runtime::Runtime;
use tokio::time::timeout;

use crate::lab::Lab;

/// A bootstrapping connection, subscribed to its reply topic.
pub(crate) struct RawClient {
    runtime: Runtime,
    client: AsyncClient,
    events: EventLoop,
    id: ClientId,
}

impl RawClient {
    pub(crate) fn connect(broker: &str, root: &Path) -> Result<Self> {
        Self::connect_as(broker, root, None)
    }

    /// With a user name, and any password.
    pub(crate) fn connect_as(broker: &str, root: &Path, user_name: Option<&str>) -> Result<Self> {
        let broker: BrokerUrl = broker.parse()?;
        let id = ClientId::bootstrap(random());
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(root)?)?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let tls = Arc::new(assay_mqtt::tls_config(provider, roots, None)?);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let options =
            Client { id: id.to_string(), window: 16, receive_maximum: 16, manual_acks: false };
        let (client, events) = match user_name {
            None => assay_mqtt::connect(&broker, &tls, options),
            Some(name) => {
                let login = Login { user_name: name.into(), password: "any".into() };
                assay_mqtt::connect_with_login(&broker, &tls, options, login)
            }
        };
        let mut raw = Self { runtime, client, events, id };
        let reply = Topic::Reply(scope(), raw.id.clone()).to_string();
        anyhow::ensure!(raw.subscribe(&reply)?, "the broker refuses {reply}");
        Ok(raw)
    }

    pub(crate) fn id(&self) -> &ClientId {
        &self.id
    }

    /// Subscribes, and returns whether the broker grants it.
    pub(crate) fn subscribe(&mut self, filter: &str) -> Result<bool> {
        self.client.try_subscribe(filter, QoS::AtLeastOnce)?;
        self.until(|packet| match packet {
            Packet::SubAck(granted) => {
                Some(matches!(granted.return_codes.first(), Some(SubscribeReasonCode::Success(_))))
            }
            _ => None,
        })
    }

    /// Publishes, and returns whether the broker takes the message.
    pub(crate) fn publish(&mut self, topic: &str, payload: Vec<u8>) -> Result<bool> {
        self.client.try_publish(topic, QoS::AtLeastOnce, false, payload)?;
        self.until(|packet| match packet {
            Packet::PubAck(ack) => Some(matches!(
                ack.reason,
                PubAckReason::Success | PubAckReason::NoMatchingSubscribers
            )),
            _ => None,
        })
    }

    /// Sends a request and waits for the answer to it.
    pub(crate) fn ask(&mut self, body: RequestBody) -> Result<ReplyBody> {
        let id = RequestId::from(random());
        let reply = self.ask_bytes(Request { id, body }.encode())?;
        anyhow::ensure!(reply.id == id, "an answer to another request: {reply:?}");
        Ok(reply.body)
    }

    /// Sends a request that must be answered with a problem of this code.
    pub(crate) fn refused(&mut self, body: RequestBody, code: ProblemCode) -> Result<()> {
        match self.ask(body)? {
            ReplyBody::Problem(problem) if problem.code == code => Ok(()),
            other => bail!("expected {code}, got {other:?}"),
        }
    }

    /// Sends any bytes as a request and waits for the next reply.
    pub(crate) fn ask_bytes(&mut self, message: Vec<u8>) -> Result<Reply> {
        self.ask_with_properties(message, PublishProperties::default())
    }

    /// As [`ask_bytes`](Self::ask_bytes), and asks for the reply on another topic.
    pub(crate) fn ask_with_response_topic(
        &mut self,
        message: Vec<u8>,
        topic: &str,
    ) -> Result<Reply> {
        let properties = PublishProperties {
            response_topic: Some(topic.into()),
            ..PublishProperties::default()
        };
        self.ask_with_properties(message, properties)
    }

    fn ask_with_properties(
        &mut self,
        message: Vec<u8>,
        properties: PublishProperties,
    ) -> Result<Reply> {
        let request = Topic::Request(scope(), self.id.clone()).to_string();
        self.client.try_publish_with_properties(
            request,
            QoS::AtLeastOnce,
            false,
            message,
            properties,
        )?;
        let payload = self.until(|packet| match packet {
            Packet::Publish(message) => Some(message.payload.to_vec()),
            _ => None,
        })?;
        Ok(Reply::decode(&payload)?)
    }

    /// Whether any message arrives within `patience`.
    pub(crate) fn hears_something(&mut self, patience: Duration) -> bool {
        self.next(patience, |packet| matches!(packet, Packet::Publish(_)).then_some(())).is_ok()
    }

    fn until<T>(&mut self, find: impl FnMut(Packet) -> Option<T>) -> Result<T> {
        self.next(PATIENCE, find)
    }

    fn next<T>(&mut self, patience: Duration, find: impl FnMut(Packet) -> Option<T>) -> Result<T> {
        self.runtime.block_on(next(&mut self.events, patience, find))
    }
}

/// A client in the place of the CA: it gets every request, and a test answers.
pub(crate) struct FakeCa {
    runtime: Runtime,
    client: AsyncClient,
    events: EventLoop,
}

impl FakeCa {
    /// Connects to a broker without TLS and without an access list.
    pub(crate) fn connect(broker: &str) -> Result<Self> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let tls = Arc::new(assay_mqtt::tls_config(provider, RootCertStore::empty(), None)?);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let options =
            Client { id: "fake-ca".into(), window: 16, receive_maximum: 16, manual_acks: false };
        let (client, mut events) = assay_mqtt::connect(&broker.parse()?, &tls, options);
        client.try_subscribe(Topic::requests(&scope()), QoS::AtLeastOnce)?;
        runtime.block_on(next(&mut events, PATIENCE, |packet| {
            matches!(packet, Packet::SubAck(_)).then_some(())
        }))?;
        Ok(Self { runtime, client, events })
    }

    /// The next request, and its sender.
    pub(crate) fn request(&mut self) -> Result<(ClientId, Request)> {
        let (topic, payload) =
            self.runtime.block_on(next(&mut self.events, PATIENCE, |packet| match packet {
                Packet::Publish(message) => Some((message.topic, message.payload)),
                _ => None,
            }))?;
        let Some(Topic::Request(_, client)) = Topic::parse(std::str::from_utf8(&topic)?) else {
            bail!("a request on {topic:?}");
        };
        Ok((client, Request::decode(&payload)?))
    }

    /// Sends bytes to a client's reply topic, and waits until the broker has them.
    pub(crate) fn reply(&mut self, client: &ClientId, payload: Vec<u8>) -> Result<()> {
        let topic = Topic::Reply(scope(), client.clone()).to_string();
        self.client.try_publish(topic, QoS::AtLeastOnce, false, payload)?;
        let acknowledged = next(&mut self.events, PATIENCE, |packet| {
            matches!(packet, Packet::PubAck(_)).then_some(())
        });
        self.runtime.block_on(acknowledged)
    }
}

/// A device on a broker without TLS.
pub(crate) struct PlainDevice {
    runtime: Runtime,
    client: AsyncClient,
    events: EventLoop,
    request_topic: String,
    acknowledged: usize,
}

impl PlainDevice {
    /// A device that may have `window` requests open.
    pub(crate) fn connect(broker: &str, window: u16) -> Result<Self> {
        let id = ClientId::bootstrap(random());
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let tls = Arc::new(assay_mqtt::tls_config(provider, RootCertStore::empty(), None)?);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let options =
            Client { id: id.to_string(), window, receive_maximum: window, manual_acks: false };
        let (client, events) = assay_mqtt::connect(&broker.parse()?, &tls, options);
        client.try_subscribe(Topic::Reply(scope(), id.clone()).to_string(), QoS::AtLeastOnce)?;
        let request_topic = Topic::Request(scope(), id).to_string();
        let mut device = Self { runtime, client, events, request_topic, acknowledged: 0 };
        device.until(|packet, _| matches!(packet, Packet::SubAck(_)).then_some(()))?;
        Ok(device)
    }

    /// Sends a request without waiting for anything; returns its id.
    pub(crate) fn send(&self, body: &RequestBody, qos: QoS) -> Result<RequestId> {
        let id = RequestId::from(random());
        self.client.try_publish(
            &self.request_topic,
            qos,
            false,
            Request { id, body: body.clone() }.encode(),
        )?;
        Ok(id)
    }

    /// Sends any bytes in the same way.
    pub(crate) fn send_bytes(&self, message: Vec<u8>) -> Result<()> {
        Ok(self.client.try_publish(&self.request_topic, QoS::AtLeastOnce, false, message)?)
    }

    /// Sends any bytes to another topic.
    pub(crate) fn send_to(&self, topic: &str, message: Vec<u8>) -> Result<()> {
        Ok(self.client.try_publish(topic, QoS::AtLeastOnce, false, message)?)
    }

    pub(crate) fn reply(&mut self) -> Result<Reply> {
        let payload = self.until(|packet, _| match packet {
            Packet::Publish(message) => Some(message.payload),
            _ => None,
        })?;
        Ok(Reply::decode(&payload)?)
    }

    /// Waits until the broker has taken `count` requests on this connection, each with a
    /// subscriber. Skips replies.
    pub(crate) fn wait_until_acknowledged(&mut self, count: usize) -> Result<()> {
        if self.acknowledged >= count {
            return Ok(());
        }
        self.until(|_, acknowledged| (acknowledged >= count).then_some(()))
    }

    fn until<T>(&mut self, mut find: impl FnMut(Packet, usize) -> Option<T>) -> Result<T> {
        let acknowledged = &mut self.acknowledged;
        let found = next(&mut self.events, PATIENCE, |packet| {
            if matches!(&packet, Packet::PubAck(ack) if ack.reason == PubAckReason::Success) {
                *acknowledged += 1;
            }
            find(packet, *acknowledged)
        });
        self.runtime.block_on(found)
    }
}

/// A provisioned device's connection that stays open: over mutual TLS with its TPM key, or with a
/// token.
pub(crate) struct OperationalClient {
    runtime: Runtime,
    events: EventLoop,
    /// Without a client, the event loop ends.
    _client: AsyncClient,
}

impl OperationalClient {
    pub(crate) fn connect(lab: &Lab, tcti: &str, state: &Path) -> Result<Self> {
        let device = assay_device::Device::open(assay_device::DeviceOptions {
            tcti: tcti.parse()?,
            passwords: Default::default(),
            tpm_timeout: PATIENCE,
            state: state.to_owned(),
            ca_roots: assay_device::read_certificates(&lab.dir.root_pem())?,
            no_clock: false,
        })?;
        let tls = Arc::new(device.mqtt_tls_config()?);
        let id = device.certificate()?.device_id.to_string();
        let options = Client { id, window: 16, receive_maximum: 16, manual_acks: false };
        Self::of(assay_mqtt::connect(&lab.server.operational.parse()?, &tls, options))
    }

    /// Logs in without a certificate; an error if the broker refuses the login.
    pub(crate) fn login(
        lab: &Lab,
        client_id: &str,
        user_name: &str,
        password: &str,
    ) -> Result<Self> {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(lab.dir.root_pem())?)?;
        let tls = Arc::new(assay_mqtt::tls_config(
            Arc::new(rustls::crypto::ring::default_provider()),
            roots,
            None,
        )?);
        let options =
            Client { id: client_id.into(), window: 16, receive_maximum: 16, manual_acks: false };
        let login = Login { user_name: user_name.into(), password: password.into() };
        Self::of(assay_mqtt::connect_with_login(
            &lab.server.operational.parse()?,
            &tls,
            options,
            login,
        ))
    }

    fn of((client, mut events): (AsyncClient, EventLoop)) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(next(&mut events, PATIENCE, |packet| {
            matches!(packet, Packet::ConnAck(_)).then_some(())
        }))?;
        Ok(Self { runtime, events, _client: client })
    }

    /// Whether the broker ends the connection within `patience`.
    pub(crate) fn ends_within(&mut self, patience: Duration) -> bool {
        let events = &mut self.events;
        let ended = async { while events.poll().await.is_ok() {} };
        self.runtime.block_on(async { timeout(patience, ended).await }).is_ok()
    }
}

async fn next<T>(
    events: &mut EventLoop,
    patience: Duration,
    mut find: impl FnMut(Packet) -> Option<T>,
) -> Result<T> {
    let found = async {
        loop {
            if let Event::Incoming(packet) = events.poll().await?
                && let Some(found) = find(packet)
            {
                return anyhow::Ok(found);
            }
        }
    };
    timeout(patience, found).await.context("no answer")?
}

pub(crate) fn scope() -> Scope {
    "default".parse().expect("a scope")
}

pub(crate) fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).expect("the kernel gives random bytes");
    bytes
}

const PATIENCE: Duration = Duration::from_secs(10);

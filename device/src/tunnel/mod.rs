//! Lets other programs of this machine speak MQTT as the device: without TLS here, with the
//! device's own key to the broker.
//!
//! A local client's CONNECT is written anew, with a client id of the device and what the device
//! signs in with. After that the bytes pass as they are, so all else is between client and broker.

mod connack;
mod connect;
mod listen;
mod name;
mod packet;
mod pass;
mod upstream;
mod waiting;

use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use assay_mqtt::BrokerUrl;
use assay_wire::DeviceClientId;
use tokio::io::AsyncReadExt;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

pub use listen::{ListenAddress, ListenAddressError};

use connack::Refusal;
use connect::{Connect, NoConnect};
use listen::{Listener, Local};
use packet::Version;
use upstream::{Away, Opened, Upstream};
use waiting::Waiting;

use crate::clock::Clock;
use crate::device::DeviceOptions;
use crate::dial::refuse_plain;
use crate::error::Error;
use crate::roots;
use crate::runtime::runtime;
use crate::tpm::{HierarchyPasswords, Tpm2, TpmThread};

/// A tunnel: whose, from where and to where.
#[derive(Clone, Debug)]
pub struct TunnelOptions {
    /// The device. Others can use its state directory meanwhile.
    pub device: DeviceOptions,
    /// The operational listener of the broker.
    pub broker: BrokerUrl,
    /// Where local clients connect.
    pub listen: ListenAddress,
}

/// Serves local clients until `stop` is ready.
///
/// Each connection to the broker uses what the state directory holds when it begins, so a renewed
/// certificate needs no restart. `tell` hears where the tunnel listens, and each time that the
/// broker begins or ceases to let the device in.
///
/// Blocks, and runs an event loop of its own, in which `stop` is polled.
///
/// # Errors
/// [`Error::Usage`] if the broker's URL has no TLS, or the address cannot be listened on.
pub fn tunnel(
    options: TunnelOptions,
    tell: impl Fn(&str) + Send + Sync + 'static,
    stop: impl Future<Output = ()>,
) -> Result<(), Error> {
    let TunnelOptions { device, broker, listen } = options;
    refuse_plain(&broker)?;
    let clock = Clock::new(!device.no_clock, &device.ca_roots);
    // To sign and to make tokens, the TPM needs no password.
    let tpm = Tpm2::new(device.tcti, HierarchyPasswords::default());
    let tpm = TpmThread::start(tpm, device.tpm_timeout);
    // Says at once if one cannot be used.
    _ = roots::trusted(&device.ca_roots, &device.state)?;
    let runtime = runtime()?;
    let served = runtime.block_on(async {
        let unusable =
            |error: io::Error| Error::Usage(format!("cannot listen on {listen}: {error}"));
        let listener = Listener::bind(&listen).map_err(unusable)?;
        let address = listener.address().map_err(unusable)?;
        tell(&format!("listening on {address} for {broker}"));
        let tunnel = Arc::new(Tunnel {
            upstream: Upstream::new(broker, tpm, device.state, device.ca_roots, clock).into(),
            waiting: Waiting::default(),
            places: Semaphore::new(LOCAL_CLIENTS),
            told: Mutex::default(),
            tell: Box::new(tell),
        });
        tokio::select! {
            () = tunnel.clone().accept(listener) => {}
            () = stop => (tunnel.tell)("stopping"),
        }
        Ok(())
    });
    // A thread may wait for the TPM.
    runtime.shutdown_background();
    served
}

struct Tunnel {
    upstream: Arc<Upstream>,
    waiting: Waiting,
    places: Semaphore,
    /// What was told last of the broker.
    told: Mutex<String>,
    tell: Box<dyn Fn(&str) + Send + Sync>,
}

impl Tunnel {
    async fn accept(self: Arc<Self>, listener: Listener) {
        let mut clients = JoinSet::new();
        let mut number = 0;
        loop {
            tokio::select! {
                accepted = listener.accept() => match accepted {
                    Ok(stream) => {
                        number += 1;
                        let task = clients.spawn(self.clone().serve(stream, number));
                        self.waiting.enter(number, task);
                    }
                    // The client has given up, or there are no file descriptors left.
                    Err(_) => sleep(ACCEPT_RETRY).await,
                },
                Some(_) = clients.join_next() => {}
            }
        }
    }

    /// One local connection, from its first packet to its end.
    async fn serve(self: Arc<Self>, mut local: Box<dyn Local>, number: u64) {
        let introduced = timeout(INTRODUCTION, Connect::read(&mut local)).await;
        self.waiting.leave(number);
        let connect = match introduced {
            Ok(Ok(connect)) => connect,
            Ok(Err(NoConnect::OtherVersion)) => {
                return refuse(local, Refusal::Version, Version::V3).await;
            }
            Ok(Err(NoConnect::Foreign)) | Err(_) => return,
        };
        let version = connect.version;
        let Ok(_place) = self.places.try_acquire() else {
            return refuse(local, Refusal::Busy, version).await;
        };
        match self.introduce(&connect).await {
            Ok((opened, answer)) => {
                if pass::write(&mut local, &answer).await.is_ok() {
                    pass::pass(local, opened.stream).await;
                }
            }
            Err(refusal) => refuse(local, refusal, version).await,
        }
    }

    /// Connects to the broker as the client wishes. Returns the broker's first bytes.
    async fn introduce(&self, connect: &Connect) -> Result<(Opened, Vec<u8>), Refusal> {
        let is_nameless = connect.client.is_empty();
        // MQTT 3.1.1 §3.1.3-8
        if is_nameless && connect.version == Version::V3 && !connect.is_clean() {
            return Err(Refusal::ClientId);
        }
        let name = name::of_client(&connect.client).or_else(name::assigned);
        let name = name.ok_or(Refusal::ClientId)?;
        let introduced = async {
            let mut opened = self.upstream.open().await?;
            let client =
                DeviceClientId { device: opened.device.clone(), connection: Some(name.clone()) };
            let login = opened.password.as_deref();
            let login = login.map(|password| (opened.device.as_str(), password));
            let packet = connect.packet(&client.to_string(), login);
            let answer = self.answer(&mut opened, &packet).await?;
            Ok((opened, answer))
        };
        match introduced.await {
            Ok((opened, answer)) => {
                self.report(self.words_for(&opened, connack::refusal_code(&answer)));
                let is_to_be_told = is_nameless && connect.version == Version::V5;
                let told = connack::with_assigned_client(&answer, name.as_str());
                Ok((opened, told.filter(|_| is_to_be_told).unwrap_or(answer)))
            }
            Err(Away { refusal, reason }) => {
                self.report(reason);
                Err(refusal)
            }
        }
    }

    /// Sends the CONNECT, and waits for the whole CONNACK. With TLS 1.3, a broker that does not
    /// like the certificate says so only here.
    async fn answer(&self, opened: &mut Opened, connect: &[u8]) -> Result<Vec<u8>, Away> {
        let Opened { stream, .. } = opened;
        let exchange = async {
            pass::write(stream, connect).await?;
            let mut answer = Vec::new();
            while packet::length_of_packet(&answer).is_none_or(|length| answer.len() < length)
                && answer.len() < ANSWER_LIMIT
            {
                if stream.read_buf(&mut answer).await? == 0 {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
            }
            Ok(answer)
        };
        let late = || Away::unavailable(format!("{} did not answer", self.upstream.broker));
        let exchanged = timeout(ANSWER, exchange).await.map_err(|_| late())?;
        exchanged.map_err(|error| self.upstream.away(&error))
    }

    fn words_for(&self, opened: &Opened, refusal: Option<u8>) -> String {
        let (broker, device) = (&self.upstream.broker, &opened.device);
        match refusal {
            None => format!("{broker} lets {device} in"),
            Some(code) => format!("{broker} refuses a connection of {device}: CONNACK {code:#04x}"),
        }
    }

    /// Tells people, if it is not what they know already.
    fn report(&self, state: String) {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        if *told != state {
            (self.tell)(&state);
            *told = state;
        }
    }
}

async fn refuse(mut local: Box<dyn Local>, refusal: Refusal, version: Version) {
    _ = pass::write(&mut local, &refusal.connack(version)).await;
}

/// Local clients at a time: twice as many named connections as the built-in broker allows, because
/// a client may come back before its old connection ended.
const LOCAL_CLIENTS: usize = 16;
/// From the local connection to the end of its CONNECT.
const INTRODUCTION: Duration = Duration::from_secs(10);
/// From the CONNECT to the CONNACK. The broker may ask its record, on another machine.
const ANSWER: Duration = Duration::from_secs(15);
/// More than any CONNACK has. What comes after it passes as it is.
const ANSWER_LIMIT: usize = 64 * 1024;
/// How long to wait after the system refused to accept a connection.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

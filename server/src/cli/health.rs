//! `assay health`

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use assay_mqtt::rumqttc::v5::mqttbytes::QoS;
use assay_mqtt::rumqttc::v5::mqttbytes::v5::{Packet, PubAckReason, SubscribeReasonCode};
use assay_mqtt::rumqttc::v5::{AsyncClient, Event, EventLoop};
use assay_mqtt::{BrokerUrl, Client};
use assay_server::directory::Directory;
use assay_server::pipeline::A_KEY_IS_AWAY;
use assay_server::random_bytes;
use assay_store::Database;
use assay_wire::{
    ClientId, ProblemCode, Reply, ReplyBody, Request, RequestBody, RequestId, Scope, Topic,
};
use clap::Args;
use serde_json::{Value, json};
use tokio::time::timeout;

use super::outfit::{broker_roots, local_url, nobodys_tls};
use super::table;

#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Health {
    /// Ask a worker through this broker, on the listener for unprovisioned devices, instead of the
    /// built-in one
    #[arg(long, value_name = "URL")]
    broker: Option<BrokerUrl>,
    /// Root certificate of the broker, if it is not this CA's
    #[arg(long, value_name = "FILE")]
    broker_ca: Option<PathBuf>,
    /// Print one JSON object on stdout
    #[arg(long)]
    json: bool,
}

impl Health {
    pub(crate) fn run(self, directory: &Directory) -> Result<ExitCode> {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let (worker, store) =
            runtime.block_on(async { tokio::join!(self.worker(directory), store(directory)) });
        // Whatever still waits for a name server or the database is not waited for.
        runtime.shutdown_background();
        // Nobody knows of the keys if no worker answers.
        let misses_a_key = worker.as_ref().is_ok_and(|answer| answer.misses_a_key);
        let worker = worker.map(|answer| answer.took);
        let healthy = worker.is_ok() && store.is_ok() && !misses_a_key;
        if self.json {
            let part = |outcome: &Result<Duration>, key: &str| match outcome {
                Ok(took) => json!({ key: milliseconds(*took) }),
                Err(error) => json!({ "error": format!("{error:#}") }),
            };
            let (worker, store) = (part(&worker, "answered_ms"), part(&store, "written_ms"));
            let mut report = json!({ "healthy": healthy, "worker": worker, "store": store });
            if misses_a_key {
                report["keys"] = json!({ "error": MISSES_A_KEY });
            }
            table::print_json(&report);
        } else {
            if misses_a_key {
                eprintln!("keys: {MISSES_A_KEY}");
            }
            for (what, outcome, done) in
                [("worker", worker, "answered in"), ("store", store, "written in")]
            {
                match outcome {
                    Ok(took) => eprintln!("{what}: {done} {} ms", milliseconds(took)),
                    Err(error) => eprintln!("{what}: {error:#}"),
                }
            }
            eprintln!("{}", if healthy { "healthy" } else { "not healthy" });
        }
        Ok(if healthy { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }

    /// What a worker answers to a ping.
    async fn worker(&self, directory: &Directory) -> Result<Answer> {
        let broker = match &self.broker {
            Some(broker) => broker.clone(),
            None => local_url(directory.config().bootstrap)?,
        };
        let tls = nobodys_tls(broker_roots(directory, self.broker_ca.as_deref())?)?;
        // As a device that is to be provisioned: nobody can guess the id and end this connection.
        let client = ClientId::bootstrap(random_bytes());
        let options =
            Client { id: client.to_string(), window: 4, receive_maximum: 4, manual_acks: false };
        let (mqtt, events) = assay_mqtt::connect(&broker, &tls, options);
        let ping = Ping {
            client,
            scope: directory.config().scope.clone(),
            id: RequestId::from(random_bytes()),
        };
        match timeout(PATIENCE, ping.ask(&mqtt, events)).await {
            Ok(answered) => answered.with_context(|| format!("at {broker}")),
            Err(_) => Err(anyhow!(
                "no answer at {broker} within {} s; the log of `assay serve` or `assay worker` \
                 says what it is doing",
                PATIENCE.as_secs()
            )),
        }
    }
}

/// What a worker answered.
struct Answer {
    took: Duration,
    /// A key in a token does not sign.
    misses_a_key: bool,
}

/// A question to whichever worker gets it.
struct Ping {
    client: ClientId,
    scope: Scope,
    id: RequestId,
}

impl Ping {
    async fn ask(&self, mqtt: &AsyncClient, mut events: EventLoop) -> Result<Answer> {
        let reply = Topic::Reply(self.scope.clone(), self.client.clone()).to_string();
        mqtt.try_subscribe(&reply, QoS::AtLeastOnce)?;
        let mut asked = Instant::now();
        loop {
            // Its text has its causes in it.
            let event = events.poll().await.map_err(|error| {
                anyhow!(
                    "no connection ({error}). Is the broker running, is this its listener for \
                     devices (mqtts:// with TLS, mqtt:// without), and does root.pem, or \
                     --broker-ca, vouch for it?"
                )
            })?;
            match event {
                Event::Incoming(Packet::SubAck(granted)) => {
                    let granted = granted.return_codes.first();
                    ensure!(
                        matches!(granted, Some(SubscribeReasonCode::Success(_))),
                        "the broker refuses the subscription to {reply}: {granted:?}; see \
                         docs/operations.md, \"Other brokers\", for its access list"
                    );
                    let topic = Topic::Request(self.scope.clone(), self.client.clone()).to_string();
                    let message = Request { id: self.id, body: RequestBody::Ping }.encode();
                    asked = Instant::now();
                    mqtt.try_publish(topic, QoS::AtLeastOnce, false, message)?;
                }
                Event::Incoming(Packet::PubAck(ack)) => match ack.reason {
                    PubAckReason::Success => {}
                    PubAckReason::NoMatchingSubscribers => bail!(
                        "no worker is subscribed in scope {}; start `assay worker --broker …` or \
                         look at its log",
                        self.scope
                    ),
                    reason => {
                        bail!("the broker refuses the request: {reason:?}; look at its access list")
                    }
                },
                Event::Incoming(Packet::Publish(message)) if message.topic == reply.as_bytes() => {
                    if let Some(misses_a_key) = self.misses_a_key(&message.payload)? {
                        return Ok(Answer { took: asked.elapsed(), misses_a_key });
                    }
                }
                _ => {}
            }
        }
    }

    /// What the worker says of its keys; `None` if this is no answer to the ping. A worker that is
    /// *busy* is there: to restart it then would help nobody.
    fn misses_a_key(&self, message: &[u8]) -> Result<Option<bool>> {
        match Reply::decode(message) {
            Ok(Reply { id, .. }) if id != self.id => Ok(None),
            Ok(Reply { body: ReplyBody::Pong, .. }) => Ok(Some(false)),
            Ok(Reply { body: ReplyBody::Problem(problem), .. })
                if problem.code == ProblemCode::Busy =>
            {
                Ok(Some(problem.detail == A_KEY_IS_AWAY))
            }
            Ok(Reply { body: ReplyBody::Problem(problem), .. }) => {
                bail!("a worker answered {:?}; it may be of an older version", problem.to_string())
            }
            other => bail!("a worker answered something else: {other:?}"),
        }
    }
}

/// How long a durable write took.
async fn store(directory: &Directory) -> Result<Duration> {
    let database = directory.database()?;
    let started = Instant::now();
    match timeout(PATIENCE, tokio::task::spawn_blocking(move || write(&database))).await {
        Ok(written) => written?.map(|()| started.elapsed()),
        Err(_) => Err(anyhow!(
            "the database cannot be written within {} s; another process holds it, or the disk \
             hangs",
            PATIENCE.as_secs()
        )),
    }
}

fn write(database: &Database) -> Result<()> {
    let advice = || match database {
        Database::Sqlite(file) => {
            let place = file.parent().unwrap_or(file);
            format!(
                "{} cannot be written; check free space and permissions of {}",
                file.display(),
                place.display()
            )
        }
        Database::Postgres(_) => format!(
            "{} cannot be written; check that the server runs, has free space, and lets this user \
             in",
            database.shown()
        ),
    };
    database.open().and_then(|mut store| store.check_writable()).with_context(advice)
}

fn milliseconds(time: Duration) -> Value {
    // Of a number of seconds that fits, the milliseconds do.
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX).into()
}

/// For the worker and for the store, side by side. A device waits 20 s for an answer; a supervisor
/// should know before.
const PATIENCE: Duration = Duration::from_secs(5);

/// What to do if a key does not sign.
const MISSES_A_KEY: &str = "one that is in a token did not sign when the worker last tried it, so \
                            devices may be told to come again; the worker's log says why, and \
                            `assay keys test` which; to restart the worker does not help";

const EXAMPLES: &str = "\
Exit status: 0 when a worker answered and the store could be written, each
within 5 s, and the worker misses no key that is in a token; else 1, and stderr
says why.

Examples:
  assay --dir ca health              the built-in broker, where assay.toml says
  assay --dir ca health --broker mqtts://mosquitto:8883 --json";

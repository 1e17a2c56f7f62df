//! The clients in a check that keep the rules: they are what they say, and hear what they should.

use std::cell::Cell;
use std::sync::Arc;
use std::time::Duration;

use assay_broker_plugin::access::{OPERATOR_PREFIX, WORKER_PREFIX};
use assay_mqtt::BrokerUrl;
use assay_server::ca::Ca;
use assay_server::rfc3339;
use assay_wire::{ClientId, DeviceId, Scope, Topic};
use rustls::{ClientConfig, RootCertStore};
use time::OffsetDateTime;

use super::party::{Party, Persona, Stay, ping, words};
use super::rules::{Found, Report, Rule, Tried};

/// The listeners, and what clients show there.
pub(super) struct Stage {
    pub(super) ca: Ca,
    pub(super) scope: Scope,
    pub(super) operational: BrokerUrl,
    pub(super) bootstrap: Option<BrokerUrl>,
    /// The root certificates for the broker.
    pub(super) roots: RootCertStore,
    pub(super) tls: Wardrobe,
    /// Devices that do not exist: one that speaks by the rules, and one that does not.
    pub(super) device: DeviceId,
    pub(super) other_device: DeviceId,
    /// A device whose certificate has expired.
    pub(super) expired: DeviceId,
    /// A group of workers that nobody else is in.
    pub(super) group: String,
}

/// A TLS configuration for each kind of client.
pub(super) struct Wardrobe {
    pub(super) nobody: Arc<ClientConfig>,
    pub(super) worker: Arc<ClientConfig>,
    pub(super) operator: Arc<ClientConfig>,
    pub(super) device: Arc<ClientConfig>,
    pub(super) other_device: Arc<ClientConfig>,
    pub(super) foreign: Arc<ClientConfig>,
    pub(super) expired: Arc<ClientConfig>,
}

impl Stage {
    pub(super) fn stranger(&self) -> Result<Persona, String> {
        let bootstrap =
            self.bootstrap.as_ref().ok_or("say where strangers connect: --bootstrap URL")?;
        Ok(Persona::stranger(bootstrap, &self.tls.nobody))
    }

    /// A client on the operational listener.
    pub(super) fn persona(&self, tls: &Arc<ClientConfig>, id: impl Into<String>) -> Persona {
        Persona {
            broker: self.operational.clone(),
            tls: tls.clone(),
            id: id.into(),
            user_name: None,
        }
    }

    pub(super) fn requests(&self) -> String {
        Topic::requests(&self.scope)
    }

    /// The filter of a worker, in another group than the workers', so that it takes no request from
    /// them.
    pub(super) fn shared_requests(&self, group: &str) -> String {
        format!("$share/{group}/{}", self.requests())
    }

    pub(super) fn of_device(&self, rest: &str) -> String {
        format!("device/v1/{}/{}/{rest}", self.scope, self.device)
    }

    pub(super) fn list(&self) -> String {
        Topic::Crl(self.scope.clone()).to_string()
    }
}

/// The clients, as far as the broker lets them in.
pub(super) struct Cast<'a> {
    pub(super) stage: &'a Stage,
    stranger: Result<(ClientId, Party), String>,
    /// Whether a stranger is let in, even if it hears nothing.
    stranger_is_in: Result<(), String>,
    worker: Result<Party, String>,
    operator: Result<Party, String>,
    device: Result<Party, String>,
    /// The revocation list that waits at the broker, if it is good.
    pub(super) list: Option<Vec<u8>>,
    /// Whether a client that may not publish the list has published it.
    pub(super) planted: Cell<bool>,
}

impl<'a> Cast<'a> {
    /// Connects them, and sees that they hear what they should.
    pub(super) async fn enter(stage: &'a Stage, report: &Report) -> Self {
        let (tls, id) = (&stage.tls, |prefix: &str| format!("{prefix}{}", stage.group));
        let (stranger, worker, operator, device) = tokio::join!(
            enter_stranger(stage),
            enter(
                "worker.pem",
                stage.persona(&tls.worker, id(WORKER_PREFIX)),
                stage.shared_requests(&stage.group)
            ),
            enter("operator.pem", stage.persona(&tls.operator, id(OPERATOR_PREFIX)), stage.list()),
            enter(
                "a device",
                stage.persona(&tls.device, stage.device.as_str()),
                stage.of_device("#")
            ),
        );
        let stranger_is_in = stranger.as_ref().map(drop).map_err(String::clone);
        let (list, planted) = (None, Cell::new(false));
        let mut cast =
            Self { stage, stranger, stranger_is_in, worker, operator, device, list, planted };
        let (asked, listed, device) =
            tokio::join!(cast.asks(), cast.waiting_list(), cast.device_hears_itself());
        if cast.stranger.is_ok() && !matches!(asked, Ok(Found::Kept(_))) {
            cast.stranger = Err("a stranger and a worker do not hear each other".into());
        }
        report.add(Rule::Asks, asked);
        cast.list = listed.as_ref().ok().and_then(|(_, list)| list.clone());
        report.add(Rule::List, listed.map(|(found, _)| found));
        if let Err(why) = device {
            cast.device = Err(why);
        }
        cast
    }

    pub(super) fn stranger(&self) -> Result<(&ClientId, &Party), String> {
        self.stranger.as_ref().map(|(id, party)| (id, party)).map_err(String::clone)
    }

    /// Whether a stranger is let in. If not, a stranger that is cut shows nothing.
    pub(super) fn stranger_is_in(&self) -> Result<(), String> {
        self.stranger_is_in.clone()
    }

    pub(super) fn worker(&self) -> Result<&Party, String> {
        self.worker.as_ref().map_err(String::clone)
    }

    pub(super) fn operator(&self) -> Result<&Party, String> {
        self.operator.as_ref().map_err(String::clone)
    }

    pub(super) fn device(&self) -> Result<&Party, String> {
        self.device.as_ref().map_err(String::clone)
    }

    /// Whether the operational listener lets anybody in. If not, a refusal there shows nothing.
    pub(super) fn is_let_in(&self) -> Result<(), String> {
        match (&self.worker, &self.operator, &self.device) {
            (Err(worker), Err(_), Err(_)) => Err(format!("nobody is let in there: {worker}")),
            _ => Ok(()),
        }
    }

    pub(super) fn request_topic(&self, client: &ClientId) -> String {
        Topic::Request(self.stage.scope.clone(), client.clone()).to_string()
    }

    pub(super) fn reply_topic(&self, client: &ClientId) -> String {
        Topic::Reply(self.stage.scope.clone(), client.clone()).to_string()
    }

    async fn asks(&self) -> Tried {
        let ((id, stranger), worker) = (self.stranger()?, self.worker()?);
        let (request, reply) = (ping(), words());
        stranger.publish(&self.request_topic(id), &request, Stay::No).await;
        if !worker.hears(&request, PATIENCE).await {
            return Ok(Found::Broken(
                "a request reached no worker: the worker receives nothing there, or the \
                 stranger's message was dropped"
                    .into(),
            ));
        }
        worker.publish(&self.reply_topic(id), &reply, Stay::No).await;
        Ok(match stranger.hears(&reply, PATIENCE).await {
            true => Found::Kept("a request and a reply arrived".into()),
            false => Found::Broken("a request arrived, but the reply did not".into()),
        })
    }

    /// Tries the rule `list`. Returns the list too, if it is good.
    async fn waiting_list(&self) -> Result<(Found, Option<Vec<u8>>), String> {
        let (operator, topic) = (self.operator()?, self.stage.list());
        let mut list = operator.hears_what_waited(PATIENCE).await;
        if list.is_none() {
            // The list may have come meanwhile.
            operator.subscribe(&topic).await;
            list = operator.hears_what_waited(PATIENCE).await;
        }
        let Some(list) = list else {
            let how = format!("none waits on {topic}; a worker publishes one when it connects");
            return Ok((Found::Broken(how), None));
        };
        let now = OffsetDateTime::now_utc();
        Ok(match self.stage.ca.issuers.current(now).believes_until(&list, now) {
            Some(until) => {
                let until = rfc3339::seconds(until.unix_timestamp());
                (
                    Found::Kept(format!("it waits on {topic}, good until {until}")),
                    Some(list.to_vec()),
                )
            }
            None => (
                Found::Broken(format!("what waits on {topic} is out of date, or not of this CA")),
                None,
            ),
        })
    }

    /// If a device does not hear itself, no other client can be expected to hear it or to be heard
    /// by it.
    async fn device_hears_itself(&self) -> Result<(), String> {
        let (device, said) = (self.device()?, words());
        device.publish(&self.stage.of_device("check"), &said, Stay::No).await;
        match device.hears(&said, PATIENCE).await {
            true => Ok(()),
            false => Err(format!(
                "a device does not hear what it says on {}",
                self.stage.of_device("check")
            )),
        }
    }
}

async fn enter_stranger(stage: &Stage) -> Result<(ClientId, Party), String> {
    let persona = stage.stranger()?;
    let party = persona
        .enter()
        .await
        .map_err(|not_in| format!("a stranger is not let in: {}", not_in.reason()))?;
    let id: ClientId = persona.id.parse().map_err(|_| "no client id".to_owned())?;
    party.subscribe(&Topic::Reply(stage.scope.clone(), id.clone()).to_string()).await;
    Ok((id, party))
}

async fn enter(who: &str, persona: Persona, filter: String) -> Result<Party, String> {
    let party = persona
        .enter()
        .await
        .map_err(|not_in| format!("{who} is not let in: {}", not_in.reason()))?;
    // The answer does not matter, because only what is heard counts.
    party.subscribe(&filter).await;
    Ok(party)
}

/// How long to wait for what should arrive.
const PATIENCE: Duration = Duration::from_secs(2);

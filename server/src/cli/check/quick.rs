//! What a worker tries of its broker once it has subscribed, beside its work and without the CA's
//! record.

use std::sync::Arc;
use std::time::Duration;

use assay_broker_plugin::access::WORKER_PREFIX;
use assay_mqtt::BrokerUrl;
use assay_server::directory::Credentials;
use assay_wire::{ClientId, Scope, Topic};
use rustls::{ClientConfig, RootCertStore};
use tokio::time::timeout;
use tracing::{info, warn};

use super::certificates::{no_certificate, shown};
use super::party::{NotIn, Persona, Stay, ping};
use super::rules::{Found, Rule, Tried};
use crate::cli::outfit::{client_tls, nobodys_tls};

/// Tries three of the rules. One of them shows whether the worker hears requests.
pub(crate) struct Quick {
    scope: Scope,
    broker: BrokerUrl,
    bootstrap: Option<BrokerUrl>,
    nobody: Arc<ClientConfig>,
    foreign: Arc<ClientConfig>,
}

impl Quick {
    /// For a worker on `broker`, whose devices connect at `bootstrap`, if it was told.
    pub(crate) fn new(
        scope: Scope,
        broker: BrokerUrl,
        bootstrap: Option<BrokerUrl>,
        roots: RootCertStore,
    ) -> anyhow::Result<Self> {
        let foreign =
            client_tls(Credentials::of_another_ca()?, roots.clone(), "another CA's worker")?;
        Ok(Self { scope, broker, bootstrap, nobody: nobodys_tls(roots)?, foreign })
    }

    /// Tries the rules, and logs what it finds.
    pub(crate) async fn look(self) {
        let worker = Persona {
            broker: self.broker.clone(),
            tls: Arc::clone(&self.foreign),
            id: format!("{WORKER_PREFIX}{:08x}", assay_server::random_u32()),
            user_name: None,
        };
        let tries = async {
            tokio::join!(
                self.asks(),
                no_certificate(&self.broker, &self.nobody),
                shown(&worker, "with another CA's worker's certificate"),
            )
        };
        let Ok((asks, no_certificate, foreign)) = timeout(TIME, tries).await else {
            return warn!(within = ?TIME, "the broker's rules could not be tried in time");
        };
        let mut kept = Vec::new();
        for (rule, tried) in
            [(Rule::Asks, asks), (Rule::NoCertificate, no_certificate), (Rule::Foreign, foreign)]
        {
            let rule = rule.name();
            match tried {
                Ok(Found::Kept(_)) => kept.push(rule),
                Ok(Found::Broken(how)) => {
                    warn!(%rule, %how, "the broker breaks a rule; `assay broker check` tries them all")
                }
                Err(why) => info!(%rule, %why, "a rule for the broker was not tried"),
            }
        }
        info!(kept = kept.join(" "), "tried rules for the broker");
    }

    /// Whether a request reaches a worker of this CA, this one or another of its group.
    async fn asks(&self) -> Tried {
        let strangers = self.bootstrap.as_ref().unwrap_or(&self.broker);
        let persona = Persona::stranger(strangers, &self.nobody);
        let party = match persona.enter().await {
            Ok(party) => party,
            Err(NotIn::Refused(_)) if self.bootstrap.is_none() => {
                return Err("clients without a certificate are refused here; say where devices \
                            connect: --bootstrap URL"
                    .into());
            }
            Err(not_in) => {
                return Err(format!(
                    "a stranger is not let in at {strangers}: {}",
                    not_in.reason()
                ));
            }
        };
        let client: ClientId = persona.id.parse().map_err(|_| "no client id".to_owned())?;
        party.subscribe(&Topic::Reply(self.scope.clone(), client.clone()).to_string()).await;
        let request = ping();
        party
            .publish(&Topic::Request(self.scope.clone(), client).to_string(), &request, Stay::No)
            .await;
        Ok(match party.hears_answer_to(&request, ANSWER).await {
            true => Found::Kept("answered".into()),
            false => Found::Broken(format!(
                "a request at {strangers} gets no answer: this worker is deaf, or another worker \
                 of its group, or the stranger. Is {} the listener for certificates, with the \
                 access list of docs/operations.md?",
                self.broker
            )),
        })
    }
}

/// Longer than any of the three takes.
const TIME: Duration = Duration::from_secs(15);
/// A worker that starts may have a queue before it.
const ANSWER: Duration = Duration::from_secs(5);

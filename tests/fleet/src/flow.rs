//! The flows, from a device's side: what it asks, what it computes, what it checks.

use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result, anyhow, ensure};
use assay_wire::{
    Bytes, CertificateList, ClientId, DeviceId, Flow, MAX_CLAIM, MAX_MESSAGE, Problem, Proof,
    Receipt, ReplyBody, Request, RequestBody, RequestId, Ticket, Topic,
};
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::bad::Bad;
use crate::connection::{Broker, Connection, Lost, Question};
use crate::device::{Bound, Device, Granted};
use crate::factory::Ik;
use crate::lanes::Lane;
use crate::random;
use crate::tally::Tally;
use crate::tpm::hash::Hash;

/// Why an attempt ended before the device had what it wanted.
pub(crate) enum Stop {
    /// The CA answered with a problem.
    Problem(Problem),
    Lost(Lost),
    /// The CA's answer is not what it should be.
    Wrong(anyhow::Error),
}

impl From<anyhow::Error> for Stop {
    fn from(error: anyhow::Error) -> Self {
        Self::Wrong(error)
    }
}

impl From<Lost> for Stop {
    fn from(lost: Lost) -> Self {
        Self::Lost(lost)
    }
}

/// The connection that a device speaks on.
pub(crate) enum Line<'a> {
    /// A connection of its own.
    Own(Connection),
    Shared(&'a Lane),
}

/// One attempt of one device.
pub(crate) struct Attempt<'a> {
    pub(crate) device: &'a Device,
    pub(crate) line: &'a Line<'a>,
    pub(crate) broker: &'a Arc<Broker>,
    pub(crate) tally: &'a Arc<Tally>,
    /// When the device first published, or was due to publish.
    pub(crate) began: &'a mut Option<Instant>,
}

impl<'a> Attempt<'a> {
    /// Runs the whole flow, and verifies what comes back. Returns the certificate with which a
    /// device connects, if the flow gives one.
    pub(crate) async fn provision(&mut self, flow: Flow) -> Result<Option<Granted>, Stop> {
        match self.first_reply(flow).await? {
            ReplyBody::Challenge(challenge) => {
                let ticket =
                    self.device.activate(&challenge.credential_blob, &challenge.encrypted_seed)?;
                let ticket = ticket.try_into().map_err(|_| anyhow!("a ticket has 32 bytes"))?;
                let certify = RequestBody::Certify(self.proof(challenge.claim, ticket));
                let ReplyBody::Certificate(reply) = self.ask("certify", certify).await? else {
                    return Err(unexpected());
                };
                let device_id = check_chain(&reply.chain, &self.ik()?.spki)?;
                Ok(Some(granted(device_id, reply.chain, reply.renew_at)))
            }
            ReplyBody::Sealed(reply) => {
                let ik = self.ik()?;
                let sealed = self.device.open(ik, &reply)?;
                let device_id = check_chain(&sealed.chain, &ik.spki)?;
                let confirm =
                    RequestBody::Confirm(self.proof(reply.claim, *sealed.ticket.as_bytes()));
                let ReplyBody::Confirmed(reply) = self.ask("confirm", confirm).await? else {
                    return Err(unexpected());
                };
                check_receipt(&reply.receipt, &sealed.receipt_sha256)?;
                Ok(Some(granted(device_id, sealed.chain, sealed.renew_at)))
            }
            ReplyBody::Activation(reply) => {
                let Bound::Parent(parent) = &self.device.bound else { return Err(unexpected()) };
                self.device.import(parent, &reply)?;
                Ok(None)
            }
            _ => Err(unexpected()),
        }
    }

    /// The answer to the flow's first request.
    pub(crate) async fn first_reply(&mut self, flow: Flow) -> Result<ReplyBody, Stop> {
        let (kind, body) = match flow {
            Flow::Ticket => ("challenge", RequestBody::Challenge(self.device.bundle(self.ik()?)?)),
            Flow::Sealed => ("enroll", RequestBody::Enroll(self.device.bundle(self.ik()?)?)),
            Flow::SharedKey => ("register", RequestBody::Register(self.device.parent_bundle()?)),
        };
        let mut question = question(body);
        match self.device.bad {
            Some(Bad::Truncated) => drop(question.message.pop()),
            Some(Bad::Oversize) => {
                question.message.resize(MAX_MESSAGE + 1, 0);
                // The CA reads nothing of a message that is too long, not even its id.
                question.id = RequestId::NIL;
            }
            Some(Bad::ForeignResponseTopic) => {
                let somebody =
                    Topic::Reply(self.broker.scope.clone(), ClientId::bootstrap(random()));
                question.response_topic = Some(somebody.to_string());
            }
            _ => {}
        }
        self.send(kind, question).await
    }

    pub(crate) fn ik(&self) -> Result<&'a Ik> {
        match &self.device.bound {
            Bound::Ik(ik) => Ok(ik),
            Bound::Parent(_) => Err(anyhow!("a device of the shared key flow has no IK")),
        }
    }

    fn proof(&self, claim: Bytes<MAX_CLAIM>, mut ticket: [u8; Ticket::LEN]) -> Proof {
        if self.device.bad == Some(Bad::WrongTicket) {
            ticket[0] ^= 1;
        }
        Proof { claim, ticket: ticket.into() }
    }

    pub(crate) async fn ask(
        &mut self,
        kind: &'static str,
        body: RequestBody,
    ) -> Result<ReplyBody, Stop> {
        self.send(kind, question(body)).await
    }

    async fn send(&mut self, kind: &'static str, question: Question) -> Result<ReplyBody, Stop> {
        let shared: Arc<Connection>;
        let connection = match self.line {
            Line::Own(connection) => {
                // One attempt needs fewer publishes than a connection has.
                connection.take_publish();
                connection
            }
            Line::Shared(lane) => {
                shared = lane.connection(self.broker, self.tally).await?;
                &shared
            }
        };
        let asked = Instant::now();
        self.began.get_or_insert(asked);
        let reply = connection.ask(question).await?;
        self.tally.answered(kind, asked.elapsed());
        match reply {
            ReplyBody::Problem(problem) => {
                self.tally.problem(problem.code.name());
                Err(Stop::Problem(problem))
            }
            reply => Ok(reply),
        }
    }
}

fn question(body: RequestBody) -> Question {
    let id = RequestId::from(random());
    Question { id, message: Request { id, body }.encode(), response_topic: None }
}

fn granted(device_id: DeviceId, chain: CertificateList<1>, renew_at: Option<u64>) -> Granted {
    Granted { device_id, chain, renew_at, is_adopted: true }
}

pub(crate) fn unexpected() -> Stop {
    Stop::Wrong(anyhow!("the CA answered another question"))
}

fn check_receipt(receipt: &Receipt, sha256: &[u8; 32]) -> Result<()> {
    ensure!(Hash::Sha256.digest(&[receipt.as_bytes()]) == sha256, "the receipt is not the CA's");
    Ok(())
}

/// Checks that the certificate is for this key, and that its issuer comes with it. Returns the
/// device id in it.
///
/// Signatures are left to [`Paths`](crate::paths::Paths), and in the flows to the end-to-end tests
/// of the device. Verifying them here would cost more than the CA spends on making them.
pub(crate) fn check_chain(chain: &CertificateList<1>, spki: &[u8]) -> Result<DeviceId> {
    let (_, leaf) = X509Certificate::from_der(&chain[0]).context("not a certificate")?;
    ensure!(leaf.public_key().raw == spki, "the certificate is for another key");
    let name = leaf.subject().iter_common_name().next().and_then(|name| name.as_str().ok());
    let (_, issuer) = X509Certificate::from_der(chain.get(1).context("no issuer")?)
        .context("not a certificate")?;
    ensure!(
        leaf.issuer().as_raw() == issuer.subject().as_raw(),
        "the second certificate is not the issuer's"
    );
    Ok(name.context("the certificate names nobody")?.parse()?)
}

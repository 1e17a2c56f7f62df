//! Checks of a request that need nothing but the request and the CA's keys.

use assay_ca_core::{
    AdoptionEvidence, Confirmation, Evidence, Instead, Offered, ParentEvidence, ProvenDevice,
    RenewalEvidence, SealedFlow, SharedKeyFlow, TicketFlow,
};
use assay_store::Whom;
use assay_wire::{DecodeError, Problem, ProblemCode, Request, RequestBody, Topic};

use super::job::Received;
use super::outcome::{About, Refusal};
use crate::ca::Ca;

/// A request that passed every check that needs no record.
pub(super) enum Examined {
    Challenge(Offered<TicketFlow>, Evidence, Instead),
    Certify(ProvenDevice),
    Enroll(Offered<SealedFlow>, Evidence),
    Confirm(Confirmation),
    Register(Offered<SharedKeyFlow>, ParentEvidence),
    Ping,
    Renew(RenewalEvidence),
    Adopt(AdoptionEvidence),
}

/// Why a request did not pass.
pub(super) enum NotExamined {
    /// It cannot be read.
    Unreadable(Problem),
    /// It can be read, and a check refuses it.
    Refused(Refusal),
}

/// Reads a request, and makes the checks that need no record. Notes in `about` whom the request is
/// about.
pub(super) fn examine(
    ca: &Ca,
    received: &Received,
    about: &mut About,
) -> Result<Examined, NotExamined> {
    if let Some(problem) = response_topic_problem(ca, received) {
        return Err(NotExamined::Unreadable(problem));
    }
    let request = match &received.head {
        Ok(head) => Request::decode_after(head, &received.message),
        Err(error) => Err(error.clone()),
    };
    let request = request.map_err(|error| {
        NotExamined::Unreadable(Problem::new(decode_problem(&error), error.to_string()))
    })?;
    about.action = action(&request.body);
    examine_body(ca, received, request.body, about).map_err(NotExamined::Refused)
}

fn examine_body(
    ca: &Ca,
    received: &Received,
    body: RequestBody,
    about: &mut About,
) -> Result<Examined, Refusal> {
    let (scope, now) = (&ca.scope, received.at);
    Ok(match body {
        RequestBody::Challenge(bundle) => {
            let evidence = Evidence::parse(bundle)?;
            about.ek_id = Some(evidence.ek.ek_id());
            Examined::Challenge(ca.profile.offer()?, evidence, Instead::AtOnce)
        }
        RequestBody::Rekey(bundle) => {
            let evidence = Evidence::parse(bundle)?;
            about.ek_id = Some(evidence.ek.ek_id());
            Examined::Challenge(ca.profile.offer()?, evidence, Instead::OnceTaken)
        }
        RequestBody::Certify(proof) => {
            let device = ProvenDevice::verify(&proof, scope, ca.ticket_keys.get()?, now)?;
            about.ek_id = Some(device.ek_id());
            about.device = Some(Whom::Proven(device.device_id().clone()));
            Examined::Certify(device)
        }
        RequestBody::Enroll(bundle) => {
            let evidence = Evidence::parse(bundle)?;
            about.ek_id = Some(evidence.ek.ek_id());
            Examined::Enroll(ca.profile.offer()?, evidence)
        }
        RequestBody::Confirm(proof) => {
            let confirmation = Confirmation::verify(&proof, scope, ca.ticket_keys.get()?, now)?;
            about.ek_id = Some(confirmation.ek_id());
            Examined::Confirm(confirmation)
        }
        RequestBody::Register(bundle) => {
            let evidence = ParentEvidence::parse(bundle)?;
            about.ek_id = Some(evidence.ek.ek_id());
            Examined::Register(ca.profile.offer()?, evidence)
        }
        RequestBody::Ping => Examined::Ping,
        RequestBody::Renew(renewal) => {
            let evidence = RenewalEvidence::parse(renewal, now)?;
            about.ek_id = Some(evidence.ek.ek_id());
            Examined::Renew(evidence)
        }
        RequestBody::Adopt(adoption) => {
            let evidence = AdoptionEvidence::parse(adoption, now)?;
            about.ek_id = Some(evidence.ek_id());
            Examined::Adopt(evidence)
        }
    })
}

/// A request's kind, as the audit and the log name it.
fn action(body: &RequestBody) -> &'static str {
    match body {
        RequestBody::Challenge(_) => "challenge",
        RequestBody::Certify(_) => "certify",
        RequestBody::Enroll(_) => "enroll",
        RequestBody::Confirm(_) => "confirm",
        RequestBody::Register(_) => "register",
        RequestBody::Ping => "ping",
        RequestBody::Renew(_) => "renew",
        RequestBody::Adopt(_) => "adopt",
        RequestBody::Rekey(_) => "rekey",
    }
}

/// A reply goes to the client's own reply topic and nowhere else, so that nobody can have a reply
/// sent to somebody else.
fn response_topic_problem(ca: &Ca, received: &Received) -> Option<Problem> {
    let asked = received.response_topic.as_ref()?;
    let due = Topic::Reply(ca.scope.clone(), received.client.clone()).to_string();
    (*asked != due).then(|| {
        Problem::new(ProblemCode::Malformed, format!("the Response Topic must be absent or {due}"))
    })
}

fn decode_problem(error: &DecodeError) -> ProblemCode {
    match error {
        DecodeError::Oversize(_) => ProblemCode::Oversize,
        DecodeError::UnknownKind(_) => ProblemCode::Unsupported,
        DecodeError::Malformed(_) | DecodeError::NotDeterministic(_) => ProblemCode::Malformed,
    }
}

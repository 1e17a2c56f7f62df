//! Signatures and credentials for what was planned, outside of every lock.

use assay_ca_core::{Challenge, Confirming};
use assay_store::{Act, Change};
use assay_wire::{ConfirmedReply, ReplyBody};
use time::OffsetDateTime;

use super::outcome::{About, Outcome, Refusal};
use super::plan::Plan;
use crate::ca::Ca;
use crate::random::random;

/// Signs what was planned; `about` learns what changes. This may be slow if the key is in hardware.
///
/// # Errors
/// The signer failed, or the cryptographic library did.
pub(super) fn sign(
    ca: &Ca,
    plan: Plan,
    now: OffsetDateTime,
    about: &mut About,
) -> Result<Outcome, Refusal> {
    Ok(match plan {
        Plan::Pong => Outcome::Pong,
        Plan::Challenge(admitted, ik) => {
            let (scope, key) = (&ca.scope, &ca.ticket_key);
            let challenge = Challenge::new(&admitted, &ik, scope, key, now, &mut random())?;
            Outcome::Answered(ReplyBody::Challenge(challenge.into_reply()))
        }
        Plan::Certify(certification, basis) => {
            let (reply, issued) = certification.sign(&ca.issuer)?;
            let reply = ReplyBody::Certificate(reply);
            match issued {
                None => Outcome::Answered(reply),
                Some(certificate) => {
                    about.change = Change::Made;
                    Outcome::Issued {
                        act: Box::new(Act::Certify(certificate)),
                        basis: Some(Box::new(basis)),
                        reply,
                    }
                }
            }
        }
        Plan::Enroll(sealing, basis) => {
            let (reply, issued) = sealing.sign(&ca.issuer, &ca.ticket_key, now, &mut random())?;
            let reply = ReplyBody::Sealed(reply);
            match issued {
                None => Outcome::Answered(reply),
                Some(certificate) => Outcome::Issued {
                    act: Box::new(Act::Seal(certificate)),
                    basis: Some(Box::new(basis)),
                    reply,
                },
            }
        }
        Plan::Confirm(Confirming::OnRecord { reply, .. }, _) => {
            Outcome::Answered(ReplyBody::Confirmed(reply))
        }
        Plan::Confirm(Confirming::New(confirmed), basis) => {
            about.change = Change::Made;
            let reply = ConfirmedReply { receipt: confirmed.receipt().clone() };
            let (act, reply) = (Box::new(Act::Activate(*confirmed)), ReplyBody::Confirmed(reply));
            Outcome::Issued { act, basis: basis.map(Box::new), reply }
        }
        Plan::Register(offer, basis) => {
            let activation = offer.activation(&ca.scope, &ca.master, &mut random())?;
            let (act, reply) =
                (Box::new(Act::Offer(offer.record())), ReplyBody::Activation(activation));
            Outcome::Issued { act, basis: Some(Box::new(basis)), reply }
        }
    })
}

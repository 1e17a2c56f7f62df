//! Signatures and credentials for what was planned, outside of every lock.

use assay_ca_core::{Adopting, Challenge, Confirming};
use assay_store::{Act, Basis, Change};
use assay_wire::{CertificateReply, ReplyBody};
use time::OffsetDateTime;

use super::outcome::{About, Issued, Refusal};
use super::plan::Plan;
use crate::ca::Ca;
use crate::random::random;

/// The result of a plan.
pub(super) enum Signed {
    Pong,
    /// Nothing new is to be recorded.
    Answer(ReplyBody),
    Issued(Box<Issued>),
}

impl Signed {
    fn new(act: Act, basis: Option<Basis>, reply: ReplyBody) -> Self {
        Self::Issued(Box::new(Issued { act, basis, reply }))
    }
}

/// Signs what was planned, and notes in `about` what changes. This may be slow if the key is in
/// hardware.
///
/// # Errors
/// The signer failed, or the cryptographic library did.
pub(super) fn sign(
    ca: &Ca,
    plan: Plan,
    now: OffsetDateTime,
    about: &mut About,
) -> Result<Signed, Refusal> {
    Ok(match plan {
        Plan::Pong => Signed::Pong,
        Plan::Challenge(admitted, ik) => {
            let (scope, key) = (&ca.scope, ca.ticket_keys.in_use(now));
            let challenge = Challenge::new(&admitted, &ik, scope, key, now, &mut random())?;
            Signed::Answer(ReplyBody::Challenge(challenge.into_reply()))
        }
        Plan::Certify(certification, basis) => {
            let (reply, issued) = certification.sign()?;
            let reply = with_new_root(ca, reply);
            match issued {
                None => Signed::Answer(reply),
                Some(certificate) => {
                    about.change = Change::Made;
                    Signed::new(Act::Certify(certificate), Some(basis), reply)
                }
            }
        }
        Plan::Enroll(sealing, basis) => {
            let (reply, issued) = sealing.sign(ca.ticket_keys.in_use(now), now, &mut random())?;
            let reply = ReplyBody::Sealed(reply);
            match issued {
                None => Signed::Answer(reply),
                Some(certificate) => Signed::new(Act::Seal(certificate), Some(basis), reply),
            }
        }
        Plan::Confirm(Confirming::OnRecord { reply, .. }, _) => {
            Signed::Answer(ReplyBody::Confirmed(reply))
        }
        Plan::Confirm(Confirming::New { confirmed, reply }, basis) => {
            about.change = Change::Made;
            Signed::new(Act::Activate(*confirmed), basis, ReplyBody::Confirmed(reply))
        }
        Plan::Renew(renewing, basis) => {
            let (reply, issued) = renewing.sign(ca.ticket_keys.in_use(now), &mut random())?;
            let reply = with_new_root(ca, reply);
            match issued {
                None => Signed::Answer(reply),
                Some(certificate) => {
                    about.change = Change::Made;
                    Signed::new(Act::Renew(certificate), Some(basis), reply)
                }
            }
        }
        Plan::Adopt(Adopting::OnRecord { .. }, _) => Signed::Answer(ReplyBody::Adopted),
        Plan::Adopt(Adopting::New(confirmed), basis) => {
            about.change = Change::Made;
            Signed::new(Act::Activate(*confirmed), basis, ReplyBody::Adopted)
        }
        Plan::Register(offer, basis) => {
            let activation = offer.activation(&ca.scope, ca.masters.in_use(now), &mut random())?;
            let reply = ReplyBody::Activation(activation);
            Signed::new(Act::Offer(offer.record()), Some(basis), reply)
        }
    })
}

/// Each certificate brings the new root along, while there is one.
fn with_new_root(ca: &Ca, reply: CertificateReply) -> ReplyBody {
    ReplyBody::Certificate(CertificateReply { new_root: ca.new_root.clone(), ..reply })
}

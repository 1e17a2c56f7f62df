//! Signatures and credentials for what was planned, outside of every lock.

use assay_ca_core::{Adopting, Challenge, Confirming, Issued as Certificate, Renewed, Renewing};
use assay_store::{Act, Basis, Change};
use assay_wire::{Bytes, CertificateReply, MAX_MESSAGE, MAX_SIGNED_CONFIGURATION, ReplyBody};
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
    configuration: Option<Bytes<MAX_SIGNED_CONFIGURATION>>,
    now: OffsetDateTime,
    about: &mut About,
) -> Result<Signed, Refusal> {
    Ok(match plan {
        Plan::Pong => Signed::Pong,
        Plan::Challenge(admitted, ik, instead) => {
            let (scope, key) = (&ca.scope, ca.ticket_keys.get()?.in_use(now));
            let challenge =
                Challenge::new(&admitted, &ik, instead, scope, key, now, &mut random())?;
            Signed::Answer(ReplyBody::Challenge(challenge.into_reply()))
        }
        Plan::Certify(certification, basis) => {
            let (reply, issued) = certification.sign()?;
            let reply = ReplyBody::Certificate(complete(ca, reply, configuration));
            match issued {
                None => Signed::Answer(reply),
                Some(certificate) => {
                    about.change = Change::Made;
                    Signed::new(Act::Certify(certificate), Some(basis), reply)
                }
            }
        }
        Plan::Enroll(sealing, basis) => {
            let sealing = sealing.with_configuration(configuration);
            let (reply, issued) =
                sealing.sign(ca.ticket_keys.get()?.in_use(now), now, &mut random())?;
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
            to_be_adopted(ca, *renewing, Act::Renew, basis, configuration, now, about)?
        }
        Plan::Rekey(renewing, basis) => {
            to_be_adopted(ca, *renewing, Act::Rekey, basis, configuration, now, about)?
        }
        Plan::Adopt(Adopting::OnRecord { .. }, _) => Signed::Answer(ReplyBody::Adopted),
        Plan::Adopt(Adopting::New(confirmed), basis) => {
            about.change = Change::Made;
            Signed::new(Act::Activate(*confirmed), basis, ReplyBody::Adopted)
        }
        Plan::Register(offer, basis) => {
            let activation =
                offer.activation(&ca.scope, ca.masters.get()?.in_use(now), &mut random())?;
            let reply = ReplyBody::Activation(activation);
            Signed::new(Act::Offer(offer.record()), Some(basis), reply)
        }
    })
}

/// Signs a certificate that waits for its device to adopt it.
fn to_be_adopted(
    ca: &Ca,
    renewing: Renewing,
    act: impl FnOnce(Certificate<Renewed>) -> Act,
    basis: Basis,
    configuration: Option<Bytes<MAX_SIGNED_CONFIGURATION>>,
    now: OffsetDateTime,
    about: &mut About,
) -> Result<Signed, Refusal> {
    let (reply, issued) = renewing.sign(ca.ticket_keys.get()?.in_use(now), &mut random())?;
    let reply = ReplyBody::Certificate(complete(ca, reply, configuration));
    let Some(certificate) = issued else { return Ok(Signed::Answer(reply)) };
    about.change = Change::Made;
    Ok(Signed::new(act(certificate), Some(basis), reply))
}

/// The reply with the new root, while there is one, and with the document, unless no message has
/// room for all.
fn complete(
    ca: &Ca,
    reply: CertificateReply,
    configuration: Option<Bytes<MAX_SIGNED_CONFIGURATION>>,
) -> CertificateReply {
    let new_root = ca.new_root.clone();
    let certificates = reply.chain.iter().chain(&new_root);
    let certificates: usize = certificates.map(|certificate| certificate.len()).sum();
    let fits = |signed: &Bytes<_>| certificates + signed.len() + AROUND <= MAX_MESSAGE;
    CertificateReply { configuration: configuration.filter(fits), new_root, ..reply }
}

/// Whatever else is in a reply: its kind and id, the time of the renewal, and the heads of all.
const AROUND: usize = 128;

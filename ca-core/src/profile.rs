//! How long device certificates are valid, and which flows a scope offers.

use std::borrow::Cow;
use std::marker::PhantomData;

use assay_wire::Flow;
use time::Duration;

use crate::Rejection;

/// The times of a device certificate, and the flows that a scope offers. Everything else in a
/// certificate is fixed, and the device chooses nothing in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Profile {
    validity: Duration,
    backdate: Duration,
    confirm_within: Duration,
    renew_before: Option<Duration>,
    rotate_after: Option<Duration>,
    flows: Vec<Flow>,
}

impl Profile {
    /// The shortest validity. A shorter one would end while a device that wakes once an hour
    /// sleeps.
    pub const MIN_VALIDITY: Duration = Duration::hours(1);
    /// The longest validity. It bounds the use of a revoked certificate where nobody fetches the
    /// list.
    pub const MAX_VALIDITY: Duration = Duration::days(3650);
    /// The longest backdate.
    pub const MAX_BACKDATE: Duration = Duration::hours(24);

    /// The longest time for a confirmation. Nobody can use an unconfirmed certificate, but every
    /// list that has it gets longer.
    pub const MAX_CONFIRM_WITHIN: Duration = Duration::hours(24);

    /// The shortest time for a renewal. A shorter one would pass while a device that wakes once an
    /// hour sleeps.
    pub const MIN_RENEW_BEFORE: Duration = Duration::hours(1);

    /// The shortest use of a shared key. A device that can be made to ask for the next one more
    /// often would use up its quota.
    pub const MIN_ROTATION: Duration = Duration::days(1);

    /// Certificates are valid for `validity` from now, and from `backdate` before now because some
    /// devices' clocks are slow.
    pub fn new(validity: Duration, backdate: Duration) -> Result<Self, ProfileError> {
        if !(Self::MIN_VALIDITY..=Self::MAX_VALIDITY).contains(&validity) {
            return Err(ProfileError::Validity { found: validity });
        }
        if !(Duration::ZERO..=Self::MAX_BACKDATE).contains(&backdate) {
            return Err(ProfileError::Backdate { found: backdate });
        }
        Ok(Self { validity, backdate, ..Self::default() })
    }

    /// The same profile, with this time to confirm a sealed certificate.
    pub fn with_confirmation(self, confirm_within: Duration) -> Result<Self, ProfileError> {
        if !(Duration::SECOND..=Self::MAX_CONFIRM_WITHIN).contains(&confirm_within) {
            return Err(ProfileError::Confirmation { found: confirm_within });
        }
        Ok(Self { confirm_within, ..self })
    }

    /// The same profile, in which certificates are renewed from this long before their end on.
    /// `None` stands for a third of their lifetime.
    pub fn with_renewal(self, renew_before: Option<Duration>) -> Result<Self, ProfileError> {
        let longest = self.validity;
        match renew_before {
            Some(found) if !(Self::MIN_RENEW_BEFORE..=longest).contains(&found) => {
                Err(ProfileError::Renewal { found, longest })
            }
            renew_before => Ok(Self { renew_before, ..self }),
        }
    }

    /// How long before its end a certificate may be renewed, if that is not a third of its
    /// lifetime.
    pub fn renew_before(&self) -> Option<Duration> {
        self.renew_before
    }

    /// The same profile, in which a shared key is used for this long. With `None`, devices are told
    /// nothing, and a key that is given again by policy is always the same.
    pub fn with_rotation(self, rotate_after: Option<Duration>) -> Result<Self, ProfileError> {
        match rotate_after {
            Some(found) if !(Self::MIN_ROTATION..=Self::MAX_VALIDITY).contains(&found) => {
                Err(ProfileError::Rotation { found })
            }
            rotate_after => Ok(Self { rotate_after, ..self }),
        }
    }

    /// For how long a shared key is used before the device asks for the next one.
    pub fn rotate_after(&self) -> Option<Duration> {
        self.rotate_after
    }

    /// The flows that are offered.
    pub fn flows(&self) -> &[Flow] {
        &self.flows
    }

    /// The same profile, with these flows alone.
    pub fn with_flows(self, flows: Vec<Flow>) -> Result<Self, ProfileError> {
        if flows.is_empty() {
            return Err(ProfileError::NoFlow);
        }
        Ok(Self { flows, ..self })
    }

    /// Refuses a flow that the scope does not offer.
    pub fn offer<F: FlowKind>(&self) -> Result<Offered<F>, Rejection> {
        if self.offers(F::FLOW) {
            return Ok(Offered { flow: Some(F::FLOW), kind: PhantomData });
        }
        let offered = self.flows.iter().map(Flow::to_string).collect::<Vec<_>>().join(", ");
        Err(Rejection::FlowNotOffered { flow: F::FLOW, offered })
    }

    /// Whether the scope offers a flow.
    pub fn offers(&self, flow: Flow) -> bool {
        self.flows.contains(&flow)
    }

    /// How long a device has to confirm a sealed certificate.
    pub fn confirm_within(&self) -> Duration {
        self.confirm_within
    }

    /// How long a certificate is valid after its issue.
    pub fn validity(&self) -> Duration {
        self.validity
    }

    /// The profile of a device whose group says how long its certificates are valid, but no longer
    /// than this one says: how long a revocation must be listed follows from this one. When a
    /// certificate is renewed follows from its own lifetime.
    pub fn lasting(&self, lifetime: Option<Duration>) -> Cow<'_, Self> {
        match lifetime {
            Some(validity) if validity < self.validity => {
                Cow::Owned(Self { validity, ..self.clone() })
            }
            _ => Cow::Borrowed(self),
        }
    }

    /// How long a certificate is valid before its issue.
    pub fn backdate(&self) -> Duration {
        self.backdate
    }
}

impl Default for Profile {
    /// 90 days, backdated by five minutes; ten minutes to confirm; 90 days for a shared key; the
    /// two flows that lead to a certificate.
    fn default() -> Self {
        Self {
            validity: Duration::days(90),
            backdate: Duration::minutes(5),
            confirm_within: Duration::minutes(10),
            renew_before: None,
            rotate_after: Some(Duration::days(90)),
            flows: vec![Flow::Ticket, Flow::Sealed],
        }
    }
}

/// A flow as a type, so that a check made for one flow does not serve another.
pub trait FlowKind {
    /// The flow.
    const FLOW: Flow;
}

/// [`Flow::Ticket`].
#[derive(Clone, Copy, Debug)]
pub enum TicketFlow {}

/// [`Flow::Sealed`].
#[derive(Clone, Copy, Debug)]
pub enum SealedFlow {}

/// [`Flow::SharedKey`].
#[derive(Clone, Copy, Debug)]
pub enum SharedKeyFlow {}

impl FlowKind for TicketFlow {
    const FLOW: Flow = Flow::Ticket;
}

/// Marks a renewal. It is offered to whoever has a certificate, whichever flows a scope offers.
#[derive(Clone, Copy, Debug)]
pub enum RenewFlow {}

impl Offered<RenewFlow> {
    /// Every scope offers renewals.
    pub const ALWAYS: Self = Self { flow: None, kind: PhantomData };
}

impl FlowKind for SealedFlow {
    const FLOW: Flow = Flow::Sealed;
}

impl FlowKind for SharedKeyFlow {
    const FLOW: Flow = Flow::SharedKey;
}

/// A flow that the scope offers.
#[derive(Clone, Copy, Debug)]
pub struct Offered<F> {
    /// `None` for a renewal.
    pub(crate) flow: Option<Flow>,
    kind: PhantomData<F>,
}

/// A profile outside its bounds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)] // each variant's message is its documentation
pub enum ProfileError {
    #[error("validity is {found}, outside {} to {}", Profile::MIN_VALIDITY, Profile::MAX_VALIDITY)]
    Validity { found: Duration },
    #[error("the time to confirm is {found}, outside 1 s to {}", Profile::MAX_CONFIRM_WITHIN)]
    Confirmation { found: Duration },
    #[error("the time for renewals is {found}, outside {} to {longest}", Profile::MIN_RENEW_BEFORE)]
    Renewal { found: Duration, longest: Duration },
    #[error(
        "the time for shared keys is {found}, outside {} to {}",
        Profile::MIN_ROTATION,
        Profile::MAX_VALIDITY
    )]
    Rotation { found: Duration },
    #[error("no flow is offered, so no device could be provisioned")]
    NoFlow,
    #[error("backdate is {found}, outside 0 to {}", Profile::MAX_BACKDATE)]
    Backdate { found: Duration },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flow_that_is_not_offered_is_refused() {
        let profile = Profile::default().with_flows(vec![Flow::Ticket, Flow::SharedKey]).unwrap();
        profile.offer::<TicketFlow>().unwrap();
        let refusal = profile.offer::<SealedFlow>().unwrap_err();
        assert_eq!(
            refusal.to_string(),
            "the flow sealed is not offered; offered are: ticket, shared-key"
        );
        assert_eq!(Profile::default().with_flows(vec![]), Err(ProfileError::NoFlow));
        let offered = Flow::ALL.map(|flow| Profile::default().offers(flow));
        assert_eq!(offered, [true, true, false], "shared keys are the operator's decision");
    }

    #[test]
    fn time_for_renewals_is_bounded() {
        let profile = Profile::default();
        for good in [None, Some(Profile::MIN_RENEW_BEFORE), Some(profile.validity())] {
            profile.clone().with_renewal(good).unwrap();
        }
        let short = Profile::MIN_RENEW_BEFORE - Duration::SECOND;
        for bad in [short, profile.validity() + Duration::SECOND] {
            profile.clone().with_renewal(Some(bad)).unwrap_err();
        }
    }

    #[test]
    fn time_for_shared_keys_is_bounded() {
        let (shortest, longest) = (Profile::MIN_ROTATION, Profile::MAX_VALIDITY);
        for good in [None, Some(shortest), Some(longest)] {
            Profile::default().with_rotation(good).unwrap();
        }
        for bad in [shortest - Duration::SECOND, longest + Duration::SECOND] {
            let refused = Profile::default().with_rotation(Some(bad));
            assert_eq!(refused, Err(ProfileError::Rotation { found: bad }));
        }
    }

    #[test]
    fn time_to_confirm_is_bounded() {
        for good in [Duration::SECOND, Profile::MAX_CONFIRM_WITHIN] {
            Profile::default().with_confirmation(good).unwrap();
        }
        for bad in [Duration::ZERO, Profile::MAX_CONFIRM_WITHIN + Duration::SECOND] {
            let refused = Profile::default().with_confirmation(bad);
            assert_eq!(refused, Err(ProfileError::Confirmation { found: bad }));
        }
    }

    #[test]
    fn bounds_are_inclusive() {
        for good in [Profile::MIN_VALIDITY, Profile::MAX_VALIDITY] {
            Profile::new(good, Profile::MAX_BACKDATE).unwrap();
        }
        for bad in
            [Profile::MIN_VALIDITY - Duration::SECOND, Profile::MAX_VALIDITY + Duration::SECOND]
        {
            assert_eq!(
                Profile::new(bad, Duration::ZERO),
                Err(ProfileError::Validity { found: bad })
            );
        }
        for bad in [-Duration::SECOND, Profile::MAX_BACKDATE + Duration::SECOND] {
            assert_eq!(
                Profile::new(Duration::days(1), bad),
                Err(ProfileError::Backdate { found: bad })
            );
        }
    }
}

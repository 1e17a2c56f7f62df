//! How long device certificates live.

use time::Duration;

/// The times of a device certificate. Everything else in it is fixed, and nothing in it is the device's choice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Profile {
    validity: Duration,
    backdate: Duration,
}

impl Profile {
    /// The shortest validity: less would expire under devices that wake once an hour.
    pub const MIN_VALIDITY: Duration = Duration::hours(1);
    /// The longest validity: revocation that nobody fetches ends at the latest then.
    pub const MAX_VALIDITY: Duration = Duration::days(3650);
    /// The longest backdate.
    pub const MAX_BACKDATE: Duration = Duration::hours(24);

    /// Certificates valid for `validity` from now, and from `backdate` before now for devices whose clocks are slow.
    pub fn new(validity: Duration, backdate: Duration) -> Result<Self, ProfileError> {
        if !(Self::MIN_VALIDITY..=Self::MAX_VALIDITY).contains(&validity) {
            return Err(ProfileError::Validity { found: validity });
        }
        if !(Duration::ZERO..=Self::MAX_BACKDATE).contains(&backdate) {
            return Err(ProfileError::Backdate { found: backdate });
        }
        Ok(Self { validity, backdate })
    }

    /// How long after its issue a certificate is valid.
    pub fn validity(&self) -> Duration {
        self.validity
    }

    /// How long before its issue a certificate is valid.
    pub fn backdate(&self) -> Duration {
        self.backdate
    }
}

impl Default for Profile {
    /// 90 days, backdated by five minutes.
    fn default() -> Self {
        Self { validity: Duration::days(90), backdate: Duration::minutes(5) }
    }
}

/// A profile outside its bounds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)] // each variant's message is its documentation
pub enum ProfileError {
    #[error("validity is {found}, outside {} to {}", Profile::MIN_VALIDITY, Profile::MAX_VALIDITY)]
    Validity { found: Duration },
    #[error("backdate is {found}, outside 0 to {}", Profile::MAX_BACKDATE)]
    Backdate { found: Duration },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_are_inclusive() {
        for good in [Profile::MIN_VALIDITY, Profile::MAX_VALIDITY] {
            Profile::new(good, Profile::MAX_BACKDATE).unwrap();
        }
        for bad in [Profile::MIN_VALIDITY - Duration::SECOND, Profile::MAX_VALIDITY + Duration::SECOND] {
            assert_eq!(Profile::new(bad, Duration::ZERO), Err(ProfileError::Validity { found: bad }));
        }
        for bad in [-Duration::SECOND, Profile::MAX_BACKDATE + Duration::SECOND] {
            assert_eq!(Profile::new(Duration::days(1), bad), Err(ProfileError::Backdate { found: bad }));
        }
    }
}

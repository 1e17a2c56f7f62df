//! All issuing CAs of a CA. Each is used from its time on, until the next one is.

use std::sync::Arc;

use rustls_pki_types::CertificateDer;
use time::{Duration, OffsetDateTime};

use super::issuer::{Issuer, IssuerError};
use super::serial::issued_at;

/// An issuing CA, and from when on it is used.
#[derive(Clone, Debug)]
pub struct Scheduled {
    /// `None` is the first of all.
    pub from: Option<OffsetDateTime>,
    /// Its certificate and its key.
    pub issuer: Arc<Issuer>,
}

impl Scheduled {
    /// Whether it can have signed the certificate with this serial number, as far as the time of
    /// issue in it says. Workers may change to another issuing CA some time after each other, and
    /// their clocks are not the same, so this says no only if that was more than [`HANDOVER`]
    /// before its time.
    pub fn may_have_signed(&self, serial: &[u8; 16]) -> bool {
        match (self.from, issued_at(serial)) {
            (Some(from), Some(issued_at)) => issued_at >= from - HANDOVER,
            _ => true,
        }
    }
}

/// How far apart the times may be at which workers change to the next issuing CA.
pub const HANDOVER: Duration = Duration::days(1);

/// The issuing CAs of a CA: the one in use, those of before, and those to come.
///
/// At most one of them signs certificates at a time. Each signs a revocation list.
#[derive(Debug)]
pub struct Issuers {
    /// In the order of their times; never empty.
    all: Vec<Scheduled>,
}

impl Issuers {
    /// Takes the issuing CAs of a CA. Each leads to one of `roots`. The one that is used `now` is
    /// valid now, and each later one when its time comes (RFC 5280 §6.1.3). One of before may have
    /// ended. No two have a time, a name or a key identifier in common: relying parties find the
    /// issuer of a certificate or of a list by these.
    ///
    /// # Errors
    /// There is none, or one of them is not like this.
    pub fn new(
        all: Vec<(Option<OffsetDateTime>, Issuer)>,
        roots: &[CertificateDer<'_>],
        now: OffsetDateTime,
    ) -> Result<Self, IssuersError> {
        let mut sorted = all;
        sorted.sort_by_key(|(from, _)| *from);
        let in_use = position_at(sorted.iter().map(|(from, _)| *from), now);
        let mut all: Vec<Scheduled> = Vec::new();
        for (position, (from, issuer)) in sorted.into_iter().enumerate() {
            let fail = |error| IssuersError::Unusable { from, error };
            let issuer = issuer.under(roots).map_err(fail)?;
            let issuer = match from {
                _ if position < in_use => issuer,
                Some(from) if position > in_use => issuer.valid_at(from).map_err(fail)?,
                _ => issuer.valid_at(now).map_err(fail)?,
            };
            let is_alike = |other: &&Scheduled| {
                other.from == from
                    || other.issuer.subject == issuer.subject
                    || other.issuer.key_id == issuer.key_id
            };
            if let Some(other) = all.iter().find(is_alike) {
                return Err(IssuersError::Alike { from, other: other.from });
            }
            all.push(Scheduled { from, issuer: Arc::new(issuer) });
        }
        if all.is_empty() {
            return Err(IssuersError::None);
        }
        Ok(Self { all })
    }

    /// The one that signs new certificates at this time: the last whose time is not after it.
    pub fn current(&self, now: OffsetDateTime) -> &Arc<Issuer> {
        &self.in_use(now).issuer
    }

    /// The same, with its time.
    pub fn in_use(&self, now: OffsetDateTime) -> &Scheduled {
        &self.all[position_at(self.all.iter().map(|it| it.from), now)]
    }

    /// The one that signed this certificate. `None` if none of them did.
    pub fn of(&self, leaf: &[u8]) -> Option<&Arc<Issuer>> {
        self.all.iter().map(|it| &it.issuer).find(|issuer| issuer.has_signed(leaf))
    }

    /// All of them, in the order of their times.
    pub fn all(&self) -> &[Scheduled] {
        &self.all
    }
}

/// Which of these times, which are in their order, is the last that is not after `now`. If all are
/// after it, that is the first: a CA always has one to sign with.
fn position_at(times: impl Iterator<Item = Option<OffsetDateTime>>, now: OffsetDateTime) -> usize {
    times.take_while(|from| from.is_none_or(|from| from <= now)).count().saturating_sub(1)
}

/// Why these are not the issuing CAs of a CA.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)] // each variant's message is its documentation
pub enum IssuersError {
    #[error("there is no issuing CA")]
    None,
    #[error("the issuing CA that is used from {}: {error}", shown(*from))]
    Unusable { from: Option<OffsetDateTime>, error: IssuerError },
    #[error(
        "the issuing CAs that are used from {} and from {} have the same name, key or time",
        shown(*other),
        shown(*from)
    )]
    Alike { from: Option<OffsetDateTime>, other: Option<OffsetDateTime> },
}

fn shown(from: Option<OffsetDateTime>) -> String {
    from.map_or_else(|| "the beginning".into(), |from| from.to_string())
}

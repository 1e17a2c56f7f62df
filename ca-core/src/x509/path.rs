//! Checks whether certificates that signed each other make a valid path (RFC 5280 §6.1), in one
//! pass from the anchor to the EK certificate.

use time::OffsetDateTime;

use super::certificate::{AltName, Certificate, EkUsage, NameConstraints};
use super::name::Name;
use super::policies::PolicyState;
use crate::{oid, rfc3339};

/// Checks everything about a path except its signatures, which the caller has verified.
///
/// `path` goes from the certificate that `anchor` signed to the one in question. None of its
/// certificates is self-issued, so the exceptions of RFC 5280 for such certificates never apply.
///
/// The anchor's constraints on the certificates below it apply too (RFC 5937 §3). Its validity does
/// not: trusting the anchor is the operator's decision, and so is removing it (RFC 5280 §6.1.1 d).
pub(crate) fn check_path(
    anchor: &Certificate,
    path: &[&Certificate],
    purpose: Purpose,
    now: OffsetDateTime,
) -> Result<(), Broken> {
    let mut state = State::below(anchor)?;
    let Some((last, issuers)) = path.split_last() else { return Ok(()) };
    for (certificate, position) in issuers.iter().zip(1..) {
        let broken = |rule| Broken { position, rule };
        state.process(certificate, now).map_err(broken)?;
        state.prepare_for_next(certificate).map_err(broken)?;
    }
    let broken = |rule| Broken { position: path.len(), rule };
    state.process(last, now).map_err(broken)?;
    match purpose {
        Purpose::BeEk => state.wrap_up(last).map_err(broken),
        Purpose::Issue => state.prepare_for_next(last).map_err(broken),
    }
}

/// What the last certificate of a path is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// It is for an EK.
    BeEk,
    /// It is for a CA that issues certificates for EKs.
    Issue,
}

impl Certificate {
    /// Whether it may issue certificates for EKs at all: it is a CA (RFC 5280 §6.1.4 k, n), its
    /// extended key usage allows it, and it has no unknown critical extension.
    pub(crate) fn check_issuer(&self) -> Result<(), Rule> {
        if !self.extensions.is_ca {
            return Err(Rule::NotACa);
        }
        if self.extensions.may_sign_certificates == Some(false) {
            return Err(Rule::MayNotSign);
        }
        // RFC 5280 has no rule for issuers here. In practice, an issuer whose extended key usage is
        // for other uses may not issue for this one, and vendors write the extension for that
        // reason.
        if self.extensions.ek_usage == EkUsage::Excluded {
            return Err(Rule::IssuerUsage);
        }
        self.check_critical()
    }

    fn check_critical(&self) -> Result<(), Rule> {
        match &self.extensions.unknown_critical {
            Some(extension) => Err(Rule::UnknownCritical(extension.clone())),
            None => Ok(()),
        }
    }
}

/// Which rule a path breaks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Broken {
    /// Position of the certificate: 0 is the anchor, 1 is the certificate that it signed.
    pub(crate) position: usize,
    pub(crate) rule: Rule,
}

/// A rule that a certificate breaks. The text is a sentence without its subject.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Rule {
    #[error(
        "is valid only from {} to {}; it is {}, so it has expired",
        rfc3339(not_before),
        rfc3339(not_after),
        rfc3339(now)
    )]
    Expired { not_before: OffsetDateTime, not_after: OffsetDateTime, now: OffsetDateTime },
    #[error(
        "is valid only from {} to {}; it is {}, so it is not valid yet",
        rfc3339(not_before),
        rfc3339(not_after),
        rfc3339(now)
    )]
    NotYetValid { not_before: OffsetDateTime, not_after: OffsetDateTime, now: OffsetDateTime },
    #[error("is not a CA's: it lacks basicConstraints with cA (RFC 5280, 4.2.1.9)")]
    NotACa,
    #[error("may not sign certificates: its keyUsage lacks keyCertSign (RFC 5280, 4.2.1.3)")]
    MayNotSign,
    #[error(
        "is for other uses: its extendedKeyUsage has neither tcg-kp-EKCertificate (2.23.133.8.1) \
         nor anyExtendedKeyUsage"
    )]
    IssuerUsage,
    #[error("is below a CA whose pathLenConstraint allows fewer CAs below it (RFC 5280, 4.2.1.9)")]
    PathLength,
    #[error(
        "has the critical extension {0}, which is not understood, so it must be refused (RFC \
         5280, 4.2)"
    )]
    UnknownCritical(String),
    #[error("has a name that an issuer's name constraints do not permit (RFC 5280, 4.2.1.10)")]
    NameNotPermitted,
    #[error("has a name that an issuer's name constraints exclude (RFC 5280, 4.2.1.10)")]
    NameExcluded,
    #[error(
        "has a name that cannot be compared with an issuer's name constraints, so the certificate \
         must be refused (RFC 5280, 4.2.1.10)"
    )]
    NameUnclear,
    #[error("is not issued under the certificate policies that the path demands (RFC 5280, 6.1)")]
    Policy,
    #[error("is a CA's, not an EK's")]
    EkIsCa,
}

/// The state variables of RFC 5280 §6.1.2. The caller, which verifies the signatures, has the
/// working key and name.
struct State<'a> {
    policies: PolicyState,
    /// How many more CAs may follow.
    path_length: u32,
    /// Permitted and excluded subtrees, one entry for each issuer. All of them apply.
    name_constraints: Vec<&'a NameConstraints>,
}

impl<'a> State<'a> {
    fn below(anchor: &'a Certificate) -> Result<Self, Broken> {
        // One more CA than may follow, because the anchor itself takes one.
        let mut state = Self {
            policies: PolicyState::new(),
            path_length: u32::MAX,
            name_constraints: Vec::new(),
        };
        state.prepare_for_next(anchor).map_err(|rule| Broken { position: 0, rule })?;
        Ok(state)
    }

    /// RFC 5280 §6.1.3, except signature and revocation. Also checks critical extensions, which the
    /// RFC does at the end.
    fn process(&mut self, certificate: &Certificate, now: OffsetDateTime) -> Result<(), Rule> {
        let Certificate { not_before, not_after, .. } = *certificate;
        if now.unix_timestamp() > not_after.unix_timestamp() {
            return Err(Rule::Expired { not_before, not_after, now });
        }
        if now.unix_timestamp() < not_before.unix_timestamp() {
            return Err(Rule::NotYetValid { not_before, not_after, now });
        }
        certificate.check_critical()?;
        self.name_constraints.iter().try_for_each(|constraints| constraints.check(certificate))?;
        self.policies.process(&certificate.extensions.policies).map_err(|_| Rule::Policy)
    }

    /// RFC 5280 §6.1.4.
    fn prepare_for_next(&mut self, issuer: &'a Certificate) -> Result<(), Rule> {
        issuer.check_issuer()?;
        self.policies.prepare_for_next(&issuer.extensions.policies).map_err(|_| Rule::Policy)?;
        self.name_constraints.extend(&issuer.extensions.name_constraints);
        self.path_length = self.path_length.checked_sub(1).ok_or(Rule::PathLength)?;
        self.path_length = issuer
            .extensions
            .path_length
            .map_or(self.path_length, |length| length.min(self.path_length));
        Ok(())
    }

    /// RFC 5280 §6.1.5. Also refuses an EK certificate that is a CA's, because an EK only decrypts.
    fn wrap_up(self, ek_certificate: &Certificate) -> Result<(), Rule> {
        if ek_certificate.extensions.is_ca {
            return Err(Rule::EkIsCa);
        }
        self.policies.wrap_up(&ek_certificate.extensions.policies).map_err(|_| Rule::Policy)
    }
}

impl NameConstraints {
    /// Checks subject and alternative names, RFC 5280 §6.1.3 (b) and (c). Compares only directory
    /// names. A certificate with a name of another form that is constrained must be refused
    /// (§4.2.1.10).
    fn check(&self, certificate: &Certificate) -> Result<(), Rule> {
        let of_form = |bases: &[AltName], form: u8| {
            bases.iter().any(|base| matches!(base, AltName::Other(tag) if *tag == form))
        };
        let is_constrained = |form| of_form(&self.permitted, form) || of_form(&self.excluded, form);
        let subject = &certificate.subject;
        if subject.has(oid::EMAIL_ADDRESS) && is_constrained(RFC822_NAME) {
            return Err(Rule::NameUnclear);
        }
        let mut directory_names: Vec<_> =
            (!subject.is_empty()).then(|| subject.clone()).into_iter().collect();
        for name in &certificate.extensions.alt_names {
            match name {
                AltName::Directory(name) => {
                    directory_names.push(Name::read(name).ok_or(Rule::NameUnclear)?)
                }
                AltName::Other(form) if is_constrained(*form) => return Err(Rule::NameUnclear),
                AltName::Other(_) => {}
            }
        }
        let directory = |bases: &[AltName]| {
            let bases = bases.iter().filter_map(|base| match base {
                AltName::Directory(base) => Some(Name::read(base).ok_or(Rule::NameUnclear)),
                AltName::Other(_) => None,
            });
            bases.collect::<Result<Vec<_>, _>>()
        };
        let (permitted, excluded) = (directory(&self.permitted)?, directory(&self.excluded)?);
        for name in directory_names {
            if !permitted.is_empty() && !permitted.iter().any(|base| name.is_within(base)) {
                return Err(Rule::NameNotPermitted);
            }
            if excluded.iter().any(|base| name.is_within(base)) {
                return Err(Rule::NameExcluded);
            }
            if excluded.iter().any(|base| !base.is_ascii())
                || !excluded.is_empty() && !name.is_ascii()
            {
                return Err(Rule::NameUnclear);
            }
        }
        Ok(())
    }
}

/// `[1] IMPLICIT` of a string: an e-mail address among GeneralNames (RFC 5280 §4.2.1.6). A subject
/// may hold one as an attribute.
const RFC822_NAME: u8 = 0x81;

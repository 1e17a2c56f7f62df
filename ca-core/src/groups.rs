//! Groups: the operator's rules, in order, that say which EKs are admitted, and to what.

use std::fmt;
use std::str::FromStr;

use assay_wire::{DeviceId, EkId, Flow};
use time::{Duration, OffsetDateTime};

use crate::ek::ca_key::CaKey;
use crate::ek::facts::EkFacts;
use crate::ek::model::TpmModel;
use crate::flaws::Flaws;
use crate::ik::IkKind;
use crate::profile::Profile;
use crate::{hex, rfc3339};

/// The groups of a CA. The first one whose conditions all hold decides; if there is none, the EK is
/// not admitted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Groups(Vec<Group>);

/// A rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    /// Its name.
    pub name: GroupName,
    /// Which EKs it is for.
    pub conditions: Conditions,
    /// What happens to them.
    pub answer: Answer,
    /// What they may have, if they are admitted.
    pub terms: Terms,
}

/// What happens to an EK that a group is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// `admit`: it is admitted.
    Admit,
    /// `ask`: it is admitted once an operator has approved it, which puts it on the enrolment list.
    /// So an EK on that list is admitted.
    Ask,
    /// `refuse`: it is not admitted, not even again.
    Refuse,
}

impl Answer {
    /// Every answer.
    pub const ALL: [Self; 3] = [Self::Admit, Self::Ask, Self::Refuse];

    /// Its name in settings and in text for people.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Admit => "admit",
            Self::Ask => "ask",
            Self::Refuse => "refuse",
        }
    }
}

impl FromStr for Answer {
    type Err = GroupError;

    fn from_str(name: &str) -> Result<Self, GroupError> {
        let answer = Self::ALL.into_iter().find(|answer| answer.name() == name);
        answer.ok_or(GroupError::Answer)
    }
}

/// Which EKs a group is for: those for which every condition holds. A list that is empty is no
/// condition; of the others, one entry must fit.
///
/// Issuer, manufacturer, model and firmware are those of an EK certificate that leads to a trusted
/// vendor (TCG EK Credential Profile 2.5, 3.1.2). An enrolled EK without a certificate has those
/// that are [on record](EkFacts) with its enrolment, if there are any.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Conditions {
    /// The keys of CAs: one of them is on the path from the EK certificate to the anchor.
    pub issuers: Vec<CaKey>,
    /// The TPM's manufacturer.
    pub manufacturers: Vec<Manufacturer>,
    /// The TPM's model, as the certificate spells it.
    pub models: Vec<String>,
    /// The least firmware version.
    pub firmware: Option<Firmware>,
    /// Whether the TPM was made with firmware that has a known flaw.
    pub flawed: Option<bool>,
    /// Whether the EK is on the enrolment list.
    pub enrolled: Option<bool>,
    /// The EK's id, or its beginning.
    pub eks: Vec<EkPrefix>,
}

/// What devices of a group may have. None of it ends what a registered device has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Terms {
    /// The flows that may be used, among those that the scope offers; if empty, all of these.
    pub flows: Vec<Flow>,
    /// No device is admitted before this time.
    pub not_before: Option<OffsetDateTime>,
    /// No device is admitted from this time on.
    pub not_after: Option<OffsetDateTime>,
    /// The most devices, counted from when it was set.
    pub quota: Option<u32>,
    /// The kinds of identity key for which there are certificates; if empty, all of them.
    pub ik_kinds: Vec<IkKind>,
    /// How long certificates are valid, if that is not what the scope says.
    pub lifetime: Option<Duration>,
    /// Which device ids new devices get, if not the ones that follow from their EKs. They are on
    /// the enrolment list from then on.
    pub names: Option<NamePattern>,
}

/// An EK about which an operator is asked. Its certificate leads to a trusted vendor; nothing shows
/// that the sender has its TPM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Applicant {
    /// The EK.
    pub ek_id: EkId,
    /// What its certificate says of its TPM.
    pub facts: EkFacts,
    /// The flow that was asked for.
    pub flow: Flow,
    /// The device id that was asked for.
    pub device_id: Option<DeviceId>,
    /// For how long an operator has been asked.
    pub waited: Duration,
}

/// Why an EK is not admitted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)] // each variant's message is its documentation
pub enum Unadmitted {
    #[error("no group is for it ({0})")]
    NoGroup(String),
    #[error("group {0} refuses it")]
    Refused(GroupName),
    #[error("group {group} admits devices from {} on", rfc3339(from))]
    TooEarly { group: GroupName, from: OffsetDateTime },
    #[error("group {group} admitted devices until {}", rfc3339(until))]
    TooLate { group: GroupName, until: OffsetDateTime },
    #[error("group {group} takes identity keys of these kinds: {allowed}; and not {found}")]
    IkKind { group: GroupName, found: IkKind, allowed: String },
    #[error("group {group} has as many devices as it may: {quota}")]
    Full { group: GroupName, quota: u32 },
}

/// A device id with `{n}` in it, which stands for a number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamePattern {
    before: String,
    after: String,
}

impl NamePattern {
    /// The device id with this number.
    pub fn at(&self, number: u32) -> DeviceId {
        let Self { before, after } = self;
        format!("{before}{number}{after}").parse().expect("it was tried with the longest number")
    }
}

impl fmt::Display for NamePattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{{n}}{}", self.before, self.after)
    }
}

impl FromStr for NamePattern {
    type Err = GroupError;

    fn from_str(text: &str) -> Result<Self, GroupError> {
        let (before, after) = text.split_once("{n}").ok_or(GroupError::Pattern)?;
        let longest = format!("{before}{}{after}", u32::MAX);
        longest.parse::<DeviceId>().map_err(|_| GroupError::Pattern)?;
        Ok(Self { before: before.to_owned(), after: after.to_owned() })
    }
}

/// Which device id a new device of a group gets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Naming {
    /// The group.
    pub group: GroupName,
    /// The first number whose id is nobody's counts.
    pub names: NamePattern,
}

/// A place among the devices of a group that may have so many and no more.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Place {
    /// The group.
    pub group: GroupName,
    /// How many places it has.
    pub quota: u32,
}

impl Groups {
    /// The most groups: each request may look at all of them.
    pub const MAX: usize = 200;

    /// Puts groups in this order.
    ///
    /// # Errors
    /// Two have the same name, one contradicts itself, or there are too many.
    pub fn new(groups: Vec<Group>) -> Result<Self, GroupError> {
        if groups.len() > Self::MAX {
            return Err(GroupError::TooMany);
        }
        for (at, group) in groups.iter().enumerate() {
            group.check()?;
            if groups[..at].iter().any(|other| other.name == group.name) {
                return Err(GroupError::NameTaken(group.name.clone()));
            }
        }
        Ok(Self(groups))
    }

    /// What a new CA has: EKs on the enrolment list are admitted, and the operator is asked about
    /// those that a trusted vendor certified.
    pub fn of_new_ca() -> Self {
        let group = |name: &str, enrolled, answer| Group {
            name: GroupName(name.to_owned()),
            conditions: Conditions { enrolled, ..Conditions::default() },
            answer,
            terms: Terms::default(),
        };
        Self(vec![
            group("enrolled", Some(true), Answer::Admit),
            group("vendors", None, Answer::Ask),
        ])
    }

    /// In their order.
    pub fn all(&self) -> &[Group] {
        &self.0
    }

    /// The group that an EK belongs to.
    pub(crate) fn of(&self, comer: &Comer<'_>) -> Option<&Group> {
        self.0.iter().find(|group| group.conditions.hold(comer))
    }

    /// The group that an EK belongs to, for people; `facts` are those of its certificate, or else
    /// those on record.
    pub fn of_ek(
        &self,
        ek: EkId,
        facts: Option<&EkFacts>,
        flaws: &Flaws,
        is_enrolled: bool,
    ) -> Option<&Group> {
        self.of(&Comer { ek, facts, flaws, is_enrolled })
    }

    /// The same with another group, in front of the one with the name `before`, or last.
    ///
    /// # Errors
    /// See [`new`](Self::new); or there is no group `before`.
    pub fn with(&self, group: Group, before: Option<&GroupName>) -> Result<Self, GroupError> {
        let mut groups = self.0.clone();
        let at = before.map_or(Ok(groups.len()), |before| self.position(before))?;
        groups.insert(at, group);
        Self::new(groups)
    }

    /// The same without this group. Returns it, too.
    ///
    /// # Errors
    /// There is none of this name.
    pub fn without(&self, name: &GroupName) -> Result<(Self, Group), GroupError> {
        let mut groups = self.0.clone();
        let group = groups.remove(self.position(name)?);
        Ok((Self(groups), group))
    }

    /// The same with this group in place of the one that has its name.
    ///
    /// # Errors
    /// See [`new`](Self::new); or there is none of this name.
    pub fn replacing(&self, group: Group) -> Result<Self, GroupError> {
        let mut groups = self.0.clone();
        let at = self.position(&group.name)?;
        groups[at] = group;
        Self::new(groups)
    }

    /// The group with this name.
    ///
    /// # Errors
    /// There is none.
    pub fn get(&self, name: &GroupName) -> Result<&Group, GroupError> {
        Ok(&self.0[self.position(name)?])
    }

    fn position(&self, name: &GroupName) -> Result<usize, GroupError> {
        let at = self.0.iter().position(|group| group.name == *name);
        at.ok_or_else(|| GroupError::NoSuchGroup(name.clone()))
    }
}

impl Group {
    fn check(&self) -> Result<(), GroupError> {
        let Conditions { issuers, manufacturers, models, eks, .. } = &self.conditions;
        let lengths = [issuers.len(), manufacturers.len(), models.len(), eks.len()];
        if lengths.into_iter().any(|length| length > Conditions::MAX_ENTRIES) {
            return Err(GroupError::TooLong(self.name.clone()));
        }
        if models.iter().any(|model| model.is_empty() || model.len() > Conditions::MAX_MODEL) {
            return Err(GroupError::Model);
        }
        if let (Some(from), Some(until)) = (self.terms.not_before, self.terms.not_after)
            && from >= until
        {
            return Err(GroupError::Never(self.name.clone()));
        }
        if self.terms.quota.is_some_and(|quota| !(1..=Terms::MAX_QUOTA).contains(&quota)) {
            return Err(GroupError::Quota);
        }
        // Anybody with an EK certificate that the group is for can have a row made.
        if self.terms.names.is_some()
            && (self.answer != Answer::Admit || self.terms.quota.is_none())
        {
            return Err(GroupError::Names(self.name.clone()));
        }
        let lifetimes = Profile::MIN_VALIDITY..=Profile::MAX_VALIDITY;
        if self.terms.lifetime.is_some_and(|lifetime| !lifetimes.contains(&lifetime)) {
            return Err(GroupError::Lifetime);
        }
        Ok(())
    }
}

impl Terms {
    /// The largest quota: whoever gets a place waits until those that are taken are counted.
    pub const MAX_QUOTA: u32 = 100_000;
}

impl Conditions {
    /// The most entries of a list: the enrolment list is for more.
    pub const MAX_ENTRIES: usize = 1_000;
    /// The longest model, in bytes: certificates have some ten.
    pub const MAX_MODEL: usize = 64;

    /// Whether they hold for no EK of which nothing is known from a certificate.
    pub fn need_a_certificate(&self) -> bool {
        let Self { issuers, manufacturers, models, firmware, flawed, .. } = self;
        let are_empty = issuers.is_empty() && manufacturers.is_empty() && models.is_empty();
        !are_empty || firmware.is_some() || *flawed == Some(true)
    }

    fn hold(&self, comer: &Comer<'_>) -> bool {
        let Self { issuers, manufacturers, models, firmware, flawed, enrolled, eks } = self;
        let Comer { ek, facts, flaws, is_enrolled } = comer;
        let tpm = facts.and_then(|facts| facts.tpm.as_ref());
        let path = facts.map_or(&[][..], |facts| &facts.issuers);
        let of_tpm = |fits: &dyn Fn(&TpmModel) -> bool| tpm.is_some_and(fits);
        (issuers.is_empty() || issuers.iter().any(|issuer| path.contains(issuer)))
            && (manufacturers.is_empty()
                || of_tpm(&|tpm| {
                    tpm.manufacturer.parse().is_ok_and(|found| manufacturers.contains(&found))
                }))
            && (models.is_empty() || of_tpm(&|tpm| models.contains(&tpm.model)))
            && firmware.is_none_or(|least| {
                of_tpm(&|tpm| tpm.version.parse().is_ok_and(|found| least.is_met_by(found)))
            })
            && flawed.is_none_or(|wanted| {
                wanted == facts.is_some_and(|facts| flaws.of(facts).next().is_some())
            })
            && enrolled.is_none_or(|wanted| wanted == *is_enrolled)
            && (eks.is_empty() || eks.iter().any(|prefix| prefix.fits(ek)))
    }
}

/// What conditions are about.
pub(crate) struct Comer<'a> {
    pub(crate) ek: EkId,
    pub(crate) facts: Option<&'a EkFacts>,
    pub(crate) flaws: &'a Flaws,
    pub(crate) is_enrolled: bool,
}

/// The name of a group: 1 to 58 letters, digits, `.`, `_` and `-`. After `group:`, it is the name of
/// one who acts, in the audit, and these are as long as client ids.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct GroupName(String);

impl GroupName {
    /// As text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for GroupName {
    type Err = GroupError;

    fn from_str(text: &str) -> Result<Self, GroupError> {
        let fits = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
        match (1..=58).contains(&text.len()) && text.chars().all(fits) {
            true => Ok(Self(text.to_owned())),
            false => Err(GroupError::Name),
        }
    }
}

impl fmt::Display for GroupName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// A TPM's manufacturer, as TCG's Vendor ID Registry has it: `id:` and four bytes in hexadecimal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Manufacturer([u8; 4]);

impl fmt::Display for Manufacturer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "id:{}", hex(&self.0).to_ascii_uppercase())
    }
}

impl FromStr for Manufacturer {
    type Err = GroupError;

    fn from_str(text: &str) -> Result<Self, GroupError> {
        let bytes = text.strip_prefix("id:").and_then(|digits| {
            data_encoding::HEXLOWER_PERMISSIVE.decode(digits.as_bytes()).ok()?.try_into().ok()
        });
        bytes.map(Self).ok_or(GroupError::Manufacturer)
    }
}

/// The version of a TPM's firmware: `id:` and 4 or 8 bytes in hexadecimal. Vendors number their
/// versions upward; versions of different length cannot be compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Firmware {
    digits: usize,
    number: u64,
}

impl Firmware {
    fn is_met_by(self, found: Self) -> bool {
        self.digits == found.digits && self.number <= found.number
    }

    /// Whether it lies between these two, or is one of them.
    pub fn is_within(self, first: Self, last: Self) -> bool {
        first.is_met_by(self) && self.is_met_by(last)
    }
}

impl fmt::Display for Firmware {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "id:{:0width$X}", self.number, width = self.digits)
    }
}

impl FromStr for Firmware {
    type Err = GroupError;

    fn from_str(text: &str) -> Result<Self, GroupError> {
        let digits = text.strip_prefix("id:").ok_or(GroupError::Firmware)?;
        let is_hex = digits.bytes().all(|digit| digit.is_ascii_hexdigit());
        if !is_hex || ![8, 16].contains(&digits.len()) {
            return Err(GroupError::Firmware);
        }
        let number = u64::from_str_radix(digits, 16).map_err(|_| GroupError::Firmware)?;
        Ok(Self { digits: digits.len(), number })
    }
}

/// An EK id, or the digits that it begins with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EkPrefix(String);

impl EkPrefix {
    fn fits(&self, ek: &EkId) -> bool {
        ek.to_string().starts_with(&self.0)
    }
}

impl From<EkId> for EkPrefix {
    fn from(ek: EkId) -> Self {
        Self(ek.to_string())
    }
}

impl fmt::Display for EkPrefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for EkPrefix {
    type Err = GroupError;

    fn from_str(text: &str) -> Result<Self, GroupError> {
        let is_hex = text.bytes().all(|digit| digit.is_ascii_hexdigit());
        match is_hex && (1..=2 * EkId::LEN).contains(&text.len()) {
            true => Ok(Self(text.to_ascii_lowercase())),
            false => Err(GroupError::Ek),
        }
    }
}

/// Why there can be no such group.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)] // each variant's message is its documentation
pub enum GroupError {
    #[error("the name of a group has 1 to 58 letters, digits, dots, underscores and hyphens")]
    Name,
    #[error("expected admit, ask or refuse")]
    Answer,
    #[error(
        "a manufacturer is id: and 8 hexadecimal digits, e.g. id:494E5443, as in EK certificates"
    )]
    Manufacturer,
    #[error(
        "a firmware version is id: and 8 or 16 hexadecimal digits, e.g. id:00010002, as in EK \
         certificates"
    )]
    Firmware,
    #[error("a model has 1 to {} bytes", Conditions::MAX_MODEL)]
    Model,
    #[error("an EK id has 64 hexadecimal digits; the first ones may stand for many EKs")]
    Ek,
    #[error("there is a group {0} already; `assay group update {0}` changes it")]
    NameTaken(GroupName),
    #[error("there is no group {0}; see `assay group list`")]
    NoSuchGroup(GroupName),
    #[error("there are {} groups already", Groups::MAX)]
    TooMany,
    #[error(
        "a list of group {0} has more than {max} entries; the enrolment list is for more",
        max = Conditions::MAX_ENTRIES
    )]
    TooLong(GroupName),
    #[error("a quota is 1 to {}", Terms::MAX_QUOTA)]
    Quota,
    #[error("a lifetime is 1 to {} days", Profile::MAX_VALIDITY.whole_days())]
    Lifetime,
    #[error("that is no device id with {{n}} in it, such as pump-{{n}}")]
    Pattern,
    #[error(
        "group {0} can give names if it admits and has a quota (--admit, --quota); elsewhere, \
         `assay pending approve --name` does"
    )]
    Names(GroupName),
    #[error("group {0} would end before it begins, and admit nobody")]
    Never(GroupName),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_read_back_as_they_are_written() {
        for text in ["id:494E5443", "id:00000000"] {
            assert_eq!(text.parse::<Manufacturer>().unwrap().to_string(), text);
        }
        for text in ["id:00010002", "id:0007000200030004", "id:FFFFFFFFFFFFFFFF"] {
            assert_eq!(text.parse::<Firmware>().unwrap().to_string(), text);
        }
        assert_eq!("AbC".parse::<EkPrefix>().unwrap().to_string(), "abc");
        for answer in Answer::ALL {
            assert_eq!(answer.name().parse(), Ok(answer));
        }
    }

    #[test]
    fn other_text_is_refused() {
        for text in ["INTC", "494E5443", "id:494E54", "id:494E544300", "id:494E544Z"] {
            assert_eq!(text.parse::<Manufacturer>(), Err(GroupError::Manufacturer), "{text}");
        }
        for text in ["1.2", "id:0102", "id:+0010002", "id:000100020"] {
            assert_eq!(text.parse::<Firmware>(), Err(GroupError::Firmware), "{text}");
        }
        for text in ["", "xyz", &"a".repeat(65)] {
            assert_eq!(text.parse::<EkPrefix>(), Err(GroupError::Ek), "{text}");
        }
        for text in ["", "a b", "ä", &"a".repeat(59)] {
            assert_eq!(text.parse::<GroupName>(), Err(GroupError::Name), "{text}");
        }
        assert!("perhaps".parse::<Answer>().is_err());
    }

    #[test]
    fn firmware_of_another_length_is_not_compared() {
        let firmware = |text: &str| text.parse::<Firmware>().unwrap();
        let least = firmware("id:00070055");
        assert!(
            least.is_met_by(firmware("id:00070055")) && least.is_met_by(firmware("id:00080000"))
        );
        assert!(!least.is_met_by(firmware("id:00070054")));
        assert!(!least.is_met_by(firmware("id:0008000000000000")));
    }

    #[test]
    fn groups_keep_their_order_and_their_names_apart() {
        let groups = Groups::of_new_ca();
        let named = |name: &str| Group {
            name: name.parse().unwrap(),
            conditions: Conditions::default(),
            answer: Answer::Refuse,
            terms: Terms::default(),
        };
        let names = |groups: &Groups| {
            groups.all().iter().map(|group| group.name.to_string()).collect::<Vec<_>>()
        };
        let before = "vendors".parse().unwrap();
        let more = groups.with(named("bad"), Some(&before)).unwrap();
        assert_eq!(names(&more), ["enrolled", "bad", "vendors"]);
        assert_eq!(names(&more.with(named("rest"), None).unwrap())[3], "rest");
        let taken = more.with(named("bad"), None);
        assert_eq!(taken, Err(GroupError::NameTaken("bad".parse().unwrap())));
        assert_eq!(more.without(&"bad".parse().unwrap()).unwrap(), (groups.clone(), named("bad")));
        assert!(groups.with(named("x"), Some(&"nobody".parse().unwrap())).is_err());
        assert!(groups.replacing(named("nobody")).is_err());
        let changed = groups.replacing(named("vendors")).unwrap();
        assert_eq!(changed.get(&before).unwrap().answer, Answer::Refuse);
    }

    #[test]
    fn a_group_that_could_never_admit_is_refused() {
        let mut group = Groups::of_new_ca().all()[0].clone();
        let at = OffsetDateTime::UNIX_EPOCH;
        group.terms = Terms { not_before: Some(at), not_after: Some(at), ..Terms::default() };
        assert_eq!(Groups::new(vec![group.clone()]), Err(GroupError::Never(group.name)));
    }

    #[test]
    fn names_stand_for_numbers_and_need_a_quota() {
        let names: NamePattern = "pump-{n}.north".parse().unwrap();
        assert_eq!(names.at(17).as_str(), "pump-17.north");
        assert_eq!(names.to_string(), "pump-{n}.north");
        for text in ["pump", "pump/{n}", "", &format!("{{n}}{}", "x".repeat(64))] {
            assert_eq!(text.parse::<NamePattern>(), Err(GroupError::Pattern), "{text}");
        }
        let mut group = Groups::of_new_ca().all()[0].clone();
        group.terms.names = Some(names);
        let refused = Err(GroupError::Names(group.name.clone()));
        assert_eq!(Groups::new(vec![group.clone()]), refused);
        group.terms.quota = Some(3);
        assert!(Groups::new(vec![group.clone()]).is_ok());
        group.answer = Answer::Ask;
        assert_eq!(Groups::new(vec![group]), refused);
    }

    #[test]
    fn lists_and_groups_have_limits() {
        let group = Groups::of_new_ca().all()[0].clone();
        let numbered = |n: usize| Group { name: GroupName(format!("g{n}")), ..group.clone() };
        let groups = |count| (0..count).map(numbered).collect();
        assert!(Groups::new(groups(Groups::MAX)).is_ok());
        assert_eq!(Groups::new(groups(Groups::MAX + 1)), Err(GroupError::TooMany));
        let long = Conditions {
            eks: vec![EkPrefix("ab".into()); Conditions::MAX_ENTRIES + 1],
            ..Conditions::default()
        };
        let long = Group { conditions: long, ..group };
        assert_eq!(Groups::new(vec![long.clone()]), Err(GroupError::TooLong(long.name)));
    }
}

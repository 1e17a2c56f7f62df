//! `assay group`: who is admitted, and to what.

use anyhow::{Context, Result};
use assay_ca_core::{
    Answer, CaKey, Conditions, EkPrefix, Firmware, Flaws, Group, GroupName, Groups, IkKind,
    Manufacturer, NamePattern,
};
use assay_server::directory::Directory;
use assay_server::operations::documents;
use assay_server::operations::groups::{self, Position};
use assay_server::rfc3339;
use assay_store::Store;
use assay_wire::Flow;
use clap::{ArgGroup, Args, Subcommand, ValueEnum};
use time::{Duration, OffsetDateTime};

use super::{list, table};

#[derive(Subcommand)]
pub(crate) enum GroupCommand {
    /// Add a group
    #[command(after_help = ADD_EXAMPLES, group = ArgGroup::new(ANSWER).required(true))]
    Add {
        /// 1 to 64 letters, digits, dots, underscores and hyphens
        name: GroupName,
        #[command(flatten)]
        rule: Rule,
        #[command(flatten)]
        answer: AnswerArgs,
        #[command(flatten)]
        place: PlaceArgs,
    },
    /// List the groups, in the order in which they are asked
    List(list::Json),
    /// Show one group
    Show {
        /// Its name
        name: GroupName,
        #[command(flatten)]
        json: list::Json,
    },
    /// Change a group: what is given takes the place of what was there
    Update {
        /// Its name
        name: GroupName,
        #[command(flatten)]
        rule: Rule,
        /// Conditions and terms to drop; with commas in between
        #[arg(long, value_name = "WHAT", value_delimiter = ',')]
        without: Vec<Part>,
        #[command(flatten)]
        answer: AnswerArgs,
        #[command(flatten)]
        place: PlaceArgs,
    },
    /// List the firmware with known flaws, which --flawed is about
    Flaws(list::Json),
    /// Remove a group. Devices that it admitted keep what they have
    Remove {
        /// Its name
        name: GroupName,
    },
}

/// Every condition that is given must hold; of one that is given several times, one value.
#[derive(Args)]
pub(crate) struct Rule {
    /// A CA on the path from the EK certificate to the root: a file with its certificate, or the
    /// fingerprint of a trusted one, or the beginning of that; may be repeated
    #[arg(long = "issuer", value_name = "CA")]
    issuers: Vec<String>,
    /// The TPM's manufacturer, as EK certificates have it, e.g. id:494E5443; may be repeated
    #[arg(long = "manufacturer", value_name = "ID")]
    manufacturers: Vec<Manufacturer>,
    /// The TPM's model, as EK certificates have it; may be repeated
    #[arg(long = "model", value_name = "MODEL")]
    models: Vec<String>,
    /// The least version of the TPM's firmware, as EK certificates have it, e.g. id:00070055
    #[arg(long, value_name = "VERSION")]
    firmware: Option<Firmware>,
    /// Only TPMs that were made with firmware that has a known flaw (`assay group flaws`); =false:
    /// only others
    #[arg(
        long,
        value_name = "true|false",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "true"
    )]
    flawed: Option<bool>,
    /// Only EKs on the enrolment list; =false: only EKs that are not
    #[arg(
        long,
        value_name = "true|false",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "true"
    )]
    enrolled: Option<bool>,
    /// The EK's id, or its first digits; may be repeated
    #[arg(long = "ek", value_name = "EK")]
    eks: Vec<EkPrefix>,
    /// A flow that the devices may use, among those that assay.toml offers; may be repeated
    #[arg(long = "flow", value_name = "FLOW")]
    flows: Vec<Flow>,
    /// Admit no device before this time (RFC 3339), or this day
    #[arg(long, value_name = "TIME", value_parser = time)]
    not_before: Option<OffsetDateTime>,
    /// Admit no device from this time or day on
    #[arg(long, value_name = "TIME", value_parser = time)]
    not_after: Option<OffsetDateTime>,
    /// Admit at most so many devices
    #[arg(long, value_name = "NUMBER")]
    quota: Option<u32>,
    /// Certify identity keys of this kind alone: p-256, p-384 or rsa-2048; may be repeated
    #[arg(long = "ik", value_name = "KIND")]
    ik_kinds: Vec<IkKind>,
    /// The device ids of new devices: with the next number that is free in place of an n in braces.
    /// Needs --admit and --quota
    #[arg(long = "name", value_name = "ID")]
    names: Option<NamePattern>,
    /// How long certificates are valid, in days, if certificates.lifetime_days is longer
    #[arg(long, value_name = "DAYS", value_parser = clap::value_parser!(u16).range(1..=3650))]
    lifetime: Option<u16>,
}

#[derive(Args)]
pub(crate) struct AnswerArgs {
    /// Admit these devices
    #[arg(long, group = ANSWER)]
    admit: bool,
    /// Have them wait until an operator approves them: `assay pending`
    #[arg(long, group = ANSWER)]
    ask: bool,
    /// Refuse them, also those that are registered
    #[arg(long, group = ANSWER)]
    refuse: bool,
}

#[derive(Args)]
#[group(multiple = false)]
pub(crate) struct PlaceArgs {
    /// Ask it before this group
    #[arg(long, value_name = "NAME")]
    before: Option<GroupName>,
    /// Its place, counted from 1. Without this and --before, a new group stands before the first
    /// one that is for every EK, and another one where it stood
    #[arg(long, value_name = "NUMBER")]
    position: Option<usize>,
}

/// A part of a group that can be dropped.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Part {
    Issuer,
    Manufacturer,
    Model,
    Firmware,
    Flawed,
    Enrolled,
    Ek,
    Flow,
    NotBefore,
    NotAfter,
    Quota,
    Ik,
    Lifetime,
    Name,
}

impl GroupCommand {
    pub(crate) fn run(self, directory: &Directory) -> Result<()> {
        let store = &mut *directory.store()?;
        match self {
            Self::Add { name, rule, answer, place } => {
                let answer = answer.chosen().context("one of --admit, --ask and --refuse")?;
                let (conditions, terms) = Default::default();
                let empty = Group { name, conditions, answer, terms };
                let group = rule.put_on(&rule.keys(store)?, empty);
                let place = place.chosen().unwrap_or(Position::Asked);
                groups::edit(store, |groups| place.put(groups, group.clone()))?;
                tell(&groups::list(store)?, &group.name)
            }
            Self::List(list::Json { json }) => list_all(store, json),
            Self::Show { name, json } => show(store, &name, json.json),
            Self::Update { name, rule, without, answer, place } => {
                let keys = rule.keys(store)?;
                let answer = answer.chosen();
                // Somebody else may change the same group.
                groups::edit(store, |groups| {
                    let mut group = groups.get(&name)?.clone();
                    without.iter().for_each(|part| part.drop_from(&mut group));
                    group.answer = answer.unwrap_or(group.answer);
                    let group = rule.put_on(&keys, group);
                    match place.chosen() {
                        Some(place) => place.put(&groups.without(&name)?.0, group),
                        None => groups.replacing(group),
                    }
                })?;
                tell(&groups::list(store)?, &name)
            }
            Self::Flaws(list::Json { json }) => {
                list_flaws(&directory.flaws()?, json);
                Ok(())
            }
            Self::Remove { name } => {
                groups::edit(store, |groups| Ok(groups.without(&name)?.0))?;
                eprintln!("removed: {name}");
                Ok(())
            }
        }
    }
}

impl AnswerArgs {
    fn chosen(&self) -> Option<Answer> {
        let given = [self.admit, self.ask, self.refuse].into_iter().zip(Answer::ALL);
        given.into_iter().find_map(|(is_given, answer)| is_given.then_some(answer))
    }
}

impl PlaceArgs {
    fn chosen(&self) -> Option<Position> {
        let before = self.before.clone().map(Position::Before);
        before.or_else(|| self.position.map(Position::Number))
    }
}

impl Rule {
    /// The keys of the issuers that are given.
    fn keys(&self, store: &mut dyn Store) -> Result<Vec<CaKey>> {
        let keys = self.issuers.iter().map(|which| groups::find_issuer(store, which));
        keys.collect::<Result<Vec<_>>>().context("--issuer")
    }

    /// The group with what is given here in place of what it has.
    fn put_on(&self, keys: &[CaKey], mut group: Group) -> Group {
        let Self { manufacturers, models, firmware, flawed, enrolled, eks, .. } = self;
        let Self { flows, not_before, not_after, quota, ik_kinds, lifetime, names, .. } = self;
        let (conditions, terms) = (&mut group.conditions, &mut group.terms);
        replace(&mut conditions.issuers, keys);
        replace(&mut conditions.manufacturers, manufacturers);
        replace(&mut conditions.models, models);
        replace(&mut conditions.eks, eks);
        replace(&mut terms.flows, flows);
        conditions.firmware = firmware.or(conditions.firmware);
        conditions.flawed = flawed.or(conditions.flawed);
        conditions.enrolled = enrolled.or(conditions.enrolled);
        terms.not_before = not_before.or(terms.not_before);
        terms.not_after = not_after.or(terms.not_after);
        terms.quota = quota.or(terms.quota);
        replace(&mut terms.ik_kinds, ik_kinds);
        terms.names = names.clone().or(terms.names.take());
        terms.lifetime = lifetime.map(|days| Duration::days(days.into())).or(terms.lifetime);
        group
    }
}

fn replace<T: Clone>(old: &mut Vec<T>, new: &[T]) {
    if !new.is_empty() {
        *old = new.to_vec();
    }
}

impl Part {
    fn drop_from(self, Group { conditions, terms, .. }: &mut Group) {
        match self {
            Self::Issuer => conditions.issuers.clear(),
            Self::Manufacturer => conditions.manufacturers.clear(),
            Self::Model => conditions.models.clear(),
            Self::Firmware => conditions.firmware = None,
            Self::Flawed => conditions.flawed = None,
            Self::Enrolled => conditions.enrolled = None,
            Self::Ek => conditions.eks.clear(),
            Self::Flow => terms.flows.clear(),
            Self::NotBefore => terms.not_before = None,
            Self::NotAfter => terms.not_after = None,
            Self::Quota => terms.quota = None,
            Self::Ik => terms.ik_kinds.clear(),
            Self::Lifetime => terms.lifetime = None,
            Self::Name => terms.names = None,
        }
    }
}

/// Says where a group is asked, and what it does not do.
fn tell(groups: &Groups, name: &GroupName) -> Result<()> {
    let names: Vec<_> = groups.all().iter().map(|group| group.name.as_str()).collect();
    let place = names.iter().position(|other| *other == name.as_str()).unwrap_or_default();
    eprintln!("{name} is asked as number {} of {}: {}", place + 1, names.len(), names.join(", "));
    let group = groups.get(name)?;
    if group.answer == Answer::Refuse && group.conditions.need_a_certificate() {
        eprintln!(
            "an EK on the enrolment list needs no certificate, and this group is not for one of \
             which the CA never saw any: for such a device, --ek or `assay enroll disable`"
        );
    }
    Ok(())
}

fn list_all(store: &mut dyn Store, json: bool) -> Result<()> {
    let (groups, issuers) = (groups::list(store)?, groups::issuers_on_record(store)?);
    let numbered = (1..).zip(groups.all());
    if json {
        numbered.for_each(|(place, group)| table::print_json(&documents::group(place, group)));
        return Ok(());
    }
    let rows = numbered.map(|(place, group)| {
        let terms = lines(&documents::group(place, group), TERMS, &[]).join("; ");
        [
            place.to_string(),
            group.name.to_string(),
            group.answer.name().to_owned(),
            described(place, group, &issuers),
            if terms.is_empty() { "-".to_owned() } else { terms },
        ]
    });
    table::print(["PLACE", "GROUP", "ANSWER", "FOR", "LIMITS"], rows);
    eprintln!("an EK that is in no group is refused");
    Ok(())
}

fn list_flaws(flaws: &Flaws, json: bool) {
    if json {
        flaws.all().iter().for_each(|flaw| table::print_json(&documents::flaw(flaw)));
        return;
    }
    let rows = flaws.all().iter().map(|flaw| {
        let versions: Vec<_> = documents::versions(flaw);
        [flaw.name.clone(), flaw.manufacturer.to_string(), versions.join(", "), flaw.source.clone()]
    });
    table::print(["FLAW", "MANUFACTURER", "FIRMWARE", "SOURCE"], rows);
}

fn described(place: usize, group: &Group, issuers: &[(CaKey, String)]) -> String {
    let conditions = lines(&documents::group(place, group), CONDITIONS, issuers);
    if conditions.is_empty() { "every EK that is trusted".into() } else { conditions.join("; ") }
}

fn show(store: &mut dyn Store, name: &GroupName, json: bool) -> Result<()> {
    let (groups, issuers) = (groups::list(store)?, groups::issuers_on_record(store)?);
    let group = groups.get(name)?;
    let place = groups.all().iter().position(|other| other == group).unwrap_or_default() + 1;
    let document = documents::group(place, group);
    if json {
        table::print_json(&document);
        return Ok(());
    }
    table::print_line(format!("{name}: {}, as number {place}", group.answer.name()));
    if group.conditions == Conditions::default() {
        table::print_line("  for every EK that is trusted");
    }
    let conditions = lines(&document, CONDITIONS, &issuers).into_iter();
    for line in conditions.chain(lines(&document, TERMS, &[])) {
        table::print_line(format!("  {}", table::printable(&line)));
    }
    Ok(())
}

/// These fields, if they say anything. The keys of these issuers are shown as their names, and the
/// beginning of the key.
fn lines(
    document: &serde_json::Value,
    fields: &[&str],
    issuers: &[(CaKey, String)],
) -> Vec<String> {
    let shown = |text: &str| {
        let issuer = issuers.iter().find(|(key, _)| key.to_string() == text);
        let named = |(_, name): &(CaKey, String)| format!("{name} ({})", &text[..table::SHORT_ID]);
        issuer.map_or_else(|| text.to_owned(), named)
    };
    let said = fields.iter().filter_map(|field| {
        let value = match &document[field] {
            serde_json::Value::Array(texts) if texts.is_empty() => return None,
            serde_json::Value::Null => return None,
            serde_json::Value::Array(texts) => texts
                .iter()
                .filter_map(|text| text.as_str())
                .map(shown)
                .collect::<Vec<_>>()
                .join(" or "),
            serde_json::Value::String(text) => text.clone(),
            other => other.to_string(),
        };
        Some(format!("{} {value}", field.replace('_', " ")))
    });
    said.collect()
}

fn time(text: &str) -> Result<OffsetDateTime, String> {
    let time = rfc3339::parse(text);
    time.ok_or_else(|| "expected a time of RFC 3339, or a day: YYYY-MM-DD".to_owned())
}

/// Of these options, one at most.
const ANSWER: &str = "answer";
const CONDITIONS: &[&str] =
    &["issuers", "manufacturers", "models", "firmware", "flawed", "enrolled", "eks"];
const TERMS: &[&str] =
    &["flows", "not_before", "not_after", "quota", "iks", "lifetime_days", "names"];
const ADD_EXAMPLES: &str = "\
The first group that an EK is in decides; if it is in none, it is refused.

Examples:
  assay --dir ca group add pumps --manufacturer id:49465800 --model SLB9670 --admit
  assay --dir ca group add old --firmware id:00070055 --ask
  assay --dir ca group add line-3 --issuer line-3-ca.pem --not-after 2027-01-31 --flow ticket --admit
  assay --dir ca group add stolen --ek 0123456789abcdef --refuse --position 1";

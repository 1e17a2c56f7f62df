//! The rules that a broker must keep, and what was found of each. Pure.

use std::cell::RefCell;
use std::collections::BTreeMap;

use clap::ValueEnum;
use serde_json::{Value, json};

/// What docs/operations.md asks of a broker. Do not change the names, in kebab case, because
/// scripts use them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub(crate) enum Rule {
    /// A stranger's request reaches a worker, and the reply reaches the stranger
    Asks,
    /// This CA's revocation list, in date, waits for every subscriber
    List,
    /// A stranger hears its own replies and nothing else
    StrangerHears,
    /// A stranger publishes its own requests and nothing else
    StrangerSpeaks,
    /// A user name makes a stranger nobody else
    UserName,
    /// A stranger takes no request away from a group of workers
    Group,
    /// No Will is published where its client may not publish
    Will,
    /// No request is retained
    Retain,
    /// No stranger ends a device's connection by its client id
    Takeover,
    /// A stranger's packet of 128 KiB is refused
    Packet,
    /// A stranger that says nothing is cut within 15 seconds
    Silent,
    /// A device hears nothing of another's
    DeviceHears,
    /// A device publishes nothing as another, or as a worker
    DeviceSpeaks,
    /// No device ends another's connection by its client id
    DeviceTakeover,
    /// Nobody is let in without a certificate on the operational listener
    NoCertificate,
    /// Nobody is let in with a certificate of another CA
    Foreign,
    /// Nobody is let in with a certificate that has expired
    Expired,
    /// Nobody is let in with a certificate that was revoked
    Revoked,
}

impl Rule {
    pub(crate) fn name(self) -> String {
        self.possible().get_name().to_owned()
    }

    fn text(self) -> String {
        self.possible().get_help().map(ToString::to_string).unwrap_or_default()
    }

    fn possible(self) -> clap::builder::PossibleValue {
        self.to_possible_value().expect("no rule is hidden")
    }
}

/// What trying a rule showed, in words; or why it could not be tried.
pub(crate) type Tried = Result<Found, String>;

/// What trying a rule showed, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Found {
    Kept(String),
    Broken(String),
}

impl Found {
    /// Broken if `broken` is not empty.
    pub(crate) fn against(broken: &[String], kept: impl Into<String>) -> Self {
        if broken.is_empty() { Self::Kept(kept.into()) } else { Self::Broken(broken.join("; ")) }
    }
}

/// All that was found so far. Several tries add to it side by side. A rule without an entry was not
/// tried.
#[derive(Debug, Default)]
pub(crate) struct Report(RefCell<BTreeMap<Rule, Tried>>);

impl Report {
    pub(crate) fn add(&self, rule: Rule, tried: Tried) {
        self.0.borrow_mut().insert(rule, tried);
    }

    /// Whether every rule was tried and kept, except those that are `accepted` as they are.
    pub(crate) fn is_good(&self, accepted: &[Rule]) -> bool {
        self.amiss(accepted).is_empty()
    }

    /// The names of the rules that were not kept and are not `accepted`, by their verdict.
    pub(crate) fn amiss(&self, accepted: &[Rule]) -> BTreeMap<&'static str, Vec<String>> {
        let mut amiss: BTreeMap<_, Vec<_>> = BTreeMap::new();
        for rule in Rule::value_variants().iter().filter(|rule| !accepted.contains(rule)) {
            match self.verdict(*rule) {
                ("kept", _) => {}
                (verdict, _) => amiss.entry(verdict).or_default().push(rule.name()),
            }
        }
        amiss
    }

    /// A row for each rule: name, verdict, how.
    pub(crate) fn rows(&self, accepted: &[Rule]) -> impl Iterator<Item = [String; 3]> {
        Rule::value_variants().iter().map(|rule| {
            let (verdict, how) = self.verdict(*rule);
            let is_accepted = accepted.contains(rule) && verdict != "kept";
            [
                rule.name(),
                if is_accepted { format!("{verdict}, accepted") } else { verdict.to_owned() },
                how,
            ]
        })
    }

    pub(crate) fn objects(&self) -> impl Iterator<Item = Value> {
        Rule::value_variants().iter().map(|rule| {
            let (verdict, how) = self.verdict(*rule);
            json!({ "rule": rule.name(), "text": rule.text(), "verdict": verdict, "how": how })
        })
    }

    fn verdict(&self, rule: Rule) -> (&'static str, String) {
        match self.0.borrow().get(&rule).cloned() {
            Some(Ok(Found::Kept(how))) => ("kept", how),
            Some(Ok(Found::Broken(how))) => ("broken", how),
            Some(Err(why)) => ("not tried", why),
            None => ("not tried", "the time was over".into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all_kept() -> Report {
        let report = Report::default();
        for rule in Rule::value_variants() {
            report.add(*rule, Ok(Found::Kept("seen".into())));
        }
        report
    }

    #[test]
    fn only_what_was_tried_and_kept_is_good() {
        assert!(all_kept().is_good(&[]));
        for tried in [Ok(Found::Broken("heard".into())), Err("no URL".into())] {
            let report = all_kept();
            report.add(Rule::Will, tried);
            assert!(!report.is_good(&[]));
            assert!(!report.is_good(&[Rule::Retain]));
            assert!(report.is_good(&[Rule::Will]));
        }
        assert!(!Report::default().is_good(&[]));
    }

    #[test]
    fn what_nobody_looked_at_is_not_tried() {
        let report = Report::default();
        report.add(Rule::Will, Ok(Found::Kept("seen".into())));
        let verdicts: Vec<_> =
            report.rows(&[Rule::Retain]).map(|[name, verdict, _]| (name, verdict)).collect();
        assert_eq!(verdicts.len(), Rule::value_variants().len());
        for (name, verdict) in verdicts {
            let due = match &*name {
                "will" => "kept",
                "retain" => "not tried, accepted",
                _ => "not tried",
            };
            assert_eq!(verdict, due, "{name}");
        }
    }

    #[test]
    fn operations_page_lists_the_rules_word_for_word() {
        let page = include_str!("../../../../docs/operations.md");
        for rule in Rule::value_variants() {
            let row = format!("| `{}` | {} |", rule.name(), rule.text());
            assert!(page.contains(&row), "{row}");
        }
    }
}

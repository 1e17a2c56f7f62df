//! Tells people of changes, one line each, and no line twice in a row of failures.

use super::systemd::Systemd;
use crate::error::Error;

/// A change of the resident agent's state, for people.
#[derive(Clone, Copy, Debug)]
pub struct Change<'a> {
    /// What changed, in one line.
    pub text: &'a str,
    /// Why, if something failed. Its text may have several lines.
    pub error: Option<&'a Error>,
}

/// Hears of each [`Change`].
pub type Changes<'a> = &'a mut dyn FnMut(Change<'_>);

pub(super) struct Lines<'a> {
    changes: Changes<'a>,
    /// What was told since all was well.
    told: Vec<String>,
}

impl<'a> Lines<'a> {
    pub(super) fn new(changes: Changes<'a>) -> Self {
        Self { changes, told: Vec::new() }
    }

    /// All is well again: what comes now is new.
    pub(super) fn well(&mut self, systemd: &Systemd, text: &str) {
        self.told.clear();
        self.tell(systemd, text, None);
    }

    /// Tells something that is neither good nor bad.
    pub(super) fn note(&mut self, systemd: &Systemd, text: &str) {
        self.tell(systemd, text, None);
    }

    /// Tells of a trouble, unless it is an old one.
    pub(super) fn trouble(&mut self, systemd: &Systemd, text: &str, error: Option<&Error>) {
        let all = format!("{text} {error:?}");
        if self.told.contains(&all) {
            return;
        }
        if self.told.len() == MOST_TOLD {
            self.told.clear();
        }
        self.told.push(all);
        self.tell(systemd, text, error);
    }

    fn tell(&mut self, systemd: &Systemd, text: &str, error: Option<&Error>) {
        (self.changes)(Change { text, error });
        let error = error.map(|error| format!(": {error}")).unwrap_or_default();
        systemd.status(&format!("{text}{error}").replace('\n', " "));
    }
}

/// More kinds of trouble than come together. Whoever makes more gets old lines again.
const MOST_TOLD: usize = 16;

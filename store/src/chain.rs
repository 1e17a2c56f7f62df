//! Hash chains, which make a change of the audit show.
//!
//! Every entry has a hash over its content and the hash of the entry before. Whoever changes,
//! removes or adds an entry must make all later hashes anew, and then they differ from a hash that
//! somebody kept. There is a chain for each kind of entry, because each kind is kept for another
//! time: retention takes entries from the beginning of a chain, and leaves the last hash that it
//! took, so that what is left can be verified.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use assay_wire::EkId;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::audit::AuditRow;

/// A kind of entries, which has a chain of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Chain {
    /// What operators did.
    Acts,
    /// Decisions that changed what a device has.
    Changes,
    /// All other decisions. Strangers can cause any number of them.
    Others,
}

impl Chain {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Acts, Self::Changes, Self::Others];

    /// Its name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Acts => "acts",
            Self::Changes => "changes",
            Self::Others => "others",
        }
    }
}

impl fmt::Display for Chain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Chain {
    type Err = NotALink;

    fn from_str(name: &str) -> Result<Self, NotALink> {
        Self::ALL.into_iter().find(|chain| chain.name() == name).ok_or(NotALink)
    }
}

/// An entry of a chain, by its hash: an end of what is left of the chain, or one that somebody kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Link {
    /// The chain.
    pub chain: Chain,
    /// The entry; 0 stands before the first.
    pub id: i64,
    /// Its hash.
    pub hash: [u8; 32],
}

impl Link {
    const fn first(chain: Chain) -> Self {
        Self { chain, id: 0, hash: [0; 32] }
    }
}

impl fmt::Display for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {}", self.chain, self.id, hex::encode(self.hash))
    }
}

impl FromStr for Link {
    type Err = NotALink;

    fn from_str(text: &str) -> Result<Self, NotALink> {
        let mut words = text.split_ascii_whitespace();
        let mut word = || words.next().ok_or(NotALink);
        let (chain, id, hash) = (word()?.parse()?, word()?, word()?);
        let id = id.parse().map_err(|_| NotALink)?;
        Ok(Self { chain, id, hash: digest(hash).ok_or(NotALink)? })
    }
}

/// A text is no [`Link`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("it must be a chain, a number and a hash, as `assay audit verify` prints them")]
pub struct NotALink;

/// The ends of all chains, to append to them.
pub(crate) struct Heads {
    number: i64,
    links: [Link; 3],
}

impl Heads {
    /// From the newest entry and the cut of each chain, with their numbers, as far as there are any.
    pub(crate) fn of(found: impl IntoIterator<Item = (Link, i64)>) -> Self {
        let mut heads = Self { number: 0, links: Chain::ALL.map(Link::first) };
        for (link, number) in found {
            heads.number = heads.number.max(number);
            let head = &mut heads.links[link.chain as usize];
            if link.id >= head.id {
                *head = link;
            }
        }
        heads
    }

    /// Gives an entry its place at the end of its chain, and its hash.
    pub(crate) fn append(&mut self, row: &mut AuditRow) {
        let head = &mut self.links[row.chain as usize];
        self.number += 1;
        (row.id, row.number) = (head.id + 1, self.number);
        let hash = Exported::of(row, &head.hash).computed();
        (head.id, head.hash, row.hash) = (row.id, hash, Some(hash));
    }
}

/// An entry as it is hashed and exported. The canonical form is that of RFC 8785: its members are in
/// the order of their names, and there is no white space.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Exported {
    action: String,
    chain: String,
    client: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    code: Option<u16>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    detail: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    device_id: Option<String>,
    duration_us: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    ek_id: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    event: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    hash: Option<String>,
    id: i64,
    number: i64,
    previous: String,
    proven: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    replaced: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    serial: Option<String>,
    time_us: i64,
}

impl Exported {
    fn of(row: &AuditRow, previous: &[u8; 32]) -> Self {
        Self {
            action: row.action.clone(),
            chain: row.chain.to_string(),
            client: row.client.clone(),
            code: row.code,
            detail: row.detail.clone(),
            device_id: row.proven.clone().or_else(|| row.due.clone()),
            duration_us: row.duration_us,
            ek_id: row.ek_id.as_ref().map(EkId::to_string),
            event: row.event.clone(),
            hash: None,
            id: row.id,
            number: row.number,
            previous: hex::encode(previous),
            proven: row.proven.is_some(),
            replaced: row.replaced.as_ref().map(hex::encode),
            serial: row.serial.as_ref().map(hex::encode),
            time_us: row.time_us,
        }
    }

    /// The hash that belongs to it: over all of it but the hash.
    fn computed(&self) -> [u8; 32] {
        let content = match self.hash {
            None => self.json(),
            Some(_) => Self { hash: None, ..self.clone() }.json(),
        };
        Sha256::digest(content).into()
    }

    fn json(&self) -> String {
        serde_json::to_string(self).expect("text and numbers have a form in JSON")
    }
}

/// What does not fit in a chain.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("entry {id} of the chain {chain}: {what}")]
pub struct Broken {
    /// The name of the chain.
    pub chain: String,
    /// The entry.
    pub id: i64,
    /// What is wrong with it.
    pub what: &'static str,
}

/// What an audit begins with, and what is in it.
#[derive(Clone, Debug)]
pub enum Walked {
    /// The last entry of a chain that was taken from its beginning.
    Cut(Link),
    /// An entry.
    Row(Box<AuditRow>),
}

/// Verifies chains, entry by entry.
#[derive(Debug, Default)]
pub struct Verifier {
    heads: BTreeMap<Chain, Link>,
    cuts: BTreeMap<Chain, Link>,
    /// The first entry that was taken of each chain.
    first: BTreeMap<Chain, i64>,
    seen: Vec<Link>,
    number: i64,
    count: u64,
}

impl Verifier {
    /// Expects entries that somebody kept the hashes of.
    pub fn expecting(seen: Vec<Link>) -> Self {
        Self { seen, ..Self::default() }
    }

    /// Takes what is next on record. Returns the line that an export has of it, if it has one.
    ///
    /// # Errors
    /// It does not fit what came before.
    pub fn walk(&mut self, walked: &Walked) -> Result<Option<String>, Broken> {
        let row = match walked {
            Walked::Cut(cut) => {
                self.cuts.insert(cut.chain, *cut);
                self.heads.insert(cut.chain, *cut);
                return Ok(None);
            }
            Walked::Row(row) => row,
        };
        let head = self.heads.get(&row.chain).copied().unwrap_or_else(|| Link::first(row.chain));
        self.heads.insert(row.chain, head);
        let hash = row.hash.unwrap_or_default();
        let entry = Exported { hash: Some(hex::encode(hash)), ..Exported::of(row, &head.hash) };
        self.take(&entry)?;
        Ok(Some(entry.json()))
    }

    /// Takes the next line of an export. Of each chain, the first entry may be any.
    ///
    /// # Errors
    /// It does not fit what came before, or is none.
    pub fn line(&mut self, line: &str) -> Result<(), Broken> {
        let entry: Exported = serde_json::from_str(line).map_err(|_| Broken {
            chain: "?".into(),
            id: 0,
            what: "the line is no entry of an audit",
        })?;
        self.take(&entry)
    }

    fn take(&mut self, entry: &Exported) -> Result<(), Broken> {
        let broken = |what| Broken { chain: entry.chain.clone(), id: entry.id, what };
        let Ok(chain) = entry.chain.parse::<Chain>() else {
            return Err(broken("there is no such chain"));
        };
        let hash = entry.hash.as_deref().and_then(digest).ok_or_else(|| broken(NO_HASH))?;
        let previous = digest(&entry.previous).ok_or_else(|| broken(NO_HASH))?;
        if let Some(head) = self.heads.get(&chain) {
            if entry.id != head.id + 1 {
                return Err(broken("entries before it are missing, or it is there twice"));
            }
            if previous != head.hash {
                return Err(broken("it does not follow the entry before it"));
            }
        }
        if entry.computed() != hash {
            return Err(broken("its content or what came before it was changed"));
        }
        if entry.number <= self.number {
            return Err(broken("it is not in order"));
        }
        let link = Link { chain, id: entry.id, hash };
        self.first.entry(chain).or_insert(entry.id);
        let differs = |seen: &Link| (seen.chain, seen.id) == (chain, entry.id) && *seen != link;
        if self.seen.iter().any(differs) {
            return Err(broken("another hash of it was seen before"));
        }
        (self.number, self.count) = (entry.number, self.count + 1);
        self.heads.insert(chain, link);
        Ok(())
    }

    /// The ends of the chains, how many entries were verified, and those that were seen before and
    /// are older than what is left.
    ///
    /// # Errors
    /// A chain ends before an entry that was seen before.
    pub fn finish(self) -> Result<Verified, Broken> {
        let mut gone = Vec::new();
        for seen in self.seen {
            let broken = |what| Broken { chain: seen.chain.to_string(), id: seen.id, what };
            if self.heads.get(&seen.chain).is_none_or(|head| head.id < seen.id) {
                return Err(broken("it was seen before, and the chain ends before it"));
            }
            match self.cuts.get(&seen.chain) {
                Some(cut) if cut.id == seen.id && cut.hash != seen.hash => {
                    return Err(broken("another hash of it was seen before"));
                }
                Some(cut) if cut.id > seen.id => gone.push(seen),
                // An export may begin later.
                None if self.first.get(&seen.chain).is_some_and(|first| *first > seen.id) => {
                    gone.push(seen);
                }
                _ => {}
            }
        }
        Ok(Verified { ends: self.heads.into_values().collect(), count: self.count, gone })
    }
}

/// What was verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verified {
    /// The newest entry of each chain.
    pub ends: Vec<Link>,
    /// How many entries there are.
    pub count: u64,
    /// Entries that were seen before and that retention took since: they prove nothing any more.
    pub gone: Vec<Link>,
}

fn digest(text: &str) -> Option<[u8; 32]> {
    hex::decode(text).ok()?.try_into().ok()
}

const NO_HASH: &str = "it has no hash";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audit::{Actor, Deed};

    #[test]
    fn an_export_that_begins_after_what_was_seen_says_that_it_is_not_compared() {
        let (_, lines) = acts(4);
        let seen = Link { chain: Chain::Acts, id: 1, hash: [7; 32] };
        let mut verifier = Verifier::expecting(vec![seen]);
        lines[2..].iter().try_for_each(|line| verifier.line(line)).unwrap();
        assert_eq!(verifier.finish().unwrap().gone, [seen]);
    }

    fn acts(count: usize) -> (Vec<AuditRow>, Vec<String>) {
        let actor = Actor {
            name: "unix:root".parse().unwrap(),
            at: time::OffsetDateTime::from_unix_timestamp(1_800_000_000).unwrap(),
        };
        let (mut heads, mut verifier) = (Heads::of([]), Verifier::default());
        let rows = (0..count).map(|_| {
            let mut row = AuditRow::of_deed(Deed::of_ca("resume", "\u{e9}\n".into()), &actor);
            heads.append(&mut row);
            row
        });
        let rows: Vec<_> = rows.collect();
        let line = |row: &AuditRow| verifier.walk(&Walked::Row(row.clone().into()));
        let lines = rows.iter().map(line).map(|line| line.unwrap().unwrap()).collect();
        (rows, lines)
    }

    fn verify(lines: &[String]) -> Result<Verified, Broken> {
        let mut verifier = Verifier::default();
        lines.iter().try_for_each(|line| verifier.line(line))?;
        verifier.finish()
    }

    /// As any other program would compute it; see docs/operations.md.
    #[test]
    fn hash_is_that_of_the_line_without_it() {
        let (_, lines) = acts(1);
        let zeros = "0".repeat(64);
        let content = format!(
            r#"{{"action":"resume","chain":"acts","client":"unix:root","detail":"é\n","duration_us":0,"id":1,"number":1,"previous":"{zeros}","proven":false,"time_us":1800000000000000}}"#
        );
        let hash = hex::encode(Sha256::digest(&content));
        let whole = content.replace(r#""id":1"#, &format!(r#""hash":"{hash}","id":1"#));
        assert_eq!(lines, [whole]);
    }

    #[test]
    fn export_that_was_changed_is_broken_where_it_was_changed() {
        let (_, lines) = acts(5);
        assert_eq!(verify(&lines).unwrap().count, 5);
        assert_eq!(verify(&lines[2..]).unwrap().count, 3, "an export may begin anywhere");

        let mut changed = lines.clone();
        changed[2] = changed[2].replace("unix:root", "unix:eve");
        assert_eq!(verify(&changed).unwrap_err().id, 3);
        let mut removed = lines.clone();
        removed.remove(2);
        assert_eq!(verify(&removed).unwrap_err().id, 4);
        let mut twice = lines.clone();
        twice.insert(2, lines[1].clone());
        assert_eq!(verify(&twice).unwrap_err().id, 2);
        let mut replaced = lines.clone();
        let (other, _) = acts(3);
        let other = Exported { detail: None, hash: None, ..Exported::of(&other[2], &[7; 32]) };
        let hash = Some(hex::encode(other.computed()));
        replaced[2] = Exported { hash, ..other }.json();
        assert_eq!(verify(&replaced).unwrap_err().id, 3, "its own hash fits, the link does not");
        assert!(verify(&["{}".into()]).is_err());
    }

    #[test]
    fn chain_that_was_made_anew_differs_from_what_somebody_kept() {
        let (rows, lines) = acts(5);
        let kept = Link { chain: Chain::Acts, id: 3, hash: rows[2].hash.unwrap() };
        assert_eq!(kept.to_string().parse(), Ok(kept));
        let walk = |seen: Link, lines: &[String]| {
            let mut verifier = Verifier::expecting(vec![seen]);
            lines.iter().try_for_each(|line| verifier.line(line))?;
            verifier.finish()
        };
        assert!(walk(kept, &lines).is_ok());
        assert_eq!(walk(Link { hash: [1; 32], ..kept }, &lines).unwrap_err().id, 3);
        assert_eq!(walk(kept, &lines[..2]).unwrap_err().id, 3, "the end is missing");
    }
}

//! Topic filters, as a tree of their levels. To find those that match a topic costs the same with
//! ten filters and with a million.

use std::collections::{BTreeMap, HashMap};

/// Values under topic filters (MQTT 5 §4.7). Each has a number, by which it can be removed.
#[derive(Debug)]
pub(super) struct Filters<T> {
    root: Node<T>,
}

#[derive(Debug)]
struct Node<T> {
    children: HashMap<Box<str>, Self>,
    /// The values of filters that end here.
    here: Values<T>,
    /// The values of filters that end in `#` one level below.
    below: Values<T>,
}

/// Most filters belong to one client. A few belong to all clients; adding or removing one there
/// must be cheap.
#[derive(Debug)]
enum Values<T> {
    Few(Vec<(u64, T)>),
    Many(BTreeMap<u64, T>),
}

impl<T> Default for Filters<T> {
    fn default() -> Self {
        Self { root: Node::default() }
    }
}

impl<T> Default for Node<T> {
    fn default() -> Self {
        Self {
            children: HashMap::new(),
            here: Values::Few(Vec::new()),
            below: Values::Few(Vec::new()),
        }
    }
}

impl<T> Filters<T> {
    /// Puts a value under `filter`. It replaces the value with that number, if there is one.
    pub(super) fn insert(&mut self, filter: &str, number: u64, value: T) {
        let mut node = &mut self.root;
        for level in filter.split('/') {
            if level == "#" {
                return node.below.insert(number, value);
            }
            // Most levels are there already, and need no copy.
            if !node.children.contains_key(level) {
                node.children.insert(level.into(), Node::default());
            }
            // Unwrap safety: inserted above.
            node = node.children.get_mut(level).unwrap();
        }
        node.here.insert(number, value);
    }

    /// Removes the value under `filter` with that number. Returns whether there was one.
    pub(super) fn remove(&mut self, filter: &str, number: u64) -> bool {
        self.root.remove(&mut filter.split('/'), number)
    }

    /// Finds the values of all filters that match a topic name.
    pub(super) fn find<'a>(&'a self, topic: &str, found: &mut impl FnMut(u64, &'a T)) {
        // §4.7.2: a wildcard at the beginning does not match topics that begin with `$`.
        let wildcards = !topic.starts_with('$');
        let (level, rest) = split(topic);
        if wildcards {
            self.root.below.each(found);
        }
        for name in [Some(level), wildcards.then_some("+")].into_iter().flatten() {
            if let Some(child) = self.root.children.get(name) {
                child.find(rest, found);
            }
        }
    }
}

impl<T> Node<T> {
    fn find<'a>(&'a self, rest: Option<&str>, found: &mut impl FnMut(u64, &'a T)) {
        // §4.7.1.2: `#` also matches the level above it.
        self.below.each(found);
        let Some(rest) = rest else { return self.here.each(found) };
        let (level, rest) = split(rest);
        for name in [level, "+"] {
            if let Some(child) = self.children.get(name) {
                child.find(rest, found);
            }
        }
    }

    fn remove<'a>(&mut self, levels: &mut impl Iterator<Item = &'a str>, number: u64) -> bool {
        match levels.next() {
            None => self.here.remove(number),
            Some("#") => self.below.remove(number),
            Some(level) => {
                let Some(child) = self.children.get_mut(level) else { return false };
                let was_there = child.remove(levels, number);
                if child.is_empty() {
                    self.children.remove(level);
                    // Otherwise the memory for the largest number that ever existed would stay.
                    if self.children.is_empty() {
                        self.children = HashMap::new();
                    }
                }
                was_there
            }
        }
    }

    fn is_empty(&self) -> bool {
        self.children.is_empty() && self.here.is_empty() && self.below.is_empty()
    }
}

impl<T> Values<T> {
    fn insert(&mut self, number: u64, value: T) {
        match self {
            Self::Many(values) => _ = values.insert(number, value),
            Self::Few(values) => match values.iter_mut().find(|(other, _)| *other == number) {
                Some((_, there)) => *there = value,
                None => {
                    values.push((number, value));
                    if values.len() > FEW {
                        *self = Self::Many(std::mem::take(values).into_iter().collect());
                    }
                }
            },
        }
    }

    fn remove(&mut self, number: u64) -> bool {
        let was_there = match self {
            Self::Many(values) => values.remove(&number).is_some(),
            Self::Few(values) => {
                let at = values.iter().position(|(other, _)| *other == number);
                at.map(|at| values.swap_remove(at)).is_some()
            }
        };
        if self.is_empty() {
            *self = Self::Few(Vec::new());
        }
        was_there
    }

    fn each<'a>(&'a self, found: &mut impl FnMut(u64, &'a T)) {
        match self {
            Self::Few(values) => values.iter().for_each(|(number, value)| found(*number, value)),
            Self::Many(values) => values.iter().for_each(|(number, value)| found(*number, value)),
        }
    }

    fn is_empty(&self) -> bool {
        match self {
            Self::Few(values) => values.is_empty(),
            Self::Many(values) => values.is_empty(),
        }
    }
}

/// Up to this number, values are searched one by one.
const FEW: usize = 16;

/// The first level of a topic, and the others.
fn split(topic: &str) -> (&str, Option<&str>) {
    topic.split_once('/').map_or((topic, None), |(level, rest)| (level, Some(rest)))
}

/// Whether a filter matches a topic name. It is for the few filters that are in no tree.
pub(super) fn matches(filter: &str, topic: &str) -> bool {
    if topic.starts_with('$') && filter.starts_with(['+', '#']) {
        return false;
    }
    let mut names = topic.split('/');
    for level in filter.split('/') {
        match (level, names.next()) {
            ("#", _) => return true,
            ("+", Some(_)) => {}
            (level, Some(name)) if level == name => {}
            _ => return false,
        }
    }
    names.next().is_none()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// MQTT 5 §4.7.1, word by word and slow.
    fn naive(filter: &str, topic: &str) -> bool {
        if topic.starts_with('$') && filter.starts_with(['+', '#']) {
            return false;
        }
        let (filter, topic): (Vec<_>, Vec<_>) =
            (filter.split('/').collect(), topic.split('/').collect());
        let is_below = filter.last() == Some(&"#");
        let fixed = &filter[..filter.len() - usize::from(is_below)];
        let fits = fixed.iter().zip(&topic).all(|(level, name)| *level == "+" || level == name);
        fits && if is_below { topic.len() >= fixed.len() } else { topic.len() == fixed.len() }
    }

    /// All texts of one to four of these levels.
    fn texts(levels: &[&str]) -> Vec<String> {
        let mut all = vec![Vec::new()];
        let mut done = Vec::new();
        for _ in 0..4 {
            all = all
                .iter()
                .flat_map(|text: &Vec<&str>| {
                    levels.iter().map(move |level| [&text[..], &[*level]].concat())
                })
                .collect();
            done.extend(all.iter().map(|text| text.join("/")));
        }
        done
    }

    #[test]
    fn every_filter_matches_what_the_specification_says() {
        let topics = texts(&["a", "b", "", "$x"]);
        let filters: Vec<_> =
            texts(&["a", "+", "", "$x"]).into_iter().flat_map(|f| [format!("{f}/#"), f]).collect();
        let mut tree = Filters::default();
        for filter in filters.iter().map(String::as_str).chain(["#"]) {
            tree.insert(filter, 0, filter);
        }
        for topic in &topics {
            let mut found = Vec::new();
            tree.find(topic, &mut |_, filter| found.push(*filter));
            found.sort_unstable();
            let mut due: Vec<_> = filters
                .iter()
                .map(String::as_str)
                .chain(["#"])
                .filter(|f| naive(f, topic))
                .collect();
            due.sort_unstable();
            assert_eq!(found, due, "{topic}");
            assert!(
                filters.iter().all(|filter| matches(filter, topic) == naive(filter, topic)),
                "{topic}"
            );
        }
    }

    #[test]
    fn what_is_removed_leaves_nothing_behind() {
        let mut tree = Filters::default();
        let filters = ["a/b/c", "a/b/#", "a/+/c", "a/b"];
        let count = 3 * FEW as u64;
        for filter in filters {
            (0..count).for_each(|number| tree.insert(filter, number, "old"));
            (0..count).for_each(|number| tree.insert(filter, number, "new"));
        }
        for filter in filters {
            assert!((1..count).all(|number| tree.remove(filter, number)));
            assert!(!tree.remove(filter, 1), "once");
        }
        let mut found = Vec::new();
        tree.find("a/b/c", &mut |number, value| found.push((number, *value)));
        assert_eq!(found, [(0, "new"); 3]);
        assert!(filters.iter().all(|filter| tree.remove(filter, 0)));
        assert!(tree.root.is_empty());
        assert!(!tree.remove("never/there", 0));
    }

    #[test]
    fn a_topic_touches_no_more_nodes_for_other_devices_filters() {
        let mut tree = Filters::default();
        for device in 0..10_000 {
            tree.insert(&format!("device/v1/default/{device}/+/set/#"), 0, device);
        }
        let mut found = Vec::new();
        tree.find("device/v1/default/77/valve/set/now", &mut |_, device| found.push(*device));
        assert_eq!(found, [77]);
    }
}

//! Topic filters in a tree by their levels, so that finding those that match a topic costs the same with ten and with a million.

use std::collections::HashMap;

/// Values under topic filters (MQTT 5 §4.7).
#[derive(Debug)]
pub(super) struct Filters<T> {
    root: Node<T>,
}

#[derive(Debug)]
struct Node<T> {
    children: HashMap<Box<str>, Self>,
    /// Of filters that end here.
    here: Vec<T>,
    /// Of filters that end in `#` one level below.
    below: Vec<T>,
}

impl<T> Default for Filters<T> {
    fn default() -> Self {
        Self { root: Node::default() }
    }
}

impl<T> Default for Node<T> {
    fn default() -> Self {
        Self { children: HashMap::new(), here: Vec::new(), below: Vec::new() }
    }
}

impl<T> Filters<T> {
    pub(super) fn insert(&mut self, filter: &str, value: T) {
        let mut node = &mut self.root;
        for level in filter.split('/') {
            if level == "#" {
                return node.below.push(value);
            }
            // Looked up before: most levels are there, and need no copy.
            if !node.children.contains_key(level) {
                node.children.insert(level.into(), Node::default());
            }
            // Unwrap safety: inserted above.
            node = node.children.get_mut(level).unwrap();
        }
        node.here.push(value);
    }

    /// Removes the values under `filter` that `is_it`; whether there were any.
    pub(super) fn remove(&mut self, filter: &str, is_it: impl Fn(&T) -> bool) -> bool {
        self.root.remove(&mut filter.split('/'), &is_it)
    }

    /// Finds the values of all filters that match a topic name.
    pub(super) fn find<'a>(&'a self, topic: &str, found: &mut impl FnMut(&'a T)) {
        // §4.7.2: a wildcard at the beginning leaves out topics that begin with `$`.
        let wildcards = !topic.starts_with('$');
        let (level, rest) = split(topic);
        if wildcards {
            self.root.below.iter().for_each(&mut *found);
        }
        for name in [Some(level), wildcards.then_some("+")].into_iter().flatten() {
            if let Some(child) = self.root.children.get(name) {
                child.find(rest, found);
            }
        }
    }
}

impl<T> Node<T> {
    fn find<'a>(&'a self, rest: Option<&str>, found: &mut impl FnMut(&'a T)) {
        // §4.7.1.2: `#` stands for the level above it too.
        self.below.iter().for_each(&mut *found);
        let Some(rest) = rest else { return self.here.iter().for_each(found) };
        let (level, rest) = split(rest);
        for name in [level, "+"] {
            if let Some(child) = self.children.get(name) {
                child.find(rest, found);
            }
        }
    }

    fn remove<'a>(&mut self, levels: &mut impl Iterator<Item = &'a str>, is_it: &impl Fn(&T) -> bool) -> bool {
        let values = match levels.next() {
            None => &mut self.here,
            Some("#") => &mut self.below,
            Some(level) => {
                let Some(child) = self.children.get_mut(level) else { return false };
                let was_there = child.remove(levels, is_it);
                if child.is_empty() {
                    self.children.remove(level);
                    // Memory for as many as ever were at once would stay.
                    if self.children.is_empty() {
                        self.children = HashMap::new();
                    }
                }
                return was_there;
            }
        };
        let before = values.len();
        values.retain(|value| !is_it(value));
        let was_there = values.len() < before;
        if values.is_empty() {
            *values = Vec::new();
        }
        was_there
    }

    fn is_empty(&self) -> bool {
        self.children.is_empty() && self.here.is_empty() && self.below.is_empty()
    }
}

/// The first level of a topic, and the others.
fn split(topic: &str) -> (&str, Option<&str>) {
    topic.split_once('/').map_or((topic, None), |(level, rest)| (level, Some(rest)))
}

/// Whether a filter matches a topic name, for the few filters that are in no tree.
pub(super) fn matches(filter: &str, topic: &str) -> bool {
    let mut filters = Filters::default();
    filters.insert(filter, ());
    let mut found = false;
    filters.find(topic, &mut |()| found = true);
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    /// MQTT 5 §4.7.1 word by word, slowly.
    fn naive(filter: &str, topic: &str) -> bool {
        if topic.starts_with('$') && filter.starts_with(['+', '#']) {
            return false;
        }
        let (filter, topic): (Vec<_>, Vec<_>) = (filter.split('/').collect(), topic.split('/').collect());
        let is_below = filter.last() == Some(&"#");
        let fixed = &filter[..filter.len() - usize::from(is_below)];
        let fits = fixed.iter().zip(&topic).all(|(level, name)| *level == "+" || level == name);
        fits && if is_below { topic.len() >= fixed.len() } else { topic.len() == fixed.len() }
    }

    /// All texts of up to four of these levels.
    fn texts(levels: &[&str]) -> Vec<String> {
        let mut all = vec![Vec::new()];
        let mut done = Vec::new();
        for _ in 0..4 {
            all = all
                .iter()
                .flat_map(|text: &Vec<&str>| levels.iter().map(move |level| [&text[..], &[*level]].concat()))
                .collect();
            done.extend(all.iter().map(|text| text.join("/")));
        }
        done
    }

    #[test]
    fn every_filter_matches_what_the_specification_says() {
        let topics = texts(&["a", "b", "", "$x"]);
        let filters: Vec<_> = texts(&["a", "+", "", "$x"]).into_iter().flat_map(|f| [format!("{f}/#"), f]).collect();
        let mut tree = Filters::default();
        for filter in filters.iter().map(String::as_str).chain(["#"]) {
            tree.insert(filter, filter);
        }
        for topic in &topics {
            let mut found = Vec::new();
            tree.find(topic, &mut |filter| found.push(*filter));
            found.sort_unstable();
            let mut due: Vec<_> = filters.iter().map(String::as_str).chain(["#"]).filter(|f| naive(f, topic)).collect();
            due.sort_unstable();
            assert_eq!(found, due, "{topic}");
        }
    }

    #[test]
    fn what_is_removed_leaves_nothing_behind() {
        let mut tree = Filters::default();
        for filter in ["a/b/c", "a/b/#", "a/+/c", "a/b"] {
            tree.insert(filter, 1);
            tree.insert(filter, 2);
        }
        for filter in ["a/b/c", "a/b/#", "a/+/c", "a/b"] {
            assert!(tree.remove(filter, |value| *value == 1));
            assert!(!tree.remove(filter, |value| *value == 1), "once");
        }
        let mut found = Vec::new();
        tree.find("a/b/c", &mut |value| found.push(*value));
        assert_eq!(found, [2, 2, 2]);
        for filter in ["a/b/c", "a/b/#", "a/+/c", "a/b"] {
            assert!(tree.remove(filter, |value| *value == 2));
        }
        assert!(tree.root.is_empty());
        assert!(!tree.remove("never/there", |_| true));
    }

    #[test]
    fn a_topic_touches_no_more_nodes_for_other_devices_filters() {
        let mut tree = Filters::default();
        for device in 0..10_000 {
            tree.insert(&format!("device/v1/default/{device}/+/set/#"), device);
        }
        let mut found = Vec::new();
        tree.find("device/v1/default/77/valve/set/now", &mut |device| found.push(*device));
        assert_eq!(found, [77]);
    }
}

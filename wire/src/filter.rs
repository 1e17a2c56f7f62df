//! Topic names and topic filters as text: which are sound, and which filter covers which.

/// The longest topic name and topic filter, in bytes. The longest that the protocol itself needs is
/// `provision/v1/{32}/{64}/request`. The rest is room for the topics in a device's own tree.
pub const MAX_TOPIC: usize = 256;

/// The most levels of a topic filter: four of the protocol, and twelve of a device's own. The limit
/// bounds the work that a client's wildcards make.
pub const MAX_LEVELS: usize = 16;

/// Whether a name is printable ASCII, in levels that are not empty, and not too long. MQTT allows
/// more. With this rule, no topic looks like another one to a reader, and none carries control
/// sequences to an operator's terminal.
pub fn is_plain(name: &str) -> bool {
    name.len() <= MAX_TOPIC
        && name
            .split('/')
            .all(|level| !level.is_empty() && level.bytes().all(|byte| byte.is_ascii_graphic()))
}

/// Whether a filter is plain, and has few levels and sound wildcards.
pub fn is_filter(filter: &str) -> bool {
    is_plain(filter) && filter.split('/').count() <= MAX_LEVELS && has_sound_wildcards(filter)
}

/// Whether each wildcard is alone in its level, and `#` is at the end (MQTT 5 §4.7.1).
pub fn has_sound_wildcards(filter: &str) -> bool {
    let mut levels = filter.split('/').rev();
    let last = levels.next();
    !filter.is_empty()
        && last.is_some_and(|level| matches!(level, "#" | "+") || !level.contains(['+', '#']))
        && levels.all(|level| level == "+" || !level.contains(['+', '#']))
}

/// Whether every topic that matches `other` matches `filter` too (MQTT 5 §4.7.1). `other` may be a
/// topic name. Both have sound wildcards, and neither begins with one.
pub fn covers(filter: &str, other: &str) -> bool {
    let mut others = other.split('/');
    for level in filter.split('/') {
        if level == "#" {
            // It stands for any number of levels, also for none (§4.7.1.2).
            return true;
        }
        match others.next() {
            Some("#") | None => return false,
            Some(theirs) if level == "+" || level == theirs => {}
            Some(_) => return false,
        }
    }
    others.next().is_none()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filter_covers_what_can_match_nothing_else() {
        for (filter, other) in [
            ("a", "a"),
            ("a/#", "a"),
            ("a/#", "a/#"),
            ("a/#", "a/b"),
            ("a/#", "a/+/c"),
            ("a/+", "a/b"),
            ("a/+", "a/+"),
            ("a/+/c/#", "a/b/c"),
            ("a/+/c/#", "a/+/c/d/#"),
        ] {
            assert!(covers(filter, other), "{filter} {other}");
        }
        for (filter, other) in [
            ("a", "b"),
            ("a", "a/b"),
            ("a", "a/#"),
            ("a", "+"),
            ("a/+", "a"),
            ("a/+", "a/#"),
            ("a/+", "a/b/c"),
            ("a/b", "a/+"),
            ("a/b/#", "a/#"),
            ("a/+/c/#", "a/b/#"),
            ("a/+/c/#", "a/+/+"),
            ("a/+/c", "a/b/c/#"),
        ] {
            assert!(!covers(filter, other), "{filter} {other}");
        }
    }
}

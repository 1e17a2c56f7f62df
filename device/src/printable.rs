//! What strangers wrote, as it may be shown on a terminal.

/// The text with control characters escaped, and cut where no line would end.
pub(crate) fn printable(text: &str) -> String {
    let mut shown: String = text
        .chars()
        .take(MAX)
        .map(|c| if c.is_control() { c.escape_default().to_string() } else { c.into() })
        .collect();
    if text.chars().nth(MAX).is_some() {
        shown.push('…');
    }
    shown
}

/// The longest text that a message of the CA has is shorter (`Problem::MAX_DETAIL`).
const MAX: usize = 600;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_are_escaped_and_long_texts_cut() {
        assert_eq!(printable("\x1b[2Jx\né"), "\\u{1b}[2Jx\\né");
        assert_eq!(printable(&"x".repeat(MAX)), "x".repeat(MAX));
        assert_eq!(printable(&"x".repeat(MAX + 1)), "x".repeat(MAX) + "…");
    }
}

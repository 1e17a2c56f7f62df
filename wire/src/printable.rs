//! Makes text from strangers safe to show to people.

use alloc::string::String;
use core::fmt::Write;

/// How many characters of a stranger's text are shown in a line. Our own messages are shorter
/// ([`Problem::MAX_DETAIL`](crate::Problem::MAX_DETAIL)).
pub const MAX_SHOWN: usize = 600;

/// The text, cut after `most` characters, with every character escaped that could steer a terminal,
/// forge a line, or reorder or hide the text beside it: control characters, line separators,
/// bidirectional and zero-width characters, and whatever else Rust escapes.
pub fn printable(text: &str, most: usize) -> String {
    let mut shown = String::new();
    for c in text.chars().take(most) {
        if is_plain(c) {
            shown.push(c);
        } else {
            shown.extend(c.escape_debug());
        }
    }
    if text.chars().nth(most).is_some() {
        shown.push('…');
    }
    shown
}

/// The same JSON value, with the same characters escaped. JSON's own rules do not require this for
/// most of them, but terminals show JSON too.
pub fn printable_json(json: &str) -> String {
    let mut shown = String::new();
    for c in json.chars() {
        // Outside of its strings, JSON has ASCII only, including white space.
        if c != '\x7f' && c.is_ascii() || is_plain(c) {
            shown.push(c);
        } else {
            for unit in c.encode_utf16(&mut [0; 2]) {
                // Unwrap safety: writing to a String cannot fail.
                write!(shown, "\\u{unit:04x}").unwrap();
            }
        }
    }
    shown
}

fn is_plain(c: char) -> bool {
    matches!(c, '"' | '\'' | '\\') || c.escape_debug().eq([c])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_steers_a_terminal_or_forges_a_line_is_escaped_and_nothing_else_is() {
        let plain = "21.5 °C, \"größe\" 中文 \\ {'t': 1} 👍";
        assert_eq!(printable(plain, MAX_SHOWN), plain);
        for (hostile, shown) in [
            ("a\x1b[2J\nforged\r", "a\\u{1b}[2J\\nforged\\r"),
            ("\u{9b}31m", "\\u{9b}31m"),
            ("\u{202e}gnp.exe\u{2066}", "\\u{202e}gnp.exe\\u{2066}"),
            ("ad\u{200b}min\u{200d}\u{feff}", "ad\\u{200b}min\\u{200d}\\u{feff}"),
            ("one\u{2028}two\u{2029}\u{85}", "one\\u{2028}two\\u{2029}\\u{85}"),
            ("\u{e0041}\u{ad}", "\\u{e0041}\\u{ad}"),
        ] {
            assert_eq!(printable(hostile, MAX_SHOWN), shown);
        }
    }

    #[test]
    fn long_text_is_cut() {
        assert_eq!(printable(&"é".repeat(5), 5), "é".repeat(5));
        assert_eq!(printable(&"é".repeat(6), 5), "é".repeat(5) + "…");
    }

    #[test]
    fn json_says_the_same() {
        assert_eq!(printable_json("{\"a\":\"é\\n\"}"), "{\"a\":\"é\\n\"}");
        assert_eq!(
            printable_json("\"\u{202e}\u{9b}\x7f\u{e0041}\""),
            "\"\\u202e\\u009b\\u007f\\udb40\\udc41\""
        );
    }
}

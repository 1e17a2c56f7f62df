//! Text in columns, and times as people write them.

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// Prints rows under a heading, each column as wide as its widest cell.
pub(crate) fn print<const N: usize>(heading: [&str; N], rows: impl IntoIterator<Item = [String; N]>) {
    let rows = rows.into_iter().map(|row| row.map(|cell| printable(&cell)));
    let rows: Vec<_> = std::iter::once(heading.map(str::to_owned)).chain(rows).collect();
    let width = |column: usize| rows.iter().map(|row: &[String; N]| row[column].chars().count()).max().unwrap_or(0);
    let widths: [usize; N] = std::array::from_fn(width);
    for row in &rows {
        let cells: Vec<_> = row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        println!("{}", cells.join("  ").trim_end());
    }
}

/// Text that a stranger may have written, without what could steer the operator's terminal or forge a line of its own.
pub(crate) fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { c.escape_default().to_string() } else { c.into() }).collect()
}

/// Seconds since 1970 in RFC 3339.
pub(crate) fn time(seconds: i64) -> String {
    OffsetDateTime::from_unix_timestamp(seconds)
        .ok()
        .and_then(|time| time.format(&Rfc3339).ok())
        .unwrap_or_else(|| seconds.to_string())
}

/// `disabled` or `enabled`.
pub(crate) fn status(disabled: bool) -> &'static str {
    if disabled { "disabled" } else { "enabled" }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_are_escaped_and_nothing_else_is() {
        assert_eq!(printable("21.5 °C {\"t\": 1}"), "21.5 °C {\"t\": 1}");
        assert_eq!(printable("a\x1b[2J\nforged\u{9b}"), "a\\u{1b}[2J\\nforged\\u{9b}");
    }
}

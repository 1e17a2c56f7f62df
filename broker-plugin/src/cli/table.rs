//! Text in columns, and times as people write them.

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// Prints rows under a heading, each column as wide as its widest cell.
pub(crate) fn print<const N: usize>(heading: [&str; N], rows: impl IntoIterator<Item = [String; N]>) {
    let rows: Vec<_> = std::iter::once(heading.map(str::to_owned)).chain(rows).collect();
    let width = |column: usize| rows.iter().map(|row: &[String; N]| row[column].chars().count()).max().unwrap_or(0);
    let widths: [usize; N] = std::array::from_fn(width);
    for row in &rows {
        let cells: Vec<_> = row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        println!("{}", cells.join("  ").trim_end());
    }
}

/// Seconds since 1970 in RFC 3339.
pub(crate) fn time(seconds: i64) -> String {
    OffsetDateTime::from_unix_timestamp(seconds)
        .ok()
        .and_then(|time| time.format(&Rfc3339).ok())
        .unwrap_or_else(|| seconds.to_string())
}

/// `disabled` or `enabled`.
pub(crate) fn ability(disabled: bool) -> &'static str {
    if disabled { "disabled" } else { "enabled" }
}

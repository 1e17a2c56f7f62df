//! Names of files that say from when on each is used: `{stem}` from the beginning, and
//! `{stem}-YYYYMMDDTHHMMSSZ` from that second on.

use std::fs;
use std::io;
use std::path::Path;

use time::format_description::BorrowedFormatItem;
use time::macros::format_description;
use time::{OffsetDateTime, PrimitiveDateTime, UtcOffset};

/// The name of what is used from then on; `None` is from the beginning.
pub(crate) fn name(stem: &str, from: Option<OffsetDateTime>) -> String {
    match from.map(|from| from.to_offset(UtcOffset::UTC).format(TIME)) {
        None => stem.to_owned(),
        // A time that has such a name always has a year of four digits.
        Some(time) => format!("{stem}-{}", time.unwrap_or_default()),
    }
}

/// From when on a file of this name is used, if it is one of the stem's.
pub(crate) fn parse(stem: &str, file: &str) -> Option<Option<OffsetDateTime>> {
    let from = match file.strip_prefix(stem)? {
        "" => None,
        time => Some(PrimitiveDateTime::parse(time.strip_prefix('-')?, TIME).ok()?.assume_utc()),
    };
    // No other name is taken for the same time.
    Some(from).filter(|from| name(stem, *from) == file)
}

/// From when on the stem's files of this kind, e.g. `.key`, are used, in their order.
///
/// # Errors
/// The directory cannot be read.
pub(crate) fn files(
    directory: &Path,
    stem: &str,
    kind: &str,
) -> io::Result<Vec<Option<OffsetDateTime>>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory)? {
        let file = entry?.file_name();
        let file = file.to_str().and_then(|file| file.strip_suffix(kind));
        found.extend(file.and_then(|file| parse(stem, file)));
    }
    found.sort_unstable();
    Ok(found)
}

const TIME: &[BorrowedFormatItem<'_>] =
    format_description!("[year][month][day]T[hour][minute][second]Z");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_read_back_as_written_and_no_time_has_two() {
        let time = OffsetDateTime::from_unix_timestamp(1_800_000_000).unwrap();
        assert_eq!(name("ticket", Some(time)), "ticket-20270115T080000Z");
        assert_eq!(parse("ticket", "ticket-20270115T080000Z"), Some(Some(time)));
        assert_eq!(parse("ticket", "ticket"), Some(None));
        for other in
            ["", "ticket-", "ticket-20270115", "ticket-20270115T080060Z", "master", "tickets"]
        {
            assert_eq!(parse("ticket", other), None, "{other}");
        }
    }

    #[test]
    fn files_are_found_in_the_order_of_their_times() {
        let directory = tempfile::tempdir().unwrap();
        for file in ["root-20280101T000000Z.pem", "root.pem", "root.key", "root-old.pem"] {
            fs::write(directory.path().join(file), "").unwrap();
        }
        let found = files(directory.path(), "root", ".pem").unwrap();
        let names: Vec<_> = found.into_iter().map(|from| name("root", from)).collect();
        assert_eq!(names, ["root", "root-20280101T000000Z"]);
    }
}

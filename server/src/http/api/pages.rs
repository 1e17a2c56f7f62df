//! Pages of what there may be a million of.
//!
//! A page looks at a limited number of rows, in the order of a key that has an index. So it costs
//! the same whatever is looked for, and with a filter it may have few entries or none, and another
//! page after it.

use serde_json::{Value, json};

/// How many entries a page has at most, and how many rows it looks at.
#[derive(Clone, Copy)]
pub(super) struct Size {
    entries: usize,
    rows: usize,
}

impl Size {
    /// So many entries as are wanted; with a filter, of more rows.
    pub(super) fn new(wanted: Option<u16>, is_filtered: bool) -> Self {
        let entries = usize::from(wanted.unwrap_or(USUAL).clamp(1, LONGEST));
        Self { entries, rows: if is_filtered { ROWS } else { entries } }
    }

    /// How many rows to read: one more says where the next page begins.
    pub(super) fn rows(self) -> u32 {
        u32::try_from(self.rows).unwrap_or(u32::MAX).saturating_add(1)
    }

    /// The page of these rows. `next` is where the next one begins, if there is one.
    pub(super) fn page<R>(
        self,
        rows: Vec<R>,
        key: impl Fn(&R) -> String,
        is_wanted: impl Fn(&R) -> bool,
        show: impl Fn(&R) -> Value,
    ) -> Value {
        let (mut entries, mut next) = (Vec::new(), None);
        for (number, row) in rows.iter().enumerate() {
            if number == self.rows || entries.len() == self.entries {
                next = Some(key(row));
                break;
            }
            if is_wanted(row) {
                entries.push(show(row));
            }
        }
        json!({ "items": entries, "next": next })
    }
}

const USUAL: u16 = 50;
/// With a certificate in each, some 200 KiB.
const LONGEST: u16 = 100;
/// A store reads so many in some 10 ms; in 100 ms if it has to fetch each from a disk.
const ROWS: usize = 500;

#[cfg(test)]
mod tests {
    use super::*;

    /// All pages of the numbers below `count`, and how many rows each read.
    fn pages(count: u32, size: Size, is_wanted: impl Fn(&u32) -> bool) -> Vec<Vec<u64>> {
        let (mut from, mut pages) = (0, Vec::new());
        loop {
            let rows: Vec<u32> = (from..count).take(size.rows() as usize).collect();
            let page = size.page(rows, u32::to_string, &is_wanted, |row| json!(row));
            let entries = page["items"].as_array().unwrap();
            pages.push(entries.iter().map(|entry| entry.as_u64().unwrap()).collect());
            match page["next"].as_str() {
                Some(next) => from = next.parse().unwrap(),
                None => return pages,
            }
        }
    }

    #[test]
    fn pages_have_every_row_once_and_the_last_one_says_so() {
        let size = Size::new(Some(2), false);
        assert_eq!(pages(5, size, |_| true), [vec![0, 1], vec![2, 3], vec![4]]);
        assert_eq!(pages(4, size, |_| true), [vec![0, 1], vec![2, 3]]);
        assert_eq!(pages(0, size, |_| true), [[0; 0]]);
    }

    #[test]
    fn a_page_looks_at_so_many_rows_and_no_more_also_if_it_finds_nothing() {
        let size = Size::new(Some(2), true);
        let (rows, last) = (u32::try_from(ROWS).unwrap(), u64::try_from(ROWS).unwrap() + 7);
        let found = pages(rows + 10, size, |row| u64::from(*row) == last || *row < 3);
        assert_eq!(found, [vec![0, 1], vec![2], vec![last]]);
        let found = pages(2 * rows + 1, size, |_| false);
        assert_eq!(found, [[0; 0], [0; 0], [0; 0]]);
    }

    #[test]
    fn nobody_gets_a_page_without_end() {
        assert_eq!(Size::new(Some(u16::MAX), false).entries, usize::from(LONGEST));
        assert_eq!(Size::new(Some(0), false).entries, 1);
    }
}

//! How far the audit was told as events.

use time::OffsetDateTime;

use super::audit::audit_row;
use super::columns::array;
use super::connection::Postgres;
use crate::chain::Chain;
use crate::error::StoreError;
use crate::events::{Teller, Told, Untold, milliseconds, turn_ends};

impl Postgres {
    pub(super) fn not_told(&mut self, from: Told, count: u32) -> Result<Untold, StoreError> {
        self.read(|session| {
            let row = session.query_one(CURSOR, &[])?;
            let told = Told([row.get(0), row.get(1), row.get(2)]);
            let teller = row.get::<_, Option<&[u8]>>(3).map(array).transpose()?;
            let turn = teller.zip(Some(row.get(4)));
            // Whatever is read later was written after what the cursor says.
            let from = from.max(told);
            let [acts, changes, others] = Chain::ALL.map(|chain| from.of(chain));
            let rows = session.query(AFTER, &[&acts, &changes, &others, &i64::from(count)])?;
            let rows = rows.iter().map(audit_row).collect::<Result<_, _>>()?;
            Ok(Untold::of(rows, from, count as usize, turn))
        })
    }

    pub(super) fn have_told(
        &mut self,
        Told([acts, changes, others]): Told,
        teller: &Teller,
        now: OffsetDateTime,
    ) -> Result<bool, StoreError> {
        self.write(|session| {
            let (until, now) = (turn_ends(now), milliseconds(now));
            let rows =
                session.execute(MARK, &[&acts, &changes, &others, &&teller[..], &until, &now])?;
            Ok(rows == 1)
        })
    }
}

const CURSOR: &str = "SELECT acts, changes, others, teller, until FROM event_cursor";
const MARK: &str = "UPDATE event_cursor SET acts = greatest(acts, $1),
        changes = greatest(changes, $2), others = greatest(others, $3), teller = $4, until = $5
    WHERE teller IS NULL OR teller = $4 OR until <= $6";
/// All of it is of one moment.
const AFTER: &str = "(SELECT 'acts', id, number, time_us, client, action, ek_id, device_id,
        is_proven, code, detail, duration_us, serial, replaced, event, hash
        FROM audit_acts WHERE id > $1 ORDER BY id LIMIT $4)
    UNION ALL
    (SELECT 'changes', id, number, time_us, client, action, ek_id, device_id,
        is_proven, code, detail, duration_us, serial, replaced, event, hash
        FROM audit_changes WHERE id > $2 ORDER BY id LIMIT $4)
    UNION ALL
    (SELECT 'others', id, number, time_us, client, action, ek_id, device_id,
        is_proven, code, detail, duration_us, serial, replaced, event, hash
        FROM audit_others WHERE id > $3 ORDER BY id LIMIT $4)";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::postgres::session::assert_indexed;

    #[test]
    fn every_row_is_found_by_an_index() {
        assert_indexed(&[AFTER]);
    }
}

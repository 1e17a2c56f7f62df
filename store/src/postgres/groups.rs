//! Who is admitted: the operator's groups, in order.

use assay_ca_core::{Groups, Place};
use assay_wire::EkId;
use time::OffsetDateTime;

use super::connection::Postgres;
use crate::deeds;
use crate::error::StoreError;
use crate::groups::{Columns, GroupsVersion, PLACE_FRESH, PLACE_KEPT, read};

impl Postgres {
    pub(super) fn all_groups(&mut self) -> Result<(GroupsVersion, Groups), StoreError> {
        self.read_together(|session| {
            let version = GroupsVersion(session.query_one(VERSION, &[])?.get(0));
            let rows = session.query(ALL, &[])?;
            let columns = rows.iter().map(|row| Columns {
                name: row.get(0),
                answer: row.get(1),
                rule: row.get(2),
            });
            Ok((version, read(&columns.collect::<Vec<_>>())?))
        })
    }

    pub(super) fn put_groups(
        &mut self,
        seen: GroupsVersion,
        groups: &Groups,
    ) -> Result<bool, StoreError> {
        let (mut places, mut names, mut answers, mut rules) = (vec![], vec![], vec![], vec![]);
        for (place, group) in (1_i64..).zip(groups.all()) {
            let Columns { name, answer, rule } = Columns::of(group);
            places.push(place);
            names.push(name);
            answers.push(answer);
            rules.push(rule);
        }
        self.act(|session, done| {
            if session.execute(NEXT_VERSION, &[&seen.0])? == 0 {
                return Ok(false);
            }
            session.execute("DELETE FROM admission_groups", &[])?;
            session.execute(ADD, &[&places, &names, &answers, &rules])?;
            done.push(deeds::groups_set(groups));
            Ok(true)
        })
    }
}

impl Postgres {
    pub(super) fn give_place(
        &mut self,
        ek: &EkId,
        Place { group, quota }: &Place,
        now: OffsetDateTime,
    ) -> Result<bool, StoreError> {
        let (ek, group, at) = (&ek.as_bytes()[..], group.as_str(), now.unix_timestamp());
        let [until, since] = [PLACE_KEPT, PLACE_FRESH].map(|time| (now - time).unix_timestamp());
        let is_fresh = self.read(|session| {
            Ok(session.query_one(HAS_FRESH_PLACE, &[&ek, &group, &since])?.get(0))
        })?;
        if is_fresh {
            return Ok(true);
        }
        self.write(|session| {
            if session.execute(KEEP_PLACE, &[&ek, &group, &at])? == 1 {
                return Ok(true);
            }
            session.execute(FREE_PLACES, &[&group, &until])?;
            let taken: i64 = session.query_one(COUNT_PLACES, &[&group])?.get(0);
            if taken >= i64::from(*quota) {
                return Ok(false);
            }
            session.execute(TAKE_PLACE, &[&ek, &group, &at])?;
            Ok(true)
        })
    }

    pub(super) fn keeps_place(&mut self, ek: &EkId, place: &Place) -> Result<bool, StoreError> {
        let (ek, group) = (&ek.as_bytes()[..], place.group.as_str());
        self.read(|session| Ok(session.query_one(HAS_PLACE, &[&ek, &group])?.get(0)))
    }
}

const HAS_PLACE: &str = "SELECT EXISTS (SELECT FROM places WHERE ek_id = $1 AND group_name = $2)";

const HAS_FRESH_PLACE: &str = "SELECT EXISTS (SELECT FROM places
    WHERE ek_id = $1 AND group_name = $2 AND taken_at > $3)";
const KEEP_PLACE: &str = "UPDATE places SET taken_at = $3 WHERE ek_id = $1 AND group_name = $2";
const FREE_PLACES: &str = "DELETE FROM places p WHERE p.group_name = $1 AND p.taken_at <= $2
    AND NOT EXISTS (SELECT FROM devices d WHERE d.ek_id = p.ek_id)
    AND NOT EXISTS (SELECT FROM enrolments e WHERE e.ek_id = p.ek_id)
    AND NOT EXISTS (SELECT FROM shared_keys s WHERE s.ek_id = p.ek_id AND s.is_used)";
const COUNT_PLACES: &str = "SELECT count(*) FROM places WHERE group_name = $1";
const TAKE_PLACE: &str = "INSERT INTO places (ek_id, group_name, taken_at) VALUES ($1, $2, $3)
    ON CONFLICT (ek_id) DO UPDATE
    SET group_name = excluded.group_name, taken_at = excluded.taken_at";
const VERSION: &str = "SELECT number FROM admission_version WHERE id = 1";
const ALL: &str = "SELECT name, answer, rule FROM admission_groups ORDER BY place";
const NEXT_VERSION: &str =
    "UPDATE admission_version SET number = number + 1 WHERE id = 1 AND number = $1";
const ADD: &str = "INSERT INTO admission_groups (place, name, answer, rule)
    SELECT * FROM unnest($1::int8[], $2::text[], $3::text[], $4::text[])";

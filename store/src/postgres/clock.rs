//! The latest time that is on record, and the server's clock.

use time::OffsetDateTime;

use super::columns::time;
use super::connection::Postgres;
use crate::clock::Clocks;
use crate::deeds;
use crate::error::StoreError;

impl Postgres {
    pub(super) fn all_clocks(&mut self) -> Result<Clocks, StoreError> {
        self.read(|session| {
            let row = session.query_one(CLOCKS, &[])?;
            let (latest, server) = (time(row.get(0))?, Some(time(row.get(2))?));
            Ok(Clocks { latest, accepted: row.get(1), server })
        })
    }

    pub(super) fn mark(&mut self, now: OffsetDateTime) -> Result<(), StoreError> {
        self.write(|session| session.execute(MARK, &[&now.unix_timestamp()]).map(drop))
    }

    pub(super) fn accept(&mut self, now: OffsetDateTime) -> Result<(), StoreError> {
        self.act(|session, done| {
            done.push(deeds::clock_accepted());
            session.execute(ACCEPT, &[&now.unix_timestamp()]).map(drop)
        })
    }
}

const CLOCKS: &str =
    "SELECT latest, accepted, extract(epoch FROM clock_timestamp())::int8 FROM clock";
const MARK: &str = "UPDATE clock SET latest = $1 WHERE latest < $1";
const ACCEPT: &str = "UPDATE clock SET latest = $1, accepted = accepted + 1";

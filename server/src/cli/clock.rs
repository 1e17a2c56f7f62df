//! `assay clock`: what this machine's clock is compared with.

use anyhow::Result;
use assay_server::directory::Directory;
use assay_server::rfc3339;
use clap::Args;
use serde_json::json;
use time::OffsetDateTime;

use super::table;

#[derive(Args)]
#[command(after_help = "Examples:
  assay --dir ca clock             # the times, side by side
  assay --dir ca clock --accept    # this machine's clock is right now")]
pub(crate) struct Clock {
    /// Say that this machine's clock is right now: workers answer again that stopped because it
    /// was set forward, or because the record has later times
    #[arg(long)]
    accept: bool,
    /// One JSON object instead of text
    #[arg(long)]
    json: bool,
}

impl Clock {
    pub(crate) fn run(self, directory: &Directory) -> Result<()> {
        let (mut store, now) = (directory.store()?, OffsetDateTime::now_utc());
        if self.accept {
            store.accept_clock(now)?;
        }
        let clocks = store.clocks()?;
        let time = |at: OffsetDateTime| rfc3339::seconds(at.unix_timestamp());
        if self.json {
            table::print_json(&json!({
                "here": time(now),
                "recorded": time(clocks.latest),
                "server": clocks.server.map(time),
            }));
            return Ok(());
        }
        let server = clocks.server.map(|server| ["PostgreSQL".to_owned(), time(server)]);
        let rows = [["here".into(), time(now)], ["last on record".into(), time(clocks.latest)]];
        table::print(["CLOCK", "TIME"], rows.into_iter().chain(server));
        Ok(())
    }
}

//! Who acts by means of a command.

use std::fs;

use assay_store::Actor;
use assay_wire::ClientId;
use time::OffsetDateTime;

/// The user of this process, who acts from this time on.
pub(crate) fn actor(at: OffsetDateTime) -> Actor {
    Actor { name: user(), at }
}

/// As `unix:` and the name in /etc/passwd, or else the number.
fn user() -> ClientId {
    let uid = rustix::process::getuid().as_raw().to_string();
    let users = fs::read_to_string("/etc/passwd").unwrap_or_default();
    let mut names = users.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1) == Some(&uid)).then(|| format!("unix:{name}").parse().ok()).flatten()
    });
    names.next().unwrap_or_else(|| {
        format!("unix:{uid}").parse().expect("digits are characters of a client id")
    })
}

//! Why the store could not do what was asked of it.

use assay_wire::Scope;
use postgres::error::SqlState;

/// The store could not do what was asked of it. Nothing of it happened, unless a variant says
/// otherwise.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A vendor's certificate on record cannot be used.
    #[error(transparent)]
    Anchors(#[from] assay_ca_core::AnchorError),
    /// The clock of this machine is ahead of the server's, so the store does not know what has
    /// expired.
    #[error(
        "the clock of this machine is {0} s ahead of that of PostgreSQL, so no unconfirmed \
         certificate is revoked and no expired row is deleted: set the clock that is wrong"
    )]
    Clock(i64),
    /// The destination of a copy is in use.
    #[error(
        "{0} holds a CA already, and a copy overwrites nothing: empty it, or choose another \
         destination"
    )]
    NotEmpty(String),
    /// A file cannot be made or read.
    #[error(transparent)]
    File(#[from] std::io::Error),
    /// An entry would break what the store promises. The fault is in the code that planned it.
    #[error("a plan contradicts the record: {0}")]
    Inconsistent(&'static str),
    /// Another process has the file open.
    #[error(
        "another process has {0} open: stop every `assay serve` and `assay worker` first, and try again"
    )]
    InUse(String),
    /// A migration failed. The database is as it was.
    #[error("the database cannot be upgraded, and is as it was: {0}")]
    Migration(#[from] refinery::Error),
    /// The CA was copied to another database. What was revoked there since is not known here.
    #[error(
        "the CA moved from here to {0}; to use it here all the same, see docs/operations.md, \
         \"PostgreSQL\""
    )]
    Moved(String),
    /// A later version of Assay wrote the database.
    #[error(
        "the database has schema version {found}, written by assay {writer}; this is assay {}, \
         which reads schema version {SCHEMA_VERSION}: use assay {writer} or later",
        env!("CARGO_PKG_VERSION")
    )]
    Newer {
        /// Its schema version.
        found: i64,
        /// The version of Assay that made this schema; `unknown` if it is not on record.
        writer: String,
    },
    /// An earlier version of Assay wrote the database, and opening it does not upgrade it.
    #[error(
        "the database has schema version {0}; this version of assay needs {SCHEMA_VERSION}: make a \
         backup (pg_dump), stop every worker, and run `assay store upgrade`"
    )]
    Older(i64),
    /// There is no CA in the database.
    #[error("the database holds no CA; `assay store copy` copies one into it")]
    Empty,
    /// An error of PostgreSQL or of the connection to it.
    #[error("PostgreSQL: {}", explained(.0))]
    Postgres(#[from] postgres::Error),
    /// Devices know the CA by another scope.
    #[error(
        "assay.toml sets scope {is}, but this CA serves scope {was}, which the certificates and \
         topics of its devices name: put scope = \"{was}\" back into assay.toml, or make another \
         CA for {is} (assay init)"
    )]
    Scope {
        /// The scope on record.
        was: Scope,
        /// The scope that is wanted.
        is: Scope,
    },
    /// A setting is wrong, or what it names cannot be used.
    #[error("{0}")]
    Settings(String),
    /// An error of SQLite.
    #[error("database: {0}")]
    Sqlite(#[from] rusqlite::Error),
    /// The connection to PostgreSQL was lost during a commit, and PostgreSQL did not come back in
    /// time to say whether it committed. All of the transaction is on record, or nothing.
    #[error(
        "the connection to PostgreSQL was lost while it committed, so either all of the \
         transaction is on record or nothing: check the record, and repeat the command if nothing \
         was recorded"
    )]
    Undecided,
    /// A value on record cannot be read.
    #[error("the database holds a value that cannot be read: {0}")]
    Unreadable(String),
}

impl StoreError {
    /// Whether an entry is the reason, so that another entry may still be recorded.
    pub(crate) fn is_of_an_entry(&self) -> bool {
        match self {
            Self::Inconsistent(_) | Self::Unreadable(_) => true,
            // Classes 22, data exception, and 23, constraint violation.
            Self::Postgres(error) => error
                .code()
                .map(SqlState::code)
                .is_some_and(|code| code.starts_with("22") || code.starts_with("23")),
            Self::Sqlite(error) => {
                error.sqlite_error_code() == Some(rusqlite::ErrorCode::ConstraintViolation)
            }
            _ => false,
        }
    }

    /// The error for a value that Assay cannot have written.
    pub(crate) fn unreadable(error: impl ToString) -> Self {
        Self::Unreadable(error.to_string())
    }
}

/// The error with its causes: the client's own text says only in which phase it failed.
fn explained(error: &postgres::Error) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    match error.as_db_error().and_then(postgres::error::DbError::hint) {
        Some(hint) => format!("{text} ({hint})"),
        None => text,
    }
}

/// The version of the schema that this version of Assay reads and writes; the same in both stores.
pub(crate) const SCHEMA_VERSION: i64 = 11;

//! What a CA has on record: trust anchors, enrolments, devices, certificates, generations of shared
//! keys, audit.
//!
//! [`contract`] says what a store promises. There are two: [SQLite](sqlite), a file of its own for
//! one machine and the default, and [PostgreSQL](postgres), for workers on several machines.
//! [`Database`] opens either, and [`copy`] moves a CA from one to another.

pub mod contract;

mod act;
mod audit;
mod certificates;
mod copy;
mod credentials;
mod database;
mod enrolments;
mod error;
mod random;
mod retention;
mod revocation;
mod shared_keys;
mod snapshot;
mod tables;
mod trust;

pub mod postgres;
pub mod sqlite;

pub use act::{Act, Entry, FirstUse, KeyOffer, Recorded};
pub use audit::{AuditEntry, AuditRow, Change, Whom};
pub use certificates::{CertificateRow, CertificateStatus, DeviceRow, ToConfirm};
pub use copy::{Progress, copy};
pub use credentials::{Credential, CredentialRow};
pub use database::{Database, Status};
pub use enrolments::{
    EnrolError, EnrolResults, Enrolled, EnrolmentRow, NewEnrolment, Removed, Tags,
};
pub use error::StoreError;
pub use postgres::Settings as PostgresSettings;
pub use retention::{Pruned, Retention};
pub use revocation::{Changes, RevokedCertificates};
pub use shared_keys::SharedKeyHolder;
pub use snapshot::{ActiveCertificate, Basis, Question, Snapshot, WaitingCertificate};
// Until every caller works on the contract. `contract::Store` and `snapshot::IdInQuestion` take
// their names then.
pub use snapshot::IdInQuestion as OwnedIdInQuestion;
pub use sqlite::{IdInQuestion, Sqlite as Store, Transaction};
pub use trust::{AnchorRow, AnchorsVersion, Trusted};

//! What a CA has on record: trust anchors, groups, enrolments, devices, certificates, generations
//! of shared keys, audit.
//!
//! [`contract`] says what a store promises. There are two stores: [SQLite](sqlite), which is the
//! default, is a file for one machine; [PostgreSQL](postgres) is for workers on several machines.
//! [`Database`] opens either, [`copy`] moves a CA from one to the other, and [`backup`] copies one
//! that serves.

pub mod contract;

mod act;
mod audit;
mod backup;
mod certificates;
mod chain;
mod clock;
mod configurations;
mod copy;
mod database;
mod deeds;
mod enrolments;
mod epoch;
mod error;
mod events;
mod facts;
mod groups;
mod identities;
mod pending;
mod random;
mod record_each;
mod retention;
mod revocation;
mod secrets;
mod tables;
mod trust;
mod writes;

pub mod postgres;
pub mod sqlite;

pub use act::{
    Act, Basis, Entry, IdInQuestion, IkInQuestion, Question, Recorded, Snapshot, WaitingInQuestion,
};
pub use audit::{Actor, AuditEntry, AuditRow, Change, Deed, Whom};
pub use backup::backup;
pub use certificates::{CertificateRow, CertificateStatus, Counts, DeviceRow, InForce};
pub use chain::{Broken, Chain, Link, NotALink, Verified, Verifier, Walked};
pub use clock::Clocks;
pub use configurations::{ConfigurationChanges, ConfigurationRow, DueConfiguration};
pub use contract::Store;
pub use copy::{Progress, copy};
pub use database::{Database, Status};
pub use enrolments::{
    EnrolError, EnrolResults, Enrolled, EnrolmentRow, NewEnrolment, Removed, Replaced, Replacement,
    Tags, Tenure,
};
pub use epoch::{Epoch, ListedAre, PublishedList, Raised, Restored, SharedKeys, TakenOver};
pub use error::StoreError;
pub use events::{Teller, Told, Untold};
pub use groups::GroupsVersion;
pub use identities::{
    IdentityCertificate, IdentityCertificateRow, IdentityRole, IdentityRow, NewIdentity, Renewed,
    Which,
};
pub use pending::{PendingRow, Waiting};
pub use postgres::Settings as PostgresSettings;
pub use record_each::record_each;
pub use retention::{Pruned, Retention};
pub use revocation::{Changes, RevokedCertificates};
pub use secrets::MadeBefore;
pub use trust::{AnchorRow, AnchorsVersion, Trusted};

//! The decisions of a device that proves its TPM to an Assay CA, without input or output.
//!
//! A [`Machine`] says what to do next, as an [`Action`]: have the TPM do something, store this,
//! send these bytes, wait. A shell does it and tells the machine what came of it, as an [`Event`].
//! The core has no socket, file, thread, clock, TPM or source of random bytes, and no `std`:
//! firmware without an operating system can link it. `assay-device` is the shell for Linux.
//!
//! | file | decides |
//! |---|---|
//! | `provision.rs` | which flow, and which EK if the CA refuses one |
//! | `ticket.rs`, `sealed.rs`, `shared_key.rs` | what each flow says, checks and remembers |
//! | `renew.rs` | when and how a certificate is renewed |
//! | `rekey.rs` | how another identity key takes the place of the one in use |
//! | `rotate.rs` | when and how the next HMAC key takes the place of the one in use |
//! | `identity.rs` | what the flows that give a certificate share |
//! | `granted.rs` | whether a stored certificate is good |
//! | `ek.rs` | which EK to show |
//! | `certificate.rs` | whether a certificate is for this device |
//! | `line.rs`, `policy.rs` | what is tried again, when, and for how long |
//! | `memory.rs` | what outlives a run |
//!
//! What the core guarantees, if the shell answers each action truthfully:
//! - Everything that a later run needs is stored before the request that depends on it is sent.
//! - It uses a certificate only after [`DeviceCertificate::check`], and believes no reply. An
//!   attacker who carries the messages can delay a run or make it fail, and nothing else.
//! - The machine can be dropped after any action. A new one that gets the [`Memory`] that was
//!   stored last goes on.
//!
//! # Example
//!
//! A shell is one loop. This shell asks whether a CA answers, and answers in the CA's place.
//!
//! ```
//! use core::time::Duration;
//!
//! use assay_device_core::{Action, Event, ping};
//! use assay_wire::{Reply, ReplyBody, Request};
//!
//! let mut now = Duration::ZERO;
//! let mut machine = ping("default".parse()?, Duration::from_secs(300), now);
//! let mut inbox = Vec::new();
//! while let Some(action) = machine.poll_action() {
//!     let event = match action {
//!         // A real shell asks the system's generator, so that nobody can guess these bytes.
//!         Action::Draw => Event::Random([7; 16]),
//!         Action::Connect(connection) => {
//!             println!("subscribed to {}", connection.reply_topic);
//!             Event::Connected
//!         }
//!         Action::Send(bytes) => {
//!             let request = Request::decode(&bytes)?;
//!             inbox.push(Reply { id: request.id, body: ReplyBody::Pong }.encode());
//!             continue;
//!         }
//!         Action::Wait { until } => match inbox.pop() {
//!             Some(message) => Event::Reply(message),
//!             None => {
//!                 now = until;
//!                 Event::Time
//!             }
//!         },
//!         Action::Progress(step) => {
//!             println!("{step}");
//!             continue;
//!         }
//!         Action::Disconnect => continue,
//!         // A ping needs neither a TPM nor a store.
//!         other => unreachable!("{other:?}"),
//!     };
//!     machine.handle(now, event);
//! }
//! assert_eq!(machine.into_result()?, Duration::ZERO);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
#![no_std]
#![warn(missing_docs)]

extern crate alloc;

mod answer;
pub use answer::{AnswerError, rfc3339};

mod certificate;
pub use certificate::{DeviceCertificate, VerifiedPath, renew_at};

mod ek;
pub use ek::{ShownEk, find_ek};

mod event;
pub use event::{
    Action, Connection, Event, Pinning, ReceivedConfiguration, SealedBox, Traffic, Trouble,
};

mod failure;
pub use failure::Failure;

mod kinds;
pub use kinds::{EkChoice, EkKind, IkKind, ParentKind, RSA_2048_CERTIFICATE};

mod machine;
pub use machine::Machine;

mod memory;
pub use memory::{
    Attempt, CertificateGrant, Confirmation, DeviceRecord, Grant, HmacPublic, HmacRecord,
    IdentityRecord, KeyPurpose, Memory, Rotation, SharedKeyGrant, Shown,
};

mod policy;
pub use policy::{CONNECT_LIMIT, REPLY_LIMIT};

mod provision;
pub use provision::{ping, provision};

mod run;
pub use run::{
    Credential, DEFAULT_HMAC_HANDLE, DEFAULT_IK_HANDLE, ProvisionRequest, Provisioned,
    RenewalOutcome, Verdict,
};

mod step;
pub use step::{CertificateSource, Step};

mod tpm;
pub use tpm::{
    EkCertificates, EndorsementKey, KeyPublic, OpenedKey, TpmAnswer, TpmFailure, TpmFailureKind,
    TpmOperation, WrappedKey,
};

mod desk;
mod granted;
mod identity;
mod line;
mod rekey;
mod renew;
mod rotate;
mod sealed;
mod shared_key;
mod ticket;

//! Keys in PKCS #11 tokens (OASIS PKCS #11 v2.40, v3.0): signing, HMAC, and the making of
//! keys.
//!
//! A token comes with a library of its vendor, which may crash or never return. So it is loaded in
//! a process of its own: ours, started once more ([`run_module`]). Whoever needs a signature
//! waits for it, until a limit, and nobody else does. A process that ended or stands still is
//! replaced.
//!
//! This crate knows nothing of certificates or devices, and keeps no key.

mod connection;
mod failure;
mod key;
mod message;
mod module;
mod pin;
mod token;
mod uri;

pub use failure::{Cause, Failure};
pub use key::{TokenKey, TokenSecret, Tokens};
pub use message::{KeyKind, PublicKey};
pub use module::{MODULE_COMMAND, run_module};
pub use uri::{KeySelector, TokenSelector, Uri, UriError, parse_uris};

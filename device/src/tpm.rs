//! The TPM: what this crate needs of one, and the implementation for Linux.
//!
//! [`Tpm`] is the seam. Implement it for a TPM that [`Tpm2`] does not reach, or to wrap another
//! one, and give it to [`Device::with_tpm`](crate::Device::with_tpm).

mod error;
mod interface;
mod password;
mod tcti;
mod thread;
mod tpm2;

pub use assay_device_core::{EkKind, IkKind, KeyPurpose, OpenedKey, ParentKind, WrappedKey};
pub use error::TpmError;
pub(crate) use interface::id_of_key;
pub use interface::{MAX_HMAC_DATA, PublicArea, PublicKey, SignatureScheme, Tpm};
pub use password::{HierarchyPasswords, Password};
pub use tcti::{Tcti, TctiError};
pub use thread::TpmThread;
pub use tpm2::Tpm2;
pub(crate) use tpm2::is_of_default_template;
pub use zeroize::Zeroizing;

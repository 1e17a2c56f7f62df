//! The shared key flow: an HMAC key that only one TPM can load, and the tokens that it signs.

mod key;
mod login;
mod offer;
mod parent;
mod token;

pub use key::{MasterSecret, SharedKey};
pub use login::{FirstUse, Login, LoginRefused};
pub use offer::{KeyOffer, OfferedKey};
pub use parent::AdmittedParent;
pub use token::{AuthenticatedDevice, TOKEN_LIFETIME, Token, TokenRefused};

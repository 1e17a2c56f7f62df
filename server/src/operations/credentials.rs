//! Certificates of operators and workers.

use assay_store::StoreError;
use time::OffsetDateTime;

use crate::directory::Directory;

/// Revokes the certificate of this name. `false` if it was revoked before.
///
/// Without `even_own`, a certificate that the CA itself connects with is not revoked.
///
/// # Errors
/// There is none, or it is the CA's own.
pub fn revoke(
    directory: &Directory,
    name: &str,
    even_own: bool,
    now: OffsetDateTime,
) -> Result<bool, RevokeError> {
    let store = &mut *directory.store().map_err(RevokeError::Directory)?;
    let credentials = store.credentials()?;
    let Some(row) = credentials.into_iter().find(|row| row.name == name) else {
        return Err(RevokeError::Unknown { name: name.into() });
    };
    if !even_own && let Some(holder) = directory.holder_of(&row.sha256) {
        return Err(RevokeError::Own { holder });
    }
    Ok(store.revoke_credential(name, now)? == Some(true))
}

/// Why a certificate is not revoked.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)] // each variant's message is its documentation
pub enum RevokeError {
    #[error(
        "{holder}.pem of this directory is that certificate, so the CA itself would be shut out"
    )]
    Own { holder: &'static str },
    #[error("there is no credential {name}")]
    Unknown { name: String },
    #[error(transparent)]
    Directory(anyhow::Error),
    #[error(transparent)]
    Store(#[from] StoreError),
}

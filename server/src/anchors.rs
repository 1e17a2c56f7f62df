//! TPM vendors' certificates, as they are on record.

use assay_ca_core::{Role, TrustAnchors, VendorCertificate};
use assay_store::{AnchorRow, Store, StoreError};

/// Reads the vendors' certificates.
///
/// # Errors
/// The store cannot be read.
pub fn read_anchors(store: &mut dyn Store) -> Result<TrustAnchors, StoreError> {
    let certificates = store.anchors()?;
    Ok(TrustAnchors::new(certificates.iter().map(read_anchor).collect::<Result<Vec<_>, _>>()?))
}

/// Reads one vendor's certificate.
///
/// # Errors
/// It was fit to be trusted when it was stored, and is no longer.
pub fn read_anchor(row: &AnchorRow) -> Result<VendorCertificate, StoreError> {
    Ok(match row.role {
        Role::Anchor(allowances) => VendorCertificate::read_anchor(&row.certificate, allowances)?,
        Role::Root | Role::Issuer => VendorCertificate::read(&row.certificate)?,
    })
}

//! Which generation of its shared key an EK has. The keys themselves are nowhere.

use assay_ca_core::Assurance;
use assay_wire::EkId;

/// An EK to which a shared key was offered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SharedKeyHolder {
    /// The EK.
    pub ek_id: EkId,
    /// Why it was trusted.
    pub assurance: Assurance,
}

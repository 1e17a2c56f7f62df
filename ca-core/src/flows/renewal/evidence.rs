//! A request for a renewal: parsed, but not checked.

use assay_wire::Renewal;
use time::OffsetDateTime;

use super::statement::Statement;
use crate::Rejection;
use crate::ek::evidence::EkEvidence;

/// A request for a renewal that was made now, as far as its time says.
///
/// The sender chose everything in it.
#[derive(Clone, Debug)]
pub struct RenewalEvidence {
    /// The EK.
    pub ek: EkEvidence,
    pub(super) statement: Statement,
}

impl RenewalEvidence {
    /// Reads the EK's public area, and compares the device's clock with the CA's.
    pub fn parse(renewal: Renewal, now: OffsetDateTime) -> Result<Self, Rejection> {
        let Renewal { ek_public, ek_certificates, certificate, time, signature } = renewal;
        Ok(Self {
            statement: Statement::read(certificate, time, signature.into_vec(), now)?,
            ek: EkEvidence::parse(&ek_public, &ek_certificates, None, None)?,
        })
    }
}

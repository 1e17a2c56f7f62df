//! Lists of certificates that are no longer good (RFC 5280 §5).

pub use rcgen::RevocationReason;
use rcgen::{CertificateRevocationListParams, KeyIdMethod, RevokedCertParams, SerialNumber};
use time::{Duration, OffsetDateTime};
use x509_parser::prelude::{CertificateRevocationList, FromDer};

use super::issuer::Issuer;
use crate::Fault;
use crate::x509::parse_certificate;

/// A certificate that is no longer good.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Revoked {
    /// Its serial number.
    pub serial: [u8; 16],
    /// Since when.
    pub since: OffsetDateTime,
    /// Why.
    pub reason: RevocationReason,
}

/// How long a revocation list may be believed: devices and brokers that miss one for a day learn
/// that they did.
pub const REVOCATION_LIST_LIFETIME: Duration = Duration::days(1);

impl Issuer {
    /// Signs a list of the certificates that are no longer good (RFC 5280 §5), in DER.
    ///
    /// `number` must grow from list to list (§5.2.3). Serial numbers reveal nothing of their
    /// certificates, so those that were sealed and never confirmed may stand there too.
    pub fn revocation_list(
        &self,
        revoked: impl IntoIterator<Item = Revoked>,
        number: u32,
        now: OffsetDateTime,
    ) -> Result<Vec<u8>, Fault> {
        let revoked = revoked.into_iter().map(|revoked| RevokedCertParams {
            serial_number: SerialNumber::from_slice(&revoked.serial),
            revocation_time: revoked.since,
            reason_code: Some(revoked.reason),
            invalidity_date: None,
        });
        let params = CertificateRevocationListParams {
            this_update: now,
            next_update: now + REVOCATION_LIST_LIFETIME,
            crl_number: SerialNumber::from(u64::from(number)),
            issuing_distribution_point: None,
            revoked_certs: revoked.collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        let list = params.signed_by(&self.signer).map_err(|error| Fault::Certificate {
            operation: "signing a revocation list",
            reason: error.to_string(),
        })?;
        Ok(list.der().to_vec())
    }

    /// Until when a revocation list may be believed (RFC 5280 §5.1.2.5), if it is this issuer's and
    /// that time is to come. Whether there is a newer one, it does not say.
    pub fn believes_until(&self, list: &[u8], now: OffsetDateTime) -> Option<OffsetDateTime> {
        let (rest, list) = CertificateRevocationList::from_der(list).ok()?;
        let issuing = parse_certificate(&self.certificate)?;
        let is_ours = rest.is_empty()
            && list.issuer().as_raw() == issuing.subject().as_raw()
            && list.verify_signature(issuing.public_key()).is_ok();
        list.next_update().map(|until| until.to_datetime()).filter(|until| is_ours && *until > now)
    }
}

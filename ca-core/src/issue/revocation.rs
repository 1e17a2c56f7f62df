//! Lists of certificates that are no longer good (RFC 5280 §5).

pub use rcgen::RevocationReason;
use rcgen::{CertificateRevocationListParams, KeyIdMethod, RevokedCertParams, SerialNumber};
use time::{Duration, OffsetDateTime};
use x509_parser::prelude::{CertificateRevocationList, FromDer, ReasonCode};

use super::issuer::Issuer;
use crate::Fault;
use crate::x509::parse_certificate;

/// A certificate that is no longer good.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Revoked {
    /// Its serial number.
    pub serial: [u8; 16],
    /// The time of its revocation.
    pub since: OffsetDateTime,
    /// The reason of its revocation.
    pub reason: RevocationReason,
}

/// What a revocation list says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RevocationListRead {
    /// Its number (RFC 5280 §5.2.3).
    pub number: u32,
    /// When it was signed.
    pub issued_at: OffsetDateTime,
    /// What it names.
    pub revoked: Vec<Revoked>,
}

/// How long a revocation list is valid. Devices and brokers that get no new list for a day can tell
/// that they miss one.
pub const REVOCATION_LIST_LIFETIME: Duration = Duration::days(1);

impl Issuer {
    /// Signs a list of the certificates that are no longer good (RFC 5280 §5), in DER.
    ///
    /// `number` must grow from list to list (§5.2.3). Serial numbers reveal nothing about their
    /// certificates, so the list may also have certificates that were sealed and never confirmed.
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
            key_identifier_method: KeyIdMethod::PreSpecified(self.key_id.clone()),
        };
        let list = params
            .signed_by(&self.signer)
            .map_err(Fault::of_signer("signing a revocation list"))?;
        Ok(list.der().to_vec())
    }

    /// Until when a revocation list is valid (RFC 5280 §5.1.2.5). `None` if it is not this
    /// issuer's, or no longer valid. Does not establish that there is no newer list.
    pub fn believes_until(&self, list: &[u8], now: OffsetDateTime) -> Option<OffsetDateTime> {
        let until = self.own(list)?.next_update()?.to_datetime();
        (until > now).then_some(until)
    }

    /// What a list says that this issuer signed at some time. `None` if it is not this issuer's.
    /// Does not establish that there is no newer list.
    pub fn read_list(&self, list: &[u8]) -> Option<RevocationListRead> {
        let list = self.own(list)?;
        let revoked = list.iter_revoked_certificates().map(|entry| {
            let reason = match entry.reason_code()?.1 {
                ReasonCode::Superseded => RevocationReason::Superseded,
                ReasonCode::CertificateHold => RevocationReason::CertificateHold,
                _ => RevocationReason::CessationOfOperation,
            };
            let serial = entry.raw_serial().try_into().ok()?;
            Some(Revoked { serial, since: entry.revocation_date.to_datetime(), reason })
        });
        Some(RevocationListRead {
            number: list.crl_number()?.try_into().ok()?,
            issued_at: list.last_update().to_datetime(),
            revoked: revoked.collect::<Option<_>>()?,
        })
    }

    /// A list that this issuer signed.
    fn own<'a>(&self, list: &'a [u8]) -> Option<CertificateRevocationList<'a>> {
        let (rest, list) = CertificateRevocationList::from_der(list).ok()?;
        let issuing = parse_certificate(&self.certificate)?;
        let is_ours = rest.is_empty()
            && list.issuer().as_raw() == issuing.subject().as_raw()
            && list.verify_signature(issuing.public_key()).is_ok();
        is_ours.then_some(list)
    }
}

//! Values that no check made, for tests of stores.
//!
//! A store takes only what this crate's checks make. Its tests need thousands of such values, with
//! serial numbers and ids of their choice. Only tests and load generators enable the feature
//! `unchecked`; a server that is built alone does not have it.

use assay_wire::{DeviceId, EkId};
use rand_core::CryptoRng;
use time::OffsetDateTime;

use crate::flows::mac::TicketKey;
use crate::flows::sealed::{Confirmed, Unconfirmed};
use crate::flows::shared_key::{FirstUse, OfferedKey};
use crate::issue::{CertificateFacts, Issued, Proven, Renewed, Unproven};
use crate::tpm::template::ParentKind;
use crate::{Assurance, Fault};

/// A certificate of a device, as if the device had proved itself.
pub fn issued(facts: CertificateFacts, der: Vec<u8>) -> Issued<Proven> {
    Issued::<Proven>::unchecked(facts, der)
}

/// A certificate of a device that proved nothing.
pub fn sealed(
    facts: CertificateFacts,
    der: Vec<u8>,
    key: &TicketKey,
    rng: &mut dyn CryptoRng,
) -> Result<Issued<Unproven>, Fault> {
    Issued::<Unproven>::unchecked(facts, der, key, rng)
}

/// A certificate of a device that renews.
pub fn renewed(
    facts: CertificateFacts,
    der: Vec<u8>,
    key: &TicketKey,
    rng: &mut dyn CryptoRng,
) -> Result<Issued<Renewed>, Fault> {
    Issued::<Renewed>::unchecked(facts, der, key, rng)
}

/// A confirmation of a certificate. `None` if the certificate was sealed under another key.
pub fn confirmed(
    certificate: Unconfirmed,
    key: &TicketKey,
    decided_at: OffsetDateTime,
) -> Option<Confirmed> {
    Confirmed::unchecked(certificate, &key.clone().into(), decided_at)
}

/// An offer of a shared key.
pub fn offered_key(
    ek_id: EkId,
    device_id: DeviceId,
    assurance: Assurance,
    generation: u32,
    parent: ParentKind,
) -> OfferedKey {
    OfferedKey { ek_id, device_id, assurance, generation, parent }
}

/// The first use of a shared key.
pub fn first_use(
    ek_id: EkId,
    device_id: DeviceId,
    assurance: Assurance,
    generation: u32,
    decided_at: OffsetDateTime,
) -> FirstUse {
    FirstUse::unchecked(ek_id, device_id, assurance, generation, decided_at)
}

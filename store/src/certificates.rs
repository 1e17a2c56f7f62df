//! Devices and their certificates.

use std::fmt;

use assay_wire::{DeviceId, EkId};

/// A device that proved itself.
#[derive(Clone, Debug)]
pub struct DeviceRow {
    /// Its name.
    pub device_id: DeviceId,
    /// Its EK.
    pub ek_id: EkId,
    /// What made the CA trust the EK.
    pub assurance: String,
    /// Whether an operator disabled it.
    pub disabled: bool,
    /// When it first proved itself, in seconds since 1970.
    pub registered_at: i64,
    /// The serial number of its active certificate.
    pub serial: Option<Vec<u8>>,
    /// When that certificate expires, in seconds since 1970.
    pub not_after: Option<i64>,
    /// The generation of its shared key, if it has used one.
    pub shared_key: Option<u32>,
}

/// A certificate that was issued.
#[derive(Clone, Debug)]
pub struct CertificateRow {
    /// Its serial number, unique for the CA.
    pub serial: Vec<u8>,
    /// The device that it was issued to.
    pub device_id: DeviceId,
    /// `unconfirmed`, `active`, `superseded` or `revoked`.
    pub status: String,
    /// Seconds since 1970.
    pub not_before: i64,
    /// Seconds since 1970.
    pub not_after: i64,
    /// Seconds since 1970.
    pub issued_at: i64,
    /// Until when it must be confirmed, if it was sealed; in seconds since 1970.
    pub confirm_by: Option<i64>,
    /// The certificate in DER; `None` if it was never confirmed, because then nobody may see it.
    pub der: Option<Vec<u8>>,
}

/// How many devices and certificates there are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Devices that proved themselves.
    pub devices: u64,
    /// EKs that are disabled, registered or not.
    pub disabled: u64,
    /// Certificates in force, and those that expired in force and are not forgotten yet.
    pub active: u64,
    /// Certificates that wait to be confirmed or adopted.
    pub unconfirmed: u64,
    /// Certificates that are superseded or revoked, and not forgotten yet.
    pub ended: u64,
}

impl Counts {
    /// Of numbers in the order devices, disabled, all certificates, unconfirmed, ended.
    pub(crate) fn of([devices, disabled, all, unconfirmed, ended]: [u64; 5]) -> Self {
        let active = all.saturating_sub(unconfirmed + ended);
        Self { devices, disabled, active, unconfirmed, ended }
    }
}

/// The certificates of an issuing CA that have not expired.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InForce {
    /// Those that it signed.
    pub active: u64,
    /// Those that it may have signed, and that wait for their confirmation or adoption.
    pub waiting: u64,
    /// Those that it signed, were in force, and ended before their time: its list names them.
    pub listed: u64,
    /// When the last of all of them ends, in seconds since 1970; `None` if there is none.
    pub last_ends: Option<i64>,
}

/// The status of a certificate that somebody shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CertificateStatus {
    /// Its device may connect.
    Active,
    /// It waits to be confirmed by its device, whose TPM has this EK.
    Unconfirmed(EkId),
    /// An operator disabled the device.
    Disabled,
    /// The device has a newer one.
    Superseded,
    /// It was not confirmed in time, or an operator removed the device.
    Revoked,
    /// This CA has no record of it.
    Unknown,
}

impl CertificateStatus {
    /// As the columns of a certificate say.
    pub(crate) fn of(status: &str, ek: EkId, is_disabled: bool) -> Self {
        match (status, is_disabled) {
            (_, true) => Self::Disabled,
            ("active", false) => Self::Active,
            ("unconfirmed", false) => Self::Unconfirmed(ek),
            ("superseded", false) => Self::Superseded,
            (_, false) => Self::Revoked,
        }
    }
}

impl fmt::Display for CertificateStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Active => "good",
            Self::Unconfirmed(_) => "not confirmed",
            Self::Disabled => "that of a disabled device",
            Self::Superseded => "superseded",
            Self::Revoked => "revoked",
            Self::Unknown => "not on record",
        })
    }
}

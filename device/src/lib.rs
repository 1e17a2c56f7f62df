//! The device's side of Assay: proves a TPM to a CA over MQTT, and uses the certificate that it
//! gets.
//!
//! The TPM makes the private key, and the key never leaves it. Only the TPM can open an HMAC key
//! from the CA. Nobody can sign in with the files that this crate keeps: they say which key is the
//! device's, and hold its certificate, the key as the TPM encrypted it for itself and, until the CA
//! has confirmed a sealed certificate, the ticket that confirms it. Before this crate uses a
//! certificate, it checks that the certificate leads to the pinned root and is for the device's own
//! key. It trusts neither the broker nor anybody else who writes to its reply topic. It does not
//! measure the software of the device.
//!
//! [`Device`] is the interface. [`Device::provision`] gets a certificate or an HMAC key, as the
//! [`Flow`] says. [`Device::mqtt_tls_config`] or [`Device::token`] gives an MQTT client what it
//! needs to sign in. [`tunnel`](fn@tunnel) and [`export_key`] are for other programs. The decisions
//! are those of `assay-device-core`.
//!
//! ```no_run
//! use std::time::Duration;
//!
//! use assay_device::{Device, DeviceOptions, ProvisionRequest, read_certificates};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let device = Device::open(DeviceOptions {
//!     tcti: "device:/dev/tpmrm0".parse()?,
//!     passwords: Default::default(),
//!     tpm_timeout: Duration::from_secs(60),
//!     state: "/var/lib/assay".into(),
//!     ca_roots: read_certificates("/etc/assay/root.pem".as_ref())?,
//!     no_clock: false,
//! })?;
//! let request = ProvisionRequest {
//!     broker: "mqtts://bootstrap.example.com".parse()?,
//!     scope: "default".parse()?,
//!     flow: None,
//!     ek: None,
//!     ek_certificates: Vec::new(),
//!     ik: None,
//!     ik_handle: None,
//!     parent: None,
//!     hmac_handle: None,
//!     device_id: None,
//!     again: false,
//!     deadline: Duration::from_secs(300),
//! };
//! let provisioned = device.provision(&request, &mut |step, took| println!("{step} ({took:?})"))?;
//! println!("I am {}", provisioned.device_id);
//!
//! // MQTT over mutual TLS, e.g. with rumqttc:
//! // Transport::tls_with_config(TlsConfiguration::Rustls(tls)).
//! let tls = std::sync::Arc::new(device.mqtt_tls_config()?);
//! # Ok(())
//! # }
//! ```
#![warn(missing_docs)]

mod agent;
pub use agent::Cost;

mod clean_up;
pub use clean_up::DeviceKey;

mod device;
mod dial;
pub use device::{Credential, Device, DeviceOptions, ProvisionRequest, Provisioned};

mod doctor;
pub use doctor::{Advice, Check, CheckedSetting, DoctorOptions, Outcome, examine};

mod ek;
pub use ek::{EkCertificate, EkDescription, endorsement_keys};

mod inspect;
pub use inspect::{AttestedBy, Inspection};

mod resident;
pub use resident::{Change, Changes, ResidentOptions, run_resident};

mod configuration;
pub use configuration::{DeviceConfiguration, configuration};

mod status;
pub use status::{CredentialStatus, KeyStatus, OwnKey, Status};

mod token;
pub use token::Token;

mod key_export;
pub use key_export::{KeyFormat, export_key};

mod tunnel;
pub use tunnel::{ListenAddress, ListenAddressError, TunnelOptions, tunnel};

mod progress;
pub use progress::Progress;

mod verify;
pub use verify::{Summary, Validity};

mod error;
pub use error::{Error, Setting};

mod pem;
pub use pem::read_certificates;

pub use assay_device_core::{
    AnswerError, DEFAULT_HMAC_HANDLE, DEFAULT_IK_HANDLE, DeviceCertificate, EkChoice,
    RenewalOutcome, rfc3339,
};
pub use assay_wire::Flow;

pub mod tpm;

/// What another shell around `assay-device-core` may need on a machine with `std`.
pub mod shell {
    pub use crate::agent::unseal;
    pub use crate::ek_certificate::read as read_ek_certificates;
    pub use crate::verify::path as verify_path;
}

mod broker_certificate;
mod clock;
mod credentials;
mod der;
mod ek_certificate;
mod issuers;
mod key;
mod link;
mod operational_line;
mod operations;
mod probe;
mod publish;
mod random;
mod roots;
mod runtime;
mod state;
mod talk;
mod times;
mod trouble;

//! What the CA decides, and nothing else: no sockets, files, threads or clock.
//!
//! Time and randomness are arguments. What a device sends goes through a chain of types; each can
//! only be made by the check before it, so a certificate in force was earned, and the chain reads
//! as the argument for it.
//!
//! | value | made by | establishes | leaves open |
//! |---|---|---|---|
//! | [`Evidence`] | [`Evidence::parse`] | the request can be read | whether any of it is true |
//! | [`TrustedEk`] | [`TrustedEk::verify`] | the EK is sound, is on a TCG template, and is a genuine TPM's: by a trusted vendor's certificate, or by the operator's list | whether the sender has that TPM |
//! | [`BoundKey`] | [`BoundKey::verify`] | *if* a TPM holds an object with the IK's Name, that key was made in it and never leaves it; the sender signs with it | whether a TPM holds it, and which |
//! | [`Admitted`] | [`Admitted::decide`] | the EK is not disabled, and the device id is due to it | that this remains so |
//! | challenge | [`Admitted::challenge`] | | |
//! | [`ProvenDevice`] | [`ProvenDevice::verify`] | EK and IK are in one TPM, and the sender has it: only there could the credential be opened that held the ticket | whether the device is still welcome |
//! | [`Readmitted`] | [`ProvenDevice::readmit`] | it is | |
//! | [`Prepared`] | [`Prepared::new`] | every field of the certificate comes from what was proven and from the [`Profile`] | |
//! | [`IssuedCertificate`] | [`Issuer::sign`] | | |
//! | [`Candidate`] | [`Admitted::candidate`] | the EK and the IK may be certified, if what is issued is [sealed](Candidate::seal) to them | whether they are in one TPM |
//! | [`Confirmation`] | [`Confirmation::verify`] | they are, and the sender has it: only there could the box be opened that held the ticket | whether the certificate may become active |
//! | [`Confirmed`] | [`Unconfirmed::confirm`] | it may | |
//! | [`AdmittedParent`] | [`Admitted::parent`] | the shared key may be sent to this parent: a TPM that holds it gives the key to nobody, or the operator accepts that it may | whether the TPM of the EK holds it |
//! | activation | [`Admitted::activation`] | | |
//! | [`AuthenticatedDevice`] | [`AuthenticatedDevice::verify`] | somebody has what the device's shared key signed within a day | whether the device is still welcome |
//!
//! What must be established elsewhere:
//!
//! - *One EK, one device, one active certificate.* [`Records`] must be read, and the certificate
//!   stored, in one transaction; a certificate is stored before it is sent.
//! - *A claim may come back more than once* while it is valid. The store answers a repeated one
//!   with the certificate already issued.
//! - *What is issued before proof ends nothing.* An unconfirmed certificate supersedes nothing, and
//!   the generation of a shared key on record moves only with an accepted token.
//! - *The device stands where the operator thinks.* An EK names a TPM, not a box: an honest TPM
//!   elsewhere can answer for this one. Only an inventory that ties EKs to serial numbers helps.
//! - *The device runs what it should.* Nothing here speaks of its software.
//! - *Vendors revoke EK certificates.* Remove the vendor's root, or disable the EK.

#![warn(missing_docs)]

mod evidence;
pub use evidence::{EkEvidence, Evidence, ParentEvidence};

mod anchors;
pub use anchors::{
    Allowances, AnchorError, NoPath, Role, TrustAnchors, UnknownAllowance, VendorCertificate,
    VendorPath,
};

mod trust;
pub use trust::{Assurance, EkCheck, TpmModel, TrustedEk, UnknownAssurance};

mod bound_key;
pub use bound_key::BoundKey;

mod admission;
pub use admission::{
    Admitted, AdmittedParent, CertificateOnRecord, Enrolment, FIRST_GENERATION, QUOTA,
    QUOTA_PERIOD, Readmitted, Records, Registration, Reprovision, SharedKeyOnRecord,
    UnknownReprovision, due_device_id,
};

mod ticket;
pub use ticket::{CLOCK_SKEW, TicketKey};

mod challenge;
pub use challenge::{CLAIM_LIFETIME, ProvenDevice};

mod sealed;
pub use sealed::{Candidate, Confirmation, Confirmed, EncryptedCertificate, Unconfirmed};

mod profile;
pub use profile::{Profile, ProfileError};

mod issue;
pub use issue::{
    IssuedCertificate, Issuer, IssuerError, Prepared, REVOCATION_LIST_LIFETIME, RevocationReason,
    Revoked,
};

mod shared_key;
pub use shared_key::{MasterSecret, SharedKey};

mod token;
pub use token::{AuthenticatedDevice, TOKEN_LIFETIME, Token, TokenRefused};

mod rejection;
pub use rejection::{Fault, Rejection};

mod authority;
pub use authority::{
    Authority, ISSUING_LIFETIME, KeyAndCertificate, LEAF_LIFETIME, ROOT_LIFETIME,
    THROW_AWAY_LIFETIME, THROW_AWAY_PREFIX,
};

mod container;
pub use container::{ContainerError, certificates_in};

mod ek_file;
pub use ek_file::{CertificateSummary, EkFileError, EkIdentity, RecognisedAs};

pub mod key;
pub mod tpm;

mod der;
mod hardware;
mod oid;
mod secret;
mod x509;

fn hex(bytes: &[u8]) -> String {
    data_encoding::HEXLOWER.encode(bytes)
}

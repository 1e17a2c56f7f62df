//! What the CA decides, and nothing else: no sockets, files, threads or clock.
//!
//! Time and randomness are arguments. What a device sends goes through a chain of types. Only a
//! check makes a value of the chain, and it makes it from the value before. So every certificate in
//! force was earned, and the chain shows why. A check returns the next value, or a [`Rejection`].
//!
//! | value | made by | establishes | leaves open |
//! |---|---|---|---|
//! | [`Evidence`] | [`Evidence::parse`] | the request can be read | whether any of it is true |
//! | [`Offered`] | [`Profile::offer`] | the scope offers the flow | |
//! | [`TrustedEk`] | [`TrustedEk::verify`] | the EK is sound, is on a TCG template, and is a genuine TPM's: by a trusted vendor's certificate, or by the operator's list | whether the sender has that TPM |
//! | [`BoundKey`] | [`BoundKey::verify`] | *if* a TPM holds an object with the IK's Name, the IK was made in that TPM and never leaves it; the sender can sign with the IK | whether a TPM holds it, and which |
//! | [`Admitted`] | [`Admitted::decide`] | the EK is not disabled, the device id is due to it, and the operator's [`Groups`] admit it | that this remains so |
//!
//! The *ticket* flow proves the device before anything is issued:
//!
//! | value | made by | establishes | leaves open |
//! |---|---|---|---|
//! | [`Challenge`] | [`Challenge::new`] | | |
//! | [`ProvenDevice`] | [`ProvenDevice::verify`] | EK and IK are in one TPM, and the sender has that TPM: no other TPM could open the credential with the ticket in it | whether the device is still welcome |
//! | [`Readmitted`] | [`Readmitted::decide`] | it is still welcome, and no newer certificate prevents this one | |
//! | [`Prepared<Proven>`](Prepared) | [`Prepared::new`] | every field of the certificate comes from what was proven and from the [`Profile`] | |
//! | [`Issued<Proven>`](Issued) | [`Issued::sign`] | the certificate may be sent, once it is on record | |
//!
//! The *sealed* flow issues first. What it issues has another type, from which nobody can make a
//! reply in clear:
//!
//! | value | made by | establishes | leaves open |
//! |---|---|---|---|
//! | [`Candidate`] | [`Candidate::decide`] | the EK and the IK may be certified, if the certificate is sealed to them | whether they are in one TPM |
//! | [`Prepared<Unproven>`](Prepared) | [`Prepared::new`] | as above; and the quota of unconfirmed certificates is kept | |
//! | [`Issued<Unproven>`](Issued) | [`Issued::sign`] | the certificate leaves only through [`Sealing::sign`], encrypted to the TPM | whether anybody can open it |
//! | [`Confirmation`] | [`Confirmation::verify`] | EK and IK are in one TPM, and the sender has that TPM: no other TPM could open the box with the ticket in it | which certificate it was |
//! | [`Shown`] | [`Shown::by_confirmation`], [`Shown::by_handshake`] | this certificate was in the box, and the sender could open the box | whether it may become active |
//! | [`Confirmed`] | [`Confirmed::decide`] | it may become active | |
//!
//! A *renewal* gives the next certificate to a device that has the IK of the one in force. It has a
//! third type, which may be sent in clear and ends nothing:
//!
//! | value | made by | establishes | leaves open |
//! |---|---|---|---|
//! | [`RenewalEvidence`] | [`RenewalEvidence::parse`] | the request can be read, and its time is the CA's | whether any of it is true |
//! | [`TrustedEk`], [`Admitted`] | as above | as above | as above |
//! | [`InForce`] | [`InForce::find`] | this EK's certificate in force is the one that the request names, and is valid: so its EK and its IK are in one TPM | whether the sender has the IK |
//! | [`RenewalProof`] | [`RenewalProof::verify`] | the sender has the IK, and asks for this now | |
//! | [`Prepared<Renewed>`](Prepared) | [`Prepared::new`] | every field comes from the certificate in force, from what was checked again, and from the [`Profile`]; the quota is kept | |
//! | [`Issued<Renewed>`](Issued) | [`Issued::sign`] | the certificate may be sent, once it is on record as one that waits | whether the device has stored it |
//! | [`AdoptionEvidence`] | [`AdoptionEvidence::parse`] | the adoption can be read, and its time is the CA's | whether any of it is true |
//! | [`Shown`] | [`Shown::by_adoption`], [`Shown::by_handshake`] | the device has this renewed certificate and the IK | whether it may become active |
//! | [`Confirmed`] | [`Confirmed::decide`] | it may become active | |
//!
//! The *shared key* flow gives a key, and tokens show later that the device has it:
//!
//! | value | made by | establishes | leaves open |
//! |---|---|---|---|
//! | [`AdmittedParent`] | [`AdmittedParent::decide`] | the shared key may be sent to this parent: a TPM that holds the parent gives the key to nobody, or the operator accepts that it may | whether the TPM of the EK holds the parent |
//! | [`KeyOffer`] | [`KeyOffer::decide`] | which generation of the key the EK may have | whether the TPM loads it |
//! | [`AuthenticatedDevice`] | [`AuthenticatedDevice::verify`] | the sender has a token that the device's shared key signed, and that expires within a day | whether the device is still welcome |
//! | [`Welcome`] | [`Welcome::decide`] | it is still welcome | |
//! | [`Login`] | [`Login::decide`] | both; [`Login::first_use`] is what the record needs | |
//!
//! A *plan* ([`Certification`], [`Sealing`], [`Confirming`], [`Renewing`], [`Adopting`],
//! [`KeyOffer`]) is the whole decision of
//! a step, made on a snapshot of the record. Signing follows, outside of any lock. The result
//! counts once it is on record.
//!
//! What must be established elsewhere:
//!
//! - *One EK, one device, one active certificate.* The transaction that stores a certificate must
//!   find [`Records`] as they were when it was planned. A certificate is stored before it is sent.
//! - *A claim may come back more than once* while it is valid. The store answers a repeated one
//!   with the certificate already issued.
//! - *What the CA issues before proof ends nothing.* An unconfirmed certificate supersedes nothing,
//!   and the generation of a shared key on record moves only with an accepted token.
//! - *The device is where the operator thinks.* An EK names a TPM, not a machine: an honest TPM
//!   elsewhere can answer for this one. Only an inventory that ties EKs to serial numbers helps.
//! - *The device runs what it should.* Nothing here shows anything about its software.
//! - *The vendor has not revoked the EK certificate.* If it has, remove the vendor's root, or
//!   disable the EK.

#![warn(missing_docs)]

pub mod key;
pub mod tpm;

mod der;
mod oid;
mod x509;

mod secret;
pub use secret::Overlapping;

mod rejection;
pub use rejection::{Failure, Fault, Rejection};

mod ek;
pub use ek::anchors::{
    Allowances, AnchorError, NoPath, Role, TrustAnchors, UnknownAllowance, VendorCertificate,
    VendorPath,
};
pub use ek::assurance::{Assurance, UnknownAssurance};
pub use ek::ca_key::{CaKey, NotACaKey};
pub use ek::container::{ContainerError, certificates_in};
pub use ek::evidence::{EkEvidence, Evidence, ParentEvidence};
pub use ek::facts::EkFacts;
pub use ek::file::{CertificateSummary, EkFileError, EkIdentity, RecognisedAs};
pub use ek::model::TpmModel;
pub use ek::trust::{EkCheck, TrustedEk};

mod ik;
pub use ik::{BoundKey, IkKind, UnknownIkKind};

mod profile;
pub use profile::{
    FlowKind, Offered, Profile, ProfileError, RenewFlow, SealedFlow, SharedKeyFlow, TicketFlow,
};

mod records;
pub use records::{
    ActiveCertificate, CertificateOnRecord, Enrolment, FIRST_GENERATION, QUOTA, QUOTA_PERIOD,
    Records, Registration, Reprovision, SharedKeyHolder, SharedKeyOnRecord, UnknownReprovision,
    due_device_id,
};

mod flaws;
mod groups;
pub use flaws::{Flaw, Flaws};
pub use groups::{
    Answer, Applicant, Conditions, EkPrefix, Firmware, Group, GroupError, GroupName, Groups,
    Manufacturer, NamePattern, Naming, Place, Terms, Unadmitted,
};

mod admission;
pub use admission::{Admission, Admitted};

mod readmission;
pub use readmission::Welcome;

mod subject;

mod flows;
pub use flows::mac::{CLOCK_SKEW, TicketKey};
pub use flows::renewal::{
    AdoptionEvidence, AdoptionProof, InForce, RenewalEvidence, RenewalProof, STATEMENT_LIFETIME,
};
pub use flows::sealed::{
    Candidate, Confirmation, Confirmed, EncryptedCertificate, SealedOnRecord, Shown, Unconfirmed,
};
pub use flows::shared_key::{
    AdmittedParent, AuthenticatedDevice, FirstUse, KeyOffer, Login, LoginRefused, MasterSecret,
    OfferedKey, SharedKey, TOKEN_LIFETIME, Token, TokenRefused,
};
pub use flows::ticket::{CLAIM_LIFETIME, Challenge, Instead, ProvenDevice, Readmitted};

mod issue;
pub use issue::{
    CertificateFacts, HANDOVER, Issued, Issuer, IssuerError, Issuers, IssuersError, IssuingKey,
    MAX_KEY_ID, Prepared, Proven, REVOCATION_LIST_LIFETIME, Renewed, RevocationListRead,
    RevocationReason, Revoked, Scheduled, Unproven,
};

mod plan;
pub use plan::{Adopting, Certification, Confirming, Renewing, Sealing};

mod authority;
pub use authority::{
    Authority, ISSUING_LIFETIME, KeyAndCertificate, LEAF_LIFETIME, ROOT_LIFETIME,
    THROW_AWAY_LIFETIME, THROW_AWAY_PREFIX, issuing_request, new_ca_key, service_request,
};

mod ca_request;
pub use ca_request::{CaKind, CaRequest, CaRequestError, MAX_COMMON_NAME};

mod configuration;
pub use configuration::ConfigurationSigner;

mod new_root;
pub use new_root::{FirstRoot, NewRoot, NotANewRoot};

#[cfg(feature = "unchecked")]
pub mod unchecked;

/// A time as people and programs read it, to the second.
fn rfc3339(time: &time::OffsetDateTime) -> String {
    let whole = time.to_offset(time::UtcOffset::UTC).replace_nanosecond(0).unwrap_or(*time);
    let text = whole.format(&time::format_description::well_known::Rfc3339);
    // A year that has no four digits.
    text.unwrap_or_else(|_| whole.to_string())
}

fn hex(bytes: &[u8]) -> String {
    data_encoding::HEXLOWER.encode(bytes)
}

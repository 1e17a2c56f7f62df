//! Everything in a device certificate except its signature: an LDevID of IEEE 802.1AR-2018.

use std::marker::PhantomData;
use std::sync::Arc;

use assay_wire::{CertificateList, DeviceId, EkId, Identity};
use rand_core::CryptoRng;
use rcgen::{
    CertificateParams, CustomExtension, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyUsagePurpose, SerialNumber, SubjectPublicKeyInfo,
};
use time::OffsetDateTime;

use super::issuer::Issuer;
use super::serial::serial_number;
use super::term::Term;
use crate::der::{element, tag};
use crate::ek::assurance::Assurance;
use crate::ek::hardware::HardwareIdentity;
use crate::flows::renewal::RenewalProof;
use crate::flows::sealed::Candidate;
use crate::flows::ticket::Readmitted;
use crate::profile::Profile;
use crate::records::{QUOTA, Records};
use crate::subject::Subject;
use crate::{Failure, Fault, Rejection, oid};

/// Marks a certificate whose device proved that it has the TPM.
#[derive(Clone, Copy, Debug)]
pub enum Proven {}

/// Marks a certificate that may leave the CA only sealed.
#[derive(Clone, Copy, Debug)]
pub enum Unproven {}

/// Marks a certificate that waits and may be sent in clear: its device has the IK of the one before
/// it, or proved that its EK and the new IK are in one TPM.
#[derive(Clone, Copy, Debug)]
pub enum Renewed {}

/// A device certificate that is complete except for its signature.
#[derive(Debug)]
pub struct Prepared<P> {
    params: CertificateParams,
    public_key: SubjectPublicKeyInfo,
    facts: CertificateFacts,
    renew_at: u64,
    /// Who signs it: the issuer to whose validity its own was fitted.
    issuer: Arc<Issuer>,
    proof: PhantomData<P>,
}

impl Prepared<Proven> {
    /// Fills in every field of the certificate from what was proven and from the profile.
    ///
    /// The certificate is valid only while the issuing certificate is.
    pub fn new(
        device: Readmitted,
        profile: &Profile,
        issuer: &Arc<Issuer>,
        now: OffsetDateTime,
        rng: &mut dyn CryptoRng,
    ) -> Result<Self, Fault> {
        Self::fill(device.into_subject(), |_| None, profile, issuer, now, rng)
    }
}

impl Prepared<Unproven> {
    /// The same for a device that has not proved itself. The certificate is revoked unless the
    /// device confirms it in time.
    ///
    /// There is a quota of unconfirmed certificates, because anybody who knows an EK certificate,
    /// which is not secret, can ask for them. The ticket flow's quota counts only certificates of
    /// proven devices.
    pub fn new(
        candidate: &Candidate,
        records: &Records,
        profile: &Profile,
        issuer: &Arc<Issuer>,
        now: OffsetDateTime,
        rng: &mut dyn CryptoRng,
    ) -> Result<Self, Failure> {
        let (ek, count) = (candidate.ek_id(), records.recent_unconfirmed);
        if count >= QUOTA {
            return Err(Rejection::SealedQuotaExceeded { ek, count }.into());
        }
        let confirm_by = now + profile.confirm_within();
        let subject = candidate.subject.clone();
        Ok(Self::fill(subject, |_| Some(confirm_by), profile, issuer, now, rng)?)
    }
}

impl Prepared<Renewed> {
    /// The same for a device that renews its certificate. The new one waits for as long as it is
    /// valid, because its device may sleep before it adopts it.
    ///
    /// The quota counts certificates that came into force. Sealed ones that nobody confirmed do not
    /// count, because strangers can ask for them.
    pub fn new(
        proof: &RenewalProof,
        records: &Records,
        profile: &Profile,
        issuer: &Arc<Issuer>,
        now: OffsetDateTime,
        rng: &mut dyn CryptoRng,
    ) -> Result<Self, Failure> {
        Self::to_be_adopted(proof.subject.clone(), records, profile, issuer, now, rng)
    }

    /// The same for a device that proved itself, and keeps the certificate that it has until it
    /// takes this one.
    pub fn rekeyed(
        device: Readmitted,
        records: &Records,
        profile: &Profile,
        issuer: &Arc<Issuer>,
        now: OffsetDateTime,
        rng: &mut dyn CryptoRng,
    ) -> Result<Self, Failure> {
        Self::to_be_adopted(device.into_subject(), records, profile, issuer, now, rng)
    }

    fn to_be_adopted(
        subject: Subject,
        records: &Records,
        profile: &Profile,
        issuer: &Arc<Issuer>,
        now: OffsetDateTime,
        rng: &mut dyn CryptoRng,
    ) -> Result<Self, Failure> {
        let count = records.registration.as_ref().map_or(0, |it| it.recent_certificates);
        if count >= QUOTA {
            return Err(Rejection::QuotaExceeded { count }.into());
        }
        Ok(Self::fill(subject, Some, profile, issuer, now, rng)?)
    }
}

impl<P> Prepared<P> {
    fn fill(
        subject: Subject,
        confirm_by: impl FnOnce(OffsetDateTime) -> Option<OffsetDateTime>,
        profile: &Profile,
        issuer: &Arc<Issuer>,
        now: OffsetDateTime,
        rng: &mut dyn CryptoRng,
    ) -> Result<Self, Fault> {
        let now = now.replace_nanosecond(0).expect("0 is a nanosecond");
        if now >= issuer.not_after {
            return Err(Fault::IssuerExpired { not_after: issuer.not_after, now });
        }
        let ik_id = subject.ik_id();
        let not_after = issuer.end_of_validity(profile, now);
        let identity =
            Identity::Device { scope: subject.scope, device_id: subject.device_id.clone() };
        let facts = CertificateFacts {
            serial: serial_number(now, rng),
            not_before: (now - profile.backdate()).max(issuer.not_before),
            not_after,
            device_id: subject.device_id,
            ek_id: subject.ek_id,
            ik_id,
            assurance: subject.assurance,
            issued_at: now,
            confirm_by: confirm_by(not_after),
        };

        let mut params = CertificateParams::default();
        params.serial_number = Some(SerialNumber::from_slice(&facts.serial));
        params.not_before = facts.not_before;
        params.not_after = facts.not_after;
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, facts.device_id.as_str());
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        params.custom_extensions = vec![
            CustomExtension::from_oid_content(
                oid::SUBJECT_ALT_NAME,
                alt_names(&subject.hardware, &identity),
            ),
            CustomExtension::from_oid_content(oid::CERTIFICATE_POLICIES, policies(facts.assurance)),
        ];
        let public_key = SubjectPublicKeyInfo::from_der(&subject.ik_spki).map_err(|error| {
            Fault::Certificate { operation: "reading an IK", reason: error.to_string() }
        })?;
        let renew_at = Term::new(facts.serial, facts.not_after).renew_at(profile);
        let issuer = Arc::clone(issuer);
        Ok(Self { params, public_key, facts, renew_at, issuer, proof: PhantomData })
    }

    /// Its serial number.
    pub fn serial(&self) -> [u8; 16] {
        self.facts.serial
    }

    pub(super) fn renew_at(&self) -> u64 {
        self.renew_at
    }

    pub(crate) fn signs_elsewhere(&self) -> bool {
        self.issuer.is_elsewhere
    }

    /// The certificate, followed by its issuer's.
    pub(super) fn sign(self) -> Result<(CertificateFacts, CertificateList<1>), Fault> {
        let Self { params, public_key, facts, issuer, .. } = self;
        let certificate = params
            .signed_by(&public_key, &issuer.signer)
            .map_err(Fault::of_signer("signing a certificate"))?;
        Ok((facts, issuer.chain(certificate.der())?))
    }
}

/// What a store keeps of a device certificate, besides the certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificateFacts {
    /// Its serial number: a positive number in 16 bytes.
    pub serial: [u8; 16],
    /// From when it is valid.
    pub not_before: OffsetDateTime,
    /// Until when it is valid.
    pub not_after: OffsetDateTime,
    /// Its subject.
    pub device_id: DeviceId,
    /// The EK of the TPM that keeps its key.
    pub ek_id: EkId,
    /// SHA-256 of its SubjectPublicKeyInfo.
    pub ik_id: [u8; 32],
    /// Why the EK was trusted.
    pub assurance: Assurance,
    /// When it was issued, in whole seconds.
    pub issued_at: OffsetDateTime,
    /// Until when the device must confirm that it can read the certificate, or adopt it; `None` if
    /// the device proved itself before.
    pub confirm_by: Option<OffsetDateTime>,
}

/// GeneralNames (RFC 5280 §4.2.1.6): HardwareModuleName, PermanentIdentifier, and our URI.
fn alt_names(hardware: &HardwareIdentity, identity: &Identity) -> Vec<u8> {
    let oid = |content| element(tag::OID, &[content]);
    let other_name = |kind, value: &[&[u8]]| {
        let value = element(tag::SEQUENCE, value);
        element(tag::CONTEXT_0, &[&oid(kind), &element(tag::CONTEXT_0, &[&value])])
    };
    let hardware_module_name = other_name(
        oid::HARDWARE_MODULE_NAME,
        &[&oid(oid::TPM_20), &element(tag::OCTET_STRING, &[&hardware.serial()])],
    );
    let permanent_identifier = other_name(
        oid::PERMANENT_IDENTIFIER,
        &[
            &element(tag::UTF8_STRING, &[hardware.permanent_id().as_bytes()]),
            &oid(oid::EK_PERM_ID_SHA256),
        ],
    );
    let uri = element(tag::URI, &[identity.to_string().as_bytes()]);
    element(tag::SEQUENCE, &[&hardware_module_name, &permanent_identifier, &uri])
}

/// CertificatePolicies (RFC 5280 §4.2.1.4) with one policy. It is written by hand because its OID
/// has an arc above 64 bits.
fn policies(assurance: Assurance) -> Vec<u8> {
    let policy = match assurance {
        Assurance::VendorCertificate => oid::ASSURANCE_VENDOR_CERTIFICATE,
        Assurance::EnrolmentList => oid::ASSURANCE_ENROLMENT_LIST,
    };
    let information = element(tag::SEQUENCE, &[&element(tag::OID, &[policy])]);
    element(tag::SEQUENCE, &[&information])
}

//! From a readmitted device to its signed certificate: an LDevID of IEEE 802.1AR-2018.

use std::fmt;

use assay_wire::{CertificateList, DeviceId, EkId, Identity, Scope};
use rand_core::CryptoRng;
pub use rcgen::RevocationReason;
use rcgen::{
    CertificateParams, CertificateRevocationListParams, CustomExtension, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, KeyIdMethod, KeyUsagePurpose, PublicKeyData, RevokedCertParams,
    SerialNumber, SignatureAlgorithm, SigningKey, SubjectPublicKeyInfo,
};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use time::{Duration, OffsetDateTime};
use x509_parser::prelude::{CertificateRevocationList, FromDer, X509Certificate};

use crate::admission::{Admitted, Readmitted};
use crate::bound_key::BoundKey;
use crate::der::{element, tag};
use crate::hardware::HardwareIdentity;
use crate::profile::Profile;
use crate::sealed::Candidate;
use crate::trust::Assurance;
use crate::x509::parse_certificate;
use crate::{Fault, oid};

/// The issuing CA: its certificate, and the key that signs device certificates.
pub struct Issuer {
    certificate: CertificateDer<'static>,
    signer: rcgen::Issuer<'static, Signer>,
    not_before: OffsetDateTime,
    not_after: OffsetDateTime,
}

impl Issuer {
    /// Joins an issuing certificate and its key, which may be in a file, or behind an HSM.
    pub fn new(
        certificate: CertificateDer<'static>,
        key: Box<dyn SigningKey + Send + Sync>,
    ) -> Result<Self, IssuerError> {
        let parsed = parse_certificate(&certificate).ok_or(IssuerError::UnreadableCertificate)?;
        if !parsed.is_ca() {
            return Err(IssuerError::NotACa);
        }
        if parsed.public_key().raw != key.subject_public_key_info() {
            return Err(IssuerError::KeyMismatch);
        }
        let (not_before, not_after) = (parsed.validity().not_before, parsed.validity().not_after);
        Ok(Self {
            not_before: not_before.to_datetime(),
            not_after: not_after.to_datetime(),
            signer: rcgen::Issuer::from_ca_cert_der(&certificate, Signer(key))
                .map_err(|_| IssuerError::UnreadableCertificate)?,
            certificate,
        })
    }

    /// Reads the certificate and its PKCS#8 key from PEM.
    pub fn from_pem(certificate: &str, key: &str) -> Result<Self, IssuerError> {
        let certificate = CertificateDer::from_pem_slice(certificate.as_bytes());
        let key = rcgen::KeyPair::from_pem(key).map_err(|_| IssuerError::UnreadableKey)?;
        Self::new(certificate.map_err(|_| IssuerError::UnreadableCertificate)?, Box::new(key))
    }

    /// The same issuer, if devices that pin this root believe it now: the root's key signed the
    /// issuing certificate, under the root's name, and that is valid (RFC 5280 §6.1.3).
    ///
    /// # Errors
    /// They do not.
    pub fn under(
        self,
        root: &CertificateDer<'_>,
        now: OffsetDateTime,
    ) -> Result<Self, IssuerError> {
        let root = parse_certificate(root).ok_or(IssuerError::UnreadableRoot)?;
        if !is_signed_by(&self.certificate, &root) {
            return Err(IssuerError::OtherRoot);
        }
        if !(self.not_before..=self.not_after).contains(&now) {
            return Err(IssuerError::NotValid {
                not_before: self.not_before,
                not_after: self.not_after,
            });
        }
        Ok(self)
    }

    /// Whether this issuer signed a certificate, so that the [chain](Self::chain) of the two leads
    /// anywhere.
    pub fn has_signed(&self, leaf: &[u8]) -> bool {
        parse_certificate(&self.certificate).is_some_and(|issuing| is_signed_by(leaf, &issuing))
    }

    /// A device's certificate and the issuing one: its chain without the root.
    pub fn chain(&self, leaf: &[u8]) -> Result<CertificateList<1>, Fault> {
        let oversize = |limit| Fault::Oversize { field: "a certificate", limit };
        let chain = [leaf, &self.certificate].map(assay_wire::CertificateDer::try_from);
        let chain = chain.into_iter().collect::<Result<Vec<_>, _>>().map_err(oversize)?;
        chain.try_into().map_err(oversize)
    }

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

    /// Signs a certificate. This may be slow if the key is in hardware.
    pub fn sign(&self, prepared: Prepared) -> Result<IssuedCertificate, Fault> {
        let Prepared { params, public_key, record } = prepared;
        let certificate = params.signed_by(&public_key, &self.signer).map_err(|error| {
            Fault::Certificate { operation: "signing a certificate", reason: error.to_string() }
        })?;
        Ok(IssuedCertificate { der: certificate.into(), ..record })
    }
}

impl fmt::Debug for Issuer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.signer.fmt(f)
    }
}

/// Why a certificate and a key are no issuing CA.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)] // each variant's message is its documentation
pub enum IssuerError {
    #[error("the issuing certificate is not an X.509 certificate")]
    UnreadableCertificate,
    #[error("the issuing key is not a PKCS#8 private key")]
    UnreadableKey,
    #[error("the issuing certificate is not a CA's")]
    NotACa,
    #[error("the issuing key is not the one of the issuing certificate")]
    KeyMismatch,
    #[error("the root certificate is not an X.509 certificate")]
    UnreadableRoot,
    #[error("the root did not sign the issuing certificate")]
    OtherRoot,
    #[error("the issuing certificate is valid from {not_before} to {not_after}, which is not now")]
    NotValid { not_before: OffsetDateTime, not_after: OffsetDateTime },
}

fn is_signed_by(certificate: &[u8], issuer: &X509Certificate<'_>) -> bool {
    parse_certificate(certificate).is_some_and(|certificate| {
        certificate.issuer().as_raw() == issuer.subject().as_raw()
            && certificate.verify_signature(Some(issuer.public_key())).is_ok()
    })
}

/// What a certificate joins, as it was verified.
#[derive(Clone, Debug)]
pub(crate) struct Subject {
    pub(crate) scope: Scope,
    pub(crate) device_id: DeviceId,
    pub(crate) ek_id: EkId,
    pub(crate) ik_spki: Vec<u8>,
    pub(crate) assurance: Assurance,
    pub(crate) hardware: HardwareIdentity,
}

impl Admitted {
    pub(crate) fn subject(&self, ik: &BoundKey, scope: &Scope) -> Subject {
        Subject {
            scope: scope.clone(),
            device_id: self.device_id.clone(),
            ek_id: self.ek.ek_id(),
            ik_spki: ik.spki(),
            assurance: self.ek.assurance,
            hardware: self.ek.hardware.clone(),
        }
    }
}

/// A device certificate that lacks nothing but its signature.
#[derive(Debug)]
pub struct Prepared {
    params: CertificateParams,
    public_key: SubjectPublicKeyInfo,
    record: IssuedCertificate,
}

impl Prepared {
    /// Fills in every field of the certificate from what was proven and from the profile.
    ///
    /// The certificate is valid within the issuing certificate's validity only.
    pub fn new(
        device: Readmitted,
        profile: &Profile,
        issuer: &Issuer,
        now: OffsetDateTime,
        rng: &mut dyn CryptoRng,
    ) -> Result<Self, Fault> {
        Self::fill(device.0.into_subject(), None, profile, issuer, now, rng)
    }

    /// The same for a device that has not proven itself: nobody may see this certificate but
    /// [sealed](Candidate::seal), and it is revoked unless the device confirms it in time.
    pub fn unproven(
        candidate: &Candidate,
        profile: &Profile,
        issuer: &Issuer,
        now: OffsetDateTime,
        rng: &mut dyn CryptoRng,
    ) -> Result<Self, Fault> {
        let confirm_by = now + profile.confirm_within();
        Self::fill(candidate.subject().clone(), Some(confirm_by), profile, issuer, now, rng)
    }

    fn fill(
        subject: Subject,
        confirm_by: Option<OffsetDateTime>,
        profile: &Profile,
        issuer: &Issuer,
        now: OffsetDateTime,
        rng: &mut dyn CryptoRng,
    ) -> Result<Self, Fault> {
        let now = now.replace_nanosecond(0).expect("0 is a nanosecond");
        if now >= issuer.not_after {
            return Err(Fault::IssuerExpired { not_after: issuer.not_after, now });
        }
        let identity =
            Identity::Device { scope: subject.scope, device_id: subject.device_id.clone() };
        let record = IssuedCertificate {
            der: CertificateDer::from(Vec::new()),
            serial: serial_number(now, rng),
            not_before: (now - profile.backdate()).max(issuer.not_before),
            not_after: (now + profile.validity()).min(issuer.not_after),
            device_id: subject.device_id,
            ek_id: subject.ek_id,
            ik_spki: subject.ik_spki,
            assurance: subject.assurance,
            confirm_by,
        };

        let mut params = CertificateParams::default();
        params.serial_number = Some(SerialNumber::from_slice(&record.serial));
        params.not_before = record.not_before;
        params.not_after = record.not_after;
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, record.device_id.as_str());
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        params.custom_extensions = vec![
            CustomExtension::from_oid_content(
                oid::SUBJECT_ALT_NAME,
                alt_names(&subject.hardware, &identity),
            ),
            CustomExtension::from_oid_content(
                oid::CERTIFICATE_POLICIES,
                policies(record.assurance),
            ),
        ];
        let public_key = SubjectPublicKeyInfo::from_der(&record.ik_spki).map_err(|error| {
            Fault::Certificate { operation: "reading an IK", reason: error.to_string() }
        })?;
        Ok(Self { params, public_key, record })
    }

    /// What the certificate will say of its time, and whose it is.
    pub fn record(&self) -> &IssuedCertificate {
        &self.record
    }
}

/// A signed device certificate, and what a store keeps with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IssuedCertificate {
    /// The certificate.
    pub der: CertificateDer<'static>,
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
    /// Its key, a SubjectPublicKeyInfo in DER.
    pub ik_spki: Vec<u8>,
    /// Why the EK was trusted.
    pub assurance: Assurance,
    /// Until when the device must confirm that it can read the certificate; `None` if it proved
    /// itself before.
    pub confirm_by: Option<OffsetDateTime>,
}

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

/// A serial number that sorts by time, so that an index over a million of them is written at one
/// end: 0x40, which makes it positive and always of the same length; 5 bytes of seconds since 1970;
/// 80 random bits, more than the 64 that RFC 5280's readers expect of a CA (CA/B Baseline
/// Requirements §7.1).
pub(crate) fn serial_number(now: OffsetDateTime, rng: &mut dyn CryptoRng) -> [u8; 16] {
    let mut serial = [0; 16];
    serial[0] = 0x40;
    serial[1..6].copy_from_slice(&now.unix_timestamp().to_be_bytes()[3..]);
    rng.fill_bytes(&mut serial[6..]);
    serial
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

/// CertificatePolicies (RFC 5280 §4.2.1.4) with one policy; written by hand, for its OID has an arc
/// above 64 bits.
fn policies(assurance: Assurance) -> Vec<u8> {
    let policy = match assurance {
        Assurance::VendorCertificate => oid::ASSURANCE_VENDOR_CERTIFICATE,
        Assurance::EnrolmentList => oid::ASSURANCE_ENROLMENT_LIST,
    };
    let information = element(tag::SEQUENCE, &[&element(tag::OID, &[policy])]);
    element(tag::SEQUENCE, &[&information])
}

/// A signing key of any kind; `rcgen` has no implementation for boxes.
struct Signer(Box<dyn SigningKey + Send + Sync>);

impl PublicKeyData for Signer {
    fn der_bytes(&self) -> &[u8] {
        self.0.der_bytes()
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        self.0.algorithm()
    }
}

impl SigningKey for Signer {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        self.0.sign(message)
    }
}

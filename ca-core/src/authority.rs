//! The CA's own certificates: root, issuing CA for devices, service CA, and the leaves of everybody
//! who is not a device.

use assay_wire::{DeviceId, Identity, IdentityName, Scope};
use rand_core::CryptoRng;
use rcgen::string::Ia5String;
use rcgen::{
    BasicConstraints, CertificateParams, CidrSubnet, CustomExtension, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, GeneralSubtree, IsCa, KeyIdMethod, KeyPair, KeyUsagePurpose,
    NameConstraints, PKCS_ECDSA_P256_SHA256, PublicKeyData, SanType, SerialNumber, SigningKey,
};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use sha2::{Digest, Sha256};
use time::{Duration, OffsetDateTime, UtcOffset};
use zeroize::Zeroizing;

use crate::Fault;
use crate::der::{element, tag};
use crate::issue::{Issuer, serial_number};
use crate::oid;
use crate::x509::parse_certificate;

/// A CA certificate and its key: one that this library makes, on P-256, or one that is elsewhere.
///
/// Keys come from the cryptographic library's own randomness, everything else from `rng`.
pub struct Authority<K = KeyPair> {
    certificate: String,
    not_after: OffsetDateTime,
    issuer: rcgen::Issuer<'static, K>,
}

impl Authority {
    /// A self-signed root, valid for [`ROOT_LIFETIME`]. `name` becomes its organisation.
    pub fn root(name: &str, now: OffsetDateTime, rng: &mut dyn CryptoRng) -> Result<Self, Fault> {
        Self::root_with(name, new_key()?, now, rng)
    }

    /// The root after this one, and the certificate with which this one certifies it: *newWithOld*
    /// (RFC 4210 §4.4), in PEM. Whoever trusts this root verifies by it what the new one signed,
    /// until this one ends.
    ///
    /// The two roots have different names, because some who build paths choose by the name alone.
    /// Devices take this certificate for that of a root by the policy in it (docs/protocol.md, *A
    /// new root*), so nothing else that a root signs may have that policy.
    ///
    /// # Errors
    /// This root's certificate cannot be read, or a signature cannot be made.
    pub fn next_root(
        &self,
        now: OffsetDateTime,
        rng: &mut dyn CryptoRng,
    ) -> Result<(Self, String), Fault> {
        self.next_root_with(new_key()?, now, rng)
    }

    /// The issuing CA for devices under this root, valid for [`ISSUING_LIFETIME`].
    ///
    /// It can certify only leaves and only clients, so no certificate that it signs passes for a
    /// broker's. (RFC 5280 has this extension for leaves, but OpenSSL and webpki apply that of a CA
    /// to its leaves.)
    pub fn issuing(
        &self,
        name: &str,
        now: OffsetDateTime,
        rng: &mut dyn CryptoRng,
    ) -> Result<Self, Fault> {
        self.issuing_called(&format!("{name} Issuing CA"), now, rng)
    }

    /// The same with this common name, which differs from that of the one before.
    pub fn issuing_called(
        &self,
        common_name: &str,
        now: OffsetDateTime,
        rng: &mut dyn CryptoRng,
    ) -> Result<Self, Fault> {
        self.subordinate(new_issuing_params(common_name, now, rng))
    }

    /// The service CA under this root, for brokers, workers, operators and backends. It has its own
    /// key, so an attacker with the issuing CA's key, which serves devices all day, does not have
    /// this one.
    pub fn service(
        &self,
        name: &str,
        now: OffsetDateTime,
        rng: &mut dyn CryptoRng,
    ) -> Result<Self, Fault> {
        self.service_called(&format!("{name} Service CA"), now, rng)
    }

    fn service_called(
        &self,
        common_name: &str,
        now: OffsetDateTime,
        rng: &mut dyn CryptoRng,
    ) -> Result<Self, Fault> {
        self.subordinate(new_service_params(common_name, now, rng))
    }

    /// The service CA after another one. Its name has the time, because relying parties find the
    /// issuer of a certificate and of a revocation list by its name.
    ///
    /// # Errors
    /// It cannot be signed.
    pub fn next_service(
        &self,
        now: OffsetDateTime,
        rng: &mut dyn CryptoRng,
    ) -> Result<Self, Fault> {
        let name = format!("{} Service CA {}", self.organisation()?, stamp(now));
        self.service_called(&name, now, rng)
    }

    fn subordinate(&self, params: CertificateParams) -> Result<Self, Fault> {
        let key = new_key()?;
        let (certificate, params) = self.certify(params, &key)?;
        let not_after = params.not_after;
        Ok(Self { certificate, not_after, issuer: rcgen::Issuer::new(params, key) })
    }

    /// A CA that was made before, from its PEM files.
    pub fn from_pem(certificate: &str, key: &str) -> Result<Self, Fault> {
        let key = KeyPair::from_pem(key).map_err(fault("reading a CA's key"))?;
        Self::of(certificate, key)
    }

    /// A certificate for a broker that is reached under `names`: DNS names and IP addresses.
    pub fn server(
        &self,
        names: &[String],
        lifetime: Duration,
        now: OffsetDateTime,
        rng: &mut dyn CryptoRng,
    ) -> Result<KeyAndCertificate, Fault> {
        let mut params = CertificateParams::new(names).map_err(fault("reading a server name"))?;
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        self.leaf(params, "broker", lifetime, now, rng)
    }

    /// A certificate for a worker's connections to the broker.
    pub fn worker(
        &self,
        lifetime: Duration,
        now: OffsetDateTime,
        rng: &mut dyn CryptoRng,
    ) -> Result<KeyAndCertificate, Fault> {
        self.client(&Identity::Worker, "worker@", lifetime, now, rng)
    }

    /// A certificate for an operator's connections to the broker.
    pub fn operator(
        &self,
        lifetime: Duration,
        now: OffsetDateTime,
        rng: &mut dyn CryptoRng,
    ) -> Result<KeyAndCertificate, Fault> {
        self.client(&Identity::Operator, "operator@", lifetime, now, rng)
    }

    /// A certificate for a backend's connections to the broker.
    pub fn backend(
        &self,
        name: &IdentityName,
        lifetime: Duration,
        now: OffsetDateTime,
        rng: &mut dyn CryptoRng,
    ) -> Result<KeyAndCertificate, Fault> {
        let identity = Identity::Backend { name: name.clone() };
        self.client(&identity, &format!("backend@{name}"), lifetime, now, rng)
    }

    /// Never for a device, because a device earns its certificate. Some brokers know clients by
    /// their common name. They must not take a device for one of these clients, so the names have
    /// an `@`, which no device id has.
    fn client(
        &self,
        identity: &Identity,
        common_name: &str,
        lifetime: Duration,
        now: OffsetDateTime,
        rng: &mut dyn CryptoRng,
    ) -> Result<KeyAndCertificate, Fault> {
        self.leaf(client_params(identity)?, common_name, lifetime, now, rng)
    }

    /// The CA's own certificate and key.
    pub fn to_pem(&self) -> KeyAndCertificate {
        KeyAndCertificate::new(self.certificate.clone(), self.issuer.key())
    }

    fn leaf(
        &self,
        params: CertificateParams,
        common_name: &str,
        lifetime: Duration,
        now: OffsetDateTime,
        rng: &mut dyn CryptoRng,
    ) -> Result<KeyAndCertificate, Fault> {
        leaf(&self.issuer, self.not_after, params, common_name, lifetime, now, rng)
    }
}

/// What a CA does whose key may be elsewhere.
impl<K: SigningKey> Authority<K> {
    /// A self-signed root with this key, which is new: see [`root`](Authority::root).
    ///
    /// # Errors
    /// It cannot be signed.
    pub fn root_with(
        name: &str,
        key: K,
        now: OffsetDateTime,
        rng: &mut dyn CryptoRng,
    ) -> Result<Self, Fault> {
        Self::self_signed(root_params(name, &format!("{name} Root CA"), now, rng), key)
    }

    /// The root after this one with this key, which is new: see [`next_root`](Authority::next_root).
    ///
    /// # Errors
    /// This root's certificate cannot be read, or a signature cannot be made.
    pub fn next_root_with<N: SigningKey>(
        &self,
        key: N,
        now: OffsetDateTime,
        rng: &mut dyn CryptoRng,
    ) -> Result<(Authority<N>, String), Fault> {
        let name = self.organisation()?;
        let params = root_params(&name, &format!("{name} Root CA {}", stamp(now)), now, rng);

        let mut cross = params.clone();
        cross.key_identifier_method = named_briefly(&key);
        cross.use_authority_key_identifier_extension = true;
        cross.custom_extensions =
            vec![CustomExtension::from_oid_content(oid::CERTIFICATE_POLICIES, new_root_policies())];
        set_times_and_serial(&mut cross, ROOT_LIFETIME, now, rng);
        cross.not_after = cross.not_after.min(self.not_after);
        let cross = cross
            .signed_by(&key, &self.issuer)
            .map_err(Fault::of_signer("certifying the new root"))?;
        Ok((Authority::self_signed(params, key)?, cross.pem()))
    }

    /// A CA that was made before: its certificate in PEM, and its key. Does not establish that the
    /// two belong together.
    ///
    /// # Errors
    /// The certificate cannot be read.
    pub fn of(certificate: &str, key: K) -> Result<Self, Fault> {
        let der = CertificateDer::from_pem_slice(certificate.as_bytes());
        let der = der.map_err(fault("reading a CA"))?;
        let parsed = parse_certificate(&der)
            .ok_or_else(|| fault("reading a CA")("it is not an X.509 certificate"))?;
        let not_after = parsed.validity().not_after.to_datetime();
        let issuer = rcgen::Issuer::from_ca_cert_der(&der, key).map_err(fault("reading a CA"))?;
        Ok(Self { certificate: certificate.to_owned(), not_after, issuer })
    }

    /// Its certificate in PEM.
    pub fn certificate(&self) -> &str {
        &self.certificate
    }

    fn self_signed(mut params: CertificateParams, key: K) -> Result<Self, Fault> {
        params.key_identifier_method = named_briefly(&key);
        let certificate = params.self_signed(&key).map_err(Fault::of_signer("signing the root"))?;
        let (certificate, not_after) = (certificate.pem(), params.not_after);
        Ok(Self { certificate, not_after, issuer: rcgen::Issuer::new(params, key) })
    }

    /// The name that this root was made with.
    fn organisation(&self) -> Result<String, Fault> {
        let unreadable = || fault("reading the root")("it is not an X.509 certificate");
        let own = CertificateDer::from_pem_slice(self.certificate.as_bytes());
        let own = own.map_err(fault("reading the root"))?;
        let own = parse_certificate(&own).ok_or_else(unreadable)?;
        let mut organisations = own.subject().iter_organization();
        let name = organisations.next().and_then(|name| name.as_str().ok());
        Ok(name.unwrap_or("Assay").to_owned())
    }

    /// The certificate of an issuing CA of this name whose key is elsewhere, in PEM.
    ///
    /// # Errors
    /// It cannot be signed.
    pub fn issuing_for(
        &self,
        common_name: &str,
        key: &impl PublicKeyData,
        now: OffsetDateTime,
        rng: &mut dyn CryptoRng,
    ) -> Result<String, Fault> {
        let (certificate, _) = self.certify(new_issuing_params(common_name, now, rng), key)?;
        Ok(certificate)
    }

    /// The same of a service CA.
    ///
    /// # Errors
    /// It cannot be signed.
    pub fn service_for(
        &self,
        common_name: &str,
        key: &impl PublicKeyData,
        now: OffsetDateTime,
        rng: &mut dyn CryptoRng,
    ) -> Result<String, Fault> {
        let (certificate, _) = self.certify(new_service_params(common_name, now, rng), key)?;
        Ok(certificate)
    }

    /// None outlives this root.
    fn certify(
        &self,
        mut params: CertificateParams,
        key: &impl PublicKeyData,
    ) -> Result<(String, CertificateParams), Fault> {
        params.not_after = params.not_after.min(self.not_after);
        params.use_authority_key_identifier_extension = true;
        params.key_identifier_method = named_briefly(key);
        let certificate =
            params.signed_by(key, &self.issuer).map_err(Fault::of_signer("signing a CA"))?;
        Ok((certificate.pem(), params))
    }
}

impl Issuer {
    /// A certificate for a device that does not exist, to try a broker with. It is valid for
    /// [`THROW_AWAY_LIFETIME`] from `from`, which may be long ago.
    ///
    /// A real device earns its certificate, by its TPM. This certificate is for an id of 128 random
    /// bits that nobody has. It names neither a TPM nor an assurance policy, so it says nothing to
    /// a relying party that looks for either; but a broker takes it for a device's.
    ///
    /// # Errors
    /// It cannot be signed.
    pub fn throw_away_device(
        &self,
        scope: &Scope,
        from: OffsetDateTime,
        rng: &mut dyn CryptoRng,
    ) -> Result<(DeviceId, KeyAndCertificate), Fault> {
        let mut unique = [0; 16];
        rng.fill_bytes(&mut unique);
        let id: DeviceId =
            format!("{THROW_AWAY_PREFIX}{}", crate::hex(&unique)).parse().expect("a device id");
        let identity = Identity::Device { scope: scope.clone(), device_id: id.clone() };
        let (params, name) = (client_params(&identity)?, id.as_str());
        let (signer, end) = (self.signer(), self.not_after());
        let pair = leaf(signer, end, params, name, THROW_AWAY_LIFETIME, from, rng)?;
        Ok((id, pair))
    }
}

/// A certificate and its private key, for files.
pub struct KeyAndCertificate {
    /// The certificate in PEM.
    pub certificate: String,
    /// Its PKCS#8 key in PEM. Wiped when dropped.
    pub key: Zeroizing<String>,
}

impl KeyAndCertificate {
    fn new(certificate: String, key: &KeyPair) -> Self {
        Self { certificate, key: Zeroizing::new(key.serialize_pem()) }
    }
}

/// How long a root is valid: longer than any device that pins it.
pub const ROOT_LIFETIME: Duration = Duration::days(20 * 365);
/// How long an issuing CA and a service CA are valid. No device certificate outlives the issuing
/// CA.
pub const ISSUING_LIFETIME: Duration = Duration::days(10 * 365);
/// How long a broker's, a worker's, an operator's or a backend's certificate is valid, unless an
/// operator asks for less. None outlives the service CA.
pub const LEAF_LIFETIME: Duration = Duration::days(3 * 365);
/// How long a certificate to try a broker with is valid.
pub const THROW_AWAY_LIFETIME: Duration = Duration::minutes(10);
/// The prefix of the ids of devices that do not exist.
pub const THROW_AWAY_PREFIX: &str = "assay-check-";
/// In bytes.
const KEY_ID: usize = 8;
/// How far the clock of a device that verifies a fresh certificate may be behind.
const BACKDATE: Duration = Duration::hours(1);

/// A time as it stands in names of CAs: to the second, so that no two are alike.
fn stamp(now: OffsetDateTime) -> String {
    let now = now.to_offset(UtcOffset::UTC);
    let (date, time) = (now.date(), now.time());
    format!(
        "{:04}{:02}{:02}T{:02}{:02}{:02}Z",
        date.year(),
        u8::from(date.month()),
        date.day(),
        time.hour(),
        time.minute(),
        time.second()
    )
}

/// CertificatePolicies (RFC 5280 §4.2.1.4): that this is a new root, and any policy, because a
/// policy that a CA's certificate lacks counts in none below it.
fn new_root_policies() -> Vec<u8> {
    let information = |policy| element(tag::SEQUENCE, &[&element(tag::OID, &[policy])]);
    element(tag::SEQUENCE, &[&information(oid::NEW_ROOT), &information(oid::ANY_POLICY)])
}

fn client_params(identity: &Identity) -> Result<CertificateParams, Fault> {
    let uri = Ia5String::try_from(identity.to_string()).map_err(fault("writing an identity"))?;
    let mut params = CertificateParams::default();
    params.subject_alt_names = vec![SanType::URI(uri)];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    Ok(params)
}

/// Certifies a new key for somebody who certifies nobody.
fn leaf(
    issuer: &rcgen::Issuer<'_, impl SigningKey>,
    issuer_ends: OffsetDateTime,
    mut params: CertificateParams,
    common_name: &str,
    lifetime: Duration,
    now: OffsetDateTime,
    rng: &mut dyn CryptoRng,
) -> Result<KeyAndCertificate, Fault> {
    let key = new_key()?;
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, common_name);
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.use_authority_key_identifier_extension = true;
    set_times_and_serial(&mut params, lifetime, now, rng);
    params.not_after = params.not_after.min(issuer_ends);
    let certificate = params.signed_by(&key, issuer).map_err(Fault::of_signer("signing a leaf"))?;
    Ok(KeyAndCertificate::new(certificate.pem(), &key))
}

fn root_params(
    name: &str,
    common_name: &str,
    now: OffsetDateTime,
    rng: &mut dyn CryptoRng,
) -> CertificateParams {
    let mut params = ca_params(common_name, BasicConstraints::Unconstrained);
    set_times_and_serial(&mut params, ROOT_LIFETIME, now, rng);
    // Only a root has it, because the issuing CA's name is sent twice with each device certificate.
    params.distinguished_name.push(DnType::OrganizationName, name);
    params
}

fn new_key() -> Result<KeyPair, Fault> {
    KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(fault("making a key"))
}

/// The identifier of a CA's key. As long as the second method of RFC 5280 §4.2.1.2 has it: each
/// device certificate has it twice on its way.
fn named_briefly(key: &impl PublicKeyData) -> KeyIdMethod {
    let digest = Sha256::digest(key.subject_public_key_info());
    KeyIdMethod::PreSpecified(digest[..KEY_ID].to_vec())
}

fn ca_params(common_name: &str, constraints: BasicConstraints) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, common_name);
    params.is_ca = IsCa::Ca(constraints);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

fn issuing_params(common_name: &str) -> CertificateParams {
    let mut params = ca_params(common_name, BasicConstraints::Constrained(0));
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    params
}

/// The one IP address that a certificate of a device might have among its names, and that nobody
/// has. So a device's certificate is no server's, even to those who ignore the extended key usage
/// of a CA, if they reach the server by its address.
///
/// A constraint of URIs would be closer, but verifiers apply it to the host, which a URN lacks, and
/// refuse every device. One of DNS names has OpenSSL refuse devices whose id has a dot in it, since
/// it takes the common name for a DNS name. To exclude all addresses of both kinds takes 36 bytes
/// more of every provisioning (docs/decisions/0019).
fn no_address() -> GeneralSubtree {
    GeneralSubtree::IpAddress(CidrSubnet::from_v4_prefix([0; 4], 32))
}

fn new_service_params(
    common_name: &str,
    now: OffsetDateTime,
    rng: &mut dyn CryptoRng,
) -> CertificateParams {
    let mut params = service_params(common_name);
    set_times_and_serial(&mut params, ISSUING_LIFETIME, now, rng);
    params
}

fn service_params(common_name: &str) -> CertificateParams {
    let mut params = ca_params(common_name, BasicConstraints::Constrained(0));
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
    params
}

fn new_issuing_params(
    common_name: &str,
    now: OffsetDateTime,
    rng: &mut dyn CryptoRng,
) -> CertificateParams {
    let mut params = issuing_params(common_name);
    params.name_constraints = Some(NameConstraints {
        permitted_subtrees: vec![no_address()],
        excluded_subtrees: Vec::new(),
    });
    set_times_and_serial(&mut params, ISSUING_LIFETIME, now, rng);
    params
}

/// A new key for a CA that somebody else certifies: PKCS#8 in PEM.
pub fn new_ca_key() -> Result<Zeroizing<String>, Fault> {
    Ok(Zeroizing::new(new_key()?.serialize_pem()))
}

/// A request to certify this key as an issuing CA of this name: PKCS #10 (RFC 2986) in PEM, with
/// the extensions that [`Issuer::fit_to_issue`](crate::Issuer::fit_to_issue) wants.
///
/// # Errors
/// It cannot be signed.
pub fn issuing_request(common_name: &str, key: &impl SigningKey) -> Result<String, Fault> {
    request(&issuing_params(common_name), key)
}

/// The same for a service CA.
///
/// # Errors
/// It cannot be signed.
pub fn service_request(common_name: &str, key: &impl SigningKey) -> Result<String, Fault> {
    request(&service_params(common_name), key)
}

fn request(params: &CertificateParams, key: &impl SigningKey) -> Result<String, Fault> {
    let request = params.serialize_request(key);
    request.and_then(|request| request.pem()).map_err(Fault::of_signer("writing a request"))
}

fn set_times_and_serial(
    params: &mut CertificateParams,
    lifetime: Duration,
    now: OffsetDateTime,
    rng: &mut dyn CryptoRng,
) {
    params.not_before = now - BACKDATE;
    params.not_after = now + lifetime;
    params.serial_number = Some(SerialNumber::from_slice(&serial_number(now, rng)));
}

fn fault<E: ToString>(operation: &'static str) -> impl Fn(E) -> Fault {
    move |error| Fault::Certificate { operation, reason: error.to_string() }
}

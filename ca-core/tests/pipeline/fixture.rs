//! A TPM vendor, a device with a software TPM, and a CA that meet in memory.

use assay_ca_core::key::{Curve, PublicKey};
use assay_ca_core::tpm::credential::Credential;
use assay_ca_core::tpm::kdf::{Hash, kdfa, kdfe};
use assay_ca_core::tpm::public::{AreaKey, Name, ObjectAttributes, PublicArea};
use assay_ca_core::tpm::template::{EkArea, ParentArea};
use assay_ca_core::{
    Admission, Admitted, AdmittedParent, Answer, Authority, BoundKey, Challenge, Conditions,
    Enrolment, Evidence, Flaws, FlowKind, Group, Groups, Instead, Issuer, Issuers,
    KeyAndCertificate, Offered, Overlapping, Profile, ProvenDevice, Records, Rejection,
    SharedKeyFlow, Terms, TicketFlow, TicketKey, TrustAnchors, TrustedEk, VendorCertificate,
};
use assay_wire::{Bundle, ChallengeReply, DeviceId, Flow, Proof, Scope, Ticket};
use aws_lc_rs::agreement::{PrivateKey, UnparsedPublicKey, agree};
use aws_lc_rs::encoding::{AsDer, PublicKeyX509Der};
use aws_lc_rs::rsa::{
    KeySize, OAEP_SHA256_MGF1SHA256, OAEP_SHA384_MGF1SHA384, OaepPrivateDecryptingKey,
    PrivateDecryptingKey,
};
use cfb_mode::cipher::KeyIvInit;
use rand_core::{TryCryptoRng, TryRng};
use rcgen::{
    BasicConstraints, CertificateParams, CustomExtension, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256,
    PKCS_ECDSA_P384_SHA384, PublicKeyData, SubjectPublicKeyInfo,
};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use sha2::{Digest, Sha256};
use time::{Duration, OffsetDateTime};

/// The time of everything, unless a test says otherwise.
pub(crate) fn now() -> OffsetDateTime {
    OffsetDateTime::from_unix_timestamp(1_800_000_000).unwrap()
}

/// Randomness that is the same in every run.
pub(crate) struct CountingRng(u64);

impl CountingRng {
    pub(crate) fn new() -> Self {
        Self(0)
    }
}

impl TryRng for CountingRng {
    type Error = std::convert::Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Self::Error> {
        let mut bytes = [0; 4];
        self.try_fill_bytes(&mut bytes)?;
        Ok(u32::from_be_bytes(bytes))
    }

    fn try_next_u64(&mut self) -> Result<u64, Self::Error> {
        let mut bytes = [0; 8];
        self.try_fill_bytes(&mut bytes)?;
        Ok(u64::from_be_bytes(bytes))
    }

    fn try_fill_bytes(&mut self, out: &mut [u8]) -> Result<(), Self::Error> {
        for chunk in out.chunks_mut(32) {
            self.0 += 1;
            chunk.copy_from_slice(&Sha256::digest(self.0.to_be_bytes())[..chunk.len()]);
        }
        Ok(())
    }
}

impl TryCryptoRng for CountingRng {}

/// A file of `tests/golden`.
pub(crate) fn golden(name: &str) -> Vec<u8> {
    std::fs::read(format!("{}/tests/golden/{name}", env!("CARGO_MANIFEST_DIR"))).unwrap()
}

/// The area in a golden TPM2B_PUBLIC.
pub(crate) fn golden_area(name: &str) -> PublicArea {
    PublicArea::parse(&golden(&format!("{name}.tpm2b"))[2..]).unwrap()
}

/// The same key on TCG's template of the high range, for RSA-2048 and P-256.
pub(crate) fn on_high_range(low: PublicArea) -> PublicArea {
    let policy_b = b"ca3d0a99a2b93906f7a3342414efcfb3a385d44cd1fd459089d19b5071c0b7a0";
    let attributes = low.attributes.union(ObjectAttributes::USER_WITH_AUTH);
    PublicArea { attributes, auth_policy: data_encoding::HEXLOWER.decode(policy_b).unwrap(), ..low }
}

/// A TPM vendor with a root and an intermediate, as vendors have them.
pub(crate) struct Vendor {
    pub(crate) root: CertificateDer<'static>,
    pub(crate) intermediate: CertificateDer<'static>,
    root_issuer: rcgen::Issuer<'static, KeyPair>,
    issuer: rcgen::Issuer<'static, KeyPair>,
}

impl Vendor {
    pub(crate) fn new(name: &str) -> Self {
        Self::with_keys(name, [p256_key(), p256_key()])
    }

    /// A vendor with these keys for its root and its intermediate.
    pub(crate) fn with_keys(name: &str, [root_key, key]: [KeyPair; 2]) -> Self {
        let root_params = ca_params(&format!("{name} Root"));
        let root = root_params.self_signed(&root_key).unwrap().into();
        let root_issuer = rcgen::Issuer::new(root_params, root_key);
        let (intermediate, issuer) =
            certify_ca(key, &root_issuer, &format!("{name} EK CA"), |_| ());
        Self { root, intermediate, root_issuer, issuer }
    }

    /// The same vendor, with its intermediate changed.
    pub(crate) fn with_intermediate(mut self, change: impl FnOnce(&mut CertificateParams)) -> Self {
        (self.intermediate, self.issuer) =
            certify_ca(p256_key(), &self.root_issuer, "Changed EK CA", change);
        self
    }

    /// Puts `length` more intermediates between the root and EK certificates. Returns all
    /// intermediates.
    pub(crate) fn lengthen(&mut self, length: usize) -> Vec<CertificateDer<'static>> {
        let mut chain = vec![self.intermediate.clone()];
        for level in 0..length {
            let (certificate, issuer) =
                certify_ca(p256_key(), &self.issuer, &format!("EK CA level {level}"), |_| ());
            self.issuer = issuer;
            chain.insert(0, certificate);
        }
        chain
    }

    pub(crate) fn anchors(&self) -> TrustAnchors {
        trusting([self.root.clone()])
    }

    /// An EK certificate that follows TCG's profile, after `change`; then its issuer.
    pub(crate) fn certify(
        &self,
        key: &PublicKey,
        change: impl FnOnce(&mut CertificateParams),
    ) -> Vec<CertificateDer<'static>> {
        vec![certify_ek(key, &self.issuer, change), self.intermediate.clone()]
    }

    /// An EK certificate that the root itself signed.
    pub(crate) fn certify_by_root(&self, key: &PublicKey) -> Vec<CertificateDer<'static>> {
        vec![certify_ek(key, &self.root_issuer, |_| ())]
    }
}

/// An operator's trust in these vendors' certificates.
pub(crate) fn trusting(
    certificates: impl IntoIterator<Item = CertificateDer<'static>>,
) -> TrustAnchors {
    TrustAnchors::new(certificates.into_iter().map(|der| VendorCertificate::read(&der).unwrap()))
}

fn ca_params(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params
}

fn certify_ca(
    key: KeyPair,
    issuer: &rcgen::Issuer<'static, KeyPair>,
    name: &str,
    change: impl FnOnce(&mut CertificateParams),
) -> (CertificateDer<'static>, rcgen::Issuer<'static, KeyPair>) {
    let mut params = ca_params(name);
    change(&mut params);
    let certificate = params.signed_by(&key, issuer).unwrap().into();
    (certificate, rcgen::Issuer::new(params, key))
}

pub(crate) fn certify_ek(
    key: &PublicKey,
    issuer: &rcgen::Issuer<'static, KeyPair>,
    change: impl FnOnce(&mut CertificateParams),
) -> CertificateDer<'static> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.not_before = now() - Duration::days(1);
    params.not_after = now() + Duration::days(3650);
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::KeyEncipherment];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::Other(vec![2, 23, 133, 8, 1])];
    params.use_authority_key_identifier_extension = true;
    params.custom_extensions =
        vec![tpm_alt_name(&[(1, "id:41434D45"), (2, "Model 7"), (3, "id:00010002")])];
    change(&mut params);
    let key = SubjectPublicKeyInfo::from_der(&key.spki()).unwrap();
    params.signed_by(&key, issuer).unwrap().into()
}

fn p256_key() -> KeyPair {
    KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap()
}

/// A critical subject alternative name: a directoryName of `2.23.133.2.n` attributes.
pub(crate) fn tpm_alt_name(attributes: &[(u8, &str)]) -> CustomExtension {
    let attributes: Vec<u8> = attributes
        .iter()
        .flat_map(|(arc, value)| {
            let oid = tlv(0x06, &[0x67, 0x81, 0x05, 0x02, *arc]);
            tlv(0x31, &tlv(0x30, &[oid, tlv(0x0C, value.as_bytes())].concat()))
        })
        .collect();
    let names = tlv(0x30, &tlv(0xA4, &tlv(0x30, &attributes)));
    let mut extension = CustomExtension::from_oid_content(&[2, 5, 29, 17], names);
    extension.set_criticality(true);
    extension
}

fn tlv(tag: u8, content: &[u8]) -> Vec<u8> {
    [&[tag, u8::try_from(content.len()).unwrap()], content].concat()
}

/// An EK whose private key is in software.
pub(crate) struct SoftwareEk {
    pub(crate) area: PublicArea,
    private: StoragePrivate,
}

impl SoftwareEk {
    /// One of the golden keys: `rsa2048`, `rsa3072`, `p256` or `p384`.
    pub(crate) fn golden(kind: &str) -> Self {
        let pem = golden(&format!("software-{kind}.pem"));
        let pkcs8 = PrivatePkcs8KeyDer::from_pem_slice(&pem).unwrap();
        let area = golden_area(&format!("software-{kind}"));
        let private = match area.public_key().unwrap() {
            PublicKey::Rsa { .. } => {
                let key = PrivateDecryptingKey::from_pkcs8(pkcs8.secret_pkcs8_der()).unwrap();
                StoragePrivate::Rsa(OaepPrivateDecryptingKey::new(key).unwrap())
            }
            PublicKey::Ecc { curve, .. } => StoragePrivate::Ecc(
                PrivateKey::from_private_key_der(ecdh(curve), pkcs8.secret_pkcs8_der()).unwrap(),
            ),
        };
        Self { area, private }
    }

    /// A fresh P-256 EK on template L-2.
    pub(crate) fn fresh() -> Self {
        let key = PrivateKey::generate(ecdh(Curve::P256)).unwrap();
        let area = with_point(golden_area("ek-p256"), key.compute_public_key().unwrap().as_ref());
        Self { area, private: StoragePrivate::Ecc(key) }
    }

    pub(crate) fn key(&self) -> PublicKey {
        self.area.public_key().unwrap()
    }

    /// TPM2_ActivateCredential (TPM 2.0 Part 1, 24) for the object with this Name. `None` where a
    /// TPM would say that the integrity check failed.
    pub(crate) fn activate(&self, name: &Name, credential: &Credential) -> Option<Vec<u8>> {
        let ek = EkArea::recognise(&self.area).unwrap();
        let Credential { id_object, encrypted_seed } = credential;
        let seed = self.private.seed(ek.key(), ek.hash(), "IDENTITY", encrypted_seed);
        let identity = open_outer_wrapper(ek.hash(), &seed, ek.aes_key_bytes(), name, id_object)?;
        Some(identity[2..].to_vec())
    }
}

/// A parent whose private key is in software.
pub(crate) struct SoftwareParent {
    pub(crate) area: PublicArea,
    private: StoragePrivate,
}

/// The sensitive area of an object: authValue, seedValue and the key itself.
pub(crate) type Sensitive = [Vec<u8>; 3];

impl SoftwareParent {
    pub(crate) fn fresh_p256() -> Self {
        Self::of_p256(PrivateKey::generate(ecdh(Curve::P256)).unwrap())
    }

    pub(crate) fn of_p256(key: PrivateKey) -> Self {
        let area =
            with_point(golden_area("parent-p256"), key.compute_public_key().unwrap().as_ref());
        Self { area, private: StoragePrivate::Ecc(key) }
    }

    pub(crate) fn fresh_rsa2048() -> Self {
        let key = PrivateDecryptingKey::generate(KeySize::Rsa2048).unwrap();
        let spki: PublicKeyX509Der<'_> = key.public_key().as_der().unwrap();
        let PublicKey::Rsa { modulus, .. } = PublicKey::from_spki(spki.as_ref()).unwrap() else {
            unreachable!()
        };
        let area = with_modulus(golden_area("parent-rsa2048"), &modulus);
        Self { area, private: StoragePrivate::Rsa(OaepPrivateDecryptingKey::new(key).unwrap()) }
    }

    /// The same key on the template of a plain SRK. No TPM has a key on both templates.
    pub(crate) fn into_plain_srk(self) -> Self {
        let PublicArea { attributes, auth_policy, .. } = golden_area("srk-p256");
        Self { area: PublicArea { attributes, auth_policy, ..self.area }, ..self }
    }

    pub(crate) fn recognised(&self) -> ParentArea {
        ParentArea::recognise(&self.area).unwrap()
    }

    /// The same parent, admitted for a device whose operator allows any parent.
    pub(crate) fn admitted(&self, device: &Admitted<SharedKeyFlow>) -> AdmittedParent {
        let enrolment = Some(Enrolment { plain_srk: true, ..Enrolment::default() });
        let records = Records { enrolment, ..nothing_on_record() };
        AdmittedParent::decide(device, self.recognised(), &records).unwrap()
    }

    /// TPM2_Import (TPM 2.0 Part 3, 13.3) of an object with the public area `public`. `None` where
    /// a TPM would say that an integrity check failed.
    pub(crate) fn import(
        &self,
        inner_key: &[u8],
        public: &[u8],
        private: &[u8],
        seed: &[u8],
    ) -> Option<Sensitive> {
        let (key, name) = (self.area.public_key().unwrap(), Name::of(Hash::Sha256, public));
        let seed = self.private.seed(&key, Hash::Sha256, "DUPLICATE", seed);
        let mut inner = open_outer_wrapper(Hash::Sha256, &seed, 16, &name, private)?;
        decrypt_cfb(inner_key, &mut inner);
        let (digest, sensitive) = inner[2..].split_at(32);
        if inner[..2] != [0, 32] || digest != Hash::Sha256.digest(&[sensitive, name.as_ref()]) {
            return None;
        }
        const TPM_ALG_KEYEDHASH: &[u8] = &[0, 8];
        let (area, rest) = take_sized(sensitive);
        assert!(rest.is_empty() && area.starts_with(TPM_ALG_KEYEDHASH));
        let (auth, rest) = take_sized(&area[2..]);
        let (seed_value, rest) = take_sized(rest);
        let (key, rest) = take_sized(rest);
        assert!(rest.is_empty());
        Some([auth, seed_value, key].map(<[u8]>::to_vec))
    }
}

fn take_sized(bytes: &[u8]) -> (&[u8], &[u8]) {
    bytes[2..].split_at(usize::from(u16::from_be_bytes([bytes[0], bytes[1]])))
}

enum StoragePrivate {
    Rsa(OaepPrivateDecryptingKey),
    Ecc(PrivateKey),
}

impl StoragePrivate {
    fn seed(&self, public: &PublicKey, hash: Hash, label: &str, encrypted: &[u8]) -> Vec<u8> {
        match self {
            Self::Rsa(key) => {
                let oaep = match hash {
                    Hash::Sha256 => &OAEP_SHA256_MGF1SHA256,
                    Hash::Sha384 => &OAEP_SHA384_MGF1SHA384,
                };
                let mut seed = vec![0; key.min_output_size()];
                let label = format!("{label}\0");
                key.decrypt(oaep, encrypted, &mut seed, Some(label.as_bytes())).unwrap().to_vec()
            }
            Self::Ecc(key) => {
                let PublicKey::Ecc { curve, x, .. } = public else { unreachable!() };
                let width = curve.field_bytes();
                assert_eq!(encrypted.len(), 2 * (2 + width));
                let (peer_x, peer_y) = (&encrypted[2..2 + width], &encrypted[4 + width..]);
                let peer = UnparsedPublicKey::new(ecdh(*curve), [&[4], peer_x, peer_y].concat());
                agree(key, &peer, (), |z| {
                    Ok(kdfe(hash, z, label, peer_x, x, hash.digest_bytes()).to_vec())
                })
                .unwrap()
            }
        }
    }
}

/// Checks and decrypts what is protected under `seed` for the object with this Name.
fn open_outer_wrapper(
    hash: Hash,
    seed: &[u8],
    aes_key_bytes: usize,
    name: &Name,
    wrapped: &[u8],
) -> Option<Vec<u8>> {
    let size = hash.digest_bytes();
    let (mac, encrypted) = wrapped[2..].split_at(size);
    let integrity_key = kdfa(hash, seed, "INTEGRITY", &[], &[], size);
    let expected = hash.hmac(&integrity_key, &[encrypted, name.as_ref()]);
    if usize::from(u16::from_be_bytes([wrapped[0], wrapped[1]])) != size || mac != expected {
        return None;
    }
    let storage_key = kdfa(hash, seed, "STORAGE", name.as_ref(), &[], aes_key_bytes);
    let mut content = encrypted.to_vec();
    decrypt_cfb(&storage_key, &mut content);
    Some(content)
}

fn decrypt_cfb(key: &[u8], data: &mut [u8]) {
    match key.len() {
        16 => cfb_mode::Decryptor::<aes::Aes128>::new_from_slices(key, &[0; 16])
            .unwrap()
            .decrypt(data),
        _ => cfb_mode::Decryptor::<aes::Aes256>::new_from_slices(key, &[0; 16])
            .unwrap()
            .decrypt(data),
    }
}

fn ecdh(curve: Curve) -> &'static aws_lc_rs::agreement::Algorithm {
    match curve {
        Curve::P256 => &aws_lc_rs::agreement::ECDH_P256,
        Curve::P384 => &aws_lc_rs::agreement::ECDH_P384,
    }
}

/// The same area with another point, given uncompressed.
pub(crate) fn with_point(mut area: PublicArea, point: &[u8]) -> PublicArea {
    let AreaKey::Ecc { x, y, .. } = &mut area.key else { unreachable!() };
    let (new_x, new_y) = point[1..].split_at(x.len());
    (*x, *y) = (new_x.to_vec(), new_y.to_vec());
    area
}

/// The same area with another modulus.
pub(crate) fn with_modulus(mut area: PublicArea, new: &[u8]) -> PublicArea {
    let AreaKey::Rsa { modulus, .. } = &mut area.key else { unreachable!() };
    *modulus = new.to_vec();
    area
}

/// A device: a TPM with an EK and an IK, and the certificates that were sold with it.
pub(crate) struct Device {
    pub(crate) ek: SoftwareEk,
    pub(crate) ek_certificates: Vec<CertificateDer<'static>>,
    pub(crate) ik_area: PublicArea,
    pub(crate) csr: Vec<u8>,
    pub(crate) device_id: Option<DeviceId>,
}

impl Device {
    /// A device of `vendor` that does everything right.
    pub(crate) fn of(vendor: &Vendor) -> Self {
        Self::with_ek(vendor, SoftwareEk::fresh())
    }

    pub(crate) fn with_ek(vendor: &Vendor, ek: SoftwareEk) -> Self {
        let ek_certificates = vendor.certify(&ek.key(), |_| ());
        let (ik_area, ik) = p256_ik();
        Self { ek, ek_certificates, ik_area, csr: csr(&ik), device_id: None }
    }

    pub(crate) fn asking_for(mut self, device_id: &str) -> Self {
        self.device_id = Some(device_id.parse().unwrap());
        self
    }

    pub(crate) fn request(&self) -> Bundle {
        let certificates = self.ek_certificates.iter().map(|der| der.as_ref().try_into().unwrap());
        Bundle {
            device_id: self.device_id.clone(),
            ek_public: self.ek.area.encode().try_into().unwrap(),
            ek_certificates: certificates.collect::<Vec<_>>().try_into().unwrap(),
            ik_public: self.ik_area.encode().try_into().unwrap(),
            csr: self.csr.clone().try_into().unwrap(),
            other_eks: None,
        }
    }

    pub(crate) fn evidence(&self) -> Evidence {
        Evidence::parse(self.request()).unwrap()
    }

    pub(crate) fn ik_name(&self) -> Name {
        Name::of(Hash::Sha256, &self.ik_area.encode())
    }

    /// Activates a challenge's credential.
    pub(crate) fn answer(&self, challenge: &ChallengeReply) -> Proof {
        let credential = Credential {
            id_object: challenge.credential_blob.to_vec(),
            encrypted_seed: challenge.encrypted_seed.to_vec(),
        };
        let secret = self.ek.activate(&self.ik_name(), &credential).unwrap();
        let ticket: [u8; Ticket::LEN] = secret.try_into().unwrap();
        Proof { claim: challenge.claim.clone(), ticket: ticket.into() }
    }
}

/// An identity key on our P-256 template.
pub(crate) fn p256_ik() -> (PublicArea, KeyPair) {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
    (with_point(golden_area("ik-p256"), key.der_bytes()), key)
}

/// An identity key on our P-384 template.
pub(crate) fn p384_ik() -> (PublicArea, KeyPair) {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P384_SHA384).unwrap();
    (with_point(golden_area("ik-p384"), key.der_bytes()), key)
}

/// An identity key on our RSA-2048 template.
pub(crate) fn rsa_ik() -> (PublicArea, KeyPair) {
    let key =
        KeyPair::from_pem(std::str::from_utf8(&golden("software-rsa2048.pem")).unwrap()).unwrap();
    let PublicKey::Rsa { modulus, .. } =
        PublicKey::from_spki(&key.subject_public_key_info()).unwrap()
    else {
        unreachable!()
    };
    (with_modulus(golden_area("ik-rsa2048"), &modulus), key)
}

/// A request that asks for more than the CA grants.
pub(crate) fn csr(ik: &KeyPair) -> Vec<u8> {
    let mut wishes = CertificateParams::new(["broker.example".to_owned()]).unwrap();
    wishes.distinguished_name.push(DnType::CommonName, "administrator");
    wishes.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    wishes.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    wishes.serialize_request(ik).unwrap().der().to_vec()
}

fn issuers(
    all: &[(Option<OffsetDateTime>, KeyAndCertificate)],
    root: &CertificateDer<'_>,
    now: OffsetDateTime,
) -> Issuers {
    let read = |pair: &KeyAndCertificate| Issuer::from_pem(&pair.certificate, &pair.key).unwrap();
    let all = all.iter().map(|(from, pair)| (*from, read(pair))).collect();
    Issuers::new(all, std::slice::from_ref(root), now).unwrap()
}

/// The CA's side.
pub(crate) struct Ca {
    pub(crate) scope: Scope,
    pub(crate) ticket_keys: Overlapping<TicketKey>,
    pub(crate) anchors: TrustAnchors,
    pub(crate) groups: Groups,
    pub(crate) root: CertificateDer<'static>,
    pub(crate) authority: Authority,
    /// What the issuing CAs are made of.
    pub(crate) issuing: Vec<(Option<OffsetDateTime>, KeyAndCertificate)>,
    pub(crate) issuers: Issuers,
    pub(crate) rng: CountingRng,
}

impl Ca {
    pub(crate) fn trusting(vendor: &Vendor) -> Self {
        let mut rng = CountingRng::new();
        let root = Authority::root("Test", now(), &mut rng).unwrap();
        let issuing = vec![(None, root.issuing("Test", now(), &mut rng).unwrap().to_pem())];
        let der = CertificateDer::from_pem_slice(root.to_pem().certificate.as_bytes()).unwrap();
        Self {
            scope: "plant-7".parse().unwrap(),
            ticket_keys: TicketKey::generate(&mut rng).into(),
            anchors: vendor.anchors(),
            groups: everyone(),
            issuers: issuers(&issuing, &der, now()),
            root: der,
            authority: root,
            issuing,
            rng,
        }
    }

    /// Makes another issuing CA, which is used from this time on.
    pub(crate) fn rotate(&mut self, name: &str, from: OffsetDateTime) {
        let next = self.authority.issuing(name, now(), &mut self.rng).unwrap().to_pem();
        self.issuing.push((Some(from), next));
        self.issuers = issuers(&self.issuing, &self.root, now());
    }

    /// Forgets all issuing CAs but the newest.
    pub(crate) fn forget_old_issuers(&mut self) {
        self.issuing.drain(..self.issuing.len() - 1);
        self.issuers = issuers(&self.issuing, &self.root, now());
    }

    pub(crate) fn trust(
        &self,
        device: &Device,
        enrolment: Option<&Enrolment>,
    ) -> Result<TrustedEk, Rejection> {
        TrustedEk::verify(&Evidence::parse(device.request())?.ek, &self.anchors, enrolment, now())
    }

    pub(crate) fn admit(
        &self,
        device: &Device,
        records: &Records,
    ) -> Result<Admitted<TicketFlow>, Rejection> {
        self.admit_to(device, records)
    }

    /// The same for another flow.
    pub(crate) fn admit_to<F: FlowKind>(
        &self,
        device: &Device,
        records: &Records,
    ) -> Result<Admitted<F>, Rejection> {
        let ek = self.trust(device, records.enrolment.as_ref())?;
        let admission = Admission {
            groups: &self.groups,
            flaws: &Flaws::default(),
            waits_since: None,
            ik: None,
            now: now(),
        };
        Admitted::decide(offered(), ek, records, &admission)
    }

    /// Runs everything up to the challenge.
    pub(crate) fn challenge(
        &mut self,
        device: &Device,
        records: &Records,
    ) -> Result<ChallengeReply, Rejection> {
        self.challenge_at(device, records, Instead::AtOnce, now())
    }

    pub(crate) fn challenge_at(
        &mut self,
        device: &Device,
        records: &Records,
        instead: Instead,
        at: OffsetDateTime,
    ) -> Result<ChallengeReply, Rejection> {
        let admitted = self.admit(device, records)?;
        let ik = BoundKey::verify(&device.evidence())?;
        let (scope, key) = (&self.scope, self.ticket_keys.in_use(at));
        let challenge = Challenge::new(&admitted, &ik, instead, scope, key, at, &mut self.rng);
        Ok(challenge.unwrap().into_reply())
    }

    pub(crate) fn prove(&self, request: &Proof) -> Result<ProvenDevice, Rejection> {
        ProvenDevice::verify(request, &self.scope, &self.ticket_keys, now())
    }
}

/// One group, which admits everyone.
pub(crate) fn everyone() -> Groups {
    let all = Group {
        name: "all".parse().unwrap(),
        conditions: Conditions::default(),
        answer: Answer::Admit,
        terms: Terms::default(),
    };
    Groups::new(vec![all]).unwrap()
}

pub(crate) fn enrolled() -> Enrolment {
    Enrolment::default()
}

/// What is on record about an EK that never came before.
pub(crate) fn nothing_on_record() -> Records {
    Records {
        disabled: false,
        enrolment: None,
        registration: None,
        recent_unconfirmed: 0,
        shared_key: None,
        recent_generations: 0,
        key_used_since: None,
        id_holder: None,
        other_ek: None,
    }
}

/// Any flow, in a scope that offers all flows.
pub(crate) fn offered<F: FlowKind>() -> Offered<F> {
    Profile::default().with_flows(Flow::ALL.to_vec()).unwrap().offer().unwrap()
}

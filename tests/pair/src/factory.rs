//! Keys and certificates: they take long to make, so every sequence uses the same ones.

use std::sync::{LazyLock, OnceLock};

use assay_ca_core::key::{Curve, PublicKey};
use assay_ca_core::tpm::public::{AreaKey, PublicArea};
use assay_ca_core::{Authority, Issuer, Issuers, KeyAndCertificate, Role};
use assay_store::AnchorRow;
use assay_wire::EkId;
use aws_lc_rs::agreement::{ECDH_P256, PrivateKey};
use rcgen::{
    BasicConstraints, CertificateParams, CustomExtension, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PublicKeyData,
    SubjectPublicKeyInfo,
};
use rustls::RootCertStore;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use sha2::{Digest, Sha256};
use time::{Duration, OffsetDateTime};

use crate::chance::Chance;

/// The time at which each sequence begins, by a correct clock, in seconds since 1970.
pub(crate) const BEGIN: i64 = 1_800_000_000;
/// How many devices there are.
pub(crate) const DEVICES: usize = 2;

/// Everything that is made once.
pub(crate) static FACTORY: LazyLock<Factory> = LazyLock::new(Factory::new);

pub(crate) struct Factory {
    pub(crate) eks: [StorageKey; DEVICES],
    /// The vendor certified the EK of the first device alone; the other one has to be enrolled.
    pub(crate) ek_certificates: [Vec<Vec<u8>>; DEVICES],
    pub(crate) anchor: AnchorRow,
    issuing: KeyAndCertificate,
    root: CertificateDer<'static>,
    pub(crate) roots: RootCertStore,
    iks: [OnceLock<IdentityKey>; POOL],
    parents: [[OnceLock<StorageKey>; POOL]; 2],
}

/// More keys than a sequence makes. A TPM that makes still more gets the first key again.
const POOL: usize = 64;

impl Factory {
    fn new() -> Self {
        let eks = [(); DEVICES].map(|()| StorageKey::make(include_bytes!(golden!("ek-p256"))));
        let (vendor, chain) = certify(&eks[0]);
        let (now, mut rng) = (time(BEGIN) - Duration::days(30), Chance::new(0));
        let authority = Authority::root("Pair", now, &mut rng).unwrap();
        let issuing = authority.issuing("Pair", now, &mut rng).unwrap().to_pem();
        let mut roots = RootCertStore::empty();
        let pem = authority.to_pem().certificate;
        let root = CertificateDer::from_pem_slice(pem.as_bytes()).unwrap();
        roots.add(root.clone()).unwrap();
        Self {
            eks,
            ek_certificates: [chain, Vec::new()],
            anchor: AnchorRow {
                fingerprint: Sha256::digest(&vendor).into(),
                certificate: vendor,
                subject: "CN=Vendor".into(),
                role: Role::Root,
                not_after: i64::MAX,
                added_at: BEGIN,
            },
            issuing,
            root,
            roots,
            iks: [const { OnceLock::new() }; POOL],
            parents: [const { [const { OnceLock::new() }; POOL] }; 2],
        }
    }

    pub(crate) fn issuers(&self) -> Issuers {
        let issuer = Issuer::from_pem(&self.issuing.certificate, &self.issuing.key).unwrap();
        Issuers::new(vec![(None, issuer)], std::slice::from_ref(&self.root), time(BEGIN)).unwrap()
    }

    /// The identity key that is made as number `number`.
    pub(crate) fn ik(&self, number: usize) -> &IdentityKey {
        self.iks[number % POOL].get_or_init(IdentityKey::make)
    }

    /// The import parent of a TPM that was cleared `clears` times.
    pub(crate) fn import_parent(&self, clears: usize) -> &StorageKey {
        let make = || StorageKey::make(include_bytes!(golden!("parent-p256")));
        self.parents[0][clears % POOL].get_or_init(make)
    }

    /// The plain storage root key of a TPM that was cleared `clears` times.
    pub(crate) fn plain_srk(&self, clears: usize) -> &StorageKey {
        let make = || StorageKey::make(include_bytes!(golden!("srk-p256")));
        self.parents[1][clears % POOL].get_or_init(make)
    }
}

/// A key of a TPM that others encrypt to: an EK, or a parent.
pub(crate) struct StorageKey {
    /// TPMT_PUBLIC.
    pub(crate) public: Vec<u8>,
    pub(crate) key: PublicKey,
    pub(crate) private: PrivateKey,
}

impl StorageKey {
    /// A new key on the template of a TPM2B_PUBLIC.
    fn make(template: &[u8]) -> Self {
        let private = PrivateKey::generate(&ECDH_P256).unwrap();
        let area = with_point(template, private.compute_public_key().unwrap().as_ref());
        Self { public: area.encode(), key: area.public_key().unwrap(), private }
    }

    pub(crate) fn id(&self) -> EkId {
        self.key.ek_id()
    }

    /// The coordinate that the KDF of a TPM takes.
    pub(crate) fn x(&self) -> &[u8] {
        let PublicKey::Ecc { curve: Curve::P256, x, .. } = &self.key else { unreachable!() };
        x
    }
}

/// A key of a TPM that signs.
pub(crate) struct IdentityKey {
    /// TPMT_PUBLIC.
    pub(crate) public: Vec<u8>,
    /// SHA-256 of the SubjectPublicKeyInfo.
    pub(crate) id: [u8; 32],
    pub(crate) key: KeyPair,
}

impl IdentityKey {
    fn make() -> Self {
        let key = p256();
        let public = with_point(include_bytes!(golden!("ik-p256")), key.der_bytes()).encode();
        Self { public, id: Sha256::digest(key.subject_public_key_info()).into(), key }
    }
}

/// A file of the CA's own tests. Their directory describes it.
macro_rules! golden {
    ($name:literal) => {
        concat!(env!("CARGO_MANIFEST_DIR"), "/../../ca-core/tests/golden/", $name, ".tpm2b")
    };
}
use golden;

/// The public area in `template`, with another point. `point` is uncompressed.
fn with_point(template: &[u8], point: &[u8]) -> PublicArea {
    let mut area = PublicArea::parse(&template[2..]).unwrap();
    let AreaKey::Ecc { x, y, .. } = &mut area.key else { unreachable!() };
    let (new_x, new_y) = point[1..].split_at(x.len());
    (*x, *y) = (new_x.to_vec(), new_y.to_vec());
    area
}

/// A vendor's root, and an EK's certificate chain by TCG's profile.
fn certify(ek: &StorageKey) -> (Vec<u8>, Vec<Vec<u8>>) {
    let mut params = CertificateParams::default();
    params.distinguished_name = named("Vendor Root");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let key = p256();
    let root = params.self_signed(&key).unwrap().der().to_vec();
    let issuer = rcgen::Issuer::new(params, key);

    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.not_before = time(BEGIN) - Duration::days(3650);
    params.not_after = time(BEGIN) + Duration::days(3650);
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::KeyAgreement];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::Other(vec![2, 23, 133, 8, 1])];
    params.use_authority_key_identifier_extension = true;
    params.custom_extensions = vec![tpm_alt_name()];
    let key = SubjectPublicKeyInfo::from_der(&ek.key.spki()).unwrap();
    let leaf = params.signed_by(&key, &issuer).unwrap().der().to_vec();
    (root, vec![leaf])
}

fn named(name: &str) -> DistinguishedName {
    let mut subject = DistinguishedName::new();
    subject.push(DnType::CommonName, name);
    subject
}

/// The subject alternative name of an EK certificate: a directoryName with the TPM's model.
fn tpm_alt_name() -> CustomExtension {
    let attributes =
        [(1, "id:41434D45"), (2, "Model 7"), (3, "id:00010002")].map(|(arc, value)| {
            let oid = tlv(0x06, &[0x67, 0x81, 0x05, 0x02, arc]);
            tlv(0x31, &tlv(0x30, &[oid, tlv(0x0C, value.as_bytes())].concat()))
        });
    let names = tlv(0x30, &tlv(0xA4, &tlv(0x30, &attributes.concat())));
    let mut extension = CustomExtension::from_oid_content(&[2, 5, 29, 17], names);
    extension.set_criticality(true);
    extension
}

fn tlv(tag: u8, content: &[u8]) -> Vec<u8> {
    [&[tag, u8::try_from(content.len()).unwrap()], content].concat()
}

fn p256() -> KeyPair {
    KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap()
}

pub(crate) fn time(seconds: i64) -> OffsetDateTime {
    OffsetDateTime::from_unix_timestamp(seconds).unwrap()
}

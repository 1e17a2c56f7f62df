//! The exact shapes of key that the CA accepts: TCG's templates for EKs and storage root keys, and
//! our own for identity keys and import parents.
//!
//! A template leaves nothing open except the key. The CA accepts a device's public area only if it
//! equals, byte for byte, the area rebuilt from the template and the key. So no check can forget an
//! attribute.

use std::fmt;

use super::algorithms::AlgorithmId;
use super::kdf::Hash;
use super::outer_wrapper::StorageKey;
use super::public::{AreaError, AreaKey, Name, ObjectAttributes, PublicArea, Scheme, Symmetric};
use crate::key::{Curve, PublicKey, SoundKey, WeakKey};

/// An EK whose key is sound and whose public area equals one of TCG's templates.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EkArea {
    template: &'static Template,
    key: SoundKey,
}

impl EkArea {
    /// Finds the EK template that a public area equals.
    pub fn recognise(area: &PublicArea) -> Result<Self, AreaRefused> {
        let (template, key) = recognise(area, EK_TEMPLATES)?;
        Ok(Self { template, key })
    }

    /// TCG's name of the template, e.g. `EK L-1 (RSA-2048)`.
    pub fn template(&self) -> &'static str {
        self.template.name
    }

    /// The EK itself.
    pub fn key(&self) -> &PublicKey {
        &self.key
    }

    /// The template's `nameAlg`. It is also the hash for what is encrypted to this EK.
    pub fn hash(&self) -> Hash {
        self.template.hash
    }

    /// Length of the template's AES key in bytes.
    pub fn aes_key_bytes(&self) -> usize {
        self.template.aes_key_bytes()
    }

    pub(super) fn storage_key(&self) -> StorageKey<'_> {
        StorageKey { key: &self.key, hash: self.hash(), aes_key_bytes: self.aes_key_bytes() }
    }

    /// Whether Azure's device SDKs make EKs of this template. Some leave its `unique` empty, where
    /// TCG's L-1 has 256 zero bytes. From that the TPM derives another key than the one that its
    /// vendor certified. The public area does not show the difference.
    pub(crate) fn is_for_azure_sdks(&self) -> bool {
        std::ptr::eq(self.template, &EK_TEMPLATES[0])
    }
}

/// The area by which the EK with this key is named, whichever template it is shown on: two fit an
/// RSA-2048 and a P-256 key, and the EK certificate vouches for the key only. `None` if no EK can
/// have such a key.
pub fn naming_area(key: &PublicKey) -> Option<PublicArea> {
    EK_TEMPLATES.iter().find_map(|template| template.area(key))
}

/// The area of an EK with this key on a default template: the one whose certificates TCG keeps at
/// this NV index.
pub(crate) fn area_of_certificate(index: u32, key: &PublicKey) -> Result<PublicArea, AreaRefused> {
    let template = EK_TEMPLATES.iter().find(|template| template.certificate_index == Some(index));
    let template = template.ok_or(AreaRefused::NoSuchIndex(index))?;
    template.area(key).ok_or_else(|| AreaRefused::OffTemplate {
        template: template.name,
        field: "key".to_owned(),
        expected: template.key.to_string(),
        found: key.to_string(),
    })
}

/// A sound identity key whose public area equals one of our templates, with its Name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IkArea {
    template: &'static Template,
    key: SoundKey,
    name: Name,
}

impl IkArea {
    /// Finds the IK template that a public area equals, and computes the Name that a TPM gives that
    /// area.
    pub fn recognise(area: &PublicArea) -> Result<Self, AreaRefused> {
        let (template, key) = recognise(area, IK_TEMPLATES)?;
        let name = Name::of(template.hash, &area.encode());
        Ok(Self { template, key, name })
    }

    /// Our name of the template, e.g. `IK P-256`.
    pub fn template(&self) -> &'static str {
        self.template.name
    }

    /// The IK itself.
    pub fn key(&self) -> &PublicKey {
        &self.key
    }

    /// The IK's Name.
    pub fn name(&self) -> &Name {
        &self.name
    }
}

/// The key under which a TPM keeps a shared key: sound, on template, and with its Name.
///
/// On any template it is restricted and never leaves its TPM, so only that TPM can read what is
/// wrapped for it. Whether the TPM gives the content out again depends on its [kind](Self::kind).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParentArea {
    template: &'static Template,
    key: SoundKey,
    name: Name,
}

/// What a TPM does with the content wrapped for a parent, for an attacker who controls its host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ParentKind {
    /// Our own template, the *import parent*. Its use takes a policy,
    /// TPM2_PolicyCommandCode(TPM_CC_Import) or TPM2_PolicyCommandCode(TPM_CC_Load), and no
    /// password (userWithAuth is clear). TPM2_Rewrap takes USER authorisation of the old parent
    /// (TPM 2.0 Part 3, 13.2), and so does every other command that opens an outer wrapper; so the
    /// TPM refuses it.
    ///
    /// The TPM cannot be made to use the same key in another way. All bits of a template go into a
    /// primary key (Part 3, 24.1), so another template gives another key. TPM2_Load accepts an
    /// object only with the public area with which it was made (Part 3, 12.2).
    Import,
    /// TCG's template of a storage root key. It has no password, and the key of the inner wrapper
    /// passes through the host. So an attacker who controls the host for a moment can have the TPM
    /// give out the shared key, by TPM2_Rewrap to TPM_RH_NULL.
    PlainSrk,
}

impl ParentArea {
    /// Finds the template that a public area equals, and computes the Name that a TPM gives that
    /// area.
    pub fn recognise(area: &PublicArea) -> Result<Self, AreaRefused> {
        let (template, key) = recognise(area, PARENT_TEMPLATES)?;
        let name = Name::of(template.hash, &area.encode());
        Ok(Self { template, key, name })
    }

    /// What the TPM does with the content wrapped for it.
    pub fn kind(&self) -> ParentKind {
        if self.template.auth_policy.is_empty() { ParentKind::PlainSrk } else { ParentKind::Import }
    }

    /// The template's name, e.g. `import parent P-256`.
    pub fn template(&self) -> &'static str {
        self.template.name
    }

    /// The parent itself.
    pub fn key(&self) -> &PublicKey {
        &self.key
    }

    /// The parent's Name.
    pub fn name(&self) -> &Name {
        &self.name
    }

    /// The template's `nameAlg`. It is also the hash for what is encrypted to this parent.
    pub fn hash(&self) -> Hash {
        self.template.hash
    }

    /// Length of the template's AES key in bytes.
    pub fn aes_key_bytes(&self) -> usize {
        self.template.aes_key_bytes()
    }

    pub(super) fn storage_key(&self) -> StorageKey<'_> {
        StorageKey { key: &self.key, hash: self.hash(), aes_key_bytes: self.aes_key_bytes() }
    }
}

/// Why a public area is not one of the accepted shapes.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AreaRefused {
    /// It cannot be read, or holds something that no template has.
    #[error(transparent)]
    Area(#[from] AreaError),
    /// Its key is not sound.
    #[error(transparent)]
    Weak(#[from] WeakKey),
    /// It differs from the closest template.
    #[error("its {field} is {found} where the template {template} has {expected}")]
    OffTemplate {
        /// The closest template.
        template: &'static str,
        /// The first field that differs, in the order of the structure.
        field: String,
        /// The template's value.
        expected: String,
        /// The area's value.
        found: String,
    },
    /// No template has its certificates at this index.
    #[error("no accepted template has its certificates at NV index {0:#010x}")]
    NoSuchIndex(u32),
    /// No template is for this kind of key.
    #[error("its key is {found}; accepted are {accepted}")]
    NoTemplate {
        /// The kind of the key.
        found: String,
        /// The names of the templates.
        accepted: String,
    },
}

/// A public area in which everything is given except the key.
#[derive(Debug, PartialEq, Eq)]
struct Template {
    name: &'static str,
    hash: Hash,
    attributes: ObjectAttributes,
    auth_policy: &'static [u8],
    symmetric: Option<Symmetric>,
    scheme: Option<Scheme>,
    key: KeyShape,
    /// Where a TPM keeps the certificate of such an EK (TCG EK Credential Profile 2.5, 2.2.1.4 and
    /// 2.2.1.5); `None` for other keys.
    certificate_index: Option<u32>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum KeyShape {
    Rsa { bits: u16 },
    Ecc(Curve),
}

impl fmt::Display for KeyShape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Rsa { bits } => write!(f, "RSA-{bits}"),
            Self::Ecc(curve) => write!(f, "ECC {curve}"),
        }
    }
}

impl Template {
    fn aes_key_bytes(&self) -> usize {
        let symmetric = self.symmetric.expect("every template of a storage key has one");
        usize::from(symmetric.key_bits / 8)
    }

    /// The public area that a TPM makes of this template and `key`; `None` if the key has another
    /// kind or width.
    fn area(&self, key: &PublicKey) -> Option<PublicArea> {
        let key = match (self.key, key) {
            (KeyShape::Rsa { bits }, PublicKey::Rsa { modulus, .. })
                if modulus.len() * 8 == usize::from(bits) && modulus[0] & 0x80 != 0 =>
            {
                AreaKey::Rsa { key_bits: bits, exponent: 0, modulus: modulus.clone() }
            }
            (KeyShape::Ecc(expected), PublicKey::Ecc { curve, x, y })
                if *curve == expected && [x, y].iter().all(|c| c.len() == curve.field_bytes()) =>
            {
                AreaKey::Ecc { curve: curve.tpm_id(), kdf: None, x: x.clone(), y: y.clone() }
            }
            _ => return None,
        };
        Some(PublicArea {
            name_alg: self.hash.tpm_id(),
            attributes: self.attributes,
            auth_policy: self.auth_policy.to_vec(),
            symmetric: self.symmetric,
            scheme: self.scheme,
            key,
        })
    }

    fn is_for(&self, key: &AreaKey) -> bool {
        match (self.key, key) {
            (KeyShape::Rsa { bits }, AreaKey::Rsa { key_bits, .. }) => bits == *key_bits,
            (KeyShape::Ecc(expected), AreaKey::Ecc { curve, .. }) => expected.tpm_id() == *curve,
            _ => false,
        }
    }

    /// The fields in which `area` differs from this template: field, expected, found.
    fn differences(&self, area: &PublicArea) -> Vec<(String, String, String)> {
        let mut differences = Vec::new();
        let mut compare = |field: &str, expected: String, found: String| {
            if expected != found {
                differences.push((field.to_owned(), expected, found));
            }
        };
        compare("nameAlg", self.hash.tpm_id().to_string(), area.name_alg.to_string());
        compare(
            &format!("objectAttributes ({})", self.attributes.difference_names(area.attributes)),
            self.attributes.to_string(),
            area.attributes.to_string(),
        );
        compare("authPolicy", show_policy(self.auth_policy), show_policy(&area.auth_policy));
        compare("symmetric", show(self.symmetric), show(area.symmetric));
        compare("scheme", show(self.scheme), show(area.scheme));
        match &area.key {
            AreaKey::Rsa { exponent, modulus, .. } => {
                compare("exponent", "0 (65537)".to_owned(), show_exponent(*exponent));
                if let KeyShape::Rsa { bits } = self.key {
                    compare(
                        "unique",
                        format!("a number of {bits} bits"),
                        format!("a number of {} bits", bits_of(modulus)),
                    );
                }
            }
            AreaKey::Ecc { kdf, x, y, .. } => {
                compare("kdf", show(None::<Scheme>), show(*kdf));
                if let KeyShape::Ecc(curve) = self.key {
                    let width = curve.field_bytes();
                    compare("unique", show_widths(width, width), show_widths(x.len(), y.len()));
                }
            }
        }
        differences
    }
}

/// Checks that the key is sound, then finds the template among `templates` that `area` equals.
fn recognise(
    area: &PublicArea,
    templates: &'static [Template],
) -> Result<(&'static Template, SoundKey), AreaRefused> {
    let key = SoundKey::new(area.public_key()?)?;
    let candidates = || templates.iter().filter(|template| template.is_for(&area.key));
    let encoded = area.encode();
    if let Some(equal) =
        candidates().find(|t| t.area(&key).is_some_and(|rebuilt| rebuilt.encode() == encoded))
    {
        return Ok((equal, key));
    }
    let closest = candidates().map(|template| (template, template.differences(area)));
    match closest.min_by_key(|(_, differences)| differences.len()) {
        Some((template, differences)) => {
            let (field, expected, found) =
                differences.into_iter().next().expect("areas that differ, differ in a field");
            Err(AreaRefused::OffTemplate { template: template.name, field, expected, found })
        }
        None => Err(AreaRefused::NoTemplate {
            found: key.to_string(),
            accepted: templates.iter().map(|template| template.name).collect::<Vec<_>>().join(", "),
        }),
    }
}

fn show(value: Option<impl ToString>) -> String {
    value.map_or_else(|| AlgorithmId::NULL.to_string(), |value| value.to_string())
}

fn show_policy(policy: &[u8]) -> String {
    if policy.is_empty() { "empty".to_owned() } else { crate::hex(policy) }
}

fn show_exponent(exponent: u32) -> String {
    if exponent == 0 { "0 (65537)".to_owned() } else { exponent.to_string() }
}

fn show_widths(x: usize, y: usize) -> String {
    format!("a point with coordinates of {x} and {y} bytes")
}

fn bits_of(modulus: &[u8]) -> String {
    match modulus.first() {
        Some(first) if first & 0x80 != 0 => (modulus.len() * 8).to_string(),
        _ => format!("fewer than {}", modulus.len() * 8),
    }
}

const fn aes_cfb(key_bits: u16) -> Option<Symmetric> {
    Some(Symmetric { algorithm: AlgorithmId::AES, key_bits, mode: AlgorithmId::CFB })
}

const fn ecdsa(hash: Hash) -> Option<Scheme> {
    Some(Scheme { algorithm: AlgorithmId::ECDSA, hash: Some(hash.tpm_id()) })
}

/// TCG EK Credential Profile 2.5, B.3.2: EKs that are used by their policy.
const EK_LOW_RANGE: ObjectAttributes = ObjectAttributes::FIXED_TPM
    .union(ObjectAttributes::FIXED_PARENT)
    .union(ObjectAttributes::SENSITIVE_DATA_ORIGIN)
    .union(ObjectAttributes::ADMIN_WITH_POLICY)
    .union(ObjectAttributes::RESTRICTED)
    .union(ObjectAttributes::DECRYPT);
/// TCG EK Credential Profile 2.5, B.4.2: EKs that are used by their auth value or their policy.
const EK_HIGH_RANGE: ObjectAttributes = EK_LOW_RANGE.union(ObjectAttributes::USER_WITH_AUTH);

/// PolicyA for SHA-256 (TCG EK Credential Profile 2.5, B.6.2):
/// TPM2_PolicySecret(TPM_RH_ENDORSEMENT).
const POLICY_A_SHA256: &[u8] = &[
    0x83, 0x71, 0x97, 0x67, 0x44, 0x84, 0xB3, 0xF8, 0x1A, 0x90, 0xCC, 0x8D, 0x46, 0xA5, 0xD7, 0x24,
    0xFD, 0x52, 0xD7, 0x6E, 0x06, 0x52, 0x0B, 0x64, 0xF2, 0xA1, 0xDA, 0x1B, 0x33, 0x14, 0x69, 0xAA,
];
/// PolicyB for SHA-256 (TCG EK Credential Profile 2.5, B.6.4): PolicyA or an authorised policy in
/// NV.
const POLICY_B_SHA256: &[u8] = &[
    0xCA, 0x3D, 0x0A, 0x99, 0xA2, 0xB9, 0x39, 0x06, 0xF7, 0xA3, 0x34, 0x24, 0x14, 0xEF, 0xCF, 0xB3,
    0xA3, 0x85, 0xD4, 0x4C, 0xD1, 0xFD, 0x45, 0x90, 0x89, 0xD1, 0x9B, 0x50, 0x71, 0xC0, 0xB7, 0xA0,
];
/// PolicyB for SHA-384 (TCG EK Credential Profile 2.5, B.6.4).
const POLICY_B_SHA384: &[u8] = &[
    0xB2, 0x6E, 0x7D, 0x28, 0xD1, 0x1A, 0x50, 0xBC, 0x53, 0xD8, 0x82, 0xBC, 0xF5, 0xFD, 0x3A, 0x1A,
    0x07, 0x41, 0x48, 0xBB, 0x35, 0xD3, 0xB4, 0xE4, 0xCB, 0x1C, 0x0A, 0xD9, 0xBD, 0xE4, 0x19, 0xCA,
    0xCB, 0x47, 0xBA, 0x09, 0x69, 0x96, 0x46, 0x15, 0x0F, 0x9F, 0xC0, 0x00, 0xF3, 0xF8, 0x0E, 0x12,
];

/// TCG EK Credential Profile 2.5, B.3.3, B.3.4, B.4.4 to B.4.6 and B.4.9. Where two templates fit
/// one key, that of the low range comes first.
static EK_TEMPLATES: &[Template] = &[
    Template {
        name: "EK L-1 (RSA-2048)",
        hash: Hash::Sha256,
        attributes: EK_LOW_RANGE,
        auth_policy: POLICY_A_SHA256,
        symmetric: aes_cfb(128),
        scheme: None,
        key: KeyShape::Rsa { bits: 2048 },
        certificate_index: Some(0x01C0_0002),
    },
    Template {
        name: "EK L-2 (P-256)",
        hash: Hash::Sha256,
        attributes: EK_LOW_RANGE,
        auth_policy: POLICY_A_SHA256,
        symmetric: aes_cfb(128),
        scheme: None,
        key: KeyShape::Ecc(Curve::P256),
        certificate_index: Some(0x01C0_000A),
    },
    Template {
        name: "EK H-1 (RSA-2048)",
        hash: Hash::Sha256,
        attributes: EK_HIGH_RANGE,
        auth_policy: POLICY_B_SHA256,
        symmetric: aes_cfb(128),
        scheme: None,
        key: KeyShape::Rsa { bits: 2048 },
        certificate_index: Some(0x01C0_0012),
    },
    Template {
        name: "EK H-2 (P-256)",
        hash: Hash::Sha256,
        attributes: EK_HIGH_RANGE,
        auth_policy: POLICY_B_SHA256,
        symmetric: aes_cfb(128),
        scheme: None,
        key: KeyShape::Ecc(Curve::P256),
        certificate_index: Some(0x01C0_0014),
    },
    Template {
        name: "EK H-3 (P-384)",
        hash: Hash::Sha384,
        attributes: EK_HIGH_RANGE,
        auth_policy: POLICY_B_SHA384,
        symmetric: aes_cfb(256),
        scheme: None,
        key: KeyShape::Ecc(Curve::P384),
        certificate_index: Some(0x01C0_0016),
    },
    Template {
        name: "EK H-6 (RSA-3072)",
        hash: Hash::Sha384,
        attributes: EK_HIGH_RANGE,
        auth_policy: POLICY_B_SHA384,
        symmetric: aes_cfb(256),
        scheme: None,
        key: KeyShape::Rsa { bits: 3072 },
        certificate_index: Some(0x01C0_001C),
    },
];

/// A key that was made in this TPM, never leaves it, and only signs.
///
/// It is unrestricted because TLS and CSRs sign digests that were made outside the TPM.
const IK_ATTRIBUTES: ObjectAttributes = ObjectAttributes::FIXED_TPM
    .union(ObjectAttributes::FIXED_PARENT)
    .union(ObjectAttributes::SENSITIVE_DATA_ORIGIN)
    .union(ObjectAttributes::USER_WITH_AUTH)
    .union(ObjectAttributes::NO_DA)
    .union(ObjectAttributes::SIGN);

static IK_TEMPLATES: &[Template] = &[
    Template {
        name: "IK P-256",
        hash: Hash::Sha256,
        attributes: IK_ATTRIBUTES,
        auth_policy: &[],
        symmetric: None,
        scheme: ecdsa(Hash::Sha256),
        key: KeyShape::Ecc(Curve::P256),
        certificate_index: None,
    },
    Template {
        name: "IK P-384",
        hash: Hash::Sha256,
        attributes: IK_ATTRIBUTES,
        auth_policy: &[],
        symmetric: None,
        scheme: ecdsa(Hash::Sha384),
        key: KeyShape::Ecc(Curve::P384),
        certificate_index: None,
    },
    // Without a scheme, because the CSR takes RSASSA and TLS 1.3 takes RSAPSS.
    Template {
        name: "IK RSA-2048",
        hash: Hash::Sha256,
        attributes: IK_ATTRIBUTES,
        auth_policy: &[],
        symmetric: None,
        scheme: None,
        key: KeyShape::Rsa { bits: 2048 },
        certificate_index: None,
    },
];

/// A storage key that was made in this TPM and never leaves it. It is used by its policy, and by no
/// password.
const IMPORT_PARENT_ATTRIBUTES: ObjectAttributes = ObjectAttributes::FIXED_TPM
    .union(ObjectAttributes::FIXED_PARENT)
    .union(ObjectAttributes::SENSITIVE_DATA_ORIGIN)
    .union(ObjectAttributes::NO_DA)
    .union(ObjectAttributes::RESTRICTED)
    .union(ObjectAttributes::DECRYPT);
/// TCG TPM v2.0 Provisioning Guidance 1.0, 7.5.1: the same, but anybody can use it.
const SRK_ATTRIBUTES: ObjectAttributes =
    IMPORT_PARENT_ATTRIBUTES.union(ObjectAttributes::USER_WITH_AUTH);

/// TPM2_PolicyOR of TPM2_PolicyCommandCode(TPM_CC_Import) and TPM2_PolicyCommandCode(TPM_CC_Load),
/// in this order, for SHA-256.
const POLICY_IMPORT_OR_LOAD: &[u8] = &[
    0x1E, 0x76, 0x26, 0xA5, 0xD4, 0xB6, 0x85, 0xCB, 0xB0, 0x49, 0x36, 0xA0, 0xFD, 0xCC, 0x77, 0xB8,
    0xA3, 0xCA, 0x3C, 0x37, 0xF4, 0x2A, 0xD4, 0x04, 0x82, 0xBC, 0xF2, 0x75, 0x34, 0xDD, 0x88, 0x7F,
];

const fn parent_template(name: &'static str, kind: ParentKind, key: KeyShape) -> Template {
    let (attributes, auth_policy): (_, &[u8]) = match kind {
        ParentKind::Import => (IMPORT_PARENT_ATTRIBUTES, POLICY_IMPORT_OR_LOAD),
        ParentKind::PlainSrk => (SRK_ATTRIBUTES, &[]),
    };
    Template {
        name,
        hash: Hash::Sha256,
        attributes,
        auth_policy,
        symmetric: aes_cfb(128),
        scheme: None,
        key,
        certificate_index: None,
    }
}

/// Where two templates fit one key, that of the import parent comes first, so that a refusal
/// compares with what a device should make.
static PARENT_TEMPLATES: &[Template] = &[
    parent_template("import parent RSA-2048", ParentKind::Import, KeyShape::Rsa { bits: 2048 }),
    parent_template("import parent P-256", ParentKind::Import, KeyShape::Ecc(Curve::P256)),
    parent_template("SRK RSA-2048", ParentKind::PlainSrk, KeyShape::Rsa { bits: 2048 }),
    parent_template("SRK P-256", ParentKind::PlainSrk, KeyShape::Ecc(Curve::P256)),
];

#[cfg(test)]
mod tests {
    use super::super::public::put_sized;
    use super::*;

    /// TCG EK Credential Profile 2.5, B.6: a policy is the digest of its commands, so the test
    /// finds a wrong byte.
    #[test]
    fn ek_policies_are_the_digests_of_their_commands() {
        const TPM_CC_POLICY_SECRET: [u8; 4] = [0, 0, 0x01, 0x51];
        const TPM_CC_POLICY_OR: [u8; 4] = [0, 0, 0x01, 0x71];
        const TPM_CC_POLICY_AUTHORIZE_NV: [u8; 4] = [0, 0, 0x01, 0x92];
        const TPM_RH_ENDORSEMENT: [u8; 4] = [0x40, 0, 0, 0x0B];
        let policies = |hash: Hash, index: [u8; 4]| {
            let zero = vec![0; hash.digest_bytes()];
            let policy_a =
                hash.digest(&[&hash.digest(&[&zero, &TPM_CC_POLICY_SECRET, &TPM_RH_ENDORSEMENT])]);
            // TPMS_NV_PUBLIC of the index that holds an authorised policy (B.6.3). Its data is a
            // digest and the digest's algorithm.
            let mut nv_public =
                [&index[..], &hash.tpm_id().0.to_be_bytes(), &[0x22, 0x0F, 0x10, 0x08]].concat();
            put_sized(&mut nv_public, &policy_a);
            nv_public.extend(u16::try_from(hash.digest_bytes() + 2).unwrap().to_be_bytes());
            let nv_name = Name::of(hash, &nv_public);
            let policy_c = hash.digest(&[&zero, &TPM_CC_POLICY_AUTHORIZE_NV, nv_name.as_ref()]);
            let policy_b = hash.digest(&[&zero, &TPM_CC_POLICY_OR, &policy_a, &policy_c]);
            (policy_a, policy_b)
        };
        let (a, b) = policies(Hash::Sha256, [0x01, 0xC0, 0x7F, 0x01]);
        assert_eq!(a, POLICY_A_SHA256);
        assert_eq!(b, POLICY_B_SHA256);
        let (_, b) = policies(Hash::Sha384, [0x01, 0xC0, 0x7F, 0x02]);
        assert_eq!(b, POLICY_B_SHA384);
    }

    /// TPM 2.0 Part 3, 23.6 and 23.11. The golden values test that a TPM computes the same.
    #[test]
    fn import_parents_policy_is_the_digest_of_its_commands() {
        const TPM_CC_POLICY_COMMAND_CODE: [u8; 4] = [0, 0, 0x01, 0x6C];
        const TPM_CC_POLICY_OR: [u8; 4] = [0, 0, 0x01, 0x71];
        let branch =
            |code: [u8; 4]| Hash::Sha256.digest(&[&[0; 32], &TPM_CC_POLICY_COMMAND_CODE, &code]);
        let (import, load) = (branch([0, 0, 0x01, 0x56]), branch([0, 0, 0x01, 0x57]));
        assert_eq!(
            Hash::Sha256.digest(&[&[0; 32], &TPM_CC_POLICY_OR, &import, &load]),
            POLICY_IMPORT_OR_LOAD
        );
    }

    #[test]
    fn template_attributes_are_those_of_the_specification() {
        assert_eq!(EK_LOW_RANGE.0, 0x0003_00B2);
        assert_eq!(EK_HIGH_RANGE.0, 0x0003_00F2);
        assert_eq!(IK_ATTRIBUTES.0, 0x0004_0472);
        assert_eq!(SRK_ATTRIBUTES.0, 0x0003_0472);
        assert_eq!(IMPORT_PARENT_ATTRIBUTES.0, 0x0003_0432);
    }
}

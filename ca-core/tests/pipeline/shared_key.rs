//! What the shared key flow gives to whom, and the storage root keys that it refuses.

use assay_ca_core::key::PublicKey;
use assay_ca_core::tpm::credential::Credential;
use assay_ca_core::tpm::duplicate::HmacObject;
use assay_ca_core::tpm::kdf::Hash;
use assay_ca_core::tpm::public::{AlgorithmId, AreaKey, CurveId, ObjectAttributes, PublicArea, Scheme};
use assay_ca_core::tpm::template::SrkArea;
use assay_ca_core::{MasterSecret, Records, Rejection, SrkEvidence};
use assay_wire::{ActivationReply, ProblemCode, SrkBundle};

use crate::fixture::*;

/// The storage root key in a request, checked.
fn read_srk(area: &[u8]) -> Result<SrkArea, Rejection> {
    let evidence = SrkEvidence::parse(SrkBundle {
        device_id: None,
        ek_public: golden_area("ek-p256").encode().try_into().unwrap(),
        ek_certificates: Default::default(),
        srk_public: area.try_into().unwrap(),
        other_eks: None,
    })?;
    evidence.storage_root_key()
}

fn master() -> MasterSecret {
    MasterSecret::new([9; MasterSecret::LEN])
}

/// An activation of generation 1 for a device of a trusted vendor.
fn activate(device: &Device, vendor: &Vendor, srk: &SoftwareSrk) -> ActivationReply {
    let mut ca = Ca::trusting(vendor);
    let admitted = ca.admit(device, &Records::default()).unwrap();
    admitted.activation(&srk.recognised(), &ca.scope, &master(), 1, &mut ca.rng).unwrap()
}

fn open_credential(device: &Device, srk: &SoftwareSrk, reply: &ActivationReply) -> Option<Vec<u8>> {
    let credential =
        Credential { id_object: reply.credential_blob.to_vec(), encrypted_seed: reply.encrypted_seed.to_vec() };
    device.ek.activate(srk.recognised().name(), &credential)
}

fn import(srk: &SoftwareSrk, inner_key: &[u8], reply: &ActivationReply) -> Option<Sensitive> {
    srk.import(inner_key, &reply.key_public, &reply.duplicate, &reply.symmetric_seed)
}

mod activation {
    use super::*;

    #[test]
    fn every_kind_of_ek_and_srk_opens_to_the_key_the_ca_derives() {
        let vendor = Vendor::new("Acme");
        let ca = Ca::trusting(&vendor);
        for srk in [SoftwareSrk::fresh_rsa2048(), SoftwareSrk::fresh_p256()] {
            for kind in ["rsa2048", "rsa3072", "p256", "p384"] {
                let device = Device::with_ek(&vendor, SoftwareEk::golden(kind));
                let reply = activate(&device, &vendor, &srk);
                assert_eq!(reply.device_id, device.evidence().ek.derived_device_id());

                let inner_key = open_credential(&device, &srk, &reply).unwrap();
                let [auth, seed_value, key] = import(&srk, &inner_key, &reply).unwrap();
                let derived = master().key(&ca.scope, &reply.device_id, &device.ek.key().ek_id(), 1);
                assert_eq!(Hash::Sha256.hmac(&key, &[b"message"]), derived.hmac(b"message"), "{kind}");
                assert!(auth.is_empty());
                assert_ne!(seed_value, key);
                let unique = Hash::Sha256.digest(&[&seed_value, &key]);
                assert!(reply.key_public.ends_with(&unique), "the public area is that of the key");
            }
        }
    }

    /// Lengths of what Azure's Device Provisioning Service sent to real devices.
    #[test]
    fn blobs_have_the_lengths_of_those_of_azures_provisioning_service() {
        let vendor = Vendor::new("Acme");
        let device = Device::with_ek(&vendor, SoftwareEk::golden("rsa2048"));
        let srk = SoftwareSrk::fresh_rsa2048();
        let reply = activate(&device, &vendor, &srk);
        assert_eq!(reply.credential_blob.len(), 2 + 32 + 18);
        assert_eq!(reply.encrypted_seed.len(), 256);
        assert_eq!(reply.duplicate.len(), 142);
        assert_eq!(reply.symmetric_seed.len(), 256);
        assert_eq!(reply.key_public.len(), 48);
        assert_eq!(open_credential(&device, &srk, &reply).unwrap().len(), 16);
    }

    /// KEYEDHASH, SHA-256, userWithAuth|noDA|sign, no policy, HMAC with SHA-256.
    #[test]
    fn key_is_an_hmac_key_that_was_made_outside_of_the_tpm() {
        let object = HmacObject::new(&[1; 32], &[2; 32]);
        let unique = Hash::Sha256.digest(&[&[2; 32], &[1; 32]]);
        let head = [0, 8, 0, 0x0B, 0, 4, 4, 0x40, 0, 0, 0, 5, 0, 0x0B, 0, 32];
        assert_eq!(object.public(), [&head[..], &unique].concat());
    }

    #[test]
    fn credential_opens_for_its_srk_in_its_tpm_only() {
        let vendor = Vendor::new("Acme");
        let (device, srk) = (Device::of(&vendor), SoftwareSrk::fresh_p256());
        let reply = activate(&device, &vendor, &srk);
        assert!(open_credential(&device, &srk, &reply).is_some());
        assert!(open_credential(&device, &SoftwareSrk::fresh_p256(), &reply).is_none());
        assert!(open_credential(&Device::of(&vendor), &srk, &reply).is_none());
    }

    /// Neither half is enough: the SRK without the EK lacks the inner key, the EK without the SRK lacks the seed.
    #[test]
    fn duplicate_opens_with_the_inner_key_and_the_srk_only() {
        let vendor = Vendor::new("Acme");
        let (device, srk) = (Device::of(&vendor), SoftwareSrk::fresh_p256());
        let reply = activate(&device, &vendor, &srk);
        let inner_key = open_credential(&device, &srk, &reply).unwrap();
        assert!(import(&srk, &inner_key, &reply).is_some());
        assert!(import(&srk, &[0; 16], &reply).is_none());
        assert!(import(&SoftwareSrk::fresh_p256(), &inner_key, &reply).is_none());
    }

    #[test]
    fn duplicate_altered_in_any_byte_is_refused() {
        let vendor = Vendor::new("Acme");
        let (device, srk) = (Device::of(&vendor), SoftwareSrk::fresh_p256());
        let reply = activate(&device, &vendor, &srk);
        let inner_key = open_credential(&device, &srk, &reply).unwrap();
        for byte in 0..reply.duplicate.len() {
            let mut altered = reply.duplicate.to_vec();
            altered[byte] ^= 1;
            let altered = ActivationReply { duplicate: altered.try_into().unwrap(), ..reply.clone() };
            assert!(import(&srk, &inner_key, &altered).is_none(), "byte {byte}");
        }
        for byte in 0..reply.key_public.len() {
            let mut altered = reply.key_public.to_vec();
            altered[byte] ^= 1;
            let altered = ActivationReply { key_public: altered.try_into().unwrap(), ..reply.clone() };
            assert!(import(&srk, &inner_key, &altered).is_none(), "byte {byte} of the public area");
        }
    }

    #[test]
    fn same_generation_is_the_same_key_in_new_wrappers() {
        let vendor = Vendor::new("Acme");
        let mut ca = Ca::trusting(&vendor);
        let (device, srk) = (Device::of(&vendor), SoftwareSrk::fresh_p256());
        let admitted = ca.admit(&device, &Records::default()).unwrap();
        let mut activation =
            |generation| admitted.activation(&srk.recognised(), &ca.scope, &master(), generation, &mut ca.rng).unwrap();
        let (first, again, next) = (activation(1), activation(1), activation(2));
        assert_eq!(first.key_public, again.key_public);
        assert_ne!(first.key_public, next.key_public);
        assert_ne!(first.symmetric_seed, again.symmetric_seed);
        assert_ne!(first.encrypted_seed, again.encrypted_seed);
        let inner_keys = [first, again].map(|reply| open_credential(&device, &srk, &reply).unwrap());
        assert_ne!(inner_keys[0], inner_keys[1]);
    }
}

mod derivation {
    use assay_wire::EkId;

    use super::*;

    #[test]
    fn keys_differ_by_secret_scope_device_ek_and_generation() {
        let key = |secret: u8, scope: &str, device_id: &str, ek: u8, generation: u32| {
            let master = MasterSecret::new([secret; MasterSecret::LEN]);
            let (scope, device_id) = (scope.parse().unwrap(), device_id.parse().unwrap());
            master.key(&scope, &device_id, &EkId::from([ek; 32]), generation).hmac(b"")
        };
        let mut keys = [
            key(1, "plant-7", "pump-1", 1, 1),
            key(2, "plant-7", "pump-1", 1, 1),
            key(1, "plant-8", "pump-1", 1, 1),
            key(1, "plant-7", "pump-2", 1, 1),
            key(1, "plant-7", "pump-1", 2, 1),
            key(1, "plant-7", "pump-1", 1, 2),
            // Nor do bytes move from one input to the next.
            key(1, "plant-7p", "ump-1", 1, 1),
        ];
        assert_eq!(keys[0], key(1, "plant-7", "pump-1", 1, 1));
        keys.sort();
        assert!(keys.windows(2).all(|pair| pair[0] != pair[1]));
    }

    #[test]
    fn secrets_are_made_anew_and_never_printed() {
        let mut rng = CountingRng::new();
        let (one, other) = (MasterSecret::generate(&mut rng), MasterSecret::generate(&mut rng));
        assert_ne!(one.secret(), other.secret());
        assert_eq!(MasterSecret::new(*one.secret()).secret(), one.secret());
        let key = one.key(&"plant-7".parse().unwrap(), &"pump-1".parse().unwrap(), &EkId::from([7; 32]), 1);
        assert_eq!(format!("{one:?} {key:?}"), "MasterSecret(..) SharedKey(..)");
    }
}

mod srk_template {
    use super::*;

    const KINDS: [&str; 2] = ["rsa2048", "p256"];

    fn code(area: &PublicArea) -> ProblemCode {
        read_srk(&area.encode()).unwrap_err().problem().code
    }

    fn srk(kind: &str) -> PublicArea {
        golden_area(&format!("srk-{kind}"))
    }

    #[test]
    fn srk_on_template_is_read() {
        for kind in KINDS {
            assert_eq!(read_srk(&srk(kind).encode()), Ok(SrkArea::recognise(&srk(kind)).unwrap()));
        }
    }

    #[test]
    fn srk_off_template_in_any_attribute_is_refused() {
        for kind in KINDS {
            for bit in 0..32 {
                let mut area = srk(kind);
                area.attributes.0 ^= 1 << bit;
                assert_eq!(code(&area), ProblemCode::SrkOffTemplate, "{kind}, bit {bit}");
            }
        }
    }

    /// One that is not restricted decrypts what it is given; one with sign instead is an identity key.
    #[test]
    fn other_objects_of_the_tpm_are_refused() {
        for other in ["ek-rsa2048", "ek-rsa3072", "ek-p256", "ek-p384", "ik-rsa2048", "ik-p256", "ik-p384"] {
            assert_eq!(code(&golden_area(other)), ProblemCode::SrkOffTemplate, "{other}");
        }
    }

    #[test]
    fn srk_area_changed_in_any_bit_is_refused() {
        for kind in KINDS {
            let golden = srk(kind);
            let unique = match &golden.key {
                AreaKey::Rsa { modulus, .. } => modulus.len(),
                AreaKey::Ecc { x, y, .. } => x.len() + 2 + y.len(),
            };
            let encoded = golden.encode();
            for bit in 0..8 * (encoded.len() - unique) {
                let mut changed = encoded.clone();
                changed[bit / 8] ^= 1 << (bit % 8);
                let refusal = read_srk(&changed).unwrap_err().code();
                let expected = [ProblemCode::SrkOffTemplate, ProblemCode::SrkWeak, ProblemCode::Malformed];
                assert!(expected.contains(&refusal), "{kind}, bit {bit}: {refusal}");
            }
        }
    }

    #[test]
    fn srk_with_a_policy_or_another_hash_symmetric_or_scheme_is_refused() {
        for kind in KINDS {
            let golden = srk(kind);
            let changed = |change: fn(&mut PublicArea)| {
                let mut area = golden.clone();
                change(&mut area);
                assert_ne!(area, golden);
                code(&area)
            };
            let changes: [fn(&mut PublicArea); 6] = [
                |area| area.auth_policy = vec![0; 32],
                |area| area.name_alg = AlgorithmId::SHA384,
                |area| area.symmetric = None,
                |area| area.symmetric.as_mut().unwrap().key_bits = 256,
                |area| area.symmetric.as_mut().unwrap().mode = AlgorithmId(0x0042),
                |area| {
                    let algorithm = match area.key {
                        AreaKey::Rsa { .. } => AlgorithmId::OAEP,
                        AreaKey::Ecc { .. } => AlgorithmId::ECDH,
                    };
                    area.scheme = Some(Scheme { algorithm, hash: Some(AlgorithmId::SHA256) });
                },
            ];
            for change in changes {
                assert_eq!(changed(change), ProblemCode::SrkOffTemplate, "{kind}");
            }
        }
    }

    #[test]
    fn srk_that_spells_out_the_default_exponent_is_refused() {
        let mut area = srk("rsa2048");
        let AreaKey::Rsa { exponent, .. } = &mut area.key else { unreachable!() };
        *exponent = 65537;
        assert_eq!(code(&area), ProblemCode::SrkOffTemplate);
    }

    #[test]
    fn srk_of_another_size_or_curve_is_refused() {
        let PublicKey::Rsa { modulus, .. } = golden_area("ek-rsa3072").public_key().unwrap() else { unreachable!() };
        let mut longer = with_modulus(srk("rsa2048"), &modulus);
        assert_eq!(code(&longer), ProblemCode::SrkOffTemplate);
        let AreaKey::Rsa { key_bits, .. } = &mut longer.key else { unreachable!() };
        *key_bits = 3072;
        assert_eq!(code(&longer), ProblemCode::SrkOffTemplate);

        let (x, y) = match golden_area("ek-p384").key {
            AreaKey::Ecc { x, y, .. } => (x, y),
            AreaKey::Rsa { .. } => unreachable!(),
        };
        let key = AreaKey::Ecc { curve: CurveId::NIST_P384, kdf: None, x, y };
        assert_eq!(code(&PublicArea { key, ..srk("p256") }), ProblemCode::SrkOffTemplate);
    }

    #[test]
    fn srk_that_is_weak_is_refused() {
        let roca = data_encoding::HEXLOWER.decode(golden("roca-rsa2048.hex").trim_ascii()).unwrap();
        assert_eq!(code(&with_modulus(srk("rsa2048"), &roca)), ProblemCode::SrkWeak);
        let mut area = srk("rsa2048");
        let AreaKey::Rsa { exponent, .. } = &mut area.key else { unreachable!() };
        *exponent = 3;
        assert_eq!(code(&area), ProblemCode::SrkWeak);
        assert_eq!(code(&with_point(srk("p256"), &[4; 65])), ProblemCode::SrkWeak);
    }

    #[test]
    fn srk_area_that_cannot_be_read_is_malformed() {
        let area = srk("rsa2048").encode();
        for bytes in [&b"public area"[..], &area[..100], &[&area[..], &[0]].concat()] {
            let refusal = read_srk(bytes).unwrap_err();
            assert!(matches!(refusal, Rejection::AreaUnreadable { object: "SRK", .. }), "{refusal}");
            assert_eq!(refusal.code(), ProblemCode::Malformed);
        }
    }

    #[test]
    fn refusal_names_the_attribute_and_both_values() {
        let mut area = srk("p256");
        area.attributes.0 ^= ObjectAttributes::RESTRICTED.0;
        let refusal = read_srk(&area.encode()).unwrap_err().to_string();
        for part in ["storage root key", "objectAttributes (restricted)", "0x00020472", "0x00030472", "SRK P-256"] {
            assert!(refusal.contains(part), "{refusal}");
        }
    }
}

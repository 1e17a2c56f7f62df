//! What the shared key flow sends, who can open it, and which parents it refuses.

use assay_ca_core::key::PublicKey;
use assay_ca_core::tpm::algorithms::{AlgorithmId, CurveId};
use assay_ca_core::tpm::credential::Credential;
use assay_ca_core::tpm::duplicate::HmacObject;
use assay_ca_core::tpm::kdf::Hash;
use assay_ca_core::tpm::public::{AreaKey, ObjectAttributes, PublicArea, Scheme};
use assay_ca_core::tpm::template::{ParentArea, ParentKind};
use assay_ca_core::{
    AdmittedParent, Enrolment, KeyOffer, MasterSecret, ParentEvidence, Profile, Records, Rejection,
    Reprovision, SharedKeyFlow, SharedKeyOnRecord,
};
use assay_wire::{ActivationReply, ParentBundle, ProblemCode};

use crate::fixture::*;

/// Checks the parent in a request.
fn read_parent(area: &[u8]) -> Result<ParentArea, Rejection> {
    let evidence = ParentEvidence::parse(ParentBundle {
        device_id: None,
        ek_public: golden_area("ek-p256").encode().try_into().unwrap(),
        ek_certificates: Default::default(),
        parent_public: area.try_into().unwrap(),
        other_eks: None,
    })?;
    evidence.parent()
}

fn master() -> MasterSecret {
    MasterSecret::new([9; MasterSecret::LEN])
}

/// An activation of generation 1 for a device of a trusted vendor.
fn activate(device: &Device, vendor: &Vendor, parent: &SoftwareParent) -> ActivationReply {
    let mut ca = Ca::trusting(vendor);
    offer(&ca, device, parent, None).activation(&ca.scope, &master(), &mut ca.rng).unwrap()
}

/// The offer to a device that has this key on record.
fn offer(
    ca: &Ca,
    device: &Device,
    parent: &SoftwareParent,
    shared_key: Option<SharedKeyOnRecord>,
) -> KeyOffer {
    let records = Records { shared_key, ..nothing_on_record() };
    let admitted = ca.admit_to::<SharedKeyFlow>(device, &records).unwrap();
    let parent = parent.admitted(&admitted);
    KeyOffer::decide(admitted, parent, &records, &Profile::default(), now()).unwrap()
}

fn open_credential(
    device: &Device,
    parent: &SoftwareParent,
    reply: &ActivationReply,
) -> Option<Vec<u8>> {
    let credential = Credential {
        id_object: reply.credential_blob.to_vec(),
        encrypted_seed: reply.encrypted_seed.to_vec(),
    };
    device.ek.activate(parent.recognised().name(), &credential)
}

fn import(parent: &SoftwareParent, inner_key: &[u8], reply: &ActivationReply) -> Option<Sensitive> {
    parent.import(inner_key, &reply.key_public, &reply.duplicate, &reply.symmetric_seed)
}

mod activation {
    use super::*;

    #[test]
    fn every_kind_of_ek_and_parent_opens_to_the_key_the_ca_derives() {
        let vendor = Vendor::new("Acme");
        let ca = Ca::trusting(&vendor);
        let parents = || [SoftwareParent::fresh_rsa2048(), SoftwareParent::fresh_p256()];
        for parent in parents().into_iter().chain(parents().map(SoftwareParent::into_plain_srk)) {
            for kind in ["rsa2048", "rsa3072", "p256", "p384"] {
                let device = Device::with_ek(&vendor, SoftwareEk::golden(kind));
                let reply = activate(&device, &vendor, &parent);
                assert_eq!(reply.device_id, device.evidence().ek.derived_device_id());

                let inner_key = open_credential(&device, &parent, &reply).unwrap();
                let [auth, seed_value, key] = import(&parent, &inner_key, &reply).unwrap();
                let derived =
                    master().key(&ca.scope, &reply.device_id, &device.ek.key().ek_id(), 1);
                assert_eq!(
                    Hash::Sha256.hmac(&key, &[b"message"]),
                    derived.hmac(b"message"),
                    "{kind}"
                );
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
        let parent = SoftwareParent::fresh_rsa2048();
        let reply = activate(&device, &vendor, &parent);
        assert_eq!(reply.credential_blob.len(), 2 + 32 + 18);
        assert_eq!(reply.encrypted_seed.len(), 256);
        assert_eq!(reply.duplicate.len(), 142);
        assert_eq!(reply.symmetric_seed.len(), 256);
        assert_eq!(reply.key_public.len(), 48);
        assert_eq!(open_credential(&device, &parent, &reply).unwrap().len(), 16);
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
    fn credential_opens_for_its_parent_in_its_tpm_only() {
        let vendor = Vendor::new("Acme");
        let (device, parent) = (Device::of(&vendor), SoftwareParent::fresh_p256());
        let reply = activate(&device, &vendor, &parent);
        assert!(open_credential(&device, &parent, &reply).is_some());
        assert!(open_credential(&device, &SoftwareParent::fresh_p256(), &reply).is_none());
        assert!(open_credential(&Device::of(&vendor), &parent, &reply).is_none());
    }

    /// The parent without the EK lacks the inner key. The EK without the parent lacks the seed.
    #[test]
    fn duplicate_opens_with_the_inner_key_and_the_parent_only() {
        let vendor = Vendor::new("Acme");
        let (device, parent) = (Device::of(&vendor), SoftwareParent::fresh_p256());
        let reply = activate(&device, &vendor, &parent);
        let inner_key = open_credential(&device, &parent, &reply).unwrap();
        assert!(import(&parent, &inner_key, &reply).is_some());
        assert!(import(&parent, &[0; 16], &reply).is_none());
        assert!(import(&SoftwareParent::fresh_p256(), &inner_key, &reply).is_none());
    }

    #[test]
    fn duplicate_altered_in_any_byte_is_refused() {
        let vendor = Vendor::new("Acme");
        let (device, parent) = (Device::of(&vendor), SoftwareParent::fresh_p256());
        let reply = activate(&device, &vendor, &parent);
        let inner_key = open_credential(&device, &parent, &reply).unwrap();
        for byte in 0..reply.duplicate.len() {
            let mut altered = reply.duplicate.to_vec();
            altered[byte] ^= 1;
            let altered =
                ActivationReply { duplicate: altered.try_into().unwrap(), ..reply.clone() };
            assert!(import(&parent, &inner_key, &altered).is_none(), "byte {byte}");
        }
        for byte in 0..reply.key_public.len() {
            let mut altered = reply.key_public.to_vec();
            altered[byte] ^= 1;
            let altered =
                ActivationReply { key_public: altered.try_into().unwrap(), ..reply.clone() };
            assert!(
                import(&parent, &inner_key, &altered).is_none(),
                "byte {byte} of the public area"
            );
        }
    }

    #[test]
    fn same_generation_is_the_same_key_in_new_wrappers() {
        let vendor = Vendor::new("Acme");
        let mut ca = Ca::trusting(&vendor);
        let (device, parent) = (Device::of(&vendor), SoftwareParent::fresh_p256());
        let mut activation = |generation| {
            let on_record =
                SharedKeyOnRecord { generation, is_used: false, plain_srk_generation: 0 };
            let offer = offer(&ca, &device, &parent, Some(on_record));
            assert_eq!(offer.record().generation(), generation);
            offer.activation(&ca.scope, &master(), &mut ca.rng).unwrap()
        };
        let (first, again, next) = (activation(1), activation(1), activation(2));
        assert_eq!(first.key_public, again.key_public);
        assert_ne!(first.key_public, next.key_public);
        assert_ne!(first.symmetric_seed, again.symmetric_seed);
        assert_ne!(first.encrypted_seed, again.encrypted_seed);
        let inner_keys =
            [first, again].map(|reply| open_credential(&device, &parent, &reply).unwrap());
        assert_ne!(inner_keys[0], inner_keys[1]);
    }
}

/// When a device is told to ask for the next key.
mod rotation {
    use time::Duration;

    use super::*;

    const DAYS: u32 = 86_400;

    /// Asks for a key that has been used for this long. Returns its generation and the advice.
    fn ask(
        policy: Reprovision,
        profile: &Profile,
        used_for: Option<Duration>,
    ) -> Result<(u32, Option<u32>), Rejection> {
        let vendor = Vendor::new("Acme");
        let mut ca = Ca::trusting(&vendor);
        let (device, parent) = (Device::of(&vendor), SoftwareParent::fresh_p256());
        let key = SharedKeyOnRecord {
            generation: 5,
            is_used: used_for.is_some(),
            plain_srk_generation: 0,
        };
        let records = Records {
            enrolment: Some(Enrolment { reprovision: policy, ..Enrolment::default() }),
            shared_key: Some(key),
            key_used_since: used_for.map(|time| now() - time),
            ..nothing_on_record()
        };
        let admitted = ca.admit_to::<SharedKeyFlow>(&device, &records).unwrap();
        let parent = parent.admitted(&admitted);
        let offer = KeyOffer::decide(admitted, parent, &records, profile, now())?;
        let reply = offer.activation(&ca.scope, &master(), &mut ca.rng).unwrap();
        Ok((offer.record().generation(), reply.rotate_after))
    }

    #[test]
    fn device_with_a_new_key_is_told_to_come_within_the_last_quarter_of_its_time() {
        let profile = Profile::default().with_rotation(Some(Duration::days(100))).unwrap();
        for policy in [Reprovision::Reissue, Reprovision::Reuse] {
            for used_for in [None, Some(Duration::days(100))] {
                let (generation, advice) = ask(policy, &profile, used_for).unwrap();
                assert_eq!(generation, if used_for.is_some() { 6 } else { 5 }, "{policy}");
                let advice = advice.unwrap();
                assert!((75 * DAYS..100 * DAYS).contains(&advice), "{policy}: {advice}");
            }
        }
    }

    #[test]
    fn key_is_given_again_by_policy_until_three_quarters_of_its_time_are_over() {
        let profile = Profile::default().with_rotation(Some(Duration::days(100))).unwrap();
        let ask = |used_for| ask(Reprovision::Reuse, &profile, Some(used_for)).unwrap();
        let (generation, advice) = ask(Duration::days(60));
        assert_eq!(generation, 5);
        let advice = advice.unwrap();
        assert!((15 * DAYS..40 * DAYS).contains(&advice), "what is left of its time: {advice}");
        assert_eq!(ask(Duration::days(75) - Duration::SECOND).0, 5);
        assert_eq!(ask(Duration::days(75)).0, 6);
        // A clock that was set back since.
        let (generation, advice) = ask(-Duration::days(400));
        assert!(generation == 5 && advice.unwrap() < 100 * DAYS, "{advice:?}");
    }

    #[test]
    fn key_that_is_not_rotated_comes_without_advice() {
        let profile = Profile::default().with_rotation(None).unwrap();
        let long = Some(Duration::days(3000));
        assert_eq!(ask(Reprovision::Reissue, &profile, None), Ok((5, None)));
        assert_eq!(ask(Reprovision::Reuse, &profile, long), Ok((5, None)));
        let rotating = Profile::default();
        assert_eq!(ask(Reprovision::Never, &rotating, None), Ok((5, None)));
        let refusal = ask(Reprovision::Never, &rotating, long).unwrap_err();
        assert_eq!(refusal.code(), ProblemCode::ReprovisionRefused);
    }

    #[test]
    fn advice_of_devices_that_come_at_once_is_spread() {
        let profile = Profile::default();
        let vendor = Vendor::new("Acme");
        let (device, parent) = (Device::of(&vendor), SoftwareParent::fresh_p256());
        let mut ca = Ca::trusting(&vendor);
        let records = nothing_on_record();
        let admitted = ca.admit_to::<SharedKeyFlow>(&device, &records).unwrap();
        let parent = parent.admitted(&admitted);
        let offer = KeyOffer::decide(admitted, parent, &records, &profile, now()).unwrap();
        let mut advice = || offer.activation(&ca.scope, &master(), &mut ca.rng).unwrap();
        let advice: Vec<_> = (0..16).map(|_| advice().rotate_after.unwrap()).collect();
        let (first, last) = (advice.iter().min().unwrap(), advice.iter().max().unwrap());
        assert!(last - first > 5 * DAYS, "{advice:?}");
    }
}

mod permission {
    use super::*;

    fn ask(parent: &SoftwareParent, enrolment: Option<Enrolment>) -> Result<ParentKind, Rejection> {
        let vendor = Vendor::new("Acme");
        let ca = Ca::trusting(&vendor);
        let records = Records { enrolment, ..nothing_on_record() };
        let admitted = ca.admit_to::<SharedKeyFlow>(&Device::of(&vendor), &records).unwrap();
        AdmittedParent::decide(&admitted, parent.recognised(), &records).map(|parent| parent.kind())
    }

    #[test]
    fn plain_srk_takes_an_enrolment_that_allows_it() {
        for srk in [SoftwareParent::fresh_rsa2048(), SoftwareParent::fresh_p256()]
            .map(SoftwareParent::into_plain_srk)
        {
            for (enrolment, command) in
                [(None, "enroll add"), (Some(Enrolment::default()), "enroll update")]
            {
                let problem = ask(&srk, enrolment).unwrap_err().problem();
                assert_eq!((problem.code, problem.retry_after), (ProblemCode::PlainSrk, None));
                for part in ["import parent", command, "--plain-srk"] {
                    assert!(problem.detail.contains(part), "{problem}");
                }
            }
            // The other settings of an enrolment do not allow a plain SRK.
            let other = Enrolment { legacy_dps_ek: true, ..Enrolment::default() };
            assert_eq!(ask(&srk, Some(other)).unwrap_err().code(), ProblemCode::PlainSrk);
            let allowed = Enrolment { plain_srk: true, ..Enrolment::default() };
            assert_eq!(ask(&srk, Some(allowed)), Ok(ParentKind::PlainSrk));
        }
    }

    #[test]
    fn import_parent_takes_no_enrolment() {
        for parent in [SoftwareParent::fresh_rsa2048(), SoftwareParent::fresh_p256()] {
            for plain_srk in [false, true] {
                let enrolment = Some(Enrolment { plain_srk, ..Enrolment::default() });
                assert_eq!(ask(&parent, enrolment), Ok(ParentKind::Import));
            }
            assert_eq!(ask(&parent, None), Ok(ParentKind::Import));
        }
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
            // Bytes that move from one input to the next make another key, too.
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
        let key = one.key(
            &"plant-7".parse().unwrap(),
            &"pump-1".parse().unwrap(),
            &EkId::from([7; 32]),
            1,
        );
        assert_eq!(format!("{one:?} {key:?}"), "MasterSecret(..) SharedKey(..)");
    }
}

mod parent_template {
    use super::*;

    const PARENTS: [&str; 4] = ["parent-rsa2048", "parent-p256", "srk-rsa2048", "srk-p256"];

    fn code(area: &PublicArea) -> ProblemCode {
        read_parent(&area.encode()).unwrap_err().problem().code
    }

    #[test]
    fn parent_on_template_is_read() {
        for parent in PARENTS {
            let area = golden_area(parent);
            assert_eq!(read_parent(&area.encode()), Ok(ParentArea::recognise(&area).unwrap()));
        }
    }

    #[test]
    fn parent_off_template_in_any_attribute_is_refused() {
        for parent in PARENTS {
            for bit in 0..32 {
                let mut area = golden_area(parent);
                area.attributes.0 ^= 1 << bit;
                assert_eq!(code(&area), ProblemCode::ParentOffTemplate, "{parent}, bit {bit}");
            }
        }
    }

    /// A policy with any other branch could authorise TPM2_Rewrap.
    #[test]
    fn parent_with_another_policy_is_refused() {
        for parent in ["parent-rsa2048", "parent-p256"] {
            let golden = golden_area(parent);
            let refused = |auth_policy: Vec<u8>| {
                assert_ne!(auth_policy, golden.auth_policy);
                let area = PublicArea { auth_policy, ..golden.clone() };
                assert_eq!(code(&area), ProblemCode::ParentOffTemplate, "{parent}");
            };
            for bit in 0..256 {
                let mut changed = golden.auth_policy.clone();
                changed[bit / 8] ^= 1 << (bit % 8);
                refused(changed);
            }
            let cc = |code: u8| {
                Hash::Sha256.digest(&[&[0; 32], &[0, 0, 0x01, 0x6C], &[0, 0, 0x01, code]])
            };
            let or = |branches: &[Vec<u8>]| {
                Hash::Sha256.digest(&[&[0; 32], &[0, 0, 0x01, 0x71], &branches.concat()])
            };
            const IMPORT: u8 = 0x56;
            const LOAD: u8 = 0x57;
            const REWRAP: u8 = 0x52;
            assert_eq!(or(&[cc(IMPORT), cc(LOAD)]), golden.auth_policy);
            refused(or(&[cc(LOAD), cc(IMPORT)]));
            refused(or(&[cc(IMPORT), cc(LOAD), cc(REWRAP)]));
            refused(or(&[cc(IMPORT), cc(REWRAP)]));
            refused(cc(IMPORT));
            refused(golden.auth_policy[..31].to_vec());
            refused(Vec::new());
        }
    }

    /// Nothing between the two templates is accepted.
    #[test]
    fn attributes_of_one_template_with_the_policy_of_the_other_are_refused() {
        for (import, srk) in [("parent-rsa2048", "srk-rsa2048"), ("parent-p256", "srk-p256")] {
            let (import, srk) = (golden_area(import), golden_area(srk));
            let refused = |area: PublicArea, field: &str| {
                let refusal = read_parent(&area.encode()).unwrap_err();
                assert_eq!(refusal.code(), ProblemCode::ParentOffTemplate);
                let refusal = refusal.to_string();
                assert!(refusal.contains(field) && refusal.contains("import parent"), "{refusal}");
            };
            refused(
                PublicArea { attributes: srk.attributes, ..import.clone() },
                "objectAttributes (userWithAuth)",
            );
            refused(PublicArea { attributes: import.attributes, ..srk }, "authPolicy");
        }
    }

    /// An unrestricted key would decrypt whatever it is given. A key with sign instead is an
    /// identity key.
    #[test]
    fn other_objects_of_the_tpm_are_refused() {
        for other in
            ["ek-rsa2048", "ek-rsa3072", "ek-p256", "ek-p384", "ik-rsa2048", "ik-p256", "ik-p384"]
        {
            assert_eq!(code(&golden_area(other)), ProblemCode::ParentOffTemplate, "{other}");
        }
    }

    #[test]
    fn parent_area_changed_in_any_bit_is_refused() {
        for parent in PARENTS {
            let golden = golden_area(parent);
            let unique = match &golden.key {
                AreaKey::Rsa { modulus, .. } => modulus.len(),
                AreaKey::Ecc { x, y, .. } => x.len() + 2 + y.len(),
            };
            let encoded = golden.encode();
            for bit in 0..8 * (encoded.len() - unique) {
                let mut changed = encoded.clone();
                changed[bit / 8] ^= 1 << (bit % 8);
                let refusal = read_parent(&changed).unwrap_err().code();
                let expected = [
                    ProblemCode::ParentOffTemplate,
                    ProblemCode::ParentWeak,
                    ProblemCode::Malformed,
                ];
                assert!(expected.contains(&refusal), "{parent}, bit {bit}: {refusal}");
            }
        }
    }

    #[test]
    fn parent_with_another_hash_symmetric_or_scheme_is_refused() {
        for parent in PARENTS {
            let golden = golden_area(parent);
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
                assert_eq!(changed(change), ProblemCode::ParentOffTemplate, "{parent}");
            }
        }
    }

    #[test]
    fn parent_that_spells_out_the_default_exponent_is_refused() {
        let mut area = golden_area("parent-rsa2048");
        let AreaKey::Rsa { exponent, .. } = &mut area.key else { unreachable!() };
        *exponent = 65537;
        assert_eq!(code(&area), ProblemCode::ParentOffTemplate);
    }

    #[test]
    fn parent_of_another_size_or_curve_is_refused() {
        let PublicKey::Rsa { modulus, .. } = golden_area("ek-rsa3072").public_key().unwrap() else {
            unreachable!()
        };
        let mut longer = with_modulus(golden_area("parent-rsa2048"), &modulus);
        assert_eq!(code(&longer), ProblemCode::ParentOffTemplate);
        let AreaKey::Rsa { key_bits, .. } = &mut longer.key else { unreachable!() };
        *key_bits = 3072;
        assert_eq!(code(&longer), ProblemCode::ParentOffTemplate);

        let (x, y) = match golden_area("ek-p384").key {
            AreaKey::Ecc { x, y, .. } => (x, y),
            AreaKey::Rsa { .. } => unreachable!(),
        };
        let key = AreaKey::Ecc { curve: CurveId::NIST_P384, kdf: None, x, y };
        assert_eq!(
            code(&PublicArea { key, ..golden_area("parent-p256") }),
            ProblemCode::ParentOffTemplate
        );
    }

    #[test]
    fn parent_that_is_weak_is_refused() {
        let roca = data_encoding::HEXLOWER.decode(golden("roca-rsa2048.hex").trim_ascii()).unwrap();
        assert_eq!(
            code(&with_modulus(golden_area("parent-rsa2048"), &roca)),
            ProblemCode::ParentWeak
        );
        let mut area = golden_area("parent-rsa2048");
        let AreaKey::Rsa { exponent, .. } = &mut area.key else { unreachable!() };
        *exponent = 3;
        assert_eq!(code(&area), ProblemCode::ParentWeak);
        assert_eq!(
            code(&with_point(golden_area("parent-p256"), &[4; 65])),
            ProblemCode::ParentWeak
        );
    }

    #[test]
    fn parent_area_that_cannot_be_read_is_malformed() {
        let area = golden_area("parent-rsa2048").encode();
        for bytes in [&b"public area"[..], &area[..100], &[&area[..], &[0]].concat()] {
            let refusal = read_parent(bytes).unwrap_err();
            assert!(
                matches!(refusal, Rejection::AreaUnreadable { object: "parent", .. }),
                "{refusal}"
            );
            assert_eq!(refusal.code(), ProblemCode::Malformed);
        }
    }

    #[test]
    fn refusal_names_the_attribute_and_both_values() {
        let mut area = golden_area("parent-p256");
        area.attributes.0 ^= ObjectAttributes::RESTRICTED.0;
        let refusal = read_parent(&area.encode()).unwrap_err().to_string();
        for part in [
            "parent",
            "objectAttributes (restricted)",
            "0x00020432",
            "0x00030432",
            "import parent P-256",
        ] {
            assert!(refusal.contains(part), "{refusal}");
        }
    }
}

//! The worked example of `docs/protocol.md`: checks that it is right, and makes it anew.

use std::fmt::Write;
use std::fs;
use std::time::Duration;

use assay_ca_core::tpm::credential::Credential;
use assay_ca_core::tpm::kdf::{Hash, kdfa, kdfe};
use assay_ca_core::tpm::public::Name;
use assay_ca_core::{
    Admission, Admitted, AdmittedParent, Assurance, AuthenticatedDevice, BoundKey, Candidate,
    Confirmation, Confirming, Enrolment, Evidence, FIRST_GENERATION, Flaws, Issued, KeyOffer,
    MasterSecret, Overlapping, ParentEvidence, Prepared, Profile, Proven, ProvenDevice, Readmitted,
    Records, SealedFlow, SealedOnRecord, Sealing, SharedKeyFlow, TicketFlow, TicketKey, Token,
    TrustedEk,
};
use assay_wire::{
    ActivationReply, Bundle, CertificateList, CertificateReply, ChallengeReply, ConfirmedReply,
    DeviceId, EkId, EkPublic, Identity, ParentBundle, ProblemCode, Proof, Receipt, Reply,
    ReplyBody, Request, RequestBody, RequestId, Scope, SealedCertificate, SealedReply,
};
use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use aws_lc_rs::agreement::{ECDH_P256, PrivateKey, UnparsedPublicKey, agree};
use data_encoding::BASE64;
use rand_core::Rng;
use rcgen::{CertificateParams, DistinguishedName};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivatePkcs8KeyDer, UnixTime};
use sha2::{Digest, Sha256};
use webpki::{EndEntityCert, KeyUsage};

use crate::certificate::identity_in;
use crate::fixture::*;

const DOCUMENT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/protocol.md");
/// The printed EK: its private key is `golden/software-p256.pem`.
const EK: &str = "p256";
/// The index of template L-2.
const EK_CERTIFICATE_INDEX: u32 = 0x01C0_000A;

#[test]
fn printed_challenge_request_passes_every_check_of_the_ca() {
    let example = Example::read();
    let evidence = Evidence::parse(example.challenge_request()).unwrap();
    let anchors = trusting([example.block("vendor-root").into()]);
    let ek = TrustedEk::verify(&evidence.ek, &anchors, None, now()).unwrap();
    assert_eq!((ek.template(), ek.assurance()), ("EK L-2 (P-256)", Assurance::VendorCertificate));
    BoundKey::verify(&evidence).unwrap();
    let groups = everyone();
    let admission = Admission {
        groups: &groups,
        flaws: &Flaws::default(),
        waits_since: None,
        ik: None,
        now: now(),
    };
    let records = nothing_on_record();
    let admitted = Admitted::<TicketFlow>::decide(offered(), ek, &records, &admission).unwrap();
    assert_eq!(*admitted.device_id(), example.device_id());
    assert_eq!(example.printed("EK id"), evidence.ek.ek_id().to_string());
}

#[test]
fn printed_credential_opens_to_the_printed_ticket() {
    let example = Example::read();
    let (challenge, request) = (example.challenge_reply(), example.challenge_request());
    let device = device_of(&request);
    assert_eq!(request.ek_public, device.ek.area.encode().try_into().unwrap());
    let answer = device.answer(&challenge);
    assert_eq!(answer, example.certify_request());
    assert_eq!(answer.ticket.as_bytes()[..], example.value("ticket"));
    assert_eq!(device.ik_name().as_ref(), example.value("IK Name"));

    example.has_steps(
        "values",
        "",
        &Steps::to_the_ek(&challenge.encrypted_seed, &device.ik_name()),
    );
    let pem = golden(&format!("software-{EK}.pem"));
    let pkcs8 = PrivatePkcs8KeyDer::from_pem_slice(&pem).unwrap();
    let scalar = example.value("EK private key");
    assert!(pkcs8.secret_pkcs8_der().windows(scalar.len()).any(|window| window == scalar));
}

#[test]
fn printed_certify_request_proves_the_device() {
    let example = Example::read();
    let key = TicketKey::new(example.value("ticket key").try_into().unwrap()).into();
    let proven =
        ProvenDevice::verify(&example.certify_request(), &example.scope(), &key, now()).unwrap();
    assert_eq!(proven.ek_id().to_string(), example.printed("EK id"));
    assert_eq!(*proven.device_id(), example.device_id());
    assert_eq!(
        proven.ik_spki(),
        device_of(&example.challenge_request()).ik_area.public_key().unwrap().spki()
    );
}

#[test]
fn printed_certificate_is_for_the_ik_and_leads_to_the_printed_root() {
    let example = Example::read();
    example.is_for_the_ik(&example.certificate_reply().chain);
}

#[test]
fn printed_box_opens_to_the_printed_certificate() {
    let example = Example::read();
    let (sealed, request) = (example.sealed_reply(), example.challenge_request());
    let device = device_of(&request);
    let secret =
        activate(&device, &device.ik_name(), &sealed.credential_blob, &sealed.encrypted_seed);
    assert_eq!(example.value_in("sealed-values", "box key"), secret);
    example.has_steps(
        "sealed-values",
        "",
        &Steps::to_the_ek(&sealed.encrypted_seed, &device.ik_name()),
    );

    let (ek_id, ik_id) = (
        device.ek.key().ek_id(),
        Sha256::digest(device.ik_area.public_key().unwrap().spki()).into(),
    );
    let beside = SealedReply::associated_data(&sealed.claim, &ek_id, &ik_id);
    assert_eq!(example.block("associated-data"), beside);
    let content = open(&secret, &beside, &sealed);
    assert_eq!(example.block("sealed-certificate"), content);
    let opened = SealedCertificate::decode(&content).unwrap();
    example.is_for_the_ik(&opened.chain);
    assert_eq!(example.value_in("sealed-values", "ticket"), opened.ticket.as_bytes());
    assert_eq!(
        Sha256::digest(example.value_in("sealed-values", "receipt"))[..],
        opened.receipt_sha256
    );
    assert_eq!(example.confirm_request(), Proof { claim: sealed.claim, ticket: opened.ticket });
}

#[test]
fn printed_confirm_request_confirms_the_certificate_in_the_box() {
    let example = Example::read();
    let key = TicketKey::new(example.value("ticket key").try_into().unwrap()).into();
    let confirmation =
        Confirmation::verify(&example.confirm_request(), &example.scope(), &key, now()).unwrap();
    assert_eq!(confirmation.ek_id().to_string(), example.printed("EK id"));
    let opened = SealedCertificate::decode(&example.block("sealed-certificate")).unwrap();
    assert_eq!(confirmation.certificate_sha256()[..], Sha256::digest(&*opened.chain[0])[..]);
    let receipt = receipt_of(confirmation, &key);
    assert_eq!(example.value_in("sealed-values", "receipt"), receipt.as_bytes());
    let claim = example.confirm_request().claim;
    assert_eq!(
        Hash::Sha256.hmac(&example.value("ticket key"), &[b"assay receipt v1\0", &claim]),
        receipt.as_bytes()
    );
    assert_eq!(
        example.reply("confirmed-reply").body,
        ReplyBody::Confirmed(ConfirmedReply { receipt })
    );
}

/// The CA's answer to a confirmation once the certificate is active.
fn receipt_of(confirmation: Confirmation, key: &Overlapping<TicketKey>) -> Receipt {
    let enrolment = Enrolment { device_id: Some("pump-1".parse().unwrap()), ..enrolled() };
    let active = SealedOnRecord::Active {
        device_id: "pump-1".parse().unwrap(),
        assurance: Assurance::VendorCertificate,
        records: Box::new(Records { enrolment: Some(enrolment), ..nothing_on_record() }),
        der: Vec::new(),
    };
    match Confirming::plan(confirmation, active, key, now()).unwrap() {
        Confirming::OnRecord { reply, .. } => reply.receipt,
        Confirming::New { .. } => panic!("it is active already"),
    }
}

#[test]
fn printed_register_request_passes_every_check_of_the_ca() {
    let example = Example::read();
    let evidence = ParentEvidence::parse(example.register_request()).unwrap();
    let in_full = Evidence::parse(example.challenge_request()).unwrap();
    assert_eq!(evidence.ek.ek_id(), in_full.ek.ek_id());
    let anchors = trusting([example.block("vendor-root").into()]);
    let ek = TrustedEk::verify(&evidence.ek, &anchors, None, now()).unwrap();
    let groups = everyone();
    let admission = Admission {
        groups: &groups,
        flaws: &Flaws::default(),
        waits_since: None,
        ik: None,
        now: now(),
    };
    let records = nothing_on_record();
    let admitted = Admitted::<SharedKeyFlow>::decide(offered(), ek, &records, &admission).unwrap();
    assert_eq!(*admitted.device_id(), example.activation_reply().device_id);
    let parent = evidence.parent().unwrap();
    assert_eq!(parent.template(), "import parent P-256");
    assert_eq!(example.value_in("shared-key-values", "parent Name"), parent.name().as_ref());
    let parent = AdmittedParent::decide(&admitted, parent, &nothing_on_record()).unwrap();
    let profile = Profile::default();
    let offer = KeyOffer::decide(admitted, parent, &nothing_on_record(), &profile, now()).unwrap();
    assert_eq!(offer.record().generation(), FIRST_GENERATION);
}

#[test]
fn printed_activation_opens_to_the_printed_key() {
    let example = Example::read();
    let activation = example.activation_reply();
    let device = device_of(&example.challenge_request());
    let parent = SoftwareParent::of_p256(example.parent_key());
    assert_eq!(example.register_request().parent_public[..], parent.area.encode());
    let parent_name = parent.recognised().name().clone();

    let inner_key =
        activate(&device, &parent_name, &activation.credential_blob, &activation.encrypted_seed);
    let value = |name: &str| example.value_in("shared-key-values", name);
    assert_eq!(value("inner key"), inner_key);
    example.has_steps(
        "shared-key-values",
        "EK ",
        &Steps::to_the_ek(&activation.encrypted_seed, &parent_name),
    );
    let key_name = Name::of(Hash::Sha256, &activation.key_public);
    assert_eq!(value("HMAC key Name"), key_name.as_ref());
    let to_parent =
        Steps::of(&example.parent_key(), "DUPLICATE", &key_name, &activation.symmetric_seed);
    example.has_steps("shared-key-values", "parent ", &to_parent);

    let imported = parent.import(
        &inner_key,
        &activation.key_public,
        &activation.duplicate,
        &activation.symmetric_seed,
    );
    let [auth, seed_value, key] = imported.unwrap();
    assert_eq!((auth, seed_value, key), (vec![], value("seedValue"), value("HMAC key")));
    assert_eq!(example.block("sensitive"), sensitive(&value("seedValue"), &value("HMAC key")));
}

#[test]
fn printed_key_is_derived_from_the_printed_secret() {
    let example = Example::read();
    let value = |name: &str| example.value_in("shared-key-values", name);
    let ek_id = device_of(&example.challenge_request()).ek.key().ek_id();
    let info = hkdf_info(&example.scope(), &example.activation_reply().device_id, &ek_id);
    assert_eq!(example.block("hkdf-info"), info);
    // RFC 5869 §2.2 and §2.3. An absent salt means as many zeros as a digest has bytes.
    let hmac = |key: &[u8], parts: &[&[u8]]| Hash::Sha256.hmac(key, parts);
    let prk = hmac(&[0; 32], &[&value("master secret")]);
    let first = hmac(&prk, &[&info, &[1]]);
    assert_eq!(value("HMAC key"), first);
    assert_eq!(value("seedValue"), hmac(&prk, &[&first, &info, &[2]]));
}

#[test]
fn printed_token_authenticates_the_device() {
    let example = Example::read();
    let (_, token, _) = split_at_block(&example.0, "token");
    let device_id = example.activation_reply().device_id;
    let value = |name: &str| example.value_in("shared-key-values", name);
    assert_eq!(token.trim_end(), self::token(&example.scope(), &device_id, &value("HMAC key")));

    let ek_id = device_of(&example.challenge_request()).ek.key().ek_id();
    let master = MasterSecret::new(value("master secret").try_into().unwrap()).into();
    let token = Token::parse(device_id.as_str(), token.trim_end().as_bytes()).unwrap();
    AuthenticatedDevice::verify(
        offered(),
        token,
        &example.scope(),
        &master,
        ek_id,
        &[FIRST_GENERATION],
        now(),
    )
    .unwrap();
}

#[test]
fn printed_replies_answer_the_printed_requests() {
    let example = Example::read();
    for (request, reply) in [
        ("challenge-request", "challenge-reply"),
        ("certify-request", "certificate-reply"),
        ("confirm-request", "confirmed-reply"),
        ("register-request", "activation-reply"),
    ] {
        assert_eq!(example.request(request).id, example.reply(reply).id);
    }
}

#[test]
fn every_problem_code_is_in_the_table() {
    let text = fs::read_to_string(DOCUMENT).unwrap();
    for code in ProblemCode::ALL {
        let row = format!("| {} | `{code}` | {} |", code.number(), code.title());
        assert!(text.contains(&row), "{row}");
    }
}

/// Signatures are random, so each run makes another example. `UPDATE_EXAMPLE=1 cargo test -p
/// assay-ca-core --test pipeline example_made_anew` writes it into the document.
#[test]
fn example_made_anew_reads_like_the_printed_one() {
    let vendor = Vendor::new("Example Vendor");
    let mut ca = Ca::trusting(&vendor);
    let mut device = Device::with_ek(&vendor, SoftwareEk::golden(EK));
    let (area, ik) = p256_ik();
    let mut wishes = CertificateParams::default();
    wishes.distinguished_name = DistinguishedName::new();
    (device.ik_area, device.csr) = (area, wishes.serialize_request(&ik).unwrap().der().to_vec());

    let challenge = ca.challenge(&device, &nothing_on_record()).unwrap();
    let certify = device.answer(&challenge);
    let readmitted = Readmitted::decide(ca.prove(&certify).unwrap(), &nothing_on_record()).unwrap();
    let profile = Profile::default();
    let prepared = Prepared::<Proven>::new(
        readmitted,
        &profile,
        ca.issuers.current(now()),
        now(),
        &mut ca.rng,
    )
    .unwrap();
    let issued = Issued::<Proven>::sign(prepared).unwrap();
    let device_id = issued.facts().device_id.clone();
    let certified = issued.reply();

    let mut ids = [[0; RequestId::LEN]; 5];
    ids.iter_mut().for_each(|id| ca.rng.fill_bytes(id));
    let [first, second, third, fourth, fifth] = ids.map(RequestId::from);
    let steps = Steps::to_the_ek(&challenge.encrypted_seed, &device.ik_name());
    let values = Values::default()
        .text("EK id", &device.ek.key().ek_id().to_string())
        .text("device id", device_id.as_str())
        .bytes("EK private key", &scalar_of_the_ek())
        .bytes("ticket key", ca.ticket_keys.in_use(now()).secret())
        .bytes("IK Name", device.ik_name().as_ref())
        .steps("", &steps)
        .bytes("ticket", certify.ticket.as_bytes());

    let request = |id, body| Request { id, body }.encode();
    let reply = |id, body| Reply { id, body }.encode();
    let requests = [
        request(first, RequestBody::Challenge(device.request())),
        request(second, RequestBody::Certify(certify)),
    ];
    let replies = [
        reply(first, ReplyBody::Challenge(challenge)),
        reply(second, ReplyBody::Certificate(certified)),
    ];
    let ticket_flow = [
        ("vendor-root", plain(&vendor.root)),
        ("ca-root", plain(&ca.root)),
        ("values", values.0),
        ("challenge-request", annotated(&requests[0], "challenge request", CHALLENGE_REQUEST)),
        ("challenge-reply", annotated(&replies[0], "challenge reply", CHALLENGE_REPLY)),
        ("certify-request", annotated(&requests[1], "certify request", PROOF)),
        ("certificate-reply", annotated(&replies[1], "certificate reply", CERTIFICATE_REPLY)),
    ];
    let sealed_flow = sealed_flow_made_anew(&mut ca, &device, third, fourth);
    let shared_key_flow = shared_key_flow_made_anew(&mut ca, &device, fifth);
    let mut text = fs::read_to_string(DOCUMENT).unwrap();
    for (name, content) in ticket_flow.into_iter().chain(sealed_flow).chain(shared_key_flow) {
        let (before, _, after) = split_at_block(&text, name);
        text = format!("{before}{content}{after}");
    }
    let (new, printed) = (Example(text), Example::read());
    assert_eq!(new.challenge_request().ek_public, printed.challenge_request().ek_public);
    assert_eq!(new.device_id(), printed.device_id());
    assert_eq!(new.certify_request().claim, new.challenge_reply().claim);
    assert_eq!(new.confirm_request().claim, new.sealed_reply().claim);
    assert_eq!(new.activation_reply().key_public, printed.activation_reply().key_public);
    if std::env::var_os("UPDATE_EXAMPLE").is_some() {
        fs::write(DOCUMENT, new.0).unwrap();
    }
}

/// A block of the document: its name and its content.
type Block = (&'static str, String);

fn sealed_flow_made_anew(
    ca: &mut Ca,
    device: &Device,
    enroll: RequestId,
    confirm: RequestId,
) -> [Block; 6] {
    let (records, ik) = (nothing_on_record(), BoundKey::verify(&device.evidence()).unwrap());
    let admitted = ca.admit_to::<SealedFlow>(device, &records).unwrap();
    let candidate = Candidate::decide(&admitted, &ik, &ca.scope, &records, now()).unwrap();
    let (ek_id, ik_id) = (candidate.ek_id(), candidate.ik_id());
    let (profile, key, issuers) = (Profile::default(), &ca.ticket_keys, &ca.issuers);
    let sealing =
        Sealing::plan(candidate, &records, None, &[], key, &profile, issuers, now(), &mut ca.rng);
    let (sealed, _) = sealing.unwrap().sign(key.in_use(now()), now(), &mut ca.rng).unwrap();

    let secret =
        activate(device, &device.ik_name(), &sealed.credential_blob, &sealed.encrypted_seed);
    let beside = SealedReply::associated_data(&sealed.claim, &ek_id, &ik_id);
    let content = open(&secret, &beside, &sealed);
    let ticket = SealedCertificate::decode(&content).unwrap().ticket;
    let proof = Proof { claim: sealed.claim.clone(), ticket };
    let confirmation = Confirmation::verify(&proof, &ca.scope, &ca.ticket_keys, now()).unwrap();
    let receipt = receipt_of(confirmation, &ca.ticket_keys);
    let values = Values::default()
        .steps("", &Steps::to_the_ek(&sealed.encrypted_seed, &device.ik_name()))
        .bytes("box key", &secret)
        .bytes("ticket", proof.ticket.as_bytes())
        .bytes("receipt", receipt.as_bytes());

    let reply = Reply { id: enroll, body: ReplyBody::Sealed(sealed) }.encode();
    let request = Request { id: confirm, body: RequestBody::Confirm(proof) }.encode();
    let confirmed =
        Reply { id: confirm, body: ReplyBody::Confirmed(ConfirmedReply { receipt }) }.encode();
    [
        ("sealed-values", values.0),
        ("sealed-reply", annotated(&reply, "sealed reply", SEALED_REPLY)),
        ("associated-data", plain(&beside)),
        ("sealed-certificate", annotated_content(&content, SEALED_CERTIFICATE)),
        ("confirm-request", annotated(&request, "confirm request", PROOF)),
        ("confirmed-reply", annotated(&confirmed, "confirmed", CONFIRMED)),
    ]
}

fn shared_key_flow_made_anew(ca: &mut Ca, device: &Device, id: RequestId) -> [Block; 6] {
    let mut scalar = [0; 32];
    ca.rng.fill_bytes(&mut scalar);
    let parent_key = p256_key(&scalar);
    let parent = SoftwareParent::of_p256(p256_key(&scalar));
    let master = MasterSecret::generate(&mut ca.rng);
    let admitted = ca.admit_to::<SharedKeyFlow>(device, &nothing_on_record()).unwrap();
    let parent_of_key = parent.admitted(&admitted);
    // The CA of the page does not have keys rotated.
    let profile = Profile::default().with_rotation(None).unwrap();
    let records = nothing_on_record();
    let offer = KeyOffer::decide(admitted, parent_of_key, &records, &profile, now()).unwrap();
    let activation = offer.activation(&ca.scope, &master, &mut ca.rng).unwrap();

    let parent_name = parent.recognised().name().clone();
    let key_name = Name::of(Hash::Sha256, &activation.key_public);
    let inner_key =
        activate(device, &parent_name, &activation.credential_blob, &activation.encrypted_seed);
    let imported = parent.import(
        &inner_key,
        &activation.key_public,
        &activation.duplicate,
        &activation.symmetric_seed,
    );
    let [_, seed_value, key] = imported.unwrap();
    let values = Values::default()
        .bytes("parent private key", &scalar)
        .bytes("parent Name", parent_name.as_ref())
        .bytes("master secret", master.secret())
        .bytes("HMAC key", &key)
        .bytes("seedValue", &seed_value)
        .bytes("HMAC key Name", key_name.as_ref())
        .bytes("inner key", &inner_key)
        .steps("EK ", &Steps::to_the_ek(&activation.encrypted_seed, &parent_name))
        .steps(
            "parent ",
            &Steps::of(&parent_key, "DUPLICATE", &key_name, &activation.symmetric_seed),
        );

    let Bundle { device_id, ek_certificates, .. } = device.request();
    let ek_public = EkPublic::OfCertificate(EK_CERTIFICATE_INDEX);
    let bundle = ParentBundle {
        device_id,
        ek_public,
        ek_certificates,
        parent_public: parent.area.encode().try_into().unwrap(),
        other_eks: None,
    };
    let info = hkdf_info(&ca.scope, offer.device_id(), &device.ek.key().ek_id());
    let token = token(&ca.scope, offer.device_id(), &key);
    let request = Request { id, body: RequestBody::Register(bundle) }.encode();
    let reply = Reply { id, body: ReplyBody::Activation(activation) }.encode();
    [
        ("shared-key-values", values.0),
        ("hkdf-info", plain(&info)),
        ("sensitive", plain(&sensitive(&seed_value, &key))),
        ("register-request", annotated(&request, "register request", REGISTER_REQUEST)),
        ("activation-reply", annotated(&reply, "activation", ACTIVATION_REPLY)),
        ("token", token + "\n"),
    ]
}

/// What TPM2_ActivateCredential gives for the object with this Name.
fn activate(device: &Device, name: &Name, id_object: &[u8], encrypted_seed: &[u8]) -> Vec<u8> {
    let credential =
        Credential { id_object: id_object.to_vec(), encrypted_seed: encrypted_seed.to_vec() };
    device.ek.activate(name, &credential).unwrap()
}

fn open(key: &[u8], beside: &[u8], reply: &SealedReply) -> Vec<u8> {
    let (nonce, sealed) = reply.sealed.split_first_chunk::<NONCE_LEN>().unwrap();
    let key = LessSafeKey::new(UnboundKey::new(&AES_256_GCM, key).unwrap());
    let mut content = sealed.to_vec();
    key.open_in_place(Nonce::assume_unique_for_key(*nonce), Aad::from(beside), &mut content)
        .unwrap()
        .to_vec()
}

fn hkdf_info(scope: &Scope, device_id: &DeviceId, ek: &EkId) -> Vec<u8> {
    minicbor::to_vec(("assay shared key v1", scope, device_id, ek, FIRST_GENERATION)).unwrap()
}

/// `TPM2B_SENSITIVE` of an HMAC key.
fn sensitive(seed_value: &[u8], key: &[u8]) -> Vec<u8> {
    [&[0, 72, 0, 8, 0, 0, 0, 32], seed_value, &[0, 32], key].concat()
}

/// A token that is good for an hour.
fn token(scope: &Scope, device_id: &DeviceId, key: &[u8]) -> String {
    let (resource, expiry) =
        (format!("{scope}%2Fregistrations%2F{device_id}"), now().unix_timestamp() + 3600);
    let signature =
        BASE64.encode(&Hash::Sha256.hmac(key, &[format!("{resource}\n{expiry}").as_bytes()]));
    let signature =
        percent_encoding::percent_encode(signature.as_bytes(), percent_encoding::NON_ALPHANUMERIC);
    format!("SharedAccessSignature sr={resource}&sig={signature}&se={expiry}&skn=registration")
}

fn p256_key(scalar: &[u8]) -> PrivateKey {
    PrivateKey::from_private_key(&ECDH_P256, scalar).unwrap()
}

/// Lines of names and values.
#[derive(Default)]
struct Values(String);

impl Values {
    fn text(mut self, name: &str, value: &str) -> Self {
        writeln!(self.0, "{name:22}{value}").unwrap();
        self
    }

    fn bytes(self, name: &str, value: &[u8]) -> Self {
        self.text(name, &hex(value))
    }

    fn steps(self, whose: &str, steps: &Steps) -> Self {
        steps
            .named()
            .into_iter()
            .fold(self, |values, (name, value)| values.bytes(&format!("{whose}{name}"), value))
    }
}

const CHALLENGE_REQUEST: &[&str] =
    &["EK public area", "EK certificates", "IK public area", "certificate request, PKCS#10 in DER"];
const CHALLENGE_REPLY: &[&str] =
    &["claim", "credential blob, TPMS_ID_OBJECT", "encrypted seed, TPMS_ECC_POINT"];
const PROOF: &[&str] = &["claim, as it came", "ticket"];
const CERTIFICATE_REPLY: &[&str] = &["chain", "when to renew it"];
const SEALED_REPLY: &[&str] =
    &["claim", "credential blob, TPMS_ID_OBJECT", "encrypted seed, TPMS_ECC_POINT", "box"];
const SEALED_CERTIFICATE: &[&str] =
    &["chain", "ticket", "SHA-256 of the receipt", "when to renew it"];
const CONFIRMED: &[&str] = &["receipt"];
const REGISTER_REQUEST: &[&str] = &[
    "EK public area: template L-2 with the key of the certificate",
    "EK certificates",
    "parent public area",
];
const ACTIVATION_REPLY: &[&str] = &[
    "credential blob, TPMS_ID_OBJECT",
    "encrypted seed, TPMS_ECC_POINT",
    "duplicate, content of a TPM2B_PRIVATE",
    "symmetric seed, TPMS_ECC_POINT",
    "key public area",
    "device id",
];

/// The document's blocks.
struct Example(String);

impl Example {
    fn read() -> Self {
        Self(fs::read_to_string(DOCUMENT).unwrap())
    }

    /// The bytes of a block of hexadecimal digits with comments.
    fn block(&self, name: &str) -> Vec<u8> {
        let (_, content, _) = split_at_block(&self.0, name);
        let digits = content.lines().flat_map(|line| line.split('#').next()).collect::<String>();
        bytes(&digits.replace(' ', ""))
    }

    /// A line of the first block of values.
    fn printed(&self, name: &str) -> &str {
        self.printed_in("values", name)
    }

    fn printed_in(&self, block: &str, name: &str) -> &str {
        let (_, content, _) = split_at_block(&self.0, block);
        let line = content.lines().find_map(|line| line.strip_prefix(&format!("{name}  ")));
        line.unwrap_or_else(|| panic!("no value {name} in {block}")).trim()
    }

    fn value(&self, name: &str) -> Vec<u8> {
        bytes(self.printed(name))
    }

    fn value_in(&self, block: &str, name: &str) -> Vec<u8> {
        bytes(self.printed_in(block, name))
    }

    fn has_steps(&self, block: &str, whose: &str, steps: &Steps) {
        for (name, value) in steps.named() {
            assert_eq!(
                self.value_in(block, &format!("{whose}{name}")),
                value,
                "{whose}{name} in {block}"
            );
        }
    }

    fn parent_key(&self) -> PrivateKey {
        p256_key(&self.value_in("shared-key-values", "parent private key"))
    }

    fn is_for_the_ik(&self, chain: &CertificateList<1>) {
        let [leaf, issuers @ ..] = &chain[..] else { unreachable!("a chain has a leaf") };
        let identity = Identity::Device { scope: self.scope(), device_id: self.device_id() };
        assert_eq!(identity_in(leaf), identity);

        let (root, leaf) =
            (CertificateDer::from(self.block("ca-root")), CertificateDer::from(leaf.to_vec()));
        let issuers: Vec<_> =
            issuers.iter().map(|der| CertificateDer::from(der.to_vec())).collect();
        let time =
            UnixTime::since_unix_epoch(Duration::from_secs(now().unix_timestamp().unsigned_abs()));
        let certificate = EndEntityCert::try_from(&leaf).unwrap();
        let (algorithms, usage) = (webpki::ALL_VERIFICATION_ALGS, KeyUsage::client_auth());
        let anchors = [webpki::anchor_from_trusted_cert(&root).unwrap()];
        certificate
            .verify_for_usage(algorithms, &anchors, &issuers, time, usage, None, None)
            .unwrap();
        let ik = device_of(&self.challenge_request()).ik_area.public_key().unwrap();
        assert_eq!(certificate.subject_public_key_info().as_ref(), ik.spki());
    }

    fn request(&self, name: &str) -> Request {
        Request::decode(&self.block(name)).unwrap()
    }

    fn reply(&self, name: &str) -> Reply {
        Reply::decode(&self.block(name)).unwrap()
    }

    fn challenge_request(&self) -> Bundle {
        match self.request("challenge-request").body {
            RequestBody::Challenge(body) => body,
            other => panic!("{other:?}"),
        }
    }

    fn certify_request(&self) -> Proof {
        match self.request("certify-request").body {
            RequestBody::Certify(body) => body,
            other => panic!("{other:?}"),
        }
    }

    fn confirm_request(&self) -> Proof {
        match self.request("confirm-request").body {
            RequestBody::Confirm(body) => body,
            other => panic!("{other:?}"),
        }
    }

    fn register_request(&self) -> ParentBundle {
        match self.request("register-request").body {
            RequestBody::Register(body) => body,
            other => panic!("{other:?}"),
        }
    }

    fn sealed_reply(&self) -> SealedReply {
        match self.reply("sealed-reply").body {
            ReplyBody::Sealed(body) => body,
            other => panic!("{other:?}"),
        }
    }

    fn activation_reply(&self) -> ActivationReply {
        match self.reply("activation-reply").body {
            ReplyBody::Activation(body) => body,
            other => panic!("{other:?}"),
        }
    }

    fn challenge_reply(&self) -> ChallengeReply {
        match self.reply("challenge-reply").body {
            ReplyBody::Challenge(body) => body,
            other => panic!("{other:?}"),
        }
    }

    fn certificate_reply(&self) -> CertificateReply {
        match self.reply("certificate-reply").body {
            ReplyBody::Certificate(body) => body,
            other => panic!("{other:?}"),
        }
    }

    fn device_id(&self) -> DeviceId {
        self.printed("device id").parse().unwrap()
    }

    fn scope(&self) -> Scope {
        "plant-7".parse().unwrap()
    }
}

/// Text before a block's content, the content, and the rest.
fn split_at_block<'a>(text: &'a str, name: &str) -> (&'a str, &'a str, &'a str) {
    let fence = format!("```text {name}\n");
    let start = text.find(&fence).unwrap_or_else(|| panic!("no block {name}")) + fence.len();
    let length = text[start..].find("```").unwrap();
    (&text[..start], &text[start..start + length], &text[start + length..])
}

/// The device of the example: the EK is in software, and the IK is that of the request.
fn device_of(request: &Bundle) -> Device {
    let ik_area = assay_ca_core::tpm::public::PublicArea::parse(&request.ik_public).unwrap();
    Device {
        ek: SoftwareEk::golden(EK),
        ek_certificates: vec![],
        ik_area,
        csr: request.csr.to_vec(),
        device_id: None,
    }
}

/// What a TPM computes between a credential and its secret.
struct Steps {
    z: Vec<u8>,
    seed: Vec<u8>,
    storage_key: Vec<u8>,
    integrity_key: Vec<u8>,
}

impl Steps {
    fn to_the_ek(encrypted_seed: &[u8], name: &Name) -> Self {
        let pem = golden(&format!("software-{EK}.pem"));
        let pkcs8 = PrivatePkcs8KeyDer::from_pem_slice(&pem).unwrap();
        let key = PrivateKey::from_private_key_der(&ECDH_P256, pkcs8.secret_pkcs8_der()).unwrap();
        Self::of(&key, "IDENTITY", name, encrypted_seed)
    }

    fn of(key: &PrivateKey, label: &str, name: &Name, encrypted_seed: &[u8]) -> Self {
        let (x, y) = encrypted_seed[2..].split_at(32);
        let point = UnparsedPublicKey::new(&ECDH_P256, [&[4], x, &y[2..]].concat());
        let z = agree(key, &point, (), |z| Ok(z.to_vec())).unwrap();
        let own_point = key.compute_public_key().unwrap();
        let seed = kdfe(Hash::Sha256, &z, label, x, &own_point.as_ref()[1..33], 32).to_vec();
        Self {
            storage_key: kdfa(Hash::Sha256, &seed, "STORAGE", name.as_ref(), &[], 16).to_vec(),
            integrity_key: kdfa(Hash::Sha256, &seed, "INTEGRITY", &[], &[], 32).to_vec(),
            seed,
            z,
        }
    }

    fn named(&self) -> [(&'static str, &[u8]); 4] {
        let Self { z, seed, storage_key, integrity_key } = self;
        [("Z", z), ("seed", seed), ("STORAGE key", storage_key), ("INTEGRITY key", integrity_key)]
    }
}

/// RFC 5915 §3: the OCTET STRING after the version of the ECPrivateKey in a PKCS#8 key.
fn scalar_of_the_ek() -> Vec<u8> {
    let pem = golden(&format!("software-{EK}.pem"));
    let pkcs8 = PrivatePkcs8KeyDer::from_pem_slice(&pem).unwrap();
    let der = pkcs8.secret_pkcs8_der();
    let start = der.windows(5).position(|window| window == [2, 1, 1, 4, 32]).unwrap() + 5;
    der[start..start + 32].to_vec()
}

/// A message as hexadecimal digits, with a comment for each field.
fn annotated(message: &[u8], kind: &str, fields: &[&str]) -> String {
    let mut listing = Listing { rest: message, text: String::new() };
    listing.take(0, 1, "array of 3");
    listing.take(1, 1, &format!("kind: {kind}"));
    listing.take(1, 1, "request id, 16 bytes:");
    listing.take(2, RequestId::LEN, "");
    listing.take_map(1, fields);
    assert!(listing.rest.is_empty());
    listing.text
}

/// The content of a box in the same form.
fn annotated_content(content: &[u8], fields: &[&str]) -> String {
    let mut listing = Listing { rest: content, text: String::new() };
    listing.take_map(0, fields);
    assert!(listing.rest.is_empty());
    listing.text
}

const UNSIGNED: u8 = 0;
const ARRAY: u8 = 4;

struct Listing<'a> {
    rest: &'a [u8],
    text: String,
}

impl Listing<'_> {
    fn take_map(&mut self, depth: usize, fields: &[&str]) {
        self.take(depth, 1, &format!("map of {}", fields.len()));
        fields.iter().for_each(|field| self.take_field(depth + 1, field));
    }

    fn take_field(&mut self, depth: usize, field: &str) {
        let key = self.rest[0];
        let (major, size, length) = self.head(1);
        if major == UNSIGNED {
            return self.take(depth, 1 + length, &format!("{key} => {field}"));
        }
        if major == ARRAY {
            self.take(depth, 1 + length, &format!("{key} => {field}, {size} of them"));
            return (1..=size).for_each(|n| self.take_certificate(depth + 1, n));
        }
        self.take(depth, 1 + length, &format!("{key} => {field}, {size} bytes:"));
        let depth = depth + 1;
        match field {
            "EK public area" | "IK public area" | "parent public area" => self.take_area(),
            "key public area" => self.take_hmac_area(),
            "credential blob, TPMS_ID_OBJECT" => {
                self.take_sized(depth, "integrityHMAC");
                self.take(depth, size - 34, "encIdentity: the secret after its size, encrypted");
            }
            "duplicate, content of a TPM2B_PRIVATE" => {
                self.take_sized(depth, "HMAC of the outer wrapper");
                self.take(
                    depth,
                    size - 34,
                    "digest and sensitive area, in the inner wrapper, encrypted",
                );
            }
            "encrypted seed, TPMS_ECC_POINT" | "symmetric seed, TPMS_ECC_POINT" => {
                self.take_sized(depth, "x of the CA's ephemeral key");
                self.take_sized(depth, "y");
            }
            "box" => {
                self.take(depth, NONCE_LEN, "nonce");
                self.take(depth, size - NONCE_LEN - AES_256_GCM.tag_len(), "ciphertext");
                self.take(depth, AES_256_GCM.tag_len(), "tag");
            }
            "device id" => {
                let text = str::from_utf8(&self.rest[..size]).unwrap().to_owned();
                self.take(depth, size, &format!("\"{text}\""));
            }
            _ => self.take(depth, size, ""),
        }
    }

    fn take_certificate(&mut self, depth: usize, n: usize) {
        let (_, size, length) = self.head(0);
        self.take(depth, length, &format!("certificate {n}, {size} bytes:"));
        self.take(depth + 1, size, "");
    }

    /// Prints the next bytes, 32 a line, with a comment beside or above them.
    fn take(&mut self, depth: usize, count: usize, comment: &str) {
        let (bytes, rest) = self.rest.split_at(count);
        self.rest = rest;
        for (n, line) in bytes.chunks(32).enumerate() {
            let line = format!("{:1$}{2}", "", 2 * depth, hex(line));
            match comment {
                "" => writeln!(self.text, "{line}"),
                _ if n > 0 => writeln!(self.text, "{line}"),
                _ if count < 16 => writeln!(self.text, "{line:<24}  # {comment}"),
                _ => writeln!(self.text, "{:1$}# {comment}\n{line}", "", 2 * depth),
            }
            .unwrap();
        }
    }

    /// A TPM2B: its size, then its bytes.
    fn take_sized(&mut self, depth: usize, comment: &str) {
        let size = usize::from(u16::from_be_bytes([self.rest[0], self.rest[1]]));
        self.take(
            depth,
            2,
            &format!("{comment}, {size} bytes{}", if size == 0 { "" } else { ":" }),
        );
        self.take(depth + 1, size, "");
    }

    /// TPMT_PUBLIC of an HMAC key.
    fn take_hmac_area(&mut self) {
        self.take(3, 2, "type: TPM_ALG_KEYEDHASH");
        self.take(3, 2, "nameAlg: TPM_ALG_SHA256");
        self.take(3, 4, "objectAttributes");
        self.take_sized(3, "authPolicy");
        self.take(3, 4, "scheme: HMAC with SHA-256");
        self.take_sized(3, "unique");
    }

    /// TPMT_PUBLIC of a P-256 key on the EK, parent or IK template.
    fn take_area(&mut self) {
        self.take(3, 2, "type: TPM_ALG_ECC");
        self.take(3, 2, "nameAlg: TPM_ALG_SHA256");
        self.take(3, 4, "objectAttributes");
        self.take_sized(3, "authPolicy");
        if self.rest[..2] == [0, 6] {
            self.take(3, 6, "symmetric: AES, 128 bits, CFB");
            self.take(3, 2, "scheme: TPM_ALG_NULL");
        } else {
            self.take(3, 2, "symmetric: TPM_ALG_NULL");
            self.take(3, 4, "scheme: ECDSA with SHA-256");
        }
        self.take(3, 2, "curveID: TPM_ECC_NIST_P256");
        self.take(3, 2, "kdf: TPM_ALG_NULL");
        self.take_sized(3, "unique.x");
        self.take_sized(3, "unique.y");
    }

    /// Major type, argument and length of the CBOR head at an offset (RFC 8949 §3).
    fn head(&self, at: usize) -> (u8, usize, usize) {
        let head = &self.rest[at..];
        let (argument, length) = match head[0] & 0x1F {
            short @ 0..24 => (usize::from(short), 1),
            24 => (usize::from(head[1]), 2),
            26 => (u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize, 5),
            _ => (usize::from(u16::from_be_bytes([head[1], head[2]])), 3),
        };
        (head[0] >> 5, argument, length)
    }
}

fn plain(bytes: &[u8]) -> String {
    bytes.chunks(32).map(|line| hex(line) + "\n").collect()
}

fn hex(bytes: &[u8]) -> String {
    data_encoding::HEXLOWER.encode(bytes)
}

fn bytes(digits: &str) -> Vec<u8> {
    data_encoding::HEXLOWER.decode(digits.as_bytes()).unwrap()
}

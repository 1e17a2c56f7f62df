//! The worked example of `docs/protocol.md`: what it prints is true, and how it was made.

use std::fmt::Write;
use std::fs;
use std::time::Duration;

use assay_ca_core::tpm::kdf::{Hash, kdfa, kdfe};
use assay_ca_core::{
    Admitted, Assurance, BoundKey, Evidence, Identity, Prepared, Profile, ProvenDevice, Records, TicketKey,
    TrustAnchors, TrustedEk,
};
use assay_wire::{
    Bundle, CertificateReply, ChallengeReply, ProblemCode, Proof, Reply, ReplyBody, Request, RequestBody, RequestId,
    Scope,
};
use aws_lc_rs::agreement::{ECDH_P256, PrivateKey, UnparsedPublicKey, agree};
use rand_core::Rng;
use rcgen::{CertificateParams, DistinguishedName};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivatePkcs8KeyDer, UnixTime};
use webpki::{EndEntityCert, KeyUsage};

use crate::fixture::*;

const DOCUMENT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/protocol.md");
/// The printed EK: its private key is `golden/software-p256.pem`.
const EK: &str = "p256";

#[test]
fn printed_challenge_request_passes_every_check_of_the_ca() {
    let example = Example::read();
    let evidence = Evidence::parse(example.challenge_request()).unwrap();
    let anchors = TrustAnchors::new([example.block("vendor-root").into()]).unwrap();
    let ek = TrustedEk::verify(&evidence.ek, &anchors, None, now()).unwrap();
    assert_eq!((ek.template(), ek.assurance()), ("EK L-2 (P-256)", Assurance::VendorCertificate));
    BoundKey::verify(&evidence).unwrap();
    let admitted = Admitted::decide(ek, evidence.ek.requested_device_id(), &Records::default()).unwrap();
    assert_eq!(*admitted.device_id(), example.certificate_reply().device_id);
    assert_eq!(example.printed("EK id"), evidence.ek.ek_id().to_string());
    assert_eq!(example.printed("device id"), admitted.device_id().as_str());
}

#[test]
fn printed_credential_opens_to_the_printed_ticket() {
    let example = Example::read();
    let (challenge, request) = (example.challenge_reply(), example.challenge_request());
    let device = device_of(&request);
    assert_eq!(request.ek_public[..], device.ek.area.encode());
    let answer = device.answer(&challenge);
    assert_eq!(answer, example.certify_request());
    assert_eq!(answer.ticket.as_bytes()[..], example.value("ticket"));
    assert_eq!(device.ik_name().as_ref(), example.value("IK Name"));

    let steps = Steps::of(&challenge, &device);
    assert_eq!(example.value("Z"), steps.z);
    assert_eq!(example.value("seed"), steps.seed);
    assert_eq!(example.value("STORAGE key"), steps.storage_key);
    assert_eq!(example.value("INTEGRITY key"), steps.integrity_key);
    let pem = golden(&format!("software-{EK}.pem"));
    let pkcs8 = PrivatePkcs8KeyDer::from_pem_slice(&pem).unwrap();
    let scalar = example.value("EK private key");
    assert!(pkcs8.secret_pkcs8_der().windows(scalar.len()).any(|window| window == scalar));
}

#[test]
fn printed_certify_request_proves_the_device() {
    let example = Example::read();
    let key = TicketKey::new(example.value("ticket key").try_into().unwrap());
    let proven = ProvenDevice::verify(&example.certify_request(), &example.scope(), &key, now()).unwrap();
    assert_eq!(proven.ek_id().to_string(), example.printed("EK id"));
    assert_eq!(*proven.device_id(), example.certificate_reply().device_id);
    assert_eq!(proven.ik_spki(), device_of(&example.challenge_request()).ik_area.public_key().unwrap().spki());
}

#[test]
fn printed_certificate_is_for_the_ik_and_leads_to_the_printed_root() {
    let example = Example::read();
    let granted = example.certificate_reply();
    let [leaf, issuers @ ..] = &granted.chain[..] else { unreachable!("a chain has a leaf") };
    let identity = Identity::Device { scope: example.scope(), device_id: granted.device_id.clone() };
    assert_eq!(Identity::from_certificate(leaf).unwrap(), identity);

    let (root, leaf) = (CertificateDer::from(example.block("ca-root")), CertificateDer::from(leaf.to_vec()));
    let issuers: Vec<_> = issuers.iter().map(|der| CertificateDer::from(der.to_vec())).collect();
    let time = UnixTime::since_unix_epoch(Duration::from_secs(now().unix_timestamp().unsigned_abs()));
    let certificate = EndEntityCert::try_from(&leaf).unwrap();
    let anchors = [webpki::anchor_from_trusted_cert(&root).unwrap()];
    certificate
        .verify_for_usage(webpki::ALL_VERIFICATION_ALGS, &anchors, &issuers, time, KeyUsage::client_auth(), None, None)
        .unwrap();
    let ik = device_of(&example.challenge_request()).ik_area.public_key().unwrap();
    assert_eq!(certificate.subject_public_key_info().as_ref(), ik.spki());
}

#[test]
fn printed_replies_answer_the_printed_requests() {
    let example = Example::read();
    for (request, reply) in [("challenge-request", "challenge-reply"), ("certify-request", "certificate-reply")] {
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

/// Signatures are random, so each run makes another example.
/// `UPDATE_EXAMPLE=1 cargo test -p assay-ca-core --test pipeline example_made_anew` writes it into the document.
#[test]
fn example_made_anew_reads_like_the_printed_one() {
    let vendor = Vendor::new("Example Vendor");
    let mut ca = Ca::trusting(&vendor);
    let mut device = Device::with_ek(&vendor, SoftwareEk::golden(EK));
    let (area, ik) = p256_ik();
    let mut wishes = CertificateParams::default();
    wishes.distinguished_name = DistinguishedName::new();
    (device.ik_area, device.csr) = (area, wishes.serialize_request(&ik).unwrap().der().to_vec());

    let challenge = ca.challenge(&device, &Records::default()).unwrap();
    let certify = device.answer(&challenge);
    let readmitted = ca.prove(&certify).unwrap().readmit(&Records::default()).unwrap();
    let device_id = readmitted.device().device_id().clone();
    let prepared = Prepared::new(readmitted, &Profile::default(), &ca.issuer, now(), &mut ca.rng).unwrap();
    let chain = ca.issuer.chain(&ca.issuer.sign(prepared).unwrap().der).unwrap();

    let mut ids = [[0; RequestId::LEN]; 2];
    ids.iter_mut().for_each(|id| ca.rng.fill_bytes(id));
    let [first, second] = ids.map(RequestId::from);
    let steps = Steps::of(&challenge, &device);
    let values = [
        ("EK private key", &scalar_of_the_ek()[..]),
        ("ticket key", ca.ticket_key.secret()),
        ("IK Name", device.ik_name().as_ref()),
        ("Z", &steps.z),
        ("seed", &steps.seed),
        ("STORAGE key", &steps.storage_key),
        ("INTEGRITY key", &steps.integrity_key),
        ("ticket", certify.ticket.as_bytes()),
    ]
    .map(|(name, value)| format!("{name:16}{}\n", hex(value)));
    let names = format!("{:16}{}\n{:16}{device_id}\n", "EK id", device.ek.key().ek_id(), "device id");

    let request = |id, body| Request { id, body }.encode();
    let reply = |id, body| Reply { id, body }.encode();
    let requests =
        [request(first, RequestBody::Challenge(device.request())), request(second, RequestBody::Certify(certify))];
    let replies = [
        reply(first, ReplyBody::Challenge(challenge)),
        reply(second, ReplyBody::Certificate(CertificateReply { chain, device_id })),
    ];
    let mut text = fs::read_to_string(DOCUMENT).unwrap();
    for (name, content) in [
        ("vendor-root", plain(&vendor.root)),
        ("ca-root", plain(&ca.root)),
        ("values", format!("{names}{}", values.concat())),
        ("challenge-request", annotated(&requests[0], "challenge request", CHALLENGE_REQUEST)),
        ("challenge-reply", annotated(&replies[0], "challenge reply", CHALLENGE_REPLY)),
        ("certify-request", annotated(&requests[1], "certify request", CERTIFY_REQUEST)),
        ("certificate-reply", annotated(&replies[1], "certificate reply", CERTIFICATE_REPLY)),
    ] {
        let (before, _, after) = split_at_block(&text, name);
        text = format!("{before}{content}{after}");
    }
    let (new, printed) = (Example(text), Example::read());
    assert_eq!(new.challenge_request().ek_public, printed.challenge_request().ek_public);
    assert_eq!(new.certificate_reply().device_id, printed.certificate_reply().device_id);
    assert_eq!(new.certify_request().claim, new.challenge_reply().claim);
    if std::env::var_os("UPDATE_EXAMPLE").is_some() {
        fs::write(DOCUMENT, new.0).unwrap();
    }
}

const CHALLENGE_REQUEST: &[&str] =
    &["EK public area", "EK certificates", "IK public area", "certificate request, PKCS#10 in DER"];
const CHALLENGE_REPLY: &[&str] = &["claim", "credential blob, TPMS_ID_OBJECT", "encrypted seed, TPMS_ECC_POINT"];
const CERTIFY_REQUEST: &[&str] = &["claim, as it came", "ticket"];
const CERTIFICATE_REPLY: &[&str] = &["chain", "device id"];

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

    /// A line of the block of values.
    fn printed(&self, name: &str) -> &str {
        let (_, content, _) = split_at_block(&self.0, "values");
        let line = content.lines().find_map(|line| line.strip_prefix(&format!("{name}  ")));
        line.unwrap_or_else(|| panic!("no value {name}")).trim()
    }

    fn value(&self, name: &str) -> Vec<u8> {
        bytes(self.printed(name))
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

/// The device of the example, with the EK in software and the IK of the request.
fn device_of(request: &Bundle) -> Device {
    let ik_area = assay_ca_core::tpm::public::PublicArea::parse(&request.ik_public).unwrap();
    Device { ek: SoftwareEk::golden(EK), ek_certificates: vec![], ik_area, csr: request.csr.to_vec(), device_id: None }
}

/// What a TPM computes on the way from a credential to its secret.
struct Steps {
    z: Vec<u8>,
    seed: Vec<u8>,
    storage_key: Vec<u8>,
    integrity_key: Vec<u8>,
}

impl Steps {
    fn of(challenge: &ChallengeReply, device: &Device) -> Self {
        let pem = golden(&format!("software-{EK}.pem"));
        let pkcs8 = PrivatePkcs8KeyDer::from_pem_slice(&pem).unwrap();
        let key = PrivateKey::from_private_key_der(&ECDH_P256, pkcs8.secret_pkcs8_der()).unwrap();
        let (x, y) = challenge.encrypted_seed[2..].split_at(32);
        let point = UnparsedPublicKey::new(&ECDH_P256, [&[4], x, &y[2..]].concat());
        let z = agree(&key, &point, (), |z| Ok(z.to_vec())).unwrap();
        let ek_point = key.compute_public_key().unwrap();
        let seed = kdfe(Hash::Sha256, &z, "IDENTITY", x, &ek_point.as_ref()[1..33], 32).to_vec();
        Self {
            storage_key: kdfa(Hash::Sha256, &seed, "STORAGE", device.ik_name().as_ref(), &[], 16).to_vec(),
            integrity_key: kdfa(Hash::Sha256, &seed, "INTEGRITY", &[], &[], 32).to_vec(),
            seed,
            z,
        }
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

/// A message as hexadecimal digits, a comment for each field.
fn annotated(message: &[u8], kind: &str, fields: &[&str]) -> String {
    let mut listing = Listing { rest: message, text: String::new() };
    listing.take(0, 1, "array of 3");
    listing.take(1, 1, &format!("kind: {kind}"));
    listing.take(1, 1, "request id, 16 bytes:");
    listing.take(2, RequestId::LEN, "");
    listing.take(1, 1, &format!("map of {}", fields.len()));
    for field in fields {
        let key = listing.rest[0];
        match listing.head(1) {
            (ARRAY, count, length) => {
                listing.take(2, 1 + length, &format!("{key} => {field}, {count} of them"));
                for n in 1..=count {
                    let (_, size, length) = listing.head(0);
                    listing.take(3, length, &format!("certificate {n}, {size} bytes:"));
                    listing.take(4, size, "");
                }
            }
            (_, size, length) => {
                listing.take(2, 1 + length, &format!("{key} => {field}, {size} bytes:"));
                match *field {
                    "EK public area" | "IK public area" => listing.take_area(),
                    "credential blob, TPMS_ID_OBJECT" => {
                        listing.take_sized(3, "integrityHMAC");
                        listing.take(3, 34, "encIdentity: the ticket after its size, encrypted");
                    }
                    "encrypted seed, TPMS_ECC_POINT" => {
                        listing.take_sized(3, "x of the CA's ephemeral key");
                        listing.take_sized(3, "y");
                    }
                    "device id" => {
                        let text = str::from_utf8(&listing.rest[..size]).unwrap().to_owned();
                        listing.take(3, size, &format!("\"{text}\""));
                    }
                    _ => listing.take(3, size, ""),
                }
            }
        }
    }
    assert!(listing.rest.is_empty());
    listing.text
}

const ARRAY: u8 = 4;

struct Listing<'a> {
    rest: &'a [u8],
    text: String,
}

impl Listing<'_> {
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
        self.take(depth, 2, &format!("{comment}, {size} bytes{}", if size == 0 { "" } else { ":" }));
        self.take(depth + 1, size, "");
    }

    /// TPMT_PUBLIC of a P-256 key on the EK or IK template.
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

//! Every message as annotated bytes, encoded and decoded, and bytes that are not a message.

use assay_wire::{
    ActivationReply, Adoption, Bundle, Bytes, CertificateReply, ChallengeReply, ConfirmedReply,
    DecodeError, EkId, EkPublic, Head, MAX_MESSAGE, ParentBundle, Problem, ProblemCode, Proof,
    Receipt, Renewal, Reply, ReplyBody, Request, RequestBody, RequestId, Scope, SealedCertificate,
    SealedReply, Ticket,
};
use assay_wire::{Configuration, ConfigurationNews, DeviceId, SignedConfiguration};

const ID: &str = "50 000102030405060708090a0b0c0d0e0f";

fn bytes(annotated: &[&str]) -> Vec<u8> {
    hex::decode(annotated.concat().replace(' ', "")).unwrap()
}

fn opaque<const MAX: usize>(content: &[u8]) -> Bytes<MAX> {
    content.try_into().unwrap()
}

fn area(content: &[u8]) -> EkPublic {
    content.to_vec().try_into().unwrap()
}

fn id() -> RequestId {
    "000102030405060708090a0b0c0d0e0f".parse().unwrap()
}

fn challenge_request() -> (Request, Vec<u8>) {
    let request = Request {
        id: id(),
        body: RequestBody::Challenge(Bundle {
            device_id: Some("pump-17".parse().unwrap()),
            ek_public: area(b"ek"),
            ek_certificates: vec![opaque(b"leaf"), opaque(b"ca")].try_into().unwrap(),
            ik_public: opaque(b"ik"),
            csr: opaque(b"csr"),
            other_eks: None,
        }),
    };
    let annotated = bytes(&[
        "83",                   // array of three
        "01",                   // kind: challenge
        ID,                     // request id
        "a5",                   // map of five
        "00 67 70756d702d3137", // 0: device id "pump-17"
        "01 42 656b",           // 1: EK public area
        "02 82",                // 2: EK certificates, two of them
        "44 6c656166",          //    leaf
        "42 6361",              //    its issuer
        "03 42 696b",           // 3: IK public area
        "04 43 637372",         // 4: CSR
    ]);
    (request, annotated)
}

fn requests() -> Vec<(Request, Vec<u8>)> {
    let without_id = Request {
        id: id(),
        body: RequestBody::Challenge(Bundle {
            device_id: None,
            ek_public: area(b"ek"),
            ek_certificates: Default::default(),
            ik_public: opaque(b"ik"),
            csr: opaque(b"csr"),
            other_eks: None,
        }),
    };
    let without_id_bytes = bytes(&[
        "83 01",
        ID,
        "a4",           // map of four: no device id
        "01 42 656b",   // 1: EK public area
        "02 80",        // 2: no EK certificate
        "03 42 696b",   // 3: IK public area
        "04 43 637372", // 4: CSR
    ]);
    let certify = Request {
        id: id(),
        body: RequestBody::Certify(Proof {
            claim: opaque(b"claim"),
            ticket: Ticket::from([0xaa; 32]),
        }),
    };
    let certify_bytes = bytes(&[
        "83 02", // kind: certify
        ID,
        "a2",               // map of two
        "00 45 636c61696d", // 0: claim
        "01 5820",          // 1: ticket, 32 bytes
        &"aa".repeat(32),
    ]);
    let (challenge, mut enroll_bytes) = challenge_request();
    let RequestBody::Challenge(bundle) = challenge.body else { panic!() };
    let enroll = Request { id: id(), body: RequestBody::Enroll(bundle) };
    enroll_bytes[1] = 3;
    let RequestBody::Certify(proof) = certify.body.clone() else { panic!() };
    let confirm = Request { id: id(), body: RequestBody::Confirm(proof) };
    let mut confirm_bytes = certify_bytes.clone();
    confirm_bytes[1] = 4;
    let register = Request {
        id: id(),
        body: RequestBody::Register(ParentBundle {
            device_id: Some("pump-17".parse().unwrap()),
            ek_public: EkPublic::OfCertificate(0x01C0_000A),
            ek_certificates: vec![opaque(b"leaf")].try_into().unwrap(),
            parent_public: opaque(b"parent"),
            other_eks: Some(vec![EkId::from([0xbb; 32])].try_into().unwrap()),
        }),
    };
    let register_bytes = bytes(&[
        "83 05", // kind: register
        ID,
        "a5",                   // map of five
        "00 67 70756d702d3137", // 0: device id "pump-17"
        "01 1a01c0000a",        // 1: EK public area: that of the certificate, on template L-2
        "02 81 44 6c656166",    // 2: EK certificates, one of them
        "03 46 706172656e74",   // 3: public area of the parent
        "04 81 5820",           // 4: other EKs, one of them
        &"bb".repeat(32),
    ]);
    let renew = Request {
        id: id(),
        body: RequestBody::Renew(Renewal {
            ek_public: EkPublic::OfCertificate(0x01C0_000A),
            ek_certificates: vec![opaque(b"leaf")].try_into().unwrap(),
            certificate: [0xee; 32],
            time: 1_800_000_000,
            signature: opaque(b"sig"),
        }),
    };
    let renew_bytes = bytes(&[
        "83 07", // kind: renew
        ID,
        "a5",                // map of five
        "00 1a01c0000a",     // 0: EK public area: that of the certificate, on template L-2
        "01 81 44 6c656166", // 1: EK certificates, one of them
        "02 5820",           // 2: SHA-256 of the certificate in force
        &"ee".repeat(32),
        "03 1a6b49d200", // 3: time
        "04 43 736967",  // 4: signature
    ]);
    let adopt = Request {
        id: id(),
        body: RequestBody::Adopt(Adoption {
            certificate: [0xee; 32],
            time: 1_800_000_000,
            signature: opaque(b"sig"),
            ek_id: EkId::from([0xbb; 32]),
        }),
    };
    let adopt_bytes = bytes(&[
        "83 08", // kind: adopt
        ID,
        "a4",      // map of four
        "00 5820", // 0: SHA-256 of the renewed certificate
        &"ee".repeat(32),
        "01 1a6b49d200", // 1: time
        "02 43 736967",  // 2: signature
        "03 5820",       // 3: EK id
        &"bb".repeat(32),
    ]);
    let (challenge, mut rekey_bytes) = challenge_request();
    let RequestBody::Challenge(bundle) = challenge.body else { panic!() };
    let rekey = Request { id: id(), body: RequestBody::Rekey(bundle) };
    rekey_bytes[1] = 9;
    vec![
        challenge_request(),
        (rekey, rekey_bytes),
        (renew, renew_bytes),
        (adopt, adopt_bytes),
        (without_id, without_id_bytes),
        (enroll, enroll_bytes),
        (confirm, confirm_bytes),
        (register, register_bytes),
        (Request { id: id(), body: RequestBody::Ping }, bytes(&["83 06", ID, "a0"])), // an empty map
        (certify, certify_bytes),
    ]
}

fn replies() -> Vec<(Reply, Vec<u8>)> {
    let reply = |body| Reply { id: id(), body };
    let refused = Problem::new(ProblemCode::EkNotEnrolled, "no".into());
    let busy = Problem::new(ProblemCode::Busy, "no".into()).retry_after(300);
    let title = |text: &str| format!("20 78{:02x} {}", text.len(), hex::encode(text));
    vec![
        (
            reply(ReplyBody::Problem(refused)),
            bytes(&[
                "83 00", // kind: problem
                ID,
                "a3",                                       // map of three
                "00 0c",                                    // 0: code 12, ek-not-enrolled
                &title(ProblemCode::EkNotEnrolled.title()), // -1: title
                "21 62 6e6f",                               // -2: detail "no"
            ]),
        ),
        (
            reply(ReplyBody::Problem(busy)),
            bytes(&[
                "83 00",
                ID,
                "a4",                              // map of four
                "00 04",                           // 0: code 4, busy
                "01 19012c",                       // 1: retry after 300 s
                &title(ProblemCode::Busy.title()), // -1: title
                "21 62 6e6f",                      // -2: detail "no"
            ]),
        ),
        (
            reply(ReplyBody::Challenge(ChallengeReply {
                claim: opaque(b"claim"),
                credential_blob: opaque(b"blob"),
                encrypted_seed: opaque(b"seed"),
            })),
            bytes(&[
                "83 01", // kind: challenge
                ID,
                "a3",               // map of three
                "00 45 636c61696d", // 0: claim
                "01 44 626c6f62",   // 1: credential blob
                "02 44 73656564",   // 2: encrypted seed
            ]),
        ),
        (
            reply(ReplyBody::Certificate(CertificateReply {
                chain: vec![opaque(b"leaf"), opaque(b"ca")].try_into().unwrap(),
                renew_at: None,
                configuration: None,
                new_root: None,
            })),
            bytes(&[
                "83 02", // kind: certificate
                ID,
                "a1",          // map of one
                "00 82",       // 0: chain of two
                "44 6c656166", //    the device's certificate
                "42 6361",     //    its issuer
            ]),
        ),
        (
            reply(ReplyBody::Certificate(CertificateReply {
                chain: vec![opaque(b"leaf")].try_into().unwrap(),
                renew_at: Some(1_800_000_000),
                configuration: Some(opaque(b"cose")),
                new_root: Some(opaque(b"root")),
            })),
            bytes(&[
                "83 02",
                ID,
                "a4",                // map of four
                "00 81 44 6c656166", // 0: chain of one
                "01 1a6b49d200",     // 1: when to renew
                "02 44 636f7365",    // 2: signed configuration
                "03 44 726f6f74",    // 2: a new root
            ]),
        ),
        (
            reply(ReplyBody::Sealed(SealedReply {
                claim: opaque(b"claim"),
                credential_blob: opaque(b"blob"),
                encrypted_seed: opaque(b"seed"),
                sealed: opaque(b"sealed"),
            })),
            bytes(&[
                "83 03", // kind: sealed
                ID,
                "a4",                 // map of four
                "00 45 636c61696d",   // 0: claim
                "01 44 626c6f62",     // 1: credential blob
                "02 44 73656564",     // 2: encrypted seed
                "03 46 7365616c6564", // 3: nonce, ciphertext and tag
            ]),
        ),
        (
            reply(ReplyBody::Confirmed(ConfirmedReply { receipt: Receipt::from([0xcc; 32]) })),
            bytes(&[
                "83 04", // kind: confirmed
                ID,
                "a1",      // map of one
                "00 5820", // 0: receipt, 32 bytes
                &"cc".repeat(32),
            ]),
        ),
        (
            reply(ReplyBody::Activation(ActivationReply {
                credential_blob: opaque(b"blob"),
                encrypted_seed: opaque(b"seed"),
                duplicate: opaque(b"dup"),
                symmetric_seed: opaque(b"sym"),
                key_public: opaque(b"key"),
                device_id: "pump-17".parse().unwrap(),
                rotate_after: None,
            })),
            bytes(&[
                "83 05", // kind: activation
                ID,
                "a6",                   // map of six
                "00 44 626c6f62",       // 0: credential blob
                "01 44 73656564",       // 1: encrypted seed
                "02 43 647570",         // 2: duplicate
                "03 43 73796d",         // 3: seed of the outer wrapper
                "04 43 6b6579",         // 4: public area of the HMAC key
                "05 67 70756d702d3137", // 5: device id "pump-17"
            ]),
        ),
        (
            reply(ReplyBody::Activation(ActivationReply {
                credential_blob: opaque(b"blob"),
                encrypted_seed: opaque(b"seed"),
                duplicate: opaque(b"dup"),
                symmetric_seed: opaque(b"sym"),
                key_public: opaque(b"key"),
                device_id: "pump-17".parse().unwrap(),
                rotate_after: Some(7_776_000),
            })),
            bytes(&[
                "83 05", // kind: activation
                ID,
                "a7",                   // map of seven
                "00 44 626c6f62",       // 0: credential blob
                "01 44 73656564",       // 1: encrypted seed
                "02 43 647570",         // 2: duplicate
                "03 43 73796d",         // 3: seed of the outer wrapper
                "04 43 6b6579",         // 4: public area of the HMAC key
                "05 67 70756d702d3137", // 5: device id "pump-17"
                "06 1a 0076a700",       // 6: when to ask for the next key, in 90 days
            ]),
        ),
        (reply(ReplyBody::Pong), bytes(&["83 06", ID, "a0"])), // kind: pong, an empty map
        (reply(ReplyBody::Adopted), bytes(&["83 07", ID, "a0"])), // kind: adopted, an empty map
    ]
}

fn sealed_certificate() -> (SealedCertificate, Vec<u8>) {
    let sealed = SealedCertificate {
        chain: vec![opaque(b"leaf"), opaque(b"ca")].try_into().unwrap(),
        ticket: Ticket::from([0xaa; 32]),
        receipt_sha256: [0xdd; 32],
        renew_at: Some(1_800_000_000),
        configuration: None,
    };
    let annotated = bytes(&[
        "a4",                       // map of four
        "00 82 44 6c656166 426361", // 0: chain of two
        "01 5820",                  // 1: ticket, 32 bytes
        &"aa".repeat(32),
        "02 5820", // 2: SHA-256 of the receipt
        &"dd".repeat(32),
        "03 1a6b49d200", // 3: when to renew
    ]);
    (sealed, annotated)
}

#[test]
fn what_is_sealed_is_these_bytes_both_ways_and_no_others() {
    let (sealed, bytes) = sealed_certificate();
    assert_eq!(hex::encode(sealed.encode()), hex::encode(&bytes));
    assert_eq!(SealedCertificate::decode(&bytes), Ok(sealed));
    let trailing = [&bytes[..], &[0]].concat();
    assert_eq!(
        SealedCertificate::decode(&trailing),
        Err(DecodeError::NotDeterministic(bytes.len()))
    );
    for length in 0..bytes.len() {
        assert!(
            matches!(SealedCertificate::decode(&bytes[..length]), Err(DecodeError::Malformed(_))),
            "{length}"
        );
    }
}

#[test]
fn a_sealed_certificate_without_advice_is_read_as_before() {
    let (sealed, with_advice) = sealed_certificate();
    let mut bytes = with_advice[..with_advice.len() - 6].to_vec();
    bytes[0] = 0xa3;
    let sealed = SealedCertificate { renew_at: None, ..sealed };
    assert_eq!(hex::encode(sealed.encode()), hex::encode(&bytes));
    assert_eq!(SealedCertificate::decode(&bytes), Ok(sealed));
}

#[test]
fn what_an_ik_signs_is_these_bytes() {
    let scope: Scope = "plant-7".parse().unwrap();
    let signed = |label: &str| {
        bytes(&[
            "84", // array of four
            "6e", // text of 14
            label,
            "67 706c616e742d37", // "plant-7"
            "5820",
            &"ee".repeat(32), // SHA-256 of the certificate
            "1a6b49d200",     // time
        ])
    };
    let (certificate, time) = ([0xee; 32], 1_800_000_000);
    assert_eq!(
        hex::encode(Renewal::signed(&scope, &certificate, time)),
        hex::encode(signed("61737361792072656e6577207631")), // "assay renew v1"
    );
    assert_eq!(
        hex::encode(Adoption::signed(&scope, &certificate, time)),
        hex::encode(signed("61737361792061646f7074207631")), // "assay adopt v1"
    );
}

#[test]
fn associated_data_of_a_sealed_certificate_is_these_bytes() {
    let data = SealedReply::associated_data(b"claim", &[0xee; 32].into(), &[0x11; 32]);
    let annotated = bytes(&[
        "84",                                // array of four
        "6f 6173736179207365616c6564207631", // "assay sealed v1"
        "45 636c61696d",                     // claim
        "5820",
        &"ee".repeat(32), // EK id
        "5820",
        &"11".repeat(32), // SHA-256 of the IK's SubjectPublicKeyInfo
    ]);
    assert_eq!(hex::encode(data), hex::encode(annotated));
}

#[test]
fn messages_are_these_bytes_both_ways() {
    for (request, bytes) in requests() {
        assert_eq!(hex::encode(request.encode()), hex::encode(&bytes));
        assert_eq!(Request::decode(&bytes), Ok(request));
    }
    for (reply, bytes) in replies() {
        assert_eq!(hex::encode(reply.encode()), hex::encode(&bytes));
        assert_eq!(Reply::decode(&bytes), Ok(reply));
    }
}

#[test]
fn messages_match_the_cddl() {
    let cddl = include_str!("../assay.cddl");
    let rule = |name: &str, bytes: &[u8]| {
        let cddl = format!("start = {name}\n{cddl}");
        cddl::validate_cbor_from_slice(&cddl, bytes, None)
            .unwrap_or_else(|error| panic!("{name}: {error}"));
    };
    rule("sealed-certificate", &sealed_certificate().1);
    let (configuration, payload) = configuration();
    rule("configuration", &payload);
    rule("configuration", &Configuration { document: None, ..configuration }.encode());
    for chain in [vec![opaque(b"leaf")], vec![opaque(b"leaf"), opaque(b"ca")]] {
        let (chain, payload) = (chain.try_into().unwrap(), payload.clone());
        let signed = SignedConfiguration { chain, payload, signature: [0xee; 64] };
        rule("cose-sign1", &signed.encode());
    }
    let devices = vec![("pump-1".parse().unwrap(), 7)];
    rule("configuration-news", &ConfigurationNews { for_all: 5, spread: 20, devices }.encode());
    rule(
        "sealed-associated-data",
        &SealedReply::associated_data(b"claim", &[0xee; 32].into(), &[0x11; 32]),
    );
    let scope: Scope = "plant-7".parse().unwrap();
    rule("signed-renewal", &Renewal::signed(&scope, &[0xee; 32], 1_800_000_000));
    rule("signed-adoption", &Adoption::signed(&scope, &[0xee; 32], 1_800_000_000));
    let messages = requests()
        .into_iter()
        .map(|(_, bytes)| bytes)
        .chain(replies().into_iter().map(|(_, bytes)| bytes));
    for message in messages {
        cddl::validate_cbor_from_slice(cddl, &message, None)
            .unwrap_or_else(|error| panic!("{}: {error}", hex::encode(&message)));
    }
}

#[test]
fn the_cddl_refuses_what_is_no_message() {
    let cddl = include_str!("../assay.cddl");
    let certify_without_ticket = bytes(&["83 02", ID, "a1 00 45 636c61696d"]);
    let short_ticket = bytes(&["83 02", ID, "a2 00 45 636c61696d 01 43 aaaaaa"]);
    let unknown_kind = bytes(&["83 0a", ID, "a0"]);
    let ping_that_says_something = bytes(&["83 06", ID, "a1 00 45 636c61696d"]);
    for message in [certify_without_ticket, short_ticket, unknown_kind, ping_that_says_something] {
        assert!(
            cddl::validate_cbor_from_slice(cddl, &message, None).is_err(),
            "{}",
            hex::encode(&message)
        );
        assert!(Request::decode(&message).is_err(), "{}", hex::encode(&message));
    }
}

#[test]
fn truncated_messages_are_malformed() {
    for (_, bytes) in requests() {
        for length in 0..bytes.len() {
            let error = Request::decode(&bytes[..length]).unwrap_err();
            assert!(matches!(error, DecodeError::Malformed(_)), "{length}: {error}");
        }
    }
    for (_, bytes) in replies() {
        for length in 0..bytes.len() {
            let error = Reply::decode(&bytes[..length]).unwrap_err();
            assert!(matches!(error, DecodeError::Malformed(_)), "{length}: {error}");
        }
    }
}

#[test]
fn no_single_byte_change_makes_a_panic_or_a_second_encoding() {
    for (original, bytes) in requests() {
        for (at, bit) in (0..bytes.len()).flat_map(|at| (0..8).map(move |bit| (at, bit))) {
            let mut changed = bytes.clone();
            changed[at] ^= 1 << bit;
            if let Ok(request) = Request::decode(&changed) {
                assert_ne!(request, original);
                assert_eq!(request.encode(), changed);
            }
        }
    }
}

#[test]
fn oversize_message_is_refused_before_it_is_read() {
    let error = Request::decode(&vec![0xff; MAX_MESSAGE + 1]).unwrap_err();
    assert!(
        matches!(error, DecodeError::Oversize(limit) if limit.length == MAX_MESSAGE + 1),
        "{error}"
    );
}

#[test]
fn trailing_bytes_are_refused() {
    let (_, mut bytes) = challenge_request();
    let end = bytes.len();
    bytes.push(0);
    assert_eq!(Request::decode(&bytes), Err(DecodeError::NotDeterministic(end)));
}

#[test]
fn duplicate_and_unknown_keys_are_refused() {
    let duplicate =
        bytes(&["83 02", ID, "a3 00 45 636c61696d 00 45 636c61696d 01 5820", &"aa".repeat(32)]);
    let unknown = bytes(&["83 02", ID, "a3 00 45 636c61696d 01 5820", &"aa".repeat(32), "02 00"]);
    let unsorted = bytes(&["83 02", ID, "a2 01 5820", &"aa".repeat(32), "00 45 636c61696d"]);
    for message in [duplicate, unknown, unsorted] {
        assert!(matches!(Request::decode(&message), Err(DecodeError::NotDeterministic(_))));
    }
}

#[test]
fn indefinite_and_needlessly_long_lengths_are_refused() {
    let (_, canonical) = requests().pop().unwrap();
    let indefinite_map =
        bytes(&["83 02", ID, "bf 00 45 636c61696d 01 5820", &"aa".repeat(32), "ff"]);
    let indefinite_array =
        bytes(&["9f 02", ID, "a2 00 45 636c61696d 01 5820", &"aa".repeat(32), "ff"]);
    let chunked_bytes =
        bytes(&["83 02", ID, "a2 00 5f 45 636c61696d ff 01 5820", &"aa".repeat(32)]);
    let long_kind = bytes(&["83 1802", ID, "a2 00 45 636c61696d 01 5820", &"aa".repeat(32)]);
    let long_length = bytes(&["83 02", ID, "a2 00 5805 636c61696d 01 5820", &"aa".repeat(32)]);
    assert!(Request::decode(&canonical).is_ok());
    for message in [indefinite_map, indefinite_array, chunked_bytes, long_kind, long_length] {
        assert!(Request::decode(&message).is_err(), "{}", hex::encode(&message));
    }
}

#[test]
fn deep_nesting_is_refused_without_recursion() {
    let nested = "81".repeat(MAX_MESSAGE - 100);
    let in_an_unknown_key =
        bytes(&["83 02", ID, "a3 00 45 636c61696d 01 5820", &"aa".repeat(32), "02", &nested, "00"]);
    let as_the_body = bytes(&["83 02", ID, &nested]);
    for message in [in_an_unknown_key, as_the_body] {
        assert!(message.len() <= MAX_MESSAGE);
        assert!(Request::decode(&message).is_err());
    }
}

#[test]
fn lengths_that_promise_more_than_there_is_allocate_nothing() {
    let huge_array = bytes(&["83 01", ID, "a4 01 40 02 9b ffffffffffffffff"]);
    let huge_bytes = bytes(&["83 01", ID, "a4 01 5b ffffffffffffffff"]);
    for message in [huge_array, huge_bytes] {
        assert!(matches!(Request::decode(&message), Err(DecodeError::Malformed(_))));
    }
}

#[test]
fn fields_beyond_their_limit_are_refused() {
    let seven_certificates =
        bytes(&["83 01", ID, "a4 01 40 02 87", &"40".repeat(7), "03 40 04 40"]);
    let long_public_area =
        bytes(&["83 01", ID, "a4 01 590281", &"00".repeat(641), "02 80 03 40 04 40"]);
    let empty_chain = bytes(&["83 02", ID, "a1 00 80"]);
    let long_index = bytes(&["83 01", ID, "a4 01 1b 0000000100000000 02 80 03 40 04 40"]);
    assert!(matches!(Request::decode(&seven_certificates), Err(DecodeError::Malformed(_))));
    assert!(matches!(Request::decode(&long_public_area), Err(DecodeError::Malformed(_))));
    assert!(matches!(Request::decode(&long_index), Err(DecodeError::Malformed(_))));
    assert!(matches!(Reply::decode(&empty_chain), Err(DecodeError::Malformed(_))));
}

#[test]
fn wrong_types_are_refused() {
    let float_kind = bytes(&["83 f94000", ID, "a0"]);
    let tagged = bytes(&["d9d9f7 83 02", ID, "a2 00 45 636c61696d 01 5820", &"aa".repeat(32)]);
    let bad_utf8 = bytes(&["83 01", ID, "a5 00 61 ff 01 40 02 80 03 40 04 40"]);
    let slash_in_id = bytes(&["83 01", ID, "a5 00 61 2f 01 40 02 80 03 40 04 40"]);
    for message in [float_kind, tagged, bad_utf8, slash_in_id] {
        assert!(
            matches!(Request::decode(&message), Err(DecodeError::Malformed(_))),
            "{}",
            hex::encode(&message)
        );
    }
}

#[test]
fn a_problem_of_a_later_version_is_still_a_problem() {
    let later = bytes(&["83 00", ID, "a3 00 1903e7 20 63 6e6577 21 62 6e6f"]);
    let reply = Reply::decode(&later).unwrap();
    let ReplyBody::Problem(problem) = &reply.body else { panic!("{reply:?}") };
    assert_eq!((problem.code, &*problem.title), (ProblemCode::Other(999), "new"));
    assert_eq!(reply.encode(), later);
}

#[test]
fn the_id_of_an_unreadable_request_is_found_if_it_is_there() {
    let unknown_kind = bytes(&["83 0a", ID, "a0"]);
    assert_eq!(Request::decode(&unknown_kind), Err(DecodeError::UnknownKind(10)));
    let far = bytes(&["83 19012c", ID, "a0"]);
    assert_eq!(
        Request::decode(&far),
        Err(DecodeError::UnknownKind(300)),
        "to be answered with `unsupported`"
    );
    assert_eq!(Head::read(&unknown_kind).unwrap().id(), id());
    assert!(Head::read(b"\xff").is_err());
}

#[test]
fn a_ticket_never_shows_in_debug_output() {
    let (certify, _) = requests().pop().unwrap();
    assert!(!format!("{certify:?}").contains("aa"), "{certify:?}");
    assert!(format!("{certify:?}").contains("Ticket(..)"));
}

#[test]
fn last_requests_of_a_flow_are_told_apart_by_their_head_alone() {
    for (request, encoded) in requests() {
        let is_last = matches!(request.body, RequestBody::Certify(_) | RequestBody::Confirm(_));
        assert_eq!(
            Head::read(&encoded).is_ok_and(|head| head.finishes_a_flow()),
            is_last,
            "{request:?}"
        );
        assert_eq!(
            Head::read(&encoded[..20]).is_ok_and(|head| head.finishes_a_flow()),
            is_last,
            "{request:?}"
        );
    }
    assert!(!Head::read(&[]).is_ok_and(|head| head.finishes_a_flow()));
}

#[test]
fn a_device_names_one_to_five_other_eks() {
    let id_of_ek = ["5820", &"bb".repeat(32)].concat();
    for (count, is_taken) in [(0, false), (1, true), (5, true), (6, false)] {
        let others = [format!("04 8{count}"), id_of_ek.repeat(count)].concat();
        let message = bytes(&["83 05", ID, "a4 01 42 656b 02 80 03 43 73726b", &others]);
        let decoded = Request::decode(&message);
        assert_eq!(decoded.is_ok(), is_taken, "{count}: {decoded:?}");
        assert!(
            is_taken || matches!(decoded, Err(DecodeError::Malformed(_))),
            "{count}: {decoded:?}"
        );
    }
}

fn configuration() -> (Configuration, Vec<u8>) {
    let configuration = Configuration {
        scope: "default".parse().unwrap(),
        device_id: "pump-1".parse().unwrap(),
        revision: 300,
        document: Some(opaque(b"{}")),
    };
    let payload = bytes(&[
        "85",
        "76 617373617920636f6e66696775726174696f6e207631", // "assay configuration v1"
        "67 64656661756c74",                               // scope
        "66 70756d702d31",                                 // device id
        "19012c",                                          // revision
        "42 7b7d",                                         // document
    ]);
    (configuration, payload)
}

#[test]
fn configuration_is_these_bytes_both_ways_and_no_others() {
    let (configuration, payload) = configuration();
    assert_eq!(hex::encode(configuration.encode()), hex::encode(&payload));
    assert_eq!(Configuration::decode(&payload), Ok(configuration.clone()));
    let removed = Configuration { document: None, ..configuration };
    let bytes = [&payload[..payload.len() - 3], &[0xf6]].concat();
    assert_eq!(removed.encode(), bytes);
    assert_eq!(Configuration::decode(&bytes), Ok(removed));
    assert!(Configuration::decode(&[&payload[..], &[0]].concat()).is_err());
    for length in 0..payload.len() {
        assert!(Configuration::decode(&payload[..length]).is_err(), "{length}");
    }
    let long = [&payload[..payload.len() - 3], &[0x59, 0x10, 0x01], &[0; 4097]].concat();
    assert!(matches!(Configuration::decode(&long), Err(DecodeError::Malformed(_))));
}

#[test]
fn signed_configuration_is_a_cose_sign1_and_nothing_else() {
    let (_, payload) = configuration();
    let of = |chain: &[&[u8]]| SignedConfiguration {
        chain: chain.iter().map(|der| opaque(der)).collect::<Vec<_>>().try_into().unwrap(),
        payload: payload.clone(),
        signature: [0xee; 64],
    };
    let (payload_hex, signature) = (hex::encode(&payload), "ee".repeat(64));
    for (signed, chain) in
        [(of(&[b"leaf"]), "44 6c656166"), (of(&[b"leaf", b"ca"]), "82 44 6c656166 42 6361")]
    {
        let annotated = bytes(&[
            "84",
            "43 a10126", // protected: ES256
            "a1 1821",   // unprotected: x5chain
            chain,
            "58 2d",
            &payload_hex,
            "58 40",
            &signature,
        ]);
        assert_eq!(hex::encode(signed.encode()), hex::encode(&annotated));
        assert_eq!(SignedConfiguration::decode(&annotated), Ok(signed));
        assert!(SignedConfiguration::decode(&[&annotated[..], &[0]].concat()).is_err());
        for length in 0..annotated.len() {
            assert!(SignedConfiguration::decode(&annotated[..length]).is_err(), "{length}");
        }
        // Another algorithm, a tag, and a header more.
        for (at, byte) in [(4, 0x27), (0, 0xd2), (5, 0xa2)] {
            let mut other = annotated.clone();
            other[at] = byte;
            assert!(SignedConfiguration::decode(&other).is_err(), "{at}");
        }
    }
    let signed = SignedConfiguration::signed(&[1, 2]);
    let annotated = bytes(&["84", "6a 5369676e617475726531", "43 a10126", "40", "42 0102"]);
    assert_eq!(hex::encode(signed), hex::encode(annotated));
}

#[test]
fn news_of_configurations_are_these_bytes_and_say_what_concerns_whom() {
    let device = |name: &str| name.parse::<DeviceId>().unwrap();
    let news = ConfigurationNews {
        for_all: 5,
        spread: 20,
        devices: vec![(device("pump-1"), 7), (device("pump-2"), 4)],
    };
    let annotated =
        bytes(&["83", "05", "14", "82", "82 66 70756d702d31 07", "82 66 70756d702d32 04"]);
    assert_eq!(hex::encode(news.encode()), hex::encode(&annotated));
    assert_eq!(ConfigurationNews::decode(&annotated), Ok(news.clone()));
    let newest = |name: &str| news.newest_for(&device(name));
    assert_eq!([newest("pump-1"), newest("pump-2"), newest("pump-3"), news.newest()], [7, 5, 5, 7]);
    for length in 0..annotated.len() {
        assert!(ConfigurationNews::decode(&annotated[..length]).is_err(), "{length}");
    }
    let many = vec![(device("pump-1"), 7); ConfigurationNews::MAX_DEVICES + 1];
    let long = ConfigurationNews { devices: many, ..news };
    assert!(matches!(ConfigurationNews::decode(&long.encode()), Err(DecodeError::Malformed(_))));
}

//! What MQTT 5 and 3.1.1 demand of a server, packet by packet: `docs/mqtt.md` says which clause is
//! shown where.

use super::*;

/// The answer to a packet.
#[derive(Clone, Copy, Debug)]
enum Due {
    /// MQTT 5: DISCONNECT with this reason code, and the end; MQTT 3.1.1: the end.
    Cut(u8),
    /// A packet that begins with these bytes.
    Answer(&'static [u8]),
}

use Due::{Answer, Cut};

const PROTOCOL_ERROR: u8 = 0x82;
const TOPIC_NAME_INVALID: u8 = 0x90;
const SUBSCRIPTION_IDENTIFIERS_NOT_SUPPORTED: u8 = 0xa1;

/// For a connected device: the clauses that a row is about, what the packet is, its bytes, and the
/// answer that is due.
type Case = (&'static str, &'static str, Vec<u8>, Due);

/// Packets that are the same in both versions.
fn cases_of_both() -> Vec<Case> {
    let cut = |code| Cut(code);
    vec![
        (
            "2.1.3-1",
            "reserved flags of PUBACK",
            packet(0x41, b"\0\x01".to_vec()),
            cut(MALFORMED_PACKET),
        ),
        ("2.1.3-1", "reserved flags of PINGREQ", packet(0xc1, vec![]), cut(MALFORMED_PACKET)),
        ("2.1.3-1", "reserved flags of DISCONNECT", packet(0xe1, vec![]), cut(MALFORMED_PACKET)),
        (
            "3.8.1-1",
            "reserved flags of SUBSCRIBE",
            packet(0x80, b"\0\x01\0\0\x01x\0".to_vec()),
            cut(MALFORMED_PACKET),
        ),
        (
            "3.10.1-1",
            "reserved flags of UNSUBSCRIBE",
            packet(0xa0, b"\0\x01\0\0\x01x".to_vec()),
            cut(MALFORMED_PACKET),
        ),
        ("2.1.2", "type 0", packet(0x00, vec![]), cut(MALFORMED_PACKET)),
        (
            "1.5.5",
            "a length of five bytes",
            vec![0x30, 0xff, 0xff, 0xff, 0xff, 0x01],
            cut(MALFORMED_PACKET),
        ),
        ("3.1.0-2", "a second CONNECT", Connect::new("pump-17").packet(), cut(PROTOCOL_ERROR)),
        ("3.2", "CONNACK from a client", packet(0x20, b"\0\0\0".to_vec()), cut(PROTOCOL_ERROR)),
        ("3.9", "SUBACK from a client", packet(0x90, b"\0\x01\0\0".to_vec()), cut(PROTOCOL_ERROR)),
        ("3.13", "PINGRESP from a client", packet(0xd0, vec![]), cut(PROTOCOL_ERROR)),
        (
            "3.5",
            "PUBREC for a message that was never at QoS 2",
            packet(0x50, b"\0\x01".to_vec()),
            cut(PROTOCOL_ERROR),
        ),
        ("3.6", "PUBREL", packet(0x62, b"\0\x01".to_vec()), cut(PROTOCOL_ERROR)),
        ("3.7", "PUBCOMP", packet(0x70, b"\0\x01".to_vec()), cut(PROTOCOL_ERROR)),
        ("3.12.4-1", "PINGREQ", packet(0xc0, vec![]), Answer(&[0xd0, 0])),
        ("3.12", "PINGREQ with a body", packet(0xc0, vec![0]), cut(MALFORMED_PACKET)),
        (
            "2.2.1-3",
            "PUBACK of packet identifier 0",
            packet(0x40, b"\0\0".to_vec()),
            cut(MALFORMED_PACKET),
        ),
        (
            "3.4",
            "PUBACK without an identifier",
            packet(0x40, b"\0".to_vec()),
            cut(MALFORMED_PACKET),
        ),
    ]
}

/// Packets of MQTT 5, which have properties.
fn cases_of_5() -> Vec<Case> {
    let publish = |first, body: &[u8]| packet(first, body.to_vec());
    let subscribe = |body: &[u8]| packet(0x82, body.to_vec());
    let unsubscribe = |body: &[u8]| packet(0xa2, body.to_vec());
    let own = |rest: &str| string(&format!("device/v1/default/pump-17/{rest}"));
    let with = |parts: &[&[u8]]| parts.concat();
    vec![
        (
            "3.3.1-4",
            "QoS 3",
            publish(0x36, &with(&[&own("t"), b"\0\x01\0x"])),
            Cut(MALFORMED_PACKET),
        ),
        (
            "3.2.2-11",
            "QoS 2",
            publish(0x34, &with(&[&own("t"), b"\0\x01\0x"])),
            Cut(QOS_NOT_SUPPORTED),
        ),
        (
            "3.3.1-2",
            "DUP at QoS 0",
            publish(0x38, &with(&[&own("t"), b"\0x"])),
            Cut(MALFORMED_PACKET),
        ),
        (
            "3.3.1",
            "DUP at QoS 1",
            publish(0x3a, &with(&[&own("t"), b"\0\x01\0x"])),
            Answer(&[0x40]),
        ),
        (
            "2.2.1-3",
            "packet identifier 0",
            publish(0x32, &with(&[&own("t"), b"\0\0\0x"])),
            Cut(MALFORMED_PACKET),
        ),
        (
            "3.3.2-2",
            "`#` in a topic name",
            publish(0x32, &with(&[&own("#"), b"\0\x01\0"])),
            Cut(TOPIC_NAME_INVALID),
        ),
        (
            "3.3.2-2",
            "`+` in a topic name",
            publish(0x32, &with(&[&own("+/a"), b"\0\x01\0"])),
            Cut(TOPIC_NAME_INVALID),
        ),
        ("4.7.3-1", "an empty topic name", publish(0x32, b"\0\0\0\x01\0"), Cut(TOPIC_NAME_INVALID)),
        (
            "4.7.3-2",
            "U+0000 in a topic name",
            publish(0x32, &with(&[&own("a\0"), b"\0\x01\0"])),
            Cut(TOPIC_NAME_INVALID),
        ),
        (
            "1.5.4-1",
            "a topic name that is no UTF-8",
            publish(0x32, b"\0\x02\xc3\x28\0\x01\0"),
            Cut(MALFORMED_PACKET),
        ),
        (
            "1.5.4-1",
            "a surrogate in a topic name",
            publish(0x32, b"\0\x03\xed\xa0\x80\0\x01\0"),
            Cut(MALFORMED_PACKET),
        ),
        (
            "3.2.2-18",
            "a topic alias",
            publish(0x32, &with(&[&own("t"), b"\0\x01\x03\x23\0\x01x"])),
            Cut(TOPIC_ALIAS_INVALID),
        ),
        (
            "3.3.2-8",
            "topic alias 0",
            publish(0x32, &with(&[&own("t"), b"\0\x01\x03\x23\0\0x"])),
            Cut(MALFORMED_PACKET),
        ),
        (
            "3.3.4-6",
            "a subscription identifier",
            publish(0x32, &with(&[&own("t"), b"\0\x01\x02\x0b\x01x"])),
            Cut(PROTOCOL_ERROR),
        ),
        (
            "3.3.2-14",
            "wildcards in a response topic",
            publish(0x32, &with(&[&own("t"), b"\0\x01\x04\x08\0\x01#x"])),
            Cut(TOPIC_NAME_INVALID),
        ),
        (
            "1.5.4-2",
            "U+0000 in a content type",
            publish(0x32, &with(&[&own("t"), b"\0\x01\x04\x03\0\x01\0x"])),
            Cut(MALFORMED_PACKET),
        ),
        (
            "1.5.4-2",
            "U+0000 in a user property",
            publish(0x32, &with(&[&own("t"), b"\0\x01\x07\x26\0\x01n\0\x01\0x"])),
            Cut(MALFORMED_PACKET),
        ),
        (
            "2.2.2.2",
            "a property twice",
            publish(0x32, &with(&[&own("t"), b"\0\x01\x04\x01\0\x01\0x"])),
            Cut(MALFORMED_PACKET),
        ),
        (
            "2.2.2.2",
            "an unknown property",
            publish(0x32, &with(&[&own("t"), b"\0\x01\x02\x7f\0x"])),
            Cut(MALFORMED_PACKET),
        ),
        (
            "3.3.2.3.2",
            "a format that is neither 0 nor 1",
            publish(0x32, &with(&[&own("t"), b"\0\x01\x02\x01\x02x"])),
            Cut(MALFORMED_PACKET),
        ),
        (
            "2.2.2.1",
            "properties beyond the packet",
            publish(0x32, &with(&[&own("t"), b"\0\x01\x7f"])),
            Cut(MALFORMED_PACKET),
        ),
        (
            "3.3.4-1",
            "a message at QoS 1",
            publish(0x32, &with(&[&own("t"), b"\x12\x34\0x"])),
            Answer(&[0x40, 4, 0x12, 0x34, NO_MATCHING_SUBSCRIBERS]),
        ),
        ("3.8.3-2", "SUBSCRIBE without a filter", subscribe(b"\0\x01\0"), Cut(MALFORMED_PACKET)),
        (
            "2.2.1-3",
            "SUBSCRIBE with packet identifier 0",
            subscribe(&with(&[b"\0\0\0", &own("t"), b"\0"])),
            Cut(MALFORMED_PACKET),
        ),
        (
            "3.8.3-5",
            "reserved bits of subscription options",
            subscribe(&with(&[b"\0\x01\0", &own("t"), b"\x40"])),
            Cut(MALFORMED_PACKET),
        ),
        (
            "3.8.3-1",
            "subscription at QoS 3",
            subscribe(&with(&[b"\0\x01\0", &own("t"), b"\x03"])),
            Cut(MALFORMED_PACKET),
        ),
        (
            "3.8.3-1",
            "retain handling 3",
            subscribe(&with(&[b"\0\x01\0", &own("t"), b"\x30"])),
            Cut(MALFORMED_PACKET),
        ),
        (
            "3.8.3-4",
            "No Local on a shared subscription",
            subscribe(b"\0\x01\0\0\x0b$share/x/yy\x04"),
            Cut(PROTOCOL_ERROR),
        ),
        (
            "3.2.2.3.12",
            "a subscription identifier",
            subscribe(&with(&[b"\0\x01\x02\x0b\x01", &own("t"), b"\0"])),
            Cut(SUBSCRIPTION_IDENTIFIERS_NOT_SUPPORTED),
        ),
        (
            "4.7.3-2",
            "U+0000 in a filter",
            subscribe(&with(&[b"\0\x01\0", &own("a\0"), b"\0"])),
            Cut(MALFORMED_PACKET),
        ),
        (
            "4.7.1-1",
            "`#` before the last level",
            subscribe(&with(&[b"\0\x01\0", &own("#/a"), b"\0"])),
            Answer(&[0x90, 4, 0, 1, 0, 0x8f]),
        ),
        (
            "4.7.1-1",
            "`#` that does not fill its level",
            subscribe(&with(&[b"\0\x01\0", &own("a#"), b"\0"])),
            Answer(&[0x90, 4, 0, 1, 0, 0x8f]),
        ),
        (
            "4.7.1-2",
            "`+` that does not fill its level",
            subscribe(&with(&[b"\0\x01\0", &own("a+"), b"\0"])),
            Answer(&[0x90, 4, 0, 1, 0, 0x8f]),
        ),
        (
            "4.7.3-1",
            "an empty filter",
            subscribe(b"\0\x01\0\0\0\0"),
            Answer(&[0x90, 4, 0, 1, 0, 0x8f]),
        ),
        (
            "3.8.4-6",
            "two filters, one of them another's",
            subscribe(&with(&[b"\0\x07\0", &own("t"), b"\x01\0\x01x\0"])),
            Answer(&[0x90, 5, 0, 7, 0, 1, NOT_AUTHORIZED]),
        ),
        (
            "3.8.4-7",
            "a subscription at QoS 2 is granted at 1",
            subscribe(&with(&[b"\0\x01\0", &own("t"), b"\x02"])),
            Answer(&[0x90, 4, 0, 1, 0, 1]),
        ),
        (
            "3.10.3-2",
            "UNSUBSCRIBE without a filter",
            unsubscribe(b"\0\x01\0"),
            Cut(MALFORMED_PACKET),
        ),
        (
            "3.11.3-1",
            "UNSUBSCRIBE of what is not subscribed",
            unsubscribe(b"\0\x09\0\0\x01x"),
            Answer(&[0xb0, 4, 0, 9, 0, 0x11]),
        ),
        (
            "3.14.1-1",
            "DISCONNECT with an unknown reason",
            packet(0xe0, vec![0x7f]),
            Cut(MALFORMED_PACKET),
        ),
        (
            "3.14.2.2.2",
            "DISCONNECT with a session that outlives it",
            packet(0xe0, b"\0\x05\x11\0\0\0\x01".to_vec()),
            Cut(PROTOCOL_ERROR),
        ),
        ("4.12.0-7", "AUTH", packet(0xf0, b"\x18\0".to_vec()), Cut(PROTOCOL_ERROR)),
        (
            "3.4.2.1",
            "PUBACK with an unknown reason",
            packet(0x40, b"\0\x01\x7f".to_vec()),
            Cut(MALFORMED_PACKET),
        ),
        (
            "3.4",
            "PUBACK with bytes behind it",
            packet(0x40, b"\0\x01\0\0\0".to_vec()),
            Cut(MALFORMED_PACKET),
        ),
    ]
}

/// Packets of MQTT 3.1.1. The codes are for the log only.
fn cases_of_311() -> Vec<Case> {
    let own = |rest: &str| string(&format!("device/v1/default/pump-17/{rest}"));
    let with = |first, parts: &[&[u8]]| packet(first, parts.concat());
    vec![
        ("3.3.1-4", "QoS 3", with(0x36, &[&own("t"), b"\0\x01x"]), Cut(0)),
        ("3.3.1-2", "DUP at QoS 0", with(0x38, &[&own("t"), b"x"]), Cut(0)),
        ("2.3.1-1", "packet identifier 0", with(0x32, &[&own("t"), b"\0\0x"]), Cut(0)),
        ("3.3.2-2", "`#` in a topic name", with(0x32, &[&own("#"), b"\0\x01"]), Cut(0)),
        ("4.7.3-1", "an empty topic name", with(0x32, &[b"\0\0\0\x01"]), Cut(0)),
        (
            "1.5.3-1",
            "a topic name that is no UTF-8",
            with(0x32, &[b"\0\x02\xc3\x28\0\x01"]),
            Cut(0),
        ),
        ("1.5.3-2", "U+0000 in a topic name", with(0x32, &[&own("a\0"), b"\0\x01"]), Cut(0)),
        (
            "4.3.2-2",
            "a message at QoS 1",
            with(0x32, &[&own("t"), b"\x12\x34x"]),
            Answer(&[0x40, 2, 0x12, 0x34]),
        ),
        (
            "3.3.5-2",
            "a message that is not allowed",
            with(0x32, &[b"\0\x01x\x12\x34x"]),
            Answer(&[0x40, 2, 0x12, 0x34]),
        ),
        ("3.8.3-3", "SUBSCRIBE without a filter", with(0x82, &[b"\0\x01"]), Cut(0)),
        (
            "3.8.3-4",
            "reserved bits of a requested QoS",
            with(0x82, &[b"\0\x01", &own("t"), b"\x04"]),
            Cut(0),
        ),
        ("3.8.3-4", "a requested QoS 3", with(0x82, &[b"\0\x01", &own("t"), b"\x03"]), Cut(0)),
        (
            "3.8.4-5",
            "two filters, one of them another's",
            with(0x82, &[b"\0\x07", &own("t"), b"\x01\0\x01x\0"]),
            Answer(&[0x90, 4, 0, 7, 1, 0x80]),
        ),
        (
            "3.9.3-2",
            "a subscription at QoS 0",
            with(0x82, &[b"\0\x07", &own("t"), b"\0"]),
            Answer(&[0x90, 3, 0, 7, 0]),
        ),
        ("3.10.3-2", "UNSUBSCRIBE without a filter", with(0xa2, &[b"\0\x01"]), Cut(0)),
        (
            "3.10.4-5",
            "UNSUBSCRIBE of what is not subscribed",
            with(0xa2, &[b"\0\x09\0\x01x"]),
            Answer(&[0xb0, 2, 0, 9]),
        ),
        ("3.14", "DISCONNECT with a body", packet(0xe0, vec![0]), Cut(0)),
        ("3.4", "PUBACK with bytes behind it", packet(0x40, b"\0\x01\0".to_vec()), Cut(0)),
        ("2.2", "AUTH, which is of MQTT 5", packet(0xf0, vec![]), Cut(0)),
    ]
}

async fn check(version: u8, cases: Vec<Case>) {
    let mut world = World::new().await;
    for (number, (clause, what, bytes, due)) in cases.into_iter().enumerate() {
        // Every third time this makes a new world, because the broker makes a device that was cut
        // wait.
        if number % 3 == 2 {
            world = World::new().await;
        }
        let credential = world.pki.client(&["urn:assay:device:default:pump-17"]);
        let connect = Connect { version, ..Connect::new("pump-17") };
        let (mut device, _) = world.operational_connect(Some(&credential), &connect).await.unwrap();
        device.send(&bytes).await;
        match due {
            Cut(code) => {
                let told = (version == 5).then_some(code);
                assert_eq!(device.end().await, Ok(told), "{clause}: {what}");
            }
            Answer(start) => {
                let answer = timeout(PATIENCE, device.packet()).await.unwrap();
                let (first, body) = answer.unwrap_or_else(|| panic!("{clause}: {what}: cut"));
                let answer = packet(first, body);
                assert!(answer.starts_with(start), "{clause}: {what}: {answer:02x?}");
                assert!(device.is_alive().await, "{clause}: {what}");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_packet_of_a_connected_mqtt_5_client_gets_what_is_due() {
    check(5, [cases_of_both(), cases_of_5()].concat()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_packet_of_a_connected_mqtt_3_1_1_client_gets_what_is_due() {
    check(4, [cases_of_both(), cases_of_311()].concat()).await;
}

/// A CONNECT in parts, so that one of them may be wrong.
fn connect(name: &[u8], version: u8, flags: u8, properties: &[u8], payload: &[u8]) -> Vec<u8> {
    let properties = if version == 5 {
        [&[properties.len() as u8][..], properties].concat()
    } else {
        Vec::new()
    };
    packet(0x10, [name, &[version, flags, 0, 30], &properties, payload].concat())
}

#[tokio::test(flavor = "multi_thread")]
async fn every_connect_gets_the_connack_that_is_due() {
    const NAME: &[u8] = b"\0\x04MQTT";
    let world = World::new().await;
    let malformed = Some(vec![0, MALFORMED_PACKET]);
    let client = string(&fresh_client());
    let field =
        |bytes: &[u8]| [&u16::try_from(bytes.len()).unwrap().to_be_bytes()[..], bytes].concat();
    let and = |more: &[u8]| [&client[..], more].concat();
    let cases = [
        (
            "3.1.2-1",
            "another protocol's name",
            connect(b"\0\x04MQTX", 5, 2, &[], &client),
            Some(vec![0, 1]),
        ),
        (
            "3.1.2-1",
            "MQTT 3.1's name and level",
            connect(b"\0\x06MQIsdp", 3, 2, &[], &client),
            Some(vec![0, 1]),
        ),
        ("3.1.2-2", "level 6", connect(NAME, 6, 2, &[], &client), Some(vec![0, 1])),
        ("3.1.2-2", "level 3", connect(NAME, 3, 2, &[], &client), Some(vec![0, 1])),
        ("3.1.0-1", "PINGREQ first", vec![0xc0, 0], None),
        ("3.1.0-1", "PUBLISH first", packet(0x30, b"\0\x01xy".to_vec()), None),
        ("3.1.2-3", "the reserved flag, 5", connect(NAME, 5, 3, &[], &client), malformed.clone()),
        ("3.1.2-3", "the reserved flag, 3.1.1", connect(NAME, 4, 3, &[], &client), None),
        (
            "3.1.2-11",
            "QoS of a Will that is not there, 5",
            connect(NAME, 5, 0x0a, &[], &client),
            malformed.clone(),
        ),
        (
            "3.1.2-13",
            "QoS of a Will that is not there, 3.1.1",
            connect(NAME, 4, 0x0a, &[], &client),
            None,
        ),
        (
            "3.1.2-13",
            "retain of a Will that is not there, 5",
            connect(NAME, 5, 0x22, &[], &client),
            malformed.clone(),
        ),
        (
            "3.1.2-15",
            "retain of a Will that is not there, 3.1.1",
            connect(NAME, 4, 0x22, &[], &client),
            None,
        ),
        (
            "3.1.2-12",
            "a Will at QoS 3, 5",
            connect(NAME, 5, 0x1e, &[], &and(b"\0\0\x01x\0\0")),
            malformed.clone(),
        ),
        (
            "3.1.2-14",
            "a Will at QoS 3, 3.1.1",
            connect(NAME, 4, 0x1e, &[], &and(b"\0\x01x\0\0")),
            None,
        ),
        (
            "3.1.2-22",
            "a password without a user name, 3.1.1",
            connect(NAME, 4, 0x42, &[], &and(b"\0\x01x")),
            None,
        ),
        (
            "3.1.3-1",
            "bytes behind the last field, 5",
            connect(NAME, 5, 2, &[], &and(b"x")),
            malformed.clone(),
        ),
        (
            "3.1.3-1",
            "bytes behind the last field, 3.1.1",
            connect(NAME, 4, 2, &[], &and(b"x")),
            None,
        ),
        (
            "3.1.2-16",
            "a user name that is not there, 5",
            connect(NAME, 5, 0x82, &[], &client),
            malformed.clone(),
        ),
        (
            "3.1.2-18",
            "a user name that is not there, 3.1.1",
            connect(NAME, 4, 0x82, &[], &client),
            None,
        ),
        (
            "3.1.3-4",
            "a client id that is no UTF-8, 5",
            connect(NAME, 5, 2, &[], &field(b"\xc3\x28")),
            malformed.clone(),
        ),
        (
            "1.5.4-2",
            "U+0000 in a client id, 5",
            connect(NAME, 5, 2, &[], &field(b"a\0")),
            malformed.clone(),
        ),
        ("1.5.3-2", "U+0000 in a client id, 3.1.1", connect(NAME, 4, 2, &[], &field(b"a\0")), None),
        (
            "3.1.3-8",
            "an empty client id, 5",
            connect(NAME, 5, 2, &[], &field(b"")),
            Some(vec![0, CLIENT_ID_NOT_VALID]),
        ),
        (
            "3.1.3-8",
            "an empty client id that wants a session, 3.1.1",
            connect(NAME, 4, 0, &[], &field(b"")),
            Some(vec![0, 2]),
        ),
        (
            "3.1.2.11.3",
            "Receive Maximum 0",
            connect(NAME, 5, 2, b"\x21\0\0", &client),
            malformed.clone(),
        ),
        (
            "3.1.2.11.4",
            "Maximum Packet Size 0",
            connect(NAME, 5, 2, b"\x27\0\0\0\0", &client),
            malformed.clone(),
        ),
        (
            "3.1.2.11",
            "a property twice",
            connect(NAME, 5, 2, b"\x21\0\x01\x21\0\x01", &client),
            malformed.clone(),
        ),
        (
            "3.1.2.11",
            "a property of PUBLISH",
            connect(NAME, 5, 2, b"\x08\0\x01x", &client),
            malformed.clone(),
        ),
        (
            "3.1.2.11.7",
            "neither 0 nor 1",
            connect(NAME, 5, 2, b"\x17\x02", &client),
            malformed.clone(),
        ),
        (
            "3.1.2.11.10",
            "authentication data without a method",
            connect(NAME, 5, 2, b"\x16\0\x01x", &client),
            Some(vec![0, PROTOCOL_ERROR]),
        ),
        (
            "3.2.2.3.5",
            "a retained Will where nothing is retained",
            connect(NAME, 5, 0x26, &[], &and(b"\0\0\x01x\0\0")),
            Some(vec![0, NOT_AUTHORIZED]),
        ),
    ];
    for (clause, what, bytes, due) in cases {
        let mut raw = Raw::open(world.bootstrap(), &world.anonymous).await.unwrap();
        raw.send(&bytes).await;
        let answer = timeout(PATIENCE, raw.packet()).await.unwrap();
        let told = answer.map(|(first, body)| {
            assert_eq!(first, CONNACK, "{clause}: {what}");
            body[..2].to_vec()
        });
        assert_eq!(told, due, "{clause}: {what}");
        assert!(raw.end().await.is_ok(), "{clause}: {what}: closed");
    }
    assert!(world.device("pump-17").await.is_alive().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_are_delivered_at_the_lower_qos_in_order_and_once() {
    let world = World::new().await;
    let mut device = world.device("pump-17").await;
    let mut operator = world.operator().await;
    // 3.3.4: overlapping subscriptions; 4.6.0-6: order; 3.8.4-8: QoS.
    for filter in ["device/v1/default/pump-17/t", "device/v1/+/pump-17/+", "device/#"] {
        assert_eq!(operator.subscribe(filter).await, Some(GRANTED_QOS_1));
    }
    for number in 0..50_u8 {
        device
            .send_publish(
                "device/v1/default/pump-17/t",
                &[number],
                if number % 2 == 0 { 0x30 } else { 0x32 },
            )
            .await;
    }
    for number in 0..50_u8 {
        assert_eq!(operator.message(PATIENCE).await.unwrap().payload, [number]);
    }
    assert_eq!(operator.message(SILENCE).await, None, "once, whatever the overlap");
}

#[tokio::test(flavor = "multi_thread")]
async fn no_more_than_the_receive_maximum_is_under_way() {
    let world = World::new().await;
    let mut operator = world.operator().await;
    let credential = world.pki.client(&["urn:assay:device:default:pump-17"]);
    let connect = Connect { properties: b"\x21\0\x02".to_vec(), ..Connect::new("pump-17") };
    let (mut device, _) = world.operational_connect(Some(&credential), &connect).await.unwrap();
    assert_eq!(device.subscribe("device/v1/default/pump-17/command").await, Some(GRANTED_QOS_1));
    device.acknowledges = false;
    for _ in 0..5 {
        assert_eq!(
            operator.publish("device/v1/default/pump-17/command", b"x").await,
            Some(SUCCESS)
        );
    }
    assert!(device.message(PATIENCE).await.is_some() && device.message(PATIENCE).await.is_some());
    assert_eq!(device.message(SILENCE).await, None, "3.3.4-9");
    // An acknowledgement of either lets one more through.
    device.send(&packet(PUBACK, b"\0\x02".to_vec())).await;
    assert!(device.message(PATIENCE).await.is_some());
    assert_eq!(device.message(SILENCE).await, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn message_longer_than_the_client_takes_is_left_out() {
    let world = World::new().await;
    let mut operator = world.operator().await;
    let credential = world.pki.client(&["urn:assay:device:default:pump-17"]);
    // 0x27: Maximum Packet Size (3.1.2.11.4), here 200.
    let connect = Connect { properties: b"\x27\0\0\0\xc8".to_vec(), ..Connect::new("pump-17") };
    let (mut device, _) = world.operational_connect(Some(&credential), &connect).await.unwrap();
    let topic = "device/v1/default/pump-17/command";
    assert_eq!(device.subscribe(topic).await, Some(GRANTED_QOS_1));
    assert_eq!(operator.publish(topic, &[7; 300]).await, Some(SUCCESS));
    assert_eq!(operator.publish(topic, b"short").await, Some(SUCCESS));
    assert_eq!(device.message(PATIENCE).await.unwrap().payload, b"short", "3.1.2-24, 3.1.2-25");
}

#[tokio::test(flavor = "multi_thread")]
async fn stranger_that_cannot_take_its_reply_is_told() {
    let world = World::new().await;
    let _worker = world.answering_worker(vec![7; 300]).await;
    let client = fresh_client();
    let mut raw = Raw::open(world.bootstrap(), &world.anonymous).await.unwrap();
    let connect = Connect { properties: b"\x27\0\0\0\xc8".to_vec(), ..Connect::new(&client) };
    assert_eq!(raw.connect(&connect).await, Some(SUCCESS));
    assert_eq!(raw.subscribe(&reply_topic(&client)).await, Some(GRANTED_QOS_1));
    assert_eq!(raw.publish(&request_topic(&client), b"request").await, Some(SUCCESS));
    assert_eq!(raw.end().await, Ok(Some(0x95)));
}

#[tokio::test(flavor = "multi_thread")]
async fn subscription_options_are_kept_to() {
    let world = World::new().await;
    let topic = "device/v1/default/pump-17/t";
    let mut device = world.device("pump-17").await;
    device.publish_retained(topic, b"old").await;
    // 3.3.1-9 to 3.3.1-11: retain handling 0 at each, 1 at a new, 2 at no subscription.
    for (options, first, again) in [(0x01, true, true), (0x11, true, false), (0x21, false, false)] {
        let mut operator = world.operator().await;
        for is_due in [first, again] {
            assert_eq!(operator.subscribe_with(topic, options).await, Some(GRANTED_QOS_1));
            let kept = operator.message(if is_due { PATIENCE } else { SILENCE }).await;
            assert_eq!(kept.map(|kept| kept.retain), is_due.then_some(true), "{options:02x}");
        }
    }
    // 3.3.1-12, -13: Retain As Published.
    for (options, retain) in [(0x21, false), (0x29, true)] {
        let mut operator = world.operator().await;
        assert_eq!(operator.subscribe_with(topic, options).await, Some(GRANTED_QOS_1));
        device.publish_retained(topic, b"new").await;
        assert_eq!(operator.message(PATIENCE).await.unwrap().retain, retain);
    }
    // 3.8.3-3: No Local.
    assert_eq!(
        device.subscribe_with("device/v1/default/pump-17/#", 0x25).await,
        Some(GRANTED_QOS_1)
    );
    device.publish(topic, b"to others").await;
    assert_eq!(device.message(SILENCE).await, None);
    // 3.8.4-3: a new subscription to the same filter replaces the old one. 3.10.4-1: the filter
    // names the subscription that ends.
    assert_eq!(
        device.subscribe_with("device/v1/default/pump-17/#", 0x21).await,
        Some(GRANTED_QOS_1)
    );
    device.publish(topic, b"to all").await;
    assert_eq!(device.message(PATIENCE).await.unwrap().payload, b"to all");
    assert_eq!(device.message(SILENCE).await, None, "once");
    device
        .send(&packet(0xa2, [&b"\0\x63\0"[..], &string("device/v1/default/pump-17/#")].concat()))
        .await;
    assert_eq!(device.answer(0xb0).await.unwrap(), [0, 0x63, 0, 0]);
    device.publish(topic, b"to nobody").await;
    assert_eq!(device.message(SILENCE).await, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn expired_message_is_not_delivered() {
    let world = World::new().await;
    let topic = "device/v1/default/pump-17/t";
    let mut device = world.device("pump-17").await;
    // 3.3.2-5: a lifetime of one second, over when somebody subscribes.
    device.send_publish_with(b"\x02\0\0\0\x01", topic, b"stale", 0x33).await;
    for other in 1..4 {
        device
            .send_publish_with(b"\x02\0\0\0\x01", &format!("{topic}{other}"), b"stale", 0x33)
            .await;
    }
    let fifth = "device/v1/default/pump-17/fifth";
    device.send_publish(fifth, b"too many", 0x33).await;
    assert!(device.is_alive().await);
    tokio::time::sleep(Duration::from_millis(1200)).await;
    let mut operator = world.operator().await;
    assert_eq!(operator.subscribe("device/v1/default/pump-17/#").await, Some(GRANTED_QOS_1));
    assert_eq!(operator.message(SILENCE).await, None);
    // Expired messages do not take the room of new ones either.
    device.send_publish(fifth, b"fresh", 0x33).await;
    assert_eq!(operator.message(PATIENCE).await.unwrap().payload, b"fresh");
    let mut late = world.identified("urn:assay:operator", "operator@late").await;
    assert_eq!(late.subscribe(fifth).await, Some(GRANTED_QOS_1));
    assert_eq!(late.message(PATIENCE).await.unwrap().payload, b"fresh");
}

/// MQTT 5 §3.2.2.3.14: on the operational listener, the server's keep-alive is what the client asks
/// for, up to 240 s.
#[tokio::test(flavor = "multi_thread")]
async fn idle_client_of_the_operational_listener_may_be_silent_for_four_minutes() {
    let world = World::new().await;
    let credential = world.pki.client(&["urn:assay:device:default:pump-17"]);
    for (asked, granted) in [(30, 30), (240, 240), (241, 240), (0, 240)] {
        let connect = Connect { keep_alive: asked, ..Connect::new("pump-17") };
        let (device, _) = world.operational_connect(Some(&credential), &connect).await.unwrap();
        let connack = &device.connack;
        let property = [&[0x13][..], &u16::to_be_bytes(granted)].concat();
        assert!(connack.windows(3).any(|bytes| bytes == property), "{asked}: {connack:02x?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn silent_client_is_given_up_after_one_and_a_half_keep_alives() {
    let world = World::new().await;
    let credential = world.pki.client(&["urn:assay:device:default:pump-17"]);
    // 3.1.1 §3.1.2-24; an MQTT 5 client has what the CONNACK says.
    let connect = Connect { version: 4, keep_alive: 2, ..Connect::new("pump-17") };
    let (mut device, _) = world.operational_connect(Some(&credential), &connect).await.unwrap();
    let started = Instant::now();
    device.end().await.unwrap();
    let took = started.elapsed();
    assert!((Duration::from_millis(2500)..Duration::from_millis(5000)).contains(&took), "{took:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn strangers_write_nothing_to_the_log() {
    if !in_own_process("conformance::strangers_write_nothing_to_the_log") {
        return;
    }
    let log = login::Log::default();
    let writer = log.clone();
    tracing_subscriber::fmt()
        .with_max_level(tracing::Level::INFO)
        .with_writer(move || writer.clone())
        .init();
    let world = World::new().await;
    let (mut raw, _) = world.stranger().await;
    for filter in ["a\nforged: certify granted", "\u{1b}[2J", "#/#", "+a"] {
        raw.subscribe(filter).await;
        raw.publish(&filter.replace(['#', '+'], "x"), b"x").await;
    }
    for bytes in
        [b"GET / HTTP/1.1\r\n\r\n".to_vec(), packet(0x10, b"\0\x04MQTT".to_vec()), vec![0; 100]]
    {
        let mut raw = Raw::open(world.bootstrap(), &world.anonymous).await.unwrap();
        raw.send(&bytes).await;
    }
    tokio::time::sleep(SILENCE).await;
    assert_eq!(String::from_utf8_lossy(&log.0.lock().unwrap()), "");
}

#[test]
fn the_page_names_tests_that_exist() {
    let page = include_str!("../../../docs/mqtt.md");
    let here = [
        include_str!("main.rs"),
        include_str!("login.rs"),
        include_str!("named.rs"),
        include_str!("conformance.rs"),
    ];
    let sources = here.concat() + include_str!("../../src/embedded/filters.rs");
    let names = page.split('`').skip(1).step_by(2).filter(|name| {
        name.contains('_') && !name.contains(['/', '.', ' ']) && !name.starts_with("mosquitto_")
    });
    let names: Vec<_> = names.collect();
    assert!(names.len() > 20, "{names:?}");
    for name in names {
        assert!(sources.contains(&format!("fn {name}(")), "{name}");
    }
}

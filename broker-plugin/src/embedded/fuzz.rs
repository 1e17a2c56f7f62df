//! Random input for codec, session and router. A slow model of the router says what to expect. Each
//! test runs for a second, or for as many as the environment variable `ASSAY_FUZZ_SECONDS` says.

use std::collections::BTreeMap;
use std::num::NonZeroU16;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use bytestring::ByteString;
use fastrand::Rng;
use rmqtt_codec::v5::SubscriptionOptions;

use super::filters::matches;
use super::lane::{Lane, Message, Room};
use super::packet::{Codec, Packet, QoS};
use super::router::{Router, Seat};
use super::session::Session;
use crate::access::Access;
use crate::meter::{Meter, Rate};

/// Runs `round` with the random numbers of one seed after another. A failure names its seed.
fn for_a_while(round: impl Fn(&mut Rng)) {
    let seconds =
        std::env::var("ASSAY_FUZZ_SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(1);
    let (start, mut seed) = (Instant::now(), 0);
    while start.elapsed() < Duration::from_secs(seconds) {
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            round(&mut Rng::with_seed(seed))
        }));
        assert!(outcome.is_ok(), "seed {seed}");
        seed += 1;
    }
    println!("{seed} rounds");
}

const CLIENT: &str = "0123456789abcdef0123456789abcdef";

/// Packets that a client may send, in both versions. The input is made of them.
const SEEDS: &[&[u8]] = &[
    b"\x10\x2c\0\x04MQTT\x04\x02\0\x1e\0\x200123456789abcdef0123456789abcdef",
    b"\x10\x30\0\x04MQTT\x05\x02\0\x1e\x03\x21\0\x10\0\x200123456789abcdef0123456789abcdef",
    b"\x10\x1d\0\x04MQTT\x05\xee\0\x1e\0\0\x01a\0\0\x01w\0\x01x\0\x01u\0\x01p",
    b"\x32\x08\0\x03a/b\0\x01x",
    b"\x32\x17\0\x03a/b\0\x01\x0e\x02\0\0\0\x0a\x09\0\x01c\x26\0\x01n\0\x00x",
    b"\x30\x06\0\x03a/bx",
    b"\x40\x02\0\x01",
    b"\x82\x09\0\x01\0\x04a/+/\x01",
    b"\x82\x0a\0\x01\0\0\x04a/+/\x01",
    b"\xa2\x08\0\x02\0\0\x03a/#",
    b"\xc0\0",
    b"\xe0\0",
    b"\xe0\x02\x04\0",
    b"\x32\x47\0\x35provision/v1/default/0123456789abcdef0123456789abcdef/request\0\x01\0x",
];

fn mutated(rng: &mut Rng) -> Vec<u8> {
    let mut bytes = rng.choice(SEEDS).map(|seed| seed.to_vec()).unwrap_or_default();
    for _ in 0..rng.usize(0..6) {
        let at = rng.usize(0..=bytes.len());
        match rng.u8(0..5) {
            0 if at < bytes.len() => bytes[at] = rng.u8(..),
            1 if at < bytes.len() => bytes[at] ^= 1 << rng.u8(0..8),
            2 => bytes.insert(at, rng.u8(..)),
            3 => bytes.truncate(at.max(2)),
            _ => bytes.extend_from_slice(rng.choice(SEEDS).copied().unwrap_or_default()),
        }
    }
    // In half of the input, the length of the first packet is right, whatever else is broken.
    if rng.bool() && bytes.len() >= 2 && bytes.len() < 130 {
        bytes[1] = u8::try_from(bytes.len() - 2).unwrap_or_default();
    }
    bytes
}

#[test]
fn no_bytes_make_the_codec_panic_or_let_bad_names_pass() {
    for_a_while(|rng| {
        let (mut input, mut codec) = (BytesMut::new(), None);
        for _ in 0..20 {
            input.extend_from_slice(&mutated(rng));
            let Some(mut known) =
                codec.take().or_else(|| Codec::detect(&input, 1000).ok().flatten())
            else {
                break;
            };
            while let Ok(Some((packet, length))) = known.read(&mut input) {
                assert!(length <= 1000);
                if let Packet::Publish(publish) = packet {
                    assert!(!publish.topic.is_empty() && !publish.topic.contains(['+', '#', '\0']));
                    assert!(publish.qos != QoS::ExactlyOnce);
                    assert_eq!(publish.packet_id.is_some(), publish.qos == QoS::AtLeastOnce);
                }
            }
            codec = Some(known);
        }
    });
}

fn meter<K: Eq + std::hash::Hash>() -> Meter<K> {
    Meter::new(Rate::per_second(1_000_000, 1_000_000))
}

#[test]
fn no_bytes_make_a_session_panic_or_answer_without_end() {
    for_a_while(|rng| {
        let router = Arc::new(Router::default());
        let scope = "default".parse().unwrap();
        let access = Access::bootstrapping(&scope, CLIENT).unwrap();
        let lane = Lane::new(Room { messages: 8, bytes: 10_000, share: 0 }, Arc::default());
        let (seat, _) = router.enter(CLIENT.into(), lane);
        let mut input = BytesMut::from(SEEDS[rng.usize(0..2)]);
        let mut codec = Codec::detect(&input, 1000).unwrap().unwrap();
        codec.read(&mut input).unwrap();
        let mut session = Session::new(codec, access, seat, 2, router, meter().into());
        for _ in 0..20 {
            input.extend_from_slice(&mutated(rng));
            let (mut out, before) = (BytesMut::new(), input.len());
            loop {
                let Ok(read) = session.read(&mut input) else { return };
                let Some((packet, _)) = read else { break };
                if session.receive(packet, &mut out, Instant::now()).is_err() {
                    return;
                }
            }
            // The answer to a packet of two bytes has two bytes, to one of five it has six.
            assert!(out.len() <= 2 * before + 6, "{} for {before}", out.len());
            session.deliver(&mut out, 1000, Instant::now());
        }
    });
}

/// One client of the router, and the messages that it must get.
struct Client {
    seat: Seat,
    filters: BTreeMap<ByteString, QoS>,
    due: Vec<(ByteString, Bytes, QoS, bool)>,
    is_there: bool,
}

#[test]
fn router_delivers_what_a_slow_model_of_it_does() {
    const FILTERS: &[&str] = &["a/b", "a/+", "a/#", "+/b", "#", "a/b/c", "a/+/c", "+/+/#", "b"];
    const TOPICS: &[&str] = &["a", "b", "a/b", "a/b/c", "b/b", "c"];
    for_a_while(|rng| {
        let router = Router::default();
        let enter = |name: &str| {
            router
                .enter(
                    name.into(),
                    Lane::new(Room { messages: 1000, bytes: 1 << 20, share: 0 }, Arc::default()),
                )
                .0
        };
        let names = ["one", "two", "three"];
        let mut clients = names.map(|name| Client {
            seat: enter(name),
            filters: BTreeMap::new(),
            due: Vec::new(),
            is_there: true,
        });
        let mut retained: BTreeMap<&str, (Bytes, QoS)> = BTreeMap::new();
        for step in 0..60_u8 {
            let which = rng.usize(0..3);
            let filter = ByteString::from_static(FILTERS[rng.usize(0..FILTERS.len())]);
            let qos = if rng.bool() { QoS::AtLeastOnce } else { QoS::AtMostOnce };
            match rng.u8(0..10) {
                0..4 => {
                    router.subscribe(
                        &clients[which].seat,
                        &filter,
                        SubscriptionOptions { qos, ..Default::default() },
                    );
                    let client = &mut clients[which];
                    if client.is_there {
                        client.filters.insert(filter.clone(), qos);
                        let kept = retained.iter().filter(|(topic, _)| matches(&filter, topic));
                        client.due.extend(kept.map(|(topic, (payload, published))| {
                            ((*topic).into(), payload.clone(), qos.less_value(*published), true)
                        }));
                    }
                }
                4 => {
                    router.unsubscribe(&clients[which].seat, &filter);
                    clients[which].filters.remove(&filter);
                }
                5 => {
                    router.leave(&clients[which].seat, false);
                    clients[which].filters.clear();
                    clients[which].is_there = false;
                }
                6 => {
                    let seat = enter(names[which]);
                    clients[which] =
                        Client { seat, filters: BTreeMap::new(), due: Vec::new(), is_there: true };
                }
                _ => {
                    let topic = TOPICS[rng.usize(0..TOPICS.len())];
                    let retain = rng.u8(0..4) == 0;
                    let payload = if rng.u8(0..5) == 0 {
                        Bytes::new()
                    } else {
                        Bytes::copy_from_slice(&[step])
                    };
                    let message = Message {
                        topic: topic.into(),
                        payload: payload.clone(),
                        qos,
                        retain,
                        properties: None,
                        expires: None,
                    };
                    router.publish(&clients[which].seat, message);
                    if !clients[which].is_there {
                        continue;
                    }
                    match (retain, payload.is_empty()) {
                        (true, true) => _ = retained.remove(topic),
                        (true, false) => _ = retained.insert(topic, (payload.clone(), qos)),
                        (false, _) => {}
                    }
                    for client in &mut clients {
                        let fits =
                            client.filters.iter().filter(|(filter, _)| matches(filter, topic));
                        if let Some(best) = fits.map(|(_, qos)| *qos).max() {
                            client.due.push((
                                topic.into(),
                                payload.clone(),
                                best.less_value(qos),
                                false,
                            ));
                        }
                    }
                }
            }
        }
        for client in &clients {
            let mut got = Vec::new();
            while let Some(delivery) = client.seat.lane.take(|_| true) {
                let message = &delivery.message;
                got.push((
                    message.topic.clone(),
                    message.payload.clone(),
                    delivery.qos,
                    delivery.retain,
                ));
            }
            assert_eq!(got, client.due);
        }
    });
}

#[test]
fn packet_identifiers_are_never_in_use_twice() {
    for_a_while(|rng| {
        let router = Arc::new(Router::default());
        let access = Access::bootstrapping(&"default".parse().unwrap(), CLIENT).unwrap();
        let (seat, _) = router.enter(
            CLIENT.into(),
            Lane::new(Room { messages: 100, bytes: 1 << 20, share: 0 }, Arc::default()),
        );
        let mut input = BytesMut::from(SEEDS[0]);
        let mut codec = Codec::detect(&input, 1000).unwrap().unwrap();
        codec.read(&mut input).unwrap();
        router.subscribe(
            &seat,
            &"t".into(),
            SubscriptionOptions { qos: QoS::AtLeastOnce, ..Default::default() },
        );
        let mut session =
            Session::new(codec, access, seat.clone(), 5, router.clone(), meter().into());
        let mut open: Vec<u16> = Vec::new();
        for _ in 0..200 {
            let message = Message {
                topic: "t".into(),
                payload: Bytes::new(),
                qos: QoS::AtLeastOnce,
                retain: false,
                properties: None,
                expires: None,
            };
            router.publish(&seat, message);
            let mut out = BytesMut::new();
            session.deliver(&mut out, 10_000, Instant::now());
            // `32 05 00 01 t id id`
            for publish in out.chunks(7) {
                let id = u16::from_be_bytes([publish[5], publish[6]]);
                assert!(id != 0 && !open.contains(&id));
                open.push(id);
            }
            assert!(open.len() <= 5);
            if !open.is_empty() {
                let id = open.swap_remove(rng.usize(0..open.len()));
                session
                    .receive(Packet::PubAck(NonZeroU16::new(id).unwrap()), &mut out, Instant::now())
                    .unwrap();
            }
        }
    });
}

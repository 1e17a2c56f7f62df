//! Devices without a certificate on the operational listener: what they may do with user name and
//! password, and what they may not.

use std::io::Write;
use std::sync::Mutex;
use std::sync::atomic::AtomicUsize;

use super::*;

const PASSWORD: &[u8] = b"open sesame";
const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// MQTT 3.1.1 §3.2.2.3.
const V3_IDENTIFIER_REJECTED: u8 = 2;
const V3_BAD_USER_NAME_OR_PASSWORD: u8 = 4;
const V3_NOT_AUTHORIZED: u8 = 5;

impl World {
    async fn with_login(login: Arc<Login>) -> Self {
        Self::with_login_and_limits(login, limits()).await
    }

    async fn with_login_and_limits(login: Arc<Login>, limits: Limits) -> Self {
        let pki = Pki::new();
        let operational = pki.operational_tls(ClientCertificates::Optional);
        Self::with_tls(pki, operational, limits, everybody(), login).await
    }

    /// A device that has logged in.
    async fn logged_in(&self, id: &str) -> Raw {
        let (raw, reason) = self.operational_connect(None, &login_as(id)).await.unwrap();
        assert_eq!(reason, SUCCESS);
        raw
    }

    /// Sends a CONNECT without a certificate. Returns the answer, after which the connection ended.
    async fn refused_login(&self, connect: &Connect<'_>) -> u8 {
        let (mut raw, reason) = self.operational_connect(None, connect).await.unwrap();
        let started = Instant::now();
        raw.end().await.unwrap();
        assert!(started.elapsed() < INTRODUCTION / 2, "{:?}", started.elapsed());
        reason
    }
}

fn login_as(id: &str) -> Connect<'_> {
    Connect { user_name: Some(id), password: Some(PASSWORD), ..Connect::new(id) }
}

/// One password for all user names. `operator` and `worker` have these roles, `guest` is a device
/// of another scope, and all others are devices.
fn one_password() -> Arc<Login> {
    one_password_for(DAY)
}

fn one_password_for(expires_in: Duration) -> Arc<Login> {
    Arc::new(move |user_name, password| {
        if password != PASSWORD {
            return Err(NotGood::Refused("wrong password".into()));
        }
        Ok(LoggedIn { identity: identity(user_name), expires_in })
    })
}

fn identity(user_name: &str) -> Identity {
    let scope = if user_name == "guest" { "other" } else { "default" };
    match user_name {
        "operator" => Identity::Operator,
        "worker" => Identity::Worker,
        device => {
            Identity::Device { scope: scope.parse().unwrap(), device_id: device.parse().unwrap() }
        }
    }
}

/// Accepts every login, and counts how often it is asked.
fn counting() -> (Arc<Login>, Arc<AtomicUsize>) {
    let asked = Arc::new(AtomicUsize::new(0));
    let login = {
        let asked = asked.clone();
        move |user_name: &str, _: &[u8]| {
            asked.fetch_add(1, Ordering::SeqCst);
            Ok(LoggedIn { identity: identity(user_name), expires_in: DAY })
        }
    };
    (Arc::new(login), asked)
}

#[tokio::test(flavor = "multi_thread")]
async fn device_that_logs_in_speaks_on_its_own_tree_and_nothing_else() {
    let world = World::with_login(one_password()).await;
    let mut operator = world.operator().await;
    assert_eq!(operator.subscribe("device/#").await, Some(GRANTED_QOS_1));
    let _worker = world.answering_worker(b"reply".to_vec()).await;
    let mut device = world.logged_in("pump-17").await;

    for filter in
        ["#", "device/#", "device/v1/default/pump-18/#", "fleet/#", SHARED_REQUESTS, "$SYS/#"]
    {
        assert_eq!(device.subscribe(filter).await, Some(NOT_AUTHORIZED), "{filter}");
    }
    for topic in
        ["device/v1/default/pump-18/x", "ca/v1/default/crl", "fleet/v1/default/pump-17/event", "x"]
    {
        assert_eq!(device.publish(topic, b"forged").await, Some(NOT_AUTHORIZED), "{topic}");
    }
    assert_eq!(device.publish("device/v1/default/pump-17/telemetry", b"21").await, Some(SUCCESS));
    assert_eq!(operator.message(PATIENCE).await.unwrap().payload, b"21");
    assert_eq!(operator.message(SILENCE).await, None);

    for filter in ["device/v1/default/pump-17/#", &reply_topic("pump-17"), "ca/v1/default/chain"] {
        assert_eq!(device.subscribe(filter).await, Some(GRANTED_QOS_1), "{filter}");
    }
    assert_eq!(device.publish(&request_topic("pump-17"), b"request").await, Some(SUCCESS));
    assert_eq!(device.message(PATIENCE).await.unwrap().payload, b"reply");
}

#[tokio::test(flavor = "multi_thread")]
async fn device_logs_in_under_its_device_id_with_named_connections() {
    let world = World::with_login(one_password()).await;
    let login = |client| Connect { user_name: Some("pump-17"), ..login_as(client) };
    let mut device = world.logged_in("pump-17").await;
    let (mut named, reason) =
        world.operational_connect(None, &login("pump-17/node-red")).await.unwrap();
    assert_eq!(reason, SUCCESS);
    assert_eq!(
        named.publish("device/v1/default/pump-17/x", b"21").await,
        Some(NO_MATCHING_SUBSCRIBERS)
    );
    assert_eq!(named.publish("device/v1/default/pump-18/x", b"21").await, Some(NOT_AUTHORIZED));
    assert!(device.is_alive().await);
    for client in ["pump-18/node-red", "pump-18", "pump-17/"] {
        assert_eq!(world.refused_login(&login(client)).await, CLIENT_ID_NOT_VALID, "{client}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn mqtt_3_1_1_device_logs_in_too() {
    let world = World::with_login(one_password()).await;
    let _worker = world.answering_worker(b"reply".to_vec()).await;
    let connect = Connect { version: 4, ..login_as("pump-17") };
    let (mut device, reason) = world.operational_connect(None, &connect).await.unwrap();
    assert_eq!(reason, SUCCESS);
    assert_eq!(device.subscribe("device/#").await, Some(0x80), "MQTT 3.1.1 §3.9.3: Failure");
    assert_eq!(device.subscribe(&reply_topic("pump-17")).await, Some(GRANTED_QOS_1));
    assert_eq!(device.publish(&request_topic("pump-17"), b"request").await, Some(SUCCESS));
    assert_eq!(device.message(PATIENCE).await.unwrap().payload, b"reply");
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_or_missing_user_name_or_password_is_refused_and_disturbs_nobody() {
    let world = World::with_login(one_password()).await;
    let mut victim = world.logged_in("pump-17").await;
    for (version, due) in [(5, BAD_USER_NAME_OR_PASSWORD), (4, V3_BAD_USER_NAME_OR_PASSWORD)] {
        for (user_name, password) in [
            (Some("pump-17"), Some(&b"open barley"[..])),
            (Some("pump-17"), Some(b"")),
            (Some("pump-17"), None),
            (None, None),
        ] {
            let connect = Connect { version, user_name, password, ..Connect::new("pump-17") };
            assert_eq!(
                world.refused_login(&connect).await,
                due,
                "{version} {user_name:?} {password:?}"
            );
        }
    }
    for version in [5, 4] {
        let connect = Connect { version, user_name: None, ..login_as("pump-17") };
        let answer = world.operational_connect(None, &connect).await.map(|(_, reason)| reason);
        // Malformed in MQTT 3.1.1 (§3.1.2-22).
        assert_eq!(answer, (version == 5).then_some(BAD_USER_NAME_OR_PASSWORD));
    }
    assert!(victim.is_alive().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn client_id_other_than_the_logged_in_devices_is_refused() {
    let world = World::with_login(one_password()).await;
    let mut victim = world.logged_in("pump-18").await;
    for (version, due) in [(5, CLIENT_ID_NOT_VALID), (4, V3_IDENTIFIER_REJECTED)] {
        for client in ["pump-18", "worker@1", "operator@desk", "", &fresh_client()] {
            let connect = Connect { version, client, ..login_as("pump-17") };
            assert_eq!(world.refused_login(&connect).await, due, "{client}");
        }
    }
    assert!(victim.is_alive().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn only_devices_of_the_scope_may_log_in() {
    let world = World::with_login(one_password()).await;
    for (version, due) in [(5, NOT_AUTHORIZED), (4, V3_NOT_AUTHORIZED)] {
        for (user_name, client) in
            [("operator", "operator@desk"), ("worker", "worker@1"), ("guest", "guest")]
        {
            let connect = Connect { version, client, ..login_as(user_name) };
            assert_eq!(world.refused_login(&connect).await, due, "{user_name}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn unfit_certificates_are_refused_whatever_the_password() {
    let world = World::with_login(one_password()).await;
    let device = "urn:assay:device:default:pump-17";
    for (what, credential) in [
        ("of another CA", Pki::new().client(&[device])),
        ("expired", world.pki.expired_client(device)),
        ("for servers", world.pki.server_named_worker()),
        ("without a name", world.pki.client(&[])),
        ("with a stranger's name", world.pki.client(&["urn:example:pump-17"])),
    ] {
        assert!(
            world.operational_connect(Some(&credential), &login_as("pump-17")).await.is_none(),
            "{what}"
        );
    }
    let good = world.pki.client(&[device]);
    assert_eq!(
        world.operational_connect(Some(&good), &login_as("pump-17")).await.unwrap().1,
        SUCCESS
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn revoked_certificate_is_refused_whatever_the_password() {
    let (login, asked) = counting();
    let pki = Pki::new();
    let operational = pki.operational_tls(ClientCertificates::Optional);
    let world = World::with_tls(
        pki,
        operational,
        limits(),
        Arc::new(|_, _| Err(NotGood::Refused("revoked".into()))),
        login,
    )
    .await;
    let credential = world.pki.client(&["urn:assay:device:default:pump-17"]);
    let (_, reason) =
        world.operational_connect(Some(&credential), &login_as("pump-17")).await.unwrap();
    assert_eq!(reason, NOT_AUTHORIZED);
    assert_eq!(asked.load(Ordering::SeqCst), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_with_a_certificate_are_never_asked_for_a_password() {
    let (login, asked) = counting();
    let world = World::with_login(login).await;
    let credential = world.pki.client(&["urn:assay:device:default:pump-17"]);
    for password in [None, Some(&b"wrong"[..]), Some(PASSWORD)] {
        let connect = Connect { user_name: Some("pump-18"), password, ..Connect::new("pump-17") };
        assert_eq!(
            world.operational_connect(Some(&credential), &connect).await.unwrap().1,
            SUCCESS
        );
    }
    let as_other = world.operational_connect(Some(&credential), &login_as("pump-18")).await;
    assert_eq!(as_other.unwrap().1, CLIENT_ID_NOT_VALID);
    assert!(world.operator().await.is_alive().await);
    assert_eq!(asked.load(Ordering::SeqCst), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn user_name_and_password_are_ignored_on_the_bootstrap_listener() {
    let (login, asked) = counting();
    let world = World::with_login(login).await;
    let client = fresh_client();
    let connect = Connect { client: &client, ..login_as("pump-17") };
    assert_eq!(world.bootstrap_connect(&connect).await, Some(SUCCESS));
    assert_eq!(world.bootstrap_connect(&login_as("pump-17")).await, Some(CLIENT_ID_NOT_VALID));
    assert_eq!(asked.load(Ordering::SeqCst), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_logs_in_where_tls_demands_a_certificate() {
    let (login, asked) = counting();
    let pki = Pki::new();
    let operational = pki.operational_tls(ClientCertificates::Mandatory);
    let world = World::with_tls(pki, operational, limits(), everybody(), login).await;
    assert!(world.operational_connect(None, &login_as("pump-17")).await.is_none());
    assert_eq!(asked.load(Ordering::SeqCst), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn device_whose_login_is_disabled_is_cut_at_the_next_recheck() {
    let disabled = Arc::new(AtomicBool::new(false));
    let login: Arc<Login> = Arc::new({
        let (disabled, one_password) = (disabled.clone(), one_password());
        move |user_name, password| match user_name {
            "pump-17" if disabled.load(Ordering::SeqCst) => {
                Err(NotGood::Refused("disabled".into()))
            }
            _ => one_password(user_name, password),
        }
    });
    let world = World::with_login(login).await;
    let mut device = world.logged_in("pump-17").await;
    let mut other = world.logged_in("pump-18").await;
    world.broker.recheck();
    tokio::time::sleep(SILENCE).await;
    assert!(device.is_alive().await && other.is_alive().await);
    disabled.store(true, Ordering::SeqCst);
    world.broker.recheck();
    device.end().await.unwrap();
    tokio::time::sleep(SILENCE).await;
    assert!(other.is_alive().await);
    assert_eq!(world.refused_login(&login_as("pump-17")).await, BAD_USER_NAME_OR_PASSWORD);
}

#[tokio::test(flavor = "multi_thread")]
async fn device_whose_login_becomes_anothers_is_cut_at_the_next_recheck() {
    for later in ["pump-18", "operator", "guest"] {
        let asked = AtomicBool::new(false);
        let login: Arc<Login> = Arc::new(move |user_name, _| {
            let user_name = if asked.swap(true, Ordering::SeqCst) { later } else { user_name };
            Ok(LoggedIn { identity: identity(user_name), expires_in: DAY })
        });
        let world = World::with_login(login).await;
        let mut device = world.logged_in("pump-17").await;
        world.broker.recheck();
        device.end().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn device_whose_login_is_disabled_while_it_connects_is_cut() {
    let asked = Arc::new(AtomicBool::new(false));
    let login: Arc<Login> = Arc::new({
        let asked = asked.clone();
        move |user_name, _| {
            if asked.swap(true, Ordering::SeqCst) {
                return Err(NotGood::Refused("disabled".into()));
            }
            std::thread::sleep(3 * SILENCE);
            Ok(LoggedIn { identity: identity(user_name), expires_in: DAY })
        }
    });
    let world = World::with_login(login).await;
    let disabling = async {
        let started = Instant::now();
        while !asked.load(Ordering::SeqCst) {
            assert!(started.elapsed() < PATIENCE, "nobody asks");
            tokio::time::sleep(SILENCE / 10).await;
        }
        world.broker.recheck();
    };
    let (mut device, ()) = tokio::join!(world.logged_in("pump-17"), disabling);
    device.end().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn device_whose_login_cannot_be_checked_is_told_to_try_again() {
    let world =
        World::with_login(Arc::new(|_, _| Err(NotGood::Unknown("the disk is gone".into())))).await;
    assert_eq!(world.refused_login(&login_as("pump-17")).await, SERVER_UNAVAILABLE);
}

#[tokio::test(flavor = "multi_thread")]
async fn device_whose_login_expires_is_cut() {
    let world = World::with_login(one_password_for(Duration::from_secs(1))).await;
    let mut certified = world.device("pump-18").await;
    let mut device = world.logged_in("pump-17").await;
    let started = Instant::now();
    assert!(device.is_alive().await);
    device.end().await.unwrap();
    assert!(started.elapsed() > SILENCE, "{:?}", started.elapsed());
    assert!(certified.is_alive().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn device_whose_login_expires_as_it_connects_is_cut() {
    let world = World::with_login(one_password_for(Duration::ZERO)).await;
    for _ in 0..20 {
        let mut device = world.logged_in("pump-17").await;
        device.end().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn login_that_hangs_at_recheck_does_not_outlast_its_expiry() {
    let asked = AtomicBool::new(false);
    let login: Arc<Login> = Arc::new(move |user_name, _| {
        if asked.swap(true, Ordering::SeqCst) {
            std::thread::sleep(Duration::from_secs(4));
        }
        Ok(LoggedIn { identity: identity(user_name), expires_in: Duration::from_secs(1) })
    });
    let world = World::with_login(login).await;
    let mut device = world.logged_in("pump-17").await;
    world.broker.recheck();
    let started = Instant::now();
    device.end().await.unwrap();
    assert!(started.elapsed() < Duration::from_secs(3), "{:?}", started.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn device_whose_login_is_shortened_at_a_recheck_is_cut_when_it_expires() {
    let asked = AtomicBool::new(false);
    let login: Arc<Login> = Arc::new(move |user_name, _| {
        let expires_in =
            if asked.swap(true, Ordering::SeqCst) { Duration::from_secs(1) } else { DAY };
        Ok(LoggedIn { identity: identity(user_name), expires_in })
    });
    let world = World::with_login(login).await;
    let mut device = world.logged_in("pump-17").await;
    world.broker.recheck();
    tokio::time::sleep(SILENCE).await;
    assert!(device.is_alive().await);
    device.end().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn login_without_end_lets_a_device_stay() {
    let limits = Limits { bootstrapping: SILENCE, ..limits() };
    let world = World::with_login_and_limits(one_password_for(Duration::MAX), limits).await;
    let mut device = world.logged_in("pump-17").await;
    tokio::time::sleep(INTRODUCTION + SILENCE).await;
    assert!(device.is_alive().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn will_and_long_keep_alive_are_refused_without_asking_about_the_password() {
    let (login, asked) = counting();
    let world = World::with_login(login).await;
    let mut operator = world.operator().await;
    assert_eq!(operator.subscribe("device/#").await, Some(GRANTED_QOS_1));
    let will = Some(("device/v1/default/pump-17/offline", false));
    for (connect, due) in [
        (Connect { will, ..login_as("pump-17") }, NOT_AUTHORIZED),
        (Connect { will, version: 4, ..login_as("pump-17") }, V3_NOT_AUTHORIZED),
        (Connect { keep_alive: 0, version: 4, ..login_as("pump-17") }, V3_NOT_AUTHORIZED),
        (Connect { keep_alive: 241, version: 4, ..login_as("pump-17") }, V3_NOT_AUTHORIZED),
    ] {
        assert_eq!(world.refused_login(&connect).await, due);
    }
    assert_eq!(operator.message(SILENCE).await, None);
    assert_eq!(asked.load(Ordering::SeqCst), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_of_devices_hold_for_those_that_log_in() {
    let world = World::with_login(one_password()).await;
    let mut worker = world.worker().await;
    let mut device = world.logged_in("pump-17").await;
    for number in 0..64 {
        let filter = format!("device/v1/default/pump-17/{number}");
        assert_eq!(device.subscribe(&filter).await, Some(GRANTED_QOS_1), "{filter}");
    }
    assert_eq!(device.subscribe("device/v1/default/pump-17/64").await, Some(QUOTA_EXCEEDED));
    for _ in 0..100 {
        assert_eq!(
            device.publish("device/v1/default/pump-17/telemetry", b"21").await,
            Some(NO_MATCHING_SUBSCRIBERS)
        );
    }
    assert_eq!(
        device.publish("device/v1/default/pump-17/photo", &[7; 60 * 1024]).await,
        Some(NO_MATCHING_SUBSCRIBERS)
    );
    for _ in 0..32 {
        assert_eq!(device.publish(&request_topic("pump-17"), b"request").await, Some(SUCCESS));
        assert!(worker.message(PATIENCE).await.is_some());
    }
    device.publish(&request_topic("pump-17"), b"request").await;
    device.end().await.unwrap();

    let photo = [7; 64 * 1024];
    for (topic, payload, first) in [
        (request_topic("pump-17"), &photo[..18 * 1024], 0x32),
        (request_topic("pump-17"), b"at QoS 0", 0x30),
        (request_topic("pump-17"), b"retained", 0x33),
        ("device/v1/default/pump-17/telemetry".into(), &photo[..2000], 0x33),
        ("device/v1/default/pump-17/photo".into(), &photo, 0x32),
    ] {
        // Each case is in a new world, because the broker makes a device that was cut wait.
        let world = World::with_login(one_password()).await;
        let mut worker = world.worker().await;
        let mut device = world.logged_in("pump-17").await;
        device.send_publish(&topic, payload, first).await;
        device.end().await.unwrap();
        assert_eq!(worker.message(SILENCE).await, None);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn enhanced_authentication_is_refused_where_devices_log_in() {
    let (login, asked) = counting();
    let world = World::with_login(login).await;
    // 0x15: Authentication Method (MQTT 5 §3.1.2.11.9).
    let connect = Connect { properties: b"\x15\0\x05PLAIN".to_vec(), ..login_as("pump-17") };
    assert_eq!(world.refused_login(&connect).await, BAD_AUTHENTICATION_METHOD);
    assert_eq!(asked.load(Ordering::SeqCst), 0);

    let mut device = world.logged_in("pump-17").await;
    // AUTH (§3.15): re-authenticate by PLAIN.
    device.send(&packet(0xf0, b"\x19\x08\x15\0\x05PLAIN".to_vec())).await;
    device.end().await.unwrap();
    assert_eq!(asked.load(Ordering::SeqCst), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn long_user_names_and_passwords_are_refused_without_asking() {
    let (login, asked) = counting();
    let world = World::with_login(login).await;
    let long = [b'x'; u16::MAX as usize];
    let fits =
        Connect { password: Some(&long[.."pump-17".len() + 1].repeat(127)), ..login_as("pump-17") };
    assert_eq!(fits.password.unwrap().len() + "pump-17".len(), 1023);
    assert_eq!(world.operational_connect(None, &fits).await.unwrap().1, SUCCESS);
    let fits = Connect { password: Some(&long[..1017]), ..login_as("pump-17") };
    assert_eq!(world.operational_connect(None, &fits).await.unwrap().1, SUCCESS);
    assert_eq!(asked.swap(0, Ordering::SeqCst), 2);

    let user_name = std::str::from_utf8(&long[..1020]).unwrap();
    for connect in [
        Connect { password: Some(&long[..1018]), ..login_as("pump-17") },
        Connect { password: Some(&long[..8_000]), ..login_as("pump-17") },
        Connect { user_name: Some(user_name), ..login_as("pump-17") },
    ] {
        assert_eq!(world.refused_login(&connect).await, BAD_USER_NAME_OR_PASSWORD);
    }
    let beyond_the_packet = Connect { password: Some(&long), ..login_as("pump-17") };
    assert_eq!(world.refused_login(&beyond_the_packet).await, PACKET_TOO_LARGE);
    assert_eq!(asked.load(Ordering::SeqCst), 0);
    assert!(world.logged_in("pump-17").await.is_alive().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_that_do_not_log_in_are_cut_at_the_deadline() {
    let world = World::with_login(one_password()).await;
    let mut silent = Raw::open(world.broker.operational_addr(), &world.anonymous).await.unwrap();
    let mut trickling = Raw::open(world.broker.operational_addr(), &world.anonymous).await.unwrap();
    let started = Instant::now();
    let connect = login_as("pump-17").packet();
    trickling.send(&connect[..connect.len() - 1]).await;
    for raw in [&mut silent, &mut trickling] {
        raw.end().await.unwrap();
        let took = started.elapsed();
        assert!((INTRODUCTION / 2..2 * INTRODUCTION).contains(&took), "{took:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_but_connect_is_heard_before_the_login() {
    let world = World::with_login(one_password()).await;
    let mut operator = world.operator().await;
    assert_eq!(operator.subscribe("device/#").await, Some(GRANTED_QOS_1));
    let mut raw = Raw::open(world.broker.operational_addr(), &world.anonymous).await.unwrap();
    raw.send_publish("device/v1/default/pump-17/telemetry", b"21", 0x30).await;
    raw.send(&login_as("pump-17").packet()).await;
    raw.end().await.unwrap();
    assert_eq!(operator.message(SILENCE).await, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn flood_of_bad_logins_takes_no_more_than_the_places_of_its_network() {
    let limits = Limits { waiting: 4, ..limits() };
    let world = World::with_login_and_limits(one_password(), limits).await;
    for _ in 0..100 {
        let connect = Connect { password: Some(b"guess"), ..login_as("pump-17") };
        assert_eq!(world.refused_login(&connect).await, BAD_USER_NAME_OR_PASSWORD);
    }
    let mut waiting = Vec::new();
    for _ in 0..4 {
        waiting.push(Raw::open(world.broker.operational_addr(), &world.anonymous).await.unwrap());
    }
    assert!(Raw::open(world.broker.operational_addr(), &world.anonymous).await.is_err());
    drop(waiting);
    let started = Instant::now();
    while world.operational_connect(None, &login_as("pump-17")).await.is_none() {
        assert!(started.elapsed() < PATIENCE, "the places are not given back");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn panic_in_one_login_leaves_the_others_served() {
    let login: Arc<Login> = Arc::new(|user_name, _| match user_name {
        "pump-17" => panic!("as the test wants it"),
        _ => Ok(LoggedIn { identity: identity(user_name), expires_in: DAY }),
    });
    let world = World::with_login(login).await;
    // This is more than the number of logins that are checked at once.
    for _ in 0..100 {
        assert_eq!(world.refused_login(&login_as("pump-17")).await, SERVER_UNAVAILABLE);
    }
    assert!(world.logged_in("pump-18").await.is_alive().await);
}

/// Hangs for `pump-17`.
fn hanging() -> Arc<Login> {
    Arc::new(|user_name, _| {
        if user_name == "pump-17" {
            std::thread::sleep(Duration::from_secs(3));
        }
        Ok(LoggedIn { identity: identity(user_name), expires_in: DAY })
    })
}

async fn begin_logins(world: &World, clients: usize) -> Vec<Raw> {
    let mut begun = Vec::new();
    for _ in 0..clients {
        let mut raw = Raw::open(world.broker.operational_addr(), &world.anonymous).await.unwrap();
        raw.send(&login_as("pump-17").packet()).await;
        begun.push(raw);
    }
    begun
}

#[tokio::test(flavor = "multi_thread")]
async fn login_that_hangs_holds_up_nobody_else() {
    let world = World::with_login(hanging()).await;
    let _worker = world.answering_worker(b"reply".to_vec()).await;
    let _hanging = begin_logins(&world, 8).await;
    let started = Instant::now();
    assert!(world.logged_in("pump-18").await.is_alive().await);
    assert!(world.device("pump-19").await.is_alive().await);
    world.exchange().await;
    assert!(started.elapsed() < Duration::from_secs(1), "{:?}", started.elapsed());
}

#[test]
fn logins_that_hang_leave_threads_for_the_admission_of_certificates() {
    // Fewer threads than logins that hang, and more than logins that are checked at once.
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .max_blocking_threads(80)
        .build()
        .unwrap();
    runtime.block_on(async {
        let world = World::with_login(hanging()).await;
        let _hanging = begin_logins(&world, 120).await;
        tokio::time::sleep(SILENCE).await;
        let started = Instant::now();
        assert!(world.device("pump-19").await.is_alive().await);
        assert!(started.elapsed() < Duration::from_secs(1), "{:?}", started.elapsed());
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn password_is_in_no_log() {
    if !in_own_process("login::password_is_in_no_log") {
        return;
    }
    let log = Log::default();
    let writer = log.clone();
    tracing_subscriber::fmt()
        .with_max_level(tracing::Level::TRACE)
        .with_writer(move || writer.clone())
        .init();
    let world = World::with_login(one_password()).await;
    let mut device = world.logged_in("pump-17").await;
    world.broker.recheck();
    tokio::time::sleep(SILENCE).await;
    assert!(device.is_alive().await);
    let connect = Connect { client: "pump-18", ..login_as("pump-17") };
    assert_eq!(world.refused_login(&connect).await, CLIENT_ID_NOT_VALID);
    let connect = Connect { password: Some(b"nearly open sesame"), ..login_as("pump-17") };
    assert_eq!(world.refused_login(&connect).await, BAD_USER_NAME_OR_PASSWORD);
    world.broker.shutdown().await;

    let log = log.0.lock().unwrap();
    let text = String::from_utf8_lossy(&log);
    assert!(text.contains("wrong password"), "the reason is there: {text}");
    for password in [
        "sesame".to_owned(),
        format!("{:?}", b"sesame").replace(['[', ']'], ""),
        hex::encode(b"sesame"),
    ] {
        assert!(!text.contains(&password), "{password}");
    }
}

#[derive(Clone, Default)]
pub(crate) struct Log(pub(crate) Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, text: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend(text);
        Ok(text.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

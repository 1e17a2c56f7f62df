//! The same worker on brokers that are not ours.

use std::fs;
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use assay_tests::{AssayDir, Device, EkKind, Mosquitto, Worker, json, run, trusted_vendor};
use assay_wire::Topic;

use crate::identities::Holder;
use crate::raw_client::RawClient;
use crate::tunnel::Tunnel;

#[test]
fn a_worker_on_mosquitto_provisions_devices_through_its_access_list() -> Result<()> {
    let dir = AssayDir::init()?;
    let mosquitto = mosquitto_as_deployed(&dir)?;
    let _worker = Worker::start(&dir, &url_of(&mosquitto, 1))?;
    provisions_on(&dir, &url_of(&mosquitto, 0))
}

#[test]
fn a_local_client_speaks_as_the_device_on_mosquitto_and_nowhere_but_in_its_tree() -> Result<()> {
    let deployed = Deployed::start()?;
    let (root, url) = (deployed.dir.root_pem(), |listener| deployed.url(listener));
    let tpm = trusted_vendor()?.device(EkKind::P256, 0)?;
    let device = Device::new(&tpm)?;
    let provisioned = json(&mut device.provision_at(&url(0), &root)?)?;
    let id = provisioned["device_id"].as_str().unwrap_or_default();
    let tunnel = Tunnel::run(device.tunnel_at(&url(1), &root, "127.0.0.1:0")?)?;
    for (owner, is_granted) in [(id, true), ("another", false)] {
        let mut says = tunnel.mosquitto("mosquitto_pub", "5", "node-red")?;
        says.args(["-d", "-t", &format!("device/v1/default/{owner}/telemetry"), "-m", "21"]);
        let output = says.output()?;
        let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        // Nobody listens: no matching subscribers. Or not authorized (MQTT 5 §3.4.2.1).
        let due = if is_granted { "RC:16" } else { "RC:135" };
        ensure!(said.contains(due), "{owner}: {said}");
    }
    Ok(())
}

#[test]
fn a_stranger_on_mosquitto_is_nobody_else_by_giving_a_name() -> Result<()> {
    let dir = AssayDir::init()?;
    let mosquitto = mosquitto_as_deployed(&dir)?;
    let broker = format!("mqtts://127.0.0.1:{}", mosquitto.port(0));
    let topics = [
        "ca/v1/default/crl",
        "device/v1/default/pump-17/telemetry",
        "fleet/v1/default/pump-17/event",
        "provision/v1/default/00112233445566778899aabbccddeeff/reply",
    ];
    for user in ["worker@", "operator@", "pump-17"] {
        let mut stranger = RawClient::connect_as(&broker, &dir.root_pem(), Some(user))?;
        for topic in topics {
            ensure!(!stranger.publish(topic, b"forged".to_vec())?, "{user} publishes to {topic}");
        }
        // Mosquitto lets anybody subscribe to anything, and delivers what may be read.
        for filter in ["#", "device/v1/default/pump-17/telemetry"] {
            stranger.subscribe(filter)?;
        }
        let mut device = RawClient::connect_as(&broker, &dir.root_pem(), None)?;
        let request = Topic::Request("default".parse()?, device.id().clone()).to_string();
        ensure!(device.publish(&request, b"a request".to_vec())?);
        ensure!(!stranger.hears_something(Duration::from_millis(300)), "{user} hears a request");
    }
    Ok(())
}

#[test]
fn operator_on_mosquitto_gives_commands_and_says_nothing_else() -> Result<()> {
    let dir = AssayDir::init()?;
    let mosquitto = mosquitto_as_deployed(&dir)?;
    let operator = Holder::operator(&dir, "operator", &url_of(&mosquitto, 1));
    for (topic, is_granted) in [("command", true), ("command/reboot", true), ("telemetry", false)] {
        let said = operator.says(&format!("device/v1/default/pump-17/{topic}"), "x")?;
        ensure!(
            said.contains("RC:135") != is_granted && said.contains("PUBACK"),
            "{topic}: {said}"
        );
    }
    Ok(())
}

/// The built-in broker asks the record. Mosquitto has only the list.
#[test]
fn mosquitto_refuses_what_the_revocation_list_names() -> Result<()> {
    let dir = AssayDir::init()?;
    let file = |name: &str| dir.path().join(name).display().to_string();
    let list = || run(&mut dir.assay(&["crl", "--pem", "--out", &file("crl.pem")])?).map(drop);
    list()?;
    run(&mut dir.assay(&[
        "identity",
        "add",
        "alice",
        "--role",
        "operator",
        "--out",
        &file(""),
    ])?)?;
    let mut mosquitto = mosquitto_as_deployed(&dir)?;
    let url = url_of(&mosquitto, 1);
    let is_let_in =
        |name: &str| Holder::operator(&dir, name, &url).publishes("x", "x", &[]).is_ok();
    ensure!(is_let_in("alice") && is_let_in("operator"));
    run(&mut dir.assay(&["identity", "revoke", "alice"])?)?;
    list()?;
    mosquitto.restart()?;
    ensure!(!is_let_in("alice") && is_let_in("operator"));
    let _worker = Worker::start(&dir, &url)?;
    provisions_on(&dir, &url_of(&mosquitto, 0))
}

/// Mosquitto does not refuse a subscription. It delivers what may be read.
#[test]
fn backends_on_mosquitto_hear_and_say_what_the_printed_access_list_lets_them() -> Result<()> {
    let dir = AssayDir::init()?;
    let out = dir.path().display().to_string();
    for (name, rights) in [
        ("control", ["--publish", "device/+/command/#"]),
        ("sink", ["--subscribe", "device/+/command/#"]),
        ("deaf", ["--subscribe", "ca/#"]),
        ("gone", ["--publish", "device/+/command/#"]),
    ] {
        let add = [&["identity", "add", name, "--out", &out][..], &rights].concat();
        run(&mut dir.assay(&add)?)?;
    }
    run(&mut dir.assay(&["identity", "revoke", "gone"])?)?;
    let list = String::from_utf8(run(&mut dir.assay(&["identity", "acl"])?)?.stdout)?;
    ensure!(!list.contains("gone"), "{list}");
    let mosquitto = mosquitto_with(&dir, &list)?;
    let url = url_of(&mosquitto, 1);
    let holder = |name: &str| Holder {
        client: format!("backend@{name}"),
        files: dir.path().join(name),
        root: dir.root_pem(),
        url: url.clone(),
    };
    let (control, command) = (holder("control"), "device/v1/default/pump-17/command/reboot");
    let mut deaf = holder("deaf").hears(&["device/v1/default/#", "ca/v1/default/#"], 1)?.spawn()?;
    let mut sink = holder("sink").hears(&["device/v1/default/#"], 1)?.spawn()?;
    while sink.try_wait()?.is_none() {
        ensure!(!control.says(command, "now")?.contains("RC:135"));
    }
    let heard = String::from_utf8(sink.wait_with_output()?.stdout)?;
    ensure!(heard.contains(&format!("{command} now")), "{heard}");
    ensure!(deaf.try_wait()?.is_none(), "it hears what it may not");
    deaf.kill()?;
    deaf.wait()?;
    for topic in ["device/v1/default/pump-17/telemetry", "ca/v1/default/crl"] {
        let said = control.says(topic, "forged")?;
        ensure!(said.contains("RC:135"), "{topic}: {said}");
    }
    for name in ["sink", "gone"] {
        let said = holder(name).says(command, "forged")?;
        ensure!(said.contains("RC:135"), "{name}: {said}");
    }
    Ok(())
}

/// A CA whose devices are on Mosquitto, with a worker and a vendor that it trusts.
pub(crate) struct Deployed {
    pub(crate) dir: AssayDir,
    mosquitto: Mosquitto,
    _worker: Worker,
}

impl Deployed {
    pub(crate) fn start() -> Result<Self> {
        let dir = AssayDir::init()?;
        dir.trust(&trusted_vendor()?)?;
        let mosquitto = mosquitto_as_deployed(&dir)?;
        let worker = Worker::start(&dir, &url_of(&mosquitto, 1))?;
        Ok(Self { dir, mosquitto, _worker: worker })
    }

    /// The bootstrap listener (0) or the operational one (1).
    pub(crate) fn url(&self, listener: u16) -> String {
        url_of(&self.mosquitto, listener)
    }
}

pub(crate) fn url_of(mosquitto: &Mosquitto, listener: u16) -> String {
    format!("mqtts://127.0.0.1:{}", mosquitto.port(listener))
}

/// Mosquitto with the configuration of deploy/mosquitto, and with a revocation list if there is
/// one.
pub(crate) fn mosquitto_as_deployed(dir: &AssayDir) -> Result<Mosquitto> {
    mosquitto_with(dir, "")
}

/// The same, with more lines in the access list for clients with a certificate.
fn mosquitto_with(dir: &AssayDir, more: &str) -> Result<Mosquitto> {
    let deployed = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/mosquitto");
    let config = fs::read_to_string(format!("{deployed}/mosquitto.conf"))?;
    let config = config.replace("/mosquitto/certs", &dir.path().display().to_string());
    let lists = dir.path().join("mosquitto");
    fs::create_dir_all(&lists)?;
    for (list, more) in [("acl-bootstrap", ""), ("acl-operational", more)] {
        let deployed = fs::read_to_string(format!("{deployed}/{list}"))?;
        fs::write(lists.join(list), format!("{deployed}\n{more}"))?;
    }
    let config = config.replace("/mosquitto/config", &lists.display().to_string());
    // The harness has its own ports, and sets `per_listener_settings` itself.
    let [general, bootstrap, operational] = config.splitn(3, "\nlistener ").collect::<Vec<_>>()[..]
    else {
        bail!("two listeners: {config}");
    };
    let below = |listener: &str| {
        listener.split_once('\n').map(|(_, lines)| lines.to_owned()).unwrap_or_default()
    };
    let general = general.replace("per_listener_settings true", "");
    let list = dir.path().join("crl.pem");
    let list = if list.exists() { format!("\ncrlfile {}", list.display()) } else { String::new() };
    Mosquitto::start(&[
        &format!("{}\n{general}", below(bootstrap)),
        &format!("{}{list}", below(operational)),
    ])
}

#[test]
fn a_worker_on_rumqttd_provisions_devices() -> Result<()> {
    let dir = AssayDir::init()?;
    let broker = format!("mqtt://127.0.0.1:{}", start_rumqttd()?);
    let _worker = Worker::start(&dir, &broker)?;
    provisions_on(&dir, &broker)
}

#[test]
fn a_worker_finds_its_broker_again() -> Result<()> {
    let dir = AssayDir::init()?;
    let mut mosquitto = Mosquitto::start(&["allow_anonymous true"])?;
    let broker = format!("mqtt://127.0.0.1:{}", mosquitto.port(0));
    let _worker = Worker::start(&dir, &broker)?;
    mosquitto.restart()?;
    provisions_on(&dir, &broker)
}

fn provisions_on(dir: &AssayDir, broker: &str) -> Result<()> {
    let vendor = trusted_vendor()?;
    dir.trust(&vendor)?;
    for (number, kind) in [EkKind::P256, EkKind::Rsa2048].into_iter().enumerate() {
        let tpm = vendor.device(kind, number)?;
        let provisioned = json(&mut Device::new(&tpm)?.provision_at(broker, &dir.root_pem())?)?;
        ensure!(
            dir.list("devices")?
                .iter()
                .any(|device| device["device_id"] == provisioned["device_id"])
        );
    }
    Ok(())
}

/// A broker in this process, on the port returned; it cannot be stopped.
pub(crate) fn start_rumqttd() -> Result<u16> {
    let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port();
    let connections = rumqttd::ConnectionSettings {
        connection_timeout_ms: 5000,
        max_payload_size: 65536,
        max_inflight_count: 100,
        auth: None,
        external_auth: None,
        dynamic_filters: true,
    };
    let server = rumqttd::ServerSettings {
        name: "laboratory".into(),
        listen: (Ipv4Addr::LOCALHOST, port).into(),
        tls: None,
        next_connection_delay_ms: 0,
        connections,
    };
    let router = rumqttd::RouterConfig {
        max_connections: 100,
        max_outgoing_packet_count: 200,
        max_segment_size: 1024 * 1024,
        max_segment_count: 4,
        ..Default::default()
    };
    let v5 = Some([("v5".to_owned(), server)].into());
    let config = rumqttd::Config { id: 0, router, v5, ..Default::default() };
    thread::spawn(move || _ = rumqttd::Broker::new(config).start());
    let deadline = Instant::now() + Duration::from_secs(10);
    while TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_err() {
        ensure!(Instant::now() < deadline, "rumqttd does not listen");
        thread::sleep(Duration::from_millis(5));
    }
    Ok(port)
}

//! What MQTT clients that are not ours are told when they break the rules of docs/protocol.md.

use std::process::{Command, Output};

use anyhow::{Context, Result, ensure};
use assay_tests::{Device, EkKind, run, tool, trusted_vendor};
use assay_wire::ClientId;

use crate::lab::Lab;
use crate::raw_client::random;

/// A rule that a client breaks, and the broker's answer in MQTT 3.1.1 and in MQTT 5. Of a
/// connection that ends, paho tells only that it ends.
type Row = (&'static str, &'static str, &'static str);

const STRANGER: &[Row] = &[
    ("keeps the rules", "accepted", "accepted"),
    ("another client id", "connack 0x02", "connack 0x85"),
    ("client id again", "connack 0x02", "connack 0x85"),
    ("Will", "connack 0x05", "connack 0x87"),
    ("long CONNECT", "cut", "connack 0x95"),
    ("keep-alive of 61 s", "connack 0x05", "accepted"),
    ("subscribes to its reply", "suback 0x01", "suback 0x01"),
    ("subscribes with QoS 2", "suback 0x01", "suback 0x01"),
    ("subscribes to another's reply", "suback 0x80", "suback 0x87"),
    ("subscribes with a wildcard", "suback 0x80", "suback 0x87"),
    ("joins the workers", "suback 0x80", "suback 0x87"),
    ("subscribes 65 times", "cut", "cut 0x97"),
    ("publishes a request", "puback 0x00", "puback 0x00"),
    ("publishes elsewhere", "puback 0x00", "puback 0x87"),
    ("request with QoS 0", "cut", "cut 0x82"),
    ("request with QoS 2", "cut", "cut 0x9b"),
    ("retained request", "cut", "cut 0x9a"),
    ("33 requests", "cut", "cut 0x97"),
    ("packet of 17409 bytes", "cut", "cut 0x95"),
    ("Authentication Method", "", "connack 0x8c"),
    ("small Maximum Packet Size", "", "connack 0x95"),
    ("subscription identifier", "", "cut 0xa1"),
    ("topic alias", "", "cut 0x94"),
];

const DEVICE: &[Row] = &[
    ("keeps the rules", "accepted", "accepted"),
    ("another client id", "connack 0x02", "connack 0x85"),
    ("another token", "connack 0x04", "connack 0x86"),
    ("keep-alive of 241 s", "connack 0x05", "accepted"),
    ("Will elsewhere", "connack 0x05", "connack 0x87"),
    ("Will of 1025 bytes", "connack 0x05", "connack 0x97"),
    ("Will on its presence", "accepted", "accepted"),
    ("subscribes to its tree", "suback 0x01", "suback 0x01"),
    ("subscribes to all trees", "suback 0x80", "suback 0x87"),
    ("subscribes 65 times", "cut", "cut 0x97"),
    ("subscribes 17 levels deep", "suback 0x80", "suback 0x87"),
    ("publishes unheard", "puback 0x00", "puback 0x10"),
    ("publishes to another", "puback 0x00", "puback 0x87"),
    ("publishes to operators", "puback 0x00", "puback 0x87"),
    ("publishes with QoS 2", "cut", "cut 0x9b"),
    ("packet of 65537 bytes", "cut", "cut 0x95"),
    ("retains a fifth topic", "puback 0x00", "puback 0x97"),
    ("retains 1025 bytes", "cut", "cut 0x97"),
    ("retained request", "cut", "cut 0x9a"),
    ("33 requests", "cut", "cut 0x97"),
    ("connects twice", "cut", "cut 0x8e"),
];

#[test]
fn paho_is_told_what_the_protocol_says_of_a_stranger() -> Result<()> {
    let lab = Lab::open()?;
    for version in ["4", "5"] {
        compare(STRANGER, version, &told(&lab, version, &lab.server.bootstrap, ["", ""])?)?;
    }
    Ok(())
}

#[test]
fn paho_is_told_what_the_protocol_says_of_a_device() -> Result<()> {
    let lab = Lab::open()?;
    let tpm = trusted_vendor()?.device(EkKind::P256, 0)?;
    let device = Device::new(&tpm)?;
    let provisioned = lab.provision(&device, &["--flow", "shared-key"])?;
    let name = provisioned["device_id"].as_str().context("a device id")?;
    // MQTT 5 first, because it tells more. The broker counts the device's requests over all its
    // connections.
    for version in ["5", "4"] {
        let token = String::from_utf8(run(&mut device.token()?)?.stdout)?;
        compare(
            DEVICE,
            version,
            &told(&lab, version, &lab.server.operational, [name, token.trim()])?,
        )?;
    }
    Ok(())
}

/// Each rule that paho broke, and the broker's answer.
fn told(
    lab: &Lab,
    version: &str,
    broker: &str,
    device: [&str; 2],
) -> Result<Vec<(String, String)>> {
    // Debian's Python has the library.
    let mut python = Command::new("/usr/bin/python3");
    python
        .args(["-c", include_str!("paho.py"), version, port_of(broker)?])
        .arg(lab.dir.root_pem())
        .arg("default")
        .args(device);
    let output = run(&mut python)?.stdout;
    Ok(serde_json::Deserializer::from_slice(&output).into_iter().collect::<Result<_, _>>()?)
}

fn compare(rows: &[Row], version: &str, told: &[(String, String)]) -> Result<()> {
    let expected = rows.iter().map(|&(rule, v4, v5)| (rule, if version == "4" { v4 } else { v5 }));
    let expected: Vec<_> = expected.filter(|(_, outcome)| !outcome.is_empty()).collect();
    let told: Vec<_> = told.iter().map(|(rule, outcome)| (&rule[..], &outcome[..])).collect();
    let differ: Vec<_> = told.iter().filter(|row| !expected.contains(row)).collect();
    ensure!(told.len() == expected.len() && differ.is_empty(), "protocol {version}: {differ:?}");
    Ok(())
}

#[test]
fn mosquitto_clients_say_what_is_wrong() -> Result<()> {
    let lab = Lab::open()?;
    let (own, another) =
        ("provision/v1/default/{client}/request", "provision/v1/default/another/request");
    for (program, version, options, said) in [
        ("mosquitto_sub", "311", &["-t", "#"][..], "Subscribed (mid: 1): 128"),
        ("mosquitto_sub", "5", &["-t", "#"], "Subscribed (mid: 1): 135"),
        (
            "mosquitto_sub",
            "311",
            &["-t", "#", "-i", "pump-17"],
            "Connection Refused: identifier rejected",
        ),
        ("mosquitto_sub", "5", &["-t", "#", "-i", "pump-17"], "Client Identifier not valid"),
        (
            "mosquitto_pub",
            "5",
            &["-m", "x", "-q", "1", "-t", another],
            "Publish 1 failed: Not authorized",
        ),
        ("mosquitto_pub", "311", &["-m", "x", "-q", "2", "-t", own], "The connection was lost"),
        (
            "mosquitto_pub",
            "5",
            &["-m", "x", "-q", "2", "-t", own],
            "Message QoS not supported on broker",
        ),
        (
            "mosquitto_pub",
            "311",
            &["-m", "x", "-q", "1", "-t", own, "-r"],
            "The connection was lost",
        ),
    ] {
        let client = ClientId::bootstrap(random()).to_string();
        let mut command = tool(program)?;
        command.args([
            "-d",
            "-h",
            "127.0.0.1",
            "-p",
            port_of(&lab.server.bootstrap)?,
            "-V",
            version,
            "-i",
            &client,
        ]);
        command
            .arg("--cafile")
            .arg(lab.dir.root_pem())
            .args(options.iter().map(|o| o.replace("{client}", &client)));
        let Output { stdout, stderr, .. } = command.output()?;
        let heard = String::from_utf8_lossy(&[stdout, stderr].concat()).into_owned();
        ensure!(heard.contains(said), "{program} {version} {options:?}: {heard}");
    }
    Ok(())
}

fn port_of(url: &str) -> Result<&str> {
    Ok(url.rsplit_once(':').context("the URL has a port")?.1)
}

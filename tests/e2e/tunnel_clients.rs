//! MQTT clients that know nothing of TLS and TPMs, through `assay-device tunnel`.

use std::process::Command;

use anyhow::{Context, Result, ensure};
use assay_tests::run;

use crate::lab::Lab;
use crate::mqtt_clients::is_heard;
use crate::tunnel::{Provisioned, Tunnel};

/// With a certificate and with a token.
const FLOWS: [&str; 2] = ["ticket", "shared-key"];

#[test]
fn mosquitto_clients_of_both_versions_speak_as_the_device() -> Result<()> {
    let lab = Lab::open()?;
    for (number, flow) in FLOWS.into_iter().enumerate() {
        let pump = Provisioned::new(&lab, number, flow)?;
        let tunnel = Tunnel::start(&lab, &pump.device)?;
        for (publisher, subscriber) in [("311", "311"), ("311", "5"), ("5", "311"), ("5", "5")] {
            let mut hears = tunnel.mosquitto("mosquitto_sub", subscriber, "hears")?;
            hears.args(["-t", &format!("device/v1/default/{}/#", pump.id)]);
            let mut says = tunnel.mosquitto("mosquitto_pub", publisher, "says")?;
            // What it logs in with here is not what the broker gets.
            says.args(["-u", "somebody", "-P", "something"]);
            says.args(["-t", &format!("device/v1/default/{}/x", pump.id)]);
            is_heard(&mut hears, &mut says)
                .with_context(|| format!("{flow}, {publisher} to {subscriber}"))?;
        }
    }
    Ok(())
}

#[test]
fn paho_speaks_as_the_device_in_both_versions() -> Result<()> {
    let lab = Lab::open()?;
    for (number, flow) in FLOWS.into_iter().enumerate() {
        let pump = Provisioned::new(&lab, number, flow)?;
        let tunnel = Tunnel::start(&lab, &pump.device)?;
        for version in ["4", "5"] {
            // Debian's Python has the library.
            let mut python = Command::new("/usr/bin/python3");
            python.args(["-c", PAHO, version, &tunnel.port.to_string(), &pump.id]);
            let said = String::from_utf8(run(&mut python)?.stdout)?;
            ensure!(said.trim() == "40 heard, 40 acknowledged", "{flow}, {version}: {said}");
        }
    }
    Ok(())
}

/// mqtt.js is what Node-RED's MQTT nodes are made of.
#[test]
fn mqtt_js_speaks_as_the_device_in_both_versions() -> Result<()> {
    let lab = Lab::open()?;
    for (number, flow) in FLOWS.into_iter().enumerate() {
        let pump = Provisioned::new(&lab, number, flow)?;
        let tunnel = Tunnel::start(&lab, &pump.device)?;
        for version in ["4", "5"] {
            let mut node = Command::new("/usr/bin/node");
            // Debian keeps libraries here.
            node.env("NODE_PATH", "/usr/share/nodejs:/usr/lib/nodejs");
            node.args(["-e", MQTT_JS, version, &tunnel.port.to_string(), &pump.id]);
            let said = String::from_utf8(run(&mut node)?.stdout)?;
            ensure!(said.trim() == "40 heard, 40 acknowledged", "{flow}, {version}: {said}");
        }
    }
    Ok(())
}

/// A client that publishes to itself. Its arguments are the version, the port and the device id.
const PAHO: &str = r##"
import sys, threading
import paho.mqtt.client as mqtt
version, port, device = sys.argv[1:]
count, topic = 40, f"device/v1/default/{device}/x/"
heard, acknowledged, subscribed, done = [], set(), threading.Event(), threading.Event()
def look():
    if len(heard) == count and len(acknowledged) == count:
        done.set()
def on_connect(client, *rest): client.subscribe(topic + "#", qos=1)
def on_subscribe(client, *rest): subscribed.set()
def on_message(client, userdata, message): heard.append(message.payload); look()
def on_publish(client, userdata, mid): acknowledged.add(mid); look()
client = mqtt.Client(client_id="paho", protocol=int(version))
client.on_connect, client.on_subscribe, client.on_message, client.on_publish = on_connect, on_subscribe, on_message, on_publish
client.will_set(f"device/v1/default/{device}/presence", "gone", 1)
client.connect("127.0.0.1", int(port), keepalive=30)
client.loop_start()
assert subscribed.wait(20), "no SUBACK"
for number in range(count):
    client.publish(topic + str(number), b"%d" % number, qos=number % 2)
done.wait(20)
client.disconnect()
print(f"{len(heard)} heard, {len(acknowledged)} acknowledged")
"##;

/// The same with mqtt.js. Without a client id of the caller's, it makes one up.
const MQTT_JS: &str = r##"
const mqtt = require("mqtt");
const [version, port, device] = process.argv.slice(1);
const count = 40, topic = `device/v1/default/${device}/x/`;
let heard = 0, acknowledged = 0;
const client = mqtt.connect(`mqtt://127.0.0.1:${port}`, { protocolVersion: Number(version) });
function look() {
    if (heard === count && acknowledged === count) client.end(false, {}, () => {
        console.log(`${heard} heard, ${acknowledged} acknowledged`);
        process.exit(0);
    });
}
client.on("error", (error) => { console.error(error); process.exit(1); });
client.on("message", () => { heard += 1; look(); });
client.on("connect", () => client.subscribe(topic + "#", { qos: 1 }, (error) => {
    if (error) throw error;
    for (let number = 0; number < count; number++)
        client.publish(topic + number, String(number), { qos: number % 2 }, (error) => {
            if (error) throw error;
            acknowledged += 1;
            look();
        });
}));
setTimeout(() => { console.log(`${heard} heard, ${acknowledged} acknowledged`); process.exit(1); }, 20000);
"##;

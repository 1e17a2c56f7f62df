//! HAProxy in front of the built-in broker, with the configuration of the documents.

use std::fs;
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use assay_tests::{Device, EkKind, json, run, tool, trusted_vendor};

use crate::lab::Lab;

/// HAProxy, until it is dropped.
struct Balancer(Child);

impl Drop for Balancer {
    fn drop(&mut self) {
        _ = self.0.kill();
        _ = self.0.wait();
    }
}

#[test]
fn device_is_provisioned_and_speaks_through_haproxy() -> Result<()> {
    let lab = Lab::with_settings("[broker]\nbalancers = [\"127.0.0.2\"]\n")?;
    let ports = [TcpListener::bind("127.0.0.1:0")?, TcpListener::bind("127.0.0.1:0")?];
    let [bootstrap, operational] = ports.map(|free| free.local_addr().unwrap().port());
    let behind = |url: &str| url.trim_start_matches("mqtts://").to_owned();
    let config = include_str!("../../deploy/haproxy/haproxy.cfg")
        .replace("bind :8883", &format!("bind 127.0.0.1:{bootstrap}"))
        .replace("bind :8884", &format!("bind 127.0.0.1:{operational}"))
        .replace("10.0.0.8:8883", &format!("{} source 127.0.0.2", behind(&lab.server.bootstrap)))
        .replace("10.0.0.8:8884", &format!("{} source 127.0.0.2", behind(&lab.server.operational)));
    let place = tempfile::tempdir()?;
    let file = place.path().join("haproxy.cfg");
    fs::write(&file, config)?;
    run(tool("haproxy")?.args(["-c", "-f"]).arg(&file))?;
    let mut haproxy = tool("haproxy")?;
    haproxy.args(["-db", "-f"]).arg(&file).stdout(Stdio::null()).stderr(Stdio::null());
    let _balancer = Balancer(haproxy.spawn()?);
    let started = Instant::now();
    while TcpStream::connect(("127.0.0.1", bootstrap)).is_err() {
        ensure!(started.elapsed() < Duration::from_secs(10), "HAProxy does not listen");
        thread::sleep(Duration::from_millis(50));
    }
    let [bootstrap, operational] =
        [bootstrap, operational].map(|port| format!("mqtts://127.0.0.1:{port}"));
    let root = lab.dir.root_pem();
    let tpm = trusted_vendor()?.device(EkKind::P256, 0)?;
    let device = Device::new(&tpm)?;
    json(&mut device.provision_at(&bootstrap, &root)?)?;
    run(&mut device.publish_at(&operational, &root, "telemetry", "1")?)?;
    // Those who do not come through it are served, too.
    lab.provision(&Device::new(&tpm)?, &[]).map(drop)
}

#[test]
fn balancer_on_the_workers_own_address_is_refused() -> Result<()> {
    let dir = assay_tests::AssayDir::init()?;
    for (balancers, said) in [("127.0.0.0/8", "the CA's own worker"), ("here", "no address")] {
        let settings = format!("[broker]\nbalancers = [\"{balancers}\"]\n");
        fs::write(dir.path().join("assay.toml"), settings)?;
        let output = dir.assay(&["serve"])?.output()?;
        let heard = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.code() == Some(1) && heard.contains(said), "{heard}");
    }
    Ok(())
}

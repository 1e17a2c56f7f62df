//! The CA by HTTP: who is answered what, and that nobody keeps it from its work.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use assay_tests::{AssayDir, Device, EkKind, run, spawn, tool, trusted_vendor};
use tempfile::TempDir;

use crate::lab::Lab;
use crate::stolen_key::forge;

pub(crate) const HTTPS: &str = "[http]\nlisten = \"127.0.0.1:0\"\n";
pub(crate) const PLAIN: &str = "[http]\nlisten = \"127.0.0.1:0\"\ntls = false\n";

pub(crate) const OPERATOR: &[&str] = &["--role", "operator"];

/// Somebody who asks: with the certificate in this file and its key, or with none.
pub(crate) struct Caller {
    root: PathBuf,
    url: String,
    pair: Option<[PathBuf; 2]>,
}

/// What came back.
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) body: Vec<u8>,
}

impl Caller {
    pub(crate) fn nobody(lab: &Lab) -> Result<Self> {
        let url = lab.server.http.clone().context("it answers HTTP")?;
        Ok(Self { root: lab.dir.root_pem(), url, pair: None })
    }

    /// With `NAME.pem` and `NAME.key`.
    pub(crate) fn with(lab: &Lab, file: &Path) -> Result<Self> {
        let pair = ["pem", "key"].map(|kind| file.with_extension(kind));
        Ok(Self { pair: Some(pair), ..Self::nobody(lab)? })
    }

    /// An identity that is made for the test.
    pub(crate) fn identity(
        lab: &Lab,
        name: &str,
        arguments: &[&str],
        place: &TempDir,
    ) -> Result<Self> {
        let out = place.path().to_str().context("a path")?;
        lab.assay(&[&["identity", "add", name, "--out", out], arguments].concat())?;
        Self::with(lab, &place.path().join(name))
    }

    /// What curl gets; `arguments` come last.
    pub(crate) fn asks(&self, path: &str, arguments: &[&str]) -> Result<Answer> {
        let output = self.curl(path, arguments)?;
        let Some(at) = output.stdout.iter().rposition(|byte| *byte == b'\n') else {
            bail!("curl got no answer: {output:?}")
        };
        let (body, status) = output.stdout.split_at(at);
        let status = std::str::from_utf8(status)?.trim().parse()?;
        Ok(Answer { status, body: body.to_vec() })
    }

    fn curl(&self, path: &str, arguments: &[&str]) -> Result<Output> {
        let mut curl = tool("curl")?;
        curl.args(["--silent", "--show-error", "--max-time", "30", "--noproxy", "*"]);
        curl.args(["--write-out", "\n%{http_code}", "--cacert"]).arg(&self.root);
        if let Some([certificate, key]) = &self.pair {
            curl.arg("--cert").arg(certificate).arg("--key").arg(key);
        }
        Ok(curl.args(arguments).arg(format!("{}{path}", self.url)).output()?)
    }
}

impl Answer {
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub(crate) fn is(&self, status: u16, said: &str) -> Result<()> {
        let text = self.text();
        ensure!(self.status == status && text.contains(said), "{}: {text}", self.status);
        Ok(())
    }
}

#[test]
fn everybody_gets_the_certificates_and_the_revocation_lists_of_a_ca() -> Result<()> {
    let lab = Lab::with_settings(HTTPS)?;
    let nobody = Caller::nobody(&lab)?;
    nobody.asks("/healthz", &[])?.is(200, "alive")?;
    let chain = nobody.asks("/ca", &[])?;
    ensure!(chain.status == 200 && chain.text().matches("BEGIN CERTIFICATE").count() == 3);
    chain.is(200, fs::read_to_string(lab.dir.root_pem())?.trim())?;

    let tpm = trusted_vendor()?.device(EkKind::P256, 0)?;
    lab.enroll(&tpm, EkKind::P256, "pump-17", &[])?;
    let device = Device::new(&tpm)?;
    let first = lab.provision(&device, &[])?;
    lab.assay(&["enroll", "disable", "pump-17"])?;
    let serial = first["serial"].as_str().context("a serial number")?.to_uppercase();
    let place = tempfile::tempdir()?;
    let (file, issuing) = (place.path().join("list.pem"), lab.dir.path().join("issuing.pem"));
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let list = nobody.asks("/crl", &[])?;
        list.is(200, "BEGIN X509 CRL")?;
        fs::write(&file, &list.body)?;
        let mut show = tool("openssl")?;
        show.args(["crl", "-noout", "-text", "-verify", "-CAfile"]).arg(&issuing);
        let shown = run(show.arg("-in").arg(&file))?;
        ensure!(String::from_utf8_lossy(&shown.stderr).contains("verify OK"));
        if String::from_utf8_lossy(&shown.stdout).to_uppercase().contains(&serial) {
            break;
        }
        ensure!(Instant::now() < deadline, "the device's certificate is not on the list");
        thread::sleep(Duration::from_millis(200));
    }
    let issuing = lab.assay(&["issuing", "list", "--json"])?.stdout;
    let issuing: serde_json::Value = serde_json::from_slice(&issuing)?;
    let key = issuing["key_id"].as_str().context("a key")?;
    let [by_key, current] =
        [key, "current"].map(|which| nobody.asks(&format!("/crl/{which}"), &[]));
    let (by_key, current) = (by_key?, current?);
    ensure!(by_key.status == 200 && by_key.body == current.body && by_key.body[0] == 0x30);
    nobody.asks("/crl/00", &[])?.is(404, "no issuing CA")?;
    nobody.asks("/nothing", &[])?.is(404, "application").err().context("JSON names no type")?;
    nobody.asks("/ca", &["--data", "x"])?.is(405, "\"status\":405")
}

#[test]
fn metrics_are_for_operators_and_services_that_are_good_now_and_for_no_device() -> Result<()> {
    let lab = Lab::with_settings(HTTPS)?;
    let tpm = trusted_vendor()?.device(EkKind::P256, 0)?;
    lab.provision(&Device::new(&tpm)?, &[])?;
    let place = tempfile::tempdir()?;
    Caller::nobody(&lab)?.asks("/metrics", &[])?.is(401, "assay identity add")?;
    let prometheus = Caller::identity(&lab, "prometheus", &["--subscribe", "ca/crl"], &place)?;
    let alice = Caller::identity(&lab, "alice", OPERATOR, &place)?;
    for caller in [&prometheus, &alice] {
        let metrics = caller.asks("/metrics", &[])?;
        metrics.is(200, "assay_requests_total{outcome=\"certificate\"} 1\n")?;
        metrics.is(200, "assay_requests_total{outcome=\"challenge\"} 1\n")?;
        metrics.is(200, "assay_ready 1\n")?;
        metrics.is(200, "assay_stage_seconds_count{stage=\"all\"} ")?;
        metrics.is(200, "assay_queue_length{queue=\"record\"} 0\n")?;
        metrics.is(200, "assay_certificate_not_after_timestamp_seconds{file=\"issuing.pem\"} ")?;
        promtool_takes(&metrics.body)?;
    }
    for name in ["prometheus", "alice"] {
        lab.assay(&["identity", "revoke", name])?;
    }
    for caller in [&prometheus, &alice] {
        caller.asks("/metrics", &[])?.is(403, "revoked")?;
    }
    Caller::with(&lab, &lab.dir.path().join("worker.pem"))?.asks("/metrics", &[])?.is(403, "")?;
    // Whatever the issuing CA signs, the record knows nothing of it.
    for (whom, said) in [("device:default:pump-17", "not for"), ("operator", "not on record")] {
        let place = tempfile::tempdir()?;
        let leaf = forge(&lab.dir.path(), whom, place.path())?;
        let chain = [fs::read(&leaf)?, fs::read(lab.dir.path().join("issuing.pem"))?].concat();
        let forged = place.path().join("forged");
        fs::write(forged.with_extension("pem"), chain)?;
        fs::rename(place.path().join("key"), forged.with_extension("key"))?;
        Caller::with(&lab, &forged)?.asks("/metrics", &[])?.is(403, said)?;
    }
    Ok(())
}

fn promtool_takes(metrics: &[u8]) -> Result<()> {
    let mut check = tool("promtool")?;
    check.args(["check", "metrics"]).stdin(Stdio::piped()).stderr(Stdio::piped());
    let mut check = spawn(check)?;
    check.stdin.take().context("a pipe")?.write_all(metrics)?;
    let output = check.wait_with_output()?;
    ensure!(output.status.success() && output.stderr.is_empty(), "{output:?}");
    Ok(())
}

#[test]
fn without_tls_this_machine_reads_metrics_and_other_machines_are_no_choice() -> Result<()> {
    let lab = Lab::with_settings(PLAIN)?;
    let nobody = Caller::nobody(&lab)?;
    ensure!(nobody.url.starts_with("http://127.0.0.1:"), "{}", nobody.url);
    nobody.asks("/metrics", &[])?.is(200, "assay_store_up 1\n")?;
    nobody.asks("/readyz", &[])?.is(200, "ready")?;
    let elsewhere = for_seconds(lab.dir.assay(&["serve", "--http", "0.0.0.0:0"])?)?.output()?;
    let said = String::from_utf8_lossy(&elsewhere.stderr);
    ensure!(!elsewhere.status.success() && said.contains("remove `tls = false`"), "{said}");

    let dir = AssayDir::init()?;
    let settings = "[http]\nlisten = \"0.0.0.0:8885\"\ntls = false\n";
    fs::write(dir.path().join("assay.toml"), settings)?;
    let refused = for_seconds(dir.assay(&["serve"])?)?.output()?;
    let said = String::from_utf8_lossy(&refused.stderr);
    ensure!(!refused.status.success() && said.contains("HTTP needs TLS there"), "{said}");
    Ok(())
}

/// The same command, which is ended if it does not end by itself.
fn for_seconds(command: Command) -> Result<Command> {
    let mut timeout = tool("timeout")?;
    timeout.arg("10").arg(command.get_program()).args(command.get_args());
    Ok(timeout)
}

#[test]
fn a_ca_is_not_ready_while_its_clock_is_wrong() -> Result<()> {
    let lab = Lab::with_settings(PLAIN)?;
    let nobody = Caller::nobody(&lab)?;
    let record = rusqlite::Connection::open(lab.dir.path().join("assay.db"))?;
    record.busy_timeout(Duration::from_secs(10))?;
    for (offset, status, said) in [(86_400_i64, 503, "behind what is on record"), (0, 200, "ready")]
    {
        record.execute("UPDATE clock SET latest = unixepoch() + ?1", [offset])?;
        let deadline = Instant::now() + Duration::from_secs(10);
        while nobody.asks("/readyz", &[])?.status != status && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(100));
        }
        nobody.asks("/readyz", &[])?.is(status, said)?;
        nobody.asks("/metrics", &[])?.is(200, &format!("assay_ready {}\n", 1 - offset.signum()))?;
    }
    nobody.asks("/healthz", &[])?.is(200, "alive")
}

#[test]
fn a_thousand_idle_connections_and_long_requests_keep_nobody_out() -> Result<()> {
    let lab = Lab::with_settings(HTTPS)?;
    let nobody = Caller::nobody(&lab)?;
    let tpm = trusted_vendor()?.device(EkKind::P256, 0)?;
    let place = tempfile::tempdir()?;
    let long = place.path().join("long");
    fs::write(&long, vec![b'x'; 1024 * 1024])?;
    let long = long.to_str().context("a path")?;
    nobody.asks("/ca", &["--data-binary", &format!("@{long}")])?.is(413, "64 KiB")?;
    let header = format!("Cookie: {}", "x".repeat(20 * 1024));
    nobody.asks("/ca", &["--header", &header])?.is(431, "")?;
    let chunked = ["--header", "Transfer-Encoding: chunked", "--upload-file", long];
    ensure!(nobody.asks("/ca", &chunked)?.status == 405);

    let before = lab.server.rss_kib()?;
    let address = nobody.url.trim_start_matches("https://");
    let idle: Vec<_> = (0..1000).map(|_| TcpStream::connect(address)).collect::<Result<_, _>>()?;
    // Another network gets a place, and devices are served as ever.
    nobody.asks("/healthz", &["--interface", "127.0.0.2"])?.is(200, "alive")?;
    let began = Instant::now();
    lab.provision(&Device::new(&tpm)?, &[])?;
    ensure!(began.elapsed() < Duration::from_secs(5));
    let grown = lab.server.rss_kib()?.saturating_sub(before);
    ensure!(grown < 32 * 1024, "{grown} KiB");
    // Most were closed at once, and the others once they said nothing for long.
    let deadline = Instant::now() + Duration::from_secs(15);
    for mut stream in idle {
        let left = deadline.saturating_duration_since(Instant::now());
        stream.set_read_timeout(Some(left.max(Duration::from_millis(1))))?;
        let closed = stream.read(&mut [0; 64]);
        ensure!(
            !closed.is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock),
            "an idle connection is open after ten seconds"
        );
    }
    let log = lab.server.log();
    ensure!(log.lines().filter(|line| line.contains("http")).count() < 5, "{log}");
    nobody.asks("/healthz", &[])?.is(200, "alive")
}

#[test]
fn alert_rules_fire_when_they_should_and_every_metric_that_is_asked_for_is_one_that_we_have()
-> Result<()> {
    let deploy = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("a workspace")?;
    let deploy = deploy.join("deploy");
    let rules = deploy.join("prometheus");
    for arguments in [["check", "rules", "alerts.yml"], ["test", "rules", "alerts_test.yml"]] {
        run(tool("promtool")?.args(arguments).current_dir(&rules))?;
    }
    let lab = Lab::with_settings(PLAIN)?;
    let tpm = trusted_vendor()?.device(EkKind::P256, 0)?;
    lab.provision(&Device::new(&tpm)?, &[])?;
    let metrics = Caller::nobody(&lab)?.asks("/metrics", &[])?.text();
    let dashboard = fs::read_to_string(deploy.join("grafana/assay.json"))?;
    serde_json::from_str::<serde_json::Value>(&dashboard)?;
    let asked = fs::read_to_string(rules.join("alerts.yml"))? + &dashboard;
    let name = |from: &str| {
        let is_of_name = |byte: &u8| byte.is_ascii_alphanumeric() || *byte == b'_';
        let length = from.bytes().take_while(is_of_name).count();
        from[..length].to_owned()
    };
    let names: std::collections::BTreeSet<_> =
        asked.match_indices("assay_").map(|(at, _)| name(&asked[at..])).collect();
    ensure!(names.len() > 5, "{names:?}");
    for name in names {
        ensure!(metrics.contains(&format!("\n{name}")), "{name} is not among\n{metrics}");
    }
    Ok(())
}

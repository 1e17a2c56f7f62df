//! `assay broker check` on brokers that keep the rules, and on brokers that do not.

use std::collections::BTreeMap;
use std::fs;
use std::process::Stdio;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use assay_tests::{AssayDir, AssayServer, Mosquitto, Worker, run, tool};
use serde_json::Value;

use crate::external_brokers::{mosquitto_as_deployed, start_rumqttd};

#[test]
fn built_in_broker_keeps_every_rule_and_nothing_is_left_behind() -> Result<()> {
    let dir = AssayDir::init()?;
    let server = AssayServer::start(&dir)?;
    let (found, is_good) = check(&dir, &server.operational, Some(&server.bootstrap), &[])?;
    ensure!(is_good && broken(&found).is_empty() && not_tried(&found).is_empty(), "{found:#?}");
    ensure!(dir.list("devices")?.is_empty());
    let certificates = dir.list("certs")?;
    ensure!(
        certificates.len() == 4
            && certificates.iter().all(|certificate| certificate["status"] == "revoked")
    );
    let audit = dir.list("audit")?;
    let told = |entry: &Value| {
        entry["action"] == "check"
            && entry["client"].as_str().is_some_and(|id| id.starts_with("assay-check-"))
    };
    ensure!(audit.len() == 4 && audit.iter().all(told), "{audit:?}");
    Ok(())
}

#[test]
fn interrupted_check_leaves_no_good_certificate() -> Result<()> {
    let dir = AssayDir::init()?;
    let server = AssayServer::start(&dir)?;
    let mut command =
        dir.assay(&["broker", "check", &server.operational, "--bootstrap", &server.bootstrap])?;
    let mut check = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn()?;
    let until = Instant::now() + Duration::from_secs(5);
    while dir.list("certs")?.len() < 4 {
        ensure!(Instant::now() < until, "it makes no certificates");
    }
    run(tool("kill")?.arg(check.id().to_string()))?;
    ensure!(!check.wait()?.success());
    ensure!(dir.list("certs")?.iter().all(|certificate| certificate["status"] == "revoked"));
    Ok(())
}

/// docs/operations.md names the same rules that Mosquitto cannot keep.
#[test]
fn mosquitto_as_deployed_keeps_all_that_it_can() -> Result<()> {
    let dir = AssayDir::init()?;
    // This certificate is on the list that the broker reads at its start.
    run(&mut dir.assay(&[
        "identity",
        "add",
        "gone",
        "--role",
        "operator",
        "--out",
        &file(&dir, ""),
    ])?)?;
    run(&mut dir.assay(&["identity", "revoke", "gone"])?)?;
    run(&mut dir.assay(&["crl", "--pem", "--out", &file(&dir, "crl.pem")])?)?;
    let mosquitto = mosquitto_as_deployed(&dir)?;
    let _worker = Worker::start(&dir, &operational(&mosquitto))?;
    let cannot = ["device-takeover", "group", "retain", "silent", "takeover"];
    let mut options = vec!["--revoked", "gone"];
    options.extend(cannot.iter().flat_map(|rule| ["--accept", rule]));
    let (found, is_good) =
        check(&dir, &operational(&mosquitto), Some(&bootstrap(&mosquitto)), &options)?;
    ensure!(broken(&found) == cannot && not_tried(&found).is_empty(), "{found:#?}");
    ensure!(is_good, "what is accepted counts");
    // The broker does not learn what is revoked later.
    let (found, is_good) = check(&dir, &operational(&mosquitto), None, &options[2..])?;
    ensure!(broken(&found) == ["device-takeover", "revoked"] && !is_good, "{found:#?}");
    // The rules for devices are only partly tried: for what belongs to devices, not for what
    // belongs to strangers.
    let devices = ["device-hears", "device-speaks"];
    let strangers =
        ["group", "packet", "retain", "silent", "stranger-hears", "stranger-speaks", "takeover"];
    ensure!(
        not_tried(&found) == [&["asks"], &devices[..], &strangers, &["user-name", "will"]].concat(),
        "{found:#?}"
    );
    Ok(())
}

/// This broker would give every second request to a stranger in the workers' group, and the request
/// would be lost.
#[test]
fn check_takes_no_request_from_a_worker_that_serves() -> Result<()> {
    let dir = AssayDir::init()?;
    let mosquitto = mosquitto_as_deployed(&dir)?;
    let (operational, bootstrap) = (operational(&mosquitto), bootstrap(&mosquitto));
    let _worker = Worker::start(&dir, &operational)?;
    let mut command = dir.assay(&["broker", "check", &operational, "--bootstrap", &bootstrap])?;
    let mut check = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
    let mut asked = 0;
    while check.try_wait()?.is_none() {
        run(&mut dir.assay(&["health", "--broker", &bootstrap])?)?;
        asked += 1;
    }
    ensure!(asked > 20, "{asked}");
    Ok(())
}

#[test]
fn one_access_list_for_both_listeners_makes_a_stranger_a_worker() -> Result<()> {
    let dir = AssayDir::init()?;
    let mosquitto = mosquitto_by_the_old_recipe(&dir)?;
    // The worker leaves its revocation list at the broker.
    let worker = Worker::start(&dir, &operational(&mosquitto))?;
    let before = waiting_list(&dir, &mosquitto)?;
    drop(worker);
    let (found, is_good) =
        check(&dir, &operational(&mosquitto), Some(&bootstrap(&mosquitto)), &[])?;
    let (verdict, how) = &found["user-name"];
    ensure!(verdict == "broken" && !is_good, "{found:#?}");
    for told in [
        "as worker@: hears another's request",
        "publishes another's reply",
        "publishes a revocation list that stays",
    ] {
        ensure!(how.contains(told), "{how}");
    }
    ensure!(
        found["stranger-hears"].0 == "kept" && found["stranger-speaks"].0 == "kept",
        "{found:#?}"
    );
    // The check plants a list that the CA signed. Afterwards, the newest list takes its place,
    // which names what was revoked meanwhile.
    ensure!(!before.contains("Serial Number"), "{before}");
    let after = waiting_list(&dir, &mosquitto)?;
    ensure!(after.contains("Serial Number"), "{after}");
    Ok(())
}

/// A listener without an access list and without certificates breaks all rules except two.
#[test]
fn mosquitto_without_rules_breaks_them() -> Result<()> {
    let dir = AssayDir::init()?;
    let tls = format!(
        "certfile {}\nkeyfile {}\nallow_anonymous true",
        file(&dir, "server.pem"),
        file(&dir, "server.key")
    );
    let mosquitto = Mosquitto::start(&[&tls])?;
    let open = bootstrap(&mosquitto);
    // A list that somebody else planted does not count.
    let mut plants = tool("mosquitto_pub")?;
    plants.args([
        "-h",
        "127.0.0.1",
        "-p",
        &mosquitto.port(0).to_string(),
        "--cafile",
        &file(&dir, "root.pem"),
    ]);
    run(plants.args(["-r", "-t", "ca/v1/default/crl", "-m", "a list"]))?;
    let (found, is_good) = check(&dir, &open, Some(&open), &[])?;
    ensure!(
        found["list"].1.contains("not of this CA") && with(&found, "kept") == ["asks"] && !is_good,
        "{found:#?}"
    );
    // The worker replaces it by the CA's list.
    let worker = Worker::start(&dir, &open)?;
    log_with(&worker, "tried rules")?;
    let (found, is_good) = check(&dir, &open, Some(&open), &[])?;
    let kept = with(&found, "kept");
    ensure!(kept == ["asks", "list"] && not_tried(&found).is_empty() && !is_good, "{found:#?}");
    let heard = "hears another's request; hears another's reply; hears what a device says";
    let said = "publishes another's reply; publishes another's request; publishes what a device \
                says; publishes a command to a device; publishes a revocation list that stays";
    for (rule, how) in [
        ("stranger-hears", heard),
        ("stranger-speaks", said),
        ("device-hears", heard),
        ("device-speaks", said),
        ("user-name", "as operator@: hears another's request"),
        ("user-name", "as assay-check-"),
        ("will", "a stranger's, on another's reply topic, is published; a device's"),
        ("no-certificate", "a stranger is let in; a client that says worker@ is let in"),
    ] {
        ensure!(found[rule].1.contains(how), "{rule} {found:#?}");
    }
    Ok(())
}

/// A refusal only shows something if the broker lets other clients in, and silence only if other
/// clients hear something.
#[test]
fn check_with_certificates_that_the_broker_does_not_know_shows_hardly_anything() -> Result<()> {
    let (dir, stranger) = (AssayDir::init()?, AssayDir::init()?);
    let server = AssayServer::start(&dir)?;
    let root = file(&dir, "root.pem");
    let options = ["--broker-ca", &root];
    let (found, is_good) =
        check(&stranger, &server.operational, Some(&server.bootstrap), &options)?;
    ensure!(
        with(&found, "kept") == ["packet", "silent"] && broken(&found).is_empty() && !is_good,
        "{found:#?}"
    );
    Ok(())
}

#[test]
fn where_a_worker_is_deaf_no_request_is_answered_and_little_can_be_tried() -> Result<()> {
    let dir = AssayDir::init()?;
    let mosquitto = mosquitto_as_deployed(&dir)?;
    let wrong = bootstrap(&mosquitto);
    let (found, is_good) = check(&dir, &wrong, Some(&wrong), &[])?;
    ensure!(found["asks"].0 == "broken" && found["list"].0 == "broken" && !is_good, "{found:#?}");
    // These clients hear nothing, but nobody is sent anything. So this shows nothing.
    for rule in ["stranger-hears", "device-hears", "group"] {
        ensure!(found[rule].0 == "not tried", "{found:#?}");
    }
    Ok(())
}

#[test]
fn nothing_is_made_for_a_broker_that_is_not_there() -> Result<()> {
    let dir = AssayDir::init()?;
    let output = dir.assay(&["broker", "check", "mqtts://127.0.0.1:1"])?.output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.code() == Some(1) && said.contains("is not reached"), "{said}");
    ensure!(dir.list("certs")?.is_empty() && dir.list("audit")?.is_empty());
    Ok(())
}

/// The broker cuts a client that it does not let in, and that shows nothing about a rule.
#[test]
fn rules_for_strangers_are_not_tried_where_no_stranger_is_let_in() -> Result<()> {
    let dir = AssayDir::init()?;
    let server = AssayServer::start(&dir)?;
    let (found, is_good) = check(&dir, &server.operational, Some(&server.operational), &[])?;
    for rule in ["asks", "silent", "packet", "stranger-hears", "device-hears", "will"] {
        ensure!(found[rule].0 == "not tried", "{rule}: {found:#?}");
    }
    ensure!(found["no-certificate"].0 == "kept" && !is_good, "{found:#?}");
    Ok(())
}

#[test]
fn rumqttd_lets_anybody_hear_and_say_everything() -> Result<()> {
    let dir = AssayDir::init()?;
    let broker = format!("mqtt://127.0.0.1:{}", start_rumqttd()?);
    let _worker = Worker::start(&dir, &broker)?;
    let (found, is_good) = check(&dir, &broker, Some(&broker), &[])?;
    ensure!(not_tried(&found) == ["expired", "foreign", "revoked"] && !is_good, "{found:#?}");
    ensure!(with(&found, "kept") == ["asks", "list", "packet", "silent"], "{found:#?}");
    Ok(())
}

#[test]
fn worker_says_at_its_start_what_is_open_and_serves_all_the_same() -> Result<()> {
    let dir = AssayDir::init()?;
    let mosquitto = mosquitto_as_deployed(&dir)?;
    // On this listener, the broker does not look at the worker's certificate, and gives it a
    // stranger's rights.
    let deaf = Worker::start(&dir, &bootstrap(&mosquitto))?;
    let log = log_with(&deaf, "tried rules")?;
    for rule in ["asks", "no-certificate", "foreign"] {
        ensure!(
            log.contains(&format!(
                "the broker breaks a rule; `assay broker check` tries them all rule={rule} "
            )),
            "{log}"
        );
    }
    ensure!(log.contains("this worker is deaf"), "{log}");
    // The broker would give the deaf worker every second request.
    drop(deaf);
    let good = Worker::start_beside(&dir, &operational(&mosquitto), &bootstrap(&mosquitto))?;
    let log = log_with(&good, "tried rules")?;
    ensure!(log.contains("kept=\"asks no-certificate foreign\"") && !log.contains("WARN"), "{log}");
    Ok(())
}

fn log_with(worker: &Worker, line: &str) -> Result<String> {
    let until = Instant::now() + Duration::from_secs(20);
    while !worker.log().contains(line) {
        ensure!(Instant::now() < until, "{}", worker.log());
        thread::sleep(Duration::from_millis(20));
    }
    Ok(worker.log())
}

/// The revocation list that an operator gets, as OpenSSL prints it.
fn waiting_list(dir: &AssayDir, mosquitto: &Mosquitto) -> Result<String> {
    let mut subscriber = tool("mosquitto_sub")?;
    subscriber.args([
        "-h",
        "127.0.0.1",
        "-p",
        &mosquitto.port(1).to_string(),
        "-t",
        "ca/v1/default/crl",
        "-C",
        "1",
        "-N",
    ]);
    subscriber.args(["--cafile", &file(dir, "root.pem"), "--cert", &file(dir, "operator.pem")]);
    let list = run(subscriber.args(["--key", &file(dir, "operator.key"), "-W", "10"]))?.stdout;
    let path = file(dir, "list.der");
    fs::write(&path, list)?;
    let text =
        run(tool("openssl")?.args(["crl", "-inform", "DER", "-noout", "-text", "-in", &path]))?
            .stdout;
    Ok(String::from_utf8(text)?)
}

/// A recipe that this project once had: a client with the user name `worker@` has the rights of a
/// worker.
fn mosquitto_by_the_old_recipe(dir: &AssayDir) -> Result<Mosquitto> {
    let acl = dir.path().join("acl");
    let deployed = |name: &str| {
        fs::read_to_string(format!("{}/../deploy/mosquitto/{name}", env!("CARGO_MANIFEST_DIR")))
    };
    fs::write(&acl, format!("{}\n{}", deployed("acl-bootstrap")?, deployed("acl-operational")?))?;
    let (certificate, key) = (file(dir, "server.pem"), file(dir, "server.key"));
    let tls = format!("certfile {certificate}\nkeyfile {key}\nacl_file {}", acl.display());
    let operational = format!(
        "{tls}\nallow_anonymous false\ncafile {}\nrequire_certificate \
         true\nuse_identity_as_username true",
        file(dir, "root.pem")
    );
    Mosquitto::start(&[&format!("{tls}\nallow_anonymous true"), &operational])
}

fn file(dir: &AssayDir, name: &str) -> String {
    dir.path().join(name).display().to_string()
}

fn bootstrap(mosquitto: &Mosquitto) -> String {
    format!("mqtts://127.0.0.1:{}", mosquitto.port(0))
}

fn operational(mosquitto: &Mosquitto) -> String {
    format!("mqtts://127.0.0.1:{}", mosquitto.port(1))
}

/// Each rule, with its verdict and how it was found.
type Found = BTreeMap<String, (String, String)>;

/// What the command finds, and whether it succeeds.
fn check(
    dir: &AssayDir,
    operational: &str,
    bootstrap: Option<&str>,
    options: &[&str],
) -> Result<(Found, bool)> {
    let mut command = dir.assay(&["broker", "check", "--json", operational])?;
    command.args(bootstrap.iter().flat_map(|url| ["--bootstrap", url])).args(options);
    let started = Instant::now();
    let output = command.output()?;
    ensure!(started.elapsed() < Duration::from_secs(60), "it took {:?}", started.elapsed());
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let rows: Vec<Value> = serde_json::Deserializer::from_slice(&output.stdout)
        .into_iter()
        .collect::<Result<_, _>>()
        .context(said.clone())?;
    ensure!(rows.len() == 18, "{} rules: {said}", rows.len());
    let text = |row: &Value, key: &str| row[key].as_str().unwrap_or_default().to_owned();
    let found = rows
        .iter()
        .map(|row| (text(row, "rule"), (text(row, "verdict"), text(row, "how"))))
        .collect();
    Ok((found, output.status.success()))
}

fn broken(found: &Found) -> Vec<&str> {
    with(found, "broken")
}

fn not_tried(found: &Found) -> Vec<&str> {
    with(found, "not tried")
}

fn with<'f>(found: &'f Found, verdict: &str) -> Vec<&'f str> {
    found.iter().filter(|(_, (found, _))| found == verdict).map(|(rule, _)| rule.as_str()).collect()
}

//! Backups of a CA that serves, and what a restored CA knows, lets in, and does not.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;

use anyhow::{Context, Result, ensure};
use assay_tests::{
    AssayDir, AssayServer, Device, EkKind, Postgres, assay_bin, json, run, tool, trusted_vendor,
};
use serde_json::Value;

use crate::lab::{Lab, refused_with};
use crate::raw_client::OperationalClient;

/// A place for an operator's files, and `assay backup` into it.
struct Safe(tempfile::TempDir);

impl Safe {
    fn open() -> Result<Self> {
        Ok(Self(tempfile::tempdir()?))
    }

    fn file(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn backup(&self, dir: &AssayDir, name: &str) -> Result<PathBuf> {
        let file = self.file(name);
        run(dir.assay(&["backup"])?.arg(&file))?;
        Ok(file)
    }

    /// The lists that a CA would publish now.
    fn lists(&self, dir: &AssayDir, name: &str) -> Result<PathBuf> {
        let file = self.file(name);
        run(dir.assay(&["crl", "--pem", "--out"])?.arg(&file))?;
        Ok(file)
    }
}

fn resume(dir: &AssayDir, lists: &[&Path]) -> Result<Value> {
    let mut command = dir.assay(&["resume", "--json"])?;
    for list in lists {
        command.arg("--list").arg(list);
    }
    json(&mut command)
}

/// A restored CA that serves.
fn serving(dir: AssayDir) -> Result<Lab> {
    Ok(Lab { server: AssayServer::start(&dir)?, dir })
}

fn id_of(provisioned: &Value) -> Result<String> {
    Ok(provisioned["device_id"].as_str().context("a device id")?.to_owned())
}

fn publishes(lab: &Lab, device: &Device) -> Result<bool> {
    let output = device.publish(&lab.dir, &lab.server, "telemetry", "21.5")?.output()?;
    if !output.status.success() {
        ensure!(output.status.code() == Some(3), "{}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(output.status.success())
}

fn number_of_list(file: &Path) -> Result<u64> {
    let shown = run(tool("openssl")?.args(["crl", "-noout", "-crlnumber", "-in"]).arg(file))?;
    let shown = String::from_utf8(shown.stdout)?;
    let number = shown.trim().strip_prefix("crlNumber=").context("a number")?;
    Ok(u64::from_str_radix(number.trim_start_matches("0x"), 16)?)
}

#[test]
fn a_device_that_was_disabled_after_the_backup_does_not_get_in_after_the_restore() -> Result<()> {
    let (mut lab, safe) = (Lab::open()?, Safe::open()?);
    let vendor = trusted_vendor()?;
    let tpms = vendor.devices(EkKind::P256, 2)?;
    let [locked_out, healthy] = [Device::new(&tpms[0])?, Device::new(&tpms[1])?];
    let id = id_of(&lab.provision(&locked_out, &[])?)?;
    lab.provision(&healthy, &[])?;
    let files = safe.file("alice");
    let files = files.to_str().context("a path")?;
    lab.assay(&["identity", "add", "alice", "--role", "operator", "--out", files])?;
    let backup = safe.backup(&lab.dir, "ca.assay")?;
    lab.assay(&["enroll", "disable", &id])?;
    lab.assay(&["identity", "revoke", "alice"])?;
    let lists = safe.lists(&lab.dir, "lists.pem")?;
    lab.server.kill9()?;

    let restored = AssayDir::restore(&backup, &[])?;
    let rows = restored.list("devices")?;
    ensure!(rows.iter().all(|row| row["status"] != "disabled"), "the backup does not know it");
    // Until an operator says what was revoked since, the CA does nothing.
    for arguments in [
        &["serve", "--bootstrap", "127.0.0.1:0", "--operational", "127.0.0.1:0"][..],
        &["worker", "--broker", "mqtt://127.0.0.1:9"],
        &["crl", "--pem"],
    ] {
        let command = restored.assay(arguments)?;
        let mut limited = tool("timeout")?;
        limited.arg("20").arg(command.get_program()).args(command.get_args());
        let output = limited.output()?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.code() == Some(1) && output.stdout.is_empty(), "{arguments:?}");
        ensure!(
            said.contains("does not know what was revoked") && said.contains("resume"),
            "{said}"
        );
    }

    let resumed = resume(&restored, &[&lists])?;
    ensure!(resumed["serves"] == true, "{resumed}");
    let taken = &resumed["lists"];
    ensure!(taken[0]["disabled"] == 1 && taken[0]["unknown"] == 0, "{resumed}");
    ensure!(taken[1]["ended"] == 1, "alice: {resumed}");
    let lab = serving(restored)?;
    ensure!(!publishes(&lab, &locked_out)?);
    lab.refused(&locked_out, &["--again"], "device-disabled")?;
    ensure!(publishes(&lab, &healthy)?, "who was in force before still is");
    let newer = safe.lists(&lab.dir, "newer.pem")?;
    ensure!(number_of_list(&newer)? > number_of_list(&lists)?);
    ensure!(!lab.dir.assay(&["resume"])?.output()?.status.success(), "it is not held any more");
    Ok(())
}

#[test]
fn a_list_that_is_not_this_cas_or_from_before_the_backup_does_not_count() -> Result<()> {
    let (dir, other, safe) = (AssayDir::init()?, AssayDir::init()?, Safe::open()?);
    let early = safe.lists(&dir, "early.pem")?;
    let foreign = safe.lists(&other, "foreign.pem")?;
    // The times of lists are in whole seconds.
    thread::sleep(std::time::Duration::from_millis(1100));
    let backup = safe.backup(&dir, "ca.assay")?;
    let restored = AssayDir::restore(&backup, &[])?;
    for (list, reason) in
        [(&early, "before the backup"), (&foreign, "signed it"), (&backup, "signed it")]
    {
        let output = restored.assay(&["resume", "--list"])?.arg(list).output()?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(!output.status.success() && said.contains(reason), "{said}");
    }
    ensure!(!restored.assay(&["crl", "--pem"])?.output()?.status.success(), "still held");
    Ok(())
}

#[test]
fn a_device_that_was_certified_after_the_backup_comes_back_by_itself() -> Result<()> {
    let (mut lab, safe) = (Lab::open()?, Safe::open()?);
    let vendor = trusted_vendor()?;
    let tpms = vendor.devices(EkKind::P256, 2)?;
    let [new, disabled] = [Device::new(&tpms[0])?, Device::new(&tpms[1])?];
    let backup = safe.backup(&lab.dir, "ca.assay")?;
    let before = lab.provision(&new, &[])?;
    let id = id_of(&lab.provision(&disabled, &[])?)?;
    lab.assay(&["enroll", "disable", &id])?;
    let lists = safe.lists(&lab.dir, "lists.pem")?;
    lab.server.kill9()?;

    let restored = AssayDir::restore(&backup, &[])?;
    // The record knows neither the device nor its EK, so an operator must name it.
    let output = restored.assay(&["resume", "--list"])?.arg(&lists).output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(!output.status.success() && said.contains("still held"), "{said}");
    let ek = tpms[1].work_dir().join("ek.der");
    fs::write(&ek, tpms[1].ek_certificate(EkKind::P256)?)?;
    run(restored.assay(&["enroll", "disable"])?.arg(&ek))?;
    resume(&restored, &[])?;

    let lab = serving(restored)?;
    ensure!(!publishes(&lab, &disabled)?);
    lab.refused(&disabled, &[], "device-disabled")?;
    ensure!(!publishes(&lab, &new)?, "the record does not know its certificate");
    let after = lab.provision(&new, &[])?;
    ensure!(after["device_id"] == before["device_id"] && after["serial"] != before["serial"]);
    ensure!(publishes(&lab, &new)?);
    // A certificate that nobody knows but the last list stays on the list.
    let newer = safe.lists(&lab.dir, "newer.pem")?;
    let text = run(tool("openssl")?.args(["crl", "-noout", "-text", "-in"]).arg(&newer))?.stdout;
    ensure!(String::from_utf8(text)?.matches("Serial Number:").count() == 1);
    Ok(())
}

#[test]
fn a_shared_key_that_was_retired_after_the_backup_lets_nobody_in() -> Result<()> {
    let (mut lab, safe) = (Lab::open()?, Safe::open()?);
    let vendor = trusted_vendor()?;
    let tpms = vendor.devices(EkKind::P256, 2)?;
    let [old, new] = [Device::new(&tpms[0])?, Device::new(&tpms[1])?];
    let token = |device: &Device| -> Result<String> {
        let token = json(device.token()?.args(["--json", "--lifetime", "3600"]))?;
        Ok(token["password"].as_str().context("a password")?.to_owned())
    };
    let first = id_of(&lab.provision(&old, &["--flow", "shared-key"])?)?;
    let stolen = token(&old)?;
    drop(OperationalClient::login(&lab, &first, &first, &stolen)?);
    let backup = safe.backup(&lab.dir, "ca.assay")?;
    // This device is not in the backup: its first generation would be given out once more.
    let second = id_of(&lab.provision(&new, &["--flow", "shared-key"])?)?;
    let stolen_too = token(&new)?;
    drop(OperationalClient::login(&lab, &second, &second, &stolen_too)?);
    for id in [&first, &second] {
        lab.assay(&["enroll", "rotate", id])?;
    }
    for device in [&old, &new] {
        lab.provision(device, &["--again"])?;
        ensure!(publishes(&lab, device)?);
    }
    lab.server.kill9()?;

    let restored = AssayDir::restore(&backup, &[])?;
    resume(&restored, &[])?;
    let lab = serving(restored)?;
    for (device, id, stolen) in [(&old, &first, &stolen), (&new, &second, &stolen_too)] {
        ensure!(OperationalClient::login(&lab, id, id, stolen).is_err());
        ensure!(!publishes(&lab, device)?, "its own key is void, too");
        lab.provision(device, &[])?;
        ensure!(publishes(&lab, device)?, "it came back by itself");
        ensure!(OperationalClient::login(&lab, id, id, stolen).is_err());
    }
    Ok(())
}

#[test]
fn shared_keys_are_kept_if_an_operator_says_so() -> Result<()> {
    let (mut lab, safe) = (Lab::open()?, Safe::open()?);
    let tpm = trusted_vendor()?.device(EkKind::P256, 0)?;
    let device = Device::new(&tpm)?;
    lab.provision(&device, &["--flow", "shared-key"])?;
    ensure!(publishes(&lab, &device)?);
    let backup = safe.backup(&lab.dir, "ca.assay")?;
    lab.server.kill9()?;
    let restored = AssayDir::restore(&backup, &["--keep-shared-keys"])?;
    resume(&restored, &[])?;
    let lab = serving(restored)?;
    ensure!(publishes(&lab, &device)?);
    Ok(())
}

#[test]
fn a_backup_under_load_is_of_one_moment() -> Result<()> {
    let (lab, safe) = (Lab::open()?, Safe::open()?);
    let tpms = trusted_vendor()?.devices(EkKind::P256, 12)?;
    let mut backups = Vec::new();
    thread::scope(|scope| -> Result<()> {
        let devices: Vec<_> =
            tpms.iter().map(|tpm| scope.spawn(|| lab.provision(&Device::new(tpm)?, &[]))).collect();
        while devices.iter().any(|device| !device.is_finished()) {
            backups.push(safe.backup(&lab.dir, &format!("{}.assay", backups.len()))?);
        }
        devices.into_iter().try_for_each(|device| device.join().expect("no panic").map(drop))
    })?;
    backups.push(safe.backup(&lab.dir, "last.assay")?);
    let mut counts = Vec::new();
    for backup in &backups {
        let restored = AssayDir::restore(backup, &[])?;
        let devices = restored.list("devices")?;
        let certificates = restored.list("certs")?;
        for certificate in &certificates {
            let id = &certificate["device_id"];
            ensure!(devices.iter().any(|device| device["device_id"] == *id), "{certificate}");
        }
        ensure!(devices.len() == certificates.len());
        counts.push(devices.len());
    }
    ensure!(counts.is_sorted() && counts.last() == Some(&12), "{counts:?}");
    ensure!(counts.iter().any(|count| *count < 12), "some were made meanwhile: {counts:?}");
    Ok(())
}

#[test]
fn a_backup_that_is_cut_off_or_altered_is_refused_and_nothing_is_written() -> Result<()> {
    let (dir, safe) = (AssayDir::init()?, Safe::open()?);
    let backup = safe.backup(&dir, "ca.assay")?;
    let whole = fs::read(&backup)?;
    let damaged = safe.file("damaged.assay");
    let place = safe.file("new");
    let refused = |bytes: &[u8]| -> Result<String> {
        fs::write(&damaged, bytes)?;
        let mut command = dir.assay(&[])?;
        let program = command.get_program().to_owned();
        command = Command::new(program);
        let output = command.arg("--dir").arg(&place).arg("restore").arg(&damaged).output()?;
        ensure!(output.status.code() == Some(1), "{}", output.status);
        ensure!(!place.exists(), "nothing is written");
        Ok(String::from_utf8(output.stderr)?)
    };
    for length in [0, 100, 600, 5_000, whole.len() / 2, whole.len() - 2_000] {
        refused(&whole[..length])?;
    }
    // Within a key, and within the record.
    let at = |text: &str| whole.windows(text.len()).position(|it| it == text.as_bytes());
    for at in [at("PRIVATE KEY").context("a key")?, at("SQLite format").context("the record")?] {
        let mut altered = whole.clone();
        altered[at] ^= 1;
        let said = refused(&altered)?;
        ensure!(said.contains("altered"), "{said}");
    }
    ensure!(refused(b"age-encryption.org/v1\n")?.contains("--identity"));
    Ok(())
}

#[test]
fn an_encrypted_backup_opens_for_its_recipient_and_with_age_itself() -> Result<()> {
    let (dir, safe) = (AssayDir::init()?, Safe::open()?);
    let key = |name: &str| -> Result<(PathBuf, String)> {
        let file = safe.file(name);
        run(tool("age-keygen")?.arg("-o").arg(&file))?;
        let recipient = run(tool("age-keygen")?.arg("-y").arg(&file))?.stdout;
        Ok((file, String::from_utf8(recipient)?.trim().to_owned()))
    };
    let ((key, recipient), (other_key, other)) = (key("key.txt")?, key("other.txt")?);
    let file = safe.file("ca.assay");
    let mut backup = dir.assay(&["backup", "--recipient", &recipient, "--recipient", &other])?;
    let said = run(backup.arg(&file))?.stderr;
    ensure!(!String::from_utf8(said)?.contains("in clear"));
    ensure!(fs::read(&file)?.windows(11).all(|it| it != b"PRIVATE KEY"));

    let opened = run(tool("age")?.args(["-d", "-i"]).arg(&key).arg(&file))?.stdout;
    ensure!(opened.windows(11).any(|it| it == b"PRIVATE KEY"));
    let clear = safe.file("clear.assay");
    fs::write(&clear, &opened)?;
    let by_age = safe.file("by-age.assay");
    run(tool("age")?.args(["-r", &recipient, "-o"]).arg(&by_age).arg(&clear))?;
    for (file, key) in [(&file, &key), (&file, &other_key), (&by_age, &key)] {
        let restored = AssayDir::restore(file, &["--identity", key.to_str().context("a path")?])?;
        ensure!(fs::read(restored.root_pem())? == fs::read(dir.root_pem())?);
    }
    let wrong = AssayDir::restore(&by_age, &["--identity", other_key.to_str().context("a path")?]);
    ensure!(format!("{:#}", wrong.err().context("opened by another key")?).contains("recipient"));
    Ok(())
}

#[test]
fn a_backup_overwrites_nothing_and_a_restore_neither() -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    let (dir, safe) = (AssayDir::init()?, Safe::open()?);
    let backup = safe.backup(&dir, "ca.assay")?;
    ensure!(fs::metadata(&backup)?.permissions().mode() & 0o777 == 0o600);
    ensure!(fs::read_dir(safe.0.path())?.count() == 1, "nothing is left beside it");
    let before = fs::read(&backup)?;
    ensure!(!dir.assay(&["backup"])?.arg(&backup).output()?.status.success());
    ensure!(fs::read(&backup)? == before);
    // A directory with a CA, and one with anything else.
    let record = fs::read(dir.path().join("assay.db"))?;
    ensure!(!dir.assay(&["restore"])?.arg(&backup).output()?.status.success());
    ensure!(fs::read(dir.path().join("assay.db"))? == record);
    fs::remove_file(dir.path().join("assay.db"))?;
    let said = dir.assay(&["restore"])?.arg(&backup).stdin(Stdio::null()).output()?.stderr;
    ensure!(String::from_utf8(said)?.contains("is not empty"));
    Ok(())
}

#[test]
fn keys_that_a_killed_restore_left_are_removed_by_the_next_which_needs_no_other_directory()
-> Result<()> {
    let (dir, safe, place) = (AssayDir::init()?, Safe::open()?, tempfile::tempdir()?);
    let backup = safe.backup(&dir, "ca.assay")?;
    let unpacked = place.path().join(".unpacked");
    fs::create_dir(&unpacked)?;
    fs::write(unpacked.join("issuing-20270115T080000Z.key"), "key")?;
    let mut restore = Command::new(assay_bin("assay")?);
    restore.arg("--dir").arg(place.path()).arg("restore").arg(&backup);
    run(restore.env("TMPDIR", "/nowhere"))?;
    ensure!(!unpacked.exists() && place.path().join("root.key").exists());
    Ok(())
}

#[test]
fn a_ca_in_postgresql_is_backed_up_while_it_serves_and_restored_to_another_one() -> Result<()> {
    let (dir, server, safe) = (AssayDir::init()?, Postgres::start()?, Safe::open()?);
    let vendor = trusted_vendor()?;
    dir.trust(&vendor)?;
    let settings = dir.path().join("assay.toml");
    let named = |address: &str| -> Result<String> {
        let text = fs::read_to_string(&settings)?;
        let lines = text.lines().filter(|line| !line.starts_with("url = "));
        let text: String = lines.map(|line| format!("{line}\n")).collect();
        Ok(text.replace("[store]\n", &format!("[store]\nurl = \"{address}\"\n")))
    };
    let served = named(&server.address()?)?;
    fs::write(&settings, &served)?;
    run(&mut dir.assay(&["store", "copy", "postgres"])?)?;
    let mut lab = serving(dir)?;
    let tpm = vendor.device(EkKind::P256, 0)?;
    let device = Device::new(&tpm)?;
    let id = id_of(&lab.provision(&device, &[])?)?;
    let backup = safe.backup(&lab.dir, "ca.assay")?;
    ensure!(publishes(&lab, &device)?, "the CA goes on");
    lab.assay(&["enroll", "disable", &id])?;
    let lists = safe.lists(&lab.dir, "lists.pem")?;
    lab.server.kill9()?;

    // Whoever made the backup does not say which server is given the record.
    let by_itself = AssayDir::restore(&backup, &[]);
    let said = format!("{:#}", by_itself.err().context("restored")?);
    ensure!(said.contains("put an assay.toml"), "{said}");
    let place = safe.file("settings");
    fs::write(&place, served)?;
    let into_the_same = AssayDir::restore_with(&backup, &place);
    ensure!(format!("{:#}", into_the_same.err().context("overwritten")?).contains("holds a CA"));
    let other = Postgres::start()?;
    fs::write(&place, named(&other.address()?)?)?;
    let restored = AssayDir::restore_with(&backup, &place)?;
    let held = restored.assay(&["crl", "--pem"])?.output()?;
    ensure!(String::from_utf8(held.stderr)?.contains("resume"));
    let resumed = resume(&restored, &[&lists])?;
    ensure!(resumed["lists"][0]["disabled"] == 1, "{resumed}");
    let lab = serving(restored)?;
    let output = device.publish(&lab.dir, &lab.server, "telemetry", "21.5")?.output()?;
    ensure!(!output.status.success());
    let again = device.provision(&lab.dir, &lab.server)?.arg("--again").output()?;
    refused_with(&again, "device-disabled")?;
    ensure!(number_of_list(&safe.lists(&lab.dir, "newer.pem")?)? > number_of_list(&lists)?);
    Ok(())
}

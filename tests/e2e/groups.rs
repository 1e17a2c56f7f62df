//! Who is admitted: the operator's groups, in order.

use std::fs;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use assay_tests::{AssayDir, Device, EkKind, Swtpm, json, run, tool, trusted_vendor};
use serde_json::Value;

use crate::lab::{Lab, ek_of};

#[test]
fn the_first_group_that_fits_decides_and_a_removed_one_stops_the_next_device_alone() -> Result<()> {
    let lab = Lab::open()?;
    let tpms = trusted_vendor()?.devices(EkKind::P256, 3)?;
    let [first, second, third] = &tpms[..] else { unreachable!() };
    let device = Device::new(first)?;
    let registered = lab.provision(&device, &[])?["device_id"].clone();

    // The vendor's own group, which `trust add --admit` made.
    let vendors: Vec<_> = groups(&lab.dir)?
        .into_iter()
        .filter(|group| !group["issuers"].as_array().is_some_and(Vec::is_empty))
        .collect();
    let [vendor] = &vendors[..] else { anyhow::bail!("{vendors:?}") };
    let vendor = vendor["name"].as_str().context("a name")?;

    let ek = ek_of(second)?;
    lab.assay(&["group", "add", "stolen", "--ek", &ek[..12], "--refuse", "--before", vendor])?;
    let other = Device::new(second)?;
    lab.refused(&other, &[], "group stolen refuses it")?;
    lab.assay(&["group", "update", "stolen", "--position", "9"])?;
    lab.provision(&other, &[])?;

    lab.assay(&["group", "remove", vendor])?;
    lab.assay(&["group", "remove", "vendors"])?;
    lab.refused(&Device::new(third)?, &[], "not-admitted")?;
    // What has a certificate is renewed, and may come back without its state.
    let renewed = json(&mut device.renew(&lab.dir, &lab.server)?)?;
    ensure!(renewed["device_id"] == registered, "{renewed}");
    let again = lab.provision(&Device::new(first)?, &[])?;
    ensure!(again["device_id"] == registered, "{again}");

    // Only a group that refuses stops it.
    lab.assay(&["group", "add", "out", "--refuse"])?;
    lab.refused(&Device::new(first)?, &[], "group out refuses it")?;
    lab.audited("not-admitted").map(drop)
}

/// Otherwise whoever has such a TPM leaves its certificate out.
#[test]
fn enrolled_device_that_leaves_its_certificate_out_is_refused_by_what_it_said_before() -> Result<()>
{
    let lab = Lab::open()?;
    let tpms = trusted_vendor()?.devices(EkKind::P256, 2)?;
    let [enrolled_by_key, enrolled_by_file] = &tpms[..] else { unreachable!() };
    for (tpm, content) in [
        (enrolled_by_key, enrolled_by_key.ek_public_pem(EkKind::P256)?.into_bytes()),
        (enrolled_by_file, enrolled_by_file.ek_certificate(EkKind::P256)?),
    ] {
        let file = tpm.work_dir().join("ek");
        fs::write(&file, content)?;
        lab.assay(&["enroll", "add", file.to_str().context("a path")?])?;
    }
    let leave_out = |tpm: &Swtpm| tpm.tpm2(&["nvundefine", "-C", "p", "0x01C0000A"]).map(drop);
    let device = Device::new(enrolled_by_key)?;
    let device_id = lab.provision(&device, &["--flow", "sealed"])?["device_id"].clone();
    let show = lab.assay(&["enroll", "show", device_id.as_str().context("a device id")?])?;
    let shown: Value = serde_json::from_slice(&show.stdout)?;
    let manufacturer = shown["tpm"]["manufacturer"].as_str().context("a manufacturer")?;

    let condition = ["--manufacturer", manufacturer, "--refuse", "--position", "1"];
    lab.assay(&[&["group", "add", "flawed"], &condition[..]].concat())?;
    for tpm in [enrolled_by_key, enrolled_by_file] {
        leave_out(tpm)?;
        for flow in ["ticket", "sealed", "shared-key"] {
            let options = ["--ek", "p-256", "--flow", flow];
            lab.refused(&Device::new(tpm)?, &options, "group flawed refuses it")?;
        }
    }
    let said = String::from_utf8(device.renew(&lab.dir, &lab.server)?.output()?.stderr)?;
    ensure!(said.contains("group flawed refuses it"), "{said}");
    lab.assay(&["group", "remove", "flawed"])?;
    lab.provision(&Device::new(enrolled_by_file)?, &["--ek", "p-256"]).map(drop)
}

#[test]
fn tpms_that_were_made_with_flawed_firmware_are_marked_and_refused() -> Result<()> {
    let lab = Lab::open()?;
    let tpms = trusted_vendor()?.devices(EkKind::P256, 1)?;
    let known = String::from_utf8(lab.assay(&["group", "flaws", "--json"])?.stdout)?;
    ensure!(known.contains("ROCA") && known.contains("TPM-FAIL"), "{known}");
    let device = Device::new(&tpms[0])?;
    lab.assay(&["group", "add", "flawed", "--flawed", "--refuse", "--position", "1"])?;
    lab.provision(&device, &[])?;
    let file = tpms[0].work_dir().join("ek.der");
    fs::write(&file, tpms[0].ek_certificate(EkKind::P256)?)?;
    lab.assay(&["enroll", "add", file.to_str().context("a path")?])?;
    let ek = ek_of(&tpms[0])?;
    let show = || -> Result<Value> {
        Ok(serde_json::from_slice(&lab.assay(&["enroll", "show", &ek])?.stdout)?)
    };
    let tpm = show()?["tpm"].clone();
    ensure!(tpm["flaws"].as_array().is_some_and(Vec::is_empty), "{tpm}");

    // The operator hears of a flaw.
    let firmware = tpm["firmware"].as_str().and_then(|text| text.strip_prefix("id:"));
    let [major, minor] = [0, 4]
        .map(|at| firmware.and_then(|digits| u16::from_str_radix(&digits[at..at + 4], 16).ok()));
    let (major, minor) = major.zip(minor).context("two numbers")?;
    let flaw = format!(
        "[[flaw]]\nname = \"own\"\nsource = \"a letter\"\nmanufacturer = {}\nfirmware = \
         [\"{major}.{minor}\"]\n",
        tpm["manufacturer"]
    );
    fs::write(lab.dir.path().join("flaws.toml"), flaw)?;
    lab.reload()?;
    ensure!(show()?["tpm"]["flaws"][0] == "own", "{}", show()?);
    lab.refused(&Device::new(&tpms[0])?, &[], "group flawed refuses it")
}

#[test]
fn a_group_says_which_flows_and_until_when() -> Result<()> {
    let lab = Lab::open()?;
    let tpms = trusted_vendor()?.devices(EkKind::P256, 2)?;
    let model = ["group", "add", "bench", "--position", "1", "--admit", "--flow", "sealed"];
    lab.assay(&model)?;
    let device = Device::new(&tpms[0])?;
    lab.refused(&device, &["--flow", "ticket"], "flow-not-offered")?;
    lab.provision(&device, &["--flow", "sealed"])?;
    lab.assay(&["group", "update", "bench", "--without", "flow", "--not-after", "2020-01-01"])?;
    lab.refused(
        &Device::new(&tpms[1])?,
        &[],
        "group bench admitted devices until 2020-01-01T00:00:00Z",
    )?;
    lab.assay(&["group", "update", "bench", "--without", "not-after"])?;
    lab.provision(&Device::new(&tpms[1])?, &[]).map(drop)
}

#[test]
fn a_group_says_for_how_long_certificates_are_valid_and_for_which_keys() -> Result<()> {
    // Every certificate is due, if the next one ends later.
    let lab = Lab::with_settings("[certificates]\nrenew_before_days = 90\n")?;
    let tpms = trusted_vendor()?.devices(EkKind::P256, 2)?;
    let lab_devices = ["--admit", "--position", "1", "--lifetime", "2", "--ik", "p-384"];
    lab.assay(&[&["group", "add", "bench"], &lab_devices[..]].concat())?;
    for flow in ["ticket", "sealed"] {
        let device = Device::new(&tpms[0])?;
        lab.refused(&device, &["--flow", flow], "takes identity keys of these kinds: p-384")?;
    }
    let device = Device::new(&tpms[0])?;
    lab.provision(&device, &["--flow", "ticket", "--ik", "p-384", "--ik-handle", "0x81000210"])?;
    lab.provision(&Device::new(&tpms[1])?, &["--flow", "sealed", "--ik", "p-384"])?;
    let lifetimes = || -> Result<Vec<i64>> {
        let certs = lab.dir.list("certs")?.into_iter();
        certs.map(|row| Ok(seconds(&row["not_after"])? - seconds(&row["issued_at"])?)).collect()
    };
    ensure!(lifetimes()? == [2 * DAY, 2 * DAY], "{:?}", lifetimes()?);
    // A key of before goes on, and its next certificate is as the group says by then.
    lab.assay(&["group", "update", "bench", "--ik", "rsa-2048", "--lifetime", "40"])?;
    // A certificate is renewed by a newer one, and times have seconds.
    thread::sleep(Duration::from_secs(1));
    json(&mut device.renew(&lab.dir, &lab.server)?)?;
    ensure!(lifetimes()? == [2 * DAY, 2 * DAY, 40 * DAY], "{:?}", lifetimes()?);
    let rekey = device.rekey_at(&lab.server.bootstrap, &lab.dir.root_pem())?.output()?;
    let said = String::from_utf8(rekey.stderr)?;
    ensure!(said.contains("takes identity keys of these kinds: rsa-2048"), "{said}");
    lab.assay(&["group", "update", "bench", "--without", "ik,lifetime"])?;
    run(&mut device.rekey_at(&lab.server.bootstrap, &lab.dir.root_pem())?)?;
    ensure!(lifetimes()?[3] == 90 * DAY, "{:?}", lifetimes()?);
    Ok(())
}

#[test]
fn a_group_names_its_new_devices_with_the_next_numbers_that_are_free() -> Result<()> {
    let lab = Lab::open()?;
    let tpms = trusted_vendor()?.devices(EkKind::P256, 4)?;
    let group = ["group", "add", "pumps", "--admit", "--position", "1", "--name", "pump-{n}"];
    let refused = lab.dir.assay(&group)?.output()?;
    ensure!(String::from_utf8(refused.stderr)?.contains("--quota"), "anybody could make rows");
    lab.assay(&[&group[..], &["--quota", "4"]].concat())?;
    lab.enroll(&tpms[3], EkKind::P256, "pump-2", &[])?;
    for (n, flow) in [(1, "ticket"), (3, "sealed"), (4, "shared-key")] {
        let tpm = &tpms[[0, 1, 2][(n / 2) as usize]];
        let device = Device::new(tpm)?;
        let name = format!("pump-{n}");
        ensure!(lab.provision(&device, &["--flow", flow])?["device_id"] == name, "{n}");
        // It keeps its name, and its state or not.
        ensure!(lab.provision(&Device::new(tpm)?, &["--flow", flow])?["device_id"] == name);
        let shown = lab.assay(&["enroll", "show", &name])?.stdout;
        let shown: Value = serde_json::from_slice(&shown)?;
        ensure!(shown["enrolled_from"] == "group pumps", "{shown}");
        ensure!(shown["tpm"]["manufacturer"].is_string(), "{shown}");
    }
    let approvals = lab.dir.list("audit")?.into_iter().filter(|row| row["action"] == "approve");
    ensure!(approvals.filter(|row| row["client"] == "group:pumps").count() == 3);
    // What an operator named has that name.
    let operators = lab.provision(&Device::new(&tpms[3])?, &[])?;
    ensure!(operators["device_id"] == "pump-2", "{operators}");
    Ok(())
}

#[test]
fn a_group_admits_as_many_devices_as_it_may_until_one_is_removed() -> Result<()> {
    let lab = Lab::open()?;
    let tpms = trusted_vendor()?.devices(EkKind::P256, 3)?;
    lab.assay(&["group", "add", "bench", "--quota", "2", "--admit", "--position", "1"])?;
    let first = Device::new(&tpms[0])?;
    let device_id = lab.provision(&first, &[])?["device_id"].clone();
    lab.provision(&Device::new(&tpms[1])?, &["--flow", "sealed"])?;
    let third = Device::new(&tpms[2])?;
    for flow in ["ticket", "sealed", "shared-key"] {
        lab.refused(&third, &["--flow", flow], "group bench has as many devices as it may: 2")?;
    }
    json(&mut first.renew(&lab.dir, &lab.server)?)?;
    lab.assay(&["enroll", "remove", device_id.as_str().context("a device id")?])?;
    // It is noticed within two seconds.
    thread::sleep(Duration::from_secs(3));
    lab.provision(&third, &["--flow", "ticket"])?;
    lab.refused(&Device::new(&tpms[0])?, &[], "group bench has as many devices")
}

#[test]
fn groups_are_shown_as_they_were_made_and_mistakes_are_told() -> Result<()> {
    let dir = AssayDir::init()?;
    let names =
        |groups: &[Value]| groups.iter().map(|group| group["name"].clone()).collect::<Vec<_>>();
    let made = groups(&dir)?;
    ensure!(names(&made) == ["enrolled", "vendors"], "{made:?}");
    ensure!((&made[0]["answer"], &made[1]["answer"]) == (&"admit".into(), &"ask".into()));

    let root = trusted_vendor()?.root_pem();
    let root = root.to_str().context("a path")?;
    run(&mut dir.assay(&[
        "group",
        "add",
        "pumps",
        "--issuer",
        root,
        "--manufacturer",
        "id:494e5443",
        "--model",
        "SLB 9670",
        "--firmware",
        "id:00070055",
        "--enrolled=false",
        "--ek",
        "AB12",
        "--flow",
        "ticket",
        "--not-before",
        "2026-01-01",
        "--ask",
        "--before",
        "vendors",
    ])?)?;
    let made = groups(&dir)?;
    ensure!(names(&made) == ["enrolled", "pumps", "vendors"], "{made:?}");
    let pumps = &made[1];
    for (field, value) in [
        ("manufacturers", serde_json::json!(["id:494E5443"])),
        ("models", serde_json::json!(["SLB 9670"])),
        ("firmware", "id:00070055".into()),
        ("enrolled", false.into()),
        ("eks", serde_json::json!(["ab12"])),
        ("flows", serde_json::json!(["ticket"])),
        ("not_before", "2026-01-01T00:00:00Z".into()),
        ("not_after", Value::Null),
        ("answer", "ask".into()),
    ] {
        ensure!(pumps[field] == value, "{field}: {pumps}");
    }
    let shown = run(&mut dir.assay(&["group", "show", "pumps"])?)?.stdout;
    ensure!(String::from_utf8(shown)?.contains("models SLB 9670"));

    for (arguments, reason) in [
        (&["group", "add", "pumps", "--admit"][..], "there is a group pumps already"),
        (&["group", "add", "x", "--admit", "--before", "y"], "no group y"),
        (&["group", "add", "x", "--manufacturer", "INTC", "--admit"], "id:494E5443"),
        (&["group", "add", "x"], "--admit"),
        (&["group", "remove", "x"], "no group x"),
        (&["group", "add", "x", "--issuer", "0123456789", "--admit"], "trust list"),
    ] {
        let output = dir.assay(arguments)?.output()?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(!output.status.success() && said.contains(reason), "{arguments:?}: {said}");
    }
    Ok(())
}

#[test]
fn trusting_a_vendor_with_admit_twice_makes_one_group() -> Result<()> {
    let (dir, vendor) = (AssayDir::init()?, trusted_vendor()?);
    for _ in 0..2 {
        dir.trust(&vendor)?;
    }
    let made = groups(&dir)?;
    let answers: Vec<_> = made.iter().map(|group| group["answer"].clone()).collect();
    ensure!(answers == ["admit", "admit", "ask"], "{made:?}");
    // People are shown who is meant, and programs the key.
    let vendors = |group: &&Value| group["issuers"].as_array().is_some_and(|it| !it.is_empty());
    let made = made.iter().find(vendors).context("a group of a vendor")?;
    let (key, name) = (made["issuers"][0].as_str(), made["name"].as_str());
    let (key, name) = (key.context("a key")?, name.context("a name")?);
    for command in [&["group", "list"][..], &["group", "show", name]] {
        let said = String::from_utf8(run(&mut dir.assay(command)?)?.stdout)?;
        let short =
            said.contains("CN=Test TPM Vendor") && said.contains(&format!("({}", &key[..8]));
        ensure!(short && !said.contains(key), "{said}");
    }
    Ok(())
}

const DAY: i64 = 86_400;

fn seconds(time: &Value) -> Result<i64> {
    let mut date = tool("date")?;
    let seconds = run(date.args(["+%s", "--date", time.as_str().context("a time")?]))?.stdout;
    Ok(String::from_utf8(seconds)?.trim().parse()?)
}

fn groups(dir: &AssayDir) -> Result<Vec<Value>> {
    let listed = run(&mut dir.assay(&["group", "list", "--json"])?)?.stdout;
    let rows = serde_json::Deserializer::from_slice(&listed).into_iter();
    rows.collect::<Result<_, _>>().context("`assay group list --json` writes JSON")
}

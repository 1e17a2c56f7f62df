//! What operators do to many devices and to one: import, policies, rotation, removal, revocation
//! lists.

use std::fs;
use std::path::PathBuf;
use std::process::Output;

use anyhow::{Context, Result, ensure};
use assay_tests::{AssayDir, Device, EkKind, Swtpm, run, tool, trusted_vendor};
use assay_wire::{ParentBundle, ReplyBody, RequestBody};
use data_encoding::{BASE64, HEXLOWER};
use rcgen::PublicKeyData;
use serde_json::Value;
use tempfile::TempDir;

use crate::lab::Lab;
use crate::raw_client::RawClient;
use crate::shared_key_tools::Parent;

/// A software P-256 key as the EK of a TPM: TCG's template L-2.
struct Ek(rcgen::KeyPair);

impl Ek {
    fn new() -> Result<Self> {
        Ok(Self(rcgen::KeyPair::generate()?))
    }

    fn spki(&self) -> Vec<u8> {
        self.0.subject_public_key_info()
    }

    /// As `openssl pkey -pubout` writes it.
    fn pem(&self) -> String {
        format!(
            "-----BEGIN PUBLIC KEY-----\n{}\n-----END PUBLIC KEY-----\n",
            BASE64.encode(&self.spki())
        )
    }

    fn tpmt_public(&self) -> Vec<u8> {
        let (x, y) = self.0.der_bytes()[1..].split_at(32);
        [&EK_TEMPLATE[..], &[0, 32], x, &[0, 32], y].concat()
    }

    /// What Azure's tools print.
    fn azure(&self) -> String {
        let area = self.tpmt_public();
        BASE64.encode(&[&[0, area.len() as u8][..], &area].concat())
    }
}

#[test]
fn replaced_tpm_is_out_at_once_and_the_next_one_has_the_devices_name() -> Result<()> {
    let lab = Lab::open()?;
    let tpms = trusted_vendor()?.devices(EkKind::P256, 2)?;
    let [old, next] = &tpms[..] else { unreachable!() };
    let file = |tpm: &Swtpm| -> Result<String> {
        let file = tpm.work_dir().join("ek.der");
        fs::write(&file, tpm.ek_certificate(EkKind::P256)?)?;
        Ok(file.to_str().context("a path")?.to_owned())
    };
    lab.assay(&["enroll", "add", &file(old)?, "--device-id", "pump-17"])?;
    let device = Device::new(old)?;
    lab.provision(&device, &[])?;
    let fails = |arguments: &[&str]| -> Result<String> {
        let output = lab.dir.assay(arguments)?.output()?;
        ensure!(output.status.code() == Some(1), "{output:?}");
        Ok(String::from_utf8(output.stderr)?)
    };
    let said = fails(&["device", "replace", "pump-17", &file(old)?])?;
    ensure!(said.contains("is that of pump-17 already"), "{said}");
    let said = fails(&["device", "replace", "pump-18", &file(next)?])?;
    ensure!(said.contains("no device is called pump-18"), "{said}");

    let replaced = lab.assay(&["device", "replace", "pump-17", &file(next)?])?;
    let said = String::from_utf8(replaced.stderr)?;
    ensure!(said.contains("certificates revoked: 1"), "{said}");
    let publish = device.publish(&lab.dir, &lab.server, "telemetry", "1")?.output()?;
    ensure!(!publish.status.success(), "the old certificate is revoked");
    lab.refused(&Device::new(old)?, &[], "device-disabled")?;
    // The disk of the device is as it was.
    ensure!(lab.provision(&device.with(next), &[])?["device_id"] == "pump-17");

    let history = lab.assay(&["device", "history", "pump-17", "--json"])?;
    let history = String::from_utf8(history.stdout)?;
    let rows = history.lines().map(serde_json::from_str).collect::<Result<Vec<Value>, _>>()?;
    ensure!(rows.len() == 2 && rows[0]["until"].is_string() && rows[1]["until"].is_null());
    let audit = lab.dir.list("audit")?;
    for (action, ek) in [("replaced", &rows[0]["ek_id"]), ("replace", &rows[1]["ek_id"])] {
        let entry = audit.iter().find(|row| row["action"] == action).context(action)?;
        ensure!(entry["ek_id"] == *ek && entry["due_device_id"] == "pump-17", "{entry}");
        ensure!(entry["client"].as_str().is_some_and(|who| who.starts_with("unix:")), "{entry}");
    }
    Ok(())
}

#[test]
fn device_whose_id_follows_from_its_ek_gets_no_other_tpm() -> Result<()> {
    let lab = Lab::open()?;
    let tpms = trusted_vendor()?.devices(EkKind::P256, 2)?;
    let device_id = lab.provision(&Device::new(&tpms[0])?, &[])?["device_id"].clone();
    let file = tpms[1].work_dir().join("ek.der");
    fs::write(&file, tpms[1].ek_certificate(EkKind::P256)?)?;
    let device_id = device_id.as_str().context("a device id")?;
    let output = lab.dir.assay(&["device", "replace", device_id])?.arg(file).output()?;
    let said = String::from_utf8(output.stderr)?;
    ensure!(output.status.code() == Some(1) && said.contains("follows from the EK"), "{said}");
    ensure!(lab.dir.list("devices")?.len() == 1);
    Ok(())
}

/// A CA, and a place for an operator's files.
struct Desk {
    dir: AssayDir,
    files: TempDir,
}

impl Desk {
    fn new() -> Result<Self> {
        Ok(Self { dir: AssayDir::init()?, files: tempfile::tempdir()? })
    }

    fn write(&self, name: &str, content: impl AsRef<[u8]>) -> Result<String> {
        let file = self.files.path().join(name);
        fs::write(&file, content)?;
        Ok(file.to_str().context("a path")?.to_owned())
    }

    /// Standard output and error of a command that succeeds.
    fn assay(&self, arguments: &[&str]) -> Result<(String, String)> {
        let Output { stdout, stderr, .. } = run(&mut self.dir.assay(arguments)?)?;
        Ok((String::from_utf8(stdout)?, String::from_utf8(stderr)?))
    }

    /// Runs a command that must fail with the usual exit status and print no data. Returns what it
    /// says.
    fn refused(&self, arguments: &[&str]) -> Result<String> {
        let output = self.dir.assay(arguments)?.output()?;
        let said = String::from_utf8(output.stderr)?;
        ensure!(
            output.status.code() == Some(1) && output.stdout.is_empty(),
            "{arguments:?}: {}: {said}",
            output.status
        );
        Ok(said)
    }

    fn show(&self, which: &str) -> Result<Value> {
        Ok(serde_json::from_str(&self.assay(&["enroll", "show", which])?.0)?)
    }

    fn enrolled(&self) -> Result<Vec<Value>> {
        let listed = self.assay(&["enroll", "list", "--json"])?.0;
        listed.lines().map(|line| Ok(serde_json::from_str(line)?)).collect()
    }
}

#[test]
fn eks_in_every_form_are_imported_from_one_csv_file() -> Result<()> {
    let desk = Desk::new()?;
    let eks = (0..5).map(|_| Ek::new()).collect::<Result<Vec<_>>>()?;
    let csv = format!(
        "\u{feff}status, registration_id \
         ,endorsement_key,reprovision,legacy_dps_ek,plain_srk\r\ndisabled,pump-0,{},never,false,\r\n\
         ,pump-1,{},,,\r\n\r\nenabled,,{},reuse,,true\r\n,pump-3,\"{}\",,,false\r\n,pump-4,{},\
         reissue,,\r\n",
        eks[0].azure(),
        BASE64.encode(&eks[1].tpmt_public()),
        BASE64.encode(&eks[2].spki()),
        eks[3].pem(),
        eks[4].azure(),
    );
    let file = desk.write("eks.csv", csv)?;

    let (ids, said) =
        desk.assay(&["enroll", "import", &file, "--dry-run", "--reprovision", "reuse"])?;
    ensure!(said.contains("would import 5, unchanged 0") && ids.lines().count() == 5, "{said}");
    ensure!(desk.enrolled()?.is_empty(), "a dry run leaves nothing");

    let (imported, said) = desk.assay(&["enroll", "import", &file, "--reprovision", "reuse"])?;
    ensure!(said.trim() == "imported 5, unchanged 0" && imported == ids, "{said}");
    for (n, ek_id) in ids.lines().enumerate() {
        let ek = desk.write("ek.pem", eks[n].pem())?;
        let row = desk.show(&ek)?;
        ensure!(row["ek_id"] == ek_id && row["disabled"] == (n == 0), "line of EK {n}: {row}");
        ensure!(
            row["device_id"] == if n == 2 { Value::Null } else { format!("pump-{n}").into() },
            "{row}"
        );
        ensure!(row["reprovision"] == ["never", "reuse", "reuse", "reuse", "reissue"][n], "{row}");
        ensure!(row["plain_srk"] == (n == 2), "{row}");
    }

    let (lines, said) = desk.assay(&["enroll", "import", &file, "--json"])?;
    ensure!(said.trim() == "imported 0, unchanged 5", "{said}");
    let first: Value = serde_json::from_str(lines.lines().next().context("a line")?)?;
    ensure!(first["result"] == "unchanged" && first["device_id"] == "pump-0", "{first}");
    Ok(())
}

#[test]
fn one_bad_line_keeps_all_from_being_imported_and_every_bad_line_is_named() -> Result<()> {
    let desk = Desk::new()?;
    let (enrolled, known, good) = (Ek::new()?, Ek::new()?, Ek::new()?);
    let file = desk.write("ek.pem", enrolled.pem())?;
    desk.assay(&["enroll", "add", &file, "--device-id", "pump-1"])?;
    let file = desk.write("known.pem", known.pem())?;
    desk.assay(&["enroll", "add", &file, "--reprovision", "never"])?;

    let rows = [
        format!("{},pump-2,,,,", good.azure()),
        format!("{},pump-3,,,,", good.azure()),
        format!("{},pump-2,,,,", Ek::new()?.azure()),
        format!("{},pump-1,,,,", Ek::new()?.azure()),
        format!("{},pump-9,,,,", enrolled.azure()),
        format!("{},,reuse,,,", known.azure()),
        format!("{},,,,disabled,", known.azure()),
        format!("{},,,true,,", Ek::new()?.azure()),
        format!("{},pump 5,,,,", Ek::new()?.azure()),
        format!("{},,sometimes,,,", Ek::new()?.azure()),
        format!("{},,,,on,", Ek::new()?.azure()),
        "AAAA,,,,,".into(),
        ",pump-6,,,,".into(),
        "too,few".into(),
        format!("{},,,,,", "A".repeat(16 * 1024 + 1)),
        format!("{},,,,,yes", Ek::new()?.azure()),
        format!("{},,,,,true", known.azure()),
    ];
    let header = "endorsement_key,device_id,reprovision,legacy_dps_ek,status,plain_srk";
    let said = desk.refused(&[
        "enroll",
        "import",
        &desk.write("eks.csv", format!("{header}\n{}\n", rows.join("\n")))?,
    ])?;
    let expected = [
        (3, "the same EK as line 2"),
        (4, "the same device id as line 2: pump-2"),
        (5, "device id pump-1 belongs to EK"),
        (
            6,
            "is enrolled as pump-1, not as pump-9; to give it another device id, run `assay enroll remove",
        ),
        (7, "--reprovision reuse` changes it"),
        (8, "the same EK as line 7"),
        (9, "this is EK L-2 (P-256)"),
        (10, "device id"),
        (11, "expected reissue, reuse or never"),
        (12, "neither disabled nor enabled"),
        (13, "not a certificate"),
        (14, "endorsement_key is empty"),
        (15, "2 cells, but the header has 6"),
        (16, "longer than 16384 bytes"),
        (17, "neither true nor false"),
        (18, "the same EK as line 7"),
    ];
    for (line, reason) in expected {
        let found = said.lines().find(|said| said.starts_with(&format!("line {line}: ")));
        ensure!(found.is_some_and(|found| found.contains(reason)), "line {line}, {reason}: {said}");
    }
    ensure!(
        !said.lines().any(|said| said.starts_with("line 2:")) && said.contains("16 cannot be"),
        "{said}"
    );
    ensure!(desk.enrolled()?.len() == 2);

    let many = format!("endorsement_key\n{}", "AAAA\n".repeat(60));
    let said = desk.refused(&["enroll", "import", &desk.write("many.csv", many)?])?;
    ensure!(
        said.contains("line 51: ") && !said.contains("line 52: ") && said.contains("and 10 more"),
        "{said}"
    );
    Ok(())
}

#[test]
fn columns_of_azures_names_are_understood_and_all_others_kept_as_tags() -> Result<()> {
    let desk = Desk::new()?;
    let ek = Ek::new()?;
    let csv = format!(
        "endorsementKey,registrationId,provisioningStatus,site\n{},pump-1,disabled,north\n",
        ek.azure()
    );
    let (_, said) = desk.assay(&["enroll", "import", &desk.write("eks.csv", &csv)?])?;
    ensure!(
        said.contains("kept as tags: the columns \"site\"") && said.contains("imported 1"),
        "{said}"
    );
    let row = desk.show("pump-1")?;
    ensure!(row["tags"]["site"] == "north" && row["disabled"] == true, "{row}");

    let moved = desk.write("eks.csv", csv.replace("north", "south"))?;
    let (lines, said) = desk.assay(&["enroll", "import", "--json", &moved])?;
    ensure!(said.contains("tags updated of 1") && lines.contains("\"updated\""), "{said}{lines}");
    ensure!(desk.show("pump-1")?["tags"]["site"] == "south");

    let both = format!("endorsement_key,registrationId,deviceId\n{},a,b\n", Ek::new()?.azure());
    let said = desk.refused(&["enroll", "import", &desk.write("eks.csv", both)?])?;
    ensure!(said.contains("are different ids"), "{said}");
    Ok(())
}

#[test]
fn a_list_and_an_ek_are_read_from_standard_input() -> Result<()> {
    let desk = Desk::new()?;
    let (first, second) = (Ek::new()?, Ek::new()?);
    let csv = desk.write("eks.csv", format!("endorsement_key\n{}\n", first.azure()))?;
    let output = run(desk.dir.assay(&["enroll", "import", "-"])?.stdin(fs::File::open(csv)?))?;
    ensure!(String::from_utf8(output.stderr)?.contains("imported 1"));
    let pem = desk.write("ek.pem", second.pem())?;
    let said = String::from_utf8(
        run(desk.dir.assay(&["enroll", "add", "-"])?.stdin(fs::File::open(pem)?))?.stderr,
    )?;
    ensure!(said.contains("you vouch for a key that may be anywhere"), "{said}");
    ensure!(desk.enrolled()?.len() == 2);
    Ok(())
}

#[test]
fn a_directory_of_ek_files_is_imported() -> Result<()> {
    let desk = Desk::new()?;
    let folder = desk.files.path().join("eks");
    fs::create_dir_all(folder.join("older"))?;
    let (first, second) = (Ek::new()?, Ek::new()?);
    fs::write(folder.join("a.pem"), first.pem())?;
    fs::write(folder.join("b.txt"), second.azure() + "\n")?;
    fs::write(folder.join(".c"), "hidden")?;
    fs::write(folder.join("older").join("d"), "not read")?;
    let path = folder.to_str().context("a path")?;

    fs::write(folder.join("broken"), "")?;
    fs::write(folder.join("copy"), first.spki())?;
    let said = desk.refused(&["enroll", "import", path])?;
    ensure!(said.contains("broken: ") && said.contains("copy: the same EK as a.pem"), "{said}");
    ensure!(desk.enrolled()?.is_empty());

    fs::remove_file(folder.join("broken"))?;
    fs::remove_file(folder.join("copy"))?;
    let (ids, said) = desk.assay(&["enroll", "import", path, "--reprovision", "never"])?;
    ensure!(said.trim() == "imported 2, unchanged 0" && ids.lines().count() == 2, "{said}");
    ensure!(desk.show(&desk.write("ek", second.tpmt_public())?)?["reprovision"] == "never");
    Ok(())
}

#[test]
fn a_policy_is_given_shown_and_changed() -> Result<()> {
    let desk = Desk::new()?;
    let ek = desk.write("ek.pem", Ek::new()?.pem())?;
    ensure!(desk.refused(&["enroll", "add", &ek, "--legacy-dps-ek"])?.contains("RSA-2048"));
    ensure!(
        desk.refused(&["enroll", "update", &ek, "--reprovision", "reuse"])?.contains("enroll list")
    );
    desk.assay(&["enroll", "add", &ek, "--device-id", "pump-1", "--reprovision", "never"])?;
    ensure!(desk.show("pump-1")?["reprovision"] == "never");
    desk.assay(&["enroll", "update", "pump-1", "--reprovision", "reuse"])?;
    ensure!(desk.show("pump-1")?["reprovision"] == "reuse");
    ensure!(desk.assay(&["enroll", "list"])?.0.contains("reuse"));
    ensure!(desk.assay(&["enroll", "add", &ek])?.1.contains("enrolled already as pump-1"));
    ensure!(desk.refused(&["enroll", "rotate", "pump-1"])?.contains("never had a shared key"));
    Ok(())
}

#[test]
fn an_rsa_2048_ek_may_be_one_of_azures_sdks() -> Result<()> {
    let desk = Desk::new()?;
    let tpm = trusted_vendor()?.device(EkKind::Rsa2048, 0)?;
    let certified = desk.write("ek.der", tpm.ek_certificate(EkKind::Rsa2048)?)?;
    ensure!(
        desk.refused(&["enroll", "add", &certified, "--legacy-dps-ek"])?
            .contains("vendor certified")
    );
    let ek = desk.write("ek.pem", tpm.ek_public_pem(EkKind::Rsa2048)?)?;
    desk.assay(&["enroll", "add", &ek, "--legacy-dps-ek"])?;
    ensure!(desk.show(&ek)?["legacy_dps_ek"] == true);
    Ok(())
}

#[test]
fn an_ek_of_a_trusted_vendor_is_locked_out_before_it_registers() -> Result<()> {
    let lab = Lab::open()?;
    let tpm = trusted_vendor()?.device(EkKind::P256, 0)?;
    let device = Device::new(&tpm)?;
    let certificate = tpm.work_dir().join("ek.der");
    fs::write(&certificate, tpm.ek_certificate(EkKind::P256)?)?;
    let certificate = certificate.to_str().context("a path")?;

    lab.assay(&["enroll", "disable", certificate])?;
    lab.refused(&device, &[], "device-disabled")?;
    lab.assay(&["enroll", "enable", certificate])?;
    ensure!(lab.provision(&device, &[])?["device_id"].is_string());
    Ok(())
}

#[test]
fn to_lock_an_ek_out_and_in_again_does_not_enrol_it() -> Result<()> {
    let desk = Desk::new()?;
    let ek = desk.write("ek.pem", Ek::new()?.pem())?;
    ensure!(desk.assay(&["enroll", "disable", &ek])?.1.contains("did not know"));
    ensure!(desk.show(&ek)?["disabled"] == true && desk.show(&ek)?["enrolled_from"].is_null());
    ensure!(desk.refused(&["enroll", "remove", &ek])?.contains("knows nothing of EK"));
    desk.assay(&["enroll", "enable", &ek])?;
    ensure!(desk.enrolled()?.is_empty());
    Ok(())
}

#[test]
fn a_shared_key_is_listed_rotated_and_never_offered_again_after_removal() -> Result<()> {
    let lab = Lab::open()?;
    let tpm = trusted_vendor()?.device(EkKind::P256, 0)?;
    tpm.tpm2(&["createek", "-G", "ecc", "-c", "ek.ctx", "-u", "ek.pub"])?;
    tpm.tpm2(&["flushcontext", "-t"])?;
    Parent::Import.make(&tpm, "ecc256")?;
    let area =
        |file: &str| -> Result<Vec<u8>> { Ok(fs::read(tpm.work_dir().join(file))?[2..].to_vec()) };
    let bundle = ParentBundle {
        device_id: None,
        ek_public: area("ek.pub")?.try_into()?,
        ek_certificates: vec![tpm.ek_certificate(EkKind::P256)?.try_into()?].try_into()?,
        parent_public: area("parent.pub")?.try_into()?,
        other_eks: None,
    };
    let register = || -> Result<()> {
        let mut mqtt = RawClient::connect(&lab.server.bootstrap, &lab.dir.root_pem())?;
        let answer = mqtt.ask(RequestBody::Register(bundle.clone()))?;
        ensure!(matches!(answer, ReplyBody::Activation(_)), "{answer:?}");
        Ok(())
    };
    let ek = tpm.work_dir().join("ek.pub");
    let ek = ek.to_str().context("a path")?;
    let generation = || -> Result<Value> {
        let row: Value = serde_json::from_slice(&lab.assay(&["enroll", "show", ek])?.stdout)?;
        Ok(row["shared_key"].clone())
    };
    let unused = |generation: u32| serde_json::json!({ "generation": generation, "used": false, "plain_srk": false });

    lab.assay(&["enroll", "add", ek, "--device-id", "pump-1"])?;
    register()?;
    ensure!(generation()? == unused(1));
    ensure!(String::from_utf8(lab.assay(&["enroll", "list"])?.stdout)?.contains("1 (not used)"));
    let row: Value = serde_json::from_slice(&lab.assay(&["enroll", "show", ek])?.stdout)?;
    let id = row["ek_id"].as_str().context("an id")?;
    ensure!(
        lab.assay(&["enroll", "show", &id[..16]])?.stdout
            == lab.assay(&["enroll", "show", id])?.stdout
    );
    ensure!(
        !lab.dir.assay(&["enroll", "show", &id[..15]])?.output()?.status.success(),
        "as short as a name may be"
    );
    lab.assay(&["enroll", "rotate", "pump-1"])?;
    ensure!(generation()? == unused(3));
    let removed = lab.assay(&["enroll", "remove", "pump-1"])?;
    ensure!(String::from_utf8(removed.stderr)?.contains("retired its shared key"));
    lab.assay(&["enroll", "add", ek, "--device-id", "pump-1"])?;
    register()?;
    ensure!(generation()? == unused(5));
    Ok(())
}

#[test]
fn the_revocation_list_holds_what_openssl_must_refuse() -> Result<()> {
    let lab = Lab::open()?;
    let vendor = trusted_vendor()?;
    let (mut cleared, disabled, removed) = (
        vendor.device(EkKind::P256, 0)?,
        vendor.device(EkKind::P256, 1)?,
        vendor.device(EkKind::P256, 2)?,
    );
    let openssl = Judge { lab: &lab, files: tempfile::tempdir()? };
    let provision = |tpm: &Swtpm| lab.provision(&Device::new(tpm)?, &[]);
    let first = provision(&cleared)?;
    let (disabled, removed) = (provision(&disabled)?, provision(&removed)?);
    for row in [&first, &disabled, &removed] {
        ensure!(openssl.verifies(row)?, "nothing is revoked yet");
    }

    cleared.clear()?;
    let second = provision(&cleared)?;
    let id = |row: &Value| -> Result<String> {
        Ok(row["device_id"].as_str().context("an id")?.to_owned())
    };
    lab.assay(&["enroll", "disable", &id(&disabled)?])?;
    let said = lab.assay(&["enroll", "remove", &id(&removed)?])?;
    ensure!(String::from_utf8(said.stderr)?.contains("revoked certificates: 1"));
    ensure!(openssl.verifies(&second)?);
    for row in [&first, &disabled, &removed] {
        ensure!(!openssl.verifies(row)?, "{row}");
    }
    let text = openssl.list()?;
    for reason in ["Superseded", "Certificate Hold", "Cessation Of Operation"] {
        ensure!(text.matches(reason).count() == 1, "{reason}: {text}");
    }
    ensure!(lab.dir.list("certs")?.iter().any(|row| row["status"] == "revoked"));

    lab.assay(&["enroll", "enable", &id(&disabled)?])?;
    ensure!(openssl.verifies(&disabled)? && !openssl.list()?.contains("Certificate Hold"));
    Ok(())
}

#[test]
fn a_revocation_list_is_written_as_der_or_pem() -> Result<()> {
    let desk = Desk::new()?;
    let file = desk.files.path().join("list.crl");
    let out = ["crl", "--out", file.to_str().context("a path")?];
    desk.assay(&out)?;
    let der = fs::read(&file)?;
    ensure!(der.first() == Some(&0x30));
    desk.assay(&[&out[..], &["--pem"]].concat())?;
    ensure!(fs::read_to_string(&file)?.starts_with("-----BEGIN X509 CRL-----\n"));
    ensure!(fs::read_dir(desk.files.path())?.count() == 1, "no half-made file is left");
    ensure!(run(&mut desk.dir.assay(&["crl"])?)?.stdout.first() == Some(&0x30), "a pipe gets DER");
    ensure!(desk.refused(&["crl", "--out", "/nowhere/list"])?.contains("/nowhere/list"));
    Ok(())
}

/// OpenSSL, with the root, the issuing CA and the newest list.
struct Judge<'a> {
    lab: &'a Lab,
    files: TempDir,
}

impl Judge<'_> {
    /// Whether the certificate that `provision` reported is good.
    fn verifies(&self, provisioned: &Value) -> Result<bool> {
        let certificates = self.lab.dir.list("certs")?;
        let row = certificates
            .iter()
            .find(|row| row["serial"] == provisioned["serial"])
            .context("it is on record")?;
        let leaf = self.files.path().join("leaf.der");
        fs::write(&leaf, HEXLOWER.decode(row["der"].as_str().context("hexadecimal")?.as_bytes())?)?;
        let mut verify = tool("openssl")?;
        verify
            .args(["verify", "-crl_check", "-CAfile"])
            .arg(self.lab.dir.root_pem())
            .arg("-untrusted");
        verify
            .arg(self.lab.dir.path().join("issuing.pem"))
            .arg("-CRLfile")
            .arg(self.write_list()?)
            .arg(leaf);
        let output = verify.output()?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success() || said.contains("certificate revoked"), "{said}");
        Ok(output.status.success())
    }

    /// The list as OpenSSL prints it.
    fn list(&self) -> Result<String> {
        let mut crl = tool("openssl")?;
        crl.args(["crl", "-text", "-noout", "-in"]).arg(self.write_list()?);
        Ok(String::from_utf8(run(&mut crl)?.stdout)?)
    }

    fn write_list(&self) -> Result<PathBuf> {
        let file = self.files.path().join("crl.pem");
        self.lab.assay(&["crl", "--pem", "--out", file.to_str().context("a path")?])?;
        Ok(file)
    }
}

/// TPMT_PUBLIC of TCG's template L-2 (EK Credential Profile 2.5, B.3.4) without the point.
const EK_TEMPLATE: [u8; 54] = *b"\x00\x23\x00\x0b\x00\x03\x00\xb2\
    \x00\x20\x83\x71\x97\x67\x44\x84\xb3\xf8\x1a\x90\xcc\x8d\x46\xa5\xd7\x24\
    \xfd\x52\xd7\x6e\x06\x52\x0b\x64\xf2\xa1\xda\x1b\x33\x14\x69\xaa\
    \x00\x06\x00\x80\x00\x43\x00\x10\x00\x03\x00\x10";

//! Certificates of operators and workers, and certificates that nobody issued.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use assay_tests::{Device, EkKind, run, tool, trusted_vendor};
use serde_json::Value;

use crate::lab::Lab;

#[test]
fn operator_is_let_in_until_its_certificate_is_revoked() -> Result<()> {
    let lab = Lab::open()?;
    let out = tempfile::tempdir()?;
    let add = [
        "credentials",
        "add",
        "operator",
        "alice",
        "--out",
        out.path().to_str().context("a path")?,
    ];
    lab.assay(&add)?;
    let alice = Holder { client: "operator@alice".into(), files: out.path().join("alice") };
    let mut hears = alice.hears(&lab)?.stderr(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    // mosquitto_sub writes nothing before it ends. So publish until the broker finds a subscriber.
    while hears.try_wait()?.is_none()
        && run(&mut alice.says(&lab, "-says")?)?.stdout.windows(6).any(|said| said == b"RC:16)")
    {
    }

    let revoked_at = Instant::now();
    lab.assay(&["credentials", "revoke", "alice"])?;
    while hears.try_wait()?.is_none() {
        ensure!(revoked_at.elapsed() < Duration::from_secs(10), "its live connection stays");
        std::thread::sleep(Duration::from_millis(20));
    }
    ensure!(alice.is_refused(&lab)?);
    let rows = lab.assay(&["credentials", "list", "--json"])?.stdout;
    let rows: Vec<Value> =
        serde_json::Deserializer::from_slice(&rows).into_iter().collect::<Result<_, _>>()?;
    let names: Vec<_> =
        rows.iter().map(|row| (row["name"].as_str(), row["revoked_at"].is_null())).collect();
    ensure!(
        names == [(Some("worker"), true), (Some("operator"), true), (Some("alice"), false)],
        "{names:?}"
    );
    let list = out.path().join("list.pem");
    lab.assay(&["crl", "--pem", "--out", list.to_str().context("a path")?])?;
    // The second of the two lists is by the service CA, which issued this certificate.
    let lists = fs::read_to_string(&list)?;
    let of_service = lists.rfind("-----BEGIN").context("a list")?;
    fs::write(&list, &lists[of_service..])?;
    let service = lab.dir.path().join("service.pem");
    let mut show = tool("openssl")?;
    show.args(["crl", "-noout", "-text", "-verify", "-CAfile"]).arg(service).arg("-in").arg(&list);
    let printed = run(&mut show)?;
    ensure!(
        String::from_utf8(printed.stderr)?.contains("verify OK"),
        "the issuer of a certificate says that it is revoked"
    );
    ensure!(
        String::from_utf8(printed.stdout)?.matches("Serial Number").count() == 1,
        "other brokers have only the list"
    );

    for (arguments, reason) in [
        (&add[..], "on record already"),
        (&["credentials", "add", "worker", "bob", "--out", "/proc/nowhere"], "cannot write"),
        (&["credentials", "revoke", "worker"], "worker.pem"),
        (&["credentials", "revoke", "nobody"], "no credential"),
    ] {
        let output = lab.dir.assay(arguments)?.output()?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(!output.status.success() && said.contains(reason), "{arguments:?}: {said}");
    }
    let rows = lab.assay(&["credentials", "list"])?.stdout;
    ensure!(!String::from_utf8(rows)?.contains("bob"), "nothing is on record that was not made");
    Ok(())
}

/// Somebody who has stolen the issuing key can make such certificates.
#[test]
fn certificate_that_is_on_no_record_lets_nobody_in() -> Result<()> {
    let lab = Lab::open()?;
    let tpm = trusted_vendor()?.device(EkKind::P256, 0)?;
    let device = Device::new(&tpm)?;
    let provisioned = lab.provision(&device, &[])?;
    let [id, serial] =
        ["device_id", "serial"].map(|name| provisioned[name].as_str().unwrap_or_default());
    let operator = run(tool("openssl")?
        .args(["x509", "-noout", "-serial", "-in"])
        .arg(lab.dir.path().join("operator.pem")))?;
    let operators = String::from_utf8(operator.stdout)?.trim().replace("serial=", "");
    run(&mut device.publish(&lab.dir, &lab.server, "telemetry", "21.5")?)?;
    for (client, uri, serial) in [
        (id.to_owned(), format!("urn:assay:device:default:{id}"), serial),
        (
            id.to_owned(),
            format!("urn:assay:device:default:{id}"),
            "7f00000000000000000000000000000a",
        ),
        ("operator@forged".to_owned(), "urn:assay:operator".to_owned(), &operators),
        ("worker@forged".to_owned(), "urn:assay:worker".to_owned(), &operators),
    ] {
        let forged = Holder { client, files: forge(&lab, &uri, serial)? };
        ensure!(forged.is_refused(&lab)?, "{uri} {serial}");
    }
    // The directory's own files let an operator in.
    let operator =
        Holder { client: "operator@desk".into(), files: lab.dir.path().join("operator") };
    ensure!(!operator.is_refused(&lab)?);
    run(&mut device.publish(&lab.dir, &lab.server, "telemetry", "21.5")?)?;
    Ok(())
}

/// A client that shows a certificate.
struct Holder {
    client: String,
    /// The path without `.pem` and `.key`.
    files: PathBuf,
}

impl Holder {
    fn mosquitto(&self, lab: &Lab, program: &str) -> Result<Command> {
        let port = lab.server.operational.rsplit_once(':').context("the URL has a port")?.1;
        let mut command = tool(program)?;
        command.args([
            "-d",
            "-V",
            "5",
            "-h",
            "127.0.0.1",
            "-p",
            port,
            "-i",
            &self.client,
            "-q",
            "1",
            "--cafile",
        ]);
        command.arg(lab.dir.root_pem()).arg("--cert").arg(self.files.with_extension("pem"));
        command.arg("--key").arg(self.files.with_extension("key"));
        Ok(command)
    }

    fn hears(&self, lab: &Lab) -> Result<Command> {
        let mut command = self.mosquitto(lab, "mosquitto_sub")?;
        command.args(["-t", "device/v1/default/pump/#", "-W", "60"]);
        Ok(command)
    }

    fn says(&self, lab: &Lab, suffix: &str) -> Result<Command> {
        let says = Self { client: format!("{}{suffix}", self.client), files: self.files.clone() };
        let mut command = says.mosquitto(lab, "mosquitto_pub")?;
        command.args(["-t", "device/v1/default/pump/command", "-m", "x"]);
        Ok(command)
    }

    fn is_refused(&self, lab: &Lab) -> Result<bool> {
        let output = self.says(lab, "")?.output()?;
        let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        let is_refused = said.contains("CONNACK (135)") || said.contains("CONNACK (133)");
        ensure!(is_refused || said.contains("CONNACK (0)"), "{said}");
        Ok(is_refused)
    }
}

/// Makes a certificate that leads to the root.
fn forge(lab: &Lab, uri: &str, serial: &str) -> Result<PathBuf> {
    let files = lab.dir.path().join("forged");
    let [key, request, extensions, leaf] =
        ["key", "csr", "ext", "crt"].map(|name| files.with_extension(name));
    let name = "/CN=forged";
    run(tool("openssl")?
        .args(["req", "-new", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"])
        .args(["-subj", name, "-keyout"])
        .arg(&key)
        .arg("-out")
        .arg(&request))?;
    let usages = format!(
        "subjectAltName=URI:{uri}\nextendedKeyUsage=clientAuth\nkeyUsage=digitalSignature\n\
         basicConstraints=CA:false\n"
    );
    fs::write(&extensions, usages)?;
    let issuing = lab.dir.path().join("issuing");
    let mut sign = tool("openssl")?;
    sign.args(["x509", "-req", "-days", "1", "-set_serial", &format!("0x{serial}"), "-extfile"])
        .arg(&extensions);
    sign.arg("-in").arg(&request).arg("-CA").arg(issuing.with_extension("pem"));
    run(sign.arg("-CAkey").arg(issuing.with_extension("key")).arg("-out").arg(&leaf))?;
    let chain = [read(&leaf)?, read(&issuing.with_extension("pem"))?].concat();
    fs::write(files.with_extension("pem"), chain)?;
    Ok(files)
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| path.display().to_string())
}

//! What an operator does with `assay`.

use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use assay_tests::{AssayDir, Device, EkKind, assay_bin, run, tool, trusted_vendor};

use crate::lab::{Lab, watched};

#[test]
fn init_makes_secrets_for_its_owner_alone_and_never_overwrites() -> Result<()> {
    let dir = AssayDir::init()?;
    let mode = |path: &Path| -> Result<u32> { Ok(path.metadata()?.permissions().mode() & 0o777) };
    ensure!(mode(&dir.path())? == 0o700);
    for file in fs::read_dir(dir.path())? {
        let name = file?.file_name().into_string().unwrap_or_default();
        let is_secret = name.ends_with(".key") || name.starts_with("assay.db");
        ensure!(mode(&dir.path().join(&name))? == if is_secret { 0o600 } else { 0o644 }, "{name}");
    }
    let before = fs::read(dir.path().join("root.key"))?;
    let again = dir.assay(&["init"])?.arg(dir.path()).output()?;
    ensure!(
        again.status.code() == Some(1)
            && String::from_utf8_lossy(&again.stderr).contains("never overwritten")
    );
    ensure!(fs::read(dir.path().join("root.key"))? == before);
    Ok(())
}

#[test]
fn init_fills_an_empty_directory_that_is_there() -> Result<()> {
    let place = tempfile::tempdir()?;
    run(Command::new(assay_bin("assay")?).arg("init").arg(place.path()))?;
    run(Command::new(assay_bin("assay")?).arg("--dir").arg(place.path()).arg("devices"))?;
    Ok(())
}

#[test]
fn init_refuses_a_name_that_no_server_has_before_it_makes_anything() -> Result<()> {
    let place = tempfile::tempdir()?;
    let init = |name: &str| -> Result<Command> {
        let mut init = Command::new(assay_bin("assay")?);
        init.arg("init").arg(place.path()).args(["--server-name", name]);
        Ok(init)
    };
    let output = init("bad name!")?.output()?;
    ensure!(
        output.status.code() == Some(1)
            && String::from_utf8_lossy(&output.stderr).contains("is not a server name")
    );
    ensure!(fs::read_dir(place.path())?.next().is_none());
    run(init("ca.example")?.args(["--server-name", "192.0.2.7"]))?;
    Ok(())
}

#[test]
fn init_keeps_the_settings_that_are_there_and_uses_them() -> Result<()> {
    let (place, settings) = (tempfile::tempdir()?, tempfile::tempdir()?);
    let (link, file) = (place.path().join("assay.toml"), settings.path().join("assay.toml"));
    fs::write(&file, "flows = [\"sealed\"]\n[broker]\noperational = \"127.0.0.2:0\"\n")?;
    std::os::unix::fs::symlink(&file, &link)?;
    let early =
        Command::new(assay_bin("assay")?).arg("--dir").arg(place.path()).arg("serve").output()?;
    let advice =
        format!("holds no CA yet, only its settings; run `assay init {}`", place.path().display());
    ensure!(
        early.status.code() == Some(1) && String::from_utf8_lossy(&early.stderr).contains(&advice)
    );
    run(Command::new(assay_bin("assay")?).arg("init").arg(place.path()))?;
    ensure!(fs::read_link(&link)? == file && fs::read_to_string(&file)?.contains("sealed"));
    let server = place.path().join("server.pem");
    let named =
        run(tool("openssl")?.args(["x509", "-noout", "-checkip", "127.0.0.2", "-in"]).arg(server))?;
    ensure!(
        String::from_utf8_lossy(&named.stdout).contains("does match"),
        "the worker connects there"
    );
    run(Command::new(assay_bin("assay")?).arg("--dir").arg(place.path()).arg("devices"))?;
    Ok(())
}

#[test]
fn init_refuses_settings_that_are_not_valid_before_it_makes_anything() -> Result<()> {
    let place = tempfile::tempdir()?;
    fs::write(place.path().join("assay.toml"), "flows = []")?;
    let output = Command::new(assay_bin("assay")?).arg("init").arg(place.path()).output()?;
    ensure!(
        output.status.code() == Some(1)
            && String::from_utf8_lossy(&output.stderr).contains("flows")
    );
    ensure!(fs::read_dir(place.path())?.count() == 1);
    Ok(())
}

#[test]
fn a_half_made_ca_is_never_opened() -> Result<()> {
    let place = tempfile::tempdir()?;
    let assay = assay_bin("assay")?;
    let init = || -> Result<Command> {
        let mut init = Command::new(&assay);
        init.arg("init").arg(place.path());
        Ok(init)
    };
    let fails = |command: &mut Command, reason: &str| -> Result<()> {
        let output = command.output()?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.code() == Some(1) && said.contains(reason), "{command:?}: {said}");
        Ok(())
    };
    // `init` makes the database in TMPDIR, and moves it to its place last of all.
    let advice = "is half made; empty it (assay.toml may stay) and try again";
    fails(init()?.env("TMPDIR", "/nowhere"), advice)?;
    ensure!(place.path().join("issuing.key").exists() && !place.path().join("assay.db").exists());
    for command in ["serve", "devices", "crl"] {
        fails(Command::new(&assay).arg("--dir").arg(place.path()).arg(command), "half made")?;
    }
    fails(&mut init()?, "not empty")
}

#[test]
fn keys_are_tried_once_at_least_and_one_that_is_broken_is_named() -> Result<()> {
    let dir = AssayDir::init()?;
    let refused = dir.assay(&["keys", "test", "--times", "0"])?.output()?;
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    ensure!(refused.status.code() == Some(2) && said.contains("1..=65535"), "{said}");
    fs::write(dir.path().join("issuing.key"), "no key")?;
    let output = dir.assay(&["keys", "test", "--times", "1"])?.output()?;
    let table = String::from_utf8_lossy(&output.stdout).into_owned();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(!output.status.success() && said.contains("issuing: it is not PKCS #8"), "{said}");
    ensure!(said.contains("1 of these keys do not work"), "{said}");
    ensure!(table.lines().all(|line| line.len() < 80), "{table}");
    ensure!(table.matches("BROKEN").count() == 1, "{table}");
    Ok(())
}

#[test]
fn what_init_makes_belongs_to_the_owner_of_the_directory() -> Result<()> {
    let is_root = Path::new("/proc/self").metadata()?.uid() == 0;
    // A place where only root can make directories.
    let roots_own = || if is_root { tempfile::tempdir_in("/var/lib") } else { tempfile::tempdir() };
    let place = roots_own()?;
    // Root makes a CA for the user that serves. Anybody else makes it for himself.
    let (user, group) = if is_root {
        (NOBODY, NOBODY)
    } else {
        (place.path().metadata()?.uid(), place.path().metadata()?.gid())
    };
    std::os::unix::fs::chown(place.path(), Some(user), Some(group))?;
    run(Command::new(assay_bin("assay")?).arg("init").arg(place.path()))?;
    for file in fs::read_dir(place.path())? {
        let (name, metadata) = file.map(|file| (file.file_name(), file.metadata()))?;
        let metadata = metadata?;
        ensure!((metadata.uid(), metadata.gid()) == (user, group), "{name:?}");
    }
    if is_root {
        // Anybody could have put that directory there.
        let place = tempfile::tempdir_in("/tmp")?;
        std::os::unix::fs::chown(place.path(), Some(user), Some(group))?;
        let mode = place.path().metadata()?.permissions().mode();
        let output = Command::new(assay_bin("assay")?).arg("init").arg(place.path()).output()?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.code() == Some(1) && said.contains("who would own the CA"), "{said}");
        ensure!(fs::read_dir(place.path())?.next().is_none());
        ensure!(place.path().metadata()?.permissions().mode() == mode, "it is left as it was");
        // Somebody who puts a link there leads root to a directory of his own, in any place.
        let (own, link) = (roots_own()?, place.path().join("ca"));
        std::os::unix::fs::chown(own.path(), Some(user), Some(group))?;
        std::os::unix::fs::symlink(own.path(), &link)?;
        let output = Command::new(assay_bin("assay")?).arg("init").arg(&link).output()?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(
            output.status.code() == Some(1) && said.contains("give that path instead"),
            "{said}"
        );
        ensure!(fs::read_dir(own.path())?.next().is_none());
    }
    Ok(())
}

/// A key that root makes for an operator must not belong to the owner of the directory.
#[test]
fn certificates_outside_of_the_ca_belong_to_their_maker() -> Result<()> {
    let dir = AssayDir::init()?;
    let place = tempfile::tempdir()?;
    let ours = place.path().metadata()?.uid();
    if ours == 0 {
        std::os::unix::fs::chown(place.path(), Some(NOBODY), Some(NOBODY))?;
    }
    run(dir
        .assay(&["identity", "add", "alice", "--role", "operator", "--out"])?
        .arg(place.path()))?;
    let made = |file: &str| {
        ensure!(place.path().join(file).metadata()?.uid() == ours, "{file}");
        Ok(fs::read(place.path().join(file))?)
    };
    let before = [made("alice.pem")?, made("alice.key")?];
    run(dir.assay(&["identity", "renew", "alice", "--out"])?.arg(place.path()))?;
    let after = [made("alice.pem")?, made("alice.key")?];
    ensure!(before[0] != after[0] && before[1] != after[1], "a new certificate for a new key");
    let mode = place.path().join("alice.key").metadata()?.permissions().mode();
    ensure!(mode & 0o777 == 0o600, "{mode:o}");
    Ok(())
}

/// Other users may foresee the name of a list, and put a link where the file will be.
#[test]
fn list_is_written_through_no_link() -> Result<()> {
    let dir = AssayDir::init()?;
    let place = tempfile::tempdir()?;
    let victim = place.path().join("victim");
    fs::write(&victim, "precious")?;
    for name in ["crl.pem", "crl.pem.new"] {
        std::os::unix::fs::symlink(&victim, place.path().join(name))?;
    }
    let list = place.path().join("crl.pem");
    run(dir.assay(&["crl", "--pem", "--out"])?.arg(&list))?;
    ensure!(fs::read_to_string(&victim)? == "precious");
    ensure!(
        !list.is_symlink() && fs::read_to_string(&list)?.matches("BEGIN X509 CRL").count() == 2
    );
    ensure!(list.metadata()?.permissions().mode() & 0o777 == 0o644, "brokers read it");
    Ok(())
}

/// As root, `--out /dev/null` would else put a file where every program expects the device.
#[test]
fn list_is_written_to_a_pipe_that_stays_one() -> Result<()> {
    let dir = AssayDir::init()?;
    let place = tempfile::tempdir()?;
    let pipe = place.path().join("pipe");
    run(tool("mkfifo")?.arg(&pipe))?;
    let mut reader = tool("cat")?.arg(&pipe).stdout(Stdio::piped()).spawn()?;
    run(dir.assay(&["crl", "--pem", "--out"])?.arg(&pipe))?;
    let is_pipe = pipe.metadata()?.file_type().is_fifo();
    if !is_pipe {
        reader.kill()?;
    }
    let list = String::from_utf8(reader.wait_with_output()?.stdout)?;
    ensure!(is_pipe && list.matches("BEGIN X509 CRL").count() == 2, "{list}");
    Ok(())
}

/// Another process may have recorded another scope since the server started.
#[test]
fn nothing_is_granted_in_a_scope_that_is_not_on_record() -> Result<()> {
    let lab = Lab::open()?;
    let record = "import sqlite3, sys; db = sqlite3.connect(sys.argv[1]); db.execute(\"UPDATE \
                  scope SET name = 'plant-7'\"); db.commit()";
    run(tool("python3")?.args(["-c", record]).arg(lab.dir.path().join("assay.db")))?;
    let tpm = trusted_vendor()?.device(EkKind::P256, 0)?;
    for flow in ["ticket", "sealed", "shared-key"] {
        let device = Device::new(&tpm)?;
        let output = device
            .provision(&lab.dir, &lab.server)?
            .args(["--flow", flow, "--deadline", "6"])
            .output()?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.code() == Some(4) && said.contains("internal"), "{flow}: {said}");
    }
    ensure!(lab.dir.list("devices")?.is_empty() && lab.dir.list("certs")?.is_empty());
    Ok(())
}

#[test]
fn secrets_that_everybody_can_read_are_told_of_at_each_start() -> Result<()> {
    let lab = Lab::open()?;
    let dir = lab.dir.path();
    let warned = |lab: &Lab| -> Result<bool> {
        let mut serve = lab.dir.assay(&[
            "serve",
            "--bootstrap",
            "127.0.0.1:0",
            "--operational",
            "127.0.0.1:0",
        ])?;
        let mut serve = serve.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        let mut line = String::new();
        io::BufRead::read_line(
            &mut io::BufReader::new(serve.stdout.take().context("a pipe")?),
            &mut line,
        )?;
        serve.kill()?;
        let said = serve.wait_with_output()?.stderr;
        Ok(String::from_utf8_lossy(&said).contains("every user of this machine can read a secret"))
    };
    fs::set_permissions(dir.join("master.key"), fs::Permissions::from_mode(0o644))?;
    ensure!(!warned(&lab)?, "nobody else may search the directory");
    fs::set_permissions(&dir, fs::Permissions::from_mode(0o755))?;
    ensure!(warned(&lab)?);
    fs::set_permissions(dir.join("master.key"), fs::Permissions::from_mode(0o640))?;
    ensure!(!warned(&lab)?);
    Ok(())
}

#[test]
fn a_server_goes_on_when_nobody_reads_its_log_any_more() -> Result<()> {
    let dir = AssayDir::init()?;
    let vendor = trusted_vendor()?;
    dir.trust(&vendor)?;
    let mut serve =
        dir.assay(&["serve", "--bootstrap", "127.0.0.1:0", "--operational", "127.0.0.1:0"])?;
    let mut serve = serve.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let mut line = String::new();
    io::BufRead::read_line(
        &mut io::BufReader::new(serve.stdout.take().context("a pipe")?),
        &mut line,
    )?;
    let broker = line.trim().strip_prefix("bootstrap ").context("where it listens")?;
    drop(serve.stderr.take());
    let provisioned = [0, 1].map(|number| -> Result<()> {
        let tpm = vendor.device(EkKind::P256, number)?;
        run(&mut Device::new(&tpm)?.provision_at(broker, &dir.root_pem())?).map(drop)
    });
    serve.kill()?;
    serve.wait()?;
    provisioned.into_iter().collect()
}

#[test]
fn scope_cannot_change_once_there_are_devices() -> Result<()> {
    let dir = AssayDir::init()?;
    let toml = dir.path().join("assay.toml");
    let rename = |from: &str, to: &str| -> Result<()> {
        Ok(fs::write(
            &toml,
            fs::read_to_string(&toml)?
                .replace(&format!("scope = \"{from}\""), &format!("scope = \"{to}\"")),
        )?)
    };
    drop(assay_tests::AssayServer::start(&dir)?);
    rename("default", "plant-7")?;
    let vendor = trusted_vendor()?;
    dir.trust(&vendor)?;
    let server = assay_tests::AssayServer::start(&dir)?;
    let tpm = vendor.device(EkKind::P256, 0)?;
    run(Device::new(&tpm)?.provision(&dir, &server)?.args(["--scope", "plant-7"]))?;
    drop(server);
    rename("plant-7", "default")?;
    for command in [&["serve"][..], &["worker", "--broker", "mqtts://127.0.0.1:1"]] {
        let output = dir.assay(command)?.output()?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(
            output.status.code() == Some(1) && said.contains("put scope = \"plant-7\" back"),
            "{command:?}: {said}"
        );
    }
    Ok(())
}

#[test]
fn init_makes_a_chain_that_openssl_accepts() -> Result<()> {
    let dir = AssayDir::init()?;
    for (holder, purpose) in
        [("server", "sslserver"), ("worker", "sslclient"), ("operator", "sslclient")]
    {
        let chain = dir.path().join(format!("{holder}.pem"));
        let mut verify = tool("openssl")?;
        verify.args(["verify", "-x509_strict", "-purpose", purpose, "-CAfile"]).arg(dir.root_pem());
        run(verify.arg("-untrusted").arg(&chain).arg(&chain))?;
    }
    Ok(())
}

#[test]
fn an_ek_is_recognised_in_every_form_and_is_the_same_ek_in_all() -> Result<()> {
    let tpm = trusted_vendor()?.device(EkKind::Rsa2048, 0)?;
    let file = |name: &str| tpm.work_dir().join(name);
    fs::write(file("certificate.der"), tpm.ek_certificate(EkKind::Rsa2048)?)?;
    fs::write(file("public.pem"), tpm.ek_public_pem(EkKind::Rsa2048)?)?;
    run(tool("openssl")?
        .args(["x509", "-inform", "DER", "-in"])
        .arg(file("certificate.der"))
        .arg("-out")
        .arg(file("certificate.pem")))?;
    run(tool("openssl")?
        .args(["pkey", "-pubin", "-outform", "DER", "-in"])
        .arg(file("public.pem"))
        .arg("-out")
        .arg(file("public.der")))?;
    tpm.tpm2(&["createek", "-G", "rsa", "-c", "ek.ctx", "-u", "ek.tpm2b"])?;
    fs::write(file("ek.tpmt"), &fs::read(file("ek.tpm2b"))?[2..])?;

    let mut eks = Vec::new();
    for (name, form) in [
        ("certificate.pem", "EK certificate in PEM"),
        ("certificate.der", "EK certificate in DER"),
        ("public.pem", "EK public key in PEM"),
        ("public.der", "EK public key in DER"),
        ("ek.tpm2b", "TPM2B_PUBLIC"),
        ("ek.tpmt", "TPMT_PUBLIC"),
    ] {
        let dir = AssayDir::init()?;
        let added = run(dir.assay(&["enroll", "add"])?.arg(file(name)))?;
        let said = String::from_utf8(added.stderr)?;
        ensure!(said.contains(form), "{name}: {said}");
        eks.push(String::from_utf8(added.stdout)?);
    }
    ensure!(eks.iter().all(|ek| *ek == eks[0]), "{eks:?}");
    let digest = run(tool("openssl")?.args(["dgst", "-sha256", "-r"]).arg(file("public.der")))?;
    ensure!(
        String::from_utf8(digest.stdout)?.starts_with(eks[0].trim()),
        "the EK id is what openssl computes"
    );
    Ok(())
}

#[test]
fn what_is_no_ek_and_no_vendor_is_refused_with_a_reason() -> Result<()> {
    let dir = AssayDir::init()?;
    let refused = |arguments: &[&str], file: &Path, reason: &str| -> Result<()> {
        let output = dir.assay(arguments)?.arg(file).output()?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(
            output.status.code() == Some(1) && said.contains(reason),
            "{arguments:?} {}: {said}",
            file.display()
        );
        Ok(())
    };
    refused(&["enroll", "add"], &dir.path().join("ticket.key"), "holds no EK")?;
    refused(&["enroll", "add"], &dir.path().join("nowhere"), "cannot read")?;
    refused(
        &["trust", "add"],
        &dir.path().join("root.key"),
        "without a certificate or a public key",
    )?;
    refused(&["trust", "add"], &dir.path().join("worker.pem"), "not a CA")?;
    refused(&["enroll", "add"], &trusted_vendor()?.root_pem(), "of a CA")?;
    refused(&["trust", "remove"], Path::new(":"), "at least 8 digits")?;
    refused(&["enroll", "disable"], Path::new("pump-17"), "enroll list")?;
    Ok(())
}

#[test]
fn what_a_device_says_cannot_steer_the_operators_terminal() -> Result<()> {
    let lab = Lab::open()?;
    let tpm = trusted_vendor()?.device(EkKind::P256, 0)?;
    let device = Device::new(&tpm)?;
    lab.provision(&device, &[])?;
    let said = watched(&lab, 1, || {
        let message = "\u{1b}[2J\u{202e}{\"t\": 21.5}";
        run(&mut device.publish(&lab.dir, &lab.server, "telemetry", message)?).map(drop)
    })?;
    let payload = said.trim_end().split_once(' ').context("topic and payload")?.1;
    ensure!(payload == "\\u{1b}[2J\\u{202e}{\"t\": 21.5}", "{payload:?}");
    Ok(())
}

#[test]
fn longest_message_of_a_device_is_heard_whole() -> Result<()> {
    let lab = Lab::open()?;
    let tpm = trusted_vendor()?.device(EkKind::P256, 0)?;
    let device = Device::new(&tpm)?;
    lab.provision(&device, &[])?;
    let message = "x".repeat(65_000);
    let said = watched(&lab, 1, || {
        run(&mut device.publish(&lab.dir, &lab.server, "telemetry", &message)?).map(drop)
    })?;
    ensure!(said.trim_end().ends_with(&message), "{} bytes", said.len());
    Ok(())
}

/// `assay devices | head` stops reading when `head` has enough lines.
#[test]
fn output_that_nobody_reads_any_more_ends_a_command_without_a_word() -> Result<()> {
    let dir = AssayDir::init()?;
    for arguments in [
        &["devices"][..],
        &["identity", "list", "--json"],
        &["trust", "list"],
        &["crl"],
        &["health"],
    ] {
        let (reader, writer) = io::pipe()?;
        drop(reader);
        let output = dir
            .assay(arguments)?
            .stdout(writer)
            .stderr(Stdio::piped())
            .spawn()?
            .wait_with_output()?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(arguments[0] == "health" || said.is_empty(), "{arguments:?}: {said}");
        ensure!(!said.contains("panicked"), "{arguments:?}: {said}");
        ensure!(
            arguments[0] == "health" || output.status.code() == Some(141),
            "{arguments:?}: {}",
            output.status
        );
    }
    Ok(())
}

/// Debian's user `nobody` and group `nogroup`.
const NOBODY: u32 = 65534;

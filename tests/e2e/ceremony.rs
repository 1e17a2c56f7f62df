//! A root on a machine of its own: it is made, certifies what other machines ask for, and is split.

use std::env;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use assay_tests::{
    AssayDir, AssayServer, Device, EkKind, SoftHsm, assay_bin, run, tool, trusted_vendor,
};
use tempfile::TempDir;

use crate::fake_clock::FakeClock;
use crate::lab::Lab;

const PASSPHRASE: &str = "correct horse battery staple";

/// A machine without a network: the directory of what is on it.
struct Offline(TempDir);

impl Offline {
    fn new() -> Result<Self> {
        let place = tempfile::tempdir()?;
        fs::write(place.path().join("passphrase"), PASSPHRASE)?;
        Ok(Self(place))
    }

    /// With a root that a passphrase opens.
    fn with_root() -> Result<Self> {
        let this = Self::new()?;
        this.assay(&["root", "init", "root", "--passphrase-file", "passphrase", "--by", "Ada"])?;
        Ok(this)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn command(&self, arguments: &[&str]) -> Result<Command> {
        let mut assay = Command::new(assay_bin("assay")?);
        assay.args(arguments).current_dir(self.0.path()).stdin(Stdio::null());
        Ok(assay)
    }

    /// What a command says that succeeds.
    fn assay(&self, arguments: &[&str]) -> Result<String> {
        let Output { stdout, stderr, .. } = run(&mut self.command(arguments)?)?;
        Ok(String::from_utf8([stdout, stderr].concat())?)
    }

    /// What a command says that fails.
    fn fails(&self, arguments: &[&str]) -> Result<String> {
        let output = self.command(arguments)?.output()?;
        let said = String::from_utf8(output.stderr)?;
        ensure!(!output.status.success(), "{arguments:?}: {said}");
        Ok(said)
    }

    /// Signs with the passphrase, without being asked.
    fn sign(&self, root: &str, request: &str, out: &str) -> Vec<String> {
        let fixed = ["--passphrase-file", "passphrase", "--by", "Ada", "--yes"];
        let words = ["--dir", root, "root", "sign", request, "--out", out];
        words.iter().chain(&fixed).map(|it| (*it).to_owned()).collect()
    }

    /// A file's transcripts, in the order of their times.
    fn transcripts(&self, root: &str) -> Result<Vec<String>> {
        let mut files = Vec::new();
        for entry in fs::read_dir(self.path(root))? {
            let entry = entry?;
            if entry.file_name().to_string_lossy().starts_with("transcript-") {
                files.push(entry.path());
            }
        }
        files.sort();
        files.iter().map(|it| Ok(fs::read_to_string(it)?)).collect()
    }
}

fn words(all: &[String]) -> Vec<&str> {
    all.iter().map(String::as_str).collect()
}

/// Gives the commands a terminal, at which somebody types these lines.
fn at_a_terminal(place: &Path, commands: &str, typed: &str) -> Result<String> {
    let programs = assay_bin("assay")?.parent().context("a directory")?.to_owned();
    let path = env::var_os("PATH").unwrap_or_default();
    let path = env::join_paths([programs].into_iter().chain(env::split_paths(&path)))?;
    let mut script = tool("script")?;
    script.args(["--quiet", "--return", "--command", &format!("set -e\n{commands}"), "/dev/null"]);
    script.env("PATH", path).env("SHELL", "/bin/sh").current_dir(place);
    let mut script = script.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    script.stdin.take().context("its input")?.write_all(typed.as_bytes())?;
    let output = script.wait_with_output()?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(output.status.success(), "{commands}\n{said}");
    Ok(said)
}

/// As the page says, on the two machines that its blocks name, with a directory for the stick.
#[test]
fn commands_of_the_page_on_ceremonies_make_a_ca_that_serves() -> Result<()> {
    let page = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/ceremony.md"))?;
    let offline = tempfile::tempdir()?;
    let (mut said, mut blocks) = (String::new(), 0);
    let dir = AssayDir::made(|online| {
        let stick = offline.path().join("stick");
        fs::create_dir(&stick)?;
        for block in page.split("```sh ").skip(1) {
            let (machine, commands) = block.split_once('\n').context("a block")?;
            let (commands, _) = commands.split_once("```").context("the end of a block")?;
            let place = match machine {
                "offline" => offline.path(),
                "ca" => online,
                other => bail!("no machine {other}"),
            };
            let commands = commands.replace("/media/stick", stick.to_str().context("a path")?);
            said += &at_a_terminal(place, &commands, "yes\n")?;
            blocks += 1;
        }
        Ok(fs::rename(online.join("ca"), online.join("assay"))?)
    })?;
    ensure!(blocks == 10, "{blocks} blocks");
    let roots = fs::read_dir(dir.path())?.map(|it| Ok(it?.file_name().into_string()));
    let roots = roots.collect::<Result<Vec<_>>>()?.into_iter().flatten();
    ensure!(roots.filter(|it| it.starts_with("root-") && it.ends_with(".cross.pem")).count() == 1);
    // What the page says is to be compared is there to be compared.
    let first = run(tool("openssl")?
        .args(["x509", "-outform", "der", "-in"])
        .arg(offline.path().join("root/root.pem")))?;
    let fingerprint = hex_sha256(&first.stdout)?;
    ensure!(said.matches(&fingerprint).count() >= 1, "{fingerprint} in {said}");
    let offline = Offline(offline);
    let transcripts = [offline.transcripts("root")?, offline.transcripts("next")?].concat();
    ensure!(transcripts.len() == 5, "{transcripts:?}");
    for transcript in &transcripts {
        let names = ["Ada Lovelace", "Grace Hopper"];
        ensure!(names.iter().all(|name| transcript.contains(name)), "{transcript}");
        ensure!(transcript.contains(&fingerprint), "{transcript}");
        ensure!(transcript.matches("signature ____").count() == 2, "{transcript}");
        let program = hex_sha256(&fs::read(assay_bin("assay")?)?)?;
        ensure!(transcript.contains(&program), "{transcript}");
    }
    ensure!(!dir.path().join("root.key").exists());

    dir.trust(&trusted_vendor()?)?;
    let lab = Lab { server: AssayServer::start(&dir)?, dir };
    let tpm = trusted_vendor()?.device(EkKind::P256, 0)?;
    let device = Device::new(&tpm)?;
    lab.provision(&device, &[])?;
    lab.openssl_verifies(&device.state().join("certificate.pem"))?;
    run(&mut device.publish(&lab.dir, &lab.server, "telemetry", "21.5")?)?;
    Ok(())
}

fn hex_sha256(bytes: &[u8]) -> Result<String> {
    let place = tempfile::NamedTempFile::new()?;
    fs::write(place.path(), bytes)?;
    let said = String::from_utf8(run(tool("sha256sum")?.arg(place.path()))?.stdout)?;
    Ok(said.split_whitespace().next().context("a digest")?.to_owned())
}

#[test]
fn root_key_with_a_passphrase_is_opened_by_it_alone_also_by_age() -> Result<()> {
    let offline = Offline::with_root()?;
    let ca = offline.path("ca");
    offline.assay(&["init", "ca", "--root", "root/root.pem"])?;
    fs::write(offline.path("wrong"), "correct horse battery stapler")?;
    let mut sign = offline.sign("root", "ca/init.csr", "certificates.pem");
    sign[8] = "wrong".into();
    let said = offline.fails(&words(&sign))?;
    ensure!(said.contains("the passphrase is not that of this file"), "{said}");
    fs::write(offline.path("wrong"), "short")?;
    ensure!(offline.fails(&words(&sign))?.contains("12 characters"));
    let without = &words(&sign)[..7];
    let without = [without, &["--by", "Ada", "--yes"]].concat();
    ensure!(offline.fails(&without)?.contains("--passphrase-file"));
    ensure!(!offline.path("certificates.pem").exists() && offline.transcripts("root")?.len() == 1);

    let opened = "age -d root/root.key.age > opened && openssl pkey -in opened -noout";
    at_a_terminal(offline.0.path(), opened, &format!("{PASSPHRASE}\n"))?;
    // Whoever sits at the terminal is asked for all that is not said.
    let sign = "assay --dir root root sign ca/init.csr --out certificates.pem";
    let said = at_a_terminal(offline.0.path(), sign, &format!("yes\nAda\n\n{PASSPHRASE}\n"))?;
    ensure!(said.contains("Who is present?") && said.contains("Sign it?"), "{said}");
    // The terminal shows what is typed before anybody asks for it.
    ensure!(said.matches(PASSPHRASE).count() <= 1, "{said}");
    offline.assay(&["init", "ca", "--certificates", "certificates.pem"])?;
    ensure!(ca.join("assay.db").exists() && !ca.join("init.csr").exists());
    Ok(())
}

#[test]
fn pkcs11_root_in_a_token_certifies_the_cas_of_another_machine() -> Result<()> {
    let (offline, hsm) = (Offline::new()?, SoftHsm::new(&["root"])?);
    let uri = hsm.uri("root", None);
    for kind in ["p256", "rsa2048"] {
        let assay = |words: &[&str]| -> Result<()> {
            let mut command = offline.command(words)?;
            run(command.envs(hsm.environment())).map(drop)
        };
        assay(&["root", "init", kind, "--key", &uri, "--key-type", kind, "--by", "Ada"])?;
        let kept = fs::read_to_string(offline.path(kind).join("root.pkcs11"))?;
        ensure!(kept.contains("object=assay-root-") && !kept.contains(SoftHsm::PIN), "{kept}");
        let (ca, root) = (format!("ca-{kind}"), format!("{kind}/root.pem"));
        assay(&["init", &ca, "--root", &root])?;
        let (request, out) = (format!("{ca}/init.csr"), format!("{kind}.pem"));
        assay(&["--dir", kind, "root", "sign", &request, "--out", &out, "--by", "Ada", "--yes"])?;
        assay(&["init", &ca, "--certificates", &out])?;
        let mut verify = tool("openssl")?;
        verify.args(["verify", "-x509_strict", "-CAfile", "ca/root.pem", "ca/issuing.pem"]);
        verify.args(["ca/service.pem"]).current_dir(offline.0.path());
        fs::rename(offline.path(&ca), offline.path("ca"))?;
        run(&mut verify)?;
        fs::rename(offline.path("ca"), offline.path(&ca))?;
    }
    Ok(())
}

/// Its key has been on a machine with a network, but it is good from now on.
#[test]
fn root_of_a_ca_signs_requests_and_its_key_can_be_split() -> Result<()> {
    let dir = AssayDir::init()?;
    let offline = Offline::new()?;
    let (ca, csr) = (dir.path().display().to_string(), offline.path("issuing.csr"));
    run(&mut dir.assay(&["issuing", "csr", "--out", csr.to_str().context("a path")?])?)?;
    offline.assay(&words(&offline.sign(&ca, "issuing.csr", "issuing.pem")))?;
    let shares = ["--threshold", "2", "--shares", "3", "--shares-to", "shares", "--by", "Ada"];
    offline.assay(&[&["--dir", &ca, "root", "split"][..], &shares].concat())?;
    ensure!(!dir.path().join("root.key").exists() && dir.path().join("root.key.age").exists());
    let listed = run(&mut dir.assay(&["root", "list"])?)?.stdout;
    let listed = String::from_utf8(listed)?;
    ensure!(listed.contains("here") && !listed.contains("elsewhere"), "{listed}");
    let sign = |shares: &[&str]| {
        let fixed = ["--dir", &ca, "root", "sign", "issuing.csr", "--by", "Ada", "--yes"];
        let shares = shares.iter().flat_map(|it| ["--share", it]);
        fixed.into_iter().chain(shares).map(str::to_owned).collect::<Vec<_>>()
    };
    offline.assay(&words(&sign(&["shares/share-3.txt", "shares/share-1.txt"])))?;
    for (shares, reason) in [
        (&["shares/share-3.txt"][..], "it needs 2 shares, and here are 1"),
        (&["shares/share-3.txt", "shares/share-3.txt"], "the same share was given twice"),
        (&[], "--share"),
        (&["passphrase"], "no line that begins with ASSAY-SHARE-1"),
    ] {
        let said = offline.fails(&words(&sign(shares)))?;
        ensure!(said.contains(reason), "{reason}: {said}");
    }
    // Whoever splits it again takes away what the old shares were worth.
    let again = ["--threshold", "2", "--shares", "2", "--shares-to", "again", "--by", "Ada"];
    let old = ["--share", "shares/share-1.txt", "--share", "shares/share-2.txt"];
    offline.assay(&[&["--dir", &ca, "root", "split"][..], &again, &old].concat())?;
    let said = offline.fails(&words(&sign(&["shares/share-1.txt", "shares/share-2.txt"])))?;
    ensure!(said.contains("shares of another key"), "{said}");
    let said = offline.fails(&words(&sign(&["again/share-1.txt", "shares/share-2.txt"])))?;
    ensure!(said.contains("more than one key"), "{said}");
    offline.assay(&words(&sign(&["again/share-1.txt", "again/share-2.txt"])))?;

    // A backup has the key, as it is kept.
    run(&mut dir.assay(&[
        "issuing",
        "install",
        offline.path("issuing.pem").to_str().context("")?,
    ])?)?;
    let backup = offline.path("backup");
    run(dir.assay(&["backup"])?.arg(&backup))?;
    let restored = AssayDir::restore(&backup, &[])?;
    ensure!(restored.path().join("root.key.age").exists());
    Ok(())
}

#[test]
fn service_ca_is_replaced_under_a_root_on_another_machine() -> Result<()> {
    let lab = Lab::open()?;
    let offline = Offline::new()?;
    let ca = lab.dir.path();
    fs::rename(ca.join("root.key"), offline.path("root.key"))?;
    let file =
        |name: &str| Ok::<_, anyhow::Error>(offline.path(name).to_str().context("")?.to_owned());
    let tpm = trusted_vendor()?.device(EkKind::P256, 0)?;
    let device = Device::new(&tpm)?;
    lab.provision(&device, &[])?;
    let fails = |words: &[&str], reason: &str| -> Result<()> {
        let output = lab.dir.assay(words)?.output()?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(!output.status.success() && said.contains(reason), "{reason}: {said}");
        Ok(())
    };

    fails(&["service", "install", &file("root.key")?], "no key waits")?;
    lab.assay(&["service", "csr", "--out", &file("service.csr")?])?;
    let again = lab.assay(&["service", "csr"])?.stdout;
    ensure!(again == fs::read(offline.path("service.csr"))?, "it is the same request");
    lab.reload().context("a key that waits changes nothing")?;
    let sign = |request: &str, out: &str| -> Result<()> {
        let ca = ca.to_str().context("a path")?;
        let words = ["--dir", ca, "root", "sign", request, "--out", out, "--root-key", "root.key"];
        offline.assay(&[&words[..], &["--by", "Ada", "--yes"]].concat()).map(drop)
    };
    // An issuing CA for the same key, and a service CA for another one.
    sign("service.csr", "service.pem")?;
    lab.assay(&["issuing", "csr", "--out", &file("issuing.csr")?])?;
    sign("issuing.csr", "issuing.pem")?;
    fails(&["service", "install", &file("issuing.pem")?], "is for the key that waits")?;
    fails(&["issuing", "install", &file("service.pem")?], "none of the keys that wait")?;
    let waiting = fs::read(ca.join("service-next.key"))?;
    lab.assay(&["service", "install", &file("service.pem")?])?;
    ensure!(!ca.join("service-next.key").exists() && !ca.join("service-next.csr").exists());
    fails(&["service", "csr"], "there are 2 service CAs")?;

    // It was cut short before it had removed the key that waited.
    fs::write(ca.join("service-next.key"), &waiting)?;
    lab.assay(&["service", "install", &file("service.pem")?])?;
    ensure!(!ca.join("service-next.key").exists());
    ensure!(!ca.join("service-next.csr").exists());
    // To the second, what is certified afterwards is certified later.
    thread::sleep(Duration::from_millis(1100));
    for name in ["server", "worker", "operator"] {
        lab.assay(&["identity", "renew", name])?;
    }
    lab.reload()?;
    let mut issuer = tool("openssl")?;
    issuer.args(["x509", "-noout", "-issuer", "-in"]).arg(ca.join("server.pem"));
    let issuer = String::from_utf8(run(&mut issuer)?.stdout)?;
    ensure!(issuer.contains("Service CA 20"), "{issuer}");
    run(&mut device.publish(&lab.dir, &lab.server, "telemetry", "21.5")?)?;

    // The old one goes, and no key is certified twice, whatever a command left.
    for name in ["server", "worker", "operator"] {
        lab.assay(&["identity", "revoke", "--old", name])?;
    }
    lab.assay(&["service", "retire"])?;
    fs::write(ca.join("service-next.key"), &waiting)?;
    lab.assay(&["service", "csr"])?;
    ensure!(fs::read(ca.join("service-next.key"))? != waiting, "a key of its own");
    Ok(())
}

/// A request with these extensions, of a new key of this kind and under this name.
fn request(place: &Path, kind: &[&str], name: &str, extensions: &[&str]) -> Result<()> {
    let mut make = tool("openssl")?;
    make.args(["req", "-new", "-nodes", "-keyout", "x.key", "-out", "x.csr", "-subj", name]);
    make.args(extensions.iter().flat_map(|it| ["-addext", it])).args(kind);
    run(make.current_dir(place)).map(drop)
}

#[test]
fn root_certifies_nothing_but_the_two_kinds_of_ca() -> Result<()> {
    let offline = Offline::with_root()?;
    let ca = "basicConstraints=critical,CA:TRUE,pathlen:0";
    let usage = "keyUsage=critical,keyCertSign,cRLSign";
    let clients = "extendedKeyUsage=clientAuth";
    let p256 = &["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"][..];
    let sign = offline.sign("root", "x.csr", "x.pem");
    for (kind, name, extensions, reason) in [
        (p256, "/CN=x", &[][..], "what an issuing CA or a service CA is"),
        (p256, "/CN=x", &[ca, usage], "what an issuing CA"),
        (p256, "/CN=x", &[ca, clients], "what an issuing CA"),
        (p256, "/CN=x", &[usage, clients], "what an issuing CA"),
        (p256, "/CN=x", &["basicConstraints=CA:TRUE", usage, clients], "what an issuing CA"),
        (p256, "/CN=x", &["basicConstraints=CA:TRUE,pathlen:1", usage, clients], "what an issuing"),
        (p256, "/CN=x", &["basicConstraints=CA:FALSE", usage, clients], "what an issuing CA"),
        (p256, "/CN=x", &[ca, "keyUsage=keyCertSign", clients], "what an issuing CA"),
        (p256, "/CN=x", &[ca, usage, "extendedKeyUsage=serverAuth"], "what an issuing CA"),
        (p256, "/CN=x", &[ca, usage, "extendedKeyUsage=clientAuth,codeSigning"], "what an issuing"),
        (p256, "/CN=x", &[ca, usage, "extendedKeyUsage=clientAuth,1.2.3"], "what an issuing CA"),
        (p256, "/CN=x", &[ca, usage, clients, "subjectAltName=DNS:x"], "what an issuing CA"),
        (p256, "/O=x/CN=x", &[ca, usage, clients], "a common name alone"),
        (p256, "/O=x", &[ca, usage, clients], "a common name alone"),
        (p256, "/CN=x\u{1b}[2J", &[ca, usage, clients], "printable"),
        (&["-newkey", "rsa:1024"], "/CN=x", &[ca, usage, clients], "1024 bits, fewer than 2048"),
        (&["-newkey", "ed25519"], "/CN=x", &[ca, usage, clients], "its key cannot be certified"),
    ] {
        request(offline.0.path(), kind, name, extensions)?;
        let said = offline.fails(&words(&sign))?;
        ensure!(said.contains(reason), "{name} {extensions:?}: {said}");
    }
    // Altered on the way: the last byte of the signature.
    request(offline.0.path(), p256, "/CN=x", &[ca, usage, clients])?;
    let mut convert = tool("openssl")?;
    convert.args(["req", "-in", "x.csr", "-outform", "der", "-out", "x.der"]);
    run(convert.current_dir(offline.0.path()))?;
    let mut der = fs::read(offline.path("x.der"))?;
    *der.last_mut().context("a byte")? ^= 1;
    fs::write(offline.path("x.der"), der)?;
    let mut convert = tool("openssl")?;
    convert.args(["req", "-inform", "der", "-in", "x.der", "-out", "altered.csr"]);
    run(convert.current_dir(offline.0.path()))?;
    let said = offline.fails(&words(&offline.sign("root", "altered.csr", "x.pem")))?;
    ensure!(said.contains("its key did not sign it"), "{said}");
    // Something else, too much, and nobody there.
    let said = offline.fails(&words(&offline.sign("root", "root/root.pem", "x.pem")))?;
    ensure!(said.contains("something else than one or two requests"), "{said}");
    let all = fs::read_to_string(offline.path("x.csr"))?.repeat(3);
    fs::write(offline.path("three.csr"), all)?;
    let said = offline.fails(&words(&offline.sign("root", "three.csr", "x.pem")))?;
    ensure!(said.contains("something else than one or two requests"), "{said}");
    let (unasked, unsaid) = (&sign[..sign.len() - 1], [&sign[..9], &sign[11..]].concat());
    ensure!(offline.fails(&words(unasked))?.contains("say --yes"));
    ensure!(offline.fails(&words(&unsaid))?.contains("--by NAME"));
    ensure!(!offline.path("x.pem").exists() && offline.transcripts("root")?.len() == 1);

    // When the root has ended.
    let clock = FakeClock::new()?;
    clock.set(21 * 365 * 86_400)?;
    let output = clock.give_to(offline.command(&words(&sign))?).output()?;
    let said = String::from_utf8(output.stderr)?;
    ensure!(!output.status.success() && said.contains("the root is not valid now"), "{said}");
    ensure!(!offline.path("x.pem").exists());

    offline.assay(&words(&sign))?;
    let text =
        run(tool("openssl")?.args(["x509", "-noout", "-text", "-in"]).arg(offline.path("x.pem")))?;
    let text = String::from_utf8(text.stdout)?;
    for part in
        ["CN = x\n", "CA:TRUE, pathlen:0", "TLS Web Client Auth", "IP:0.0.0.0/255.255.255.255"]
    {
        ensure!(text.contains(part), "{part}: {text}");
    }
    Ok(())
}

#[test]
fn a_ca_under_a_root_elsewhere_is_opened_by_nobody_before_it_has_its_certificates() -> Result<()> {
    let offline = Offline::with_root()?;
    offline.assay(&["init", "ca", "--root", "root/root.pem"])?;
    let said = offline.fails(&["--dir", "ca", "serve"])?;
    ensure!(said.contains("waits for the certificates of its requests, init.csr"), "{said}");
    let finish = |file: &str| ["init", "ca", "--certificates", file].map(str::to_owned);
    // Nothing, one of the two, and those of another root for the same requests.
    let said = offline.fails(&words(&finish("root/root.pem")))?;
    ensure!(said.contains("no certificate is for the key of the issuing CA"), "{said}");
    offline.assay(&words(&offline.sign("root", "ca/init.csr", "certificates.pem")))?;
    let all = fs::read_to_string(offline.path("certificates.pem"))?;
    let end = "-----END CERTIFICATE-----\n";
    let (first, _) = all.split_once(end).context("two certificates")?;
    fs::write(offline.path("one.pem"), format!("{first}{end}"))?;
    let said = offline.fails(&words(&finish("one.pem")))?;
    ensure!(said.contains("for the key of the service CA"), "{said}");
    let other = ["root", "init", "other", "--passphrase-file", "passphrase", "--by", "Ada"];
    offline.assay(&other)?;
    offline.assay(&words(&offline.sign("other", "ca/init.csr", "other.pem")))?;
    let said = offline.fails(&words(&finish("other.pem")))?;
    ensure!(said.contains("the root did not sign"), "{said}");
    // Of each root one.
    let others = fs::read_to_string(offline.path("other.pem"))?;
    let (other, _) = others.split_once(end).context("two certificates")?;
    let (_, second) = all.split_once(end).context("two certificates")?;
    fs::write(offline.path("mixed.pem"), format!("{other}{end}{second}"))?;
    let said = offline.fails(&words(&finish("mixed.pem")))?;
    ensure!(said.contains("the root did not sign"), "{said}");
    let (_, other) = others.split_once(end).context("two certificates")?;
    fs::write(offline.path("mixed.pem"), format!("{first}{end}{other}"))?;
    let said = offline.fails(&words(&finish("mixed.pem")))?;
    ensure!(said.contains("the root did not sign"), "{said}");
    ensure!(!offline.path("ca/assay.db").exists() && !offline.path("ca/server.pem").exists());

    // What an attempt left that was cut short does not stop the next one.
    for name in ["issuing.pem", "server.key", "ticket.key", "assay.db.new"] {
        fs::write(offline.path("ca").join(name), "half")?;
    }
    offline.assay(&words(&finish("certificates.pem")))?;
    run(&mut offline.command(&["--dir", "ca", "keys", "test", "--times", "1"])?)?;
    let said = offline.fails(&words(&finish("certificates.pem")))?;
    ensure!(said.contains("no CA waits for certificates"), "{said}");
    // It was cut short when all but the last step was done.
    fs::write(offline.path("ca/init.csr"), "")?;
    let ticket = fs::read(offline.path("ca/ticket.key"))?;
    offline.assay(&words(&finish("certificates.pem")))?;
    ensure!(fs::read(offline.path("ca/ticket.key"))? == ticket, "it is the same CA");

    // What is no root, and what is no place for one.
    let said = offline.fails(&["init", "x", "--root", "ca/issuing.pem"])?;
    ensure!(said.contains("no root to begin a CA with"), "{said}");
    ensure!(!offline.path("x").exists());
    let again = ["root", "init", "root", "--passphrase-file", "passphrase", "--by", "Ada"];
    ensure!(offline.fails(&again)?.contains("is not empty"));
    ensure!(
        offline.fails(&["root", "init", "y", "--passphrase-file", "passphrase"])?.contains("--by")
    );
    ensure!(!offline.path("y").exists());
    Ok(())
}

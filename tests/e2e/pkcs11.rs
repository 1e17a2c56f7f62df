//! The issuing key in a PKCS #11 token: devices get certificates of it, and whatever becomes of the
//! token, nobody waits for it but who needs a signature.

use std::ffi::OsStr;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::process::Stdio;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use assay_tests::{
    AccessBroker, AssayDir, AssayServer, Device, EkKind, SoftHsm, Swtpm, run, signal, tool,
    trusted_vendor,
};
use assay_wire::{Problem, ProblemCode, Proof, ReplyBody, RequestBody};
use serde_json::Value;
use tempfile::TempDir;

use crate::issuing::{EXTENSIONS, Elsewhere};
use crate::lab::Lab;
use crate::raw_client::RawClient;
use crate::reload::wait_for;
use crate::tools_device::ToolsDevice;

/// A served CA whose issuing key is in a token.
struct TokenLab {
    lab: Lab,
    hsm: SoftHsm,
}

impl TokenLab {
    /// With a key that the token makes.
    fn open() -> Result<Self> {
        let hsm = SoftHsm::new(&["assay"])?;
        let dir =
            AssayDir::init_with(&["--issuing-key", &hsm.uri("assay", None)], &hsm.environment())?;
        Self::serve(dir, hsm)
    }

    fn serve(dir: AssayDir, hsm: SoftHsm) -> Result<Self> {
        dir.trust(&trusted_vendor()?)?;
        let server = AssayServer::start_with(&dir, &hsm.environment())?;
        Ok(Self { lab: Lab { server, dir }, hsm })
    }

    /// The same key in two tokens, the first of which comes first.
    fn with_two_tokens() -> Result<Self> {
        let hsm = SoftHsm::new(&["one", "two"])?;
        let key = hsm.tokens().join("../key.pem");
        let mut make = tool("openssl")?;
        make.args(["genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256", "-out"]);
        run(make.arg(&key))?;
        for token in ["one", "two"] {
            hsm.import(token, "issuing", &key)?;
        }
        let [one, two] = ["one", "two"].map(|token| hsm.uri(token, Some("issuing")));
        let dir = AssayDir::init_with(&["--issuing-key", &one], &hsm.environment())?;
        fs::write(dir.path().join("issuing.pkcs11"), format!("{one}\n{two}\n"))?;
        Self::serve(dir, hsm)
    }

    /// `assay`, which must succeed. Returns what it wrote to standard output.
    fn assay(&self, arguments: &[&str]) -> Result<String> {
        let mut command = self.lab.dir.assay(arguments)?;
        Ok(String::from_utf8(run(command.envs(self.hsm.environment()))?.stdout)?)
    }

    /// `assay`, which must fail. Returns what it wrote to standard error.
    fn fails(&self, arguments: &[&str]) -> Result<String> {
        let mut command = self.lab.dir.assay(arguments)?;
        let output = command.envs(self.hsm.environment()).stdin(Stdio::null()).output()?;
        ensure!(!output.status.success(), "{arguments:?}");
        Ok(String::from_utf8(output.stderr)?)
    }

    /// Has the CA use the token through `pkcs11_shim.c`, with this definition.
    fn through_shim(&self, definition: &str) -> Result<TempDir> {
        let place = tempfile::tempdir()?;
        let module = place.path().join("shim.so");
        let source = concat!(env!("CARGO_MANIFEST_DIR"), "/e2e/pkcs11_shim.c");
        let softhsm = format!("-DSOFTHSM=\"{}\"", SoftHsm::MODULE);
        let mut compile = tool("cc")?;
        compile.args(["-shared", "-fPIC", &softhsm, &format!("-D{definition}"), "-o"]);
        run(compile.arg(&module).args([source, "-ldl", "-lpthread"]))?;
        let file = self.lab.dir.path().join("issuing.pkcs11");
        let module = module.to_str().context("a path")?;
        fs::write(&file, fs::read_to_string(&file)?.replace(SoftHsm::MODULE, module))?;
        Ok(place)
    }

    /// What `assay` writes, whether it fails or not.
    fn assay_output(&self, arguments: &[&str]) -> Result<String> {
        let output = self.lab.dir.assay(arguments)?.envs(self.hsm.environment()).output()?;
        Ok(String::from_utf8([output.stdout, output.stderr].concat())?)
    }

    /// The processes of the server with the library.
    fn processes(&self) -> Result<Vec<u32>> {
        let server = self.lab.server.pid().context("the server runs")?;
        let mut found = Vec::new();
        for process in fs::read_dir("/proc")? {
            let process = process?.path();
            let read = |file: &str| fs::read_to_string(process.join(file)).unwrap_or_default();
            let is_its = read("status").lines().any(|line| line == format!("PPid:\t{server}"));
            if is_its && read("cmdline").contains("pkcs11-module") {
                let id = process.file_name().and_then(OsStr::to_str).context("a number")?;
                found.push(id.parse()?);
            }
        }
        Ok(found)
    }

    /// The one process, once it is there.
    fn process(&self) -> Result<u32> {
        wait_for("a process with the library", || {
            self.processes().is_ok_and(|processes| processes.len() == 1)
        })?;
        Ok(self.processes()?[0])
    }

    fn client(&self) -> Result<RawClient> {
        RawClient::connect(&self.lab.server.bootstrap, &self.lab.dir.root_pem())
    }

    /// Waits until a device gets a certificate.
    fn certifies(&self, wanting: &Wanting<'_>) -> Result<()> {
        let mut client = self.client()?;
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            match wanting.ask(&mut client)? {
                ReplyBody::Certificate(_) => return Ok(()),
                ReplyBody::Problem(problem) if problem.code == ProblemCode::Busy => {
                    ensure!(Instant::now() < deadline, "{problem}");
                    thread::sleep(Duration::from_millis(100));
                }
                other => bail!("{other:?}"),
            }
        }
    }
}

/// A device that has the answer to its challenge. What it asks next needs a signature.
struct Wanting<'a> {
    device: ToolsDevice<'a>,
    proof: Proof,
}

impl<'a> Wanting<'a> {
    fn new(lab: &TokenLab, tpm: &'a Swtpm) -> Result<Self> {
        let device = ToolsDevice::new(tpm, EkKind::P256)?;
        let ReplyBody::Challenge(challenge) =
            lab.client()?.ask(RequestBody::Challenge(device.evidence()?))?
        else {
            bail!("no challenge")
        };
        let ticket = device.activate(&challenge)?;
        Ok(Self { device, proof: Proof { claim: challenge.claim, ticket } })
    }

    fn ask(&self, client: &mut RawClient) -> Result<ReplyBody> {
        client.ask(RequestBody::Certify(self.proof.clone()))
    }

    /// Asks, and is told to come again.
    fn is_sent_away(&self, client: &mut RawClient) -> Result<Problem> {
        match self.ask(client)? {
            ReplyBody::Problem(problem)
                if problem.code == ProblemCode::Busy && problem.retry_after.is_some() =>
            {
                Ok(problem)
            }
            other => bail!("expected busy with advice, got {other:?}"),
        }
    }
}

/// What needs no signature is answered at once.
fn is_quick(client: &mut RawClient, device: &ToolsDevice<'_>) -> Result<()> {
    let evidence = device.evidence()?;
    let asked = Instant::now();
    ensure!(client.ask(RequestBody::Ping)? == ReplyBody::Pong);
    ensure!(matches!(client.ask(RequestBody::Challenge(evidence))?, ReplyBody::Challenge(_)));
    let took = asked.elapsed();
    ensure!(took < Duration::from_secs(2), "a ping and a challenge took {took:?}");
    Ok(())
}

#[test]
fn pkcs11_key_that_the_token_makes_certifies_devices_of_every_flow() -> Result<()> {
    let it = TokenLab::open()?;
    let tpms = trusted_vendor()?.devices(EkKind::P256, 5)?;
    for (tpm, flow) in tpms.iter().zip(["ticket", "sealed"]) {
        let device = Device::new(tpm)?;
        it.lab.provision(&device, &["--flow", flow])?;
        it.lab.openssl_verifies(&device.state().join("certificate.pem"))?;
        let mut publish = device.publish(&it.lab.dir, &it.lab.server, "telemetry", "21.5")?;
        run(&mut publish)?;
    }
    // The next issuing CAs have keys of the other kinds.
    for (tpm, kind) in tpms[2..].iter().zip(["p384", "rsa2048", "rsa4096"]) {
        let uri = it.hsm.uri("assay", None);
        thread::sleep(Duration::from_millis(1100));
        it.assay(&["issuing", "new", "--from", "now", "--key", &uri, "--key-type", kind])?;
        it.lab.reload()?;
        let device = Device::new(tpm)?;
        it.lab.provision(&device, &[])?;
        it.lab.openssl_verifies(&device.state().join("certificate.pem"))?;
        let mut publish = device.publish(&it.lab.dir, &it.lab.server, "telemetry", "21.5")?;
        run(&mut publish)?;
    }
    // Four keys in a token share a process and a login.
    it.process()?;
    let listed = it.assay(&["keys", "list"])?;
    for kind in ["P-256", "P-384", "RSA-2048", "RSA-4096"] {
        let is_it = |line: &str| line.contains(kind) && line.contains("token \"assay\"");
        ensure!(listed.lines().any(is_it), "{kind}: {listed}");
    }
    let mut tried = it.lab.dir.assay(&["keys", "test", "--times", "3", "--json"])?;
    let tried = run(tried.envs(it.hsm.environment()))?.stdout;
    let rows = serde_json::Deserializer::from_slice(&tried).into_iter::<Value>();
    let rows = rows.collect::<Result<Vec<_>, _>>()?;
    let in_token = rows.iter().filter(|row| row["where"].as_str().is_some_and(is_uri)).count();
    ensure!(in_token == 4 && rows.len() == 8, "{rows:?}");
    ensure!(rows.iter().all(|row| row["works"] == true && row["median_us"].is_u64()), "{rows:?}");
    // Every list is signed, and OpenSSL takes it.
    let file = it.lab.dir.path().join("crl.pem");
    it.assay(&["crl", "--pem", "--out", file.to_str().context("a path")?])?;
    ensure!(fs::read_to_string(&file)?.matches("BEGIN X509 CRL").count() == 5);
    // The PIN is in no file of the CA, and the token gives the key to nobody.
    for file in fs::read_dir(it.lab.dir.path())? {
        let content = fs::read(file?.path())?;
        let holds = |text: &str| content.windows(text.len()).any(|part| part == text.as_bytes());
        ensure!(!holds(&format!("={}", SoftHsm::PIN)) && !holds(&format!("\n{}\n", SoftHsm::PIN)));
    }
    Ok(())
}

fn is_uri(text: &str) -> bool {
    text.starts_with("pkcs11:")
}

#[test]
fn pkcs11_request_is_certified_elsewhere_and_installed() -> Result<()> {
    let it = TokenLab::open()?;
    let elsewhere = Elsewhere::take_root(&it.lab.dir)?;
    let request = elsewhere.place.path().join("issuing.csr");
    let request_path = request.to_str().context("a path")?.to_owned();
    let uri = it.hsm.uri("assay", None);
    it.assay(&["issuing", "csr", "--key", &uri, "--out", &request_path])?;
    let again = it.assay(&["issuing", "csr"])?;
    ensure!(again == fs::read_to_string(&request)?, "it is the same request");
    let said = it.fails(&["issuing", "csr", "--key", &uri])?;
    ensure!(said.contains("--again"), "{said}");
    let certificate = elsewhere.certify(&request, EXTENSIONS, &[])?;
    let certificate = certificate.to_str().context("a path")?.to_owned();
    it.assay(&["issuing", "install", &certificate, "--from", "now"])?;
    for left in ["issuing-next.pkcs11", "issuing-next.csr"] {
        ensure!(!it.lab.dir.path().join(left).exists(), "{left}");
    }
    it.lab.reload()?;
    let tpm = trusted_vendor()?.device(EkKind::P256, 0)?;
    let device = Device::new(&tpm)?;
    it.lab.provision(&device, &[])?;
    it.lab.openssl_verifies(&device.state().join("certificate.pem"))?;

    // No key is certified twice, and no certificate is taken for another key.
    let names = fs::read_dir(it.lab.dir.path())?.map(|it| it.map(|it| it.file_name()));
    let names = names.collect::<Result<Vec<_>, _>>()?;
    let dated = names.iter().filter_map(|name| name.to_str());
    let dated = dated.filter(|name| name.starts_with("issuing-") && name.ends_with(".pkcs11"));
    let [installed] = dated.collect::<Vec<_>>()[..] else { bail!("one: {names:?}") };
    let key = fs::read_to_string(it.lab.dir.path().join(installed))?.trim().to_owned();
    let second = elsewhere.place.path().join("second.csr");
    let said = it.fails(&["issuing", "csr", "--key", &key])?;
    ensure!(said.contains("each has a key of its own"), "{said}");
    it.assay(&["issuing", "csr", "--key", &uri, "--out", second.to_str().context("a path")?])?;
    let other = elsewhere.certify(&second, EXTENSIONS, &[])?;
    let other = other.to_str().context("a path")?.to_owned();
    let first = fs::read_to_string(it.lab.dir.path().join("issuing.pkcs11"))?;
    let said = it.fails(&["issuing", "install", &other, "--key", first.trim()])?;
    ensure!(said.contains("for the key that the URI names"), "{said}");
    Ok(())
}

/// What a kill at each step of it leaves behind.
#[test]
fn pkcs11_installation_that_was_cut_short_is_finished_by_the_same_command() -> Result<()> {
    let it = TokenLab::open()?;
    let elsewhere = Elsewhere::take_root(&it.lab.dir)?;
    let [key, request] = ["own.key", "own.csr"].map(|name| elsewhere.place.path().join(name));
    let mut make = tool("openssl")?;
    make.args(["req", "-new", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]);
    run(make.args(["-subj", "/CN=Own Issuing CA", "-keyout"]).arg(&key).arg("-out").arg(&request))?;
    it.hsm.import("assay", "own", &key)?;
    let certificate = elsewhere.certify(&request, EXTENSIONS, &[])?;
    let certificate = certificate.to_str().context("a path")?;
    let uri = it.hsm.uri("assay", Some("own"));
    let files = || -> Result<Vec<String>> {
        let names = fs::read_dir(it.lab.dir.path())?.map(|it| Ok(it?.file_name().into_string()));
        let names = names.collect::<Result<Vec<_>>>()?.into_iter().flatten();
        Ok(names.filter(|it| it.starts_with("issuing-")).collect())
    };
    // At another time, whose name the file with the URI has to get, and at the same one.
    for from in ["2028-01-01", "2028-02-01", "2028-02-01"] {
        it.assay(&["issuing", "install", certificate, "--key", &uri, "--from", from])?;
        let mut made = files()?;
        made.sort();
        let stamp = from.replace('-', "");
        let due = [".pem", ".pkcs11"].map(|kind| format!("issuing-{stamp}T000000Z{kind}"));
        ensure!(made == due, "{made:?}");
        fs::remove_file(it.lab.dir.path().join(&due[0]))?;
        fs::write(it.lab.dir.path().join(format!(".{}.new", due[0])), "-----BEGIN CERT")?;
    }
    let said = it.assay(&["issuing", "list"])?;
    ensure!(said.contains("unfinished"), "{said}");
    it.assay(&["issuing", "install", certificate, "--key", &uri, "--from", "2028-02-01"])?;
    it.lab.reload()
}

#[test]
fn pkcs11_pin_that_everybody_can_read_is_told_of_at_each_start() -> Result<()> {
    let it = TokenLab::open()?;
    let (file, mode) = (it.hsm.pin_file(), |mode| fs::Permissions::from_mode(mode));
    let above = file.parent().context("a directory")?;
    let warned = |above_mode, file_mode| -> Result<bool> {
        fs::set_permissions(above, mode(above_mode))?;
        fs::set_permissions(&file, mode(file_mode))?;
        warns_of_the_pin(&it)
    };
    ensure!(!warned(0o700, 0o644)?, "nobody else may search the directory");
    ensure!(warned(0o755, 0o644)?);
    ensure!(!warned(0o755, 0o600)?);
    Ok(())
}

/// Whether a service that starts warns that everybody can read the PIN.
fn warns_of_the_pin(it: &TokenLab) -> Result<bool> {
    let listeners = ["--bootstrap", "127.0.0.1:0", "--operational", "127.0.0.1:0"];
    let mut serve = it.lab.dir.assay(&[&["serve"][..], &listeners].concat())?;
    serve.envs(it.hsm.environment()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut serve = serve.spawn()?;
    let mut line = String::new();
    BufReader::new(serve.stdout.take().context("a pipe")?).read_line(&mut line)?;
    serve.kill()?;
    let said = String::from_utf8_lossy(&serve.wait_with_output()?.stderr).into_owned();
    let pin = it.hsm.pin_file().display().to_string();
    Ok(said.contains("every user of this machine can read a secret") && said.contains(&pin))
}

#[test]
fn pkcs11_process_that_is_killed_costs_no_device_its_certificate() -> Result<()> {
    let it = TokenLab::open()?;
    let vendor = trusted_vendor()?;
    let tpms = vendor.devices(EkKind::P256, 6)?;
    let devices = tpms.iter().map(Device::new).collect::<Result<Vec<_>>>()?;
    let first = it.process()?;
    thread::scope(|scope| -> Result<()> {
        let lab = &it.lab;
        let provision = |(number, device)| {
            scope.spawn(move || {
                thread::sleep(Duration::from_millis(700) * number);
                lab.provision(device, &[])
            })
        };
        let provisioned: Vec<_> = (0..).zip(&devices).map(provision).collect();
        for _ in 0..4 {
            for process in it.processes()? {
                // It may have ended by itself.
                _ = signal(process, "KILL");
            }
            thread::sleep(Duration::from_millis(1300));
        }
        provisioned.into_iter().try_for_each(|device| match device.join() {
            Ok(provisioned) => provisioned.map(drop),
            Err(_) => bail!("a thread panicked"),
        })
    })?;
    for device in &devices {
        it.lab.openssl_verifies(&device.state().join("certificate.pem"))?;
    }
    ensure!(it.process()? != first, "it was replaced");
    ensure!(it.lab.dir.list("certs")?.len() == devices.len(), "one each");
    Ok(())
}

#[test]
fn pkcs11_wrong_pin_is_tried_once_each_time_that_the_ca_is_told() -> Result<()> {
    let mut it = TokenLab::open()?;
    let tpm = trusted_vendor()?.device(EkKind::P256, 0)?;
    let wanting = Wanting::new(&it, &tpm)?;
    it.hsm.write_pin("9753")?;
    it.lab.server.restart()?;
    let refused = |it: &TokenLab| it.lab.server.log().matches("until the PIN is right").count();
    wait_for("the PIN is refused", || refused(&it) == 1)?;
    let mut client = it.client()?;
    for _ in 0..10 {
        wanting.is_sent_away(&mut client)?;
    }
    is_quick(&mut client, &wanting.device)?;
    thread::sleep(Duration::from_secs(1));
    ensure!(refused(&it) == 1 && it.processes()?.is_empty(), "nobody tries again");
    for told in 2..=3 {
        it.lab.reload()?;
        wait_for("the PIN is tried once more", || refused(&it) == told)?;
        wanting.is_sent_away(&mut it.client()?)?;
    }
    it.hsm.write_pin(SoftHsm::PIN)?;
    it.lab.reload()?;
    it.certifies(&wanting)?;
    ensure!(refused(&it) == 3);
    Ok(())
}

/// SoftHSM never locks a token, so another library says that it would.
#[test]
fn pkcs11_no_pin_is_tried_if_a_wrong_one_would_lock_the_token() -> Result<()> {
    let it = TokenLab::open()?;
    let _shim = it.through_shim("LAST_TRY")?;
    let said = it.assay_output(&["keys", "test", "--times", "1"])?;
    ensure!(said.contains("one more wrong PIN locks the token"), "{said}");
    Ok(())
}

#[test]
fn pkcs11_more_signatures_than_a_slow_token_makes_are_put_off_and_nothing_else_is() -> Result<()> {
    let it = TokenLab::open()?;
    let tpms = trusted_vendor()?.devices(EkKind::P256, 2)?;
    let wanting = Wanting::new(&it, &tpms[0])?;
    let other = ToolsDevice::new(&tpms[1], EkKind::P256)?;
    // More than are signed at once and wait.
    let clients = (0..100).map(|_| it.client()).collect::<Result<Vec<_>>>()?;
    let _shim = it.through_shim("FIRST_US=2500000")?;
    it.lab.reload()?;
    let answers = thread::scope(|scope| -> Result<Vec<ReplyBody>> {
        let asked: Vec<_> = clients
            .into_iter()
            .map(|mut client| {
                let wanting = &wanting;
                scope.spawn(move || wanting.ask(&mut client))
            })
            .collect();
        let mut client = it.client()?;
        for _ in 0..5 {
            is_quick(&mut client, &other)?;
        }
        let answers = asked.into_iter().map(|asked| match asked.join() {
            Ok(answer) => answer,
            Err(_) => bail!("a thread panicked"),
        });
        answers.collect()
    })?;
    let put_off = answers.iter().filter(|answer| match answer {
        ReplyBody::Problem(problem) => {
            problem.code == ProblemCode::Busy
                && problem.retry_after.is_some()
                && problem.detail.contains("wait for their signature")
        }
        _ => false,
    });
    let put_off = put_off.count();
    let certified =
        answers.iter().filter(|answer| matches!(answer, ReplyBody::Certificate(_))).count();
    ensure!(put_off > 0 && certified >= 64 && put_off + certified == 100, "{answers:?}");
    ensure!(it.lab.dir.list("certs")?.len() == 1, "all got the same certificate");
    Ok(())
}

#[test]
fn pkcs11_token_that_is_taken_out_means_busy_until_it_is_back() -> Result<()> {
    let it = TokenLab::open()?;
    let tpms = trusted_vendor()?.devices(EkKind::P256, 2)?;
    let [first, wanting] = [Wanting::new(&it, &tpms[0])?, Wanting::new(&it, &tpms[1])?];
    it.certifies(&first)?;
    let taken = it.hsm.take_out(0)?;
    signal(it.process()?, "KILL")?;
    let mut client = it.client()?;
    for _ in 0..5 {
        let asked = Instant::now();
        wanting.is_sent_away(&mut client)?;
        ensure!(asked.elapsed() < Duration::from_secs(7), "{:?}", asked.elapsed());
        is_quick(&mut client, &wanting.device)?;
        // What is on record needs no signature.
        ensure!(matches!(first.ask(&mut client)?, ReplyBody::Certificate(_)));
    }
    taken.put_back()?;
    it.certifies(&wanting)?;
    let log = it.lab.server.log();
    ensure!(log.matches("no token signs").count() == 1, "it is said once: {log}");
    ensure!(log.contains("signs again"), "{log}");
    Ok(())
}

#[test]
fn pkcs11_key_that_is_away_stops_the_list_of_no_other_issuing_ca() -> Result<()> {
    let it = TokenLab::open()?;
    it.assay(&["issuing", "new", "--from", "now"])?;
    let rows = it.assay(&["issuing", "list", "--json"])?;
    let keys = rows.lines().map(|row| {
        let row: Value = serde_json::from_str(row)?;
        Ok(row["key_id"].as_str().context("a key")?.to_owned())
    });
    let keys = keys.collect::<Result<Vec<_>>>()?;
    let [in_token, in_file] = &keys[..] else { bail!("{rows}") };
    it.lab.reload()?;
    let _taken = it.hsm.take_out(0)?;
    let list = tempfile::NamedTempFile::new()?;
    let place = list.path().to_str().context("UTF-8")?;
    it.assay(&["crl", "--issuer", in_file, "--out", place])?;
    for arguments in [&["--issuer", in_token][..], &["--pem"]] {
        let said = it.fails(&[&["crl"], arguments].concat())?;
        ensure!(said.contains("assay keys test"), "{said}");
    }
    Ok(())
}

#[test]
fn pkcs11_ca_starts_without_its_token_and_signs_when_it_is_there() -> Result<()> {
    let mut it = TokenLab::open()?;
    let tpm = trusted_vendor()?.device(EkKind::P256, 0)?;
    let wanting = Wanting::new(&it, &tpm)?;
    let taken = it.hsm.take_out(0)?;
    it.lab.server.restart()?;
    let mut client = it.client()?;
    is_quick(&mut client, &wanting.device)?;
    wanting.is_sent_away(&mut client)?;
    taken.put_back()?;
    it.certifies(&wanting)
}

#[test]
fn pkcs11_token_that_stands_still_keeps_nobody_waiting_who_needs_no_signature() -> Result<()> {
    let it = TokenLab::open()?;
    let tpms = trusted_vendor()?.devices(EkKind::P256, 2)?;
    let wanting = Wanting::new(&it, &tpms[0])?;
    let stopped = it.process()?;
    signal(stopped, "STOP")?;
    thread::scope(|scope| -> Result<()> {
        // More than there are threads that sign.
        let waiting: Vec<_> = (0..12)
            .map(|_| scope.spawn(|| -> Result<ReplyBody> { wanting.ask(&mut it.client()?) }))
            .collect();
        let mut client = it.client()?;
        let other = ToolsDevice::new(&tpms[1], EkKind::P256)?;
        for _ in 0..8 {
            is_quick(&mut client, &other)?;
            thread::sleep(Duration::from_millis(400));
        }
        for asked in waiting {
            let Ok(answer) = asked.join() else { bail!("a thread panicked") };
            match answer? {
                ReplyBody::Certificate(_) => {}
                ReplyBody::Problem(problem) if problem.code == ProblemCode::Busy => {}
                other => bail!("{other:?}"),
            }
        }
        Ok(())
    })?;
    it.certifies(&wanting)?;
    ensure!(it.process()? != stopped, "it was replaced");
    Ok(())
}

#[test]
fn pkcs11_second_token_signs_while_the_first_is_gone() -> Result<()> {
    let it = TokenLab::with_two_tokens()?;
    let tpms = trusted_vendor()?.devices(EkKind::P256, 3)?;
    let [first, second, third] = &tpms[..] else { bail!("three") };
    it.lab.provision(&Device::new(first)?, &[])?;
    let taken = it.hsm.take_out(0)?;
    for process in it.processes()? {
        signal(process, "KILL")?;
    }
    let device = Device::new(second)?;
    it.lab.provision(&device, &[])?;
    it.lab.openssl_verifies(&device.state().join("certificate.pem"))?;
    let said = it.fails(&["keys", "test", "--times", "1"])?;
    ensure!(said.contains("1 of these keys do not work"), "{said}");
    taken.put_back()?;
    let _other = it.hsm.take_out(1)?;
    wait_for("the first token", || it.lab.server.log().matches("token opened").count() >= 3)?;
    for process in it.processes()? {
        signal(process, "KILL")?;
    }
    it.lab.provision(&Device::new(third)?, &[]).map(drop)
}

#[test]
fn pkcs11_other_key_of_the_same_name_signs_nothing() -> Result<()> {
    let it = TokenLab::with_two_tokens()?;
    let tpm = trusted_vendor()?.device(EkKind::P256, 0)?;
    let wanting = Wanting::new(&it, &tpm)?;
    // A key that is not the one of the certificate, under a name of its own.
    let key = it.hsm.tokens().join("../other.pem");
    let mut make = tool("openssl")?;
    make.args(["genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256", "-out"]);
    run(make.arg(&key))?;
    let mut import = tool("softhsm2-util")?;
    import.arg("--import").arg(&key).args(["--token", "one", "--label", "other", "--id", "02"]);
    run(import.args(["--pin", SoftHsm::PIN]).envs(it.hsm.environment()))?;
    let file = it.lab.dir.path().join("issuing.pkcs11");
    fs::write(&file, it.hsm.uri("one", Some("other")))?;
    it.lab.reload()?;
    wanting.is_sent_away(&mut it.client()?)?;
    let log = it.lab.server.log();
    ensure!(log.contains("another key than that of the certificate"), "{log}");
    let issued = it.lab.dir.list("certs")?;
    ensure!(issued.is_empty(), "{issued:?}");
    Ok(())
}

#[test]
fn pkcs11_token_without_room_makes_no_key_and_no_ca() -> Result<()> {
    let hsm = SoftHsm::new(&["assay"])?;
    let ca = tempfile::tempdir()?;
    let assay = assay_tests::assay_bin("assay")?;
    // A file system of its own, which the token fills.
    let full = "cp -a \"$1\" \"$1.kept\" && mount -t tmpfs -o size=64k,mode=700 none \"$1\" \
                && cp -a \"$1.kept/.\" \"$1\" && { head -c 1M /dev/zero >\"$1/fill\"; true; } \
                && exec \"$2\" init \"$3\" --issuing-key \"$4\"";
    let mut init = tool("unshare")?;
    init.args(["--map-root-user", "--mount", "--", "sh", "-c", full, "sh"]);
    init.arg(hsm.tokens()).arg(assay).arg(ca.path().join("ca"));
    let output = init.arg(hsm.uri("assay", None)).envs(hsm.environment()).output()?;
    let said = String::from_utf8(output.stderr)?;
    ensure!(!output.status.success() && said.contains("no key was made"), "{said}");
    ensure!(!ca.path().join("ca/root.pem").exists(), "no CA was made");
    Ok(())
}

#[test]
fn pkcs11_pin_comes_from_the_environment_a_credential_of_systemd_or_a_prompt() -> Result<()> {
    let hsm = SoftHsm::new(&["assay"])?;
    let uri = hsm.uri_without_pin("assay", None);
    let [(name, value)] = hsm.environment();
    let pin = ("ASSAY_PKCS11_PIN", OsStr::new(SoftHsm::PIN));
    let dir = AssayDir::init_with(&["--issuing-key", &uri], &[(name, value), pin])?;
    let test = |environment: &[(&str, &OsStr)]| -> Result<String> {
        let mut test = dir.assay(&["keys", "test", "--times", "1"])?;
        test.env(name, value).envs(environment.iter().copied()).stdin(Stdio::null());
        let output = test.output()?;
        let said = [output.stdout, output.stderr].concat();
        Ok(format!("{}: {}", output.status.success(), String::from_utf8(said)?))
    };
    let said = test(&[])?;
    ensure!(said.starts_with("false") && said.contains("there is no PIN"), "{said}");
    let said = test(&[("ASSAY_PKCS11_PIN", OsStr::new("9999"))])?;
    ensure!(said.starts_with("false") && said.contains("the PIN is refused"), "{said}");
    let said = test(&[pin])?;
    ensure!(said.starts_with("true"), "{said}");
    let credentials = tempfile::tempdir()?;
    fs::write(credentials.path().join("assay-pkcs11-pin"), SoftHsm::PIN)?;
    let said = test(&[("CREDENTIALS_DIRECTORY", credentials.path().as_os_str())])?;
    ensure!(said.starts_with("true"), "{said}");

    // `script` gives the command a terminal.
    let test = dir.assay(&["keys", "test", "--times", "1"])?;
    let words = [test.get_program()].into_iter().chain(test.get_args());
    let line = words.map(|word| word.to_string_lossy().into_owned()).collect::<Vec<_>>().join(" ");
    let mut script = tool("script")?;
    script.args(["--quiet", "--return", "--command", &line, "/dev/null"]).env(name, value);
    let mut script = script.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    let mut keyboard = script.stdin.take().context("its input")?;
    // Whoever types has time.
    thread::sleep(Duration::from_secs(6));
    keyboard.write_all(format!("{}\n", SoftHsm::PIN).as_bytes())?;
    let output = script.wait_with_output()?;
    let said = String::from_utf8(output.stdout)?;
    ensure!(output.status.success() && said.contains("PIN of token \"assay\""), "{said}");
    Ok(())
}

/// The CA's own TPM is the token, by tpm2-pkcs11.
#[test]
fn pkcs11_key_in_the_tpm_of_the_ca_certifies_devices() -> Result<()> {
    let own = Swtpm::without_ek_certificate()?;
    let manager = AccessBroker::before(&own)?;
    let store = tempfile::tempdir()?;
    let environment = [
        ("TPM2_PKCS11_STORE", store.path().as_os_str()),
        ("TPM2_PKCS11_TCTI", OsStr::new(manager.tcti())),
        ("DBUS_SESSION_BUS_ADDRESS", OsStr::new(manager.bus())),
        ("TSS2_LOG", OsStr::new("all+NONE")),
        ("ASSAY_PKCS11_PIN", OsStr::new(SoftHsm::PIN)),
    ];
    for arguments in [
        &["init"][..],
        &["addtoken", "--pid", "1", "--label", "ca", "--sopin", "1357", "--userpin", SoftHsm::PIN],
    ] {
        let mut ptool = tool("tpm2_ptool")?;
        ptool.args(arguments).envs(environment).env("TPM2TOOLS_TCTI", manager.tcti());
        run(&mut ptool)?;
    }
    let arch = std::env::consts::ARCH;
    let module = format!("/usr/lib/{arch}-linux-gnu/libtpm2_pkcs11.so.1");
    let uri = format!("pkcs11:token=ca?module-path={module}");
    let dir = AssayDir::init_with(&["--issuing-key", &uri], &environment)?;
    dir.trust(&trusted_vendor()?)?;
    let lab = Lab { server: AssayServer::start_with(&dir, &environment)?, dir };
    let tpms = trusted_vendor()?.devices(EkKind::P256, 2)?;
    for (tpm, flow) in tpms.iter().zip(["ticket", "sealed"]) {
        let device = Device::new(tpm)?;
        lab.provision(&device, &["--flow", flow])?;
        lab.openssl_verifies(&device.state().join("certificate.pem"))?;
    }
    Ok(())
}

#[test]
fn pkcs11_uri_with_a_pin_is_refused_and_not_repeated() -> Result<()> {
    let place = tempfile::tempdir()?;
    let assay = assay_tests::assay_bin("assay")?;
    let uri = "pkcs11:token=a?module-path=/a.so&pin-value=86420";
    let mut init = std::process::Command::new(assay);
    let output =
        init.arg("init").arg(place.path().join("ca")).args(["--issuing-key", uri]).output()?;
    let said = String::from_utf8(output.stderr)?;
    ensure!(!output.status.success() && said.contains("does not belong in a URI"), "{said}");
    Ok(())
}

//! Programs that use a TPM by themselves sign in with the key that `assay-device key export` gives
//! them.

use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use assay_tests::{AccessBroker, Device, EkKind, Swtpm, daemon, run, spawn, tool, trusted_vendor};

use crate::lab::Lab;

/// A provisioned device, and a resource manager in front of its TPM.
struct Scene {
    lab: Lab,
    device: Device,
    id: String,
    manager: AccessBroker,
    tpm: Swtpm,
}

impl Scene {
    fn with_ik(number: usize, ik: &str) -> Result<Self> {
        let lab = Lab::open()?;
        let tpm = trusted_vendor()?.device(EkKind::P256, number)?;
        let device = Device::new(&tpm)?;
        let provisioned = lab.provision(&device, &["--ik", ik])?;
        let id = provisioned["device_id"].as_str().context("an id")?.to_owned();
        // It keeps a connection to the TPM, so all keys are exported before.
        run(device.export_key("tss2")?.arg("--out").arg(tpm.work_dir().join("device.key")))?;
        fs::write(tpm.work_dir().join("openssl.cnf"), OPENSSL_CONF)?;
        let manager = AccessBroker::before(&tpm)?;
        Ok(Self { lab, device, id, manager, tpm })
    }

    fn file(&self, name: &str) -> PathBuf {
        self.tpm.work_dir().join(name)
    }

    fn certificate(&self) -> PathBuf {
        self.device.state().join("certificate.pem")
    }

    fn port(&self) -> Result<&str> {
        Ok(self.lab.server.operational.rsplit_once(':').context("the URL has a port")?.1)
    }

    /// Lets a command use the TPM through OpenSSL's provider.
    fn with_tpm<'a>(&self, command: &'a mut Command) -> &'a mut Command {
        command.env("TPM2OPENSSL_TCTI", self.manager.tcti()).env("TSS2_LOG", "all+NONE");
        self.manager.reachable_for(command)
    }

    /// `openssl s_client` signs in with the key, and says MQTT over it.
    fn s_client_publishes(&self, key: &str) -> Result<()> {
        let mut client = tool("openssl")?;
        client.args(["s_client", "-quiet", "-connect", &format!("127.0.0.1:{}", self.port()?)]);
        client.args(["-provider", "tpm2", "-provider", "default", "-propquery", PROPERTY_QUERY]);
        client.args(["-verify_return_error", "-verify_hostname", "localhost", "-CAfile"]);
        client.arg(self.lab.dir.root_pem());
        client.arg("-cert").arg(self.certificate()).arg("-cert_chain").arg(self.certificate());
        client.args(["-key", key]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut client = Running(spawn_with(self.with_tpm(&mut client))?);
        let mut said = client.0.stdin.take().context("stdin")?;
        let mut heard = client.0.stdout.take().context("stdout")?;
        said.write_all(&connect(&self.id))?;
        let mut connack = [0; 4];
        heard.read_exact(&mut connack).context("no CONNACK")?;
        ensure!(connack == *b"\x20\x02\0\0", "{connack:?}");
        said.write_all(&publish(&format!("device/v1/default/{}/x", self.id)))?;
        let mut puback = [0; 4];
        heard.read_exact(&mut puback)?;
        ensure!(puback == *b"\x40\x02\0\x07", "{puback:?}");
        Ok(())
    }
}

/// A process that ends with this value.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        _ = self.0.kill();
        _ = self.0.wait();
    }
}

fn spawn_with(command: &mut Command) -> Result<Child> {
    command.spawn().with_context(|| format!("{command:?}"))
}

/// MQTT 3.1.1, with a keep-alive of 60 s.
fn connect(client: &str) -> Vec<u8> {
    let length = client.len() as u8;
    let head = [&[0x10, 12 + length][..], b"\0\x04MQTT\x04\x02\0\x3C\0", &[length]].concat();
    [&head, client.as_bytes()].concat()
}

/// QoS 1, packet identifier 7.
fn publish(topic: &str) -> Vec<u8> {
    let length = topic.len() as u8;
    let head = [0x32, 2 + length + 2 + 2, 0, length];
    [&head, topic.as_bytes(), b"\0\x0721"].concat()
}

#[test]
fn openssl_signs_in_with_the_handle_and_with_the_file_whatever_the_key() -> Result<()> {
    for (number, ik) in ["p-256", "p-384", "rsa-2048"].into_iter().enumerate() {
        let scene = Scene::with_ik(number, ik)?;
        scene.s_client_publishes("handle:0x81000200").context(ik)?;
        let file = scene.file("device.key");
        scene.s_client_publishes(file.to_str().context("a path")?).context(ik)?;
    }
    Ok(())
}

#[test]
fn python_ssl_signs_in_with_the_file() -> Result<()> {
    let scene = Scene::with_ik(0, "p-256")?;
    let mut python = Command::new("/usr/bin/python3");
    python.args(["-c", PYTHON, scene.port()?, &scene.id]).arg(scene.lab.dir.root_pem());
    python.arg(scene.certificate()).arg(scene.file("device.key"));
    python.env("OPENSSL_CONF", scene.file("openssl.cnf"));
    let said = String::from_utf8(run(scene.with_tpm(&mut python))?.stdout)?;
    ensure!(said.trim() == "acknowledged", "{said}");
    Ok(())
}

#[test]
fn nginx_signs_in_with_the_file_for_clients_without_tls() -> Result<()> {
    let scene = Scene::with_ik(0, "p-256")?;
    let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port();
    let display = |path: PathBuf| path.display().to_string();
    let conf = NGINX
        .replace("{dir}", &display(scene.file("")))
        .replace("{port}", &port.to_string())
        .replace("{broker}", &format!("127.0.0.1:{}", scene.port()?))
        .replace("{certificate}", &display(scene.certificate()))
        .replace("{key}", &display(scene.file("device.key")))
        .replace("{root}", &display(scene.lab.dir.root_pem()));
    fs::write(scene.file("nginx.conf"), conf)?;
    let mut nginx = daemon("nginx")?;
    nginx.args(["-e", "stderr", "-c"]).arg(scene.file("nginx.conf"));
    nginx.env("OPENSSL_CONF", scene.file("openssl.cnf"));
    scene.with_tpm(&mut nginx);
    let _nginx = Running(spawn(nginx)?);
    let started = Instant::now();
    while TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_err() {
        ensure!(started.elapsed() < Duration::from_secs(10), "nginx does not listen");
        thread::sleep(Duration::from_millis(20));
    }
    let mut says = tool("mosquitto_pub")?;
    says.args(["-h", "127.0.0.1", "-p", &port.to_string(), "-i", &scene.id, "-q", "1"]);
    says.args(["-t", &format!("device/v1/default/{}/x", scene.id), "-m", "21"]);
    run(&mut says).map(drop)
}

/// tpm2_ptool links keys of no fixed scheme only, and those are the RSA keys.
#[test]
fn pkcs11_signs_with_the_file_of_an_rsa_key() -> Result<()> {
    let scene = Scene::with_ik(0, "rsa-2048")?;
    let store = scene.file("pkcs11");
    fs::create_dir(&store)?;
    let with_store = |program: &str, arguments: &[&str]| -> Result<Command> {
        let mut command = tool(program)?;
        command.args(arguments).current_dir(scene.tpm.work_dir());
        command.env("TPM2_PKCS11_STORE", &store).env("TPM2_PKCS11_TCTI", scene.manager.tcti());
        command.env("TPM2TOOLS_TCTI", scene.manager.tcti()).env("TSS2_LOG", "all+NONE");
        scene.manager.reachable_for(&mut command);
        Ok(command)
    };
    for arguments in [
        &["init", "--primary-handle", "0x81000001"][..],
        &["addtoken", "--pid", "1", "--label", "assay", "--userpin", "1234", "--sopin", "5678"],
        &["link", "--label", "assay", "--userpin", "1234", "--key-label", "device", "device.key"],
    ] {
        run(&mut with_store("tpm2_ptool", arguments)?)?;
    }
    fs::write(scene.file("message"), "a message")?;
    let sign = ["--module", PKCS11, "--sign", "-m", "SHA256-RSA-PKCS", "--login", "--pin", "1234"];
    let files = ["-i", "message", "-o", "signature"];
    run(&mut with_store("pkcs11-tool", &[&sign[..], &files].concat())?)?;
    let mut public = tool("openssl")?;
    public.args(["x509", "-noout", "-pubkey", "-in"]).arg(scene.certificate());
    fs::write(scene.file("public.pem"), run(&mut public)?.stdout)?;
    let mut verify = tool("openssl")?;
    verify.args(["dgst", "-sha256", "-verify", "public.pem", "-signature", "signature", "message"]);
    run(verify.current_dir(scene.tpm.work_dir())).map(drop)
}

#[test]
fn exported_key_is_that_of_the_certificate_or_there_is_none() -> Result<()> {
    let lab = Lab::open()?;
    let mut tpm = trusted_vendor()?.device(EkKind::P256, 0)?;
    let device = Device::new(&tpm)?;
    let exit_code = |format: &str| -> Result<Option<i32>> {
        Ok(device.export_key(format)?.output()?.status.code())
    };
    ensure!(exit_code("handle")? == Some(8), "nothing is granted yet");
    lab.provision(&device, &[])?;
    ensure!(run(&mut device.export_key("handle")?)?.stdout == b"handle:0x81000200\n");
    ensure!(!tpm.persistent_handles()?.contains(&0x8100_0001));
    let out = tpm.work_dir().join("device.key");
    let told = run(device.export_key("tss2")?.arg("--out").arg(&out))?;
    ensure!(String::from_utf8(told.stderr)?.contains("persistent at 0x81000001"));
    ensure!(tpm.persistent_handles()?.contains(&0x8100_0001));
    ensure!(fs::metadata(&out)?.permissions().mode() & 0o777 == 0o600);
    let again = run(&mut device.export_key("tss2")?)?;
    ensure!(again.stdout == fs::read(&out)? && again.stderr.is_empty());
    ensure!(tpm.transient_handles()?.is_empty() && tpm.loaded_sessions()?.is_empty());

    // The private part of another key is not taken for this one's.
    let private = device.state().join("identity-81000200.private");
    let mut altered = fs::read(&private)?;
    altered[40] ^= 1;
    fs::write(&private, altered)?;
    ensure!(exit_code("tss2")? == Some(5));
    fs::remove_file(&private)?;
    let none = device.export_key("tss2")?.output()?;
    let told = String::from_utf8(none.stderr)?;
    ensure!(none.status.code() == Some(2) && told.contains("--format handle"), "{told}");
    ensure!(exit_code("handle")? == Some(0));

    tpm.tpm2(&["evictcontrol", "-C", "o", "-c", "0x81000200"])?;
    for format in ["handle", "tss2"] {
        ensure!(exit_code(format)? == Some(2), "the TPM no longer holds the key");
    }
    lab.provision(&Device::new(&tpm)?, &[])?;
    for format in ["handle", "tss2"] {
        ensure!(exit_code(format)? == Some(2), "the key there is another device's");
    }
    tpm.clear()?;
    lab.provision(&device, &["--flow", "shared-key"])?;
    ensure!(exit_code("handle")? == Some(2), "a shared key is no key for TLS");
    Ok(())
}

#[test]
fn owner_password_is_needed_to_keep_the_storage_root_key_and_not_afterwards() -> Result<()> {
    let lab = Lab::open()?;
    let mut tpm = trusted_vendor()?.device(EkKind::P256, 0)?;
    let device = Device::new(&tpm)?;
    lab.provision(&device, &[])?;
    tpm.set_passwords("of the owner", "")?;
    let without = device.export_key("tss2")?.output()?;
    ensure!(without.status.code() == Some(5), "{without:?}");
    run(device.export_key("tss2")?.env("ASSAY_OWNER_AUTH", "of the owner"))?;
    run(&mut device.export_key("tss2")?).map(drop)
}

/// Which implementations OpenSSL takes: the TPM's for the key, its own for digests and ciphers.
const PROPERTY_QUERY: &str = "?provider=tpm2,tpm2.digest!=yes,tpm2.cipher!=yes";

/// Where Debian has libtpm2-pkcs11.
const PKCS11: &str = "libtpm2_pkcs11.so.1";

/// docs/clients.md shows it.
const OPENSSL_CONF: &str = "\
openssl_conf = openssl_init

[openssl_init]
providers = providers
alg_section = algorithms

[providers]
default = default_provider
tpm2 = tpm2_provider

[default_provider]
activate = 1

[tpm2_provider]
activate = 1

[algorithms]
default_properties = ?provider=tpm2,tpm2.digest!=yes,tpm2.cipher!=yes,tpm2.rand!=yes
";

const NGINX: &str = "\
load_module /usr/lib/nginx/modules/ngx_stream_module.so;
daemon off;
master_process off;
pid {dir}nginx.pid;
worker_processes 1;
env OPENSSL_CONF;
env TPM2OPENSSL_TCTI;
env DBUS_SESSION_BUS_ADDRESS;
user root;
error_log stderr;
events {}
stream {
    server {
        listen 127.0.0.1:{port};
        proxy_pass {broker};
        proxy_ssl on;
        proxy_ssl_certificate {certificate};
        proxy_ssl_certificate_key {key};
        proxy_ssl_trusted_certificate {root};
        proxy_ssl_verify on;
        proxy_ssl_verify_depth 3;
        proxy_ssl_name localhost;
        proxy_ssl_protocols TLSv1.2 TLSv1.3;
    }
}
";

/// Its arguments are the port, the device id, and three files.
const PYTHON: &str = r#"
import ssl, sys, threading
import paho.mqtt.client as mqtt
port, device, root, certificate, key = sys.argv[1:]
context = ssl.create_default_context(cafile=root)
context.load_cert_chain(certificate, key)
client, done = mqtt.Client(client_id=device), threading.Event()
client.tls_set_context(context)
client.on_connect = lambda client, *rest: client.publish(f"device/v1/default/{device}/x", b"21", qos=1)
client.on_publish = lambda *rest: done.set()
client.connect("localhost", int(port), keepalive=30)
client.loop_start()
print("acknowledged" if done.wait(20) else "no answer")
client.disconnect()
"#;

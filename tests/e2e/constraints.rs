//! What an issuing CA may certify, as verifiers take it that are not ours.

use std::fs;
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use assay_tests::{Device, EkKind, daemon, json, run, spawn, tool, trusted_vendor};

use crate::external_brokers::Deployed;
use crate::lab::Lab;
use crate::tunnel::Tunnel;

/// A server's certificate that the holder of `issuing.key` makes, with this name and the issuing
/// CA's certificate after it.
fn server_certificate(ca: &Path, place: &Path, name: &str) -> Result<PathBuf> {
    let [key, request, extensions, leaf] =
        ["key", "csr", "ext", "pem"].map(|it| place.join(format!("server.{it}")));
    let mut make = tool("openssl")?;
    make.args(["req", "-new", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]);
    run(make.args(["-subj", "/CN=forged", "-keyout"]).arg(key).arg("-out").arg(&request))?;
    let text = format!("subjectAltName={name}\nextendedKeyUsage=serverAuth,clientAuth\n");
    fs::write(&extensions, text + "basicConstraints=critical,CA:FALSE\n")?;
    let mut sign = tool("openssl")?;
    sign.args(["x509", "-req", "-days", "1", "-set_serial", "7", "-in"]).arg(&request);
    sign.arg("-CA").arg(ca.join("issuing.pem")).arg("-CAkey").arg(ca.join("issuing.key"));
    run(sign.arg("-extfile").arg(&extensions).arg("-out").arg(&leaf))?;
    let chain = [fs::read(&leaf)?, fs::read(ca.join("issuing.pem"))?].concat();
    fs::write(&leaf, chain)?;
    Ok(leaf)
}

fn succeeds(command: &mut Command) -> Result<bool> {
    Ok(command.stdin(Stdio::null()).output()?.status.success())
}

/// OpenSSL, which is told what the certificate is for.
fn openssl_takes(root: &Path, chain: &Path, purpose: &str) -> Result<bool> {
    let mut verify = tool("openssl")?;
    verify.args(["verify", "-purpose", purpose, "-CAfile"]).arg(root).arg("-untrusted").arg(chain);
    succeeds(verify.arg(chain))
}

/// GnuTLS, which looks at no usage unless it is told one.
fn gnutls_takes(root: &Path, chain: &Path, purpose: Option<&str>) -> Result<bool> {
    let mut verify = tool("certtool")?;
    verify.args(["--verify", "--load-ca-certificate"]).arg(root).arg("--infile").arg(chain);
    succeeds(verify.args(purpose.map(|it| format!("--verify-purpose={it}"))))
}

const SERVER_AUTH: &str = "1.3.6.1.5.5.7.3.1";
const CLIENT_AUTH: &str = "1.3.6.1.5.5.7.3.2";

#[test]
fn what_the_issuing_key_signs_passes_for_a_server_with_no_client() -> Result<()> {
    let lab = Lab::open()?;
    let (root, place) = (lab.dir.root_pem(), tempfile::tempdir()?);
    for (name, is_constrained) in [("DNS:localhost", false), ("IP:127.0.0.1", true)] {
        let forged = server_certificate(&lab.dir.path(), place.path(), name)?;
        // By the usages of the issuing CA.
        ensure!(!openssl_takes(&root, &forged, "sslserver")?, "{name}");
        ensure!(!gnutls_takes(&root, &forged, Some(SERVER_AUTH))?, "{name}");
        // By its constraint of names, of those that look at no usage.
        ensure!(openssl_takes(&root, &forged, "any")? != is_constrained, "{name}");
        ensure!(gnutls_takes(&root, &forged, None)? != is_constrained, "{name}");

        let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port();
        let mut server = daemon("openssl")?;
        server.args(["s_server", "-quiet", "-accept", &format!("127.0.0.1:{port}"), "-cert"]);
        server.arg(&forged).arg("-cert_chain").arg(&forged).arg("-key");
        server.arg(place.path().join("server.key")).stdout(Stdio::null()).stderr(Stdio::null());
        let mut server = spawn(server)?;
        let deadline = Instant::now() + Duration::from_secs(10);
        while TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_err() {
            ensure!(Instant::now() < deadline, "openssl s_server does not listen");
            thread::sleep(Duration::from_millis(5));
        }
        let mut client = tool("openssl")?;
        client.args(["s_client", "-verify_return_error", "-connect", &format!("127.0.0.1:{port}")]);
        ensure!(!succeeds(client.arg("-CAfile").arg(&root))?, "openssl s_client takes {name}");
        // Rustls.
        let tpm = trusted_vendor()?.device(EkKind::P256, 0)?;
        let device = Device::new(&tpm)?;
        let output = device.provision_at(&format!("mqtts://127.0.0.1:{port}"), &root)?.output()?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(!output.status.success() && said.contains("certificate"), "{name}: {said}");
        server.kill()?;
        server.wait()?;
    }
    Ok(())
}

/// OpenSSL takes the common name for a DNS name if it has a dot.
#[test]
fn device_whose_id_looks_like_a_dns_name_is_taken_by_openssl_gnutls_and_mosquitto() -> Result<()> {
    let deployed = Deployed::start()?;
    let (root, id) = (deployed.dir.root_pem(), "pump.plant-3.example");
    let tpm = trusted_vendor()?.device(EkKind::P256, 0)?;
    let file = tpm.work_dir().join("ek.der");
    fs::write(&file, tpm.ek_certificate(EkKind::P256)?)?;
    let file = file.to_str().context("a path")?;
    run(&mut deployed.dir.assay(&["enroll", "add", file, "--device-id", id])?)?;
    let device = Device::new(&tpm)?;
    let provisioned = json(&mut device.provision_at(&deployed.url(0), &root)?)?;
    ensure!(provisioned["device_id"] == id, "{provisioned}");
    let chain = device.state().join("certificate.pem");
    for purpose in ["sslclient", "any"] {
        ensure!(openssl_takes(&root, &chain, purpose)?, "{purpose}");
    }
    for purpose in [None, Some(CLIENT_AUTH)] {
        ensure!(gnutls_takes(&root, &chain, purpose)?, "{purpose:?}");
    }
    let tunnel = Tunnel::run(device.tunnel_at(&deployed.url(1), &root, "127.0.0.1:0")?)?;
    let mut says = tunnel.mosquitto("mosquitto_pub", "5", "node-red")?;
    says.args(["-d", "-t", &format!("device/v1/default/{id}/telemetry"), "-m", "21"]);
    let output = says.output()?;
    let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    // Nobody listens: no matching subscribers (MQTT 5 §3.4.2.1).
    ensure!(said.contains("RC:16"), "{said}");
    Ok(())
}

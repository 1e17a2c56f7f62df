//! `assay-device tunnel`: what it does for local clients, and what they cannot do to it.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};
use std::{fs, io};

use anyhow::{Context, Result, bail, ensure};
use assay_tests::{Device, EkKind, Swtpm, run, spawn, tool, trusted_vendor};

use crate::lab::Lab;

/// A running tunnel; killed when dropped.
pub(crate) struct Tunnel {
    process: Child,
    pub(crate) port: u16,
    told: Arc<Mutex<Vec<String>>>,
}

impl Tunnel {
    pub(crate) fn start(lab: &Lab, device: &Device) -> Result<Self> {
        Self::run(device.tunnel_at(&lab.server.operational, &lab.dir.root_pem(), "127.0.0.1:0")?)
    }

    pub(crate) fn run(mut command: Command) -> Result<Self> {
        command.stdin(Stdio::null()).stderr(Stdio::piped());
        let mut process = spawn(command)?;
        let mut lines = BufReader::new(process.stderr.take().context("its output")?).lines();
        let first = lines.next().context("it ended")??;
        let address = first.strip_prefix("listening on ").with_context(|| first.clone())?;
        let address = address.split(' ').next().context("an address")?;
        let port = address.rsplit_once(':').and_then(|(_, port)| port.parse().ok());
        let told = Arc::new(Mutex::new(vec![first.clone()]));
        let heard = Arc::clone(&told);
        thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                heard.lock().unwrap_or_else(PoisonError::into_inner).push(line);
            }
        });
        Ok(Self { process, port: port.unwrap_or_default(), told })
    }

    /// What it has told so far, without the line that it listens.
    fn told(&self) -> Vec<String> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)[1..].to_vec()
    }

    /// Waits until the last line that it told ends in this way. Returns all lines.
    fn tells(&self, end: &str) -> Result<Vec<String>> {
        let started = Instant::now();
        loop {
            let told = self.told();
            if told.last().is_some_and(|line| line.ends_with(end)) {
                return Ok(told);
            }
            ensure!(started.elapsed() < PATIENCE, "{end:?} is not in {told:?}");
            thread::sleep(Duration::from_millis(10));
        }
    }

    fn connect(&self) -> Result<TcpStream> {
        let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        Ok(stream)
    }

    /// Sends a CONNECT, and reads the CONNACK.
    fn connected(&self, connect: &[u8]) -> Result<(TcpStream, Vec<u8>)> {
        let mut stream = self.connect()?;
        stream.write_all(connect)?;
        let mut head = [0; 2];
        stream.read_exact(&mut head)?;
        let mut body = vec![0; head[1].into()];
        stream.read_exact(&mut body)?;
        Ok((stream, [&head[..], &body].concat()))
    }

    /// `mosquitto_pub` or `mosquitto_sub` through the tunnel.
    pub(crate) fn mosquitto(&self, program: &str, version: &str, client: &str) -> Result<Command> {
        let mut command = tool(program)?;
        command.args(["-V", version, "-h", "127.0.0.1", "-p", &self.port.to_string()]);
        command.args(["-i", client, "-q", "1"]);
        Ok(command)
    }

    /// Publishes one message in the device's tree.
    pub(crate) fn publishes(&self, id: &str) -> Result<()> {
        let topic = format!("device/v1/default/{id}/telemetry");
        run(self.mosquitto("mosquitto_pub", "5", "says")?.args(["-t", &topic, "-m", "21"]))
            .map(drop)
    }
}

impl Drop for Tunnel {
    fn drop(&mut self) {
        _ = self.process.kill();
        _ = self.process.wait();
    }
}

/// A device with a certificate or a shared key, and its device id.
pub(crate) struct Provisioned {
    pub(crate) device: Device,
    pub(crate) id: String,
    pub(crate) tpm: Swtpm,
}

impl Provisioned {
    pub(crate) fn new(lab: &Lab, number: usize, flow: &str) -> Result<Self> {
        let tpm = trusted_vendor()?.device(EkKind::P256, number)?;
        let device = Device::new(&tpm)?;
        let provisioned = lab.provision(&device, &["--flow", flow])?;
        let id = provisioned["device_id"].as_str().context("an id")?.to_owned();
        Ok(Self { device, id, tpm })
    }

    fn topic(&self, rest: &str) -> String {
        format!("device/v1/default/{}/{rest}", self.id)
    }
}

/// A CONNECT of MQTT 3.1.1 (4) or 5 with a keep-alive of 60 s, and a Will if `will` has a topic.
fn connect(version: u8, client: &str, will: Option<&str>) -> Vec<u8> {
    let field = |text: &str| [&(text.len() as u16).to_be_bytes()[..], text.as_bytes()].concat();
    let properties = if version == 5 { &b"\0"[..] } else { b"" };
    let flags = if will.is_some() { 0x06 } else { 0x02 };
    let mut body = [b"\0\x04MQTT", &[version, flags, 0, 60][..], properties].concat();
    body.extend(field(client));
    if let Some(topic) = will {
        body.extend([properties, &field(topic), &field("gone")].concat());
    }
    [&[0x10, u8::try_from(body.len()).expect("a short packet")][..], &body].concat()
}

/// SUBSCRIBE to one filter with QoS 0, and the SUBACK's code.
fn subscribe(stream: &mut TcpStream, version: u8, filter: &str) -> Result<u8> {
    let properties = if version == 5 { &b"\0"[..] } else { b"" };
    let mut body = [b"\0\x01", properties, &(filter.len() as u16).to_be_bytes()].concat();
    body.extend(filter.as_bytes());
    body.push(0);
    stream.write_all(&[&[0x82, u8::try_from(body.len())?][..], &body].concat())?;
    let mut suback = vec![0; if version == 5 { 6 } else { 5 }];
    stream.read_exact(&mut suback)?;
    ensure!(suback[0] == 0x90, "{suback:?}");
    Ok(suback[suback.len() - 1])
}

fn is_alive(stream: &mut TcpStream) -> Result<bool> {
    stream.write_all(b"\xC0\0")?;
    let mut pong = [0; 2];
    Ok(stream.read_exact(&mut pong).is_ok() && pong == *b"\xD0\0")
}

/// Reads until the other side closes. What came before that does not matter.
fn is_cut(stream: &mut TcpStream) -> bool {
    match stream.read_to_end(&mut Vec::new()) {
        Ok(_) => true,
        Err(error) => error.kind() == io::ErrorKind::ConnectionReset,
    }
}

#[test]
fn several_clients_stay_side_by_side_with_the_device_and_each_ends_only_its_own_connection()
-> Result<()> {
    let lab = Lab::open()?;
    let pump = Provisioned::new(&lab, 0, "ticket")?;
    let tunnel = Tunnel::start(&lab, &pump.device)?;
    let mut clients = Vec::new();
    // The device id itself is a client id like any other here.
    for (version, client) in [(4, "node-red"), (5, "logger"), (4, "a/b c"), (5, &pump.id)] {
        let (mut stream, connack) = tunnel.connected(&connect(version, client, None))?;
        ensure!(connack[3] == 0, "{client}: {connack:02x?}");
        ensure!(subscribe(&mut stream, version, &pump.topic("#"))? == 0);
        clients.push(stream);
    }
    run(&mut pump.device.publish(&lab.dir, &lab.server, "x", "from the device itself")?)?;
    for stream in &mut clients {
        let mut publish = vec![0; 2];
        stream.read_exact(&mut publish)?;
        publish.resize(usize::from(publish[1]) + 2, 0);
        stream.read_exact(&mut publish[2..])?;
        ensure!(publish[0] == 0x30 && publish.ends_with(b"from the device itself"), "{publish:?}");
    }
    let (again, connack) = tunnel.connected(&connect(4, "a/b c", None))?;
    ensure!(connack[3] == 0);
    ensure!(is_cut(&mut clients.remove(2)), "its own older connection ends");
    clients.push(again);
    for stream in &mut clients {
        ensure!(is_alive(stream)?);
    }
    ensure!(tunnel.tells(&format!("lets {} in", pump.id))?.len() == 1, "{:?}", tunnel.told());
    Ok(())
}

#[test]
fn client_without_an_id_is_told_its_assigned_id_and_can_come_back_with_it() -> Result<()> {
    let lab = Lab::open()?;
    let pump = Provisioned::new(&lab, 0, "ticket")?;
    let tunnel = Tunnel::start(&lab, &pump.device)?;
    let (mut first, connack) = tunnel.connected(&connect(5, "", None))?;
    let at = connack.windows(3).position(|bytes| bytes == b"\x12\0\x17");
    let at = at.with_context(|| format!("an assigned client id: {connack:02x?}"))? + 3;
    let assigned = std::str::from_utf8(&connack[at..at + 23])?.to_owned();
    ensure!(assigned.starts_with("auto-"), "{assigned}");
    // The other properties of the broker's CONNACK are there too: Server Keep Alive.
    ensure!(connack.windows(3).any(|bytes| bytes == b"\x13\0\x3C"), "{connack:02x?}");

    let (mut other, _) = tunnel.connected(&connect(5, "", None))?;
    let (_again, connack) = tunnel.connected(&connect(5, &assigned, None))?;
    ensure!(!connack.windows(2).any(|bytes| bytes == b"\x12\0"), "it named itself");
    ensure!(is_cut(&mut first) && is_alive(&mut other)?);

    let (mut old, connack) = tunnel.connected(&connect(4, "", None))?;
    ensure!(connack == b"\x20\x02\0\0" && is_alive(&mut old)?);
    let mut unclean = connect(4, "", None);
    unclean[9] = 0;
    ensure!(tunnel.connected(&unclean)?.1 == b"\x20\x02\0\x02", "MQTT 3.1.1 §3.1.3-8");
    Ok(())
}

#[test]
fn will_of_a_client_that_is_gone_is_published_and_none_for_another_device_is_taken() -> Result<()> {
    let lab = Lab::open()?;
    let pump = Provisioned::new(&lab, 0, "ticket")?;
    let tunnel = Tunnel::start(&lab, &pump.device)?;
    let (mut hears, _) = tunnel.connected(&connect(4, "hears", None))?;
    ensure!(subscribe(&mut hears, 4, &pump.topic("presence"))? == 0);
    ensure!(subscribe(&mut hears, 4, "device/v1/default/another/#")? == 0x80);
    let (gone, connack) = tunnel.connected(&connect(4, "gone", Some(&pump.topic("presence"))))?;
    ensure!(connack[3] == 0);
    drop(gone);
    let mut publish = vec![0; 2 + 2 + pump.topic("presence").len() + 4];
    hears.read_exact(&mut publish)?;
    ensure!(publish.ends_with(b"gone"));
    let (_, connack) =
        tunnel.connected(&connect(5, "bad", Some("device/v1/default/another/presence")))?;
    ensure!(connack[3] == 0x87, "the broker's refusal is passed on: {connack:02x?}");
    tunnel.tells("CONNACK 0x87")?;
    Ok(())
}

#[test]
fn renewed_certificate_is_used_by_the_next_connection_without_a_restart() -> Result<()> {
    let lab = Lab::with_settings("[certificates]\nlifetime_days = 1\nrenew_before_days = 1")?;
    let pump = Provisioned::new(&lab, 0, "ticket")?;
    let tunnel = Tunnel::start(&lab, &pump.device)?;
    let (mut old, connack) = tunnel.connected(&connect(5, "stays", None))?;
    ensure!(connack[3] == 0);
    tunnel.publishes(&pump.id)?;
    // A renewed certificate must end later than the one before it, and they count in seconds.
    thread::sleep(Duration::from_millis(1100));
    let renewed = run(&mut pump.device.renew(&lab.dir, &lab.server)?)?;
    ensure!(String::from_utf8(renewed.stdout)?.contains("\"renewed\""));
    ensure!(lab.statuses(&pump.id)? == ["superseded", "active"]);
    ensure!(is_cut(&mut old), "the broker cuts what uses the old certificate");
    tunnel.publishes(&pump.id)
}

#[test]
fn clients_are_refused_at_once_while_the_broker_is_away_and_served_when_it_is_back() -> Result<()> {
    let mut lab = Lab::open()?;
    let pump = Provisioned::new(&lab, 0, "ticket")?;
    let tunnel = Tunnel::start(&lab, &pump.device)?;
    lab.server.kill9()?;
    for _ in 0..3 {
        let started = Instant::now();
        ensure!(tunnel.connected(&connect(4, "c", None))?.1 == b"\x20\x02\0\x03");
        ensure!(tunnel.connected(&connect(5, "c", None))?.1 == b"\x20\x03\0\x88\0");
        ensure!(started.elapsed() < PATIENCE / 2, "{:?}", started.elapsed());
    }
    lab.server.restart()?;
    tunnel.publishes(&pump.id)?;
    let told = tunnel.tells(&format!("lets {} in", pump.id))?;
    ensure!(told.len() == 2, "a line for each change: {told:?}");
    Ok(())
}

#[test]
fn clients_are_not_authorized_while_the_device_has_nothing_that_the_broker_accepts() -> Result<()> {
    let lab = Lab::open()?;
    let tpm = trusted_vendor()?.device(EkKind::P256, 1)?;
    let new = Device::new(&tpm)?;
    let tunnel = Tunnel::start(&lab, &new)?;
    ensure!(tunnel.connected(&connect(4, "c", None))?.1 == b"\x20\x02\0\x05");
    ensure!(tunnel.connected(&connect(5, "c", None))?.1 == b"\x20\x03\0\x87\0");
    let provisioned = lab.provision(&new, &[])?;
    let id = provisioned["device_id"].as_str().context("an id")?;
    tunnel.publishes(id)?;

    let (mut stays, _) = tunnel.connected(&connect(5, "stays", None))?;
    lab.assay(&["enroll", "disable", id])?;
    ensure!(is_cut(&mut stays), "the broker's cut is passed on");
    ensure!(tunnel.connected(&connect(5, "c", None))?.1[3] == 0x87);
    Ok(())
}

#[test]
fn hostile_clients_are_cut_in_time_and_delay_nobody() -> Result<()> {
    let lab = Lab::open()?;
    let pump = Provisioned::new(&lab, 0, "ticket")?;
    let tunnel = Tunnel::start(&lab, &pump.device)?;
    tunnel.publishes(&pump.id)?;
    let mut silent = Vec::new();
    for number in 0..100 {
        let mut stream = tunnel.connect()?;
        if number % 2 == 0 {
            stream.write_all(b"\x10\x20\0")?;
        }
        silent.push(stream);
    }
    let opened = Instant::now();
    ensure!(is_cut(&mut silent[0]) && opened.elapsed() < PATIENCE / 4, "it made room for others");
    for garbage in [
        &b"GET / HTTP/1.1\r\n\r\n"[..],
        b"\x16\x03\x01\x02\0",
        b"\x10\xFF\xFF\xFF\x7F\0\x04MQTT",
        b"\x10\xFF\xFF\xFF\xFF\xFF",
        b"\x10\0",
        b"\xC0\0",
    ] {
        let mut stream = tunnel.connect()?;
        let started = Instant::now();
        stream.write_all(garbage)?;
        ensure!(is_cut(&mut stream) && started.elapsed() < PATIENCE / 4, "{garbage:?}");
    }
    let older = tunnel.connected(b"\x10\x0E\0\x06MQIsdp\x03\x02\0\x3C\0\0")?.1;
    ensure!(older == b"\x20\x02\0\x01", "{older:?}");
    let started = Instant::now();
    tunnel.publishes(&pump.id)?;
    ensure!(started.elapsed() < PATIENCE / 4, "{:?}", started.elapsed());
    for stream in &mut silent {
        ensure!(is_cut(stream));
    }
    ensure!(opened.elapsed() < PATIENCE, "{:?}", opened.elapsed());
    Ok(())
}

#[test]
fn clients_beyond_the_places_are_told_that_the_tunnel_is_busy() -> Result<()> {
    let lab = Lab::open()?;
    let pump = Provisioned::new(&lab, 0, "ticket")?;
    let tunnel = Tunnel::start(&lab, &pump.device)?;
    let mut held = Vec::new();
    for number in 0..8 {
        held.push(tunnel.connected(&connect(5, &number.to_string(), None))?.0);
    }
    // The broker's limit.
    ensure!(tunnel.connected(&connect(5, "more", None))?.1[3] == 0x89);
    // While the TPM does not answer, connections take up the tunnel's own places.
    pump.tpm.pause()?;
    let mut pending = Vec::new();
    for number in 0..8 {
        let mut stream = tunnel.connect()?;
        stream.write_all(&connect(4, &number.to_string(), None))?;
        pending.push(stream);
    }
    thread::sleep(Duration::from_millis(300));
    ensure!(tunnel.connected(&connect(5, "more", None))?.1 == b"\x20\x03\0\x89\0");
    ensure!(tunnel.connected(&connect(4, "more", None))?.1 == b"\x20\x02\0\x03");
    let started = Instant::now();
    for stream in &mut held {
        ensure!(is_alive(stream)?);
    }
    ensure!(started.elapsed() < PATIENCE / 4, "a slow TPM delays no connection that is there");
    pump.tpm.resume()?;
    for stream in &mut pending {
        let mut connack = [0; 4];
        stream.read_exact(&mut connack)?;
        ensure!(connack == *b"\x20\x02\0\0", "{connack:?}");
    }
    Ok(())
}

#[test]
fn tunnel_ends_at_sigterm_with_its_connections() -> Result<()> {
    let lab = Lab::open()?;
    let pump = Provisioned::new(&lab, 0, "ticket")?;
    let mut tunnel = Tunnel::start(&lab, &pump.device)?;
    let (mut client, _) = tunnel.connected(&connect(5, "c", None))?;
    run(tool("sh")?.args(["-c", &format!("kill {}", tunnel.process.id())]))?;
    ensure!(is_cut(&mut client));
    let started = Instant::now();
    let status = loop {
        match tunnel.process.try_wait()? {
            Some(status) => break status,
            None if started.elapsed() > PATIENCE => bail!("it goes on"),
            None => thread::sleep(Duration::from_millis(10)),
        }
    };
    ensure!(status.success(), "{status}");
    ensure!(TcpStream::connect((Ipv4Addr::LOCALHOST, tunnel.port)).is_err());
    Ok(())
}

#[test]
fn socket_in_the_file_system_is_for_owner_and_group_alone() -> Result<()> {
    let lab = Lab::open()?;
    let pump = Provisioned::new(&lab, 0, "ticket")?;
    let socket = pump.tpm.work_dir().join("mqtt");
    let listen = format!("unix:{}", socket.display());
    let command =
        |listen| pump.device.tunnel_at(&lab.server.operational, &lab.dir.root_pem(), listen);
    let tunnel = Tunnel::run(command(&listen)?)?;
    ensure!(fs::metadata(&socket)?.permissions().mode() & 0o777 == 0o660);
    let mut says = tool("mosquitto_pub")?;
    says.arg("--unix").arg(&socket).args(["-i", "says", "-q", "1"]);
    run(says.args(["-t", &pump.topic("telemetry"), "-m", "21"]))?;
    let second = command(&listen)?.output()?;
    ensure!(second.status.code() == Some(2), "{second:?}");
    drop(tunnel);
    for address in ["0.0.0.0:1883", "192.0.2.1:1883", "[::]:1883"] {
        let refused = command(address)?.output()?;
        let told = String::from_utf8(refused.stderr)?;
        ensure!(refused.status.code() == Some(2) && told.contains("not a loopback"), "{told}");
    }
    Ok(())
}

#[test]
fn tunnel_leaves_the_state_directory_to_others() -> Result<()> {
    let lab = Lab::open()?;
    let pump = Provisioned::new(&lab, 0, "ticket")?;
    let tunnel = Tunnel::start(&lab, &pump.device)?;
    let (mut client, _) = tunnel.connected(&connect(5, "c", None))?;
    lab.provision(&pump.device, &[])?;
    ensure!(is_alive(&mut client)?);
    lab.provision(&pump.device, &["--flow", "shared-key"])?;
    tunnel.publishes(&pump.id).context("with a token from now on")
}

/// Longer than the 10 s in which a client must say who it is.
const PATIENCE: Duration = Duration::from_secs(16);

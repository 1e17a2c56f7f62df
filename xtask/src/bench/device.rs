//! `cargo xtask bench device`: what provisioning costs a device, with optimised builds on software
//! TPMs.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use assay_tests::{
    AssayDir, AssayServer, Device, EkKind, Mosquitto, Tap, VendorCa, Worker, assay_bin, json,
    trusted_vendor, use_binaries_in,
};
use clap::Args as ClapArgs;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{bin_dir, cargo, show};

#[derive(ClapArgs)]
pub(crate) struct Args {
    /// Print one JSON object on stdout instead of a table
    #[arg(long)]
    json: bool,
    /// One run of each kind instead of five
    #[arg(long)]
    quick: bool,
}

/// Builds as users build, measures every flow with two kinds of EK, and prints medians.
///
/// Each run has a fresh TPM, a fresh state directory and a CA that has never seen the device:
///
/// 1. straight to TPM and broker, for the wall time, from before the process is started until it
///    has ended;
/// 2. with a tap before TPM and broker, for the times of the TPM's commands, and the bytes over
///    TLS;
/// 3. with a tap that slows the TPM down to the pace of a chip;
/// 4. with a tap before a broker without TLS, for the bytes of MQTT. The end of the process is
///    delayed, so that its memory can be read.
pub(crate) fn run(args: Args) -> Result<()> {
    let binaries = build()?;
    use_binaries_in(binaries.path().into());
    let runs = if args.quick { 1 } else { RUNS };
    let vendor = trusted_vendor()?;
    let mut rows = Vec::new();
    for ek in [EkKind::P256, EkKind::Rsa2048] {
        for flow in FLOWS {
            eprintln!("{} {flow}: {runs} × 4 runs", ek.name());
            rows.push(Row::measure(&vendor, ek, flow, runs)?);
        }
    }
    let stripped_bytes = fs::metadata(assay_bin("assay-device")?)?.len();
    if args.json {
        let rows: Vec<_> = rows.iter().map(Row::to_json).collect();
        let targets = json!({
            "wall_by_tpm": MAX_WALL_BY_TPM,
            "mqtt_bytes_of_ticket_with_p_256": MAX_MQTT_BYTES,
            "stripped_bytes": MAX_STRIPPED_BYTES,
            "peak_rss_kib": MAX_PEAK_RSS_KIB,
        });
        println!(
            "{:#}",
            json!({ "runs": runs, "stripped_bytes": stripped_bytes, "rows": rows, "targets": targets })
        );
    } else {
        print_table(&rows, stripped_bytes, runs);
    }
    Ok(())
}

/// The medians for one flow and one kind of EK.
struct Row {
    ek: EkKind,
    flow: &'static str,
    /// One process from start to end, milliseconds.
    wall_ms: f64,
    /// Sum of the TPM's times, in milliseconds. Each is from the last byte of a command to the last
    /// byte of its answer.
    tpm_ms: f64,
    tpm_commands: f64,
    /// The same for the answers of the broker and the CA, including what TLS and TCP need. Part of
    /// this time overlaps with the TPM's.
    wire_ms: f64,
    /// Wall time divided by TPM time if the TPM takes as long as a fast chip.
    slowed_wall_by_tpm: f64,
    payload_bytes: f64,
    mqtt_bytes: f64,
    tls_bytes: f64,
    peak_rss_kib: f64,
}

impl Row {
    fn measure(vendor: &VendorCa, ek: EkKind, flow: &'static str, runs: usize) -> Result<Self> {
        let served = AssayDir::init()?;
        served.trust(vendor)?;
        let server = AssayServer::start(&served)?;
        let elsewhere = AssayDir::init()?;
        elsewhere.trust(vendor)?;
        let mosquitto = Mosquitto::start(&["allow_anonymous true"])?;
        let _worker = Worker::start(&elsewhere, &plain(mosquitto.port(0)))?;

        let (mut straight, mut tapped, mut slowed, mut held) =
            (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        // One run more: the first fills the caches and does not count.
        for number in 0..=runs {
            let tpm = vendor.device(ek, number)?;
            let device = Device::new(&tpm)?;
            let begin = Instant::now();
            provision(&device, flow, ek, &server.bootstrap, &served)?;
            straight.push([milliseconds(begin.elapsed())]);

            let tpm = vendor.device(ek, runs + 1 + number)?;
            let commands = Tap::before(tpm.port())?;
            let wire = Tap::before(port(&server.bootstrap)?)?;
            let device = Device::at(&format!("swtpm:host=127.0.0.1,port={}", commands.port()))?;
            provision(&device, flow, ek, &format!("mqtts://127.0.0.1:{}", wire.port()), &served)?;
            let (tpm_ms, wire_ms) = (milliseconds(commands.waited()), milliseconds(wire.waited()));
            tapped.push([tpm_ms, commands.requests() as f64, wire_ms, wire.bytes() as f64]);

            let tpm = vendor.device(ek, 2 * (runs + 1) + number)?;
            let commands = Tap::slowing(tpm.port(), CHIP_COMMAND)?;
            let device = Device::at(&format!("swtpm:host=127.0.0.1,port={}", commands.port()))?;
            let begin = Instant::now();
            provision(&device, flow, ek, &server.bootstrap, &served)?;
            slowed.push([milliseconds(begin.elapsed()) / milliseconds(commands.waited())]);

            let tpm = vendor.device(ek, number)?;
            let wire = Tap::before(mosquitto.port(0))?;
            let device = Device::new(&tpm)?;
            let command = command(&device, flow, ek, &plain(wire.port()), &elsewhere)?;
            let (peak_rss_kib, cost) = held_up(command)?;
            let payload = [&cost["bytes_sent"], &cost["bytes_received"]].map(Value::as_f64);
            let [Some(sent), Some(received)] = payload else { anyhow::bail!("{cost}") };
            held.push([peak_rss_kib, sent + received, wire.bytes() as f64]);
        }
        // A server that is dropped without `stop` prints its log.
        server.stop()?;
        let [wall_ms] = medians(&straight[1..]);
        let [tpm_ms, tpm_commands, wire_ms, tls_bytes] = medians(&tapped[1..]);
        let [slowed_wall_by_tpm] = medians(&slowed[1..]);
        let [peak_rss_kib, payload_bytes, mqtt_bytes] = medians(&held[1..]);
        Ok(Self {
            ek,
            flow,
            wall_ms,
            tpm_ms,
            tpm_commands,
            wire_ms,
            slowed_wall_by_tpm,
            payload_bytes,
            mqtt_bytes,
            tls_bytes,
            peak_rss_kib,
        })
    }

    fn to_json(&self) -> Value {
        json!({
            "ek": self.ek.name(),
            "flow": self.flow,
            "wall_ms": self.wall_ms,
            "tpm_ms": self.tpm_ms,
            "wall_by_tpm": self.wall_ms / self.tpm_ms,
            "wall_by_tpm_at_the_pace_of_a_chip": self.slowed_wall_by_tpm,
            "tpm_commands": self.tpm_commands,
            "wire_ms": self.wire_ms,
            "payload_bytes": self.payload_bytes,
            "mqtt_bytes": self.mqtt_bytes,
            "tls_bytes": self.tls_bytes,
            "peak_rss_kib": self.peak_rss_kib,
        })
    }
}

fn provision(
    device: &Device,
    flow: &str,
    ek: EkKind,
    broker: &str,
    ca: &AssayDir,
) -> Result<Value> {
    json(&mut command(device, flow, ek, broker, ca)?)
}

fn command(
    device: &Device,
    flow: &str,
    ek: EkKind,
    broker: &str,
    ca: &AssayDir,
) -> Result<Command> {
    let mut command = device.provision_at(broker, &ca.root_pem())?;
    command.args(["--flow", flow, "--ek", ek.name()]);
    Ok(command)
}

/// The largest resident set of a process, in KiB, and the JSON that the process wrote.
///
/// The kernel forgets the resident set when the process ends. So a full pipe blocks the last step
/// of the process, which writes to stdout.
fn held_up(mut command: Command) -> Result<(f64, Value)> {
    let (mut output, mut input) = std::io::pipe()?;
    input.write_all(&FILLING)?;
    let mut process = command.stdout(input).stderr(Stdio::piped()).spawn()?;
    // The command keeps our copy of the pipe's writing end, and the reader would wait for it.
    drop(command);
    let measured = peak_rss_kib(&mut process);
    let mut written = Vec::new();
    output.read_to_end(&mut written)?;
    let status = process.wait()?;
    ensure!(status.success(), "`assay-device provision`: {status}");
    let json = written.get(FILLING.len()..).context("it wrote nothing")?;
    Ok((measured?, serde_json::from_slice(json)?))
}

fn peak_rss_kib(process: &mut Child) -> Result<f64> {
    let stderr = BufReader::new(process.stderr.take().context("stderr is a pipe")?);
    let mut last = String::new();
    for line in stderr.lines() {
        last = line?;
        if last.starts_with("provisioned as ") {
            thread::sleep(UNTIL_IT_WRITES);
            let status = fs::read_to_string(format!("/proc/{}/status", process.id()))?;
            let peak = status
                .lines()
                .find_map(|line| line.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB"));
            return Ok(peak.context("/proc/PID/status has no VmHWM")?.parse()?);
        }
    }
    anyhow::bail!("`assay-device provision` ended with {last:?}")
}

fn print_table(rows: &[Row], stripped_bytes: u64, runs: usize) {
    println!(
        "EK        flow         wall ms  TPM ms  wall ÷ TPM  …of a chip  TPM commands  CA + wire \
         ms  payload B  MQTT B  TLS B  peak RSS KiB"
    );
    for row in rows {
        println!(
            "{:9} {:11} {:8.1} {:7.1} {:11.2} {:11.2} {:13} {:13.1} {:10} {:7} {:6} {:13}",
            row.ek.name(),
            row.flow,
            row.wall_ms,
            row.tpm_ms,
            row.wall_ms / row.tpm_ms,
            row.slowed_wall_by_tpm,
            row.tpm_commands,
            row.wire_ms,
            row.payload_bytes,
            row.mqtt_bytes,
            row.tls_bytes,
            row.peak_rss_kib,
        );
    }
    let of = |name: &str, value: String, target: String, is_met: bool| {
        println!(
            "{name:46} {value:>12}   target {target:>12}   {}",
            if is_met { "met" } else { "MISSED" }
        );
    };
    println!();
    let largest = |of: fn(&Row) -> f64| rows.iter().map(of).fold(0.0, f64::max);
    let ratio = largest(|row| row.wall_ms / row.tpm_ms);
    of(
        "wall ÷ TPM, largest",
        format!("{ratio:.2}"),
        format!("{MAX_WALL_BY_TPM:.2}"),
        ratio <= MAX_WALL_BY_TPM,
    );
    let slowed = largest(|row| row.slowed_wall_by_tpm);
    of(
        "wall ÷ TPM, largest, at the pace of a chip",
        format!("{slowed:.2}"),
        format!("{MAX_WALL_BY_TPM:.2}"),
        slowed <= MAX_WALL_BY_TPM,
    );
    let ticket = rows.iter().find(|row| row.ek == EkKind::P256 && row.flow == "ticket");
    let bytes = ticket.map_or(f64::NAN, |row| row.mqtt_bytes);
    of(
        "MQTT bytes, ticket flow, P-256",
        bytes.to_string(),
        MAX_MQTT_BYTES.to_string(),
        bytes <= MAX_MQTT_BYTES,
    );
    let is_met = stripped_bytes <= MAX_STRIPPED_BYTES;
    of(
        "stripped executable, bytes",
        stripped_bytes.to_string(),
        MAX_STRIPPED_BYTES.to_string(),
        is_met,
    );
    let rss = largest(|row| row.peak_rss_kib);
    of(
        "peak RSS, largest, KiB",
        rss.to_string(),
        MAX_PEAK_RSS_KIB.to_string(),
        rss <= MAX_PEAK_RSS_KIB,
    );
    println!(
        "\nMedians of {runs}. TPM: swtpm, from the last byte of each command to the last of its \
         answer."
    );
    println!("Of a chip: each answer {} ms later.", CHIP_COMMAND.as_millis());
    println!(
        "MQTT: CONNECT to DISCONNECT, both directions, payload included, without TLS and TCP."
    );
}

fn medians<const N: usize>(samples: &[[f64; N]]) -> [f64; N] {
    std::array::from_fn(|column| {
        let mut values: Vec<_> = samples.iter().map(|sample| sample[column]).collect();
        values.sort_by(f64::total_cmp);
        values[values.len() / 2]
    })
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

fn port(url: &str) -> Result<u16> {
    Ok(url.rsplit_once(':').context("a URL with a port")?.1.parse()?)
}

fn plain(port: u16) -> String {
    format!("mqtt://127.0.0.1:{port}")
}

/// The agent and the CA, built as users build them, in one directory.
fn build() -> Result<TempDir> {
    let binaries = tempfile::tempdir()?;
    let target = bin_dir()?.parent().context("a profile directory has a parent")?.to_path_buf();
    // One by one. Built together, each would also have the features of the other's dependencies.
    for (package, binary, profile) in
        [("assay-device", "assay-device", "device"), ("assay-server", "assay", "release")]
    {
        eprintln!("Building {binary}, profile {profile}");
        show(&mut cargo(&["build", "--profile", profile, "--package", package, "--bin", binary]))?;
        fs::copy(target.join(profile).join(binary), binaries.path().join(binary))?;
    }
    Ok(binaries)
}

const FLOWS: [&str; 3] = ["ticket", "sealed", "shared-key"];
/// Enough for a median that one disturbed run does not move.
const RUNS: usize = 5;
/// Delay of each of swtpm's answers. It shows the ratio for a TPM whose commands take longer than a
/// function call. Chips take milliseconds for their quickest commands, and much longer for those
/// that use keys.
const CHIP_COMMAND: Duration = Duration::from_millis(10);
/// The capacity of a pipe on Linux (pipe(7)).
static FILLING: [u8; 65_536] = [b' '; 65_536];
/// Time from the last line on stderr to the blocked write.
const UNTIL_IT_WRITES: Duration = Duration::from_millis(50);

/// The targets. This is the most wall time of the agent, as a multiple of its TPM's time.
const MAX_WALL_BY_TPM: f64 = 1.15;
/// 3.5 KB.
const MAX_MQTT_BYTES: f64 = 3500.0;
/// 4 MiB.
const MAX_STRIPPED_BYTES: u64 = 4 << 20;
/// 8 MiB.
const MAX_PEAK_RSS_KIB: f64 = 8192.0;

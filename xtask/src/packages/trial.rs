//! `cargo xtask packages-test`: both packages on a fresh Debian machine, from installation to
//! purge.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use assay_tests::{EkKind, Swtpm, VendorCa, run, tool};
use serde_json::Value;

use super::build;
use super::machine::{Booted, Machine};
use crate::{bin_dir, install};

/// Builds the packages and tries them; the first step that fails is an error.
pub(crate) fn run_trial() -> Result<()> {
    ensure!(install::is_root()?, "packages are installed and services started: run this as root");
    install::install_for_packages()?;
    let files = build()?;

    let target = bin_dir()?
        .parent()
        .context("a profile's directory is in the target directory")?
        .to_path_buf();
    let work = tempfile::tempdir()?;
    let mut trial = Trial::default();
    let machine = trial
        .step("a fresh Debian in a folder", || Machine::make(&target.join("packages-test")))?;
    trial.step("apt installs both, with what they depend on", || apt_install(&machine, &files))?;
    trial.step("programs, manual pages and completions are there", || contents(&machine))?;
    trial.step("users and directories are made", || accounts(&machine))?;

    let (vendor, tpm) = manufacture(work.path())?;
    for certificate in [vendor.root_pem(), vendor.intermediate_pem()] {
        let name =
            certificate.file_name().context("a file has a name")?.to_string_lossy().into_owned();
        fs::copy(&certificate, machine.path("srv").join(name))?;
    }
    let booted =
        trial.step("the machine boots with systemd", || machine.boot(work.path(), SHARED))?;
    let booted = &booted;
    trial.step("nothing starts before it is configured", || untouched(booted))?;
    trial.step("units are valid and their exposure is low", || exposure(booted))?;
    trial.step("assay init leaves all files to the user of the service", || init(booted))?;
    trial.step("operators' commands work as that user and as root", || operate(booted))?;
    trial.step("assay.service is ready, healthy and confined", || serve(booted))?;
    trial.step("assay-device.service provisions by /dev/tpmrm0 and is online", || {
        provision(booted, work.path(), &tpm)
    })?;
    trial.step("assay-worker@ serves beside it", || worker(booted))?;
    trial.step("a reload takes good settings, and refuses bad ones", || reload(booted))?;
    trial.step("the watchdog restarts a server that hangs", || watchdog(booted))?;
    trial
        .step("an upgrade restarts what runs and keeps the settings", || upgrade(booted, &files))?;
    trial.step("a stop ends in order", || stop(booted))?;
    trial.step("removed and installed again, it goes on with its keys", || {
        reinstall(booted, &files)
    })?;
    trial.step("purged, it leaves the keys and says where", || purge(booted))?;
    println!("{} steps passed", trial.passed);
    Ok(())
}

#[derive(Default)]
struct Trial {
    passed: usize,
}

impl Trial {
    fn step<T>(&mut self, name: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
        let begin = Instant::now();
        print!("{name} … ");
        io::stdout().flush()?;
        let done = work().with_context(|| format!("step failed: {name}"))?;
        println!("{:.1} s", begin.elapsed().as_secs_f64());
        self.passed += 1;
        Ok(done)
    }
}

/// A TPM that a manufacturer certified.
fn manufacture(work: &Path) -> Result<(VendorCa, Swtpm)> {
    let vendor = VendorCa::open(&work.join("vendor"), "Example TPM Vendor")?;
    let tpm = vendor.device(EkKind::P256, 0)?;
    Ok((vendor, tpm))
}

fn apt_install(machine: &Machine, files: &[PathBuf]) -> Result<()> {
    let names = on_the_machine(files)?;
    for (file, name) in files.iter().zip(&names) {
        fs::copy(file, machine.path(name.trim_start_matches('/')))?;
    }
    machine.run(&["apt-get", "update"])?;
    let mut apt = vec!["env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "install"];
    apt.extend(["--yes", "--no-install-recommends"]);
    apt.extend(names.iter().map(String::as_str));
    // `plug_in` needs it.
    apt.push("socat");
    machine.run(&apt)?;
    Ok(())
}

fn contents(machine: &Machine) -> Result<()> {
    for (program, page) in
        [("assay", "assay-enroll-add"), ("assay-device", "assay-device-provision")]
    {
        let version = String::from_utf8(machine.run(&[program, "--version"])?.stdout)?;
        ensure!(
            version.starts_with(&format!("{program} {}", env!("CARGO_PKG_VERSION"))),
            "{version}"
        );
        for page in [program, page] {
            let page = machine.path(&format!("usr/share/man/man1/{page}.1.gz"));
            let text = String::from_utf8(
                run(tool("gzip")?.args(["--decompress", "--stdout"]).arg(&page))?.stdout,
            )?;
            ensure!(
                text.contains(".SH SYNOPSIS") && text.contains(".SH OPTIONS"),
                "{}: {text}",
                page.display()
            );
        }
        // Bash must load the file, and then have a completion for the command.
        let bash =
            format!(". /usr/share/bash-completion/completions/{program} && complete -p {program}");
        machine.run(&["bash", "-c", &bash])?;
        for other in ["zsh/vendor-completions/_", "fish/vendor_completions.d/"] {
            let suffix = if other.ends_with('/') { ".fish" } else { "" };
            let file = machine.path(&format!("usr/share/{other}{program}{suffix}"));
            ensure!(fs::read_to_string(&file)?.contains(program), "{}", file.display());
        }
    }
    Ok(())
}

fn accounts(machine: &Machine) -> Result<()> {
    let groups = String::from_utf8(machine.run(&["id", "-nG", "assay-device"])?.stdout)?;
    ensure!(groups.split_whitespace().any(|group| group == "tss"), "assay-device is in {groups}");
    for user in ["assay", "assay-device"] {
        let state = format!("/var/lib/{user}");
        let owner = String::from_utf8(machine.run(&["stat", "--format=%U %a", &state])?.stdout)?;
        ensure!(owner.trim() == format!("{user} 700"), "{state}: {owner}");
    }
    let link = fs::read_link(machine.path("var/lib/assay/assay.toml"))?;
    ensure!(link == Path::new("/etc/assay/assay.toml"), "{}", link.display());
    Ok(())
}

fn untouched(booted: &Booted<'_>) -> Result<()> {
    for unit in UNITS {
        let unit = unit.replace('@', "@any");
        ensure!(booted.property(&unit, "ActiveState")? == "inactive", "{unit} runs");
        ensure!(booted.property(&unit, "UnitFileState")? == "disabled", "{unit} is enabled");
    }
    booted.fails(&["systemctl", "start", "assay"])?;
    let log = || booted.run(&["journalctl", "--no-pager", "--unit=assay"]);
    eventually("the log says what to do", || Ok(log()?.contains("`assay init")))?;
    booted.run(&["systemctl", "stop", "assay"])?;
    booted.run(&["systemctl", "start", "assay-device"])?;
    ensure!(
        booted.property("assay-device", "ActiveState")? == "inactive",
        "assay-device ran without a root"
    );
    Ok(())
}

fn exposure(booted: &Booted<'_>) -> Result<()> {
    for unit in UNITS {
        let file = format!("/usr/lib/systemd/system/{unit}");
        // Debian's minimal system has no `man`, which would look up the pages.
        booted.run(&["systemd-analyze", "verify", "--man=no", &file.replace('@', "@any")])?;
        let security = ["systemd-analyze", "security", "--offline=true", "--no-pager"];
        let threshold = format!("--threshold={EXPOSURE}");
        let said = booted.run(&[&security[..], &[threshold.as_str(), &file]].concat())?;
        print!("\n    {}", said.lines().last().unwrap_or_default());
    }
    println!();
    Ok(())
}

fn init(booted: &Booted<'_>) -> Result<()> {
    booted.run(&["assay", "init", STATE])?;
    // The settings still belong to root.
    let others =
        booted.run(&["find", STATE, "-not", "-user", "assay", "-not", "-name", "assay.toml"])?;
    ensure!(others.is_empty(), "not the service's: {others}");
    let readable = booted.run(&["find", STATE, "-name", "*.key", "-not", "-perm", "600"])?;
    ensure!(readable.is_empty(), "not of mode 600: {readable}");
    ensure!(booted.run(&["stat", "--format=%a", STATE])? == "700", "{STATE} is open");
    ensure!(
        booted.machine.path("var/lib/assay/assay.toml").is_symlink(),
        "the settings were replaced"
    );
    Ok(())
}

fn operate(booted: &Booted<'_>) -> Result<()> {
    booted.run(&["assay", "--dir", STATE, "trust", "add", "--admit", "/srv/root.pem"])?;
    // The service's user must be able to change what root wrote.
    as_service(booted, &["trust", "add", "/srv/intermediate.pem"])?;
    ensure!(
        as_service(booted, &["trust", "list"])?.lines().count() >= 2,
        "both certificates are listed"
    );
    as_service(booted, &["devices"])?;
    Ok(())
}

fn serve(booted: &Booted<'_>) -> Result<()> {
    booted.run(&["systemctl", "enable", "--now", "assay"])?;
    as_service(booted, &["health"])?;
    let process = booted.property("assay", "MainPID")?;
    let status = booted.run(&["cat", &format!("/proc/{process}/status")])?;
    for line in
        ["CapEff:\t0000000000000000", "CapBnd:\t0000000000000000", "NoNewPrivs:\t1", "Seccomp:\t2"]
    {
        ensure!(status.contains(line), "no {line} in {status}");
    }
    ensure!(!status.contains("Uid:\t0\t"), "it runs as root");
    let limits = booted.run(&["cat", &format!("/proc/{process}/limits")])?;
    let files = limits.lines().find(|line| line.starts_with("Max open files")).unwrap_or_default();
    ensure!(files.contains("18688"), "{files}");
    Ok(())
}

fn provision(booted: &Booted<'_>, work: &Path, tpm: &Swtpm) -> Result<()> {
    plug_in(booted, work, tpm)?;
    booted.run(&["cp", "/var/lib/assay/root.pem", "/etc/assay-device/root.pem"])?;
    let settings = booted.machine.path("etc/assay-device/provision.env");
    let text = fs::read_to_string(&settings)?;
    fs::write(settings, text.replace("mqtts://ca.example:8883", "mqtts://localhost:8883"))?;
    // The unit counts as started when the device is provisioned.
    booted.run(&["systemctl", "start", "assay-device"]).or_else(|error| {
        bail!("{error:#}\n{}", booted.run(&["journalctl", "--no-pager", "--unit=assay-device"])?)
    })?;
    ensure!(
        booted.property("assay-device", "ActiveState")? == "active",
        "assay-device is not active"
    );
    let status = ["runuser", "-u", "assay-device", "--", "assay-device", "status", "--json"];
    let status: Value = serde_json::from_str(
        &booted.run(&[&status[..], &["--state", "/var/lib/assay-device"]].concat())?,
    )?;
    let device: Value = serde_json::from_str(&as_service(booted, &["devices", "--json"])?)?;
    ensure!(
        status["device_id"].is_string() && status["device_id"] == device["device_id"],
        "{status} {device}"
    );
    eventually("the agent says that it is online", || {
        Ok(booted.property("assay-device", "StatusText")?.starts_with("online as"))
    })
}

fn worker(booted: &Booted<'_>) -> Result<()> {
    booted.fails(&["systemctl", "start", "assay-worker@second"])?;
    booted.machine.write("etc/assay/worker-second.env", "BROKER=mqtts://127.0.0.1:8884\n")?;
    booted.run(&["systemctl", "enable", "--now", "assay-worker@second"])?;
    ensure!(
        booted.property("assay-worker@second", "ActiveState")? == "active",
        "the worker is not active"
    );
    Ok(())
}

fn reload(booted: &Booted<'_>) -> Result<()> {
    let process = booted.property("assay", "MainPID")?;
    for (days, outcome) in
        [(0, "nothing was reread"), (30, "reread certificates, keys and settings")]
    {
        edit_settings(booted, days)?;
        booted.run(&["systemctl", "reload", "assay"])?;
        eventually(outcome, || Ok(booted.property("assay", "StatusText")?.starts_with(outcome)))?;
    }
    as_service(booted, &["health"])?;
    ensure!(booted.property("assay", "MainPID")? == process, "it was restarted");
    Ok(())
}

/// Changes `lifetime_days`; 0 is not valid.
fn edit_settings(booted: &Booted<'_>, days: u32) -> Result<()> {
    let settings = booted.machine.path("etc/assay/assay.toml");
    let text = fs::read_to_string(&settings)?;
    let line =
        text.lines().find(|line| line.starts_with("lifetime_days")).context("it is a setting")?;
    Ok(fs::write(&settings, text.replace(line, &format!("lifetime_days = {days}")))?)
}

fn watchdog(booted: &Booted<'_>) -> Result<()> {
    // The timeout of the unit is too long for a test.
    let hasty = "run/systemd/system/assay.service.d";
    booted.run(&["mkdir", "-p", &format!("/{hasty}")])?;
    booted.run(&[
        "sh",
        "-c",
        &format!("printf '[Service]\\nWatchdogSec=4\\n' > /{hasty}/hasty.conf"),
    ])?;
    booted.run(&["systemctl", "daemon-reload"])?;
    booted.run(&["systemctl", "restart", "assay"])?;
    // A healthy server must not be restarted.
    let before = booted.property("assay", "MainPID")?;
    thread::sleep(Duration::from_secs(6));
    ensure!(booted.property("assay", "MainPID")? == before, "restarted although it was well");

    booted.run(&["sh", "-c", &format!("kill -STOP {before}")])?;
    eventually("it is restarted", || {
        Ok(booted.property("assay", "NRestarts")? != "0"
            && booted.property("assay", "ActiveState")? == "active")
    })?;
    as_service(booted, &["health"])?;
    booted.run(&["rm", "-r", &format!("/{hasty}")])?;
    booted.run(&["systemctl", "daemon-reload"])?;
    Ok(())
}

/// Installs the same packages again, with a later version number.
fn upgrade(booted: &Booted<'_>, files: &[PathBuf]) -> Result<()> {
    let settings = booted.machine.path("etc/assay/assay.toml");
    let edited = fs::read_to_string(&settings)?;
    let provisioning = booted.machine.path("etc/assay-device/provision.env");
    let configured = fs::read_to_string(&provisioning)?;
    let mut before = Vec::new();
    for unit in ["assay", "assay-worker@second"] {
        before.push((unit, booted.property(unit, "MainPID")?));
    }

    let work = tempfile::tempdir()?;
    let mut later = Vec::new();
    for (number, file) in files.iter().enumerate() {
        let tree = work.path().join(number.to_string());
        run(tool("dpkg-deb")?.arg("--raw-extract").arg(file).arg(&tree))?;
        let control = tree.join("DEBIAN/control");
        let text = fs::read_to_string(&control)?;
        let version = text
            .lines()
            .find(|line| line.starts_with("Version: "))
            .context("a package has a version")?;
        fs::write(&control, text.replace(version, &format!("{version}+later")))?;
        // The later version has other defaults.
        for conffile in ["etc/assay/assay.toml", "etc/assay-device/provision.env"] {
            if let Ok(text) = fs::read_to_string(tree.join(conffile)) {
                fs::write(tree.join(conffile), format!("{text}\n# of a later version\n"))?;
            }
        }
        let name = format!("srv/later-{number}.deb");
        run(tool("dpkg-deb")?
            .args(["-Znone", "--build"])
            .arg(&tree)
            .arg(booted.machine.path(&name)))?;
        later.push(format!("/{name}"));
    }
    dpkg_install(booted, &later)?;

    ensure!(fs::read_to_string(&settings)? == edited, "assay.toml was overwritten");
    ensure!(fs::read_to_string(&provisioning)? == configured, "provision.env was overwritten");
    for (unit, process) in before {
        ensure!(booted.property(unit, "ActiveState")? == "active", "{unit} does not run");
        ensure!(booted.property(unit, "MainPID")? != process, "{unit} was not restarted");
    }
    as_service(booted, &["health"])?;
    Ok(())
}

fn stop(booted: &Booted<'_>) -> Result<()> {
    for unit in ["assay-worker@second", "assay"] {
        let begin = Instant::now();
        booted.run(&["systemctl", "stop", unit])?;
        let (took, result) = (begin.elapsed(), booted.property(unit, "Result")?);
        ensure!(result == "success" && took < DRAIN, "{unit}: {result} after {} s", took.as_secs());
    }
    Ok(())
}

fn reinstall(booted: &Booted<'_>, files: &[PathBuf]) -> Result<()> {
    let before = state(booted)?;
    booted.run(&["dpkg", "--remove", "assay", "assay-device"])?;
    ensure!(!booted.machine.path("usr/bin/assay").exists(), "the program is still there");
    ensure!(state(booted)? == before, "removal changed {STATE}");

    dpkg_install(booted, &on_the_machine(files)?)?;
    ensure!(state(booted)? == before, "installation changed {STATE}");
    let settings = fs::read_to_string(booted.machine.path("etc/assay/assay.toml"))?;
    ensure!(settings.contains("lifetime_days = 30"), "the settings are gone");
    booted.run(&["systemctl", "start", "assay"])?;
    as_service(booted, &["health"])?;
    booted.run(&["systemctl", "start", "assay-device"])?;
    booted.run(&["systemctl", "stop", "assay"])?;
    Ok(())
}

fn purge(booted: &Booted<'_>) -> Result<()> {
    let mut before = state(booted)?;
    let said = booted.run(&["sh", "-c", "dpkg --purge assay assay-device 2>&1"])?;
    for place in [STATE, "/var/lib/assay-device"] {
        ensure!(
            said.contains(&format!("in {place}\n")) || said.ends_with(&format!("in {place}")),
            "{said}"
        );
    }
    ensure!(!booted.machine.path("etc/assay/assay.toml").exists(), "the settings are still there");
    before.remove(Path::new("var/lib/assay/assay.toml"));
    ensure!(state(booted)? == before, "purging changed {STATE}");
    let wanted = booted.run(&["find", "/etc/systemd/system", "-name", "assay*"])?;
    ensure!(wanted.is_empty(), "still there: {wanted}");
    Ok(())
}

fn dpkg_install(booted: &Booted<'_>, files: &[String]) -> Result<()> {
    // Without `--force-confold`, dpkg asks whether to take the settings of the package or the
    // edited ones.
    let mut dpkg = vec!["dpkg", "--force-confold", "--install"];
    dpkg.extend(files.iter().map(String::as_str));
    booted.run(&dpkg).map(drop)
}

/// The paths on the machine to which `apt_install` copies the packages.
fn on_the_machine(files: &[PathBuf]) -> Result<Vec<String>> {
    let name = |file: &PathBuf| {
        Ok(format!("/srv/{}", file.file_name().context("a package is a file")?.display()))
    };
    files.iter().map(name).collect()
}

/// The bytes of every file that must outlive the packages; for a link, its target.
fn state(booted: &Booted<'_>) -> Result<BTreeMap<PathBuf, Vec<u8>>> {
    let mut found = BTreeMap::new();
    for directory in ["var/lib/assay", "var/lib/assay-device"] {
        for entry in fs::read_dir(booted.machine.path(directory))? {
            let entry = entry?;
            let file = Path::new(directory).join(entry.file_name());
            let content = match fs::read_link(entry.path()) {
                Ok(link) => link.into_os_string().into_encoded_bytes(),
                Err(_) => fs::read(entry.path())?,
            };
            found.insert(file, content);
        }
    }
    ensure!(found.contains_key(Path::new("var/lib/assay/issuing.key")), "there is no CA");
    ensure!(
        found.contains_key(Path::new("var/lib/assay-device/device.json")),
        "there is no device"
    );
    Ok(found)
}

/// `assay --dir …` as the user of the service.
fn as_service(booted: &Booted<'_>, arguments: &[&str]) -> Result<String> {
    booted.run(&[&["runuser", "-u", "assay", "--", "assay", "--dir", STATE], arguments].concat())
}

/// Gives the machine a TPM at the path of the kernel's device. A terminal in raw mode takes the
/// place of the device, because it passes bytes on unchanged.
fn plug_in(booted: &Booted<'_>, work: &Path, tpm: &Swtpm) -> Result<()> {
    let (socket, port) = (work.join("tpm"), tpm.port());
    let listener = UnixListener::bind(&socket)?;
    fs::set_permissions(&socket, fs::Permissions::from_mode(0o600))?;
    // The thread ends with the process.
    thread::spawn(move || {
        for client in listener.incoming().map_while(Result::ok) {
            let Ok(tpm) = TcpStream::connect((Ipv4Addr::LOCALHOST, port)) else { continue };
            let (Ok(mut to_client), Ok(mut from_tpm)) = (client.try_clone(), tpm.try_clone())
            else {
                continue;
            };
            thread::spawn(move || io::copy(&mut from_tpm, &mut to_client));
            let (mut from_client, mut to_tpm) = (client, tpm);
            thread::spawn(move || io::copy(&mut from_client, &mut to_tpm));
        }
    });
    // Group and mode are those that tpm-udev sets.
    let terminal = "PTY,link=/dev/tpmrm0,rawer,group=tss,mode=660";
    booted.run(&[
        "systemd-run",
        "--quiet",
        "--collect",
        "socat",
        terminal,
        &format!("UNIX-CONNECT:{SHARED}/tpm"),
    ])?;
    eventually("socat makes a terminal", || {
        Ok(booted.run(&["test", "-c", "/dev/tpmrm0"]).is_ok())
    })?;
    Ok(())
}

fn eventually(what: &str, is_so: impl Fn() -> Result<bool>) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while !is_so()? {
        ensure!(Instant::now() < deadline, "not after {} s: {what}", PATIENCE.as_secs());
        thread::sleep(Duration::from_millis(200));
    }
    Ok(())
}

const UNITS: [&str; 3] = ["assay.service", "assay-worker@.service", "assay-device.service"];
const STATE: &str = "/var/lib/assay";
/// The folder that we share with the machine, as the machine sees it.
const SHARED: &str = "/mnt";
/// The highest exposure that `systemd-analyze security` may report, of 100. It prints 30 as 3.0.
const EXPOSURE: u32 = 30;
/// The service finishes what it has begun within 10 s. The rest is for a machine under load.
const DRAIN: Duration = Duration::from_secs(15);
/// For waits of seconds.
const PATIENCE: Duration = Duration::from_secs(60);

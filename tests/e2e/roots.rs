//! A new root: devices, brokers and relying parties follow, and the old one goes.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use assay_tests::{Agent, AssayDir, Device, EkKind, Mosquitto, json, run, tool, trusted_vendor};
use serde_json::{Value, json};

use crate::lab::Lab;
use crate::renewing::set_renew_at;

/// With this, the CA renews every certificate. A renewed one must end later than the one before it,
/// and certificates count in seconds.
const ALWAYS_DUE: &str = "[certificates]\nlifetime_days = 1\nrenew_before_days = 1";
const A_SECOND: Duration = Duration::from_millis(1100);

/// What an operator does to have a new root take over at once, with all that is under it.
pub(crate) const NEW_ROOT: [&[&str]; 6] = [
    &["root", "new"],
    &["service", "new"],
    &["identity", "renew", "server"],
    &["identity", "renew", "worker"],
    &["identity", "renew", "operator"],
    &["issuing", "new", "--from", "now"],
];

/// A CA, and what its devices were given: its first root.
pub(crate) struct World {
    pub(crate) lab: Lab,
    given: tempfile::TempDir,
}

impl World {
    pub(crate) fn open() -> Result<Self> {
        let (lab, given) = (Lab::with_settings(ALWAYS_DUE)?, tempfile::tempdir()?);
        fs::copy(lab.dir.root_pem(), given.path().join("root.pem"))?;
        Ok(Self { lab, given })
    }

    /// The root that devices were given.
    pub(crate) fn given(&self) -> PathBuf {
        self.given.path().join("root.pem")
    }

    /// The file of the new root in the CA's directory.
    pub(crate) fn new_root(&self) -> Result<PathBuf> {
        file_named(&self.lab.dir, "root-", "Z.pem")
    }

    /// Makes the new root, and the CAs under it, which take over at once.
    pub(crate) fn new_root_takes_over(&self) -> Result<()> {
        for command in NEW_ROOT {
            self.lab.assay(command)?;
            // To the second, what is certified afterwards is certified later.
            if command[0] == "service" {
                thread::sleep(A_SECOND);
            }
        }
        self.lab.reload()
    }

    /// Removes the old root and all that leads to it, whoever still needs it.
    fn old_root_goes(&self) -> Result<()> {
        // `issuing remove` waits until its last certificate has ended, which is a day from now.
        for file in ["issuing.pem", "issuing.key"] {
            fs::remove_file(self.lab.dir.path().join(file))?;
        }
        let early = self.lab.dir.assay(&["service", "retire"])?.output()?;
        ensure!(!early.status.success(), "somebody may still have a certificate of before");
        for name in ["server", "worker", "operator"] {
            self.lab.assay(&["identity", "revoke", "--old", name])?;
        }
        self.lab.assay(&["service", "retire"])?;
        self.lab.assay(&["root", "remove", "--force"])?;
        // Its chain had the cross certificate.
        self.lab.assay(&["identity", "renew", "server"])?;
        self.lab.reload()
    }

    pub(crate) fn provision(&self, device: &Device, root: &Path) -> Result<Value> {
        json(&mut device.provision_at(&self.lab.server.bootstrap, root)?)
    }

    pub(crate) fn publish(&self, device: &Device, root: &Path) -> Result<Command> {
        device.publish_at(&self.lab.server.operational, root, "telemetry", "21.5")
    }

    /// The resident agent, with the root that devices were given: that of the CA's directory changes
    /// under it.
    fn resident(&self, device: &Device) -> Result<Command> {
        let made = device.run(&self.lab.dir, &self.lab.server)?;
        let own = self.lab.dir.root_pem();
        let mut command = Command::new(made.get_program());
        for argument in made.get_args() {
            command.arg(if argument == own {
                self.given().into_os_string()
            } else {
                argument.into()
            });
        }
        Ok(command)
    }

    /// Renews the certificate of a device. Returns what people are told.
    pub(crate) fn renews(&self, device: &Device, root: &Path) -> Result<String> {
        thread::sleep(A_SECOND);
        let mut renew = device.provision_at(&self.lab.server.bootstrap, root)?;
        set_renew_at(device, json!(0))?;
        let output = run(&mut renew)?;
        let renewed: Value = serde_json::from_slice(&output.stdout)?;
        ensure!(renewed["renewal"] == "renewed", "{renewed}");
        Ok(String::from_utf8(output.stderr)?)
    }
}

/// The only file of a directory with such a name.
fn file_named(dir: &AssayDir, begins: &str, ends: &str) -> Result<PathBuf> {
    let names = fs::read_dir(dir.path())?.map(|entry| Ok(entry?.file_name().into_string()));
    let names = names.collect::<Result<Vec<_>>>()?;
    let mut found =
        names.into_iter().flatten().filter(|name| name.starts_with(begins) && name.ends_with(ends));
    Ok(dir.path().join(found.next().with_context(|| format!("no {begins}…{ends}"))?))
}

/// What a relying party does that trusts this root and nothing else.
fn openssl_verifies(root: &Path, chain: &Path) -> Result<bool> {
    let mut verify = tool("openssl")?;
    verify.args(["verify", "-x509_strict", "-purpose", "sslclient", "-CAfile"]).arg(root);
    Ok(verify.arg("-untrusted").arg(chain).arg(chain).output()?.status.success())
}

#[test]
fn devices_follow_a_new_root_by_renewal_alone_and_the_old_one_goes() -> Result<()> {
    let world = World::open()?;
    let (vendor, given) = (trusted_vendor()?, world.given());
    let tpms = vendor.devices(EkKind::P256, 3)?;
    let [device, sleeper, late] =
        [Device::new(&tpms[0])?, Device::new(&tpms[1])?, Device::new(&tpms[2])?];
    for device in [&device, &sleeper] {
        world.provision(device, &given)?;
    }

    world.new_root_takes_over()?;
    // Nobody was told of the new root yet: what leads to it is verified by the old one.
    run(&mut world.publish(&sleeper, &given)?)?;
    let told = world.renews(&device, &given)?;
    ensure!(told.contains("the CA has a new root") && told.contains("pinned"), "{told}");
    let told = world.renews(&device, &given)?;
    ensure!(!told.contains("new root"), "{told}");
    run(&mut world.publish(&device, &given)?)?;
    let chain = device.state().join("certificate.pem");
    ensure!(fs::read_to_string(&chain)?.matches("BEGIN").count() == 3);
    ensure!(openssl_verifies(&given, &chain)? && openssl_verifies(&world.new_root()?, &chain)?);
    let pinned = |device: &Device, dir| json(&mut device.inspect(dir)?);
    let inspected = pinned(&device, &world.lab.dir)?;
    ensure!(inspected["pinned_roots"].as_array().is_some_and(|it| it.len() == 1), "{inspected}");
    ensure!(pinned(&sleeper, &world.lab.dir)?["pinned_roots"] == json!([]));
    // A new device that is given the new root alone.
    world.provision(&late, &world.new_root()?)?;
    run(&mut world.publish(&late, &world.new_root()?)?)?;

    let refused = world.lab.dir.assay(&["root", "remove"])?.output()?;
    let said = String::from_utf8(refused.stderr)?;
    ensure!(!refused.status.success() && said.contains("issuing.pem"), "{said}");
    world.old_root_goes()?;
    let new_root = world.lab.dir.root_pem();
    ensure!(fs::read(&new_root)? != fs::read(&given)?);
    // It was given the old root alone, and pinned the new one.
    run(&mut world.publish(&device, &given)?)?;
    world.renews(&device, &given)?;
    run(&mut world.publish(&device, &given)?)?;
    ensure!(fs::read_to_string(&chain)?.matches("BEGIN").count() == 2, "nobody else needs more");
    ensure!(openssl_verifies(&new_root, &chain)? && !openssl_verifies(&given, &chain)?);
    run(&mut world.publish(&late, &new_root)?)?;

    // One that slept through it all is told what to do, and comes back.
    let mut again = sleeper.provision_at(&world.lab.server.bootstrap, &given)?;
    again.arg("--again");
    for mut command in [world.publish(&sleeper, &given)?, again] {
        let output = command.output()?;
        let said = String::from_utf8(output.stderr)?;
        ensure!(output.status.code() == Some(3) && said.contains("--ca-root"), "{said}");
        ensure!(said.contains("a new root"), "{said}");
    }
    world.provision(&sleeper, &new_root)?;
    run(&mut world.publish(&sleeper, &new_root)?).map(drop)
}

#[test]
fn a_broker_that_is_not_ours_serves_devices_of_both_roots() -> Result<()> {
    let world = World::open()?;
    let (vendor, given) = (trusted_vendor()?, world.given());
    let tpms = vendor.devices(EkKind::P256, 2)?;
    let [old, new] = [Device::new(&tpms[0])?, Device::new(&tpms[1])?];
    for device in [&old, &new] {
        world.provision(device, &given)?;
    }
    world.new_root_takes_over()?;
    world.renews(&new, &given)?;

    let dir = &world.lab.dir;
    let both = world.given.path().join("both.pem");
    let roots = [fs::read(&given)?, fs::read(world.new_root()?)?].concat();
    fs::write(&both, roots)?;
    let listener = |roots: &Path| {
        let file = |name: &str| dir.path().join(name).display().to_string();
        format!(
            "cafile {}\ncertfile {}\nkeyfile {}\nrequire_certificate true\n\
             use_identity_as_username true\nallow_anonymous true",
            roots.display(),
            file("server.pem"),
            file("server.key")
        )
    };
    let mosquitto = Mosquitto::start(&[&listener(&both), &listener(&given)])?;
    for port in [mosquitto.port(0), mosquitto.port(1)] {
        let broker = format!("mqtts://127.0.0.1:{port}");
        for device in [&old, &new] {
            run(&mut device.publish_at(&broker, &given, "telemetry", "21.5")?)?;
        }
    }
    Ok(())
}

#[test]
fn the_resident_agent_follows_a_new_root() -> Result<()> {
    let world = World::open()?;
    let tpm = trusted_vendor()?.device(EkKind::P256, 0)?;
    let device = Device::new(&tpm)?;
    world.provision(&device, &world.given())?;
    let command = world.resident(&device)?;
    let mut agent = Agent::start(command)?;
    agent.says("online as", 1)?;
    world.new_root_takes_over()?;
    agent.signal("TERM")?;
    agent.wait()?;
    thread::sleep(A_SECOND);
    set_renew_at(&device, json!(0))?;

    let command = world.resident(&device)?;
    let mut agent = Agent::start(command)?;
    agent.says("has certificate", 1)?;
    agent.says("online as", 2)?;
    let inspected = json(&mut device.inspect(&world.lab.dir)?)?;
    ensure!(inspected["usable"] == true, "{inspected}");
    let pinned = fs::read_to_string(device.state().join("roots.pem"))?;
    ensure!(pinned.matches("BEGIN").count() == 1);
    world.old_root_goes()?;
    let mut lab = world.lab;
    lab.server.restart()?;
    agent.says("online as", 3)?;
    ensure!(agent.runs()?);
    Ok(())
}

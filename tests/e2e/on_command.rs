//! `assay-device run --on-command`: programs that run for commands.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use assay_tests::{Agent, AssayDir, Device, EkKind, Swtpm, trusted_vendor};

use crate::external_brokers::Deployed;
use crate::identities::Holder;
use crate::lab::Lab;
use crate::resident::{eventually, script};

#[test]
fn a_command_runs_the_program_with_the_message_on_its_standard_input() -> Result<()> {
    let lab = Lab::open()?;
    for (number, flow) in ["ticket", "shared-key"].into_iter().enumerate() {
        let tpm = trusted_vendor()?.device(EkKind::P256, number)?;
        let device = Device::new(&tpm)?;
        let (program, heard) = records(&tpm, "")?;
        let mut command = device.run(&lab.dir, &lab.server)?;
        command.args(["--flow", flow, "--on-command"]).arg(format!("{program} told"));
        // The agent's own environment is nobody's business.
        let agent = Agent::start({
            command.env("ASSAY_OWNER_AUTH", "");
            command
        })?;
        agent.says("online as", 1)?;
        let id = id_of(&agent)?;
        let operator = Operator::of(&lab.dir, &lab.server.operational);
        operator.says(&format!("{id}/command/valve/1"), "open; $(touch /tmp/no)", &[])?;
        let line = |name: &str, text: &str| format!("told {id} {name} none <{text}>\n");
        let mut expected = line("valve/1", "open; $(touch /tmp/no)");
        eventually(|| Ok(read(&heard) == expected))?;
        operator.says(&format!("{id}/command"), "plain", &[])?;
        expected += &line("", "plain");
        eventually(|| Ok(read(&heard) == expected))?;
        agent.says("command \"valve/1\" of 22 bytes: exit status: 0", 1)?;
        // What others are told is not for this device.
        operator.says("another/command/valve/1", "x", &[])?;
        operator.says(&format!("{id}/command/last"), "x", &[])?;
        expected += &line("last", "x");
        eventually(|| Ok(read(&heard) == expected))?;
    }
    Ok(())
}

#[test]
fn commands_wait_for_their_turn_and_too_many_are_dropped_and_counted() -> Result<()> {
    let lab = Lab::open()?;
    let tpm = trusted_vendor()?.device(EkKind::P256, 0)?;
    let device = Device::new(&tpm)?;
    let go_on = tpm.work_dir().join("go-on");
    let wait = format!("while ! test -e {}; do sleep 0.05; done\n", go_on.display());
    let (program, heard) = records(&tpm, &wait)?;
    let mut command = device.run(&lab.dir, &lab.server)?;
    command.args(["--on-command", &format!("{program} told")]);
    let mut agent = Agent::start(command)?;
    agent.says("online as", 1)?;
    let id = id_of(&agent)?;
    let operator = Operator::of(&lab.dir, &lab.server.operational);
    // One runs, and 16 wait.
    for number in 1..=20 {
        operator.says(&format!("{id}/command/{number}"), "x", &[])?;
    }
    agent.says("commands are dropped: 16 wait for their turn", 1)?;
    ensure!(agent.count("offline") == 0, "the broker does not wait for the program");
    fs::write(&go_on, "")?;
    agent.says("commands are taken again; 3 were dropped", 1)?;
    eventually(|| Ok(read(&heard).lines().count() == 17))?;
    let lines = read(&heard);
    let order: Vec<_> = lines.lines().filter_map(|line| line.split(' ').nth(2)).collect();
    let expected: Vec<_> = (1..=17).map(|number| number.to_string()).collect();
    ensure!(order == expected, "{order:?}");
    ensure!(agent.runs()?);
    Ok(())
}

#[test]
fn a_program_that_fails_or_is_not_there_costs_a_line_and_nothing_else() -> Result<()> {
    let lab = Lab::open()?;
    let tpm = trusted_vendor()?.device(EkKind::P256, 0)?;
    let device = Device::new(&tpm)?;
    for (program, outcome) in [
        ("/bin/false", "exit status: 1"),
        ("/nowhere/program", "not started: No such file or directory (os error 2)"),
    ] {
        let mut command = device.run(&lab.dir, &lab.server)?;
        command.args(["--on-command", program]);
        let mut agent = Agent::start(command)?;
        agent.says("online as", 1)?;
        let id = id_of(&agent)?;
        let operator = Operator::of(&lab.dir, &lab.server.operational);
        // It reads nothing of a message that is longer than a pipe takes with others.
        operator.says(&format!("{id}/command/x"), &"y".repeat(10_000), &[])?;
        agent.says(&format!("command \"x\" of 10000 bytes: {outcome}"), 1)?;
        ensure!(agent.runs()?);
    }
    Ok(())
}

#[test]
fn on_mosquitto_commands_come_and_retained_ones_are_not_run() -> Result<()> {
    let deployed = Deployed::start()?;
    let (root, url) = (deployed.dir.root_pem(), |listener| deployed.url(listener));
    let tpm = trusted_vendor()?.device(EkKind::P256, 0)?;
    let device = Device::new(&tpm)?;
    let provisioned = assay_tests::json(&mut device.provision_at(&url(0), &root)?)?;
    let id = provisioned["device_id"].as_str().context("an id")?;
    let operator = Operator::of(&deployed.dir, &url(1));
    operator.says(&format!("{id}/command/old"), "x", &["-r"])?;
    let (program, heard) = records(&tpm, "")?;
    let mut command = device.run_at(&url(0), &url(1), &root)?;
    command.args(["--on-command", &format!("{program} told")]);
    let agent = Agent::start(command)?;
    agent.says("online as", 1)?;
    // Until the device is subscribed, nobody hears it.
    eventually(|| {
        operator.says(&format!("{id}/command/new"), "x", &[])?;
        Ok(read(&heard).contains(" new "))
    })?;
    ensure!(!read(&heard).contains(" old "), "{}", read(&heard));
    Ok(())
}

/// A program that writes its argument, what its environment says, and its standard input to a file,
/// after `first`.
fn records(tpm: &Swtpm, first: &str) -> Result<(String, PathBuf)> {
    let (program, heard) = (tpm.work_dir().join("on-command"), tpm.work_dir().join("heard"));
    let text = format!(
        "{first}echo \"$1 $ASSAY_DEVICE_ID $ASSAY_COMMAND ${{ASSAY_OWNER_AUTH-none}} <$(cat)>\" \
         >> {}\n",
        heard.display()
    );
    script(&program, &text)?;
    Ok((program.display().to_string(), heard))
}

fn read(file: &Path) -> String {
    fs::read_to_string(file).unwrap_or_default()
}

/// The device's id, from the line that says that it is online.
fn id_of(agent: &Agent) -> Result<String> {
    let log = agent.log();
    let (_, rest) = log.split_once("online as ").context("it is online")?;
    Ok(rest.split(' ').next().unwrap_or_default().to_owned())
}

/// Gives commands.
struct Operator(Holder);

impl Operator {
    fn of(dir: &AssayDir, operational: &str) -> Self {
        let client = "operator@commands".into();
        Self(Holder { client, ..Holder::operator(dir, "operator", operational) })
    }

    /// Publishes on a topic below `device/v1/default/`.
    fn says(&self, topic: &str, message: &str, options: &[&str]) -> Result<()> {
        self.0.publishes(&format!("device/v1/default/{topic}"), message, options)
    }
}

//! One profile of docker-compose.yml, which is up while it is tested.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::{Ipv4Addr, TcpListener};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail, ensure};
use assay_tests::run;
use serde_json::Value;

use super::Trial;
use super::record::Record;
use crate::docker::{docker, is_successful, output};
use crate::images::Built;
use crate::workspace;

/// A project of Compose, with containers, volumes and a network of its own.
pub(super) struct Stack {
    compose: &'static [&'static str],
    project: String,
    pub(super) profile: Profile,
    /// A file below tests/compose.
    changes: Option<&'static str>,
    variables: Vec<(&'static str, String)>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Profile {
    Default,
    External,
}

impl Profile {
    pub(super) fn devices(self) -> [&'static str; 3] {
        let third = if self == Self::Default { "device-3" } else { "device-3-external" };
        ["device-1", "device-2", third]
    }

    /// The service in which an operator's commands run.
    pub(super) fn ca(self) -> &'static str {
        if self == Self::Default { "ca" } else { "worker-1" }
    }
}

impl Stack {
    /// Brings up a stack, runs `test` on it, and removes it with its volumes. Shows its log if the
    /// test fails.
    pub(super) fn with(
        built: &Built,
        trial: &Trial,
        test: impl FnOnce(&Self) -> Result<()>,
    ) -> Result<()> {
        let variables = vec![
            ("ASSAY_IMAGE", built.assay.clone()),
            ("ASSAY_DEVICE_IMAGE", built.assay_device.clone()),
            ("MOSQUITTO_IMAGE", built.mosquitto.clone()),
            ("ASSAY_BOOTSTRAP_PORT", free_port()?),
            ("ASSAY_OPERATIONAL_PORT", free_port()?),
        ];
        let project = format!("assay-test-{}-{}", checkout(), trial.name);
        let stack = Self {
            compose: compose()?,
            project,
            profile: trial.profile,
            changes: trial.changes,
            variables,
        };
        // Removes what an interrupted run left.
        stack.down()?;
        let tested = stack.up().and_then(|()| test(&stack));
        if tested.is_err() {
            stack.show_log();
        }
        let down = stack.down();
        tested.and(down)
    }

    fn compose(&self) -> Command {
        let mut command = Command::new(self.compose[0]);
        command.args(&self.compose[1..]).args([
            "--project-name",
            &self.project,
            "--file",
            "docker-compose.yml",
        ]);
        if let Some(file) = self.changes {
            command.args(["--file", &format!("tests/compose/{file}")]);
        }
        if self.profile == Profile::External {
            command.args(["--profile", "external"]);
        }
        command.current_dir(workspace()).env_remove("COMPOSE_PROFILES").env_remove("COMPOSE_FILE");
        command.envs(self.variables.iter().map(|(name, value)| (name, value)));
        command
    }

    /// Brings the stack up as a user does, except that the images are those of the test.
    fn up(&self) -> Result<()> {
        run(self.compose().args(["up", "--detach", "--no-build"])).map(drop)
    }

    fn down(&self) -> Result<()> {
        run(self.compose().args(["down", "--volumes", "--remove-orphans", "--timeout", "2"]))
            .map(drop)
    }

    fn show_log(&self) {
        println!("--- log of {}", self.project);
        // A failure of these commands must not hide the failure of the test.
        _ = self.compose().args(["ps"]).status();
        _ = self
            .compose()
            .args(["logs", "--no-color", "--timestamps", "--tail", LOG_LINES])
            .status();
    }

    /// The id of the container of a service.
    pub(super) fn container(&self, service: &str) -> Result<String> {
        let of = |label: &str, value: &str| format!("label=com.docker.compose.{label}={value}");
        let (project, of_service) = (of("project", &self.project), of("service", service));
        let id = output([
            "ps",
            "--all",
            "--quiet",
            "--no-trunc",
            "--filter",
            &project,
            "--filter",
            &of_service,
        ])?;
        ensure!(
            !id.is_empty() && !id.contains('\n'),
            "{} has no container {service}: {id:?}",
            self.project
        );
        Ok(id)
    }

    fn containers<'a>(&self, services: impl IntoIterator<Item = &'a str>) -> Result<Vec<String>> {
        services.into_iter().map(|service| self.container(service)).collect()
    }

    /// What a command prints in the container of a service.
    pub(super) fn exec(&self, service: &str, command: &[&str]) -> Result<String> {
        output(["exec", &self.container(service)?].into_iter().chain(command.iter().copied()))
    }

    /// The same with something to read on standard input.
    pub(super) fn exec_with(&self, service: &str, command: &[&str], input: Stdio) -> Result<()> {
        let container = self.container(service)?;
        let words =
            ["exec", "--interactive", &container].into_iter().chain(command.iter().copied());
        run(docker(words).stdin(input)).map(drop)
    }

    /// Ends services as a power cut does.
    pub(super) fn kill(&self, services: &[&str]) -> Result<()> {
        self.each("kill", &["--signal", "KILL"], services)
    }

    /// Starts killed services, as when the power comes back. Docker does not restart a container
    /// that it was told to kill.
    pub(super) fn start(&self, services: &[&str]) -> Result<()> {
        self.each("start", &[], services)
    }

    /// Starts containers side by side. The caller must wait for each process.
    pub(super) fn starting(&self, services: &[&str]) -> Result<Vec<Child>> {
        let containers = self.containers(services.iter().copied())?;
        let start = |id: &String| Ok(docker(["start", id]).stdout(Stdio::null()).spawn()?);
        containers.iter().map(start).collect()
    }

    /// Takes a service off the network.
    pub(super) fn cut(&self, service: &str) -> Result<()> {
        output(["network", "disconnect", &self.network(), &self.container(service)?]).map(drop)
    }

    /// Puts a service back on the network. Its address may change.
    pub(super) fn join(&self, service: &str) -> Result<()> {
        output(["network", "connect", &self.network(), &self.container(service)?]).map(drop)
    }

    fn network(&self) -> String {
        format!("{}_default", self.project)
    }

    /// Restarts a service as an operator does: the service first finishes what it has begun.
    pub(super) fn restart(&self, service: &str) -> Result<()> {
        self.each("restart", &["--time", "10"], &[service])
    }

    fn each(&self, command: &str, options: &[&str], services: &[&str]) -> Result<()> {
        let containers = self.containers(services.iter().copied())?;
        let containers = containers.iter().map(String::as_str);
        output([command].into_iter().chain(options.iter().copied()).chain(containers)).map(drop)
    }

    /// What a service has logged since `since`.
    pub(super) fn log(&self, service: &str, since: &Moment) -> Result<String> {
        self.log_between(service, since, None)
    }

    fn log_between(&self, service: &str, since: &Moment, until: Option<&Moment>) -> Result<String> {
        let container = self.container(service)?;
        let mut words = vec!["logs", "--since", &since.0];
        if let Some(until) = until {
            words.extend(["--until", &until.0]);
        }
        words.push(&container);
        let logged = run(&mut docker(words))?;
        Ok(String::from_utf8_lossy(&[logged.stdout, logged.stderr].concat()).into_owned())
    }

    /// Puts new devices in place of these. Stops them, deletes what they remember, and gives them
    /// new TPMs that the manufacturer certified.
    pub(super) fn replace(&self, devices: &[&str]) -> Result<()> {
        self.replace_and(devices, "true")
    }

    /// Does the same, and then runs the shell command `then`. That command sees the devices'
    /// volumes as /var/lib/state-1 and so on.
    pub(super) fn replace_and(&self, devices: &[&str], then: &str) -> Result<()> {
        // Some may have ended already, which is no error.
        _ = self.kill(devices);
        let manufacturer = self.container("manufacturer")?;
        let mut words = vec!["run", "--rm", "--network", "none", "--read-only", "--tmpfs", "/tmp"];
        words.extend(["--volumes-from", &manufacturer, "--entrypoint", "sh"]);
        let numbers = devices.iter().map(|device| &device["device-".len()..][..1]);
        let volumes: Vec<_> = numbers
            .clone()
            .map(|number| format!("{}_state-{number}:/var/lib/state-{number}", self.project))
            .collect();
        words.extend(volumes.iter().flat_map(|volume| ["--volume", volume]));
        let emptied =
            numbers.map(|number| format!("/var/lib/tpm-{number}/* /var/lib/state-{number}/*"));
        let emptied = emptied.collect::<Vec<_>>().join(" ");
        let script =
            format!("rm -rf {emptied} && {then} && exec /usr/local/lib/assay/manufacturer.sh");
        let image = output(["inspect", "--format", "{{.Image}}", &manufacturer])?;
        words.extend([&image, "-c", &script]);
        output(words).map(drop)
    }

    /// Starts the devices with these flows, in new containers.
    pub(super) fn start_with(&self, flows: [&str; 3]) -> Result<()> {
        let devices = self.profile.devices();
        let mut up = self.compose();
        for (device, flow) in devices.iter().zip(flows) {
            // DEVICE_1_FLOW and so on, in docker-compose.yml.
            up.env(format!("{}_FLOW", device.to_uppercase().replace('-', "_")), flow);
        }
        run(up.args(["up", "--detach", "--no-build"]).args(devices)).map(drop)
    }

    /// Waits until every device has a device id, and the service `watch` has received a message of
    /// each since `since`. Returns how long that took.
    pub(super) fn wait_for_devices(&self, since: &Moment) -> Result<Duration> {
        let devices = self.profile.devices();
        let began = Instant::now();
        loop {
            let heard = self.log("watch", since)?;
            let silent = |device: &&&str| {
                !self.device_id(device).is_some_and(|id| heard.contains(&format!("/{id}/")))
            };
            match devices.iter().find(silent) {
                None => return Ok(began.elapsed()),
                Some(device) if began.elapsed() > RECOVERY => {
                    bail!(
                        "{device} has not been heard for {} s: it needs a hand",
                        RECOVERY.as_secs()
                    )
                }
                Some(_) => thread::sleep(POLL),
            }
        }
    }

    /// Waits until a service has logged `what` since `since`.
    pub(super) fn wait_for_log(&self, service: &str, since: &Moment, what: &str) -> Result<()> {
        self.wait_for_any(service, since, &[what])
    }

    /// Waits until a service has logged one of these texts since `since`.
    pub(super) fn wait_for_any(&self, service: &str, since: &Moment, what: &[&str]) -> Result<()> {
        let began = Instant::now();
        loop {
            let log = self.log(service, since)?;
            if what.iter().any(|what| log.contains(what)) {
                return Ok(());
            }
            ensure!(
                began.elapsed() < RECOVERY,
                "{service} has said none of {what:?} for {} s",
                RECOVERY.as_secs()
            );
            thread::sleep(POLL);
        }
    }

    /// The status that a device reports.
    pub(super) fn status(&self, device: &str) -> Result<Value> {
        let status = ["assay-device", "status", "--json", "--state", "/var/lib/assay/state"];
        Ok(serde_json::from_str(&self.exec(device, &status)?)?)
    }

    /// The device id that a device knows; `None` if it knows none.
    pub(super) fn device_id(&self, device: &str) -> Option<String> {
        self.status(device).ok()?["device_id"].as_str().map(str::to_owned)
    }

    /// Whether a device was not provisioned yet at `then`. The device was started at `since`.
    pub(super) fn was_provisioning(
        &self,
        device: &str,
        since: &Moment,
        then: &Moment,
    ) -> Result<bool> {
        Ok(!self.log_between(device, since, Some(then))?.contains("provisioned as"))
    }

    /// The CA's record.
    pub(super) fn record(&self) -> Result<Record> {
        let list = |command: &[&str]| {
            self.exec(self.profile.ca(), &[&["assay"], command, &["--json"]].concat())
        };
        Record::parse(&list(&["devices"])?, &list(&["certs"])?, &list(&["enroll", "list"])?)
    }

    /// Waits until every container that has a health check passes it.
    pub(super) fn wait_for_health(&self) -> Result<()> {
        let began = Instant::now();
        let label = format!("label=com.docker.compose.project={}", self.project);
        loop {
            let states = output(["ps", "--filter", &label, "--format", "{{.Names}} {{.Status}}"])?;
            let unhealthy =
                |line: &&str| line.contains("(unhealthy)") || line.contains("(health: starting)");
            match states.lines().find(unhealthy) {
                None => return Ok(()),
                Some(line) if began.elapsed() > RECOVERY => bail!("not healthy: {line}"),
                Some(_) => thread::sleep(POLL),
            }
        }
    }
}

/// A moment as `docker logs` takes it.
pub(super) struct Moment(String);

impl Moment {
    pub(super) fn long_ago() -> Self {
        Self("0".into())
    }

    pub(super) fn now() -> Self {
        // Unwrap safety: the clock of a machine that runs Docker is not before 1970.
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        Self(format!("{}.{:09}", now.as_secs(), now.subsec_nanos()))
    }
}

/// A port that nobody listens on. Docker could choose one too, but would choose another at each
/// start.
fn free_port() -> Result<String> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port().to_string())
}

/// Tells the checkouts on a machine apart, because their tests may run at the same time.
fn checkout() -> String {
    let mut hasher = DefaultHasher::new();
    workspace().hash(&mut hasher);
    format!("{:08x}", hasher.finish() as u32)
}

/// Docker's plugin, or the older program that the plugin replaced.
fn compose() -> Result<&'static [&'static str]> {
    let ways: [&[&str]; 2] = [&["docker", "compose"], &["docker-compose"]];
    let mut ways = ways.into_iter();
    let found = ways.find(|way| is_successful(Command::new(way[0]).args(&way[1..]).arg("version")));
    found.context(
        "neither `docker compose` nor `docker-compose` is here; on Debian: `apt-get install \
         docker-compose`",
    )
}

/// How long a device may take to be heard again by itself. It waits 20 s for an answer that never
/// comes. Then it may have to wait for the last pause of an attempt, which lasts 60 s in all.
const RECOVERY: Duration = Duration::from_secs(120);
const POLL: Duration = Duration::from_millis(250);
/// Lines of each container, when a test fails.
const LOG_LINES: &str = "200";

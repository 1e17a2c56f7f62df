//! Docker's command line.

use std::process::{Command, Stdio};

use anyhow::{Result, bail};
use assay_tests::run;

/// `docker` with these arguments.
pub(crate) fn docker<'a>(arguments: impl IntoIterator<Item = &'a str>) -> Command {
    let mut command = Command::new("docker");
    command.args(arguments);
    command
}

/// What `docker` prints with these arguments; failure is an error.
pub(crate) fn output<'a>(arguments: impl IntoIterator<Item = &'a str>) -> Result<String> {
    Ok(String::from_utf8(run(&mut docker(arguments))?.stdout)?.trim_end().to_owned())
}

/// An error that says what to do, unless a Docker engine answers.
pub(crate) fn require_engine() -> Result<()> {
    if is_successful(&mut docker(["version", "--format", "{{.Server.Version}}"])) {
        return Ok(());
    }
    bail!(
        "no Docker engine answers. On Debian: `apt-get install docker.io docker-compose`, see \
         that the service docker runs and that you may use it (`docker version`), and try again"
    )
}

/// Whether a command can be run and succeeds. Its output is dropped.
pub(crate) fn is_successful(command: &mut Command) -> bool {
    command
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}

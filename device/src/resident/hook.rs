//! Runs the program that wants to hear of a new certificate.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use assay_wire::DeviceId;
use tokio::process::Command;
use tokio::time::timeout;

/// Runs `command`, a program and its arguments, without a shell; says what went wrong.
///
/// Its environment has PATH and what this function sets, and nothing else: the agent's own may hold
/// passwords of the TPM.
pub(super) async fn run(
    command: &[String],
    state: &Path,
    device_id: &DeviceId,
) -> Result<(), String> {
    let (program, arguments) = command.split_first().ok_or("it is empty")?;
    let mut child = Command::new(program);
    child.args(arguments).stdin(Stdio::null()).kill_on_drop(true).env_clear();
    child.envs(std::env::var_os("PATH").map(|path| ("PATH", path)));
    child.env("ASSAY_STATE", state).env("ASSAY_DEVICE_ID", device_id.as_str());
    child.env("ASSAY_CERTIFICATE", crate::state::certificate_path(state));
    match timeout(LIMIT, child.status()).await {
        Ok(Ok(status)) if status.success() => Ok(()),
        Ok(Ok(status)) => Err(format!("{program}: {status}")),
        Ok(Err(error)) => Err(format!("{program}: {error}")),
        Err(_) => Err(format!("{program} took more than {} s and was killed", LIMIT.as_secs())),
    }
}

/// Enough to restart a service.
const LIMIT: Duration = Duration::from_secs(60);

//! The health of a CA: what anybody may ask, and what its operator may ask.

use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use assay_tests::{AssayDir, Mosquitto, Worker, tool};
use assay_wire::{ReplyBody, RequestBody};
use serde_json::Value;

use crate::lab::Lab;
use crate::raw_client::RawClient;

#[test]
fn a_ping_is_answered_and_leaves_no_trace() -> Result<()> {
    let lab = Lab::open()?;
    let mut stranger = RawClient::connect(&lab.server.bootstrap, &lab.dir.root_pem())?;
    ensure!(matches!(stranger.ask(RequestBody::Ping)?, ReplyBody::Pong));
    // A later request is in the audit, so the ping would be there too.
    stranger.ask_bytes(b"no request".to_vec())?;
    lab.audited("malformed")?;
    let audit = lab.dir.decisions()?;
    ensure!(audit.len() == 1, "{audit:?}");
    Ok(())
}

#[test]
fn a_ca_that_answers_and_can_write_is_healthy() -> Result<()> {
    let lab = Lab::open()?;
    let health =
        Health::of(lab.dir.assay(&["health", "--json", "--broker", &lab.server.bootstrap])?)?;
    ensure!(health.healthy && health.report["healthy"] == true, "{health:?}");
    ensure!(
        health.report["worker"]["answered_ms"].is_u64()
            && health.report["store"]["written_ms"].is_u64()
    );
    ensure!(lab.dir.decisions()?.is_empty(), "it leaves no trace");
    Ok(())
}

#[test]
fn a_worker_on_another_broker_is_asked_there() -> Result<()> {
    let dir = AssayDir::init()?;
    let tls = format!(
        "allow_anonymous true\ncertfile {0}/server.pem\nkeyfile {0}/server.key\nset_tcp_nodelay \
         true",
        dir.path().display()
    );
    let mosquitto = Mosquitto::start(&["allow_anonymous true", &tls])?;
    let plain = format!("mqtt://127.0.0.1:{}", mosquitto.port(0));
    let broker = format!("mqtts://127.0.0.1:{}", mosquitto.port(1));
    let ask = || Health::of(dir.assay(&["health", "--json", "--broker", &broker])?);
    let without = ask()?;
    ensure!(
        !without.healthy && without.worker_error().contains("no worker is subscribed"),
        "{without:?}"
    );
    ensure!(without.report["store"]["written_ms"].is_u64(), "each part speaks for itself");
    let _worker = Worker::start(&dir, &plain)?;
    let with = ask()?;
    ensure!(with.healthy, "{with:?}");
    Ok(())
}

#[test]
fn a_ca_that_does_not_answer_is_not_healthy_and_says_so_in_time() -> Result<()> {
    let lab = Lab::open()?;
    let broker = lab.server.bootstrap.clone();
    let ask = || Health::of(lab.dir.assay(&["health", "--json", "--broker", &broker])?);
    lab.server.signal("STOP")?;
    let stopped = ask()?;
    ensure!(!stopped.healthy && stopped.worker_error().contains("no answer"), "{stopped:?}");
    ensure!(stopped.took < Duration::from_secs(6), "{stopped:?}");
    lab.server.signal("CONT")?;
    let going_on = ask()?;
    ensure!(going_on.healthy, "{going_on:?}");
    lab.server.stop()?;
    let ended = Health::of(lab.dir.assay(&["health", "--json", "--broker", &broker])?)?;
    ensure!(!ended.healthy && ended.worker_error().contains("Is the broker running"), "{ended:?}");
    Ok(())
}

#[test]
fn a_store_that_cannot_be_written_is_not_healthy() -> Result<()> {
    let lab = Lab::open()?;
    let arguments = ["health", "--json", "--broker", &lab.server.bootstrap];
    // In blocks of 512 bytes (POSIX `ulimit`). The first limit allows no write. The second allows
    // no write of the size that the store needs next.
    for (blocks, reason) in [("0", "database: "), ("1024", "File too large")] {
        let assay = lab.dir.assay(&arguments)?;
        let mut limited = tool("sh")?;
        // The shell ignores SIGXFSZ, so that the write fails as on a full disk.
        limited.arg("-c").arg(format!("trap '' XFSZ; ulimit -f {blocks}; exec \"$@\"")).arg("sh");
        limited.arg(assay.get_program()).args(assay.get_args());
        let health = Health::of(limited)?;
        let error = health.report["store"]["error"].as_str().unwrap_or_default().to_owned();
        ensure!(
            !health.healthy && error.contains(reason) && error.contains("free space"),
            "{health:?}"
        );
        ensure!(health.report["worker"]["answered_ms"].is_u64(), "each part speaks for itself");
    }
    ensure!(Health::of(lab.dir.assay(&arguments)?)?.healthy, "nothing is left behind");
    Ok(())
}

/// What `assay health --json` said.
#[derive(Debug)]
struct Health {
    healthy: bool,
    report: Value,
    took: Duration,
}

impl Health {
    fn of(mut command: Command) -> Result<Self> {
        let started = Instant::now();
        let output = command.output()?;
        let report = serde_json::from_slice(&output.stdout).with_context(|| {
            format!("no JSON; on stderr: {}", String::from_utf8_lossy(&output.stderr))
        })?;
        Ok(Self { healthy: output.status.success(), report, took: started.elapsed() })
    }

    fn worker_error(&self) -> &str {
        self.report["worker"]["error"].as_str().unwrap_or_default()
    }
}

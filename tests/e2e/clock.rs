//! A CA whose clock is wrong: nothing is answered, and nothing is lost.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use assay_tests::{AssayDir, AssayServer, Device, EkKind, run, trusted_vendor};
use assay_wire::{Proof, ReplyBody, RequestBody};
use rusqlite::Connection;

use crate::fake_clock::FakeClock;
use crate::lab::Lab;
use crate::raw_client::RawClient;
use crate::tools_device::{ToolsDevice, named};

/// Puts on record that it was this much later, so that the CA's clock is behind.
fn set_back(lab: &Lab, seconds: i64) -> Result<()> {
    let record = Connection::open(lab.dir.path().join("assay.db"))?;
    record.busy_timeout(Duration::from_secs(10))?;
    record.execute("UPDATE clock SET latest = unixepoch() + ?1", [seconds])?;
    Ok(())
}

/// The number of the last list that was signed.
fn last_list(lab: &Lab) -> Result<u32> {
    let record = Connection::open(lab.dir.path().join("assay.db"))?;
    Ok(record.query_row("SELECT number FROM revocation_lists", [], |row| row.get(0))?)
}

/// Whether a worker answers within some seconds as it should.
fn is_healthy(lab: &Lab, expected: bool) -> Result<bool> {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let mut health = lab.dir.assay(&["health", "--broker", &lab.server.bootstrap])?;
        let is_healthy = health.output()?.status.success();
        if is_healthy == expected || Instant::now() > deadline {
            return Ok(is_healthy);
        }
        thread::sleep(Duration::from_millis(200));
    }
}

#[test]
fn a_worker_whose_clock_is_behind_the_record_answers_nothing_until_it_is_right() -> Result<()> {
    let lab = Lab::open()?;
    let tpms = trusted_vendor()?.devices(EkKind::P256, 2)?;
    let [old, new] = [Device::new(&tpms[0])?, Device::new(&tpms[1])?];
    lab.provision(&old, &[])?;
    let publish = || -> Result<Option<i32>> {
        let output = old.publish(&lab.dir, &lab.server, "telemetry", "21.5")?.output()?;
        Ok(output.status.code())
    };
    ensure!(publish()? == Some(0) && is_healthy(&lab, true)?);
    for step in [3_600, 86_400, 31_536_000] {
        set_back(&lab, step)?;
        ensure!(!is_healthy(&lab, false)?, "{step}");
        let refused = new.provision(&lab.dir, &lab.server)?.args(["--deadline", "5"]).output()?;
        ensure!(refused.status.code() == Some(4), "it would try again: {}", refused.status);
        ensure!(lab.dir.list("certs")?.len() == 1, "nothing was issued or revoked");
        // Not 3, which would say that the certificate is no longer good.
        ensure!(publish()? == Some(4));
        ensure!(lab.server.log().contains("behind what is on record"));
        // What changes the list is published once the clock is right.
        let (list, ek) = (last_list(&lab)?, format!("{step:064x}"));
        run(&mut lab.dir.assay(&["enroll", "disable", &ek])?)?;
        thread::sleep(Duration::from_millis(2_500));
        ensure!(last_list(&lab)? == list);
        set_back(&lab, 0)?;
        ensure!(is_healthy(&lab, true)?, "{step}");
        ensure!(publish()? == Some(0));
        let deadline = Instant::now() + Duration::from_secs(10);
        while last_list(&lab)? == list {
            ensure!(Instant::now() < deadline, "no list is published");
            thread::sleep(Duration::from_millis(100));
        }
    }
    // The record's times are the wrong ones.
    set_back(&lab, 3_600)?;
    ensure!(!is_healthy(&lab, false)?);
    run(&mut lab.dir.assay(&["clock", "--accept"])?)?;
    ensure!(is_healthy(&lab, true)?);
    lab.provision(&new, &[])?;
    ensure!(lab.dir.list("certs")?.iter().all(|row| row["status"] == "active"));
    Ok(())
}

/// libfaketime sets the clock of the CA alone, and only what it takes for the time of day.
#[test]
fn a_ca_whose_clock_is_set_forward_or_back_loses_and_revokes_nothing() -> Result<()> {
    let dir = AssayDir::init()?;
    let vendor = trusted_vendor()?;
    dir.trust(&vendor)?;
    let clock = FakeClock::new()?;
    let environment = clock.environment();
    let environment = environment.each_ref().map(|(name, value)| (*name, value.as_os_str()));
    let lab = Lab { server: AssayServer::start_with(&dir, &environment)?, dir };
    let tpms = vendor.devices(EkKind::P256, 2)?;
    let certified = Device::new(&tpms[0])?;
    lab.provision(&certified, &[])?;
    // This one has ten minutes to confirm.
    let waiting = ToolsDevice::new(&tpms[1], EkKind::P256)?;
    let mut mqtt = RawClient::connect(&lab.server.bootstrap, &lab.dir.root_pem())?;
    let ReplyBody::Sealed(reply) = mqtt.ask(RequestBody::Enroll(waiting.evidence()?))? else {
        bail!("no sealed certificate")
    };
    let sealed = waiting.open(&reply)?;
    let id = named(&sealed.chain)?;
    drop(mqtt);
    for step in [3_600, -3_600, 86_400, -86_400, 31_536_000, -31_536_000] {
        clock.set(step)?;
        ensure!(!is_healthy(&lab, false)?, "{step}");
        // Long enough to revoke what was not confirmed in time.
        thread::sleep(Duration::from_millis(1_500));
        ensure!(lab.statuses(&id)? == ["unconfirmed"], "{step}");
        let direction = if step > 0 { "went forward" } else { "behind" };
        ensure!(lab.server.log().contains(direction), "{step}");
        clock.set(0)?;
        ensure!(is_healthy(&lab, true)?, "{step}");
    }
    run(&mut certified.publish(&lab.dir, &lab.server, "telemetry", "21.5")?)?;
    let proof = Proof { claim: reply.claim, ticket: sealed.ticket };
    let mut mqtt = RawClient::connect(&lab.server.bootstrap, &lab.dir.root_pem())?;
    let confirmed = mqtt.ask(RequestBody::Confirm(proof))?;
    ensure!(matches!(confirmed, ReplyBody::Confirmed(_)), "{confirmed:?}");
    ensure!(lab.dir.list("certs")?.iter().all(|row| row["status"] == "active"));
    Ok(())
}

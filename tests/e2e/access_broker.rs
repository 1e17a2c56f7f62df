//! A TPM that only libtss2 reaches: behind the user-space resource manager.

use anyhow::{Context, Result, ensure};
use assay_tests::{AccessBroker, Device, EkKind, agent_has_libtss2, json, run, trusted_vendor};

use crate::lab::Lab;

#[test]
fn a_tpm_behind_tabrmd_takes_an_agent_with_libtss2_and_is_provisioned_in_every_flow() -> Result<()>
{
    let lab = Lab::open()?;
    if !agent_has_libtss2() {
        let refused = Device::at("tabrmd:")?.provision(&lab.dir, &lab.server)?.output()?;
        let said = String::from_utf8_lossy(&refused.stderr);
        ensure!(refused.status.code() == Some(2) && said.contains("--features tss2"), "{said}");
        return Ok(());
    }
    let vendor = trusted_vendor()?;
    for (number, flow) in ["ticket", "sealed", "shared-key"].into_iter().enumerate() {
        let tpm = vendor.device(EkKind::P256, number)?;
        let broker = AccessBroker::before(&tpm)?;
        let device = Device::at(broker.tcti())?;
        let mut provision = device.provision(&lab.dir, &lab.server)?;
        let provisioned =
            json(broker.reachable_for(provision.args(["--flow", flow]))).context(flow)?;
        ensure!(provisioned["flow"] == flow);
        let mut publish = device.publish(&lab.dir, &lab.server, "telemetry", "21.5")?;
        run(broker.reachable_for(&mut publish)).context(flow)?;
    }
    Ok(())
}

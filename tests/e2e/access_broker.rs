//! A TPM that only libtss2 reaches: behind the user-space resource manager.

use anyhow::{Context, Result, ensure};
use assay_tests::{AccessBroker, Device, EkKind, json, run, trusted_vendor};

use crate::lab::Lab;

#[test]
#[ignore = "needs an agent with the feature tss2: `cargo xtask ci` builds one and runs this"]
fn a_tpm_behind_tabrmd_is_provisioned_in_every_flow_and_speaks() -> Result<()> {
    let lab = Lab::open()?;
    let vendor = trusted_vendor()?;
    for (number, flow) in ["ticket", "sealed", "shared-key"].into_iter().enumerate() {
        let tpm = vendor.device(EkKind::P256, number)?;
        let broker = AccessBroker::before(&tpm)?;
        let device = Device::at(broker.tcti())?;
        let mut provision = device.provision(&lab.dir, &lab.server)?;
        let provisioned = json(broker.reachable_for(provision.args(["--flow", flow]))).context(flow)?;
        ensure!(provisioned["flow"] == flow);
        let mut publish = device.publish(&lab.dir, &lab.server, "telemetry", "21.5")?;
        run(broker.reachable_for(&mut publish)).context(flow)?;
    }
    Ok(())
}

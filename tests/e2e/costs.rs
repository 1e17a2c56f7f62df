//! What each flow costs a device: round trips, bytes on the wire, TPM commands. The test prints
//! README's table.

use anyhow::{Context, Result, ensure};
use assay_tests::{AssayDir, Device, EkKind, Mosquitto, Tap, Worker, json, trusted_vendor};

#[test]
fn each_flow_takes_the_round_trips_it_promises() -> Result<()> {
    let dir = AssayDir::init()?;
    let vendor = trusted_vendor()?;
    dir.trust(&vendor)?;
    let mosquitto = Mosquitto::start(&["allow_anonymous true"])?;
    let _worker = Worker::start(&dir, &format!("mqtt://127.0.0.1:{}", mosquitto.port(0)))?;
    println!(
        "EK        flow        round trips  payload sent/received  MQTT bytes  TPM commands  TPM \
         ms"
    );
    for ek in [EkKind::P256, EkKind::Rsa2048] {
        for (number, (flow, round_trips)) in
            [("ticket", 2), ("sealed", 2), ("shared-key", 1)].into_iter().enumerate()
        {
            let tpm = vendor.device(ek, number)?;
            let (wire, commands) = (Tap::before(mosquitto.port(0))?, Tap::before(tpm.port())?);
            let device = Device::at(&format!("swtpm:host=127.0.0.1,port={}", commands.port()))?;
            let broker = format!("mqtt://127.0.0.1:{}", wire.port());
            let mut provision = device.provision_at(&broker, &dir.root_pem())?;
            let cost = json(provision.args(["--flow", flow, "--ek", ek.name()]))
                .with_context(|| flow.to_owned())?;
            ensure!(cost["requests"] == round_trips, "{cost}");
            // The most that docs/performance.md tells a device on a slow network to expect.
            let most = if ek == EkKind::P256 { 3500 } else { 3900 };
            ensure!(wire.bytes() <= most, "{ek:?} {flow}: {} bytes", wire.bytes());
            println!(
                "{:9} {flow:11} {round_trips:11}  {:>12} / {:<7}  {:10}  {:12}  {:6}",
                ek.name(),
                cost["bytes_sent"],
                cost["bytes_received"],
                wire.bytes(),
                commands.requests(),
                cost["tpm_ms"]
            );
        }
    }
    Ok(())
}

//! Our CA with a device that is not ours.

use std::fs;

use anyhow::{Context, Result, ensure};
use assay_tests::{EkKind, run, tool, trusted_vendor};
use assay_wire::{Proof, ReplyBody, RequestBody};

use crate::lab::Lab;
use crate::raw_client::RawClient;
use crate::tools_device::{ToolsDevice, named};

#[test]
fn tpm2_activatecredential_opens_our_credentials_for_every_kind_of_ek() -> Result<()> {
    let lab = Lab::open()?;
    for kind in [EkKind::Rsa2048, EkKind::P256, EkKind::P384] {
        let tpm = trusted_vendor()?.device(kind, 0)?;
        let device = ToolsDevice::new(&tpm, kind)?;
        let mut mqtt = RawClient::connect(&lab.server.bootstrap, &lab.dir.root_pem())?;

        let challenge = match mqtt.ask(RequestBody::Challenge(device.evidence()?))? {
            ReplyBody::Challenge(challenge) => challenge,
            other => anyhow::bail!("{kind:?}: {other:?}"),
        };
        let ticket = device.activate(&challenge).with_context(|| format!("{kind:?}"))?;
        let granted =
            match mqtt.ask(RequestBody::Certify(Proof { claim: challenge.claim, ticket }))? {
                ReplyBody::Certificate(granted) => granted,
                other => anyhow::bail!("{kind:?}: {other:?}"),
            };

        let file = tpm.work_dir().join("certificate.der");
        fs::write(&file, &granted.chain[0][..])?;
        let text = run(tool("openssl")?
            .args(["x509", "-inform", "DER", "-noout", "-subject", "-in"])
            .arg(&file))?;
        let subject = String::from_utf8(text.stdout)?;
        ensure!(subject.contains(&named(&granted.chain)?), "{kind:?}: {subject}");
    }
    Ok(())
}

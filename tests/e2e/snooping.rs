//! What a stranger learns at the bootstrap listener of `assay serve`: nothing.

use std::time::Duration;

use anyhow::{Result, ensure};
use assay_tests::{Device, EkKind, trusted_vendor};

use crate::lab::Lab;
use crate::raw_client::RawClient;

#[test]
fn a_stranger_hears_nothing_and_speaks_for_nobody() -> Result<()> {
    let lab = Lab::open()?;
    let victim = RawClient::connect(&lab.server.bootstrap, &lab.dir.root_pem())?;
    let mut stranger = RawClient::connect(&lab.server.bootstrap, &lab.dir.root_pem())?;

    let victims = |side: &str| format!("provision/v1/default/{}/{side}", victim.id());
    let everybodys = [
        "#",
        "+/#",
        "provision/#",
        "provision/v1/default/+/request",
        "provision/v1/+/+/reply",
        "$SYS/#",
    ];
    let shared = ["$share/x/#", "$share/ca/provision/v1/default/+/request"];
    let others = ["fleet/v1/default/+/event", "device/v1/default/#", "ca/v1/default/crl"];
    for filter in
        everybodys.iter().chain(&shared).chain(&others).copied().chain([&*victims("reply")])
    {
        ensure!(!stranger.subscribe(filter)?, "{filter} was granted");
    }

    lab.provision(&Device::new(&trusted_vendor()?.device(EkKind::P256, 0)?)?, &[])?;
    ensure!(
        !stranger.hears_something(Duration::from_millis(300)),
        "the stranger overheard a device"
    );
    Ok(())
}

#[test]
fn a_stranger_publishes_to_its_own_request_topic_alone() -> Result<()> {
    let lab = Lab::open()?;
    let mut victim = RawClient::connect(&lab.server.bootstrap, &lab.dir.root_pem())?;
    let mut topics = ["reply", "request"]
        .map(|side| format!("provision/v1/default/{}/{side}", victim.id()))
        .to_vec();
    topics.extend(
        ["device/v1/default/pump-17/telemetry", "fleet/v1/default/pump-17/event"].map(String::from),
    );
    for topic in topics {
        let mut stranger = RawClient::connect(&lab.server.bootstrap, &lab.dir.root_pem())?;
        ensure!(
            !stranger.publish(&topic, b"forged".to_vec()).unwrap_or(false),
            "{topic} was accepted"
        );
    }
    let mut stranger = RawClient::connect(&lab.server.bootstrap, &lab.dir.root_pem())?;
    let own_reply = format!("provision/v1/default/{}/reply", stranger.id());
    ensure!(
        !stranger.publish(&own_reply, b"forged".to_vec()).unwrap_or(false),
        "its own reply topic was accepted"
    );
    ensure!(!victim.hears_something(Duration::from_millis(300)), "the victim heard the stranger");
    Ok(())
}

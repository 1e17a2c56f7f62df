//! What clients may try besides subscribing and publishing where they may not: Wills, retained
//! messages, groups, and each other's client ids.

use std::time::{Duration, Instant};

use assay_broker_plugin::access::WORKER_PREFIX;
use assay_mqtt::rumqttc::v5::mqttbytes::QoS;
use assay_mqtt::rumqttc::v5::mqttbytes::v5::LastWill;

use super::cast::Cast;
use super::party::{NotIn, Persona, Stay, ping, words};
use super::rules::{Found, Report, Rule, Tried};

pub(super) async fn all(cast: &Cast<'_>, report: &Report) {
    report.add(Rule::Will, will(cast).await);
    report.add(Rule::Retain, retain(cast).await);
    report.add(Rule::Group, group(cast).await);
    let stranger = cast.stage.stranger();
    let device = cast.stage.persona(&cast.stage.tls.other_device, "");
    report.add(Rule::Takeover, takeover(cast, stranger).await);
    report.add(Rule::DeviceTakeover, takeover(cast, Ok(device)).await);
}

/// A stranger's Will on another's reply topic, and a device's Will on another device's topic (MQTT
/// 5 §3.1.2.5).
async fn will(cast: &Cast<'_>) -> Tried {
    let ((id, stranger), device) = (cast.stranger()?, cast.device());
    let other = cast.stage.persona(&cast.stage.tls.other_device, cast.stage.other_device.as_str());
    let mut tries = vec![(
        "a stranger's, on another's reply topic",
        cast.stage.stranger()?,
        cast.reply_topic(id),
        stranger,
    )];
    if let Ok(device) = device {
        tries.push((
            "a device's, on another device's topic",
            other,
            cast.stage.of_device("presence"),
            device,
        ));
    }
    let mut broken = Vec::new();
    for (what, persona, topic, ear) in tries {
        let payload = words();
        match persona
            .enter_with(Some(LastWill::new(topic, payload.clone(), QoS::AtLeastOnce, false, None)))
            .await
        {
            // The client ends without a DISCONNECT.
            Ok(party) => drop(party),
            Err(NotIn::Refused(_)) => continue,
            Err(NotIn::Unreachable(why)) => return Err(why),
        }
        if ear.hears(&payload, SETTLE).await {
            broken.push(format!("{what}, is published"));
        }
    }
    match device {
        Err(why) if broken.is_empty() => {
            Err(format!("a stranger's Will is not published; but {why}"))
        }
        _ => Ok(Found::against(&broken, "neither a stranger's nor a device's Will is published")),
    }
}

/// A retained request. It is a ping, which costs no worker anything, and expires in a minute
/// (§3.3.2.3.3).
async fn retain(cast: &Cast<'_>) -> Tried {
    let (stage, persona) = (cast.stage, cast.stage.stranger()?);
    let id = persona.id.parse().map_err(|_| "no client id".to_owned())?;
    let (request, topic) = (ping(), cast.request_topic(&id));
    let party = persona.enter().await.map_err(NotIn::reason)?;
    party.publish(&topic, &request, Stay::Minute).await;
    // A worker that comes later. It uses no shared subscription, because those get no retained
    // messages (§4.8.2).
    let late = stage.persona(&stage.tls.worker, format!("{WORKER_PREFIX}{}-late", stage.group));
    let late = late
        .enter()
        .await
        .map_err(|not_in| format!("worker.pem is not let in: {}", not_in.reason()))?;
    if late.subscribe(&stage.requests()).await != Some(true) {
        return Err(format!("worker.pem may not subscribe to {}", stage.requests()));
    }
    let waited = late.hears_retained(&request, SETTLE).await;
    if waited {
        // An empty message removes the retained one (§3.3.1-6).
        party.publish(&topic, &[], Stay::Yes).await;
    }
    let broken = waited.then(|| "a stranger's request is kept for later subscribers".to_owned());
    Ok(Found::against(broken.as_slice(), "a stranger's request is not kept for later subscribers"))
}

/// A stranger joins a group of which our worker is the only other member. Some brokers pick the
/// stranger for a request that it may not read, and count the request as delivered. Then the worker
/// misses it.
async fn group(cast: &Cast<'_>) -> Tried {
    let ((id, stranger), worker) = (cast.stranger()?, cast.worker()?);
    let party = cast.stage.stranger()?.enter().await.map_err(NotIn::reason)?;
    party.subscribe(&cast.stage.shared_requests(&cast.stage.group)).await;
    let requests: Vec<_> = (0..SHARED).map(|_| ping()).collect();
    for request in &requests {
        stranger.publish(&cast.request_topic(id), request, Stay::No).await;
    }
    let end = Instant::now() + PATIENCE;
    for request in &requests {
        worker.hears(request, end.saturating_duration_since(Instant::now())).await;
    }
    let lost = requests.iter().filter(|request| worker.times_heard(request) == 0).count();
    if lost == SHARED {
        return Err("no request reaches a worker".into());
    }
    let broken = (lost > 0).then(|| {
        format!("of {SHARED} requests {lost} are lost to a stranger that joined a group of workers")
    });
    Ok(Found::against(broken.as_slice(), format!("all of {SHARED} requests reached the worker")))
}

/// Somebody connects under the client id of a device that is connected (§3.1.4-3).
async fn takeover(cast: &Cast<'_>, persona: Result<Persona, String>) -> Tried {
    let (persona, stage) = (persona?, cast.stage);
    cast.device()?;
    // This is not the connection that other tries listen with.
    let victim = stage
        .persona(&stage.tls.device, stage.device.as_str())
        .enter()
        .await
        .map_err(NotIn::reason)?;
    let taken = Persona { id: stage.device.to_string(), ..persona }.enter().await;
    let is_cut = victim.is_cut(SETTLE).await;
    Ok(match taken {
        _ if is_cut => Found::Broken("the device's connection ended".into()),
        Ok(_) => Found::Kept("let in, as somebody else: the device stays".into()),
        Err(NotIn::Refused(_)) => Found::Kept("refused: the device stays".into()),
        Err(NotIn::Unreachable(why)) => return Err(why),
    })
}

/// Enough requests that each member of a group gets some in turn.
const SHARED: usize = 8;
/// How long to wait for what should arrive.
const PATIENCE: Duration = Duration::from_secs(2);
/// How long to wait for what should not arrive. If it came, it would come within this time.
const SETTLE: Duration = Duration::from_millis(700);

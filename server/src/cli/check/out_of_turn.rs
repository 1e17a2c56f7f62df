//! Subscribes and publishes where a client may not, as a stranger under several names and as a
//! device.
//!
//! Brokers refuse, filter what they deliver, or cut the connection. So what counts is who hears
//! what.

use std::time::Duration;

use super::cast::Cast;
use super::party::{NotIn, Party, Persona, Stay, ping, words};
use super::rules::{Found, Report, Rule, Tried};

/// Tries the rules on who hears and publishes what.
pub(super) async fn all(cast: &Cast<'_>, report: &Report) {
    let device = cast.stage.persona(&cast.stage.tls.other_device, cast.stage.other_device.as_str());
    let named = |name: &str| {
        cast.stage.stranger().map(|stranger| Persona { user_name: Some(name.into()), ..stranger })
    };
    let names = ["worker@", "operator@", cast.stage.device.as_str()];
    let mut personas = vec![(cast.stage.stranger(), REPLY), (Ok(device.clone()), WORD)];
    personas.extend(names.map(|name| (named(name), REPLY)));
    let heard = hear(cast, personas).await;
    let [stranger_hears, device_hears, named_hear @ ..] = &heard[..] else {
        unreachable!("as many as were asked for")
    };
    report.add(Rule::StrangerHears, stranger_hears.clone());
    report.add(Rule::DeviceHears, device_hears.clone());
    report.add(Rule::StrangerSpeaks, speak(cast, cast.stage.stranger(), REPLY).await);
    report.add(Rule::DeviceSpeaks, speak(cast, Ok(device), WORD).await);
    let mut by_name = Vec::new();
    for (name, hears) in names.iter().zip(named_hear) {
        let speaks = speak(cast, named(name), REPLY).await;
        by_name.push((*name, hears.clone()));
        by_name.push((*name, speaks));
    }
    report.add(Rule::UserName, together(by_name));
}

/// Each persona listens wherever it can, above all for the message named beside it. Then the
/// clients that may publish do so. Returns what each persona heard that it should not have.
async fn hear(cast: &Cast<'_>, personas: Vec<(Result<Persona, String>, &str)>) -> Vec<Tried> {
    let mut listeners = Vec::new();
    for (number, (persona, most)) in personas.into_iter().enumerate() {
        let listener = match persona {
            Ok(persona) => {
                listen(cast, &persona, number).await.map_err(|not_in| outside(&persona, not_in))
            }
            Err(why) => Err(Err(why)),
        };
        listeners.push((listener, most));
    }
    let (mut said, mut silent) = (Vec::new(), Vec::new());
    match (cast.stranger(), cast.worker()) {
        (Ok((id, stranger)), Ok(worker)) => {
            said.push((REQUEST, ping(), stranger, cast.request_topic(id), worker));
            said.push((REPLY, words(), worker, cast.reply_topic(id), stranger));
        }
        (Err(why), _) | (_, Err(why)) => silent.push(why),
    }
    match cast.device() {
        Ok(device) => said.push((WORD, words(), device, cast.stage.of_device("check"), device)),
        Err(why) => silent.push(why),
    }
    let mut arrived = Vec::new();
    for (what, payload, speaker, topic, ear) in said {
        speaker.publish(&topic, &payload, Stay::No).await;
        // A message that does not reach the client that should hear it shows nothing.
        match ear.hears(&payload, PATIENCE).await {
            true => arrived.push((what, payload)),
            false => {
                silent.push(format!("{what} does not reach even the client that should hear it"))
            }
        }
    }
    tokio::time::sleep(SETTLE).await;
    let mut verdicts = Vec::new();
    for (listener, most) in listeners {
        verdicts.push(match listener {
            Ok(party) => overheard(&party, most, &arrived, &silent).await,
            Err(tried) => tried,
        });
    }
    verdicts
}

/// What a listener heard of the messages that arrived. It shows nothing if `most`, the message that
/// this listener is about, did not arrive.
async fn overheard(
    party: &Party,
    most: &str,
    arrived: &[(&str, Vec<u8>)],
    silent: &[String],
) -> Tried {
    let heard = arrived.iter().filter(|(_, payload)| party.times_heard(payload) > 0);
    let heard: Vec<_> = heard.map(|(what, _)| format!("hears {what}")).collect();
    if heard.is_empty() && !arrived.iter().any(|(what, _)| *what == most) {
        return Err(silent.join("; "));
    }
    if heard.is_empty() && party.is_cut(Duration::ZERO).await {
        return Err("the broker ended the listener's connection".into());
    }
    in_vain(&heard, "does not hear", arrived.iter().map(|(what, _)| *what), silent)
}

/// The verdict on what was tried. A rule does not count as kept if a part of it could not be tried.
fn in_vain<'a>(
    broken: &[String],
    how: &str,
    what: impl Iterator<Item = &'a str>,
    untried: &[String],
) -> Tried {
    let kept = format!("{how} {}", what.collect::<Vec<_>>().join(", "));
    match broken {
        [] if !untried.is_empty() => Err(format!("{kept}; but {}", untried.join(", "))),
        broken => Ok(Found::against(broken, kept)),
    }
}

/// Subscribes to every filter that may match something. If a filter costs the connection, begins
/// anew without it.
async fn listen(cast: &Cast<'_>, persona: &Persona, number: usize) -> Result<Party, NotIn> {
    let (stage, scope) = (cast.stage, &cast.stage.scope);
    let mut filters = vec![
        "#".to_owned(),
        stage.requests(),
        // In a group of its own, so that it takes no request from anybody.
        stage.shared_requests(&format!("{}-{number}", stage.group)),
        format!("provision/v1/{scope}/+/reply"),
        format!("device/v1/{scope}/+/#"),
        stage.of_device("#"),
    ];
    if let Ok((id, _)) = cast.stranger() {
        filters.extend([cast.request_topic(id), cast.reply_topic(id)]);
    }
    'anew: loop {
        let party = persona.again().enter().await?;
        for at in 0..filters.len() {
            if party.subscribe(&filters[at]).await.is_none() && party.is_cut(Duration::ZERO).await {
                filters.remove(at);
                tokio::time::sleep(BREATH).await;
                continue 'anew;
            }
        }
        if party.is_cut(SETTLE).await && filters.pop().is_some() {
            tokio::time::sleep(BREATH).await;
            continue 'anew;
        }
        return Ok(party);
    }
}

/// Publishes where the persona may not, and finds who hears it. Each message has a connection of
/// its own, because brokers cut clients that try.
async fn speak(cast: &Cast<'_>, persona: Result<Persona, String>, most: &str) -> Tried {
    let persona = persona?;
    let (mut targets, mut deaf) = (Vec::new(), Vec::new());
    match cast.stranger() {
        Ok((id, stranger)) => {
            targets.push((REPLY, cast.reply_topic(id), words(), stranger));
            match cast.worker() {
                Ok(worker) => targets.push((REQUEST, cast.request_topic(id), ping(), worker)),
                Err(why) => deaf.push(why),
            }
        }
        Err(why) => deaf.push(why),
    }
    match cast.device() {
        Ok(device) => {
            targets.push((WORD, cast.stage.of_device("check"), words(), device));
            targets.push((
                "a command to a device",
                cast.stage.of_device("command"),
                words(),
                device,
            ));
        }
        Err(why) => deaf.push(why),
    }
    if let (Ok(operator), Some(list)) = (cast.operator(), &cast.list) {
        // It is the very list that is there, so a client that takes it from a stranger gets nothing
        // false.
        targets.push(("a revocation list that stays", cast.stage.list(), list.clone(), operator));
    } else {
        deaf.push("there is no good revocation list to plant".into());
    }
    if !targets.iter().any(|(what, ..)| *what == most) {
        return Err(deaf.join("; "));
    }
    let (mut ears, mut barred) = (Vec::new(), None);
    for (what, topic, payload, ear) in &targets {
        let party = match persona.again().enter().await {
            Ok(party) => party,
            Err(not_in) => {
                barred = Some(outside(&persona, not_in));
                break;
            }
        };
        let before = ear.times_heard(payload);
        party
            .publish(topic, payload, if *topic == cast.stage.list() { Stay::Yes } else { Stay::No })
            .await;
        ears.push((what, payload, ear, before));
        tokio::time::sleep(BREATH).await;
    }
    tokio::time::sleep(SETTLE).await;
    let forged: Vec<_> = ears
        .iter()
        .filter(|(_, payload, ear, before)| ear.times_heard(payload) > *before)
        .collect();
    if forged.iter().any(|(_, payload, ..)| Some(*payload) == cast.list.as_ref()) {
        cast.planted.set(true);
    }
    let forged: Vec<_> = forged.iter().map(|(what, ..)| format!("publishes {what}")).collect();
    match barred {
        Some(tried) if forged.is_empty() => tried,
        _ => in_vain(
            &forged,
            "nobody hears it publish",
            targets.iter().map(|(what, ..)| *what),
            &deaf,
        ),
    }
}

/// One verdict for all names. A name that was not tried leaves the rule untried, unless another
/// name breaks the rule.
fn together(tried: Vec<(&str, Tried)>) -> Tried {
    let (mut broken, mut untried) = (Vec::new(), None);
    for (name, tried) in tried {
        match tried {
            Ok(Found::Broken(how)) => broken.push(format!("as {name}: {how}")),
            Ok(Found::Kept(_)) => {}
            Err(why) => untried = Some(why),
        }
    }
    match untried {
        Some(why) if broken.is_empty() => Err(why),
        _ => Ok(Found::against(
            &broken,
            "as worker@, operator@ or a device it hears and publishes no more than without a name",
        )),
    }
}

/// If a client is not let in that should be, this shows nothing. A client under a false name need
/// not be let in.
fn outside(persona: &Persona, not_in: NotIn) -> Tried {
    match not_in {
        NotIn::Refused(reason) if persona.user_name.is_some() => {
            Ok(Found::Kept(format!("not let in: {reason}")))
        }
        not_in => Err(format!("{} is not let in: {}", persona.id, not_in.reason())),
    }
}

/// What is heard and published. Strangers are tried above all with the first, devices with the
/// last.
const REPLY: &str = "another's reply";
const REQUEST: &str = "another's request";
const WORD: &str = "what a device says";
/// How long to wait for what should arrive.
const PATIENCE: Duration = Duration::from_secs(2);
/// How long to wait for what should not arrive. If it came, it would come within this time.
const SETTLE: Duration = Duration::from_millis(400);
/// A pause, because brokers slow down clients that connect again and again.
const BREATH: Duration = Duration::from_millis(150);

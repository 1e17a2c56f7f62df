//! Who is let in on the operational listener without a certificate that is good.

use std::sync::Arc;
use std::time::Duration;

use assay_mqtt::BrokerUrl;
use rustls::ClientConfig;
use tokio::time::sleep;

use super::cast::{Cast, Stage};
use super::party::{NotIn, Persona};
use super::rules::{Found, Report, Rule, Tried};

/// Tries to connect without a certificate, and with certificates that are bad from the start;
/// [`revoked`] tries one that is good at first.
pub(super) async fn all(cast: &Cast<'_>, report: &Report) {
    let stage = cast.stage;
    let (worker, expired) = (format!("worker@{}", stage.group), stage.expired.to_string());
    report.add(
        Rule::NoCertificate,
        match cast.is_let_in() {
            Ok(()) => no_certificate(&stage.operational, &stage.tls.nobody).await,
            Err(why) => Err(why),
        },
    );
    for (rule, tls, id, what) in [
        (Rule::Foreign, &stage.tls.foreign, worker, "with another CA's worker's certificate"),
        (Rule::Expired, &stage.tls.expired, expired, "with a certificate that ended"),
    ] {
        report.add(
            rule,
            match cast.is_let_in() {
                Ok(()) => shown(&stage.persona(tls, id), what).await,
                Err(why) => Err(why),
            },
        );
    }
}

/// Tries to connect without a certificate, as a stranger and under the name of a worker.
pub(super) async fn no_certificate(operational: &BrokerUrl, nobody: &Arc<ClientConfig>) -> Tried {
    let stranger = Persona::stranger(operational, nobody);
    let named = Persona {
        id: format!("worker@{}", stranger.id),
        user_name: Some("worker@".into()),
        ..stranger.clone()
    };
    let mut broken = Vec::new();
    for (persona, what) in
        [(stranger, "a stranger is let in"), (named, "a client that says worker@ is let in")]
    {
        match persona.enter().await {
            Ok(_) => broken.push(what.to_owned()),
            Err(NotIn::Refused(_)) => {}
            Err(NotIn::Unreachable(why)) => return Err(why),
        }
    }
    Ok(Found::against(&broken, "refused"))
}

/// Whether the broker lets in a certificate that it should refuse.
pub(super) async fn shown(persona: &Persona, what: &str) -> Tried {
    if !persona.broker.is_tls() {
        return Err("without TLS nobody shows a certificate".into());
    }
    match persona.enter().await {
        Ok(_) => Ok(Found::Broken(format!("let in {what}"))),
        Err(NotIn::Refused(_)) => Ok(Found::Kept("refused".into())),
        Err(NotIn::Unreachable(why)) => Err(why),
    }
}

/// Whether the broker lets in a certificate that is good, and no longer once `revoke` is done.
pub(super) async fn revoked(
    stage: &Stage,
    tls: &Arc<ClientConfig>,
    id: String,
    revoke: impl FnOnce() -> anyhow::Result<()>,
) -> Tried {
    let persona = stage.persona(tls, id);
    if !persona.broker.is_tls() {
        return Err("without TLS nobody shows a certificate".into());
    }
    if let Err(not_in) = persona.enter().await {
        return Err(format!("it is not let in while it is good: {}", not_in.reason()));
    }
    revoke().map_err(|error| format!("{error:#}"))?;
    // Lists are published within a second.
    sleep(PUBLISHED).await;
    match persona.enter().await {
        Ok(_) => Ok(Found::Broken(format!(
            "let in {} s after it was revoked; if the broker reads a list from a file, try one \
             that the list names: --revoked",
            PUBLISHED.as_secs()
        ))),
        Err(NotIn::Refused(_)) => {
            Ok(Found::Kept("let in before it was revoked, refused after".into()))
        }
        Err(NotIn::Unreachable(why)) => Err(why),
    }
}

const PUBLISHED: Duration = Duration::from_secs(2);

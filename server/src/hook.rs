//! The operator's own service, which is asked before a device gets anything.
//!
//! Requests follow Standard Webhooks: a signature over id, time and body shows the service who asks.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use assay_ca_core::EkFacts;
use assay_store::Tags;
use assay_wire::{ClientId, DeviceId, EkId, Scope, printable};
use aws_lc_rs::hmac;
use data_encoding::BASE64;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use serde::Deserialize;
use serde_json::{Value, json};
use time::OffsetDateTime;
use ureq::Agent;
use ureq::tls::{Certificate, ClientCert, PrivateKey, RootCerts, TlsConfig};
use zeroize::Zeroizing;

use crate::directory::Credentials;
use crate::ek_list;
use crate::operations::configurations::Document;
use crate::rfc3339;

/// A service, and how it is reached.
pub struct Hook {
    agent: Agent,
    url: String,
    key: hmac::Key,
    breaker: Mutex<Breaker>,
}

/// What a device is about to get.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wish {
    /// `admit`: it is not registered yet.
    Admit,
    /// `recover`: it is registered, and asks anew: it lost its state, or has another key.
    Recover,
    /// `renew`: it has a certificate in force.
    Renew,
}

/// What the service is asked. Only a renewal is proven: whoever asks for the rest has shown an EK
/// that is trusted, and nothing shows that they have its TPM.
pub struct Question<'a> {
    /// The provisioning domain.
    pub scope: &'a Scope,
    /// What the device is about to get.
    pub wish: Wish,
    /// The kind of request.
    pub request: &'a str,
    /// The MQTT client that asks.
    pub client: &'a ClientId,
    /// The EK that it shows.
    pub ek_id: EkId,
    /// The device id that is due to the EK.
    pub device_id: &'a DeviceId,
    /// What is known of the TPM from a certificate.
    pub facts: Option<&'a EkFacts>,
    /// When it asked.
    pub at: OffsetDateTime,
}

/// What the service says.
#[derive(Debug, PartialEq, Eq)]
pub enum Word {
    /// The device gets it.
    Admit(Gift),
    /// The device does not, for this reason.
    Refuse(String),
}

/// What the service gives a device besides.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Gift {
    /// Its device id.
    pub device_id: Option<DeviceId>,
    /// What is to be kept with its enrolment.
    pub tags: Tags,
    /// Its document.
    pub configuration: Option<Document>,
}

impl Hook {
    /// A service at an `https` URL whose certificate leads to a root in the file `ca`. `credentials`
    /// are shown to it, and the file `secret` has the key of signatures.
    ///
    /// # Errors
    /// The URL is another kind, or a file cannot be used.
    pub fn new(url: &str, ca: &Path, secret: &Path, credentials: &Credentials) -> Result<Self> {
        ensure!(url.starts_with("https://"), "{url}: the URL of a hook begins with https://");
        let unreadable = |file: &Path| format!("cannot read {}", file.display());
        let roots = CertificateDer::pem_file_iter(ca)
            .and_then(Iterator::collect::<Result<Vec<_>, _>>)
            .with_context(|| unreadable(ca))?;
        ensure!(!roots.is_empty(), "{} holds no certificate", ca.display());
        let roots: Vec<_> = roots.iter().map(|der| Certificate::from_der(der).to_owned()).collect();
        let mode = fs::metadata(secret).with_context(|| unreadable(secret))?.permissions().mode();
        ensure!(
            mode & 0o077 == 0,
            "users other than its owner can read {0}, which holds a secret: chmod 600 {0}",
            secret.display()
        );
        let text = Zeroizing::new(fs::read_to_string(secret).with_context(|| unreadable(secret))?);
        let key = read_secret(text.trim()).with_context(|| secret.display().to_string())?;
        let chain: Vec<_> =
            credentials.chain.iter().map(|der| Certificate::from_der(der).to_owned()).collect();
        let private = PrivateKey::from_pem(
            pem::encode(&pem::Pem::new("PRIVATE KEY", credentials.key.secret_der())).as_bytes(),
        )?;
        let tls = TlsConfig::builder()
            .client_cert(Some(ClientCert::new_with_certs(&chain, private)))
            .root_certs(RootCerts::new_with_certs(&roots))
            .unversioned_rustls_crypto_provider(
                rustls::crypto::aws_lc_rs::default_provider().into(),
            )
            .build();
        let agent = Agent::config_builder()
            .tls_config(tls)
            .https_only(true)
            .http_status_as_error(false)
            .max_redirects(0)
            .proxy(None)
            .max_response_header_size(MAX_ANSWER)
            .max_idle_connections_per_host(ASKERS)
            .timeout_global(Some(PATIENCE))
            .user_agent(concat!("assay/", env!("CARGO_PKG_VERSION")))
            .build()
            .into();
        Ok(Self { agent, url: url.to_owned(), key, breaker: Mutex::default() })
    }

    /// Asks, and waits for the answer.
    ///
    /// # Errors
    /// There is none, or none that can be understood. Neither is a yes.
    pub fn ask(&self, question: &Question<'_>) -> Result<Word, NoAnswer> {
        self.breaker().pass(Instant::now())?;
        let word = self.exchange(question);
        self.breaker().note(answers(&word), Instant::now());
        word
    }

    fn exchange(&self, question: &Question<'_>) -> Result<Word, NoAnswer> {
        let body = question.json().to_string();
        let id = format!("msg_{}", hex::encode(crate::random_bytes::<16>()));
        let now = OffsetDateTime::now_utc().unix_timestamp().to_string();
        let signature = hmac::sign(&self.key, format!("{id}.{now}.{body}").as_bytes());
        let answer = self
            .agent
            .post(&self.url)
            .header("content-type", "application/json")
            .header("webhook-id", &id)
            .header("webhook-timestamp", &now)
            .header("webhook-signature", format!("v1,{}", BASE64.encode(signature.as_ref())))
            .send(&body);
        let mut answer = answer.map_err(|error| NoAnswer::Unreachable(error.to_string()))?;
        if answer.status() != 200 {
            return Err(NoAnswer::Status(answer.status().as_u16()));
        }
        let body = answer.body_mut().with_config().limit(MAX_ANSWER as u64).read_to_vec();
        read_word(&body.map_err(|error| NoAnswer::Unreachable(error.to_string()))?)
    }

    fn breaker(&self) -> std::sync::MutexGuard<'_, Breaker> {
        self.breaker.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Question<'_> {
    fn json(&self) -> Value {
        let tpm = self.facts.and_then(|facts| facts.tpm.as_ref());
        json!({
            "type": "assay.admission",
            "timestamp": rfc3339::seconds(self.at.unix_timestamp()),
            "data": {
                "scope": self.scope.as_str(),
                "wish": self.wish.name(),
                "request": self.request,
                "client": self.client.as_str(),
                "ek_id": self.ek_id.to_string(),
                "device_id": self.device_id.as_str(),
                "vendor": self.facts.map(|facts| &facts.vendor).filter(|it| !it.is_empty()),
                "tpm": tpm.map(|tpm| json!({
                    "manufacturer": tpm.manufacturer,
                    "model": tpm.model,
                    "firmware": tpm.version,
                })),
            },
        })
    }
}

impl Wish {
    /// Its name in questions.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Admit => "admit",
            Self::Recover => "recover",
            Self::Renew => "renew",
        }
    }
}

/// Whether the service is there. An answer that is of no use about one device says nothing of the
/// others.
fn answers(word: &Result<Word, NoAnswer>) -> bool {
    match word {
        Err(NoAnswer::Unreachable(_)) => false,
        Err(NoAnswer::Status(status)) => *status < 500,
        Ok(_) | Err(NoAnswer::Unclear(_) | NoAnswer::Resting) => true,
    }
}

/// As Standard Webhooks has secrets: `whsec_` and base64 of 24 to 64 bytes.
fn read_secret(text: &str) -> Result<hmac::Key> {
    let bytes = text.strip_prefix("whsec_").and_then(|text| BASE64.decode(text.as_bytes()).ok());
    let bytes = bytes.map(Zeroizing::new).filter(|bytes| (24..=64).contains(&bytes.len()));
    let bytes = bytes.context(
        "a hook's secret is whsec_ and base64 of 24 to 64 bytes; `echo whsec_$(openssl rand \
         -base64 32)` makes one",
    )?;
    Ok(hmac::Key::new(hmac::HMAC_SHA256, &bytes))
}

/// The answer as it is written. What is not understood may be a condition.
#[derive(Deserialize)]
#[serde(tag = "decision", rename_all = "lowercase", deny_unknown_fields)]
enum Answer {
    Admit {
        device_id: Option<String>,
        #[serde(default)]
        tags: Tags,
        configuration: Option<Value>,
    },
    Refuse {
        reason: String,
    },
}

fn read_word(body: &[u8]) -> Result<Word, NoAnswer> {
    let unclear = |reason: String| NoAnswer::Unclear(printable(&reason, MAX_REASON));
    match serde_json::from_slice(body).map_err(|error| unclear(error.to_string()))? {
        Answer::Refuse { reason } => Ok(Word::Refuse(printable(&reason, MAX_REASON))),
        Answer::Admit { device_id, tags, configuration } => {
            let device_id = device_id.map(|id| id.parse()).transpose();
            let device_id = device_id.map_err(|error| unclear(format!("device_id: {error}")))?;
            ek_list::check_tags(&tags).map_err(|error| unclear(format!("tags: {error:#}")))?;
            let document =
                configuration.map(|document| Document::read(document.to_string().into()));
            let configuration = document.transpose();
            let configuration = configuration.map_err(|error| unclear(error.to_string()))?;
            Ok(Word::Admit(Gift { device_id, tags, configuration }))
        }
    }
}

/// Why the service did not say anything that counts.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)] // each variant's message is its documentation
pub enum NoAnswer {
    #[error("{0}")]
    Unreachable(String),
    #[error("it answers with status {0}")]
    Status(u16),
    #[error("its answer cannot be understood: {0}")]
    Unclear(String),
    #[error("it did not answer before, and is asked again in {} s at most", REST.as_secs())]
    Resting,
}

/// Lets nobody wait for a service that does not answer.
#[derive(Default)]
struct Breaker {
    failures: u32,
    resting_until: Option<Instant>,
}

impl Breaker {
    /// Of those that come after a rest, the first one passes.
    fn pass(&mut self, now: Instant) -> Result<(), NoAnswer> {
        match self.resting_until {
            Some(until) if now < until => Err(NoAnswer::Resting),
            Some(_) => {
                self.resting_until = Some(now + REST);
                Ok(())
            }
            None => Ok(()),
        }
    }

    fn note(&mut self, answered: bool, now: Instant) {
        if answered {
            *self = Self::default();
            return;
        }
        self.failures = self.failures.saturating_add(1);
        if self.failures >= FAILURES {
            self.resting_until = Some(now + REST);
        }
    }
}

/// How many ask at once.
pub const ASKERS: usize = 8;
/// How long one waits for an answer, from the lookup of the name on.
const PATIENCE: Duration = Duration::from_secs(5);
/// After how many without an answer, one after another, nobody asks for a while.
const FAILURES: u32 = 5;
/// For how long.
const REST: Duration = Duration::from_secs(10);
/// The longest answer: a document has up to 4 KiB.
const MAX_ANSWER: usize = 16 * 1024;
/// The longest reason, in characters, so that it fits into a problem's detail.
const MAX_REASON: usize = 256;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_clear_answer_counts() {
        let read = |text: &str| read_word(text.as_bytes());
        assert_eq!(read(r#"{"decision":"admit"}"#).unwrap(), Word::Admit(Gift::default()));
        let full = r#"{"decision":"admit","device_id":"pump-17","tags":{"site":"north"},
                       "configuration":{"interval":5}}"#;
        let Word::Admit(gift) = read(full).unwrap() else { panic!() };
        assert_eq!(gift.device_id.unwrap().as_str(), "pump-17");
        assert_eq!(gift.tags["site"], "north");
        assert!(gift.configuration.is_some());
        let refused = read(r#"{"decision":"refuse","reason":"stolen\n\u001b[31m"}"#).unwrap();
        assert_eq!(refused, Word::Refuse(r"stolen\n\u{1b}[31m".into()));
        for unclear in [
            "",
            "true",
            r#"{}"#,
            r#"{"decision":"maybe"}"#,
            r#"{"decision":"refuse"}"#,
            r#"{"decision":"admit","unless":"it rains"}"#,
            r#"{"decision":"admit","device_id":"a/b"}"#,
            r#"{"decision":"admit","tags":{"site":7}}"#,
            r#"{"decision":"admit"} x"#,
        ] {
            assert!(matches!(read(unclear), Err(NoAnswer::Unclear(_))), "{unclear}");
        }
        let long = "x".repeat(5_000);
        let unclear = format!(r#"{{"decision":"admit","configuration":"{long}"}}"#);
        assert!(matches!(read(&unclear), Err(NoAnswer::Unclear(_))));
        let unclear = format!(r#"{{"decision":"admit","tags":{{"site":"{long}"}}}}"#);
        assert!(matches!(read(&unclear), Err(NoAnswer::Unclear(_))));
        let cut = format!(r#"{{"decision":"refuse","reason":"{long}"}}"#);
        let Word::Refuse(reason) = read(&cut).unwrap() else { panic!() };
        assert_eq!(reason.chars().count(), MAX_REASON + 1);
    }

    #[test]
    fn service_that_does_not_answer_is_left_alone_for_a_while() {
        let (mut breaker, now) = (Breaker::default(), Instant::now());
        for _ in 0..FAILURES {
            assert!(breaker.pass(now).is_ok());
            breaker.note(false, now);
        }
        assert!(breaker.pass(now).is_err());
        assert!(breaker.pass(now + REST - Duration::from_millis(1)).is_err());
        // One tries.
        assert!(breaker.pass(now + REST).is_ok());
        assert!(breaker.pass(now + REST).is_err());
        breaker.note(false, now + REST);
        assert!(breaker.pass(now + REST + Duration::from_secs(1)).is_err());
        assert!(breaker.pass(now + 2 * REST).is_ok());
        breaker.note(true, now + 2 * REST);
        assert!(breaker.pass(now + 2 * REST).is_ok() && breaker.pass(now + 2 * REST).is_ok());
    }

    /// Otherwise a stranger whose EK the service does not understand has nobody asked about others.
    #[test]
    fn answer_that_is_of_no_use_about_one_device_does_not_count_as_silence() {
        for word in [Err(NoAnswer::Status(404)), Err(NoAnswer::Unclear("?".into()))] {
            assert!(answers(&word), "{word:?}");
        }
        for word in [Err(NoAnswer::Status(503)), Err(NoAnswer::Unreachable("gone".into()))] {
            assert!(!answers(&word), "{word:?}");
        }
    }

    #[test]
    fn secrets_are_those_of_standard_webhooks() {
        assert!(read_secret("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw").is_ok());
        for text in ["", "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "whsec_c2hvcnQ=", "whsec_???"] {
            assert!(read_secret(text).is_err(), "{text}");
        }
    }
}

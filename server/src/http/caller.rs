//! Who asks: what the certificate says that was shown in the TLS handshake, and what the CA has on
//! record of it now.

use std::sync::Arc;

use assay_broker_plugin::certificate::ClientCertificate;
use assay_broker_plugin::doorkeeper::{NotGood, Register};
use assay_wire::{ClientId, Identity};
use axum::extract::FromRequestParts;
use axum::http::StatusCode;
use axum::http::request::Parts;
use tokio::task::spawn_blocking;

use super::Face;
use super::problem::Problem;

/// The certificate that was shown, if one was. TLS has verified its path, its dates and its key.
#[derive(Clone)]
pub(super) struct Shown(pub(super) Option<Arc<ClientCertificate>>);

/// Somebody who may read the metrics: an operator or a backend, or, without TLS, whoever is on this
/// machine. Only the check makes one.
pub(super) struct Reader(());

impl FromRequestParts<Face> for Reader {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, face: &Face) -> Result<Self, Problem> {
        if face.is_open {
            return Ok(Self(()));
        }
        let certificate = shown(parts)?;
        match certificate.identity {
            Identity::Operator | Identity::Backend { .. } => {}
            Identity::Device { .. } | Identity::Worker => return Err(not_for(&certificate)),
        }
        is_good(face, certificate).await.map(|_| Self(()))
    }
}

/// An operator whose certificate is on record and good, and the name that it has there. Only the
/// check makes one.
pub(super) struct Operator {
    /// As the audit has it.
    pub(super) name: ClientId,
}

impl FromRequestParts<Face> for Operator {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, face: &Face) -> Result<Self, Problem> {
        if face.is_open {
            let detail = "operators are known by TLS: take `tls = false` out of assay.toml";
            return Err(Problem::of(StatusCode::FORBIDDEN, detail));
        }
        let certificate = shown(parts)?;
        if certificate.identity != Identity::Operator {
            return Err(not_for(&certificate));
        }
        let certificate = is_good(face, certificate).await?;
        let name = face.records.with(move |store| Ok(store.identity_named(&certificate.sha256)?));
        let name = name.await.map_err(|error| Problem::ours(&error))?;
        let name = name.and_then(|name| format!("cert:{name}").parse().ok());
        let nobody =
            || Problem::of(StatusCode::FORBIDDEN, "this certificate has no name on record");
        name.map(|name| Self { name }).ok_or_else(nobody)
    }
}

fn shown(parts: &Parts) -> Result<Arc<ClientCertificate>, Problem> {
    let Some(Shown(shown)) = parts.extensions.get() else {
        return Err(Problem::of(StatusCode::INTERNAL_SERVER_ERROR, "nobody knows who asks"));
    };
    shown.clone().ok_or_else(|| {
        Problem::of(
            StatusCode::UNAUTHORIZED,
            "show a certificate by TLS: `assay identity add NAME --role operator` makes one",
        )
    })
}

fn not_for(certificate: &ClientCertificate) -> Problem {
    Problem::of(StatusCode::FORBIDDEN, format!("not for {}", certificate.identity))
}

/// Asks the record, at each request: who was revoked a moment ago is refused.
async fn is_good(
    face: &Face,
    certificate: Arc<ClientCertificate>,
) -> Result<Arc<ClientCertificate>, Problem> {
    let register: Arc<dyn Register> = Arc::clone(&face.register);
    let asked = spawn_blocking(move || register.certificate(&certificate).map(|_| certificate));
    match asked.await {
        Ok(Ok(certificate)) => Ok(certificate),
        Ok(Err(NotGood::Refused(reason))) => Err(Problem::of(StatusCode::FORBIDDEN, reason)),
        Ok(Err(NotGood::Unknown(_))) | Err(_) => Err(Problem::of(
            StatusCode::SERVICE_UNAVAILABLE,
            "the CA cannot say now who you are; its log says why",
        )),
    }
}

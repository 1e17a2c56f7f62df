//! Why there is no answer, as a problem document (RFC 9457).

use axum::Json;
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::json;
use tracing::error;

/// Why there is no answer.
#[derive(Debug)]
pub(super) struct Problem {
    status: StatusCode,
    detail: String,
}

impl Problem {
    pub(super) fn of(status: StatusCode, detail: impl Into<String>) -> Self {
        Self { status, detail: detail.into() }
    }

    /// A fault of ours, whose text is for the log alone. Only who is let in can cause one.
    pub(super) fn ours(error: &anyhow::Error) -> Self {
        error!(error = %format!("{error:#}"), "a request by HTTP could not be answered");
        Self::of(StatusCode::INTERNAL_SERVER_ERROR, "the CA could not do it; its log says why")
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let Self { status, detail } = self;
        let title = status.canonical_reason().unwrap_or("Problem");
        let body = json!({ "title": title, "status": status.as_u16(), "detail": detail });
        let kind = HeaderValue::from_static("application/problem+json");
        (status, [(header::CONTENT_TYPE, kind), NO_STORE], Json(body)).into_response()
    }
}

/// No cache keeps what was answered.
pub(super) const NO_STORE: (HeaderName, HeaderValue) =
    (header::CACHE_CONTROL, HeaderValue::from_static("no-store"));

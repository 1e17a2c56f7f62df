//! What everybody may have of a CA: its certificates and its revocation lists.

use assay_wire::KeyId;
use axum::extract::{Path, State};
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::response::IntoResponse;

use super::Face;
use super::problem::Problem;
use crate::new_files::pem_of;
use crate::pipeline::Posted;

/// The certificates of the roots, of all issuing CAs and of the service CAs, in PEM.
pub(super) async fn certificates(State(face): State<Face>) -> impl IntoResponse {
    let ca = face.outfit.borrow().ca.clone();
    ([of_kind("application/pem-certificate-chain"), SOME_TIME], ca.certificates.clone())
}

/// The lists of all issuing CAs, in PEM; that of the one in use comes first.
pub(super) async fn lists(State(face): State<Face>) -> Result<impl IntoResponse, Problem> {
    let mut lists = face.bulletin.lists();
    let length: usize = lists.iter().map(|list| list.der.len()).sum();
    if lists.is_empty() {
        return Err(none_yet());
    }
    // Each caller gets a copy, unlike of one list.
    if length > MAX_LISTS {
        return Err(Problem::of(StatusCode::NOT_FOUND, "too long; get one: /crl/KEY"));
    }
    lists.sort_by_key(|list| !list.in_use);
    let pem: String = lists.iter().map(|list| pem_of("X509 CRL", &list.der)).collect();
    Ok(([of_kind("application/x-pem-file"), SOME_TIME], pem))
}

/// The list of the issuing CA with this key, in DER; of the one in use, if it is called `current`.
pub(super) async fn list(
    State(face): State<Face>,
    Path(key): Path<String>,
) -> Result<impl IntoResponse, Problem> {
    let lists = face.bulletin.lists();
    if lists.is_empty() {
        return Err(none_yet());
    }
    let key_id: Option<KeyId> = key.parse().ok();
    let is_it = |list: &Posted| match &*key {
        "current" => list.in_use,
        _ => Some(&list.key_id) == key_id.as_ref(),
    };
    let list = lists.into_iter().find(is_it).ok_or_else(|| {
        Problem::of(StatusCode::NOT_FOUND, "no issuing CA with this key signs a list")
    })?;
    Ok(([of_kind("application/pkix-crl"), SOME_TIME], list.der))
}

fn none_yet() -> Problem {
    Problem::of(StatusCode::SERVICE_UNAVAILABLE, "no list is signed yet; try again in a minute")
}

fn of_kind(kind: &'static str) -> (HeaderName, HeaderValue) {
    (header::CONTENT_TYPE, HeaderValue::from_static(kind))
}

/// A minute: by then, a list may be another.
const SOME_TIME: (HeaderName, HeaderValue) =
    (header::CACHE_CONTROL, HeaderValue::from_static("max-age=60"));
/// Bytes of all lists together, of which strangers can have a copy for each connection.
const MAX_LISTS: usize = 1024 * 1024;

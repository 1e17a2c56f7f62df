//! `/api/v1`: what operators do with `assay` on the CA's own machine, from another one.

mod acts;
mod pages;
mod reads;

use axum::Router;
use axum::extract::rejection::{JsonRejection, QueryRejection};
use axum::extract::{FromRequest, FromRequestParts, Query, Request};
use axum::http::request::Parts;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::{get, post};
use axum::{Json, response::Response};
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::Face;
use super::problem::{NO_STORE, Problem};

/// Every path of it. [`OPENAPI`] describes them; a test compares.
pub(super) fn router() -> Router<Face> {
    Router::new()
        .route("/openapi.json", get(openapi))
        .route("/devices", get(reads::devices))
        .route("/devices/{device}", get(reads::device))
        .route("/devices/{device}/disable", post(acts::disable))
        .route("/devices/{device}/enable", post(acts::enable))
        .route("/devices/{device}/remove", post(acts::remove))
        .route("/certificates", get(reads::certificates))
        .route("/certificates/{serial}", get(reads::certificate))
        .route("/pending", get(reads::pending))
        .route("/pending/approve", post(acts::approve))
        .route("/pending/refuse", post(acts::refuse))
        .route("/groups", get(reads::groups))
        .route("/trust", get(reads::trust))
        .route("/audit", get(reads::audit))
        .route("/identities", get(reads::identities))
        .route("/identities/{name}/revoke", post(acts::revoke))
}

async fn openapi() -> impl IntoResponse {
    let kind = HeaderValue::from_static("application/vnd.oai.openapi+json;version=3.1");
    ([(header::CONTENT_TYPE, kind)], OPENAPI)
}

/// A good answer.
pub(super) struct Answer(Value);

impl IntoResponse for Answer {
    fn into_response(self) -> Response {
        ([NO_STORE], Json(self.0)).into_response()
    }
}

type Answered = Result<Answer, Problem>;

/// What stands behind the question mark.
pub(super) struct Asked<T>(T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for Asked<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let query: Result<Query<T>, QueryRejection> = Query::from_request_parts(parts, state).await;
        query
            .map(|Query(asked)| Self(asked))
            .map_err(|error| Problem::of(error.status(), error.body_text()))
    }
}

/// The body of an act. It has to be called JSON: no page of another site can have a browser send
/// that with the operator's certificate.
pub(super) struct Act<T>(T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Act<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, state: &S) -> Result<Self, Problem> {
        let body: Result<Json<T>, JsonRejection> = Json::from_request(request, state).await;
        body.map(|Json(act)| Self(act))
            .map_err(|error| Problem::of(error.status(), error.body_text()))
    }
}

fn not_found(what: &str) -> Problem {
    Problem::of(StatusCode::NOT_FOUND, format!("there is no {what}"))
}

/// The description of all of it (OpenAPI 3.1).
const OPENAPI: &str = include_str!("openapi.json");

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn the_description_names_every_path_and_no_other() {
        let document: Value = serde_json::from_str(OPENAPI).unwrap();
        let paths = document["paths"].as_object().unwrap();
        let described: BTreeSet<_> = paths
            .iter()
            .flat_map(|(path, methods)| {
                methods
                    .as_object()
                    .unwrap()
                    .keys()
                    .map(move |method| (path.clone(), method.clone()))
            })
            .collect();
        let lines = include_str!("mod.rs").lines().filter_map(|line| {
            let (path, handler) = line.trim().strip_prefix(".route(\"")?.split_once("\", ")?;
            Some((path.to_owned(), handler.split_once('(')?.0.to_owned()))
        });
        assert_eq!(described, lines.collect());
    }
}

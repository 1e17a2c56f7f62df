//! What operators do. Each act is in the audit, under the name of the operator's certificate.

use std::sync::Arc;

use anyhow::{Context, Result};
use assay_store::{Actor, Store, StoreError};
use assay_wire::{DeviceId, EkId};
use axum::extract::{Path, State};
use axum::http::StatusCode;
use serde::Deserialize;
use serde_json::{Value, json};
use time::OffsetDateTime;

use super::super::Face;
use super::super::caller::Operator;
use super::super::problem::Problem;
use super::reads::{ek_of, manufacturer_of};
use super::{Act, Answer, Answered, not_found};
use crate::operations::documents;
use crate::operations::enrol::{self, Forgotten};
use crate::operations::identities::{self, Revoke, RevokeError};
use crate::operations::pending::{self, Naming, Selection};

/// Which of those that wait are meant; as `assay pending approve`.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Approve {
    eks: Vec<String>,
    all: bool,
    manufacturer: Option<String>,
    name: Option<String>,
    as_asked: bool,
    dry_run: bool,
}

pub(super) async fn approve(
    operator: Operator,
    State(face): State<Face>,
    Act(act): Act<Approve>,
) -> Answered {
    let Approve { eks, all, manufacturer, name, as_asked, dry_run } = act;
    let naming = match (name.as_deref(), as_asked) {
        (Some(_), true) => return Err(bad("name and as_asked exclude each other")),
        (Some(name), false) => naming(name)?,
        (None, true) => Naming::AsAsked,
        (None, false) => Naming::Derived,
    };
    let selection = selection(eks, all, manufacturer)?;
    face.act(operator, move |store| {
        let rows = selection.find(store)?;
        let now = OffsetDateTime::now_utc();
        let approved = match dry_run {
            true => pending::rehearse(store, &rows, &naming, now)?,
            false => pending::approve(store, &rows, &naming, now)?,
        };
        let left_out = rows.len() - approved.len();
        let shown = |(ek, device): (EkId, Option<DeviceId>)| {
            json!({ "ek_id": ek.to_string(), "device_id": device.map(|id| id.to_string()) })
        };
        let approved: Vec<Value> = approved.into_iter().map(shown).collect();
        Ok(json!({ "dry_run": dry_run, "approved": approved, "left_out": left_out }))
    })
    .await
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Refuse {
    eks: Vec<String>,
    all: bool,
    manufacturer: Option<String>,
    dry_run: bool,
}

pub(super) async fn refuse(
    operator: Operator,
    State(face): State<Face>,
    Act(act): Act<Refuse>,
) -> Answered {
    let Refuse { eks, all, manufacturer, dry_run } = act;
    let selection = selection(eks, all, manufacturer)?;
    face.act(operator, move |store| {
        let rows = selection.find(store)?;
        if !dry_run {
            pending::turn_away(store, &rows, OffsetDateTime::now_utc())?;
        }
        let refused: Vec<_> = rows.iter().map(|row| row.waiting.ek_id.to_string()).collect();
        Ok(json!({ "dry_run": dry_run, "refused": refused }))
    })
    .await
}

/// An act that says nothing besides.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Nothing {}

/// Disables an EK, whether the CA knows it or not.
pub(super) async fn disable(
    operator: Operator,
    State(face): State<Face>,
    Path(which): Path<String>,
    Act(Nothing {}): Act<Nothing>,
) -> Answered {
    let change =
        |store: &mut dyn Store, ek: &EkId, now| Ok(enrol::disable(store, ek, now).map(drop)?);
    of_ek(&face, operator, which, change).await
}

pub(super) async fn enable(
    operator: Operator,
    State(face): State<Face>,
    Path(which): Path<String>,
    Act(Nothing {}): Act<Nothing>,
) -> Answered {
    let change =
        |store: &mut dyn Store, ek: &EkId, now| Ok(enrol::enable(store, ek, now).map(drop)?);
    of_ek(&face, operator, which, change).await
}

pub(super) async fn remove(
    operator: Operator,
    State(face): State<Face>,
    Path(which): Path<String>,
    Act(Nothing {}): Act<Nothing>,
) -> Answered {
    let change = |store: &mut dyn Store, ek: &EkId, now| {
        let Forgotten { .. } = enrol::remove(store, ek, now)?;
        Ok(())
    };
    of_ek(&face, operator, which, change).await
}

/// Changes what is on record of an EK, and shows what is after that.
async fn of_ek(
    face: &Face,
    operator: Operator,
    which: String,
    change: impl FnOnce(&mut dyn Store, &EkId, OffsetDateTime) -> Result<()> + Send + 'static,
) -> Answered {
    let ca = Arc::clone(&face.outfit.borrow().ca);
    face.act_if(operator, move |store| {
        let Some(ek) = ek_of(store, &which)? else { return Ok(None) };
        change(store, &ek, OffsetDateTime::now_utc())?;
        let row = store.enrolment(&ek)?;
        let shown = row.as_ref().map(|row| documents::ek(row, &ca.flaws));
        Ok(Some(json!({ "ek_id": ek.to_string(), "ek": shown })))
    })
    .await?
    .ok_or_else(|| not_found("device of this id"))
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RevokeIdentity {
    old: bool,
}

/// Revokes certificates of an identity, but none that the CA itself connects with.
pub(super) async fn revoke(
    operator: Operator,
    State(face): State<Face>,
    Path(name): Path<String>,
    Act(RevokeIdentity { old }): Act<RevokeIdentity>,
) -> Answered {
    let directory = face.directory.clone();
    face.act_if(operator, move |store| {
        let (what, now) = (if old { Revoke::Old } else { Revoke::All }, OffsetDateTime::now_utc());
        match identities::revoke(&directory, store, &name, what, false, now) {
            Ok(revoked) => Ok(Some(json!({ "name": name, "revoked": revoked }))),
            Err(RevokeError::Unknown { .. }) => Ok(None),
            Err(error) => Err(error.into()),
        }
    })
    .await?
    .ok_or_else(|| not_found("identity of this name"))
}

fn selection(
    eks: Vec<String>,
    all: bool,
    manufacturer: Option<String>,
) -> Result<Selection, Problem> {
    let manufacturer = manufacturer.as_deref().map(manufacturer_of).transpose()?;
    Ok(Selection { eks, all, manufacturer })
}

fn naming(text: &str) -> Result<Naming, Problem> {
    let naming = match text.contains("{n}") {
        true => text.parse().map(Naming::Numbered).map_err(|error| error.to_string()),
        false => text.parse().map(Naming::Name).map_err(|error| error.to_string()),
    };
    naming.map_err(|error| bad(&format!("name: {error}")))
}

fn bad(detail: &str) -> Problem {
    Problem::of(StatusCode::BAD_REQUEST, detail)
}

impl Face {
    async fn act(
        &self,
        operator: Operator,
        act: impl FnOnce(&mut dyn Store) -> Result<Value> + Send + 'static,
    ) -> Answered {
        let done = self.act_if(operator, |store| act(store).map(Some)).await?;
        done.context("an act says what it did").map_err(|error| Problem::ours(&error))
    }

    async fn act_if(
        &self,
        Operator { name }: Operator,
        act: impl FnOnce(&mut dyn Store) -> Result<Option<Value>> + Send + 'static,
    ) -> Result<Option<Answer>, Problem> {
        let as_operator = move |store: &mut dyn Store| {
            // Whatever it changes is in the audit, by the same transaction.
            store.act_as(Actor { name, at: OffsetDateTime::now_utc() });
            act(store)
        };
        let done = self.records.with(as_operator).await;
        done.map(|done| done.map(Answer)).map_err(|error| {
            // What is no fault of the store is the operator's, and says what to do.
            match error.chain().any(|cause| cause.is::<StoreError>()) {
                true => Problem::ours(&error),
                false => Problem::of(StatusCode::CONFLICT, format!("{error:#}")),
            }
        })
    }
}

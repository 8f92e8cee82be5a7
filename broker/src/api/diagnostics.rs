//! Diagnostics on demand: the admin asks an agent about an object, the agent claims the request and answers it once.
//!
//! Any agent may be asked about any object, because only the admin asks and sees the answer. An expired request cannot
//! be claimed, even before the sweep has ended it. The answer to a request that was claimed in time is accepted until
//! the sweep ends the request.

use axum::Router;
use axum::routing::{get, post};
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use utoipa::{OpenApi, ToSchema};
use uuid::Uuid;

use super::openapi::responses::{Always, BadRequest, Conflict, Forbidden, JsonBody, NotFound};
use super::operation::{plain, with_body};
use super::reply::Reply;
use super::request::ApiRequest;
use super::{authorization, validation};
use crate::app::App;
use crate::auth::Principal;
use crate::db::{Conn, Sql};
use crate::error::{Error, ErrorResponse};
use crate::store::diagnostics::{self, DiagnosticAnswer, Findings, Request};

/// Default lifetime of a request, in minutes.
const OPEN_FOR: i64 = 60;
/// Longest lifetime of a request, in minutes.
const LONGEST: i64 = 1440;

#[derive(OpenApi)]
#[openapi(paths(create, pending, show, claim, submit))]
pub(super) struct Doc;

pub(super) fn routes() -> Router<App> {
    Router::new()
        .route(
            "/deployment-objects/{id}/diagnostics",
            post(with_body(create)),
        )
        .route("/agents/{id}/diagnostics/pending", get(plain(pending)))
        .route("/diagnostics/{id}", get(plain(show)))
        .route("/diagnostics/{id}/claim", post(plain(claim)))
        .route("/diagnostics/{id}/result", post(with_body(submit)))
}

/// Question of the admin to an agent.
#[derive(Deserialize, ToSchema)]
#[schema(as = CreateDiagnosticRequest)]
struct NewRequest {
    /// Id of the agent that must answer.
    agent_id: Uuid,
    /// Name of the person or system that asks.
    requested_by: Option<String>,
    /// Lifetime of the request: 1 to 1440 minutes, 60 if absent.
    retention_minutes: Option<i64>,
}

#[utoipa::path(
    post,
    path = "/deployment-objects/{id}/diagnostics",
    operation_id = "create_diagnostic_request",
    tag = "diagnostics",
    params(("id" = Uuid, Path, description = "The deployment object")),
    request_body = NewRequest,
    responses(
        (status = 201, description = "Asked", body = Request),
        Always, BadRequest, Forbidden, NotFound,
        (status = 415, description = "Not sent as JSON", body = ErrorResponse),
        (status = 422, description = "Another shape, or a value that cannot be stored", body = ErrorResponse),
    ),
    security(("admin_pak" = [])),
)]
fn create(call: &ApiRequest, db: &mut Conn) -> Result<Reply, Error> {
    let object = call.id()?;
    let new: NewRequest = call.json()?;
    authorization::admin(call.principal)?;
    let subjects = diagnostics::subjects(db, object, new.agent_id)?;
    if !subjects.object {
        return Err(Error::not_found(
            "deployment_object_not_found",
            "there is no such deployment object",
        ));
    }
    if !subjects.agent {
        return Err(authorization::no_agent());
    }
    let minutes = new.retention_minutes.unwrap_or(OPEN_FOR);
    let minutes = i32::try_from(minutes)
        .ok()
        .filter(|_| (1..=LONGEST).contains(&minutes))
        .ok_or_else(|| {
            Error::bad_request(
                "invalid_diagnostic_request",
                format!("`retention_minutes` must be 1 to {LONGEST}"),
            )
        })?;
    let requested_by = new.requested_by.as_deref();
    validation::storable(
        "`requested_by`",
        requested_by.unwrap_or_default(),
        validation::NAME,
    )?;
    let request = diagnostics::insert(db, object, new.agent_id, requested_by, minutes)?;
    Reply::created(&request)
}

#[utoipa::path(
    get, path = "/agents/{id}/diagnostics/pending", operation_id = "get_pending_diagnostics", tag = "diagnostics",
    params(("id" = Uuid, Path, description = "The agent")),
    responses(
        (status = 200, description = "What it may claim, oldest first", body = [Request]),
        Always, BadRequest, Forbidden,
    ),
    security(("agent_pak" = [])),
)]
fn pending(call: &ApiRequest, db: &mut Conn) -> Result<Reply, Error> {
    let agent = call.id()?;
    authorization::admin_or_agent(call.principal, agent)?;
    Reply::ok(&diagnostics::pending(db, agent)?)
}

/// A request with its answer.
#[derive(Serialize, ToSchema)]
#[schema(as = DiagnosticResponse)]
struct Shown {
    /// The request.
    request: Request,
    /// Answer of the agent; null until the agent has answered.
    result: Option<Findings>,
}

#[utoipa::path(
    get, path = "/diagnostics/{id}", operation_id = "get_diagnostic", tag = "diagnostics",
    params(("id" = Uuid, Path, description = "The request")),
    responses(
        (status = 200, description = "The request and, if there is one, its answer", body = Shown),
        Always, BadRequest, Forbidden, NotFound,
    ),
    security(("admin_pak" = []), ("agent_pak" = [])),
)]
fn show(call: &ApiRequest, db: &mut Conn) -> Result<Reply, Error> {
    let id = call.id()?;
    let request = asked(db, call.principal, id, true)?;
    let result = diagnostics::findings(db, id)?;
    Reply::ok(&Shown { request, result })
}

#[utoipa::path(
    post, path = "/diagnostics/{id}/claim", operation_id = "claim_diagnostic", tag = "diagnostics",
    params(("id" = Uuid, Path, description = "The request")),
    responses(
        (status = 200, description = "Claimed", body = Request),
        Always, BadRequest, Forbidden, NotFound, Conflict,
    ),
    security(("agent_pak" = [])),
)]
fn claim(call: &ApiRequest, db: &mut Conn) -> Result<Reply, Error> {
    let id = call.id()?;
    asked(db, call.principal, id, true)?;
    let claimed = diagnostics::claim(db, id)?.ok_or_else(|| {
        Error::conflict(
            "diagnostic_already_claimed",
            "the request is claimed, has ended, or has expired",
        )
    })?;
    Reply::ok(&claimed)
}

/// Answer of an agent.
#[derive(Deserialize, ToSchema)]
#[schema(as = SubmitDiagnosticResult)]
struct NewFindings {
    /// Statuses of the pods, as JSON text.
    pod_statuses: String,
    /// Events of the cluster, as JSON text.
    events: String,
    /// Last lines of the pods' logs, as JSON text.
    log_tails: Option<String>,
    /// Time at which the agent collected the data.
    collected_at: DateTime<Utc>,
}

#[utoipa::path(
    post, path = "/diagnostics/{id}/result", operation_id = "submit_diagnostic_result", tag = "diagnostics",
    params(("id" = Uuid, Path, description = "The request")),
    request_body = NewFindings,
    responses(
        (status = 201, description = "Taken; the request is completed", body = Findings),
        Always, JsonBody, Forbidden, NotFound, Conflict,
    ),
    security(("agent_pak" = [])),
)]
fn submit(call: &ApiRequest, db: &mut Conn) -> Result<Reply, Error> {
    let id = call.id()?;
    let new: NewFindings = call.json()?;
    asked(db, call.principal, id, false)?;
    for (what, text) in [
        ("`pod_statuses`", &new.pod_statuses),
        ("`events`", &new.events),
    ] {
        if text.is_empty() {
            return Err(Error::bad_request(
                "invalid_diagnostic_result",
                format!("{what} must not be empty"),
            ));
        }
        validation::no_nul(what, text)?;
    }
    validation::no_nul("`log_tails`", new.log_tails.as_deref().unwrap_or_default())?;
    validation::time("`collected_at`", new.collected_at)?;
    let answer = DiagnosticAnswer {
        pod_statuses: &new.pod_statuses,
        events: &new.events,
        log_tails: new.log_tails.as_deref(),
        collected_at: new.collected_at,
    };
    let findings = diagnostics::complete(db, id, &answer)?.ok_or_else(|| {
        Error::conflict(
            "diagnostic_not_claimed",
            "the request is not claimed, or not any more",
        )
    })?;
    Reply::created(&findings)
}

/// Returns a request if the caller is the agent that was asked, or the admin where `or_admin` is set.
fn asked(
    db: &mut impl Sql,
    principal: Principal,
    id: Uuid,
    or_admin: bool,
) -> Result<Request, Error> {
    let request = diagnostics::get(db, id)?.ok_or_else(|| {
        Error::not_found(
            "diagnostic_not_found",
            "there is no such diagnostic request",
        )
    })?;
    match principal {
        Principal::Agent(agent) if agent == request.agent_id => Ok(request),
        Principal::Admin if or_admin => Ok(request),
        _ => Err(Error::forbidden(
            "diagnostic_not_owned",
            "another agent was asked",
        )),
    }
}

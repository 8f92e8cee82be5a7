//! Work orders: the admin creates them for agents, and an agent claims and completes each; a failed order is retried.

use std::collections::{BTreeMap, HashSet};

use axum::Router;
use axum::routing::{get, post};
use serde::{Deserialize, Serialize};
use serde_json::json;
use utoipa::{OpenApi, ToSchema};
use uuid::Uuid;

use super::openapi::responses::{
    Always, BadRequest, Conflict, Forbidden, JsonBody, NotFound, Unstorable,
};
use super::operation::{plain, with_body};
use super::reply::Reply;
use super::request::ApiRequest;
use super::{audit, authorization, validation};
use crate::app::App;
use crate::auth::Principal;
use crate::db::{Conn, Tx};
use crate::domain::outbox::{SubscriberEvent, emit};
use crate::error::Error;
use crate::jobs::schedule::Job;
use crate::store::work_order_log::{self, WorkOrderLogEntry};
use crate::store::work_orders::{self, NewWorkOrder, WorkOrder};

/// Largest number of characters in a work type.
const WORK_TYPE: usize = 50;

#[derive(OpenApi)]
#[openapi(paths(list, create, show, remove, pending, claim, complete))]
pub(super) struct Doc;

pub(super) fn routes() -> Router<App> {
    Router::new()
        .route("/work-orders", get(plain(list)).post(with_body(create)))
        .route("/work-orders/{id}", get(plain(show)).delete(plain(remove)))
        .route("/work-orders/{id}/claim", post(with_body(claim)))
        .route("/work-orders/{id}/complete", post(with_body(complete)))
        .route(
            "/agents/{agent_id}/work-orders/pending",
            get(plain(pending)),
        )
}

#[derive(Deserialize)]
struct Filter {
    status: Option<String>,
    work_type: Option<String>,
}

#[utoipa::path(
    get, path = "/work-orders", operation_id = "list_work_orders", tag = "work-orders",
    params(
        ("status" = Option<String>, Query, description = "In this state only"),
        ("work_type" = Option<String>, Query, description = "Of this type only"),
    ),
    responses(
        (status = 200, description = "Orders that have not ended, newest first, at most 10,000", body = [WorkOrder]),
        Always, BadRequest, Forbidden, Unstorable,
    ),
    security(("admin_pak" = [])),
)]
fn list(call: &ApiRequest, db: &mut Conn) -> Result<Reply, Error> {
    let filter: Filter = call.query()?;
    authorization::admin(call.principal)?;
    let (status, work_type) = (filter.status.as_deref(), filter.work_type.as_deref());
    validation::no_nul("`status`", status.unwrap_or_default())?;
    validation::no_nul("`work_type`", work_type.unwrap_or_default())?;
    Reply::ok(&work_orders::list(db, status, work_type)?)
}

/// Targets of an order: agents that match any of these.
#[derive(Default, Deserialize, ToSchema)]
#[schema(as = WorkOrderTargeting)]
struct Targeting {
    agent_ids: Option<Vec<Uuid>>,
    labels: Option<Vec<String>>,
    annotations: Option<BTreeMap<String, String>>,
}

#[derive(Deserialize, ToSchema)]
#[schema(as = CreateWorkOrderRequest)]
struct NewOrder {
    work_type: String,
    yaml_content: String,
    max_retries: Option<i32>,
    backoff_seconds: Option<i32>,
    claim_timeout_seconds: Option<i32>,
    #[schema(nullable = false)]
    targeting: Option<Targeting>,
    /// Legacy list of agents; they are added to those of `targeting`.
    target_agent_ids: Option<Vec<Uuid>>,
}

#[utoipa::path(
    post, path = "/work-orders", operation_id = "create_work_order", tag = "work-orders",
    request_body = NewOrder,
    responses(
        (status = 201, description = "The order", body = WorkOrder),
        Always, JsonBody, Forbidden, Conflict,
    ),
    security(("admin_pak" = [])),
)]
fn create(call: &ApiRequest, db: &mut Conn) -> Result<Reply, Error> {
    let body: NewOrder = call.json()?;
    authorization::admin(call.principal)?;
    let targeting = body.targeting.unwrap_or_default();
    let agents = agents(
        targeting.agent_ids.unwrap_or_default(),
        body.target_agent_ids.unwrap_or_default(),
    )?;
    let labels = targeting.labels.unwrap_or_default();
    let annotations = targeting.annotations.unwrap_or_default();
    if agents.is_empty() && labels.is_empty() && annotations.is_empty() {
        return Err(Error::bad_request(
            "no_targeting_specified",
            "an order needs an agent, a label or an annotation that it is for",
        ));
    }
    // Labels and annotations that no agent can have are dropped silently, because clients rely on that.
    let labels: Vec<&str> = labels
        .iter()
        .map(String::as_str)
        .filter(|label| validation::label(label).is_ok() && storable_mark(label))
        .collect();
    let (keys, values): (Vec<&str>, Vec<&str>) = annotations
        .iter()
        .map(|(key, value)| (key.as_str(), value.as_str()))
        .filter(|(key, value)| validation::annotation(key, value).is_ok())
        .unzip();
    let new = NewWorkOrder {
        work_type: &body.work_type,
        yaml_content: &body.yaml_content,
        max_retries: body.max_retries.unwrap_or(3),
        backoff_seconds: body.backoff_seconds.unwrap_or(60),
        claim_timeout_seconds: body.claim_timeout_seconds.unwrap_or(3600),
        agents: &agents,
        labels: &labels,
        annotations: (&keys, &values),
    };
    valid(&new)?;
    let order = db.transaction(|tx| {
        let order = work_orders::insert(tx, &new)?;
        let audit = audit::audit(call.principal, "workorder.created", "work_order", order.id)
            .details(json!({ "work_type": order.work_type }));
        let event = SubscriberEvent::new(
            "workorder.created",
            json!({
                "work_order_id": order.id,
                "work_type": order.work_type,
                "status": order.status,
                "created_at": order.created_at,
            }),
        );
        emit(tx, &[audit], &[event])?;
        Ok::<_, Error>(order)
    })?;
    for agent in agents {
        call.app.live.push(agent, "work_order", &order);
        call.app.live.fleet_changed(agent);
    }
    Reply::created(&order)
}

/// Returns the union of both lists. An agent twice in one list is an error of the caller; an agent in both lists is
/// allowed, because clients may send the old and the new field.
fn agents(mut listed: Vec<Uuid>, legacy: Vec<Uuid>) -> Result<Vec<Uuid>, Error> {
    let distinct: HashSet<Uuid> = listed.iter().copied().collect();
    let also: HashSet<Uuid> = legacy.iter().copied().collect();
    if distinct.len() < listed.len() || also.len() < legacy.len() {
        return Err(
            Error::conflict("unique_violation", "an agent is named twice").detail(
                "constraint",
                "work_order_targets_work_order_id_agent_id_key",
            ),
        );
    }
    listed.extend(legacy.into_iter().filter(|agent| !distinct.contains(agent)));
    Ok(listed)
}

fn storable_mark(value: &str) -> bool {
    validation::storable("a label", value, validation::MARK).is_ok()
}

fn valid(new: &NewWorkOrder<'_>) -> Result<(), Error> {
    validation::not_blank("`work_type`", new.work_type, "invalid_work_order")?;
    validation::not_blank("`yaml_content`", new.yaml_content, "invalid_work_order")?;
    for (name, value, least) in [
        ("max_retries", new.max_retries, 0),
        ("backoff_seconds", new.backoff_seconds, 1),
        ("claim_timeout_seconds", new.claim_timeout_seconds, 1),
    ] {
        if value < least {
            return Err(Error::bad_request(
                "invalid_work_order",
                format!("`{name}` must be at least {least}"),
            ));
        }
    }
    validation::storable("`work_type`", new.work_type, WORK_TYPE)?;
    validation::no_nul("`yaml_content`", new.yaml_content)
}

fn no_order() -> Error {
    Error::not_found("work_order_not_found", "there is no such work order")
}

#[utoipa::path(
    get, path = "/work-orders/{id}", operation_id = "get_work_order", tag = "work-orders",
    params(("id" = Uuid, Path)),
    responses(
        (status = 200, description = "The order; of one that has ended, what the log knows of it", body = WorkOrder),
        Always, BadRequest, Forbidden, NotFound,
    ),
    security(("admin_pak" = [])),
)]
fn show(call: &ApiRequest, db: &mut Conn) -> Result<Reply, Error> {
    let id = call.id()?;
    authorization::admin(call.principal)?;
    Reply::ok(&work_orders::get(db, id)?.ok_or_else(no_order)?)
}

#[utoipa::path(
    delete, path = "/work-orders/{id}", operation_id = "delete_work_order", tag = "work-orders",
    params(("id" = Uuid, Path)),
    responses((status = 204, description = "It is gone"), Always, BadRequest, Forbidden, NotFound),
    security(("admin_pak" = [])),
)]
fn remove(call: &ApiRequest, db: &mut Conn) -> Result<Reply, Error> {
    let id = call.id()?;
    authorization::admin(call.principal)?;
    if work_orders::delete(db, id)? {
        return Ok(Reply::no_content());
    }
    Err(no_order())
}

#[derive(Deserialize)]
struct PendingFilter {
    work_type: Option<String>,
}

#[utoipa::path(
    get, path = "/agents/{agent_id}/work-orders/pending", operation_id = "list_pending_for_agent", tag = "work-orders",
    params(
        ("agent_id" = Uuid, Path),
        ("work_type" = Option<String>, Query, description = "Of this type only"),
    ),
    responses(
        (status = 200, description = "What the agent may claim, oldest first, at most 1,000", body = [WorkOrder]),
        Always, BadRequest, Forbidden, Unstorable,
    ),
    security(("admin_pak" = []), ("agent_pak" = [])),
)]
fn pending(call: &ApiRequest, db: &mut Conn) -> Result<Reply, Error> {
    let agent = call.uuid("agent_id")?;
    let filter: PendingFilter = call.query()?;
    authorization::admin_or_agent(call.principal, agent)?;
    let work_type = filter.work_type.as_deref();
    validation::no_nul("`work_type`", work_type.unwrap_or_default())?;
    Reply::ok(&work_orders::pending(db, agent, work_type)?)
}

#[derive(Deserialize, ToSchema)]
#[schema(as = ClaimWorkOrderRequest)]
struct Claim {
    agent_id: Uuid,
}

#[utoipa::path(
    post, path = "/work-orders/{id}/claim", operation_id = "claim_work_order", tag = "work-orders",
    params(("id" = Uuid, Path)),
    request_body = Claim,
    responses(
        (status = 200, description = "The order, which is this agent's now", body = WorkOrder),
        Always, JsonBody, Forbidden, NotFound,
    ),
    security(("admin_pak" = []), ("agent_pak" = [])),
)]
fn claim(call: &ApiRequest, db: &mut Conn) -> Result<Reply, Error> {
    let id = call.id()?;
    let Claim { agent_id: agent } = call.json()?;
    authorization::admin_or_agent(call.principal, agent)?;
    let order = db.transaction(|tx| {
        let order = work_orders::claim(tx, id, agent)?.ok_or_else(|| {
            Error::not_found(
                "work_order_not_claimable",
                "no such work order is pending for this agent",
            )
        })?;
        let mut audit = audit::audit(call.principal, "workorder.claimed", "work_order", id);
        if call.principal == Principal::Admin {
            audit = audit.details(json!({ "agent_id": agent }));
        }
        let event = SubscriberEvent::new(
            "workorder.claimed",
            json!({
                "work_order_id": id,
                "work_type": order.work_type,
                "agent_id": agent,
                "claimed_at": order.claimed_at,
            }),
        );
        emit(tx, &[audit], &[event])?;
        Ok::<_, Error>(order)
    })?;
    call.app.jobs.due_in(Job::WorkOrders, order.claim_timeout());
    call.app.live.fleet_changed(agent);
    Reply::ok(&order)
}

#[derive(Deserialize, ToSchema)]
#[schema(as = CompleteWorkOrderRequest)]
struct Outcome {
    success: bool,
    message: Option<String>,
    /// True when a retry may help after a failure.
    #[serde(default = "yes")]
    retryable: bool,
}

fn yes() -> bool {
    true
}

/// Body of the 202 answer.
#[derive(Serialize)]
struct Scheduled {
    status: &'static str,
}

/// Result of completing an order.
enum Ending {
    /// The order has ended and is in the log.
    Final(WorkOrderLogEntry),
    /// The order has failed and will be retried.
    Retry,
}

#[utoipa::path(
    post, path = "/work-orders/{id}/complete", operation_id = "complete_work_order", tag = "work-orders",
    params(("id" = Uuid, Path)),
    request_body = Outcome,
    responses(
        (status = 200, description = "The order has ended", body = WorkOrderLogEntry),
        (status = 202, description = "The order has failed and is tried again later"),
        Always, JsonBody, Forbidden, NotFound,
    ),
    security(("admin_pak" = []), ("agent_pak" = [])),
)]
fn complete(call: &ApiRequest, db: &mut Conn) -> Result<Reply, Error> {
    let id = call.id()?;
    let outcome: Outcome = call.json()?;
    if let Principal::Generator(_) = call.principal {
        return Err(not_claimed());
    }
    let (order, ending) = db.transaction(|tx| {
        let order = work_orders::get_locked(tx, id)?.ok_or_else(no_order)?;
        match call.principal {
            Principal::Admin => {}
            Principal::Agent(agent) if order.claimed_by == Some(agent) => {}
            _ => return Err(not_claimed()),
        }
        validation::no_nul("`message`", outcome.message.as_deref().unwrap_or_default())?;
        let ending = end(tx, call.principal, &order, &outcome)?;
        Ok((order, ending))
    })?;
    if let Some(agent) = order.claimed_by {
        call.app.live.fleet_changed(agent);
    }
    match ending {
        Ending::Final(entry) => Reply::ok(&entry),
        Ending::Retry => {
            call.app.jobs.due_in(Job::WorkOrders, order.pause());
            Reply::accepted(&Scheduled {
                status: "retry_scheduled",
            })
        }
    }
}

fn not_claimed() -> Error {
    Error::forbidden(
        "work_order_not_claimed_by_agent",
        "only the agent that has claimed the work order may complete it",
    )
}

/// Ends a locked order, or schedules its retry.
fn end(
    tx: &mut Tx<'_>,
    by: Principal,
    order: &WorkOrder,
    outcome: &Outcome,
) -> Result<Ending, Error> {
    let audit = |action| audit::audit(by, action, "work_order", order.id);
    let message = outcome.message.as_deref();
    let message = if outcome.success {
        message
    } else {
        Some(message.unwrap_or("Unknown error"))
    };
    if !outcome.success && outcome.retryable && order.may_retry() {
        work_orders::put_aside(tx, order, message.unwrap_or_default())?;
        emit(tx, &[audit("workorder.retry")], &[])?;
        return Ok(Ending::Retry);
    }
    let entry = work_order_log::finish(tx, order.id, outcome.success, message)?;
    let (name, audit) = if outcome.success {
        ("workorder.completed", audit("workorder.completed"))
    } else {
        let details = json!({ "retryable": outcome.retryable });
        (
            "workorder.failed",
            audit("workorder.failed").details(details),
        )
    };
    let event = SubscriberEvent::new(
        name,
        json!({
            "work_order_log_id": entry.id,
            "work_type": entry.work_type,
            "success": entry.success,
            "result_message": entry.result_message,
            "agent_id": entry.claimed_by,
            "completed_at": entry.completed_at,
        }),
    );
    emit(tx, &[audit], &[event])?;
    Ok(Ending::Final(entry))
}

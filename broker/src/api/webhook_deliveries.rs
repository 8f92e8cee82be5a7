//! Deliveries: the admin's lists, and the deliveries that agents fetch and report.

use axum::Router;
use axum::routing::{get, post};
use serde::{Deserialize, Serialize};
use serde_json::json;
use utoipa::{OpenApi, ToSchema};
use uuid::Uuid;

use super::authorization;
use super::openapi::responses::{Always, BadRequest, Forbidden, JsonBody, NotFound};
use super::operation::{plain, with_body};
use super::reply::Reply;
use super::request::ApiRequest;
use crate::app::App;
use crate::auth::Principal;
use crate::db::Conn;
use crate::domain::webhook_deliveries::settle;
use crate::error::Error;
use crate::jobs::schedule::Job;
use crate::metrics::Carrier;
use crate::store::deliveries::claims::{self, ClaimedDelivery};
use crate::store::deliveries::{self, Delivery, DeliveryPage, FeedItem, STATES};
use crate::store::{agents, webhooks};
use crate::webhook::endpoint::{Clear, Field};
use crate::webhook::retry_policy::{AttemptOutcome, Next};

/// Largest number of deliveries given to an agent at once.
const PENDING: i64 = 10;

#[derive(OpenApi)]
#[openapi(paths(of_subscription, feed, pending, report))]
pub(super) struct Doc;

pub(super) fn routes() -> Router<App> {
    Router::new()
        .route("/webhooks/{id}/deliveries", get(plain(of_subscription)))
        .route("/webhook-deliveries", get(plain(feed)))
        .route("/webhook-deliveries/{id}/result", post(with_body(report)))
        .route("/agents/{agent_id}/webhooks/pending", get(plain(pending)))
}

/// Filter and page of a list of deliveries.
#[derive(Deserialize)]
struct ListDeliveriesQuery {
    status: Option<String>,
    limit: Option<i64>,
    offset: Option<i64>,
}

impl ListDeliveriesQuery {
    fn page(&self, most: i64) -> Result<DeliveryPage<'_>, Error> {
        let status = self.status.as_deref();
        if let Some(status) = status
            && !STATES.contains(&status)
        {
            return Err(Error::bad_request(
                "invalid_status",
                format!("`status` must be one of {}", STATES.join(", ")),
            ));
        }
        Ok(DeliveryPage {
            status,
            limit: self.limit.unwrap_or(50).clamp(1, most),
            offset: self.offset.unwrap_or(0).max(0),
        })
    }
}

#[utoipa::path(
    get, path = "/webhooks/{id}/deliveries", operation_id = "list_deliveries", tag = "webhooks",
    params(
        ("id" = Uuid, Path, description = "The subscription"),
        ("status" = Option<String>, Query, description = "Only those in this state"),
        ("limit" = Option<i64>, Query, description = "At most so many: 50 unless said, 1000 at most"),
        ("offset" = Option<i64>, Query, description = "Without the first so many"),
    ),
    responses(
        (status = 200, description = "Its deliveries, newest first", body = [Delivery]),
        Always, BadRequest, Forbidden, NotFound,
    ),
    security(("admin_pak" = [])),
)]
fn of_subscription(call: &ApiRequest, db: &mut Conn) -> Result<Reply, Error> {
    let id = call.id()?;
    let query: ListDeliveriesQuery = call.query()?;
    authorization::admin(call.principal)?;
    if !webhooks::exists(db, id)? {
        return Err(authorization::no_webhook());
    }
    let page = query.page(1000)?;
    Reply::ok(&deliveries::of_subscription(db, id, page)?)
}

#[utoipa::path(
    get, path = "/webhook-deliveries", operation_id = "list_recent_deliveries", tag = "webhooks",
    params(
        ("status" = Option<String>, Query, description = "Only those that are pending, acquired, success, failed or dead"),
        ("limit" = Option<i64>, Query, description = "At most so many: 50 unless said, 200 at most"),
        ("offset" = Option<i64>, Query, description = "Without the first so many"),
    ),
    responses(
        (status = 200, description = "The deliveries of all subscriptions, newest first", body = [FeedItem]),
        Always, BadRequest, Forbidden,
    ),
    security(("admin_pak" = [])),
)]
fn feed(call: &ApiRequest, db: &mut Conn) -> Result<Reply, Error> {
    let query: ListDeliveriesQuery = call.query()?;
    authorization::admin(call.principal)?;
    Reply::ok(&deliveries::feed(db, query.page(200)?)?)
}

/// A delivery for an agent to make, with all data for it.
#[derive(Serialize, ToSchema)]
struct PendingWebhookDelivery {
    id: Uuid,
    subscription_id: Uuid,
    event_type: String,
    payload: String,
    url: String,
    auth_header: Option<String>,
    timeout_seconds: i32,
    max_retries: i32,
    attempts: i32,
}

impl PendingWebhookDelivery {
    fn new(taken: ClaimedDelivery, clear: Clear) -> Self {
        Self {
            id: taken.held.id,
            subscription_id: taken.held.subscription_id,
            event_type: taken.held.event_type,
            payload: taken.payload,
            url: clear.url,
            auth_header: clear.auth_header,
            timeout_seconds: taken.timeout_seconds,
            max_retries: taken.held.max_retries,
            attempts: taken.held.attempts,
        }
    }
}

/// Claims deliveries for an agent, which then holds them for a limited time. The admin and a HEAD only see them,
/// because a look must not keep them from the agent.
#[utoipa::path(
    get, path = "/agents/{agent_id}/webhooks/pending", operation_id = "get_pending_agent_webhooks", tag = "webhooks",
    params(("agent_id" = Uuid, Path, description = "The agent")),
    responses(
        (status = 200, description = "Deliveries for this agent to make", body = [PendingWebhookDelivery]),
        Always, BadRequest, Forbidden, NotFound,
    ),
    security(("admin_pak" = []), ("agent_pak" = [])),
)]
fn pending(call: &ApiRequest, db: &mut Conn) -> Result<Reply, Error> {
    let agent = call.uuid("agent_id")?;
    authorization::admin_or_agent(call.principal, agent)?;
    if agents::get(db, agent)?.is_none() {
        return Err(authorization::no_agent());
    }
    let key = call.app.webhooks.opening_key().map_err(|error| {
        tracing::error!(%error, "no webhook key");
        Error::internal()
    })?;
    // Without a key no endpoint can be decrypted, so nothing is claimed.
    let Some(key) = key else {
        return Reply::ok(&Vec::<PendingWebhookDelivery>::new());
    };
    let looks_only = call.principal == Principal::Admin || call.only_looks();
    let taken = if looks_only {
        claims::seen_by_agent(db, agent, PENDING)?
    } else {
        claims::for_agent(db, agent, PENDING)?
    };
    let mut given = Vec::with_capacity(taken.len());
    for taken in taken {
        match Clear::open(&key, &taken.sealed) {
            Ok(clear) => given.push(PendingWebhookDelivery::new(taken, clear)),
            Err(_) if looks_only => {}
            Err(field) => bury(call, db, &taken, field)?,
        }
    }
    Reply::ok(&given)
}

/// Marks a delivery dead because its endpoint cannot be decrypted.
fn bury(
    call: &ApiRequest,
    db: &mut Conn,
    taken: &ClaimedDelivery,
    field: Field,
) -> Result<(), Error> {
    call.app.metrics.webhooks.count(field, Carrier::Agent);
    call.app.webhooks.say_unreadable(taken.held.subscription_id);
    settle(db, &taken.held, &AttemptOutcome::unreadable(field), None)?;
    Ok(())
}

/// Result of a delivery that an agent made.
#[derive(Deserialize, ToSchema)]
struct DeliveryResultRequest {
    success: bool,
    status_code: Option<i32>,
    error: Option<String>,
    #[allow(dead_code, reason = "sent by agents, not used")]
    duration_ms: Option<i64>,
}

fn not_acquired() -> Error {
    Error::forbidden(
        "delivery_not_acquired_by_agent",
        "this agent does not hold the delivery",
    )
}

#[utoipa::path(
    post, path = "/webhook-deliveries/{id}/result", operation_id = "report_delivery_result", tag = "webhooks",
    params(("id" = Uuid, Path, description = "The delivery")),
    request_body = DeliveryResultRequest,
    responses(
        (status = 200, description = "Written down"),
        Always, JsonBody, Forbidden, NotFound,
    ),
    security(("agent_pak" = [])),
)]
fn report(call: &ApiRequest, db: &mut Conn) -> Result<Reply, Error> {
    let id = call.id()?;
    let said: DeliveryResultRequest = call.json()?;
    let Principal::Agent(agent) = call.principal else {
        return Err(Error::forbidden(
            "agent_pak_required",
            "only agents report how a delivery went",
        ));
    };
    let held = deliveries::held_by(db, id, agent)?
        .ok_or_else(|| Error::not_found("delivery_not_found", "there is no such delivery"))?
        .ok_or_else(not_acquired)?;
    let outcome = if said.success {
        AttemptOutcome::Delivered
    } else {
        AttemptOutcome::of_report(said.status_code, said.error.as_deref())
    };
    let settled = settle(db, &held, &outcome, Some(agent))?.ok_or_else(not_acquired)?;
    let next = outcome.next(held.attempts, held.max_retries);
    if let Next::Failed(pause) = next {
        call.app.jobs.due_in(Job::Webhooks, pause);
    }
    Reply::ok(&match next {
        Next::Success => json!({ "status": next.status(), "delivery_id": id }),
        Next::Failed(_) | Next::Dead => json!({
            "status": next.status(),
            "delivery_id": id,
            "attempts": settled.attempts,
            "next_retry_at": settled.next_retry_at,
        }),
    })
}

//! Webhook subscriptions: event types, endpoint and filters.

mod request;
mod test;

use axum::Router;
use axum::routing::{get, post};
use serde_json::json;
use utoipa::OpenApi;

use super::openapi::responses::{Always, BadRequest, Forbidden, JsonBody, NotFound};
use super::operation::{plain, with_body};
use super::reply::Reply;
use super::request::ApiRequest;
use super::{audit, authorization};
use crate::app::App;
use crate::db::Conn;
use crate::domain::outbox::emit;
use crate::error::Error;
use crate::jobs::schedule::Job;
use crate::store::webhooks::{self, NewSubscription, Subscription, SubscriptionChange};
use crate::webhook::crypto::Key;
use crate::webhook::endpoint::{Sealed, lane};
use request::{CreateWebhookRequest, UpdateWebhookRequest};

#[derive(OpenApi)]
#[openapi(paths(list, create, event_types, show, update, remove, test::test))]
pub(super) struct Doc;

pub(super) fn routes() -> Router<App> {
    Router::new()
        .route("/webhooks", get(plain(list)).post(with_body(create)))
        .route("/webhooks/event-types", get(plain(event_types)))
        .route(
            "/webhooks/{id}",
            get(plain(show))
                .put(with_body(update))
                .delete(plain(remove)),
        )
        .route("/webhooks/{id}/test", post(plain(test::test)))
}

/// Event types that can be subscribed to, in the order of the API.
const EVENT_TYPES: [&str; 12] = [
    "agent.registered",
    "agent.deregistered",
    "stack.created",
    "stack.deleted",
    "deployment.created",
    "deployment.applied",
    "deployment.failed",
    "deployment.deleted",
    "workorder.created",
    "workorder.claimed",
    "workorder.completed",
    "workorder.failed",
];

/// Returns the key that encrypts endpoints, or 500; the reason is logged for the operator only.
fn sealing_key(call: &ApiRequest) -> Result<Key, Error> {
    call.app.webhooks.sealing_key().map_err(|error| {
        tracing::error!(%error, "no webhook key");
        Error::internal()
    })
}

fn seal(key: &Key, text: &str) -> Result<Vec<u8>, Error> {
    key.seal(text).map_err(|error| {
        tracing::error!(%error, "a webhook's secret could not be sealed");
        Error::internal()
    })
}

#[utoipa::path(
    get, path = "/webhooks", operation_id = "list_webhooks", tag = "webhooks",
    responses(
        (status = 200, description = "Every subscription, newest first", body = [Subscription]),
        Always, Forbidden,
    ),
    security(("admin_pak" = [])),
)]
fn list(call: &ApiRequest, db: &mut Conn) -> Result<Reply, Error> {
    authorization::admin(call.principal)?;
    Reply::ok(&webhooks::list(db)?)
}

#[utoipa::path(
    get, path = "/webhooks/event-types", operation_id = "list_event_types", tag = "webhooks",
    responses(
        (status = 200, description = "What there is to subscribe to", body = [String]),
        Always, Forbidden,
    ),
    security(("admin_pak" = [])),
)]
fn event_types(call: &ApiRequest, _: &mut Conn) -> Result<Reply, Error> {
    authorization::admin(call.principal)?;
    Reply::ok(&EVENT_TYPES)
}

#[utoipa::path(
    post, path = "/webhooks", operation_id = "create_webhook", tag = "webhooks",
    request_body = CreateWebhookRequest,
    responses(
        (status = 201, description = "The subscription", body = Subscription),
        Always, JsonBody, Forbidden,
    ),
    security(("admin_pak" = [])),
)]
fn create(call: &ApiRequest, db: &mut Conn) -> Result<Reply, Error> {
    let body = call.value()?;
    authorization::admin(call.principal)?;
    let new = CreateWebhookRequest::read(body)?;
    let url = new.valid()?;
    let key = sealing_key(call)?;
    let auth_header = new.auth_header.as_deref().filter(|text| !text.is_empty());
    let sealed = Sealed {
        url: seal(&key, &new.url)?,
        auth_header: auth_header.map(|text| seal(&key, text)).transpose()?,
    };
    let row = NewSubscription {
        name: &new.name,
        sealed: &sealed,
        lane: lane(&key, &url),
        event_types: &new.event_types,
        filters: new.filters,
        target_labels: new.target_labels.as_deref(),
        max_retries: new.max_retries.unwrap_or(5),
        timeout_seconds: new.timeout_seconds.unwrap_or(30),
        created_by: "admin",
    };
    let made = db.transaction(|tx| {
        webhooks::lock(tx)?;
        let made = webhooks::insert(tx, &row)?;
        webhooks::note_interest(tx)?;
        let kind = "webhook_subscription";
        let audit = audit::audit(call.principal, "webhook.created", kind, made.id)
            .details(json!({ "name": made.name, "event_types": made.event_types }));
        emit(tx, &[audit], &[])?;
        Ok::<_, Error>(made)
    })?;
    Reply::created(&made)
}

#[utoipa::path(
    get, path = "/webhooks/{id}", operation_id = "get_webhook", tag = "webhooks",
    params(("id" = uuid::Uuid, Path, description = "The subscription")),
    responses(
        (status = 200, description = "The subscription", body = Subscription),
        Always, BadRequest, Forbidden, NotFound,
    ),
    security(("admin_pak" = [])),
)]
fn show(call: &ApiRequest, db: &mut Conn) -> Result<Reply, Error> {
    let id = call.id()?;
    authorization::admin(call.principal)?;
    Reply::ok(&webhooks::get(db, id)?.ok_or_else(authorization::no_webhook)?)
}

#[utoipa::path(
    put, path = "/webhooks/{id}", operation_id = "update_webhook", tag = "webhooks",
    params(("id" = uuid::Uuid, Path, description = "The subscription")),
    request_body = UpdateWebhookRequest,
    responses(
        (status = 200, description = "The subscription", body = Subscription),
        Always, JsonBody, Forbidden, NotFound,
    ),
    security(("admin_pak" = [])),
)]
fn update(call: &ApiRequest, db: &mut Conn) -> Result<Reply, Error> {
    let id = call.id()?;
    let body = call.value()?;
    authorization::admin(call.principal)?;
    let current = webhooks::get(db, id)?.ok_or_else(authorization::no_webhook)?;
    let new = UpdateWebhookRequest::read(body)?;
    let url = new.valid()?;
    if new.is_empty() {
        return Reply::ok(&current);
    }
    let auth_header = new
        .auth_header
        .as_ref()
        .map(|text| text.as_deref().filter(|text| !text.is_empty()));
    let mut sealed_url = None;
    let mut sealed_header = None;
    if url.is_some() || auth_header.flatten().is_some() {
        let key = sealing_key(call)?;
        if let (Some(text), Some(url)) = (&new.url, &url) {
            sealed_url = Some((seal(&key, text)?, lane(&key, url)));
        }
        if let Some(text) = auth_header.flatten() {
            sealed_header = Some(seal(&key, text)?);
        }
    }
    let change = SubscriptionChange {
        name: new.name.as_deref(),
        url: sealed_url
            .as_ref()
            .map(|(url, lane)| (url.as_slice(), *lane)),
        auth_header: auth_header.map(|_| sealed_header.as_deref()),
        event_types: new.event_types.as_deref(),
        filters: new.filters,
        target_labels: new.target_labels.as_ref().map(Option::as_deref),
        enabled: new.enabled,
        max_retries: new.max_retries,
        timeout_seconds: new.timeout_seconds,
    };
    let changed = db.transaction(|tx| {
        webhooks::lock(tx)?;
        let changed = webhooks::update(tx, id, &change)?.ok_or_else(authorization::no_webhook)?;
        webhooks::note_interest(tx)?;
        let kind = "webhook_subscription";
        let audit = audit::audit(call.principal, "webhook.updated", kind, id)
            .details(json!({ "name": changed.name, "enabled": changed.enabled }));
        emit(tx, &[audit], &[])?;
        Ok::<_, Error>(changed)
    })?;
    if new.enabled == Some(true) {
        // Deliveries that waited while the subscription was disabled can go out now.
        call.app.jobs.wake(Job::Webhooks);
    }
    Reply::ok(&changed)
}

#[utoipa::path(
    delete, path = "/webhooks/{id}", operation_id = "delete_webhook", tag = "webhooks",
    params(("id" = uuid::Uuid, Path, description = "The subscription")),
    responses(
        (status = 204, description = "Gone, with its deliveries"),
        Always, BadRequest, Forbidden, NotFound,
    ),
    security(("admin_pak" = [])),
)]
fn remove(call: &ApiRequest, db: &mut Conn) -> Result<Reply, Error> {
    let id = call.id()?;
    authorization::admin(call.principal)?;
    db.transaction(|tx| {
        webhooks::lock(tx)?;
        if !webhooks::delete(tx, id)? {
            return Err(authorization::no_webhook());
        }
        webhooks::note_interest(tx)?;
        let kind = "webhook_subscription";
        let audit = audit::audit(call.principal, "webhook.deleted", kind, id);
        emit(tx, &[audit], &[])?;
        Ok(())
    })?;
    Ok(Reply::no_content())
}

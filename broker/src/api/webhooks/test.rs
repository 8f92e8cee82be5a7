//! Tests a subscription: sends one request to its endpoint now, and answers with the result.

use std::time::Duration;

use bytes::Bytes;
use chrono::Utc;
use serde_json::json;
use tokio::time::Instant;
use uuid::Uuid;

use crate::api::authorization;
use crate::api::openapi::responses::{Always, BadRequest, Forbidden, NotFound};
use crate::api::reply::Reply;
use crate::api::request::ApiRequest;
use crate::app::App;
use crate::db::Conn;
use crate::error::Error;
use crate::metrics::Carrier;
use crate::store::webhooks;
use crate::webhook::client::{SendError, WebhookResponse};
use crate::webhook::endpoint::Endpoint;

/// Largest number of characters of the endpoint's answer that are shown.
const SHOWN: usize = 500;

/// Sends a test request after the database connection is released, because a slow endpoint would otherwise delay other
/// requests.
#[utoipa::path(
    post, path = "/webhooks/{id}/test", operation_id = "test_webhook", tag = "webhooks",
    params(("id" = Uuid, Path, description = "The subscription")),
    responses(
        (status = 200, description = "The endpoint took it"),
        Always, BadRequest, Forbidden, NotFound,
    ),
    security(("admin_pak" = [])),
)]
pub(super) fn test(call: &ApiRequest, db: &mut Conn) -> Result<Reply, Error> {
    let id = call.id()?;
    authorization::admin(call.principal)?;
    let (sealed, timeout) = webhooks::endpoint(db, id)?.ok_or_else(authorization::no_webhook)?;
    let key = call.app.webhooks.opening_key().map_err(|error| {
        tracing::error!(%error, "no webhook key");
        Error::internal()
    })?;
    let endpoint = match key.map(|key| Endpoint::open(&key, &sealed)) {
        Some(Ok(endpoint)) => endpoint,
        unreadable => {
            if let Some(Err(field)) = unreadable {
                call.app.metrics.webhooks.count(field, Carrier::Broker);
            }
            let why = "its URL or Authorization value cannot be decrypted with this broker's key";
            return Err(failed(why.to_owned()));
        }
    };
    let timeout = Duration::from_secs(u64::try_from(timeout).unwrap_or(1))
        .min(call.app.config.http.request_timeout);
    let app = call.app.clone();
    Ok(Reply::later(async move {
        let answer = send(&app, id, &endpoint, timeout).await;
        reply(answer)
    }))
}

async fn send(
    app: &App,
    id: Uuid,
    endpoint: &Endpoint,
    timeout: Duration,
) -> Result<WebhookResponse, SendError> {
    let began = Instant::now();
    let waiting = tokio::time::timeout(timeout, app.webhooks.tests().acquire());
    // The semaphore is never closed.
    let _place = waiting
        .await
        .map_err(|_| SendError::Timeout(timeout.as_secs()))?;
    let payload = json!({
        "id": Uuid::new_v4(),
        "event_type": "webhook.test",
        "timestamp": Utc::now(),
        "data": {
            "message": "A test of this webhook subscription.",
            "subscription_id": id,
        },
    });
    let left = timeout.saturating_sub(began.elapsed());
    let client = app.webhooks.client();
    client
        .post(endpoint, Bytes::from(payload.to_string()), left)
        .await
        // The message names the whole timeout, not the part that the wait for a permit left over.
        .map_err(|error| match error {
            SendError::Timeout(_) => SendError::Timeout(timeout.as_secs()),
            other => other,
        })
}

fn reply(answer: Result<WebhookResponse, SendError>) -> Result<Reply, Error> {
    let answer = answer.map_err(|error| failed(error.to_string()))?;
    let status = answer.status.as_u16();
    if answer.status.is_success() {
        return Reply::ok(&json!({
            "success": true,
            "status_code": status,
            "message": format!("the endpoint answered {status}"),
        }));
    }
    Err(failed(format!("the endpoint answered {status}"))
        .detail("status_code", status)
        .detail("body", answer.beginning(SHOWN)))
}

fn failed(why: String) -> Error {
    Error::bad_request("webhook_test_failed", why)
}

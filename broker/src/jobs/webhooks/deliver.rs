//! Sends one delivery and records its outcome.

use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use crate::app::App;
use crate::db::DbError;
use crate::domain::webhook_deliveries::settle;
use crate::jobs::schedule::Job;
use crate::store::deliveries::DeliveryResult;
use crate::store::deliveries::claims::ClaimedDelivery;
use crate::webhook::endpoint::Endpoint;
use crate::webhook::in_flight::InFlightPermit;
use crate::webhook::retry_policy::{AttemptOutcome, Next};

/// Time between two attempts to record an outcome.
const AGAIN: Duration = Duration::from_secs(2);

/// Shortest time that a claim lasts beyond its attempt; after that another instance may take the delivery.
const CLAIM_LEFT: Duration = Duration::from_secs(30);

/// Sends a delivery, records the outcome, frees its slot and wakes the webhook job if more deliveries wait.
pub(super) async fn deliver(
    app: App,
    taken: ClaimedDelivery,
    endpoint: Endpoint,
    in_flight_permit: InFlightPermit,
) {
    let timeout = Duration::from_secs(u64::try_from(taken.timeout_seconds).unwrap_or(1));
    let payload = Bytes::from(taken.payload.clone());
    let outcome = match app
        .webhooks
        .client()
        .post(&endpoint, payload, timeout)
        .await
    {
        Ok(answer) => AttemptOutcome::of_answer(&answer),
        Err(error) => AttemptOutcome::of_error(&error),
    };
    record(&app, &taken, &outcome).await;
    drop(in_flight_permit);
    let next = outcome.next(taken.held.attempts, taken.held.max_retries);
    if let Next::Failed(pause) = next {
        app.jobs.due_in(Job::Webhooks, pause);
    }
    if app.webhooks.rounds().is_going_on() {
        app.jobs.wake(Job::Webhooks);
    }
}

/// Records an outcome; while the database is unavailable, retries until the claim may have expired.
async fn record(app: &App, taken: &ClaimedDelivery, outcome: &AttemptOutcome) {
    let until = Instant::now() + CLAIM_LEFT;
    loop {
        let (held, ended) = (taken.held.clone(), outcome.clone());
        let written = app
            .db
            .run(move |conn| settle(conn, &held, &ended, None))
            .await;
        match written {
            Ok(settled) => return tell(taken, outcome, settled),
            Err(DbError::Unavailable { .. }) if Instant::now() + AGAIN < until => {
                tokio::time::sleep(AGAIN).await;
            }
            Err(error) => {
                tracing::warn!(delivery = %taken.held.id, %error, "how a webhook went could not be written down: it will be sent again");
                return;
            }
        }
    }
}

fn tell(taken: &ClaimedDelivery, outcome: &AttemptOutcome, settled: Option<DeliveryResult>) {
    let delivery = taken.held.id.to_string();
    let Some(settled) = settled else {
        tracing::warn!(
            delivery,
            "a webhook took longer than its claim: it may be sent again"
        );
        return;
    };
    if let AttemptOutcome::Failed(failure) = outcome {
        let attempts = settled.attempts;
        tracing::debug!(
            delivery,
            attempts,
            status = failure.status_code,
            "a webhook was not taken"
        );
    }
}

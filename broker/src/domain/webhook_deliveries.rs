//! The end of an attempt to deliver an event, by the broker or by an agent.

use serde_json::{Value, json};
use uuid::Uuid;

use super::outbox::{Actor, AuditRecord, emit};
use crate::db::{Conn, DbError};
use crate::store::deliveries::{self, DeliveryResult, LeasedDelivery};
use crate::webhook::retry_policy::{AttemptOutcome, Next};

/// Records the result of an attempt, and adds an audit entry if it was the last. Returns `None` and records nothing
/// when the claim has ended before, because the delivery may have another holder.
pub fn settle(
    db: &mut Conn,
    held: &LeasedDelivery,
    outcome: &AttemptOutcome,
    by: Option<Uuid>,
) -> Result<Option<DeliveryResult>, DbError> {
    let next = outcome.next(held.attempts, held.max_retries);
    let failure = match outcome {
        AttemptOutcome::Delivered => None,
        AttemptOutcome::Failed(failure) => Some(failure),
    };
    let error = failure.map(|failure| failure.error.as_str());
    if next != Next::Dead {
        return deliveries::settle(db, held, next, error);
    }
    db.transaction(|tx| {
        let settled = deliveries::settle(tx, held, next, error)?;
        if let Some(settled) = &settled {
            let mut details = json!({
                "delivery_id": held.id,
                "event_type": held.event_type,
                "attempts": settled.attempts,
                "error": error,
                "retryable": failure.is_some_and(|failure| failure.retryable),
            });
            if let Some(code) = failure.and_then(|failure| failure.status_code) {
                details["status_code"] = Value::from(code);
            }
            if let Some(agent) = by {
                details["delivered_by_agent"] = json!(agent);
            }
            let audit = AuditRecord::new(
                Actor::System,
                "webhook.delivery_failed",
                "webhook_subscription",
                Some(held.subscription_id),
            )
            .details(details);
            emit(tx, &[audit], &[])?;
        }
        Ok(settled)
    })
}

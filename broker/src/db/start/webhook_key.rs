//! Checks that the broker's key can open the webhook endpoints stored in the schema.
//!
//! A broker that has no key, but finds sealed subscriptions, would make a new key and could read no old endpoint. Such
//! a start is refused, because only a person knows where the old key is. A key that does not fit is only logged,
//! because the rest of the API does not need it and each endpoint can be set again.

use postgres::Client;

use super::error::StartError;
use super::plan::Plan;
use crate::webhook::endpoint::{Endpoint, Sealed};
use crate::webhook::key::KeyError;

/// The largest number of subscriptions to check. A wrong key usually fits none of them.
const LOOKED_AT: i64 = 1000;

pub(super) fn check(client: &mut Client, plan: &Plan) -> Result<(), StartError> {
    let key = plan.webhook_key.find().map_err(|error| match error {
        KeyError::Malformed(_) => StartError::Configuration(format!("webhook key: {error}")),
        KeyError::File { .. } | KeyError::Randomness(_) => {
            StartError::Failed(format!("webhook key: {error}"))
        }
    })?;
    let rows = client.query(
        "SELECT url, auth_header, name FROM webhook_subscriptions ORDER BY created_at, id LIMIT $1",
        &[&LOOKED_AT],
    )?;
    let (Some(key), Some(_)) = (&key, rows.first()) else {
        if rows.is_empty() {
            return Ok(());
        }
        return Err(StartError::Configuration(format!(
            "there are webhook subscriptions, but their key is gone: put {} back, or set broker.webhook_encryption_key to what it held",
            plan.webhook_key.path().display()
        )));
    };
    let mut unreadable = Vec::new();
    for row in &rows {
        let sealed = Sealed {
            url: row.try_get(0)?,
            auth_header: row.try_get(1)?,
        };
        if Endpoint::open(key, &sealed).is_err() {
            unreadable.push(row.try_get::<_, String>(2)?);
        }
    }
    if let Some(first) = unreadable.first() {
        tracing::error!(
            subscriptions = unreadable.len(),
            first,
            "webhook subscriptions were sealed with another key: their deliveries will be dead until their URL and Authorization value are set again, or the old key is back"
        );
    }
    Ok(())
}

/// Makes the webhook key where there is a state folder, because later starts under a supervisor cannot write it. Without a
/// key a broker serves all but webhooks.
pub(super) fn make(plan: &Plan) {
    let path = plan.webhook_key.path();
    if path.parent().is_none_or(|folder| !folder.is_dir()) {
        return;
    }
    if let Err(error) = plan.webhook_key.find_or_make() {
        tracing::warn!(%error, "cannot make the webhook key");
    }
}

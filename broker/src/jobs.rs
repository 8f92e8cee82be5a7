//! Work nobody asks for: forgetting what is older than its retention.
//!
//! Once a day, at a moment of each broker's own; in between an idle broker is silent.

use std::time::Duration;

use crate::db::{Db, DbError, Sql};

/// Rows deleted by one statement: a year's backlog must not become one long transaction.
const CHUNK: i64 = 5_000;

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// How long rows are kept, in days; 0 keeps them for ever.
#[derive(Clone, Copy, Debug)]
pub struct Retention {
    /// `broker.audit_log_retention_days`.
    pub audit_log_days: i32,
    /// `broker.webhook_cleanup_retention_days`: events nobody took.
    pub events_days: i32,
}

/// Runs for as long as the broker does. First within an hour of the start, so that a thousand brokers that start together
/// do not clean up together.
pub async fn retention(db: Db, retention: Retention) {
    tokio::time::sleep(Duration::from_secs(fastrand::u64(60..3600))).await;
    loop {
        match sweep(&db, retention).await {
            Ok(0) => {}
            Ok(rows) => tracing::info!(rows, "rows past their retention removed"),
            Err(error) => tracing::warn!(%error, "rows past their retention could not be removed"),
        }
        tokio::time::sleep(DAY.mul_f64(0.95 + 0.1 * fastrand::f64())).await;
    }
}

/// Removes what is past its retention; the number of rows.
///
/// # Errors
///
/// As any statement. What was removed before stays removed.
pub async fn sweep(db: &Db, retention: Retention) -> Result<u64, DbError> {
    const AUDIT: &str = "DELETE FROM audit_log WHERE id IN (SELECT id FROM audit_log \
                         WHERE created_at < now() - make_interval(days => $1) ORDER BY created_at LIMIT $2)";
    const EVENTS: &str = "DELETE FROM event_outbox WHERE id IN (SELECT id FROM event_outbox \
                          WHERE created_at < now() - make_interval(days => $1) ORDER BY created_at LIMIT $2)";
    let mut total = 0;
    for (sql, days) in [
        (AUDIT, retention.audit_log_days),
        (EVENTS, retention.events_days),
    ] {
        if days <= 0 {
            continue;
        }
        // A connection per chunk: requests come in between.
        loop {
            let rows = db
                .run(move |conn| conn.execute(sql, &[&days, &CHUNK]))
                .await?;
            total += rows;
            if (rows as i64) < CHUNK {
                break;
            }
        }
    }
    Ok(total)
}

//! Forgetting what is older than its retention.
//!
//! Runs when the oldest row of a table reaches its age, and at most once a [`Kept::period`]. Rows go in chunks, each in a
//! statement of its own on a connection of its own, so that requests come in between.

use std::sync::Mutex;
use std::time::Duration;

use postgres::Row;
use tokio::time::Instant;

use crate::app::App;
use crate::db::{Db, DbError, Sql};
use crate::hot::days;

/// Rows deleted by one statement: a year's backlog must not become one long transaction.
const CHUNK: i64 = 5_000;

const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(60 * 60);
const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// A table whose rows are kept for a time.
struct Kept {
    /// The column of the look around that holds the age of its oldest row.
    age: &'static str,
    /// Deletes rows older than `$1` seconds (double precision), at most `$2` of them.
    delete: &'static str,
    /// How long rows are kept; zero keeps them for ever.
    keep: fn(&App) -> Duration,
    /// Least time between two runs.
    period: Duration,
}

/// The columns of the look around.
macro_rules! ages {
    () => {
        "(SELECT extract(epoch FROM now() - min(created_at))::float8 FROM audit_log) AS audit_log_age,
         (SELECT extract(epoch FROM now() - min(created_at))::float8 FROM agent_events) AS agent_events_age,
         (SELECT extract(epoch FROM now() - min(created_at))::float8 FROM event_outbox) AS event_outbox_age,
         (SELECT extract(epoch FROM now() - min(created_at))::float8 FROM webhook_deliveries
           WHERE status IN ('success', 'dead')) AS finished_webhook_deliveries_age,
         (SELECT extract(epoch FROM now() - min(created_at))::float8 FROM webhook_deliveries
           WHERE status IN ('pending', 'failed') AND NOT for_broker) AS unfetched_webhook_deliveries_age"
    };
}
pub(super) use ages;

const KEPT: [Kept; 5] = [
    Kept {
        age: "audit_log_age",
        delete: "DELETE FROM audit_log WHERE id IN (SELECT id FROM audit_log \
                 WHERE created_at < now() - make_interval(secs => $1) ORDER BY created_at LIMIT $2)",
        keep: |app| days(app.config.broker.audit_log_retention_days),
        period: DAY,
    },
    Kept {
        age: "agent_events_age",
        delete: "DELETE FROM agent_events WHERE id IN (SELECT id FROM agent_events \
                 WHERE created_at < now() - make_interval(secs => $1) ORDER BY created_at LIMIT $2)",
        keep: |app| days(app.config.broker.agent_events_retention_days),
        period: HOUR,
    },
    // Events that could not be turned into deliveries for so long are no news any more.
    Kept {
        age: "event_outbox_age",
        delete: "DELETE FROM event_outbox WHERE id IN (SELECT id FROM event_outbox \
                 WHERE created_at < now() - make_interval(secs => $1) ORDER BY created_at LIMIT $2 \
                 FOR UPDATE SKIP LOCKED)",
        keep: |app| app.hot.get().webhook_retention,
        period: HOUR,
    },
    Kept {
        age: "finished_webhook_deliveries_age",
        delete: "DELETE FROM webhook_deliveries WHERE id IN (SELECT id FROM webhook_deliveries \
                 WHERE status IN ('success', 'dead') AND created_at < now() - make_interval(secs => $1) \
                 ORDER BY created_at LIMIT $2)",
        keep: |app| app.hot.get().webhook_retention,
        period: HOUR,
    },
    // Without this, deliveries for labels that no agent has would be kept for ever.
    Kept {
        age: "unfetched_webhook_deliveries_age",
        delete: "DELETE FROM webhook_deliveries WHERE id IN (SELECT id FROM webhook_deliveries \
                 WHERE status IN ('pending', 'failed') AND NOT for_broker \
                 AND created_at < now() - make_interval(secs => $1) ORDER BY created_at LIMIT $2 \
                 FOR UPDATE SKIP LOCKED)",
        keep: |app| app.hot.get().webhook_retention,
        period: HOUR,
    },
];

/// When each of [`KEPT`] was last swept by this process.
static SWEPT: Mutex<[Option<Instant>; KEPT.len()]> = Mutex::new([None; KEPT.len()]);

/// After how long the first of them is due, from the ages that the look around found.
pub(super) fn due(app: &App, row: &Row) -> Result<Option<Duration>, DbError> {
    let swept = *SWEPT
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    let mut first: Option<Duration> = None;
    for (kept, swept) in KEPT.iter().zip(swept) {
        let keep = (kept.keep)(app);
        let age: Option<f64> = row.try_get(kept.age)?;
        let Some(age) = age.filter(|_| !keep.is_zero()) else {
            continue;
        };
        let age = Duration::try_from_secs_f64(age.max(0.0)).unwrap_or(Duration::MAX);
        let rested = swept.map_or(Duration::ZERO, |at| {
            kept.period.saturating_sub(at.elapsed())
        });
        let due = keep.saturating_sub(age).max(rested);
        first = Some(first.map_or(due, |first| first.min(due)));
    }
    // What falls due later than the next look is found by that.
    Ok(first.filter(|due| *due < 2 * MINUTE))
}

/// Sweeps every table whose turn it is.
pub(super) async fn run(app: &App) -> Result<Option<Duration>, DbError> {
    for (index, kept) in KEPT.iter().enumerate() {
        let keep = (kept.keep)(app);
        let rested = {
            let swept = SWEPT
                .lock()
                .unwrap_or_else(std::sync::PoisonError::into_inner);
            swept[index].is_none_or(|at| at.elapsed() >= kept.period)
        };
        if keep.is_zero() || !rested {
            continue;
        }
        let rows = sweep(&app.db, kept.delete, keep).await?;
        if rows > 0 {
            tracing::info!(
                rows,
                table = kept.age.trim_end_matches("_age"),
                "rows past their retention removed"
            );
            let mut swept = SWEPT
                .lock()
                .unwrap_or_else(std::sync::PoisonError::into_inner);
            swept[index] = Some(Instant::now());
        }
    }
    Ok(None)
}

/// Removes what is older; the number of rows.
async fn sweep(db: &Db, delete: &'static str, keep: Duration) -> Result<u64, DbError> {
    let mut total = 0;
    loop {
        let rows = db
            .run(move |conn| conn.execute(delete, &[&keep.as_secs_f64(), &CHUNK]))
            .await?;
        total += rows;
        if (rows as i64) < CHUNK {
            return Ok(total);
        }
    }
}

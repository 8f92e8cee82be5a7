//! Deletes rows that are older than their retention.
//!
//! Runs when the oldest row of a table reaches the retention, and at most once per period of the table. Rows are
//! deleted in chunks, each in a statement of its own on a connection of its own, so that requests can run in between.
//!
//! Some old rows stay. An agent's newest success about the newest object of a stack stays, because it is the record
//! that the agent has applied the object: without it the incremental target state would offer the object again, and
//! subscribers would be sent it as new. An agent's last health report of such an object stays too.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use postgres::Row;
use tokio::time::Instant;

use crate::app::App;
use crate::db::{Db, DbError, Sql};
use crate::runtime_config::days;
use crate::store::telemetry::RETENTION_SECONDS;

/// Largest number of rows that one statement deletes, so that a year's backlog does not become one long transaction.
pub const CHUNK: i64 = 5_000;

const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(60 * 60);
const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// Retention of telemetry; it is fixed, because a broker is not meant to store logs.
const TELEMETRY: Duration = Duration::from_secs(RETENTION_SECONDS as u64);

/// A table whose rows are deleted after a retention.
///
/// The statements name rows by an array, because `id IN (…)` would read the whole table. `SKIP LOCKED` lets two brokers
/// sweep at once: each takes rows that the other does not hold.
pub struct RetainedTable {
    /// Column of the `look` statement that holds the age of the table's oldest row.
    age: &'static str,
    /// Statement that deletes at most `$2` rows older than `$1` seconds (double precision).
    delete: &'static str,
    /// Retention of the rows; zero keeps them for ever.
    keep: fn(&App) -> Duration,
    /// Shortest time between two sweeps.
    period: Duration,
}

/// Columns of the `look` statement: age of the oldest row of each table.
macro_rules! ages {
    () => {
        "(SELECT extract(epoch FROM now() - min(created_at))::float8 FROM audit_log) AS audit_log_age,
         (SELECT extract(epoch FROM now() - min(created_at))::float8 FROM agent_events) AS agent_events_age,
         (SELECT extract(epoch FROM now() - min(created_at))::float8 FROM event_outbox) AS event_outbox_age,
         (SELECT extract(epoch FROM now() - min(created_at))::float8 FROM webhook_deliveries
           WHERE status IN ('success', 'dead')) AS finished_webhook_deliveries_age,
         (SELECT extract(epoch FROM now() - min(created_at))::float8 FROM webhook_deliveries
           WHERE status IN ('pending', 'failed') AND NOT for_broker) AS unfetched_webhook_deliveries_age,
         (SELECT extract(epoch FROM now() - min(created_at))::float8 FROM deployment_health) AS deployment_health_age,
         (SELECT extract(epoch FROM now() - min(created_at))::float8 FROM agent_k8s_events) AS agent_k8s_events_age,
         (SELECT extract(epoch FROM now() - min(created_at))::float8 FROM agent_pod_logs) AS agent_pod_logs_age"
    };
}
pub(super) use ages;

/// SQL condition: the object is live and no live object of its stack is newer.
macro_rules! wanted {
    ($object:literal) => {
        concat!(
            "EXISTS (SELECT 1 FROM deployment_objects o
                      WHERE o.id = ",
            $object,
            " AND o.deleted_at IS NULL
                        AND NOT EXISTS (SELECT 1 FROM deployment_objects newer
                                         WHERE newer.stack_id = o.stack_id AND newer.deleted_at IS NULL
                                           AND newer.sequence_id > o.sequence_id OFFSET 0) OFFSET 0)"
        )
    };
}

/// Statement that deletes old rows by `ctid`: telemetry rows are never updated, so `ctid` is stable and no index on
/// `id` is needed.
macro_rules! delete_telemetry {
    ($table:literal) => {
        concat!(
            "DELETE FROM ",
            $table,
            " WHERE ctid = ANY (ARRAY (SELECT ctid FROM ",
            $table,
            " WHERE created_at < now() - make_interval(secs => $1) ORDER BY created_at LIMIT $2 FOR UPDATE SKIP LOCKED))"
        )
    };
}

/// Tables that are swept.
pub const KEPT: [RetainedTable; 8] = [
    RetainedTable {
        age: "audit_log_age",
        delete: "DELETE FROM audit_log WHERE id = ANY (ARRAY (SELECT id FROM audit_log \
                 WHERE created_at < now() - make_interval(secs => $1) ORDER BY created_at LIMIT $2 \
                 FOR UPDATE SKIP LOCKED))",
        keep: |app| days(app.config.broker.audit_log_retention_days),
        period: DAY,
    },
    RetainedTable {
        age: "agent_events_age",
        delete: concat!(
            "DELETE FROM agent_events WHERE id = ANY (ARRAY (
                SELECT e.id FROM agent_events e
                 WHERE e.created_at < now() - make_interval(secs => $1)
                   AND (e.success_digest IS NULL OR e.deleted_at IS NOT NULL
                     OR EXISTS (SELECT 1 FROM agent_events later
                                 WHERE later.agent_id = e.agent_id
                                   AND later.deployment_object_id = e.deployment_object_id
                                   AND later.success_digest IS NOT NULL AND later.deleted_at IS NULL
                                   AND (later.created_at, later.id) > (e.created_at, e.id) OFFSET 0)
                     OR NOT ",
            wanted!("e.deployment_object_id"),
            ") ORDER BY e.created_at, e.id LIMIT $2 FOR UPDATE SKIP LOCKED))"
        ),
        keep: |app| days(app.config.broker.agent_events_retention_days),
        period: HOUR,
    },
    // Events that old are dropped even when they never became deliveries.
    RetainedTable {
        age: "event_outbox_age",
        delete: "DELETE FROM event_outbox WHERE id = ANY (ARRAY (SELECT id FROM event_outbox \
                 WHERE created_at < now() - make_interval(secs => $1) ORDER BY created_at LIMIT $2 \
                 FOR UPDATE SKIP LOCKED))",
        keep: |app| app.runtime_config.get().webhook_retention,
        period: HOUR,
    },
    RetainedTable {
        age: "finished_webhook_deliveries_age",
        delete: "DELETE FROM webhook_deliveries WHERE id = ANY (ARRAY (SELECT id FROM webhook_deliveries \
                 WHERE status IN ('success', 'dead') AND created_at < now() - make_interval(secs => $1) \
                 ORDER BY created_at LIMIT $2 FOR UPDATE SKIP LOCKED))",
        keep: |app| app.runtime_config.get().webhook_retention,
        period: HOUR,
    },
    // Without this, deliveries for labels that no agent has would be kept for ever.
    RetainedTable {
        age: "unfetched_webhook_deliveries_age",
        delete: "DELETE FROM webhook_deliveries WHERE id = ANY (ARRAY (SELECT id FROM webhook_deliveries \
                 WHERE status IN ('pending', 'failed') AND NOT for_broker \
                 AND created_at < now() - make_interval(secs => $1) ORDER BY created_at LIMIT $2 \
                 FOR UPDATE SKIP LOCKED))",
        keep: |app| app.runtime_config.get().webhook_retention,
        period: HOUR,
    },
    // Health reports about objects that have been replaced or deleted.
    RetainedTable {
        age: "deployment_health_age",
        delete: concat!(
            "DELETE FROM deployment_health WHERE id = ANY (ARRAY (
                SELECT h.id FROM deployment_health h
                 WHERE h.created_at < now() - make_interval(secs => $1)
                   AND h.updated_at < now() - make_interval(secs => $1)
                   AND NOT ",
            wanted!("h.deployment_object_id"),
            " ORDER BY h.created_at LIMIT $2 FOR UPDATE SKIP LOCKED))"
        ),
        keep: |app| days(app.config.broker.agent_events_retention_days),
        period: DAY,
    },
    RetainedTable {
        age: "agent_k8s_events_age",
        delete: delete_telemetry!("agent_k8s_events"),
        keep: |_| TELEMETRY,
        period: MINUTE,
    },
    RetainedTable {
        age: "agent_pod_logs_age",
        delete: delete_telemetry!("agent_pod_logs"),
        keep: |_| TELEMETRY,
        period: MINUTE,
    },
];

/// Moment at which this process last swept each table of [`KEPT`].
static SWEPT: Mutex<[Option<Instant>; KEPT.len()]> = Mutex::new([None; KEPT.len()]);

/// Returns the time until the first table is due, from the ages that the `look` statement read.
pub(super) fn due(app: &App, row: &Row) -> Result<Option<Duration>, DbError> {
    let swept = *SWEPT.lock().unwrap_or_else(PoisonError::into_inner);
    let mut first: Option<Duration> = None;
    for (kept, swept) in KEPT.iter().zip(swept) {
        let age = row.try_get(kept.age)?;
        let due = kept.due((kept.keep)(app), age, swept.map(|at| at.elapsed()));
        first = first.into_iter().chain(due).min();
    }
    // A later time is left to the next `look`.
    Ok(first.filter(|due| *due < 2 * MINUTE))
}

/// Sweeps every table whose period has passed.
pub(super) async fn run(app: &App) -> Result<Option<Duration>, DbError> {
    for (index, kept) in KEPT.iter().enumerate() {
        let keep = (kept.keep)(app);
        let swept = SWEPT.lock().unwrap_or_else(PoisonError::into_inner)[index];
        if keep.is_zero() || !kept.rest(swept.map(|at| at.elapsed())).is_zero() {
            continue;
        }
        let rows = kept.sweep(&app.db, keep).await?;
        app.metrics.sockets.swept(kept.table(), rows);
        // Sweeps of telemetry are not logged, because they happen every minute.
        if rows > 0 && kept.period > MINUTE {
            tracing::info!(
                rows,
                table = kept.table(),
                "rows past their retention removed"
            );
        }
        // Noted even when no row was deleted, otherwise an old row that must stay would cause a sweep at every look.
        SWEPT.lock().unwrap_or_else(PoisonError::into_inner)[index] = Some(Instant::now());
    }
    Ok(None)
}

impl RetainedTable {
    /// Returns the table's name.
    pub fn table(&self) -> &'static str {
        self.age.trim_end_matches("_age")
    }

    /// Returns the time until the table is due; `age` is the age of its oldest row in seconds, `swept` the time since
    /// the last sweep.
    fn due(&self, keep: Duration, age: Option<f64>, swept: Option<Duration>) -> Option<Duration> {
        let age = age.filter(|_| !keep.is_zero())?;
        let age = Duration::try_from_secs_f64(age.max(0.0)).unwrap_or(Duration::MAX);
        Some(keep.saturating_sub(age).max(self.rest(swept)))
    }

    /// Returns the time until the period allows the next sweep.
    fn rest(&self, swept: Option<Duration>) -> Duration {
        swept.map_or(Duration::ZERO, |ago| self.period.saturating_sub(ago))
    }

    /// Deletes rows older than `keep`, chunk by chunk, and returns their number.
    ///
    /// # Errors
    /// When a statement fails; rows deleted by earlier statements stay deleted.
    pub async fn sweep(&self, db: &Db, keep: Duration) -> Result<u64, DbError> {
        let delete = self.delete;
        let mut total = 0;
        loop {
            let rows = db
                .run(move |conn| {
                    let rows = conn.execute(delete, &[&keep.as_secs_f64(), &CHUNK]);
                    if rows.as_ref().is_ok_and(|rows| *rows < CHUNK.unsigned_abs()) {
                        conn.leave_nothing_behind();
                    }
                    rows
                })
                .await?;
            total += rows;
            if rows < CHUNK.unsigned_abs() {
                return Ok(total);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(period: Duration) -> RetainedTable {
        RetainedTable {
            age: "x_age",
            delete: "",
            keep: |_| Duration::ZERO,
            period,
        }
    }

    #[test]
    fn a_table_is_due_when_its_oldest_row_is_and_no_sooner_than_its_period_allows() {
        let kept = kept(HOUR);
        let age = |age: Duration| Some(age.as_secs_f64());
        assert_eq!(kept.due(DAY, None, None), None, "nothing there");
        assert_eq!(
            kept.due(DAY, age(DAY - MINUTE), None),
            Some(MINUTE),
            "not yet old enough"
        );
        assert_eq!(kept.due(DAY, age(2 * DAY), None), Some(Duration::ZERO));
        assert_eq!(
            kept.due(DAY, age(2 * DAY), Some(MINUTE)),
            Some(HOUR - MINUTE),
            "swept a minute ago"
        );
        assert_eq!(
            kept.due(DAY, age(2 * DAY), Some(2 * HOUR)),
            Some(Duration::ZERO)
        );
        assert_eq!(
            kept.due(DAY, Some(-5.0), None),
            Some(DAY),
            "a clock set back"
        );
        assert_eq!(kept.table(), "x");
    }

    #[test]
    fn zero_keeps_for_ever() {
        let years = (400 * DAY).as_secs_f64();
        assert_eq!(kept(HOUR).due(Duration::ZERO, Some(years), None), None);
    }
}

//! Diagnostics: ends requests that were not answered in time, and deletes requests that ended long ago.
//!
//! Runs when a request falls due, and at most once in `broker.diagnostic_cleanup_interval_seconds`.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use postgres::Row;
use tokio::time::Instant;

use crate::app::App;
use crate::db::{Conn, DbError, Sql};

/// Largest number of rows that one statement changes.
const CHUNK: i64 = 1_000;

/// Moment at which this process last swept.
static SWEPT: Mutex<Option<Instant>> = Mutex::new(None);

/// Columns of the `look` statement: seconds until a request falls due, and age of the oldest request that has ended.
macro_rules! due {
    () => {
        "(SELECT extract(epoch FROM min(expires_at) - now())::float8 FROM diagnostic_requests
           WHERE status IN ('pending', 'claimed')) AS diagnostics_due,
         (SELECT extract(epoch FROM now() - min(created_at))::float8 FROM diagnostic_requests
           WHERE status IN ('completed', 'failed', 'expired')) AS diagnostics_age"
    };
}
pub(super) use due;

/// Returns the time until the next sweep is due, from a row that has the columns of `due!`.
pub(super) fn next(app: &App, row: &Row) -> Result<Option<Duration>, DbError> {
    let open: Option<f64> = row.try_get("diagnostics_due")?;
    let ended: Option<f64> = row.try_get("diagnostics_age")?;
    let keep = app.runtime_config.get().diagnostic_max_age.as_secs_f64();
    let first = [open, ended.map(|age| keep - age)]
        .into_iter()
        .flatten()
        .reduce(f64::min);
    Ok(first.map(|seconds| {
        let due = Duration::try_from_secs_f64(seconds.max(0.0)).unwrap_or(Duration::MAX);
        due.max(rest(app))
    }))
}

/// Returns the time until the interval allows the next sweep.
fn rest(app: &App) -> Duration {
    let interval = app.runtime_config.get().diagnostic_cleanup_interval;
    let swept = *SWEPT.lock().unwrap_or_else(PoisonError::into_inner);
    swept.map_or(Duration::ZERO, |at| interval.saturating_sub(at.elapsed()))
}

/// Sweeps if the interval allows it, and returns the time until the next sweep.
pub(super) async fn run(app: &App) -> Result<Option<Duration>, DbError> {
    let rest = rest(app);
    if !rest.is_zero() {
        return Ok(Some(rest));
    }
    let keep = app.runtime_config.get().diagnostic_max_age;
    while !app.db.run(move |conn| sweep(conn, keep)).await? {}
    *SWEPT.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
    let row = app
        .db
        .run(|conn| {
            let row = conn.query_one(concat!("SELECT ", due!()), &[]);
            conn.leave_nothing_behind();
            row
        })
        .await?;
    next(app, &row)
}

/// Ends expired requests, and deletes ended requests that were created longer than `keep` ago. Returns true when no
/// such request remains.
///
/// A request that an agent is claiming or answering is skipped because its row is locked; the next sweep takes it.
pub fn sweep(conn: &mut Conn, keep: Duration) -> Result<bool, DbError> {
    // An array, because `id IN (…)` would read the whole table.
    const END: &str = "\
        UPDATE diagnostic_requests
           SET status = CASE status WHEN 'pending' THEN 'expired' ELSE 'failed' END, completed_at = now()
         WHERE id = ANY (ARRAY (SELECT id FROM diagnostic_requests
                       WHERE status IN ('pending', 'claimed') AND expires_at <= now()
                       ORDER BY expires_at LIMIT $1 FOR UPDATE SKIP LOCKED))";
    const FORGET: &str = "\
        DELETE FROM diagnostic_requests
         WHERE id = ANY (ARRAY (SELECT id FROM diagnostic_requests
                       WHERE status IN ('completed', 'failed', 'expired')
                         AND created_at < now() - make_interval(secs => $1)
                       ORDER BY created_at LIMIT $2 FOR UPDATE SKIP LOCKED))";
    let ended = conn.execute(END, &[&CHUNK])?;
    let forgotten = conn.execute(FORGET, &[&keep.as_secs_f64(), &CHUNK])?;
    if ended > 0 || forgotten > 0 {
        tracing::debug!(ended, forgotten, "diagnostics swept");
    }
    let most = CHUNK.unsigned_abs();
    Ok(ended < most && forgotten < most)
}

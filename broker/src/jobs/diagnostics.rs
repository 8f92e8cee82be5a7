//! Diagnostics: requests that nobody answered in time end, and those that have ended are forgotten.
//!
//! Runs when something is due, and at most once in `broker.diagnostic_cleanup_interval_seconds`.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use postgres::Row;
use tokio::time::Instant;

use crate::app::App;
use crate::db::{Conn, DbError, Sql};

/// Rows changed by one statement.
const CHUNK: i64 = 1_000;

/// When this process last swept.
static SWEPT: Mutex<Option<Instant>> = Mutex::new(None);

/// The columns of the look around: seconds until a request falls due, and the age of the oldest that has ended.
macro_rules! due {
    () => {
        "(SELECT extract(epoch FROM min(expires_at) - now())::float8 FROM diagnostic_requests
           WHERE status IN ('pending', 'claimed')) AS diagnostics_due,
         (SELECT extract(epoch FROM now() - min(created_at))::float8 FROM diagnostic_requests
           WHERE status IN ('completed', 'failed', 'expired')) AS diagnostics_age"
    };
}
pub(super) use due;

/// After how long there is something to do, from the row of a statement that has the columns above.
pub(super) fn next(app: &App, row: &Row) -> Result<Option<Duration>, DbError> {
    let open: Option<f64> = row.try_get("diagnostics_due")?;
    let ended: Option<f64> = row.try_get("diagnostics_age")?;
    let keep = app.hot.get().diagnostic_max_age.as_secs_f64();
    let first = [open, ended.map(|age| keep - age)]
        .into_iter()
        .flatten()
        .reduce(f64::min);
    Ok(first.map(|seconds| {
        let due = Duration::try_from_secs_f64(seconds.max(0.0)).unwrap_or(Duration::MAX);
        due.max(rest(app))
    }))
}

/// How long until the next sweep is allowed.
fn rest(app: &App) -> Duration {
    let interval = app.hot.get().diagnostic_cleanup_interval;
    let swept = *SWEPT.lock().unwrap_or_else(PoisonError::into_inner);
    swept.map_or(Duration::ZERO, |at| interval.saturating_sub(at.elapsed()))
}

/// Does what is due.
pub(super) async fn run(app: &App) -> Result<Option<Duration>, DbError> {
    let rest = rest(app);
    if !rest.is_zero() {
        return Ok(Some(rest));
    }
    let keep = app.hot.get().diagnostic_max_age;
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

/// Ends what has expired and removes what has ended longer ago than `keep`, counted from its beginning. Whether that was
/// all of it.
///
/// Who is in the middle of claiming or answering a request holds its row: it is passed over, and looked at by the next sweep.
pub fn sweep(conn: &mut Conn, keep: Duration) -> Result<bool, DbError> {
    // An array and not `id IN (…)`, for which the whole table would be read.
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

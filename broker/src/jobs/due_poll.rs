//! Once a minute, asks in one statement when the work of each job falls due.
//!
//! Each column is a number of seconds: the age of the oldest row of a table with a retention, or the time until the
//! next row falls due (negative when it is overdue). Null means that there is no such row. Each is answered from one
//! end of an index.

use std::time::Duration;

use postgres::Row;

use super::schedule::Job;
use super::{diagnostics, retention, webhooks, work_orders};
use crate::app::App;
use crate::db::{DbError, Sql};

/// Time between two statements; jittered by a fifth either way, so that a thousand brokers do not ask together.
const EVERY: Duration = Duration::from_secs(60);

/// Time until a failed statement is repeated.
const AFTER_FAILURE: Duration = Duration::from_secs(10);

const LOOK: &str = concat!(
    "SELECT ",
    retention::ages!(),
    ", ",
    webhooks::due!(),
    ", ",
    work_orders::due!(),
    ", ",
    diagnostics::due!()
);

/// Columns that hold the time until a row falls due, with their jobs.
const DUE: [(&str, Job); 2] = [
    ("webhooks_due", Job::Webhooks),
    ("work_orders_due", Job::WorkOrders),
];

/// Asks once at the start and then every `EVERY`, until the broker drains.
pub(super) async fn around(app: App) {
    loop {
        if app.health.is_draining() {
            return;
        }
        let pause = match look(&app).await {
            Ok(()) => EVERY,
            Err(error) => {
                tracing::debug!(%error, "could not look for background work");
                AFTER_FAILURE
            }
        };
        tokio::time::sleep(pause.mul_f64(0.8 + 0.4 * fastrand::f64())).await;
    }
}

async fn look(app: &App) -> Result<(), DbError> {
    let row = app
        .db
        .run(|conn| {
            let row = conn.query_one(LOOK, &[]);
            conn.leave_nothing_behind();
            row
        })
        .await?;
    plan(app, &row)
}

fn plan(app: &App, row: &Row) -> Result<(), DbError> {
    if let Some(after) = retention::due(app, row)? {
        app.jobs.due_in(Job::Retention, after);
    }
    if let Some(after) = diagnostics::next(app, row)? {
        app.jobs.due_in(Job::Diagnostics, after);
    }
    for (column, job) in DUE {
        if let Some(after) = in_seconds(row, column)? {
            app.jobs.due_in(job, after);
        }
    }
    Ok(())
}

/// Reads a column of seconds; a negative value becomes zero.
fn in_seconds(row: &Row, column: &str) -> Result<Option<Duration>, DbError> {
    let seconds: Option<f64> = row.try_get(column)?;
    Ok(seconds.map(|s| Duration::try_from_secs_f64(s.max(0.0)).unwrap_or(Duration::MAX)))
}

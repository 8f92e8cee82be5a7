//! The look around: once a minute, one statement that asks for all jobs together what will fall due.
//!
//! Each column is a number of seconds: the age of the oldest row of a table that is kept for a time, or how long until the
//! next row falls due (negative when it has). Null: nothing there. Each is answered from one end of an index.

use std::time::Duration;

use postgres::Row;

use super::{Job, diagnostics, retention, webhooks, work_orders};
use crate::app::App;
use crate::db::{DbError, Sql};

/// Between two looks; jittered by a fifth either way, so that a thousand brokers do not look together.
const EVERY: Duration = Duration::from_secs(60);

/// A failed look is repeated after this.
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

/// The columns that are times until something falls due, and whose they are.
const DUE: [(&str, Job); 2] = [
    ("webhooks_due", Job::Webhooks),
    ("work_orders_due", Job::WorkOrders),
];

/// Looks once at the start and then for ever.
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

/// Reads a column of seconds until something falls due.
fn in_seconds(row: &Row, column: &str) -> Result<Option<Duration>, DbError> {
    let seconds: Option<f64> = row.try_get(column)?;
    Ok(seconds.map(|s| Duration::try_from_secs_f64(s.max(0.0)).unwrap_or(Duration::MAX)))
}

//! Runs each job when the schedule says that it is due.
//!
//! A job that fails or panics is tried again later and stops no other job.

use std::time::Duration;

use super::schedule::Job;
use super::{diagnostics, due_poll, gauges, retention, webhooks, work_orders};
use crate::app::App;
use crate::db::DbError;

/// The first pause after a failure. The pause doubles up to [`LONGEST_PAUSE`], each time with full jitter.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// The longest pause after a failure.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// Does the work that is due now, and returns the time until more work falls due, if that is known.
async fn run(job: Job, app: &App) -> Result<Option<Duration>, DbError> {
    match job {
        Job::Retention => retention::run(app).await,
        Job::Webhooks => webhooks::run(app).await,
        Job::WorkOrders => work_orders::run(app).await,
        Job::Diagnostics => diagnostics::run(app).await,
        Job::Gauges => gauges::run(app).await,
    }
}

/// Runs every job for as long as the process lives; no job begins once draining has.
pub fn spawn(app: &App) {
    for job in Job::ALL {
        tokio::spawn(keep(app.clone(), job));
    }
    tokio::spawn(due_poll::around(app.clone()));
    app.jobs.wake(Job::Gauges);
}

async fn keep(app: App, job: Job) {
    let mut pause = FIRST_PAUSE;
    loop {
        app.jobs.until_due(job).await;
        if app.health.is_draining() {
            return;
        }
        let running = app.clone();
        // Run the job in a task of its own, so that a panic ends only this run.
        let ended = tokio::spawn(async move { run(job, &running).await }).await;
        match ended {
            Ok(Ok(next)) => {
                pause = FIRST_PAUSE;
                if let Some(next) = next {
                    app.jobs.due_in(job, next);
                }
                continue;
            }
            Ok(Err(error @ DbError::Unavailable { .. })) => {
                tracing::debug!(?job, %error, "a background job waits for the database");
            }
            Ok(Err(error)) => tracing::warn!(?job, %error, "a background job failed"),
            // The panic hook has logged the reason.
            Err(_) => tracing::error!(?job, "a background job panicked"),
        }
        app.jobs.due_in(job, pause.mul_f64(fastrand::f64()));
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

//! Background jobs: one file per job, one schedule for all.
//!
//! A job runs only when it is due, so an idle broker is silent. Three sources make a job due: its last run told when
//! the next work falls due; a write of this broker did so ([`Schedule::wake`], [`Schedule::due_in`]); or the look around
//! (`due_poll`, one statement a minute for all jobs together) found work that another process left. Two instances of a
//! broker may run the same job at once, because each job takes its rows with `FOR UPDATE SKIP LOCKED` or uses one
//! statement that can be repeated.
//!
//! A job that fails or panics is tried again later and stops no other job. A new job needs a file here, a line in
//! [`Job`], a line in `Job::run`, and its column in `due_poll`.

pub mod diagnostics;
mod due_poll;
mod gauges;
pub mod retention;
mod webhooks;
mod work_orders;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use crate::app::App;
use crate::db::DbError;

/// The first pause after a failure. The pause doubles up to [`LONGEST_PAUSE`], each time with full jitter.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// The longest pause after a failure.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// A background job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Job {
    /// Removes rows that are past their retention.
    Retention,
    /// Turns events into deliveries, and sends the deliveries.
    Webhooks,
    /// Makes work orders pending again that wait for a retry or whose claim is stale.
    WorkOrders,
    /// Ends diagnostic requests without an answer.
    Diagnostics,
    /// Reads the figures of the database that `/metrics` shows.
    Gauges,
}

impl Job {
    const ALL: [Job; 5] = [
        Job::Retention,
        Job::Webhooks,
        Job::WorkOrders,
        Job::Diagnostics,
        Job::Gauges,
    ];

    /// Does the work that is due now, and returns the time until more work falls due, if that is known.
    async fn run(self, app: &App) -> Result<Option<Duration>, DbError> {
        match self {
            Job::Retention => retention::run(app).await,
            Job::Webhooks => webhooks::run(app).await,
            Job::WorkOrders => work_orders::run(app).await,
            Job::Diagnostics => diagnostics::run(app).await,
            Job::Gauges => gauges::run(app).await,
        }
    }
}

/// The time at which each job is due. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Schedule(Arc<[JobSlot; Job::ALL.len()]>);

#[derive(Debug, Default)]
struct JobSlot {
    due: Mutex<Option<Instant>>,
    changed: Notify,
}

impl Schedule {
    /// Returns a schedule on which no job is due.
    pub fn new() -> Self {
        Self::default()
    }

    /// Makes a job due now. Call it from any thread, after the commit of the job's work.
    pub fn wake(&self, job: Job) {
        self.due_in(job, Duration::ZERO);
    }

    /// Makes a job due after this long, or earlier if it was due earlier. Call it from any thread, after the commit of
    /// the job's work.
    pub fn due_in(&self, job: Job, after: Duration) {
        let slot = &self.0[job as usize];
        // A time that the clock cannot represent is never reached.
        let Some(at) = Instant::now().checked_add(after) else {
            return;
        };
        {
            let mut due = slot.due.lock().unwrap_or_else(PoisonError::into_inner);
            if due.is_some_and(|due| due <= at) {
                return;
            }
            *due = Some(at);
        }
        slot.changed.notify_one();
    }

    /// Waits until the job is due, and clears its due time.
    async fn until_due(&self, job: Job) {
        let slot = &self.0[job as usize];
        loop {
            let due = {
                let mut due = slot.due.lock().unwrap_or_else(PoisonError::into_inner);
                match *due {
                    Some(at) if at <= Instant::now() => {
                        *due = None;
                        return;
                    }
                    other => other,
                }
            };
            // Both arms are cancel-safe because a missed notification stays stored.
            match due {
                Some(at) => tokio::select! {
                    () = tokio::time::sleep_until(at) => {}
                    () = slot.changed.notified() => {}
                },
                None => slot.changed.notified().await,
            }
        }
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
        let ended = tokio::spawn(async move { job.run(&running).await }).await;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_job_is_due_at_the_earliest_of_what_it_was_told_and_once() {
        let jobs = Schedule::new();
        let began = Instant::now();
        jobs.due_in(Job::Retention, Duration::from_secs(60));
        jobs.due_in(Job::Retention, Duration::from_secs(10));
        jobs.due_in(Job::Retention, Duration::from_secs(30));
        jobs.until_due(Job::Retention).await;
        assert_eq!(began.elapsed().as_secs(), 10);
        let nothing =
            tokio::time::timeout(Duration::from_secs(3600), jobs.until_due(Job::Retention));
        assert!(nothing.await.is_err(), "it was due once");
    }

    #[tokio::test(start_paused = true)]
    async fn a_job_that_is_due_in_an_age_of_the_world_is_not_due() {
        let jobs = Schedule::new();
        jobs.due_in(Job::Retention, Duration::MAX);
        jobs.due_in(Job::Retention, Duration::from_secs(1));
        jobs.until_due(Job::Retention).await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_wake_while_it_waits_is_not_lost() {
        let jobs = Schedule::new();
        jobs.due_in(Job::Retention, Duration::from_secs(3600));
        let waking = jobs.clone();
        let began = Instant::now();
        tokio::spawn(async move {
            tokio::time::sleep(Duration::from_secs(1)).await;
            waking.wake(Job::Retention);
        });
        jobs.until_due(Job::Retention).await;
        assert_eq!(began.elapsed().as_secs(), 1);
    }
}

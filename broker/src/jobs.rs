//! Work nobody asks for: one file a job, one schedule for all.
//!
//! An idle broker is silent. A job runs when it is due, and it becomes due in one of three ways: its last run said when
//! the next thing falls due; a write of this broker said so ([`Jobs::wake`], [`Jobs::due_in`]); or the look around, one
//! statement a minute for all jobs together (`look`), found something that another process left. Two instances of a broker
//! may run the same job at once: each takes what it works on with `FOR UPDATE SKIP LOCKED` or by one statement that can be
//! repeated.
//!
//! A job that fails, or panics, is tried again later and takes nobody with it. Adding a job is a file here, a line in
//! [`Job`], one in `Job::run`, and its column in `look`.

pub mod diagnostics;
mod gauges;
mod look;
pub mod retention;
mod webhooks;
mod work_orders;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use crate::app::App;
use crate::db::DbError;

/// After a failure, the first pause; it doubles up to [`LONGEST_PAUSE`], each time with full jitter.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// See [`FIRST_PAUSE`].
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// The jobs there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Job {
    /// Removes what is past its retention.
    Retention,
    /// Turns events into deliveries, and delivers.
    Webhooks,
    /// Makes work orders that wait for a retry, or whose claim is stale, pending again.
    WorkOrders,
    /// Ends diagnostic requests that nobody answered.
    Diagnostics,
    /// Reads what `/metrics` shows of the database.
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

    /// Does what is due now, and says after how long there is more to do, if that is known.
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

/// When each job is due. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Jobs(Arc<[Slot; Job::ALL.len()]>);

#[derive(Debug, Default)]
struct Slot {
    due: Mutex<Option<Instant>>,
    changed: Notify,
}

impl Jobs {
    /// Nothing is due yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Runs a job as soon as possible. Call it after what it is to see has been committed. From any thread.
    pub fn wake(&self, job: Job) {
        self.due_in(job, Duration::ZERO);
    }

    /// Runs a job after this long at the latest. Call it after what it is to see has been committed. From any thread.
    pub fn due_in(&self, job: Job, after: Duration) {
        let slot = &self.0[job as usize];
        // Later than a clock can tell is never.
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

    /// Waits until the job is due, and takes that.
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
            // Both arms are cancel-safe: a missed notification stays stored.
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

/// Runs every job for as long as the process lives; nothing is begun once draining has.
pub fn spawn(app: &App) {
    for job in Job::ALL {
        tokio::spawn(keep(app.clone(), job));
    }
    tokio::spawn(look::around(app.clone()));
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
        // A task of its own, so that a panic ends this run and not the job.
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
            // The panic hook has logged why.
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
        let jobs = Jobs::new();
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
        let jobs = Jobs::new();
        jobs.due_in(Job::Retention, Duration::MAX);
        jobs.due_in(Job::Retention, Duration::from_secs(1));
        jobs.until_due(Job::Retention).await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_wake_while_it_waits_is_not_lost() {
        let jobs = Jobs::new();
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

//! The schedule of the background jobs: the time at which each job is due.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

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
    pub(super) const ALL: [Job; 5] = [
        Job::Retention,
        Job::Webhooks,
        Job::WorkOrders,
        Job::Diagnostics,
        Job::Gauges,
    ];
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
    pub(super) async fn until_due(&self, job: Job) {
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

//! New log lines for the clients of `logs -f`.

use super::filter::{Filter, Level};
use super::record::LogChunk;
use bytes::Bytes;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::Notify;

/// Largest number of bytes waiting for one follower; lines beyond it are counted as lost to that follower.
const MOST: usize = 4 << 20;

#[derive(Debug, Default)]
struct Waiting {
    chunks: VecDeque<LogChunk>,
    bytes: usize,
    lost: u64,
}

/// The hub's end of one subscription.
#[derive(Debug)]
pub(super) struct Follower {
    filter: Filter,
    waiting: Mutex<Waiting>,
    some: Notify,
    closed: AtomicBool,
}

impl Follower {
    pub(super) fn new(filter: Filter) -> Self {
        Self {
            filter,
            waiting: Mutex::default(),
            some: Notify::new(),
            closed: AtomicBool::new(false),
        }
    }

    pub(super) fn offer(&self, chunk: &LogChunk) {
        if !self.filter.wants(&chunk.origin.tenant) {
            return;
        }
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        if waiting.bytes + chunk.bytes.len() > MOST {
            waiting.lost += u64::from(chunk.lines);
            return;
        }
        waiting.bytes += chunk.bytes.len();
        waiting.chunks.push_back(chunk.clone());
        drop(waiting);
        self.some.notify_one();
    }

    pub(super) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Relaxed)
    }
}

/// Item that a follower receives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Followed {
    /// Whole lines of JSON.
    Lines(Bytes),
    /// Number of lines that this follower lost because it did not read fast enough.
    Lost(u64),
}

/// Subscription to new log lines; dropping it ends it.
#[derive(Debug)]
pub(crate) struct Subscription(pub(super) Arc<Follower>);

impl Subscription {
    /// Waits for lines. Cancelling loses no lines, because a line stays queued until it is returned.
    pub(crate) async fn next(&mut self) -> Followed {
        loop {
            if let Some(followed) = self.poll() {
                return followed;
            }
            // `notify_one` leaves a permit, so no chunk offered between `poll` and this wait is missed.
            self.0.some.notified().await;
        }
    }

    fn poll(&self) -> Option<Followed> {
        let mut waiting = self
            .0
            .waiting
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        while let Some(chunk) = waiting.chunks.pop_front() {
            waiting.bytes -= chunk.bytes.len();
            match self.0.filter.level {
                None => return Some(Followed::Lines(chunk.bytes)),
                Some(least) => {
                    let lines = chunk.bytes.split_inclusive(|byte| *byte == b'\n');
                    let wanted: Vec<u8> = lines
                        .filter(|l| Level::of_line(l).at_least(least))
                        .flatten()
                        .copied()
                        .collect();
                    if !wanted.is_empty() {
                        return Some(Followed::Lines(wanted.into()));
                    }
                }
            }
        }
        // The queue is empty, so the lost lines came after all lines that it held.
        let lost = std::mem::take(&mut waiting.lost);
        (lost > 0).then_some(Followed::Lost(lost))
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        self.0.closed.store(true, Ordering::Relaxed);
    }
}

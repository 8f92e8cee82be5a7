//! Bounded queue of the frames to be sent on one socket; adding a frame never blocks.
//!
//! Handlers on blocking threads and readers of other sockets add frames; the socket's own task takes them. A full queue
//! drops a frame: an agent's queue drops the newest hint, because the agent polls anyway; a subscriber's queue drops
//! the oldest frame. A stack's subscriber is also sent the number of dropped frames.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use chrono::{DateTime, Utc};
use tokio::sync::Notify;
use uuid::Uuid;

use super::frames::{self, Frame, GapReason, LogGap};
use crate::metrics::frame_kind::FrameKind;

/// Largest number of frames in an agent's queue.
const CONTROL: usize = 64;
/// Largest number of frames in a subscriber's queue.
const TELEMETRY: usize = 1024;
/// Largest number of bytes in a queue. An empty queue takes a frame of any size, because a large hint must not be lost.
const BYTES: usize = 4 * 1024 * 1024;

/// Receiver of a queue; decides which frame a full queue drops.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum QueueOwner {
    /// Control channel of this agent.
    Agent(Uuid),
    /// A subscriber of this stack.
    Stack(Uuid),
    /// A subscriber of the fleet.
    Fleet,
}

/// Queue of one socket; see the module's comment.
#[derive(Debug)]
pub(crate) struct OutboundQueue {
    whose: QueueOwner,
    waiting: Mutex<Waiting>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct Waiting {
    frames: VecDeque<Frame>,
    bytes: usize,
    /// Number of frames lost since the last frame was taken; `since` is the time of the first loss.
    lost: u64,
    since: Option<DateTime<Utc>>,
}

impl OutboundQueue {
    pub(crate) fn new(whose: QueueOwner) -> Self {
        Self {
            whose,
            waiting: Mutex::default(),
            changed: Notify::new(),
        }
    }

    /// Adds a frame or drops one, on any thread.
    pub(crate) fn put(&self, frame: Frame) {
        {
            let mut waiting = self.lock();
            let most = match self.whose {
                QueueOwner::Agent(_) => CONTROL,
                QueueOwner::Stack(_) | QueueOwner::Fleet => TELEMETRY,
            };
            while !waiting.has_room(most, frame.text.len()) {
                if matches!(self.whose, QueueOwner::Agent(_)) {
                    return;
                }
                waiting.lose_oldest();
            }
            waiting.bytes += frame.text.len();
            waiting.frames.push_back(frame);
        }
        self.changed.notify_one();
    }

    /// Waits for the next frame and takes it. Cancel-safe: a frame is taken only to be returned at once.
    pub(crate) async fn next(&self) -> Frame {
        loop {
            if let Some(frame) = self.take() {
                return frame;
            }
            // A `put` since the check has left a permit.
            self.changed.notified().await;
        }
    }

    /// Takes the next frame, if any. Reports lost frames before the frames that came after them.
    pub(crate) fn take(&self) -> Option<Frame> {
        let mut waiting = self.lock();
        let lost = std::mem::take(&mut waiting.lost);
        let since = waiting.since.take();
        if let (QueueOwner::Stack(stack), 1.., Some(since)) = (self.whose, lost, since) {
            return Some(frames::downlink(
                FrameKind::LogGap,
                &LogGap {
                    agent_id: Uuid::nil(),
                    stack_id: stack,
                    since_ts: since,
                    dropped_count: lost,
                    reason: GapReason::BufferFull,
                },
            ));
        }
        let frame = waiting.frames.pop_front()?;
        waiting.bytes -= frame.text.len();
        if waiting.frames.is_empty() {
            // Releases a burst's memory, because there may be thousands of sockets.
            waiting.frames = VecDeque::new();
        }
        Some(frame)
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        // Nothing under this lock can panic half-way.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Waiting {
    fn has_room(&self, most: usize, bytes: usize) -> bool {
        self.frames.is_empty() || (self.frames.len() < most && self.bytes + bytes <= BYTES)
    }

    fn lose_oldest(&mut self) {
        if let Some(frame) = self.frames.pop_front() {
            self.bytes -= frame.text.len();
            self.lost += 1;
            self.since.get_or_insert_with(Utc::now);
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use serde_json::Value;

    use super::*;

    fn frame(text: impl Into<String>) -> Frame {
        Frame {
            kind: FrameKind::PodLogLine,
            text: text.into().into(),
        }
    }

    fn texts(outbound_queue: &OutboundQueue) -> Vec<String> {
        std::iter::from_fn(|| outbound_queue.take())
            .map(|frame| frame.text.to_string())
            .collect()
    }

    #[test]
    fn an_agents_full_queue_loses_the_newest_hint() {
        let outbound_queue = OutboundQueue::new(QueueOwner::Agent(Uuid::nil()));
        (0..CONTROL + 5).for_each(|n| outbound_queue.put(frame(n.to_string())));
        let texts = texts(&outbound_queue);
        assert_eq!(texts.len(), CONTROL);
        assert_eq!(texts[CONTROL - 1], (CONTROL - 1).to_string());
    }

    #[test]
    fn a_stacks_subscriber_that_lags_is_told_how_many_it_lost_and_goes_on_after_them() {
        let stack = Uuid::new_v4();
        let outbound_queue = OutboundQueue::new(QueueOwner::Stack(stack));
        (0..TELEMETRY + 5).for_each(|n| outbound_queue.put(frame(n.to_string())));
        let texts = texts(&outbound_queue);
        let gap: Value = serde_json::from_str(&texts[0]).unwrap();
        assert_eq!(gap["type"], "log_gap");
        assert_eq!(gap["body"]["agent_id"], Uuid::nil().to_string());
        assert_eq!(gap["body"]["stack_id"], stack.to_string());
        assert_eq!(gap["body"]["dropped_count"], 5);
        assert_eq!(gap["body"]["reason"], "buffer_full");
        assert_eq!(texts[1], "5");
        assert_eq!(texts.len(), 1 + TELEMETRY);
    }

    #[test]
    fn a_fleet_subscriber_that_lags_skips_silently() {
        let outbound_queue = OutboundQueue::new(QueueOwner::Fleet);
        (0..TELEMETRY + 5).for_each(|n| outbound_queue.put(frame(n.to_string())));
        assert_eq!(texts(&outbound_queue)[0], "5");
    }

    #[test]
    fn bytes_are_bounded_too_but_one_frame_always_fits() {
        let outbound_queue = OutboundQueue::new(QueueOwner::Stack(Uuid::nil()));
        outbound_queue.put(frame("x".repeat(BYTES + 1)));
        assert_eq!(outbound_queue.take().unwrap().text.len(), BYTES + 1);
        for _ in 0..10 {
            outbound_queue.put(frame("x".repeat(BYTES / 4)));
            assert!(outbound_queue.lock().bytes <= BYTES);
        }
        assert_eq!(texts(&outbound_queue).len(), 1 + 4);
    }
}

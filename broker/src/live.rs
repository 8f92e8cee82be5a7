//! WebSockets: which are open, what is pushed to them, and what agents send over theirs.
//!
//! ```text
//! handler --push--> mailbox -> socket -> agent
//! agent -> socket -> ingest -+-> store          (heartbeat, event, health: as by REST)
//!                            +-> mailboxes      (telemetry: the stack's subscribers)
//!                            +-> recorder       (telemetry: many rows, one statement)
//! feed: agents that changed -> one statement -> mailboxes of the fleet's subscribers
//! ```
//!
//! - One task per socket (`socket`), which reads and writes; everybody else puts frames into its bounded mailbox and never
//!   waits. Pushes are hints, sent after the commit.
//! - Nothing runs for a socket that nobody has opened: without subscribers no frame is built and no fleet is asked for.
//! - A PAK that dies takes its sockets with it: at once when it dies here (`revoke`), soon when another process did it
//!   (`recheck`).
//! - Draining closes every socket, spread over a moment, and then waits for what came in to be stored.

mod feed;
mod frames;
mod ingest;
mod mailbox;
mod place;
mod recheck;
mod recorder;
mod registry;
mod socket;
mod warned;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use chrono::{DateTime, Utc};
use serde::Serialize;
use tokio::sync::{Notify, watch};
use uuid::Uuid;

use crate::app::App;
use crate::metrics::sockets::Sockets;
use feed::Feed;
pub(crate) use feed::fill;
pub use frames::Kind;
pub(crate) use mailbox::Whose;
pub use place::Place;
pub(crate) use place::Seat;
use recorder::Recorder;
use registry::{Ending, Registry};
pub(crate) use socket::{Guest, serve};
use warned::Warned;

/// Most of a drain's grace that the closing is spread over, and most of it that a peer's answer is waited for: together
/// well before idle connections are closed.
const SHARE: f64 = 0.3;
/// So many sockets are closed in a second while draining: those of a fleet come back to the next instance at that rate.
const CLOSED_PER_SECOND: f64 = 500.0;
/// Longest a peer has to answer a close frame.
const CLOSE_WAIT: Duration = Duration::from_secs(5);

/// Handle to the sockets of this process. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Live(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    registry: Registry,
    feed: Feed,
    recorder: Recorder,
    warned: Warned,
    doubted: Notify,
    /// Somebody connected.
    joined: Notify,
    deaths: AtomicU64,
    draining: watch::Sender<Option<Drain>>,
    metrics: Arc<Sockets>,
}

/// How sockets are closed once draining has begun.
#[derive(Clone, Copy, Debug)]
struct Drain {
    /// Each begins somewhere in this time.
    spread: Duration,
    /// And has this long to end.
    wait: Duration,
}

/// An agent's socket, for the admin.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Connected {
    /// Whose.
    pub(crate) agent: Uuid,
    /// Since when.
    pub(crate) since: DateTime<Utc>,
    /// Frames received that could be read.
    pub(crate) received: u64,
    /// Frames sent.
    pub(crate) sent: u64,
}

impl Live {
    /// Nobody is connected.
    pub fn new(metrics: Arc<Sockets>) -> Self {
        Self(Arc::new(Inner {
            registry: Registry::new(metrics.clone()),
            feed: Feed::default(),
            recorder: Recorder::new(),
            warned: Warned::default(),
            doubted: Notify::new(),
            joined: Notify::new(),
            deaths: AtomicU64::new(0),
            draining: watch::Sender::new(None),
            metrics,
        }))
    }

    /// Tells an agent of something, if it is connected here: `kind` is the frame's type, `body` what the REST API would
    /// show.
    pub fn push(&self, agent: Uuid, kind: &'static str, body: &impl Serialize) {
        if let Some(peer) = self.0.registry.agent(agent) {
            peer.mailbox.put(mailbox::Frame {
                kind: Kind::named(kind),
                text: frames::encode(kind, body),
            });
        }
    }

    /// Ends an agent's connection: its PAK is dead. What it has sent since is not taken.
    pub fn revoke(&self, agent: Uuid) {
        self.0.deaths.fetch_add(1, Ordering::SeqCst);
        if let Some(peer) = self.0.registry.agent(agent) {
            peer.end(Ending::Revoked);
        }
    }

    /// Something that the fleet view shows of this agent may have changed.
    pub fn fleet_changed(&self, agent: Uuid) {
        if self.is_watched() {
            self.0.feed.changed(agent);
        }
    }

    /// A PAK other than an agent's has died: looks which sockets were opened with one that nobody holds.
    pub fn doubt(&self) {
        self.0.deaths.fetch_add(1, Ordering::SeqCst);
        self.0.doubted.notify_one();
    }

    /// PAKs that have died in this process so far. To be read before one is looked up: see [`serve`].
    pub(crate) fn deaths(&self) -> u64 {
        self.0.deaths.load(Ordering::SeqCst)
    }

    /// The agents connected here.
    pub fn connected(&self) -> Vec<Uuid> {
        if self.0.metrics.agents.load(Ordering::Relaxed) == 0 {
            return Vec::new();
        }
        self.0.registry.agent_ids()
    }

    /// The agents connected here, and since when.
    pub(crate) fn connected_since(&self) -> HashMap<Uuid, DateTime<Utc>> {
        let agents = self.0.registry.agents();
        agents
            .into_iter()
            .map(|(id, peer)| (id, peer.since))
            .collect()
    }

    /// Every agent's socket, the longest connected first, and the number of stacks' subscribers.
    pub(crate) fn connections(&self) -> (Vec<Connected>, u64) {
        let mut agents: Vec<Connected> = self
            .0
            .registry
            .agents()
            .into_iter()
            .map(|(agent, peer)| Connected {
                agent,
                since: peer.since,
                received: peer.received.load(Ordering::Relaxed),
                sent: peer.sent.load(Ordering::Relaxed),
            })
            .collect();
        agents.sort_by_key(|connected| (connected.since, connected.agent));
        let subscribers = self.0.metrics.live_subscribers.load(Ordering::Relaxed);
        (agents, subscribers)
    }

    /// Begins to close every socket, so that all have ended well before `grace` is over.
    pub fn drain(&self, grace: Duration) {
        let share = grace.mul_f64(SHARE);
        let sockets = self.0.registry.all().len() as f64;
        self.0.draining.send_replace(Some(Drain {
            spread: Duration::from_secs_f64(sockets / CLOSED_PER_SECOND).min(share),
            wait: CLOSE_WAIT.min(share),
        }));
    }

    /// Whether sockets are being closed, so that none is opened any more.
    pub(crate) fn is_draining(&self) -> bool {
        self.0.draining.borrow().is_some()
    }

    /// Waits until the telemetry taken so far is stored, or cannot be.
    pub async fn stored(&self) {
        self.0.recorder.stored().await;
    }

    /// Whether the fleet has subscribers.
    fn is_watched(&self) -> bool {
        self.0.metrics.fleet_subscribers.load(Ordering::Relaxed) > 0
    }

    /// Sends telemetry to the stack's subscribers. Without any, nothing is even built.
    fn fan_out(&self, stack: Uuid, kind: Kind, body: &impl Serialize) {
        let subscribers = self.0.registry.of_stack(stack);
        if subscribers.is_empty() {
            return;
        }
        let frame = frames::downlink(kind, body);
        for peer in subscribers {
            peer.mailbox.put(frame.clone());
        }
    }
}

/// Runs what works for all sockets together, for as long as the process lives.
pub fn spawn(app: &App) {
    tokio::spawn(recorder::record(app.clone()));
    tokio::spawn(feed::keep(app.clone()));
    tokio::spawn(recheck::keep(app.clone()));
}

//! WebSockets: the open sockets, the frames pushed to them, and the frames that agents send.
//!
//! ```text
//! handler --push--> mailbox -> socket -> agent
//! agent -> socket -> ingest -+-> store          (heartbeat, event, health: as by REST)
//!                            +-> mailboxes      (telemetry: the stack's subscribers)
//!                            +-> recorder       (telemetry: many rows, one statement)
//! feed: agents that changed -> one statement -> mailboxes of the fleet's subscribers
//! ```
//!
//! - One task per socket (`socket`) reads and writes. Other code puts frames into the socket's bounded mailbox and
//!   never waits. Pushes are hints, sent after the commit.
//! - Without sockets there is no work: the broker builds no frame and queries no fleet without subscribers.
//! - The death of a PAK closes its sockets: at once when this process did it (`revoke`), soon when another process did
//!   it (`credential_recheck`).
//! - A drain closes every socket, spread over a moment, and then waits until the received telemetry is stored.

mod connection_permit;
mod credential_recheck;
mod fleet_feed;
mod frames;
mod ingest;
mod outbound_queue;
mod registry;
mod socket;
mod telemetry_writer;
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
pub use connection_permit::PeerConnection;
pub(crate) use connection_permit::SocketPermit;
use fleet_feed::FleetFeed;
pub(crate) use fleet_feed::fill;
pub use frames::FrameKind;
pub(crate) use outbound_queue::QueueOwner;
use registry::{CloseReason, Registry};
pub(crate) use socket::{SocketClient, serve};
use telemetry_writer::TelemetryWriter;
use warned::WarningLimit;

/// The share of a drain's grace over which the closing is spread, and again for the peers' answers. Both together end
/// well before idle connections are closed.
const SHARE: f64 = 0.3;
/// The number of sockets that a drain closes per second, so that a fleet reconnects to the next instance at that rate.
const CLOSED_PER_SECOND: f64 = 500.0;
/// The longest time that a peer has to answer a close frame.
const CLOSE_WAIT: Duration = Duration::from_secs(5);

/// Handle to the sockets of this process. Cheap to clone.
#[derive(Clone, Debug)]
pub struct WebSockets(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    registry: Registry,
    feed: FleetFeed,
    telemetry_writer: TelemetryWriter,
    warned: WarningLimit,
    doubted: Notify,
    /// The signal that a socket has opened.
    joined: Notify,
    deaths: AtomicU64,
    draining: watch::Sender<Option<DrainState>>,
    metrics: Arc<Sockets>,
}

/// The schedule by which a drain closes sockets.
#[derive(Clone, Copy, Debug)]
struct DrainState {
    /// The time over which the closings are spread.
    spread: Duration,
    /// The time that each socket has to end.
    wait: Duration,
}

/// An agent's socket, as the admin sees it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ConnectedAgent {
    pub(crate) agent: Uuid,
    /// The time of the connection's opening.
    pub(crate) since: DateTime<Utc>,
    /// The number of received frames that could be read.
    pub(crate) received: u64,
    /// The number of frames sent.
    pub(crate) sent: u64,
}

impl WebSockets {
    /// Returns a handle without sockets.
    pub fn new(metrics: Arc<Sockets>) -> Self {
        Self(Arc::new(Inner {
            registry: Registry::new(metrics.clone()),
            feed: FleetFeed::default(),
            telemetry_writer: TelemetryWriter::new(),
            warned: WarningLimit::default(),
            doubted: Notify::new(),
            joined: Notify::new(),
            deaths: AtomicU64::new(0),
            draining: watch::Sender::new(None),
            metrics,
        }))
    }

    /// Sends a frame to an agent, if the agent is connected here. `kind` is the frame's type, `body` the resource as
    /// the REST API shows it.
    pub fn push(&self, agent: Uuid, kind: &'static str, body: &impl Serialize) {
        if let Some(peer) = self.0.registry.agent(agent) {
            peer.outbound_queue.put(outbound_queue::Frame {
                kind: FrameKind::named(kind),
                text: frames::encode(kind, body),
            });
        }
    }

    /// Ends an agent's connection because its PAK is dead. The broker ignores frames that the agent has sent since.
    pub fn revoke(&self, agent: Uuid) {
        self.0.deaths.fetch_add(1, Ordering::SeqCst);
        if let Some(peer) = self.0.registry.agent(agent) {
            peer.end(CloseReason::Revoked);
        }
    }

    /// Notes that the fleet view of this agent may have changed.
    pub fn fleet_changed(&self, agent: Uuid) {
        if self.is_watched() {
            self.0.feed.changed(agent);
        }
    }

    /// Rechecks the PAKs of all sockets, after a PAK other than an agent's has died.
    pub fn doubt(&self) {
        self.0.deaths.fetch_add(1, Ordering::SeqCst);
        self.0.doubted.notify_one();
    }

    /// Returns the number of PAKs that have died in this process. Read it before looking a PAK up: see [`serve`].
    pub(crate) fn deaths(&self) -> u64 {
        self.0.deaths.load(Ordering::SeqCst)
    }

    /// Returns the agents connected here.
    pub fn connected(&self) -> Vec<Uuid> {
        if self.0.metrics.agents.get() == 0 {
            return Vec::new();
        }
        self.0.registry.agent_ids()
    }

    /// Returns the agents connected here, each with the time of its connection.
    pub(crate) fn connected_since(&self) -> HashMap<Uuid, DateTime<Utc>> {
        let agents = self.0.registry.agents();
        agents
            .into_iter()
            .map(|(id, peer)| (id, peer.since))
            .collect()
    }

    /// Returns every agent's socket, the longest connected first, and the number of subscribers to stacks.
    pub(crate) fn connections(&self) -> (Vec<ConnectedAgent>, u64) {
        let mut agents: Vec<ConnectedAgent> = self
            .0
            .registry
            .agents()
            .into_iter()
            .map(|(agent, peer)| ConnectedAgent {
                agent,
                since: peer.since,
                received: peer.received.load(Ordering::Relaxed),
                sent: peer.sent.load(Ordering::Relaxed),
            })
            .collect();
        agents.sort_by_key(|connected| (connected.since, connected.agent));
        let subscribers = self.0.metrics.live_subscribers.get().cast_unsigned();
        (agents, subscribers)
    }

    /// Begins to close every socket, so that all have ended well before `grace` is over.
    pub fn drain(&self, grace: Duration) {
        let share = grace.mul_f64(SHARE);
        let sockets = self.0.registry.all().len() as f64;
        self.0.draining.send_replace(Some(DrainState {
            spread: Duration::from_secs_f64(sockets / CLOSED_PER_SECOND).min(share),
            wait: CLOSE_WAIT.min(share),
        }));
    }

    /// Returns true when a drain is closing the sockets; then no socket opens any more.
    pub(crate) fn is_draining(&self) -> bool {
        self.0.draining.borrow().is_some()
    }

    /// Waits until the telemetry received so far is stored, or has failed to be stored.
    pub async fn stored(&self) {
        self.0.telemetry_writer.stored().await;
    }

    /// Returns true when the fleet has subscribers.
    fn is_watched(&self) -> bool {
        self.0.metrics.fleet_subscribers.get() > 0
    }

    /// Sends telemetry to the stack's subscribers. Builds no frame without subscribers.
    fn fan_out(&self, stack: Uuid, kind: FrameKind, body: &impl Serialize) {
        let subscribers = self.0.registry.of_stack(stack);
        if subscribers.is_empty() {
            return;
        }
        let frame = frames::downlink(kind, body);
        for peer in subscribers {
            peer.outbound_queue.put(frame.clone());
        }
    }
}

/// Runs the tasks that all sockets share, for as long as the process lives.
pub fn spawn(app: &App) {
    tokio::spawn(telemetry_writer::record(app.clone()));
    tokio::spawn(fleet_feed::keep(app.clone()));
    tokio::spawn(credential_recheck::keep(app.clone()));
}

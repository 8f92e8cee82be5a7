//! The handle to the open sockets: pushes frames, ends sockets, notes changes. It knows nothing of the tasks, and waits
//! for none.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use chrono::{DateTime, Utc};
use serde::Serialize;
use tokio::sync::{Notify, watch};
use uuid::Uuid;

use super::fleet_changes::FleetChanges;
use super::frames::{self, Frame};
use super::registry::{CloseReason, Registry};
use super::telemetry_queue::TelemetryQueue;
use super::warned::WarningLimit;
use crate::metrics::frame_kind::FrameKind;
use crate::metrics::sockets::Sockets;
use crate::store::fleet::FleetRecord;

/// The share of a drain's grace over which the closing is spread, and again for the peers' answers. Both together end
/// well before idle connections are closed.
const SHARE: f64 = 0.3;
/// The number of sockets that a drain closes per second, so that a fleet reconnects to the next instance at that rate.
const CLOSED_PER_SECOND: f64 = 500.0;
/// The longest time that a peer has to answer a close frame.
pub(super) const CLOSE_WAIT: Duration = Duration::from_secs(5);

/// Handle to the sockets of this process. Cheap to clone.
#[derive(Clone, Debug)]
pub struct WebSockets(pub(super) Arc<Inner>);

#[derive(Debug)]
pub(super) struct Inner {
    pub(super) registry: Registry,
    pub(super) fleet_changes: FleetChanges,
    pub(super) telemetry_queue: TelemetryQueue,
    pub(super) warned: WarningLimit,
    /// The signal that a PAK other than an agent's has died.
    pub(super) doubted: Notify,
    /// The signal that a socket has opened.
    pub(super) joined: Notify,
    deaths: AtomicU64,
    pub(super) draining: watch::Sender<Option<DrainState>>,
    pub(super) metrics: Arc<Sockets>,
}

/// The schedule by which a drain closes sockets.
#[derive(Clone, Copy, Debug)]
pub(super) struct DrainState {
    /// The time over which the closings are spread.
    pub(super) spread: Duration,
    /// The time that each socket has to end.
    pub(super) wait: Duration,
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
            fleet_changes: FleetChanges::default(),
            telemetry_queue: TelemetryQueue::new(),
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
            peer.outbound_queue.put(Frame {
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
            self.0.fleet_changes.note(agent);
        }
    }

    /// Rechecks the PAKs of all sockets, after a PAK other than an agent's has died.
    pub fn doubt(&self) {
        self.0.deaths.fetch_add(1, Ordering::SeqCst);
        self.0.doubted.notify_one();
    }

    /// Returns the number of PAKs that have died in this process. Read it before looking a PAK up: see `socket::serve`.
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

    /// Adds to each record the time since which its agent is connected, because only this process knows it.
    pub(crate) fn fill(&self, records: &mut [FleetRecord]) {
        let agents = self.0.registry.agents();
        let connected: HashMap<Uuid, DateTime<Utc>> = agents
            .into_iter()
            .map(|(id, peer)| (id, peer.since))
            .collect();
        for record in records {
            record.connected(connected.get(&record.agent_id).copied());
        }
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
        self.0.telemetry_queue.stored().await;
    }

    /// Returns true when the fleet has subscribers.
    pub(super) fn is_watched(&self) -> bool {
        self.0.metrics.fleet_subscribers.get() > 0
    }

    /// Sends telemetry to the stack's subscribers. Builds no frame without subscribers.
    pub(super) fn fan_out(&self, stack: Uuid, kind: FrameKind, body: &impl Serialize) {
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

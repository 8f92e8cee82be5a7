//! Registry of every open WebSocket of this process, by agent, stack and fleet.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use chrono::{DateTime, Utc};
use tokio::sync::watch;
use tokio::time::Instant;
use uuid::Uuid;

use super::outbound_queue::{OutboundQueue, QueueOwner};
use crate::metrics::sockets::Sockets;
use crate::pak::PakHash;

/// Reason why the broker closes a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum CloseReason {
    /// The socket's PAK is revoked: no further frames are handled.
    Revoked,
    /// The same agent has opened a newer socket.
    Replaced,
    /// The broker drains.
    Draining,
}

/// An open socket.
#[derive(Debug)]
pub(super) struct Peer {
    /// Distinguishes the socket from earlier and later sockets of the same agent.
    number: u64,
    pub(super) whose: QueueOwner,
    /// Hash of the PAK that opened the socket.
    pub(super) hash: PakHash,
    pub(super) since: DateTime<Utc>,
    /// Frames that wait to be sent to the socket.
    pub(super) outbound_queue: OutboundQueue,
    /// Number of frames received that could be read.
    pub(super) received: AtomicU64,
    /// Number of frames sent.
    pub(super) sent: AtomicU64,
    ending: watch::Sender<Option<CloseReason>>,
    checked: Mutex<Instant>,
}

impl Peer {
    /// Ends the socket. The first reason stands.
    pub(super) fn end(&self, why: CloseReason) {
        self.ending.send_if_modified(|ending| {
            let first = ending.is_none();
            ending.get_or_insert(why);
            first
        });
    }

    /// Returns a receiver of the reason to end.
    pub(super) fn ending(&self) -> watch::Receiver<Option<CloseReason>> {
        self.ending.subscribe()
    }

    /// Returns true when the socket's PAK is known to be revoked.
    pub(super) fn is_revoked(&self) -> bool {
        *self.ending.borrow() == Some(CloseReason::Revoked)
    }

    /// Notes that the socket's PAK was found valid just now.
    pub(super) fn confirm(&self) {
        *self.checked() = Instant::now();
    }

    /// Returns the moment at which the socket's PAK was last found valid.
    pub(super) fn confirmed(&self) -> Instant {
        *self.checked()
    }

    fn checked(&self) -> MutexGuard<'_, Instant> {
        self.checked.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The open sockets behind one lock, which is held for map operations only.
#[derive(Debug)]
pub(super) struct Registry {
    peers: Mutex<Peers>,
    next: AtomicU64,
    metrics: Arc<Sockets>,
}

#[derive(Debug, Default)]
struct Peers {
    agents: HashMap<Uuid, Arc<Peer>>,
    /// Subscribers by stack; a stack without subscribers has no entry.
    stacks: HashMap<Uuid, Vec<Arc<Peer>>>,
    fleet: Vec<Arc<Peer>>,
}

impl Registry {
    pub(super) fn new(metrics: Arc<Sockets>) -> Self {
        Self {
            peers: Mutex::default(),
            next: AtomicU64::new(0),
            metrics,
        }
    }

    /// Adds a socket, and ends the agent's earlier socket.
    pub(super) fn join(&self, whose: QueueOwner, hash: PakHash) -> Arc<Peer> {
        let peer = Arc::new(Peer {
            number: self.next.fetch_add(1, Ordering::Relaxed),
            whose,
            hash,
            since: Utc::now(),
            outbound_queue: OutboundQueue::new(whose),
            received: AtomicU64::new(0),
            sent: AtomicU64::new(0),
            ending: watch::Sender::new(None),
            checked: Mutex::new(Instant::now()),
        });
        let mut peers = self.lock();
        let replaced = match whose {
            QueueOwner::Agent(id) => peers.agents.insert(id, peer.clone()),
            QueueOwner::Stack(id) => {
                peers.stacks.entry(id).or_default().push(peer.clone());
                None
            }
            QueueOwner::Fleet => {
                peers.fleet.push(peer.clone());
                None
            }
        };
        self.count(&peers);
        drop(peers);
        if let Some(replaced) = replaced {
            replaced.end(CloseReason::Replaced);
        }
        peer
    }

    /// Removes a socket; an agent's newer socket stays.
    pub(super) fn leave(&self, peer: &Peer) {
        let mut peers = self.lock();
        match peer.whose {
            QueueOwner::Agent(id) => {
                if peers
                    .agents
                    .get(&id)
                    .is_some_and(|known| known.number == peer.number)
                {
                    peers.agents.remove(&id);
                }
            }
            QueueOwner::Stack(id) => {
                if let Some(subscribers) = peers.stacks.get_mut(&id) {
                    subscribers.retain(|known| known.number != peer.number);
                    if subscribers.is_empty() {
                        peers.stacks.remove(&id);
                    }
                }
            }
            QueueOwner::Fleet => peers.fleet.retain(|known| known.number != peer.number),
        }
        self.count(&peers);
    }

    pub(super) fn agent(&self, id: Uuid) -> Option<Arc<Peer>> {
        self.lock().agents.get(&id).cloned()
    }

    pub(super) fn agents(&self) -> Vec<(Uuid, Arc<Peer>)> {
        let peers = self.lock();
        peers
            .agents
            .iter()
            .map(|(id, peer)| (*id, peer.clone()))
            .collect()
    }

    pub(super) fn agent_ids(&self) -> Vec<Uuid> {
        self.lock().agents.keys().copied().collect()
    }

    pub(super) fn of_stack(&self, id: Uuid) -> Vec<Arc<Peer>> {
        self.lock().stacks.get(&id).cloned().unwrap_or_default()
    }

    pub(super) fn of_fleet(&self) -> Vec<Arc<Peer>> {
        self.lock().fleet.clone()
    }

    pub(super) fn is_empty(&self) -> bool {
        let peers = self.lock();
        peers.agents.is_empty() && peers.stacks.is_empty() && peers.fleet.is_empty()
    }

    pub(super) fn all(&self) -> Vec<Arc<Peer>> {
        let peers = self.lock();
        let stacks = peers.stacks.values().flatten();
        peers
            .agents
            .values()
            .chain(stacks)
            .chain(&peers.fleet)
            .cloned()
            .collect()
    }

    fn count(&self, peers: &Peers) {
        let live: usize = peers.stacks.values().map(Vec::len).sum();
        self.metrics.agents.set(peers.agents.len() as i64);
        self.metrics.live_subscribers.set(live as i64);
        self.metrics.fleet_subscribers.set(peers.fleet.len() as i64);
    }

    fn lock(&self) -> MutexGuard<'_, Peers> {
        // Nothing under this lock can panic half-way.
        self.peers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use crate::metrics::Metrics;

    fn registry() -> Registry {
        Registry::new(Metrics::new().unwrap().sockets)
    }

    fn hash() -> PakHash {
        PakHash::of("a_b_c").unwrap()
    }

    #[test]
    fn a_new_connection_of_an_agent_replaces_the_old_and_outlives_its_leaving() {
        let registry = registry();
        let id = Uuid::new_v4();
        let old = registry.join(QueueOwner::Agent(id), hash());
        let new = registry.join(QueueOwner::Agent(id), hash());
        assert_eq!(*old.ending().borrow(), Some(CloseReason::Replaced));
        registry.leave(&old);
        assert_eq!(registry.agent(id).unwrap().number, new.number);
        registry.leave(&new);
        assert!(registry.agent(id).is_none());
        assert!(registry.all().is_empty());
    }

    #[test]
    fn fault_59_a_stack_is_forgotten_with_its_last_subscriber() {
        let registry = registry();
        let stack = Uuid::new_v4();
        let one = registry.join(QueueOwner::Stack(stack), hash());
        let two = registry.join(QueueOwner::Stack(stack), hash());
        registry.leave(&one);
        assert_eq!(registry.of_stack(stack).len(), 1);
        registry.leave(&two);
        assert!(registry.lock().stacks.is_empty());
        assert_eq!(registry.metrics.live_subscribers.get(), 0);
    }

    #[test]
    fn the_first_reason_to_end_stands() {
        let registry = registry();
        let peer = registry.join(QueueOwner::Fleet, hash());
        peer.end(CloseReason::Revoked);
        peer.end(CloseReason::Draining);
        assert!(peer.is_revoked());
    }
}

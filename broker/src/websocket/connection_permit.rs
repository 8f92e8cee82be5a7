//! Connection slots of a broker, and the seat of a WebSocket, which keeps its connection's slot.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::auth::ClientAddress;

/// A connection's permit, with the counter of open connections.
#[derive(Debug)]
struct ConnectionPermit {
    _permit: OwnedSemaphorePermit,
    open: Arc<AtomicU32>,
}

impl Drop for ConnectionPermit {
    fn drop(&mut self) {
        self.open.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Slot of a request's connection; every request has it in its extensions.
#[derive(Clone, Debug)]
pub struct PeerConnection {
    connection: Arc<ConnectionPermit>,
    sockets: Arc<Semaphore>,
    client: ClientAddress,
}

/// Slot that is kept as long as a WebSocket lives.
#[derive(Debug)]
pub(crate) struct SocketPermit {
    _connection: Arc<ConnectionPermit>,
    _socket: OwnedSemaphorePermit,
}

impl PeerConnection {
    /// Creates a slot of a client from the connection's permit, the counter of open connections and the limit of
    /// WebSockets.
    pub fn new(
        permit: OwnedSemaphorePermit,
        open: Arc<AtomicU32>,
        sockets: Arc<Semaphore>,
        client: ClientAddress,
    ) -> Self {
        open.fetch_add(1, Ordering::Relaxed);
        Self {
            connection: Arc::new(ConnectionPermit {
                _permit: permit,
                open,
            }),
            sockets,
            client,
        }
    }

    /// Returns the client's address.
    pub fn client(&self) -> ClientAddress {
        self.client
    }

    /// Keeps the slot for a WebSocket. Returns `None` when the limit of WebSockets is reached; the remaining slots are
    /// for requests, otherwise a fleet of agents could shut out the probes.
    pub(crate) fn keep(&self) -> Option<SocketPermit> {
        Some(SocketPermit {
            _connection: self.connection.clone(),
            _socket: self.sockets.clone().try_acquire_owned().ok()?,
        })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn a_socket_keeps_its_connections_place_and_only_so_many_may() {
        let (room, sockets) = (Arc::new(Semaphore::new(4)), Arc::new(Semaphore::new(3)));
        let open = Arc::new(AtomicU32::new(0));
        let connect = || {
            let permit = room.clone().try_acquire_owned().unwrap();
            PeerConnection::new(permit, open.clone(), sockets.clone(), ClientAddress::Local)
        };
        let mut seats: Vec<SocketPermit> = (0..3).map(|_| connect().keep().unwrap()).collect();
        // The connections' own handles are dropped; their permits are kept by the seats.
        assert_eq!(room.available_permits(), 1);
        assert_eq!(open.load(Ordering::Relaxed), 3);
        let request = connect();
        assert!(request.keep().is_none(), "the last place is for requests");
        drop(request);
        seats.pop();
        assert_eq!(room.available_permits(), 2);
        assert_eq!(open.load(Ordering::Relaxed), 2);
        assert!(connect().keep().is_some());
    }
}

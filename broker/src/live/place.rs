//! A connection's place among all that a broker may hold, and how a WebSocket keeps it.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// What every request finds in its extensions: the place of the connection it came on.
#[derive(Clone, Debug)]
pub struct Place {
    connection: Arc<OwnedSemaphorePermit>,
    sockets: Arc<Semaphore>,
}

/// A place kept for as long as a WebSocket lives.
#[derive(Debug)]
pub(crate) struct Seat {
    _connection: Arc<OwnedSemaphorePermit>,
    _socket: OwnedSemaphorePermit,
}

impl Place {
    /// A connection's permit, and what counts those of them that are WebSockets.
    pub fn new(connection: OwnedSemaphorePermit, sockets: Arc<Semaphore>) -> Self {
        Self {
            connection: Arc::new(connection),
            sockets,
        }
    }

    /// Keeps the place for a WebSocket. `None`: as many as there may be are open; the rest is for requests, or a fleet of
    /// agents could shut out the probes.
    pub(crate) fn keep(&self) -> Option<Seat> {
        Some(Seat {
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
        let connect = || Place::new(room.clone().try_acquire_owned().unwrap(), sockets.clone());
        let mut seats: Vec<Seat> = (0..3).map(|_| connect().keep().unwrap()).collect();
        // The connections' own ends are gone; their places are not.
        assert_eq!(room.available_permits(), 1);
        let request = connect();
        assert!(request.keep().is_none(), "the last place is for requests");
        drop(request);
        seats.pop();
        assert_eq!(room.available_permits(), 2);
        assert!(connect().keep().is_some());
    }
}

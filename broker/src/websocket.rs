//! WebSockets: the open sockets, the frames pushed to them, and the frames that agents send.
//!
//! ```text
//! API handler --handle--> outbound queue -> socket -> agent
//! agent -> socket -> ingest -+-> store               (heartbeat, event, health: as by REST)
//!                            +-> outbound queues     (telemetry: the stack's subscribers)
//!                            +-> telemetry writer    (telemetry: many rows, one statement)
//! fleet feed: agents that changed -> one statement -> outbound queues of the fleet's subscribers
//! ```
//!
//! - One task per socket (`socket`) reads and writes. Other code puts frames into the socket's bounded queue through
//!   the [`handle`] and never waits. Pushes are hints, sent after the commit.
//! - Without sockets there is no work: the broker builds no frame and queries no fleet without subscribers.
//! - The death of a PAK closes its sockets: at once when this process did it (`revoke`), soon when another process did
//!   it (`credential_recheck`).
//! - A drain closes every socket, spread over a moment, and then waits until the received telemetry is stored.

pub(crate) mod connection_permit;
mod credential_recheck;
mod fleet_changes;
mod fleet_feed;
mod frames;
pub mod handle;
mod ingest;
pub(crate) mod outbound_queue;
mod registry;
pub(crate) mod socket;
mod telemetry_queue;
mod telemetry_writer;
mod warned;

use crate::app::App;
pub(crate) use frames::check_parsing;

/// Runs the tasks that all sockets share, for as long as the process lives.
pub fn spawn(app: &App) {
    tokio::spawn(telemetry_writer::record(app.clone()));
    tokio::spawn(fleet_feed::keep(app.clone()));
    tokio::spawn(credential_recheck::keep(app.clone()));
}

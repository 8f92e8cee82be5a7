//! Who is connected by WebSocket, and what is pushed to them.
//!
//! Pushes are hints: sent after the commit, without waiting, dropped when a connection is slow. Everything here may be
//! called from any thread, a blocking one included.

use std::sync::Arc;

use serde::Serialize;
use uuid::Uuid;

/// Handle to the connections of this process. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Live(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {}

impl Live {
    /// Nobody is connected.
    pub fn new() -> Self {
        Self::default()
    }

    /// Tells an agent of something, if it is connected here: `kind` is the frame's type, `body` what the REST API would
    /// show.
    pub fn push(&self, _agent: Uuid, _kind: &'static str, _body: &impl Serialize) {}

    /// Ends an agent's connection: its PAK is dead.
    pub fn revoke(&self, _agent: Uuid) {}

    /// Something that the fleet view shows of this agent may have changed.
    pub fn fleet_changed(&self, _agent: Uuid) {}
}

//! Reports of the instances to the fleet.

use crate::lifecycle::{Event, InstanceId};
use brokkr_tenant::TenantName;
use brokkr_tenant::instance_protocol::Isolation;
use tokio::sync::mpsc;

/// A report about one tenant.
#[derive(Debug)]
pub(crate) struct InstanceEvent {
    pub(crate) tenant: TenantName,
    pub(crate) what: EventKind,
}

/// Content of a report.
#[derive(Debug)]
pub(crate) enum EventKind {
    /// An event for the lifecycle.
    Life(Event),
    /// There is no user id for the tenant, for this reason.
    NoUid(String),
    /// The instance's own `STATUS=`.
    Status(InstanceId, String),
    /// Files that the instance executes and that are no longer on disk.
    DeletedMaps(InstanceId, Vec<String>),
    /// The layers of the instance's sandbox.
    Isolation(InstanceId, Isolation),
    /// The last log lines of an instance that has ended.
    LastWords(InstanceId, Vec<String>),
}

/// Sends one tenant's reports. The queue is bounded: when the fleet is behind, the sender waits and loses nothing.
#[derive(Debug, Clone)]
pub(crate) struct EventSender {
    tenant: TenantName,
    sender: mpsc::Sender<InstanceEvent>,
}

impl EventSender {
    pub(crate) fn new(tenant: TenantName, sender: mpsc::Sender<InstanceEvent>) -> Self {
        Self { tenant, sender }
    }

    pub(crate) fn tenant(&self) -> &TenantName {
        &self.tenant
    }

    /// Sends a report. Returns false when the fleet no longer receives.
    pub(crate) async fn send(&self, what: EventKind) -> bool {
        self.sender
            .send(InstanceEvent {
                tenant: self.tenant.clone(),
                what,
            })
            .await
            .is_ok()
    }

    pub(crate) async fn life(&self, event: Event) -> bool {
        self.send(EventKind::Life(event)).await
    }
}

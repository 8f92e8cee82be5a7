//! Reports of the instances to the fleet.

use crate::lifecycle::{Event, InstanceId};
use brokkr_tenant::TenantName;
use tokio::sync::mpsc;

/// A report about one tenant.
#[derive(Debug)]
pub(crate) struct Report {
    pub(crate) tenant: TenantName,
    pub(crate) what: What,
}

/// Content of a report.
#[derive(Debug)]
pub(crate) enum What {
    /// An event for the lifecycle.
    Life(Event),
    /// The instance's own `STATUS=`.
    Status(InstanceId, String),
    /// Files that the instance executes and that are no longer on disk.
    DeletedMaps(InstanceId, Vec<String>),
    /// The last log lines of an instance that has ended.
    LastWords(InstanceId, Vec<String>),
}

/// Sends one tenant's reports. The queue is bounded: when the fleet is behind, the sender waits and loses nothing.
#[derive(Debug, Clone)]
pub(crate) struct Reporter {
    tenant: TenantName,
    sender: mpsc::Sender<Report>,
}

impl Reporter {
    pub(crate) fn new(tenant: TenantName, sender: mpsc::Sender<Report>) -> Self {
        Self { tenant, sender }
    }

    pub(crate) fn tenant(&self) -> &TenantName {
        &self.tenant
    }

    /// Sends a report. Returns false when the fleet no longer receives.
    pub(crate) async fn send(&self, what: What) -> bool {
        self.sender
            .send(Report {
                tenant: self.tenant.clone(),
                what,
            })
            .await
            .is_ok()
    }

    pub(crate) async fn life(&self, event: Event) -> bool {
        self.send(What::Life(event)).await
    }
}

//! What the instances report to the fleet.

use crate::lifecycle::{Event, InstanceId};
use brokkr_tenant::TenantName;
use tokio::sync::mpsc;

/// One report.
#[derive(Debug)]
pub(crate) struct Report {
    pub(crate) tenant: TenantName,
    pub(crate) what: What,
}

/// What it says.
#[derive(Debug)]
pub(crate) enum What {
    /// A fact for the lifecycle.
    Life(Event),
    /// The instance's own `STATUS=`.
    Status(InstanceId, String),
    /// Files that the instance executes and that are no longer on disk.
    DeletedMaps(InstanceId, Vec<String>),
    /// The last log lines of an instance that has ended.
    LastWords(InstanceId, Vec<String>),
}

/// Sends one tenant's reports. The queue is bounded: when the fleet is behind, the reporter waits; nothing is lost.
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

    /// False once nobody listens any more.
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

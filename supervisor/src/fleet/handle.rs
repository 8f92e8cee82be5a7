//! Connects the rest of the process to the fleet: requests, each answered once, and snapshots.

use crate::status::Snapshot;
use brokkr_tenant::TenantName;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::Arc;
use tokio::sync::{mpsc, oneshot, watch};

/// An operator's order for a tenant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Order {
    /// Run the tenant; in `backoff`, try at once.
    Start,
    /// Drain the tenant and keep it stopped, over restarts of the supervisor too.
    Stop,
    /// Replace the tenant's instance by overlap.
    Restart,
}

/// The tenants that an order is for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Selection {
    /// Every tenant that has a file.
    All,
    /// The tenants with these names.
    Names(Vec<TenantName>),
}

/// Result of an order for one tenant, once the tenant has settled.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    /// The tenant.
    pub tenant: TenantName,
    /// True when the order was carried out.
    pub done: bool,
    /// The state in which the tenant settled, with the reason.
    pub message: String,
}

/// Changes and problems that a reload found.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReloadReport {
    /// Tenants whose file is new.
    pub added: Vec<String>,
    /// Tenants whose effective configuration changed.
    pub changed: Vec<String>,
    /// Tenants whose file was removed.
    pub removed: Vec<String>,
    /// Every problem found. A problem with a place in a file begins `PATH:LINE:COLUMN: `.
    pub problems: Vec<String>,
    /// The problems that concern one tenant, by the tenant's name.
    #[serde(default)]
    pub of_tenants: BTreeMap<String, Vec<String>>,
}

impl ReloadReport {
    /// Adds a problem of one tenant.
    pub(super) fn complain(&mut self, tenant: &TenantName, problem: String) {
        self.problems.push(problem.clone());
        let of_tenant = self.of_tenants.entry(tenant.to_string());
        of_tenant.or_default().push(problem);
    }

    /// Returns the problems that concern no tenant, such as those of the folder.
    pub fn general(&self) -> impl Iterator<Item = &String> {
        let of_tenants: Vec<&String> = self.of_tenants.values().flatten().collect();
        let all = self.problems.iter();
        all.filter(move |problem| !of_tenants.contains(problem))
    }
}

/// A message to the fleet.
#[derive(Debug)]
pub enum Request {
    /// Carry out an order and answer when the tenants have settled.
    Order {
        /// The tenants the order is for.
        selection: Selection,
        /// The order.
        order: Order,
        /// True when a restart goes on after a tenant that could not be restarted.
        keep_going: bool,
        /// Where the outcomes are sent.
        reply: oneshot::Sender<Result<Vec<Outcome>, RequestError>>,
    },
    /// Read every file again and answer when all tenants have settled.
    Reload {
        /// Carry out removals that were held because there were so many at once.
        confirm_removals: bool,
        /// Where the report is sent.
        reply: oneshot::Sender<ReloadReport>,
    },
    /// Give a tenant's role a new password, and answer with the role's name.
    RotateCredentials {
        /// The tenant.
        tenant: TenantName,
        /// Where the role's name is sent, or the reason why its password stays.
        reply: oneshot::Sender<Result<String, String>>,
    },
    /// Answer in the next turn of the loop, which shows that the fleet is alive.
    Turn {
        /// Where the answer is sent.
        reply: oneshot::Sender<()>,
    },
}

/// Reason why a request was not carried out.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RequestError {
    /// The name belongs to no file and no instance.
    #[error("there is no tenant {0}: no such file in tenants_dir")]
    UnknownTenant(TenantName),
    /// The supervisor is ending.
    #[error(
        "the supervisor stopped, or went on as another program, before all of it was done: look at `status`, and ask again for the rest"
    )]
    Stopping,
}

/// A handle to the fleet, cheap to clone.
#[derive(Debug, Clone)]
pub struct Handle {
    snapshot: watch::Receiver<Arc<Snapshot>>,
    requests: mpsc::Sender<Request>,
}

impl Handle {
    /// Returns a handle over the fleet's channels.
    pub fn new(snapshot: watch::Receiver<Arc<Snapshot>>, requests: mpsc::Sender<Request>) -> Self {
        Self { snapshot, requests }
    }

    /// Returns the latest snapshot, with ages computed as of now.
    pub fn snapshot(&self) -> Snapshot {
        let latest = self.snapshot.borrow().clone();
        latest.aged()
    }

    /// Returns a watch on the snapshots.
    pub fn watch(&self) -> watch::Receiver<Arc<Snapshot>> {
        self.snapshot.clone()
    }

    /// Carries out `order` and waits until the tenants have settled. A restart goes through its tenants a few at a
    /// time, and stops at the first that could not be restarted, unless `keep_going` is true.
    pub async fn order(
        &self,
        selection: Selection,
        order: Order,
        keep_going: bool,
    ) -> Result<Vec<Outcome>, RequestError> {
        let (reply, answer) = oneshot::channel();
        self.requests
            .send(Request::Order {
                selection,
                order,
                keep_going,
                reply,
            })
            .await
            .map_err(|_| RequestError::Stopping)?;
        answer.await.map_err(|_| RequestError::Stopping)?
    }

    /// Gives the tenant's role a new password, and returns the role's name, or the reason why its password stays.
    pub async fn rotate_credentials(
        &self,
        tenant: TenantName,
    ) -> Result<Result<String, String>, RequestError> {
        let (reply, answer) = oneshot::channel();
        self.requests
            .send(Request::RotateCredentials { tenant, reply })
            .await
            .map_err(|_| RequestError::Stopping)?;
        answer.await.map_err(|_| RequestError::Stopping)
    }

    /// Waits for the next turn of the fleet's loop.
    pub async fn turned(&self) -> Result<(), RequestError> {
        let (reply, answer) = oneshot::channel();
        self.requests
            .send(Request::Turn { reply })
            .await
            .map_err(|_| RequestError::Stopping)?;
        answer.await.map_err(|_| RequestError::Stopping)
    }

    /// Reads every file again and waits until all tenants have settled.
    pub async fn reload(&self, confirm_removals: bool) -> Result<ReloadReport, RequestError> {
        let (reply, answer) = oneshot::channel();
        self.requests
            .send(Request::Reload {
                confirm_removals,
                reply,
            })
            .await
            .map_err(|_| RequestError::Stopping)?;
        answer.await.map_err(|_| RequestError::Stopping)
    }
}

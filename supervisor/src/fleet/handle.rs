//! How the rest of the process talks to the fleet: by message, answered once; and by snapshot.

use crate::status::Snapshot;
use brokkr_tenant::TenantName;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::Arc;
use tokio::sync::{mpsc, oneshot, watch};

/// What an operator may ask of a tenant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Order {
    /// Run it; try at once if it is in `backoff`.
    Start,
    /// Drain it and keep it stopped, over restarts of the supervisor too.
    Stop,
    /// Replace its instance by overlap.
    Restart,
}

/// Which tenants an order is for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Selection {
    /// Every tenant that has a file.
    All,
    /// These.
    Names(Vec<TenantName>),
}

/// How an order ended for one tenant, once it had settled.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    /// The tenant.
    pub tenant: TenantName,
    /// Whether what was asked for is so now.
    pub done: bool,
    /// The state it settled in, and why.
    pub message: String,
}

/// What a reload changed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReloadReport {
    /// Tenants that were not there before.
    pub added: Vec<String>,
    /// Tenants whose effective configuration changed.
    pub changed: Vec<String>,
    /// Tenants whose file has gone.
    pub removed: Vec<String>,
    /// Every problem found, each beginning `PATH:LINE:COLUMN: ` where it has a place.
    pub problems: Vec<String>,
    /// Those of them that are about one tenant, by its name.
    #[serde(default)]
    pub of_tenants: BTreeMap<String, Vec<String>>,
}

impl ReloadReport {
    /// Note what is wrong with one tenant.
    pub(super) fn complain(&mut self, tenant: &TenantName, problem: String) {
        self.problems.push(problem.clone());
        let of_tenant = self.of_tenants.entry(tenant.to_string());
        of_tenant.or_default().push(problem);
    }

    /// The problems that are about no tenant: of the folder, of files that are no tenant's.
    pub fn general(&self) -> impl Iterator<Item = &String> {
        let of_tenants: Vec<&String> = self.of_tenants.values().flatten().collect();
        let all = self.problems.iter();
        all.filter(move |problem| !of_tenants.contains(problem))
    }
}

/// A message to the fleet.
#[derive(Debug)]
pub enum Request {
    /// Carry out an order and answer when it has settled.
    Order {
        /// For whom.
        selection: Selection,
        /// What.
        order: Order,
        /// A restart goes on after a tenant that could not be restarted.
        keep_going: bool,
        /// The answer.
        reply: oneshot::Sender<Result<Vec<Outcome>, RequestError>>,
    },
    /// Read every file again and answer when all has settled.
    Reload {
        /// Carry out removals that were held because they were so many.
        confirm_removals: bool,
        /// The answer.
        reply: oneshot::Sender<ReloadReport>,
    },
    /// Answer at the next turn: the fleet still turns.
    Turn {
        /// The answer.
        reply: oneshot::Sender<()>,
    },
}

/// Why a request was not carried out.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RequestError {
    /// No file and no instance of that name.
    #[error("there is no tenant {0}: no such file in tenants_dir")]
    UnknownTenant(TenantName),
    /// The supervisor is ending.
    #[error(
        "the supervisor stopped, or went on as another program, before all of it was done: look at `status`, and ask again for the rest"
    )]
    Stopping,
}

/// A cheap handle to the fleet.
#[derive(Debug, Clone)]
pub struct Handle {
    snapshot: watch::Receiver<Arc<Snapshot>>,
    requests: mpsc::Sender<Request>,
}

impl Handle {
    /// A handle made of the two channels the fleet holds the other ends of.
    pub fn new(snapshot: watch::Receiver<Arc<Snapshot>>, requests: mpsc::Sender<Request>) -> Self {
        Self { snapshot, requests }
    }

    /// The latest picture, with its ages as of now.
    pub fn snapshot(&self) -> Snapshot {
        let latest = self.snapshot.borrow().clone();
        latest.aged()
    }

    /// The latest picture, and to be woken by each newer one.
    pub fn watch(&self) -> watch::Receiver<Arc<Snapshot>> {
        self.snapshot.clone()
    }

    /// Carries out `order` and waits until it has settled. A restart goes through its tenants a few at a time, and stops
    /// at the first that could not be restarted unless told to keep going.
    ///
    /// # Errors
    /// When a named tenant does not exist or the supervisor is ending.
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

    /// Waits until the fleet has turned once more.
    ///
    /// # Errors
    /// When it has ended.
    pub async fn turned(&self) -> Result<(), RequestError> {
        let (reply, answer) = oneshot::channel();
        self.requests
            .send(Request::Turn { reply })
            .await
            .map_err(|_| RequestError::Stopping)?;
        answer.await.map_err(|_| RequestError::Stopping)
    }

    /// Reads every file again and waits until all has settled.
    ///
    /// # Errors
    /// When the supervisor is ending.
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

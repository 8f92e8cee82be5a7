//! Starts services again later if they fail, because a supervisor that holds brokers must not exit for them.

use crate::config::SupervisorConfig;
use crate::control::{ControlAccess, ControlServer};
use crate::logs::Hub;
use crate::servers::Servers;
use crate::servers::provision::{Provisioner, Sweeper};
use crate::status::Snapshot;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::JoinSet;

/// Time between two attempts.
const AGAIN: Duration = Duration::from_secs(5);

/// The control socket, served now or as soon as possible. Dropping it ends the service.
#[derive(Debug)]
pub(super) struct ControlSocketTask {
    control: Option<ControlServer>,
    /// Task that serves later; dropping a `JoinSet` ends its tasks.
    _later: JoinSet<()>,
}

impl ControlSocketTask {
    /// Returns a notice for the operator about the control socket.
    pub(super) fn notice(&self) -> Option<&str> {
        self.control.as_ref().and_then(ControlServer::notice)
    }
}

/// Serves the control socket; a supervisor that `holds` brokers may serve it later.
pub(super) async fn reach(
    config: &Arc<SupervisorConfig>,
    access: ControlAccess,
    logs: Hub,
    holds: bool,
) -> Result<ControlSocketTask, String> {
    let mut later = JoinSet::new();
    let control = match ControlServer::start(config, access.clone(), logs.clone()).await {
        Ok(control) => Some(control),
        Err(error) if holds => {
            tracing::error!(
                "control socket: {error}; brokers are supervised, no command is answered, and it is tried again"
            );
            later.spawn(serve_later(config.clone(), access, logs));
            None
        }
        Err(error) => return Err(format!("control socket: {error}")),
    };
    Ok(ControlSocketTask {
        control,
        _later: later,
    })
}

/// Tries until the control socket is served, then serves until dropped.
async fn serve_later(config: Arc<SupervisorConfig>, access: ControlAccess, logs: Hub) {
    loop {
        tokio::time::sleep(AGAIN).await;
        // The error was already logged, and the cause may last long.
        if let Ok(_served) = ControlServer::start(&config, access.clone(), logs.clone()).await {
            tracing::info!("control socket: commands are answered again");
            std::future::pending::<()>().await;
        }
    }
}

/// Starts the probers; for a supervisor that `holds` brokers they may begin to probe later.
pub(super) fn probe(holds: bool) -> Result<Servers, String> {
    let prefix = brokkr_pg::application_prefix().to_owned();
    let servers = match holds {
        true => Servers::start_patiently(prefix),
        false => Servers::start(prefix),
    };
    servers.map_err(|error| format!("cannot start the probers: {error}"))
}

/// Starts the thread that provisions roles, if roles are to be provisioned.
pub(super) fn provisioner(
    config: &SupervisorConfig,
    snapshots: watch::Receiver<Arc<Snapshot>>,
) -> Result<Option<Provisioner>, String> {
    let Some(provision) = &config.provision else {
        return Ok(None);
    };
    let sweeper = Sweeper {
        admin: provision.admin.clone(),
        limits: provision.limits,
        prefix: brokkr_pg::application_prefix().to_owned(),
        snapshots,
    };
    let started = Provisioner::start(provision.exclusive, sweeper);
    started
        .map(Some)
        .map_err(|error| format!("cannot start the thread that provisions roles: {error}"))
}

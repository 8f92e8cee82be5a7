//! Watches the runtime folder, because cleanup programs and people remove files below `/run`.
//!
//! Without the folder no command reaches the supervisor, and no broker can be started or probed. The supervisor creates
//! the folder again and executes its own program anew, which replaces by overlap each broker whose private socket was
//! removed. Under the unit the supervisor may not create folders in `/run`: there systemd creates the folder
//! (`RuntimeDirectory=`) when it starts the next supervisor, which takes over every broker.

use super::runtime_dirs::RuntimeDirLock;
use crate::config::SupervisorConfig;
use crate::fleet::handover::ExitRequest;
use crate::instance::successor::Successor;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio::time::MissedTickBehavior;

/// Interval between two checks of the folder, the same as for the control socket.
const LOOK: Duration = Duration::from_secs(3);

pub(super) struct Surroundings {
    pub(super) config: Arc<SupervisorConfig>,
    /// The supervisor's own file, which a successor needs too.
    pub(super) file: PathBuf,
    pub(super) taken: Arc<Mutex<RuntimeDirLock>>,
    /// Problem for `status` to show.
    pub(super) remark: watch::Sender<Option<String>>,
    pub(super) quit: mpsc::Sender<ExitRequest>,
}

impl Surroundings {
    /// Checks the folder periodically, and restores it when parts are missing.
    pub(super) async fn look_after(self) {
        let mut due = tokio::time::interval(LOOK);
        due.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            due.tick().await;
            let whole = {
                let taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
                taken.is_whole(&self.config)
            };
            if !whole {
                self.mend().await;
            }
        }
    }

    async fn mend(&self) {
        let folder = self.config.runtime_dir.display();
        let (config, taken) = (self.config.clone(), self.taken.clone());
        let repair = move || {
            let mut taken = taken.lock().unwrap_or_else(PoisonError::into_inner);
            taken.repair(&config)
        };
        let repaired = tokio::task::spawn_blocking(repair).await;
        match repaired.unwrap_or_else(|panic| Err(panic.to_string())) {
            Ok(()) => {
                tracing::warn!(
                    "{folder} had been removed, and is there again: brokers whose private sockets went with it are replaced"
                );
                self.remark.send_replace(None);
                // The brokers' locks and sockets, and those of an embedded server, are gone too. A new supervisor finds
                // them missing and replaces the instances that it took over.
                let word = Successor::find(&self.file)
                    .map_or_else(ExitRequest::Refuse, ExitRequest::Succeed);
                let _ = self.quit.send(word).await;
            }
            Err(problem) if is_made_by_systemd(&self.config.runtime_dir) => {
                tracing::error!(
                    "{folder} has been removed, and only systemd can make it again ({problem}): every broker is left to the next supervisor, which systemd starts"
                );
                let _ = self.quit.send(ExitRequest::Leave).await;
            }
            Err(problem) => {
                let problem = format!(
                    "{folder} has been removed and cannot be made again ({problem}): no command reaches this supervisor, and no broker can be started"
                );
                let said = self.remark.borrow().clone();
                if said.as_ref() != Some(&problem) {
                    tracing::error!("{problem}");
                    self.remark.send_replace(Some(problem));
                }
            }
        }
    }
}

/// Returns true when systemd creates the folder at each start of the unit.
fn is_made_by_systemd(folder: &Path) -> bool {
    let made = std::env::var_os("RUNTIME_DIRECTORY").unwrap_or_default();
    let mut made = made.to_str().unwrap_or_default().split(':');
    made.any(|made| Path::new(made) == folder)
}

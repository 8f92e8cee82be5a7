//! Reading the configuration again while the broker runs.
//!
//! What can change at run time (`hot`) changes; of the rest it is said that it needs a restart. A configuration with
//! anything wrong in it changes nothing. Under a supervisor there is nothing to read: it replaces the instance when
//! the tenant's file changes, and this one's configuration is what it was started with.
//!
//! Two ask for it: the admin (`POST /admin/config/reload`), and the watch of the file ([`watch`]).

mod watch;

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use brokkr_tenant::{Diagnostic, Diagnostics};

use crate::app::App;
use crate::config;
use crate::hot::{Change, Values};
use crate::jobs::Job;
use crate::log;

pub use watch::watch;

/// Reads the configuration again. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Reloader(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    supervised: bool,
    file: Option<PathBuf>,
    /// Whoever reads also applies before the next one reads: else an older reading could win.
    turn: Mutex<()>,
}

/// A configuration that has been read and not been applied yet. Dropped, it changes nothing.
#[derive(Debug)]
pub struct Pending<'a> {
    _turn: MutexGuard<'a, ()>,
    values: Option<Values>,
    /// What will change.
    pub changes: Vec<Change>,
    /// What is different and stays as it is until the broker is started again.
    pub needs_restart: Vec<&'static str>,
}

impl Reloader {
    /// For the broker that was started with this.
    pub fn new(instance: &config::Instance) -> Self {
        Self(Arc::new(Inner {
            supervised: instance.supervised,
            file: instance.file.clone(),
            turn: Mutex::new(()),
        }))
    }

    /// Whether a supervisor sees to it instead.
    pub fn is_supervised(&self) -> bool {
        self.0.supervised
    }

    /// Reads file and environment, and compares. Blocks.
    ///
    /// # Errors
    /// Everything wrong with them.
    pub fn read(&self, app: &App) -> Result<Pending<'_>, Diagnostics> {
        // Nothing behind it that a panic could leave half-done.
        let turn = self.0.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let mut pending = Pending {
            _turn: turn,
            values: None,
            changes: Vec::new(),
            needs_restart: Vec::new(),
        };
        if !self.0.supervised {
            let config = config::read(self.0.file.as_deref())?.config;
            let values = Values::of(&config);
            pending.changes = app.hot.get().changes(&values);
            pending.needs_restart = app
                .config
                .differing(&config)
                .into_iter()
                .filter(|key| !values.has(key))
                .collect();
            pending.values = Some(values);
        }
        Ok(pending)
    }
}

impl Pending<'_> {
    /// Makes the changes. False if the level of the log is among them and cannot be changed, because `RUST_LOG` decides.
    pub fn apply(self, app: &App) -> bool {
        let Some(values) = self.values else {
            return true;
        };
        for Change {
            key,
            old_value,
            new_value,
        } in &self.changes
        {
            tracing::info!(key, old_value, new_value, "configuration changed");
        }
        let level = values.log_level;
        let level_before = app.hot.set(values).log_level;
        // How often they run, and how long they keep what, may be among the changes.
        app.jobs.wake(Job::Diagnostics);
        app.jobs.wake(Job::Webhooks);
        level == level_before || log::set_level(level)
    }
}

/// One thing that is wrong with a configuration, in one line: where, what, and what to write instead.
pub fn told(problem: &Diagnostic) -> String {
    match &problem.hint {
        Some(hint) => format!("{} ({hint})", problem.headline()),
        None => problem.headline(),
    }
}

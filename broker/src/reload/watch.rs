//! Watches the broker's own configuration file and its TLS files, and reloads after each change and after SIGHUP.
//!
//! Folders are watched and not the files, because editors, certificate renewals and Kubernetes replace a file: the
//! folder of each file, and the folder of every link on the way to it. A file that does not exist at the start is not
//! watched. Two variables change the watch: `BROKKR_CONFIG_WATCHER_ENABLED` (`false` or `0`: no watch) and `BROKKR_CONFIG_WATCHER_DEBOUNCE_SECONDS`
//! (default 5: the time between the first event and the reading).

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use brokkr_tenant::Way;
use notify::event::{AccessKind, AccessMode};
use notify::{Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::mpsc;

use super::Reloader;
use super::hangup::Hangups;
use crate::health::Health;

/// The default time between the first event and the reading.
const DEBOUNCE: Duration = Duration::from_secs(5);

/// Reloads after each change of the files and after each SIGHUP until the broker drains. Does nothing under a
/// supervisor, which passes no `hangups`.
pub fn watch(reloader: &Reloader, health: &Arc<Health>, hangups: Option<Hangups>) {
    let Some(hangups) = hangups else {
        return;
    };
    // Capacity 1 is enough, because an event says only that something changed.
    let (happened, events) = mpsc::channel(1);
    let files = reloader.files();
    let watched = match enabled() && !files.is_empty() {
        true => Watched::new(&files, happened)
            .inspect_err(|error| {
                tracing::warn!(?files, %error, "the configuration file is not watched");
            })
            .ok(),
        false => None,
    };
    tokio::spawn(keep(
        reloader.clone(),
        health.clone(),
        watched,
        events,
        hangups,
    ));
}

fn enabled() -> bool {
    !std::env::var("BROKKR_CONFIG_WATCHER_ENABLED")
        .is_ok_and(|value| matches!(value.trim().to_ascii_lowercase().as_str(), "0" | "false"))
}

fn debounce() -> Duration {
    std::env::var("BROKKR_CONFIG_WATCHER_DEBOUNCE_SECONDS")
        .ok()
        .and_then(|text| text.trim().parse().ok())
        .map_or(DEBOUNCE, Duration::from_secs)
}

/// The names on the way to the files; only events of these names matter.
type Names = Arc<Mutex<BTreeSet<PathBuf>>>;

/// The files' watcher, and the folders that it watches.
struct Watched {
    watcher: RecommendedWatcher,
    names: Names,
    folders: BTreeSet<PathBuf>,
}

impl Watched {
    fn new(files: &[PathBuf], happened: mpsc::Sender<()>) -> notify::Result<Self> {
        if files.iter().any(|file| !file.exists()) {
            return Err(notify::Error::path_not_found());
        }
        let names = Names::default();
        let known = names.clone();
        let watcher = notify::recommended_watcher(move |event: notify::Result<Event>| {
            if concerns(&known.lock().unwrap_or_else(PoisonError::into_inner), event) {
                // A full channel already holds an event.
                let _ = happened.try_send(());
            }
        })?;
        let mut watched = Self {
            watcher,
            names,
            folders: BTreeSet::new(),
        };
        watched.follow(files)?;
        Ok(watched)
    }

    /// Watches the folder of each file and of every link on the way to it. Called again after each event, because a
    /// changed link changes the way.
    fn follow(&mut self, files: &[PathBuf]) -> notify::Result<()> {
        let mut names = BTreeSet::new();
        for file in files {
            names.extend(Way::to(&std::path::absolute(file)?).names);
        }
        let parents = names.iter().filter_map(|name| name.parent());
        let folders: BTreeSet<PathBuf> = parents.map(Path::to_owned).collect();
        *self.names.lock().unwrap_or_else(PoisonError::into_inner) = names;
        for gone in self.folders.difference(&folders) {
            // An error means that the folder has gone, and its watch with it.
            let _ = self.watcher.unwatch(gone);
        }
        self.folders.retain(|folder| folders.contains(folder));
        for folder in folders {
            if !self.folders.contains(&folder) {
                self.watcher.watch(&folder, RecursiveMode::NonRecursive)?;
                self.folders.insert(folder);
            }
        }
        Ok(())
    }
}

/// Returns true when an event may mean that a file has changed; in doubt, true.
fn concerns(names: &BTreeSet<PathBuf>, event: notify::Result<Event>) -> bool {
    let Ok(event) = event else { return true };
    match event.kind {
        // Ignores reads, including the broker's own.
        EventKind::Access(kind) if kind != AccessKind::Close(AccessMode::Write) => false,
        _ => event.need_rescan() || event.paths.iter().any(|path| names.contains(path)),
    }
}

async fn keep(
    reloader: Reloader,
    health: Arc<Health>,
    mut watched: Option<Watched>,
    mut events: mpsc::Receiver<()>,
    mut hangups: Hangups,
) {
    let debounce = debounce();
    // The last logged outcome, so that an error that stays is logged once.
    let mut told = String::new();
    let follow = |watched: &mut Option<Watched>| {
        if let Some(watched) = watched
            && let Err(error) = watched.follow(&reloader.files())
        {
            tracing::warn!(%error, "the configuration file is not watched any more");
        }
    };
    loop {
        // Both arms are cancel-safe. Further events do not extend the pause, otherwise a busy file in the same folder
        // could delay the reload for ever.
        tokio::select! {
            Some(()) = events.recv() => tokio::select! {
                () = tokio::time::sleep(debounce) => {}
                () = hangups.next() => {}
            },
            () = hangups.next() => {}
        }
        if health.is_draining() {
            break;
        }
        let _ = events.try_recv();
        // Before the reading, so that a change in between causes another event.
        follow(&mut watched);
        let reading = reloader.clone();
        // The panic hook has logged a panic.
        if let Ok(outcome) = tokio::task::spawn_blocking(move || read(&reading)).await {
            if outcome != told && !outcome.is_empty() {
                tracing::warn!("{outcome}");
            }
            told = outcome;
        }
        // After the reading too, because it may have named other TLS files.
        follow(&mut watched);
    }
}

/// Reads and applies the configuration. Returns a message for the log, or an empty text.
fn read(reloader: &Reloader) -> String {
    match reloader.read() {
        Err(problems) => {
            let problems: Vec<String> = problems.errors().map(super::told).collect();
            format!(
                "the changed configuration is not used: {}",
                problems.join("; ")
            )
        }
        Ok(pending) => {
            let needs_restart = pending.needs_restart.join(", ");
            pending.apply();
            if needs_restart.is_empty() {
                String::new()
            } else {
                format!("changed in the configuration, but needs a restart: {needs_restart}")
            }
        }
    }
}

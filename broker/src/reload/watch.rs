//! The watch of a broker's own file: a change of it is a reload that nobody has to ask for.
//!
//! Folders are watched and not the file, because editors and Kubernetes put a new file in the place of the old one: the
//! folder of the file, and of every link on the way to it. Only if the file is there at the start. `BROKKR_CONFIG_WATCHER_ENABLED` (`false` or `0`: no watch) and
//! `BROKKR_CONFIG_WATCHER_DEBOUNCE_SECONDS` (5: so long after the first event the file is read).

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use brokkr_tenant::Way;
use notify::event::{AccessKind, AccessMode};
use notify::{Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::mpsc;

use crate::app::App;

/// From the first event to the reading, unless the environment says otherwise.
const DEBOUNCE: Duration = Duration::from_secs(5);

/// Watches the file for as long as the process lives, if there is one to watch.
pub fn watch(app: &App) {
    let Some(file) = app.reloader.0.file.as_deref().filter(|_| enabled()) else {
        return;
    };
    // One is enough: it says that something happened, never what.
    let (happened, events) = mpsc::channel(1);
    match Watched::new(file, happened) {
        Ok(watched) => {
            tokio::spawn(keep(app.clone(), watched, events));
        }
        Err(error) => {
            tracing::warn!(file = %file.display(), %error, "the configuration file is not watched");
        }
    }
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

/// The names on the way to the file, which its watcher compares events with.
type Names = Arc<Mutex<BTreeSet<PathBuf>>>;

/// The watcher, and the folders it watches.
struct Watched {
    file: PathBuf,
    watcher: RecommendedWatcher,
    names: Names,
    folders: BTreeSet<PathBuf>,
}

impl Watched {
    fn new(file: &Path, happened: mpsc::Sender<()>) -> notify::Result<Self> {
        let file = std::path::absolute(file)?;
        if !file.exists() {
            return Err(notify::Error::path_not_found());
        }
        let names = Names::default();
        let known = names.clone();
        let watcher = notify::recommended_watcher(move |event: notify::Result<Event>| {
            if concerns(&known.lock().unwrap_or_else(PoisonError::into_inner), event) {
                // Full: it is known already that something happened.
                let _ = happened.try_send(());
            }
        })?;
        let mut watched = Self {
            file,
            watcher,
            names,
            folders: BTreeSet::new(),
        };
        watched.follow()?;
        Ok(watched)
    }

    /// Watches the folder of every link on the way to the file, and the file's own. The way changes with every link.
    fn follow(&mut self) -> notify::Result<()> {
        let way = Way::to(&self.file);
        let parents = way.names.iter().filter_map(|name| name.parent());
        let folders: BTreeSet<PathBuf> = parents.map(Path::to_owned).collect();
        *self.names.lock().unwrap_or_else(PoisonError::into_inner) = way.names;
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

/// Whether an event may mean that the file has become another. In doubt it may.
fn concerns(names: &BTreeSet<PathBuf>, event: notify::Result<Event>) -> bool {
    let Ok(event) = event else { return true };
    match event.kind {
        // Its own reading, among others.
        EventKind::Access(kind) if kind != AccessKind::Close(AccessMode::Write) => false,
        _ => event.need_rescan() || event.paths.iter().any(|path| names.contains(path)),
    }
}

async fn keep(app: App, mut watched: Watched, mut events: mpsc::Receiver<()>) {
    let debounce = debounce();
    // What was said last: an error that stays is told once.
    let mut told = String::new();
    while events.recv().await.is_some() {
        // Not put off by further events: a file beside it that is written all the time must not silence this one.
        tokio::time::sleep(debounce).await;
        if app.health.is_draining() {
            break;
        }
        let _ = events.try_recv();
        // Before the reading, so that a change in between is an event.
        if let Err(error) = watched.follow() {
            tracing::warn!(%error, "the configuration file is not watched any more");
        }
        let reading = app.clone();
        // A panic in it has been logged by the panic hook.
        if let Ok(outcome) = tokio::task::spawn_blocking(move || read(&reading)).await {
            if outcome != told && !outcome.is_empty() {
                tracing::warn!("{outcome}");
            }
            told = outcome;
        }
    }
}

/// Reads and applies; what a person has to know of it, or nothing.
fn read(app: &App) -> String {
    match app.reloader.read(app) {
        Err(problems) => {
            let problems: Vec<String> = problems.errors().map(super::told).collect();
            format!(
                "the changed configuration is not used: {}",
                problems.join("; ")
            )
        }
        Ok(pending) => {
            let needs_restart = pending.needs_restart.join(", ");
            pending.apply(app);
            if needs_restart.is_empty() {
                String::new()
            } else {
                format!("changed in the configuration, but needs a restart: {needs_restart}")
            }
        }
    }
}

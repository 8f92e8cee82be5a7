//! The watch of a broker's own file: a change of it is a reload that nobody has to ask for.
//!
//! The folder is watched and not the file, because editors and Kubernetes put a new file in the place of the old one. Only
//! if the file is there at the start. `BROKKR_CONFIG_WATCHER_ENABLED` (`false` or `0`: no watch) and
//! `BROKKR_CONFIG_WATCHER_DEBOUNCE_SECONDS` (5: so long after the first event the file is read).

use std::ffi::OsStr;
use std::path::Path;
use std::time::Duration;

use notify::event::{AccessKind, AccessMode};
use notify::{Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::mpsc;

use crate::app::App;

/// From the first event to the reading, unless the environment says otherwise.
const DEBOUNCE: Duration = Duration::from_secs(5);

/// What Kubernetes moves when a mounted configuration changes; the file itself is a link through it.
const KUBERNETES: &str = "..data";

/// Watches the file for as long as the process lives, if there is one to watch.
pub fn watch(app: &App) {
    let Some(file) = app.reloader.0.file.as_deref().filter(|_| enabled()) else {
        return;
    };
    // One is enough: it says that something happened, never what.
    let (happened, events) = mpsc::channel(1);
    match watcher(file, happened) {
        Ok(watcher) => {
            tokio::spawn(keep(app.clone(), watcher, events));
        }
        Err(error) => {
            tracing::warn!(file = %file.display(), %error, "the configuration file is not watched");
        }
    }
}

fn enabled() -> bool {
    !std::env::var("BROKKR_CONFIG_WATCHER_ENABLED")
        .is_ok_and(|value| value == "0" || value.eq_ignore_ascii_case("false"))
}

fn debounce() -> Duration {
    std::env::var("BROKKR_CONFIG_WATCHER_DEBOUNCE_SECONDS")
        .ok()
        .and_then(|text| text.trim().parse().ok())
        .map_or(DEBOUNCE, Duration::from_secs)
}

fn watcher(file: &Path, happened: mpsc::Sender<()>) -> notify::Result<RecommendedWatcher> {
    let file = std::path::absolute(file)?;
    let (Some(folder), Some(name), true) = (file.parent(), file.file_name(), file.exists()) else {
        return Err(notify::Error::path_not_found());
    };
    let name = name.to_owned();
    let mut watcher = notify::recommended_watcher(move |event: notify::Result<Event>| {
        if concerns(&name, event) {
            // Full: it is known already that something happened.
            let _ = happened.try_send(());
        }
    })?;
    watcher.watch(folder, RecursiveMode::NonRecursive)?;
    Ok(watcher)
}

/// Whether an event may mean that the file has become another. In doubt it may.
fn concerns(name: &OsStr, event: notify::Result<Event>) -> bool {
    let Ok(event) = event else { return true };
    match event.kind {
        // Its own reading, among others.
        EventKind::Access(kind) if kind != AccessKind::Close(AccessMode::Write) => false,
        _ => {
            event.need_rescan()
                || event
                    .paths
                    .iter()
                    .filter_map(|path| path.file_name())
                    .any(|changed| changed == name || changed == OsStr::new(KUBERNETES))
        }
    }
}

async fn keep(app: App, watcher: RecommendedWatcher, mut events: mpsc::Receiver<()>) {
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
        let reading = app.clone();
        // A panic in it has been logged by the panic hook.
        if let Ok(outcome) = tokio::task::spawn_blocking(move || read(&reading)).await {
            if outcome != told && !outcome.is_empty() {
                tracing::warn!("{outcome}");
            }
            told = outcome;
        }
    }
    drop(watcher);
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

//! File events to a fresh [`Desired`]: one task that owns the scanner, woken by inotify, by its own timers and by
//! reload requests.
//!
//! An event never says more than "look again", so that a lost one costs time and not truth: an overflow, a moved
//! folder or a folder that comes back ends in a whole scan like any other.
//!
//! Watched are the folder, the folders of every link on the way to a file that matters, and files with several names. The
//! kernel gives out a limited number of watches, so what cannot be watched is looked at by a timer.

use crate::config::{Desired, Look, Referred, Scanned, Scanner};
use crate::fleet::ReloadWish;
use crate::status::{Snapshot, State};
use brokkr_tenant::TenantName;
use notify::event::{AccessKind, AccessMode, CreateKind, ModifyKind, RemoveKind};
use notify::{Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher};
use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

/// A file is read after so long without another event.
const QUIET: Duration = Duration::from_millis(50);
/// And at the latest so long after the first.
const LATEST: Duration = Duration::from_millis(500);
/// A file that is being written is left alone until it is closed, or nothing was written to it for so long.
const PATIENCE: Duration = Duration::from_secs(5);
/// While a folder cannot be watched, it is looked at so often.
const UNWATCHED: Duration = Duration::from_secs(1);
/// While another place cannot be watched, files are looked at so often.
const UNWATCHED_ELSEWHERE: Duration = Duration::from_secs(10);
/// Most places watched: tenants may be many, and other programs of this user need watches too.
const MOST_WATCHES: usize = 4096;
/// Events between two turns of the task. When full, the rest is dropped and everything is looked at again.
const EVENTS: usize = 1024;

/// What one event means.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Hint {
    /// Something is complete: look.
    Look,
    /// This file is being written.
    Busy(PathBuf),
    /// This file is complete.
    Done(PathBuf),
    /// The watched folder itself went away or moved.
    FolderLost,
}

/// Every tenant that has a process, or waits for what it needs to have one. `None` before the fleet has said anything: what
/// the scanner knows then is what was taken over.
fn runners(snapshot: &Snapshot) -> Option<BTreeSet<TenantName>> {
    snapshot.taken?;
    let runs = snapshot
        .tenants
        .iter()
        .filter(|tenant| tenant.pid.is_some() || !is_idle(tenant.state))
        .filter_map(|tenant| TenantName::parse(&tenant.name).ok());
    Some(runs.collect())
}

fn is_idle(state: State) -> bool {
    matches!(state, State::Refused | State::Stopped)
}

/// Device and inode.
type Identity = (u64, u64);

/// The task's state.
pub(crate) struct Watch {
    folder: PathBuf,
    /// Locked by the one scan that runs at a time, on a thread that may block.
    scanner: Arc<Mutex<Scanner>>,
    desired: watch::Sender<Arc<Desired>>,
    /// Who runs.
    snapshot: watch::Receiver<Arc<Snapshot>>,
    wishes: mpsc::Receiver<ReloadWish>,
    hints: mpsc::Receiver<Hint>,
    watcher: Option<RecommendedWatcher>,
    /// Every watched place, and which file it was: a watch follows the file, not its name.
    watched: BTreeMap<PathBuf, Identity>,
    /// The names outside the folder that matter: an event of another name there is none of ours.
    names: BTreeSet<PathBuf>,
    /// Some place cannot be watched, which has been said.
    unwatched_told: bool,
    busy: BTreeSet<PathBuf>,
    /// Hints were lost: nothing is known of who is writing what.
    overflow: Arc<AtomicBool>,
    look_at: Option<Instant>,
    /// Events without a pause must not put off the look for ever.
    latest_look: Option<Instant>,
    /// What is still busy then is looked at all the same.
    patience_at: Option<Instant>,
    again_at: Option<Instant>,
}

impl Watch {
    /// A watch of `folder` that publishes to `desired`. The first scan has been made already.
    pub(crate) fn new(
        folder: PathBuf,
        scanner: Scanner,
        desired: watch::Sender<Arc<Desired>>,
        snapshot: watch::Receiver<Arc<Snapshot>>,
        wishes: mpsc::Receiver<ReloadWish>,
    ) -> Self {
        let (sender, hints) = mpsc::channel(EVENTS);
        let root = folder.clone();
        let overflow = Arc::new(AtomicBool::new(false));
        let overflowed = overflow.clone();
        // Called on the watcher's own thread, which must not wait.
        let watcher = notify::recommended_watcher(move |event: notify::Result<Event>| {
            for hint in read(&root, event) {
                if sender.try_send(hint).is_err() {
                    overflowed.store(true, Ordering::Release);
                }
            }
        });
        let watcher = watcher
            .inspect_err(|error| tracing::error!(%error, "inotify cannot be had: files are looked at once a second"))
            .ok();
        Self {
            folder,
            scanner: Arc::new(Mutex::new(scanner)),
            desired,
            snapshot,
            wishes,
            hints,
            watcher,
            watched: BTreeMap::new(),
            names: BTreeSet::new(),
            unwatched_told: false,
            busy: BTreeSet::new(),
            overflow,
            look_at: None,
            latest_look: None,
            patience_at: None,
            again_at: None,
        }
    }

    /// Runs until nobody can ask for a reload any more.
    pub(crate) async fn run(mut self) {
        let folder = self.folder.clone();
        self.keep_watching(&folder);
        self.look(Look::default()).await;
        loop {
            let wake = [self.look_at, self.again_at, self.patience_at]
                .into_iter()
                .flatten()
                .min();
            let wake = wake.unwrap_or_else(|| Instant::now() + Duration::from_secs(86_400));
            // Every arm is cancel-safe: the queues keep what is not taken, the timer is set anew.
            tokio::select! {
                wish = self.wishes.recv() => match wish {
                    Some(ReloadWish { confirm_removals, done }) => {
                        self.busy.clear();
                        let scan = self.look(Look { removals_at_once: true, confirm_removals }).await;
                        let _ = done.send(scan);
                    }
                    None => return,
                },
                Some(hint) = self.hints.recv() => self.heed(hint),
                () = tokio::time::sleep_until(wake) => {
                    self.look(Look::default()).await;
                }
            }
        }
    }

    fn heed(&mut self, hint: Hint) {
        if self.overflow.swap(false, Ordering::AcqRel) {
            self.busy.clear();
            self.look_at = Some(Instant::now() + QUIET);
        }
        match hint {
            Hint::Look => {}
            Hint::Busy(path) | Hint::Done(path) if !self.concerns(&path) => return,
            Hint::Busy(path) => {
                self.busy.insert(path);
                // Written by somebody who never closes it, or closed unseen: then it is read as it stands.
                self.patience_at = Some(Instant::now() + PATIENCE);
                return;
            }
            Hint::Done(path) => {
                self.busy.remove(&path);
            }
            Hint::FolderLost => {
                let folder = self.folder.clone();
                self.stop_watching(&folder);
                self.busy.clear();
            }
        }
        let now = Instant::now();
        let latest = *self.latest_look.get_or_insert(now + LATEST);
        self.look_at = Some((now + QUIET).min(latest));
    }

    async fn look(&mut self, look: Look) -> u64 {
        self.look_at = None;
        self.latest_look = None;
        if self.patience_at.is_some_and(|at| at <= Instant::now()) {
            self.patience_at = None;
            self.busy.clear();
        }
        let folder = self.folder.clone();
        // Watched first, then read: what changes in between is an event.
        let watched = self.keep_watching(&folder).is_some();
        let (scanner, busy) = (self.scanner.clone(), self.busy.clone());
        let runners = runners(&self.snapshot.borrow());
        let scanning = tokio::task::spawn_blocking(move || {
            let mut scanner = scanner.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(runners) = runners {
                scanner.take_runners(runners);
            }
            scanner.scan(std::time::Instant::now(), look, &busy)
        });
        let Ok(scanned) = scanning.await else {
            // A panic in the scanner has been logged by the panic hook; what was known stays as it is.
            return self.desired.borrow().scan;
        };
        let Scanned {
            desired,
            again_at,
            referred,
        } = scanned;
        let mut again_at = again_at.map(Instant::from_std);
        let retry = match self.keep_watching_all(referred) {
            _ if !watched => Some(UNWATCHED),
            Kept::Added => Some(Duration::ZERO),
            Kept::Some => Some(UNWATCHED_ELSEWHERE),
            Kept::All => None,
        };
        if let Some(retry) = retry.map(|pause| Instant::now() + pause) {
            again_at = Some(again_at.map_or(retry, |at| at.min(retry)));
        }
        self.again_at = again_at;
        let scan = desired.scan;
        self.publish(desired);
        scan
    }

    fn publish(&self, desired: Desired) {
        for problem in &desired.problems {
            if !self.desired.borrow().problems.contains(problem) {
                tracing::error!("{}", problem.brief);
            }
        }
        self.desired.send_replace(Arc::new(desired));
    }

    /// Tells whether an event of `path` can mean anything: it is an entry of the folder, a watched place, or a name that
    /// matters.
    fn concerns(&self, path: &Path) -> bool {
        path.parent() == Some(&self.folder)
            || self.names.contains(path)
            || self.watched.contains_key(path)
    }

    /// Watches what is referred to now, and nothing else beside the folder.
    fn keep_watching_all(&mut self, referred: Referred) -> Kept {
        let mut places: BTreeSet<PathBuf> = referred
            .names
            .iter()
            .filter_map(|name| name.parent().map(Path::to_owned))
            .collect();
        places.extend(referred.aliased);
        self.names = referred.names;
        let folder = self.folder.clone();
        let gone = |path: &PathBuf| *path != folder && !places.contains(path);
        let gone: Vec<_> = self.watched.keys().filter(|p| gone(p)).cloned().collect();
        for path in gone {
            self.stop_watching(&path);
        }
        let (mut added, mut all) = (false, true);
        for place in &places {
            match self.keep_watching(place) {
                Some(new) => added |= new,
                None => {
                    all = false;
                    if !std::mem::replace(&mut self.unwatched_told, true) {
                        let place = place.display();
                        tracing::warn!(
                            "{place} cannot be watched (no permission to read it, or too many watches): changes there are seen within {UNWATCHED_ELSEWHERE:?}"
                        );
                    }
                }
            }
        }
        match (added, all) {
            // Something may have changed between the reading and the watch.
            (true, _) => Kept::Added,
            (false, true) => Kept::All,
            (false, false) => Kept::Some,
        }
    }

    /// Watches a folder or a file, if it is not watched yet: `Some(true)` when that is new. `None` while it cannot be.
    fn keep_watching(&mut self, path: &Path) -> Option<bool> {
        let found = std::fs::metadata(path).ok()?;
        let now = (found.dev(), found.ino());
        match self.watched.get(path) {
            Some(known) if *known == now => return Some(false),
            Some(_) => self.stop_watching(path),
            None => {}
        }
        // By another name: the kernel would give the same watch again, and its events only one of the two names.
        if self.watched.values().any(|known| *known == now) {
            return Some(false);
        }
        if self.watched.len() >= MOST_WATCHES {
            return None;
        }
        let watcher = self.watcher.as_mut()?;
        watcher.watch(path, RecursiveMode::NonRecursive).ok()?;
        self.watched.insert(path.to_owned(), now);
        Some(true)
    }

    fn stop_watching(&mut self, path: &Path) {
        self.watched.remove(path);
        if let Some(watcher) = &mut self.watcher {
            // An error means that the file has gone, and its watch with it.
            let _ = watcher.unwatch(path);
        }
    }
}

/// Says how far places are watched.
enum Kept {
    /// All are, and were before.
    All,
    /// Some are not.
    Some,
    /// One is watched only now.
    Added,
}

/// What an event of the watcher means for the folder `root`.
fn read(root: &Path, event: notify::Result<Event>) -> Vec<Hint> {
    let Ok(event) = event else {
        return vec![Hint::Look];
    };
    if event.need_rescan() {
        return vec![Hint::Look];
    }
    let of_root = event.paths.iter().any(|path| path == root);
    let each = |hint: fn(PathBuf) -> Hint| event.paths.iter().cloned().map(hint).collect();
    match event.kind {
        EventKind::Remove(_) | EventKind::Modify(ModifyKind::Name(_)) if of_root => {
            vec![Hint::FolderLost]
        }
        EventKind::Access(AccessKind::Close(AccessMode::Write)) => each(Hint::Done),
        EventKind::Modify(ModifyKind::Data(_)) => each(Hint::Busy),
        EventKind::Create(CreateKind::File) => each(created),
        EventKind::Create(_) | EventKind::Modify(ModifyKind::Name(_) | ModifyKind::Metadata(_)) => {
            each(Hint::Done)
        }
        EventKind::Remove(
            RemoveKind::File | RemoveKind::Any | RemoveKind::Other | RemoveKind::Folder,
        ) => each(Hint::Done),
        EventKind::Access(_) => Vec::new(),
        EventKind::Modify(_) | EventKind::Any | EventKind::Other => vec![Hint::Look],
    }
}

/// A new name. One with a link behind it is complete at once; a plain new file will be closed by its writer.
fn created(path: PathBuf) -> Hint {
    match std::fs::symlink_metadata(&path) {
        Ok(file) if file.is_file() && file.nlink() == 1 => Hint::Busy(path),
        _ => Hint::Done(path),
    }
}

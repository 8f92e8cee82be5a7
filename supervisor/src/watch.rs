//! Publishes a fresh [`Desired`] after file events: one task that owns the scanner, woken by inotify, timers and
//! reloads.
//!
//! An event only triggers a scan, so a lost event causes a delay and no wrong state: an overflow, a moved folder or a
//! folder that comes back leads to a full scan too.
//!
//! The watched places are the folder, the folders of every link on the way to a relevant file, and files with several
//! names. The kernel limits the number of watches, so a timer covers places that cannot be watched.

use crate::config::{Desired, Referred, ScanMode, Scanned, Scanner};
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

/// The time without another event after which a file is read.
const QUIET: Duration = Duration::from_millis(50);
/// The longest delay after the first event.
const LATEST: Duration = Duration::from_millis(500);
/// The time without a write after which an unclosed file is read anyway.
const PATIENCE: Duration = Duration::from_secs(5);
/// The time between two scans while the folder cannot be watched.
const UNWATCHED: Duration = Duration::from_secs(1);
/// The time between two scans while another place cannot be watched.
const UNWATCHED_ELSEWHERE: Duration = Duration::from_secs(10);
/// The largest number of watched places, because tenants may be many and other programs of this user need watches too.
const MOST_WATCHES: usize = 4096;
/// The queue of events between two turns of the task. When it is full, events are dropped and a full scan follows.
const EVENTS: usize = 1024;

/// The meaning of an event.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Hint {
    /// A change is complete, so a scan is due.
    Look,
    /// This file is being written.
    Busy(PathBuf),
    /// This file is complete.
    Done(PathBuf),
    /// The watched folder itself was removed or moved.
    FolderLost,
}

/// Returns every tenant that runs or waits to run. `None` before the fleet's first snapshot; until then the scanner
/// knows the adopted tenants.
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
    /// Locked by the single running scan, on a blocking thread.
    scanner: Arc<Mutex<Scanner>>,
    desired: watch::Sender<Arc<Desired>>,
    /// The fleet's snapshot, which shows the running tenants.
    snapshot: watch::Receiver<Arc<Snapshot>>,
    wishes: mpsc::Receiver<ReloadWish>,
    hints: mpsc::Receiver<Hint>,
    watcher: Option<RecommendedWatcher>,
    /// Every watched place with its file, because a watch follows the file and not its name.
    watched: BTreeMap<PathBuf, Identity>,
    /// The relevant names outside the folder; events of other names there are ignored.
    names: BTreeSet<PathBuf>,
    /// True once a place that cannot be watched has been logged.
    unwatched_told: bool,
    busy: BTreeSet<PathBuf>,
    /// True when events were lost, so that `busy` is unreliable.
    overflow: Arc<AtomicBool>,
    look_at: Option<Instant>,
    /// The latest time of the next scan, so that continuous events do not delay it for ever.
    latest_look: Option<Instant>,
    /// The time at which files that are still busy are read anyway.
    patience_at: Option<Instant>,
    again_at: Option<Instant>,
}

impl Watch {
    /// Makes a watch of `folder` that publishes to `desired`. The caller has made the first scan.
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
        // The watcher's own thread calls this, and must not wait.
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

    /// Runs until every sender of reload requests is gone.
    pub(crate) async fn run(mut self) {
        let folder = self.folder.clone();
        self.keep_watching(&folder);
        self.look(ScanMode::default()).await;
        loop {
            let wake = [self.look_at, self.again_at, self.patience_at]
                .into_iter()
                .flatten()
                .min();
            let wake = wake.unwrap_or_else(|| Instant::now() + Duration::from_secs(86_400));
            // Every arm is cancel-safe: the queues keep untaken values, and the timer is set anew.
            tokio::select! {
                wish = self.wishes.recv() => match wish {
                    Some(ReloadWish { confirm_removals, done }) => {
                        self.busy.clear();
                        let scan = self.look(ScanMode { removals_at_once: true, confirm_removals }).await;
                        let _ = done.send(scan);
                    }
                    None => return,
                },
                Some(hint) = self.hints.recv() => self.heed(hint),
                () = tokio::time::sleep_until(wake) => {
                    self.look(ScanMode::default()).await;
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
                // A writer may never close the file, or the event of closing may be lost.
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

    async fn look(&mut self, look: ScanMode) -> u64 {
        self.look_at = None;
        self.latest_look = None;
        if self.patience_at.is_some_and(|at| at <= Instant::now()) {
            self.patience_at = None;
            self.busy.clear();
        }
        let folder = self.folder.clone();
        // Watches first and reads then, so that a change in between gives an event.
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
            // The panic hook has logged a panic in the scanner; the last state stays.
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

    /// Returns true when an event of `path` can matter: an entry of the folder, a watched place, or a relevant name.
    fn concerns(&self, path: &Path) -> bool {
        path.parent() == Some(&self.folder)
            || self.names.contains(path)
            || self.watched.contains_key(path)
    }

    /// Watches the places in `referred`, and ends all other watches except that of the folder.
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
            // The place may have changed between reading and watching.
            (true, _) => Kept::Added,
            (false, true) => Kept::All,
            (false, false) => Kept::Some,
        }
    }

    /// Watches a folder or a file. Returns `Some(true)` for a new watch, `None` if the place cannot be watched.
    fn keep_watching(&mut self, path: &Path) -> Option<bool> {
        let found = std::fs::metadata(path).ok()?;
        let now = (found.dev(), found.ino());
        match self.watched.get(path) {
            Some(known) if *known == now => return Some(false),
            Some(_) => self.stop_watching(path),
            None => {}
        }
        // The same file is watched under another name. The kernel would return the same watch, and report one name
        // only.
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
            // An error means that the file is gone, and its watch with it.
            let _ = watcher.unwatch(path);
        }
    }
}

/// The result of watching all places.
enum Kept {
    /// All places are watched, and were before.
    All,
    /// Some places are not watched.
    Some,
    /// A place is watched since this call.
    Added,
}

/// Translates an event of the watcher for the folder `root`.
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

/// Classifies a new name. A link is complete at once; a plain new file is busy until its writer closes it.
fn created(path: PathBuf) -> Hint {
    match std::fs::symlink_metadata(&path) {
        Ok(file) if file.is_file() && file.nlink() == 1 => Hint::Busy(path),
        _ => Hint::Done(path),
    }
}

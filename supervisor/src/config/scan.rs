//! Scans `tenants_dir` for the wanted tenants. Files that have not changed are not read again.

#[cfg(test)]
mod tests;

use super::{Provision, SupervisorConfig, TenantConfig};
use brokkr_tenant::{DatabaseUrl, Diagnostic, Diagnostics, Layer, TenantName, Way};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The time for which a file must be absent before its tenant is removed, because some editors move a file away and
/// write it anew.
pub(crate) const REMOVAL_AFTER: Duration = Duration::from_secs(2);
/// A scan that would remove more than half of the running tenants is held, if more than this many run.
const REMOVALS_HELD_ABOVE: usize = 4;
/// The time for which a changed broker program must stay the same before it counts as new. A package writes, links and
/// renames in steps, and each step alone must not replace every instance.
const PROGRAM_QUIET: Duration = Duration::from_secs(1);

/// A problem with a tenant's file or with the folder of tenant files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct FileProblem {
    /// One line for `status` and the log, with each problem beginning with its place.
    pub(crate) brief: String,
    /// The full text, with source lines and hints.
    pub(crate) full: String,
}

impl From<&Diagnostics> for FileProblem {
    fn from(problems: &Diagnostics) -> Self {
        let brief: Vec<String> = problems.errors().map(brief).collect();
        Self {
            brief: brief.join("; "),
            full: problems.to_string(),
        }
    }
}

impl From<&Diagnostic> for FileProblem {
    fn from(problem: &Diagnostic) -> Self {
        Self {
            brief: brief(problem),
            full: problem.to_string(),
        }
    }
}

impl From<String> for FileProblem {
    fn from(line: String) -> Self {
        Self {
            brief: line.clone(),
            full: line,
        }
    }
}

fn brief(problem: &Diagnostic) -> String {
    match &problem.hint {
        Some(hint) => format!("{} ({hint})", problem.headline()),
        None => problem.headline(),
    }
}

/// A tenant's configuration, or the problem with its file.
pub(crate) type FileState = Result<Arc<TenantConfig>, Arc<FileProblem>>;

/// The wanted state according to the files: the latest state of every tenant's file.
#[derive(Debug, Clone, Default)]
pub(crate) struct Desired {
    /// The number of scans so far.
    pub(crate) scan: u64,
    /// The broker program on disk, once its file has been quiet; `None` until a program is found.
    pub(crate) broker: Option<Stamp>,
    /// True once the folder could be read. Until then nothing is known, not even that there are no tenants.
    pub(crate) listed: bool,
    /// Every tenant with a file.
    pub(crate) tenants: BTreeMap<TenantName, FileState>,
    /// Problems that concern no single tenant.
    pub(crate) problems: Vec<FileProblem>,
}

/// The identity and version of a file; differs when either changes.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    #[serde(default)]
    changed: (i64, i64),
}

impl Stamp {
    /// Returns the stamp of the file at `path`; `None` if there is no file.
    pub(crate) fn of(path: &Path) -> Option<Self> {
        let m = std::fs::metadata(path).ok()?;
        Some(Self {
            device: m.dev(),
            inode: m.ino(),
            size: m.size(),
            modified: (m.mtime(), m.mtime_nsec()),
            changed: (m.ctime(), m.ctime_nsec()),
        })
    }

    /// Returns true when two stamps are of the same program. A change of the inode alone (a link, another owner,
    /// another mode) does not count.
    pub(crate) fn is_same_program(&self, other: &Self) -> bool {
        let key = |stamp: &Self| (stamp.device, stamp.inode, stamp.size, stamp.modified);
        key(self) == key(other)
    }
}

/// The broker's program on disk, over several scans.
#[derive(Debug, Default)]
struct Program {
    /// The last program that was quiet for long enough.
    settled: Option<Stamp>,
    /// A newer program, and the time since which the file has stayed the same.
    newer: Option<(Stamp, Instant)>,
}

impl Program {
    /// Records the present file, or `None` while the file is missing or being written. Returns the time of the next
    /// look.
    fn see(&mut self, seen: Option<Stamp>, now: Instant, at_once: bool) -> Option<Instant> {
        let newer = self.newer.take();
        let seen = seen?;
        let Some(settled) = &self.settled else {
            self.settled = Some(seen);
            return None;
        };
        if settled.is_same_program(&seen) {
            return None;
        }
        let known = newer.filter(|(stamp, _)| stamp.is_same_program(&seen));
        let since = known.map_or(now, |(_, since)| since);
        if at_once || now.duration_since(since) >= PROGRAM_QUIET {
            self.settled = Some(seen);
            return None;
        }
        self.newer = Some((seen, since));
        Some(since + PROGRAM_QUIET)
    }
}

#[derive(Debug, Clone)]
struct Known {
    /// The stamps of the file itself and of every file it refers to.
    stamps: Vec<(PathBuf, Option<Stamp>)>,
    referred: Referred,
    state: FileState,
    missing_since: Option<Instant>,
}

/// The options of a scan.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct ScanMode {
    /// True for a reload: an absent file is a removal at once, and another program is new at once.
    pub(crate) removals_at_once: bool,
    /// True to carry out any number of removals.
    pub(crate) confirm_removals: bool,
}

/// The knowledge kept between scans.
#[derive(Debug, Default)]
pub(crate) struct Scanner {
    folder: PathBuf,
    broker: PathBuf,
    program: Program,
    layers: Vec<Layer>,
    provision: Option<Arc<Provision>>,
    known: BTreeMap<TenantName, Known>,
    scans: u64,
    listed: bool,
    /// The device and inode of the folder. Another folder in its place is accepted only by a reload.
    identity: Option<(u64, u64)>,
    /// Tenants with a removal that waits for confirmation.
    held: BTreeSet<TenantName>,
    /// Tenants that run or must run, so that their removal stops a broker.
    runs: BTreeSet<TenantName>,
}

/// The places outside the folder that decide the tenants' configurations.
#[derive(Debug, Clone, Default)]
pub(crate) struct Referred {
    /// Entries of folders. A change of an entry may mean another file, or another content.
    pub(crate) names: BTreeSet<PathBuf>,
    /// Files that may change under a name in a folder that is not watched.
    pub(crate) aliased: BTreeSet<PathBuf>,
}

impl Referred {
    /// Adds the way to `path`.
    fn add(&mut self, path: &Path) {
        let way = Way::to(path);
        let aliased = way.target.filter(|target| has_other_names(target));
        self.aliased.extend(aliased);
        self.names.extend(way.names);
    }

    fn extend(&mut self, other: &Self) {
        self.names.extend(other.names.iter().cloned());
        self.aliased.extend(other.aliased.iter().cloned());
    }
}

/// Returns true for files with several hard links, and for files mounted from another file system.
fn has_other_names(file: &Path) -> bool {
    let device = |path: &Path| std::fs::metadata(path).map(|found| found.dev()).ok();
    std::fs::metadata(file)
        .is_ok_and(|found| found.nlink() > 1 || file.parent().and_then(device) != Some(found.dev()))
}

/// The result of a scan.
#[derive(Debug)]
pub(crate) struct Scanned {
    pub(crate) desired: Desired,
    /// The time of the next look, when an absence counts as a removal or another program as new.
    pub(crate) again_at: Option<Instant>,
    /// The places to watch beside the folder: links on the way to tenant files, to the files they refer to, to the
    /// folder and to the broker.
    pub(crate) referred: Referred,
}

impl Scanner {
    /// Makes a scanner of the configured folder. Tenants without a URL of their own use the server at `embedded`.
    pub(crate) fn configured(config: &SupervisorConfig, embedded: Option<&DatabaseUrl>) -> Self {
        let url = embedded.map(|url| {
            Layer::from_pairs(
                "the embedded server",
                [("database.url", url.expose().as_str())],
            )
        });
        let layers = url.into_iter().chain([config.defaults.clone()]).collect();
        Self {
            provision: config.provision.clone(),
            ..Self::new(config.tenants_dir.clone(), config.broker.clone(), layers)
        }
    }

    /// Makes a scanner of `folder` and of the program `broker`; `layers` lie under every tenant file, lowest first.
    pub(crate) fn new(folder: PathBuf, broker: PathBuf, layers: Vec<Layer>) -> Self {
        Self {
            folder,
            broker,
            layers,
            ..Self::default()
        }
    }

    /// Adds a tenant that already runs. If its file is absent, the usual rules of removal apply.
    pub(crate) fn know(&mut self, name: &TenantName, config: &Arc<TenantConfig>) {
        self.runs.insert(name.clone());
        let path = self.folder.join(format!("{name}.toml"));
        self.known.insert(
            name.clone(),
            Known {
                // Differs from the stamp of any existing file, so the next scan reads the file.
                stamps: vec![(path, None)],
                referred: Referred::default(),
                state: Ok(config.clone()),
                missing_since: None,
            },
        );
    }

    /// Sets the tenants that run or must run, because only their removals may be held.
    pub(crate) fn take_runners(&mut self, runs: BTreeSet<TenantName>) {
        self.runs = runs;
    }

    /// Scans the folder. `busy` files are being written and keep their last state. Blocks on the file system.
    pub(crate) fn scan(
        &mut self,
        now: Instant,
        look: ScanMode,
        busy: &BTreeSet<PathBuf>,
    ) -> Scanned {
        self.scans += 1;
        let mut problems = Vec::new();
        let mut again_at = None;
        match self.list(look) {
            Err(error) => problems.push(FileProblem::from(format!(
                "{}: cannot be read, so no tenant is added, changed or removed: {error}",
                self.folder.display()
            ))),
            Ok(paths) => {
                self.listed = true;
                let mut present = BTreeSet::new();
                for path in paths {
                    match TenantName::of_file(&path) {
                        Ok(name) => {
                            self.read(&name, &path, busy);
                            present.insert(name);
                        }
                        Err(problem) => problems.push(FileProblem::from(&problem)),
                    }
                }
                again_at = self.remove(&present, now, look, &mut problems);
            }
        }
        let states = self
            .known
            .iter()
            .map(|(name, known)| (name.clone(), known.state.clone()));
        let on_disk =
            Stamp::of(&self.broker).filter(|_| Way::to(&self.broker).names.is_disjoint(busy));
        let settles_at = self.program.see(on_disk, now, look.removals_at_once);
        again_at = again_at.into_iter().chain(settles_at).min();
        let desired = Desired {
            scan: self.scans,
            broker: self.program.settled.clone(),
            listed: self.listed,
            tenants: states.collect(),
            problems,
        };
        Scanned {
            desired,
            again_at,
            referred: self.referred(),
        }
    }

    /// Returns every path in the folder with the name of a tenant file.
    fn list(&mut self, look: ScanMode) -> io::Result<Vec<PathBuf>> {
        let mut paths = Vec::new();
        let folder = std::fs::metadata(&self.folder)?;
        let identity = (folder.dev(), folder.ino());
        if self.identity.is_some_and(|known| known != identity) && !look.removals_at_once {
            return Err(io::Error::other(
                "another folder has taken its place; `brokkr-supervisor reload` takes it for the right one",
            ));
        }
        for entry in std::fs::read_dir(&self.folder)? {
            let entry = entry?;
            let name = entry.file_name();
            let name = name.to_string_lossy();
            if name.ends_with(".toml") && !name.starts_with('.') {
                paths.push(entry.path());
            }
        }
        paths.sort();
        self.identity = Some(identity);
        Ok(paths)
    }

    fn read(&mut self, name: &TenantName, path: &Path, busy: &BTreeSet<PathBuf>) {
        if let Some(known) = self.known.get_mut(name) {
            known.missing_since = None;
            let unchanged = known
                .stamps
                .iter()
                .all(|(path, stamp)| Stamp::of(path) == *stamp);
            if unchanged {
                return;
            }
        }
        // A link counts as busy while its target is being written.
        let mut referred = Referred::default();
        referred.add(path);
        if busy.contains(path) || !referred.names.is_disjoint(busy) {
            return;
        }
        // Takes the stamps before reading, so that the next scan sees a change made meanwhile.
        let mut stamps = vec![(path.to_owned(), Stamp::of(path))];
        let (state, files) = match TenantConfig::load(path, &self.layers, self.provision.as_ref()) {
            Ok((config, files)) => (Ok(Arc::new(config)), files),
            Err(problems) => (Err(Arc::new(FileProblem::from(&problems))), problems.files),
        };
        stamps.extend(files.into_iter().map(|path| {
            let stamp = Stamp::of(&path);
            referred.add(&path);
            (path, stamp)
        }));
        self.known.insert(
            name.clone(),
            Known {
                stamps,
                referred,
                state,
                missing_since: None,
            },
        );
    }

    /// Removes tenants whose files have been absent for long enough. Returns the time of the next look for the others.
    fn remove(
        &mut self,
        present: &BTreeSet<TenantName>,
        now: Instant,
        look: ScanMode,
        problems: &mut Vec<FileProblem>,
    ) -> Option<Instant> {
        let mut due = Vec::new();
        let mut again_at: Option<Instant> = None;
        for (name, known) in &mut self.known {
            if present.contains(name) {
                continue;
            }
            let since = *known.missing_since.get_or_insert(now);
            if look.removals_at_once || now.duration_since(since) >= REMOVAL_AFTER {
                due.push(name.clone());
            } else {
                let at = since + REMOVAL_AFTER;
                again_at = Some(again_at.map_or(at, |earlier| earlier.min(at)));
            }
        }
        // A held removal stays held until it is confirmed or the file returns, even when fewer removals are pending
        // later.
        self.held
            .retain(|name| due.contains(name) && !look.confirm_removals);
        let counts = |name: &&TenantName| self.runs.contains(*name) || self.held.contains(*name);
        let all = self.known.keys().filter(counts).count();
        let going: Vec<TenantName> = due.iter().filter(counts).cloned().collect();
        if !look.confirm_removals && all > REMOVALS_HELD_ABOVE && going.len() * 2 > all {
            self.held.extend(going);
        }
        if !self.held.is_empty() {
            problems.push(FileProblem::from(format!(
                "{}: the files of {} of {all} tenants that run have gone at once; they run on until `brokkr-supervisor reload --confirm-removals`",
                self.folder.display(),
                self.held.len()
            )));
        }
        for name in due {
            if !self.held.contains(&name) {
                self.known.remove(&name);
            }
        }
        again_at
    }

    fn referred(&self) -> Referred {
        let mut all = Referred::default();
        all.names.extend(Way::to(&self.folder).names);
        all.names.extend(Way::to(&self.broker).names);
        for known in self.known.values() {
            all.extend(&known.referred);
        }
        all
    }
}

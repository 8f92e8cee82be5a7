//! Gives each tenant a user id of its own, for as long as its files exist (`[isolation] uids`).
//!
//! An id belongs to a state folder, because the folder holds the files that another tenant with the same id could read.
//! The folder's owner decides; the record `STATE_DIR/uids` keeps the id of a folder that does not exist, so that a
//! tenant gets the same id back. A line of the record is `UID FOLDER`, and `-` instead of a folder marks an id that
//! belonged to a folder once. Ids that no folder ever had are given out first. Then an id is used again, but only if its
//! folder is gone and no process has it.

use crate::atomic_file;
use crate::config::UidRange;
use brokkr_tenant::TenantName;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

/// The record's file in `STATE_DIR`.
const RECORD: &str = "uids";
/// The mark of an id without a folder.
const NO_FOLDER: &str = "-";

/// An error in giving a tenant its id.
#[derive(Debug, thiserror::Error)]
pub(crate) enum UidError {
    /// Every id of the range belongs to another tenant's files.
    #[error(
        "[isolation] uids = \"{range}\" has no user id left for tenant {tenant}: all {count} belong to other tenants or \
         their state folders; write a larger range in supervisor.toml and restart the supervisor, or remove the state \
         folders of former tenants in {folders} and `brokkr-supervisor start {tenant}`"
    )]
    NoneLeft {
        range: UidRange,
        tenant: TenantName,
        count: u64,
        folders: String,
    },
    /// The record could not be written, so that the id might be given to another tenant later.
    #[error("cannot write {}", path.display())]
    Record {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

/// The user ids of all tenants. Clones share one record.
#[derive(Debug, Clone)]
pub(crate) struct TenantUids {
    range: UidRange,
    /// `STATE_DIR/tenants`.
    folders: PathBuf,
    record: Arc<Mutex<Record>>,
}

/// The folder's name of each id; `None` when the folder is known to be gone.
type Owners = BTreeMap<u32, Option<String>>;

#[derive(Debug)]
struct Record {
    path: PathBuf,
    owners: Owners,
}

impl TenantUids {
    /// Reads the record, and completes it by the owners of the folders. Blocks.
    pub(crate) fn load(state_dir: &Path, range: UidRange) -> Self {
        let path = state_dir.join(RECORD);
        let text = atomic_file::read(&path).unwrap_or_else(|error| {
            tracing::error!(path = %path.display(), %error, "cannot be read: the user ids of tenants without a state folder are forgotten");
            String::new()
        });
        let (mut owners, bad) = parse(&text);
        for (line, text) in bad {
            tracing::error!(
                "{}:{line}:1: not a user id and a folder, left out: {text}",
                path.display()
            );
        }
        let folders = state_dir.join("tenants");
        for entry in fs::read_dir(&folders).into_iter().flatten().flatten() {
            let owner = entry.metadata().ok().filter(fs::Metadata::is_dir);
            let owner = owner
                .map(|folder| folder.uid())
                .filter(|uid| range.contains(*uid));
            if let (Some(uid), Ok(name)) = (owner, entry.file_name().into_string()) {
                owners.entry(uid).or_insert(Some(name));
            }
        }
        Self {
            range,
            folders,
            record: Arc::new(Mutex::new(Record { path, owners })),
        }
    }

    /// Returns the range of the ids.
    pub(crate) fn range(&self) -> UidRange {
        self.range
    }

    /// Returns the id for the tenant's state folder, and records a new one. Blocks.
    ///
    /// # Errors
    /// See [`UidError`].
    pub(crate) fn assign(&self, tenant: &TenantName) -> Result<u32, UidError> {
        let mut record = self.record.lock().unwrap_or_else(PoisonError::into_inner);
        let uid = self.choose(&record, tenant)?;
        let name = Some(tenant.as_str().to_owned());
        if record.owners.get(&uid) == Some(&name) {
            return Ok(uid);
        }
        let mut owners = record.owners.clone();
        // A process of the tenant may still have another id, from a folder that a predecessor's folder has replaced.
        for other in owners.values_mut().filter(|owner| **owner == name) {
            *other = None;
        }
        owners.insert(uid, name);
        let path = record.path.clone();
        atomic_file::replace(&path, format_record(&owners).as_bytes())
            .map_err(|source| UidError::Record { path, source })?;
        record.owners = owners;
        Ok(uid)
    }

    fn choose(&self, record: &Record, tenant: &TenantName) -> Result<u32, UidError> {
        let own = |uid: &u32| record.owners.get(uid).and_then(Option::as_deref);
        if let Some(owner) = self.owner_of(tenant.as_str()) {
            // A folder that followed its schema to another name is still recorded under the old name.
            let is_anothers = own(&owner)
                .is_some_and(|name| name != tenant.as_str() && self.owner_of(name) == Some(owner));
            if !is_anothers {
                return Ok(owner);
            }
        }
        let recorded = record
            .owners
            .iter()
            .filter(|(_, owner)| owner.as_deref() == Some(tenant.as_str()))
            .map(|(uid, _)| *uid)
            .find(|uid| self.range.contains(*uid));
        if let Some(uid) = recorded {
            return Ok(uid);
        }
        if let Some(uid) = self
            .range
            .iter()
            .find(|uid| !record.owners.contains_key(uid))
        {
            return Ok(uid);
        }
        let running = uids_of_processes();
        let unused = self.range.iter().find(|uid| {
            let has_folder = own(uid).is_some_and(|name| self.folders.join(name).exists());
            !has_folder && !running.contains(uid)
        });
        unused.ok_or_else(|| UidError::NoneLeft {
            range: self.range,
            tenant: tenant.clone(),
            count: self.range.count(),
            folders: self.folders.display().to_string(),
        })
    }

    /// Returns the owner of a state folder, if the owner is in the range.
    fn owner_of(&self, folder: &str) -> Option<u32> {
        let found = fs::symlink_metadata(self.folders.join(folder)).ok()?;
        (found.is_dir() && self.range.contains(found.uid())).then(|| found.uid())
    }
}

/// Returns the record, and the lines that cannot be read, each with its number from 1.
fn parse(text: &str) -> (Owners, Vec<(usize, String)>) {
    let mut owners = BTreeMap::new();
    let mut bad = Vec::new();
    for (number, line) in (1..).zip(text.lines()) {
        if line.trim().is_empty() || line.starts_with('#') {
            continue;
        }
        let entry = line.split_once(' ').and_then(|(uid, folder)| {
            let folder = match folder.trim() {
                NO_FOLDER => None,
                name => Some(TenantName::parse(name).ok()?.as_str().to_owned()),
            };
            Some((uid.parse().ok()?, folder))
        });
        match entry {
            Some((uid, folder)) => {
                owners.insert(uid, folder);
            }
            None => bad.push((number, line.to_owned())),
        }
    }
    (owners, bad)
}

fn format_record(owners: &Owners) -> String {
    let lines = owners.iter().map(|(uid, folder)| {
        let folder = folder.as_deref().unwrap_or(NO_FOLDER);
        format!("{uid} {folder}\n")
    });
    lines.collect()
}

/// Returns the real user ids of all processes.
fn uids_of_processes() -> BTreeSet<u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries
        .filter_map(|entry| uid_of(entry.file_name().to_str()?.parse().ok()?))
        .collect()
}

/// Returns the real user id of a process, as the kernel tells it.
pub(crate) fn uid_of(pid: i32) -> Option<u32> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let uids = status.lines().find_map(|line| line.strip_prefix("Uid:"))?;
    uids.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use nix::unistd::{Uid, chown, geteuid};

    struct StateDir(tempfile::TempDir);

    impl StateDir {
        fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            fs::create_dir(folder.path().join("tenants")).unwrap();
            Self(folder)
        }

        fn uids(&self, range: &str) -> TenantUids {
            TenantUids::load(self.0.path(), UidRange::parse(range).unwrap())
        }

        fn folder(&self, name: &str) -> PathBuf {
            self.0.path().join("tenants").join(name)
        }

        /// Makes the folder as an instance's start does.
        fn make(&self, name: &str, uid: u32) {
            fs::create_dir(self.folder(name)).unwrap();
            chown(&self.folder(name), Some(Uid::from_raw(uid)), None).unwrap();
        }

        fn record(&self) -> String {
            fs::read_to_string(self.0.path().join(RECORD)).unwrap()
        }
    }

    fn name(name: &str) -> TenantName {
        TenantName::parse(name).unwrap()
    }

    fn is_root() -> bool {
        let root = geteuid().is_root();
        if !root {
            println!("skipped: only root may give files to other users");
        }
        root
    }

    #[test]
    fn an_id_stays_with_its_tenant_over_a_restart_and_is_given_to_no_other() {
        if !is_root() {
            return;
        }
        let state = StateDir::new();
        let uids = state.uids("61000-61002");
        assert_eq!(uids.assign(&name("a")).unwrap(), 61_000);
        assert_eq!(uids.assign(&name("b")).unwrap(), 61_001);
        assert_eq!(uids.assign(&name("a")).unwrap(), 61_000);
        state.make("a", 61_000);
        state.make("b", 61_001);
        let uids = state.uids("61000-61002");
        assert_eq!(uids.assign(&name("c")).unwrap(), 61_002);
        state.make("c", 61_002);
        assert_eq!(uids.assign(&name("b")).unwrap(), 61_001);
        let error = uids.assign(&name("d")).unwrap_err().to_string();
        assert!(
            error.contains("\"61000-61002\"") && error.contains("start d"),
            "{error}"
        );
        // The id of a removed folder is free again, as no process has it.
        fs::remove_dir(state.folder("b")).unwrap();
        assert_eq!(uids.assign(&name("d")).unwrap(), 61_001);
        assert_eq!(state.record(), "61000 a\n61001 d\n61002 c\n");
    }

    #[test]
    fn the_folders_say_what_a_lost_record_said() {
        if !is_root() {
            return;
        }
        let state = StateDir::new();
        state.make("a", 61_001);
        fs::write(state.0.path().join(RECORD), "61007 gone\nnonsense\n").unwrap();
        let uids = state.uids("61000-61010");
        assert_eq!(uids.assign(&name("b")).unwrap(), 61_000);
        assert_eq!(uids.assign(&name("a")).unwrap(), 61_001);
        assert_eq!(uids.assign(&name("gone")).unwrap(), 61_007);
    }

    #[test]
    fn a_folder_keeps_its_id_under_another_name() {
        if !is_root() {
            return;
        }
        let state = StateDir::new();
        let uids = state.uids("61000-61010");
        assert_eq!(uids.assign(&name("old")).unwrap(), 61_000);
        assert_eq!(uids.assign(&name("new")).unwrap(), 61_001);
        state.make("old", 61_000);
        fs::rename(state.folder("old"), state.folder("new")).unwrap();
        assert_eq!(uids.assign(&name("new")).unwrap(), 61_000);
        // A process of `new` may still have its first id.
        assert_eq!(state.record(), "61000 new\n61001 -\n");
        assert_eq!(uids.assign(&name("old")).unwrap(), 61_002);
    }

    #[test]
    fn an_id_outside_the_range_is_replaced_and_one_of_a_process_is_not_reused() {
        if !is_root() {
            return;
        }
        let state = StateDir::new();
        state.make("a", 5);
        fs::write(state.0.path().join(RECORD), "5 a\n").unwrap();
        assert_eq!(
            state.uids("61000-61000").assign(&name("a")).unwrap(),
            61_000
        );

        let mut sleeper = std::process::Command::new("setpriv")
            .args(["--reuid=61500", "--clear-groups", "sleep", "1000"])
            .spawn()
            .unwrap();
        let pid = i32::try_from(sleeper.id()).unwrap();
        let bound = std::time::Duration::from_secs(10);
        brokkr_tests::until(bound, "the sleeper's user id", || {
            (uid_of(pid) == Some(61_500)).then_some(())
        });
        let uids = state.uids("61500-61500");
        fs::write(state.0.path().join(RECORD), "61500 -\n").unwrap();
        let used = state.uids("61500-61500").assign(&name("b"));
        sleeper.kill().unwrap();
        sleeper.wait().unwrap();
        assert!(matches!(used, Err(UidError::NoneLeft { .. })), "{used:?}");
        assert_eq!(uids.assign(&name("b")).unwrap(), 61_500);
    }
}

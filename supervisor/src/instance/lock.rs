//! Lock files of instances. A later supervisor sees by the lock which processes still run.
//!
//! The supervisor locks `TENANT.ID.lock` and the child inherits the descriptor. The lock belongs to the open file, so
//! it lasts until the process ends, also if the supervisor ends first. The supervisor only closes its copy: an explicit
//! unlock would unlock the file for the child too.
//!
//! The first line names the process. The second line describes, in JSON, what the process runs, so that a supervisor
//! can take the instance over from the lock file alone.

use crate::config::ConfigSummary;
use crate::lifecycle::InstanceId;
use brokkr_tenant::TenantName;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// The process that a lock file names; tells that process from a later process with the same pid.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LockHolder {
    pub(crate) pid: i32,
    /// Field 22 of `/proc/PID/stat`, in clock ticks since boot.
    pub(crate) start_time: u64,
    pub(crate) boot_id: String,
}

impl LockHolder {
    /// Reads the identity of a running process from `/proc`.
    pub(crate) fn of(pid: i32) -> io::Result<Self> {
        Ok(Self {
            pid,
            start_time: start_time(pid)?,
            boot_id: boot_id()?,
        })
    }

    /// Returns true when the process is seen to run; false also when `/proc` cannot be read.
    pub(crate) fn lives(&self) -> bool {
        self.is_there().unwrap_or(false)
    }

    /// Returns true when the process still runs.
    ///
    /// # Errors
    /// When `/proc` cannot be read, so that the answer is unknown.
    pub(crate) fn is_there(&self) -> io::Result<bool> {
        if boot_id()? != self.boot_id {
            return Ok(false);
        }
        match start_time(self.pid) {
            Ok(at) => Ok(at == self.start_time),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) if error.raw_os_error() == Some(nix::libc::ESRCH) => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn parse(line: &str) -> Option<Self> {
        let mut words = line.split_whitespace();
        Some(Self {
            pid: words.next()?.parse().ok()?,
            start_time: words.next()?.parse().ok()?,
            boot_id: words.next()?.to_owned(),
        })
    }
}

/// Reads field 22 of `/proc/PID/stat`, the start time.
pub(crate) fn start_time(pid: i32) -> io::Result<u64> {
    field(pid, 22)
}

/// Reads the pid of the parent.
pub(crate) fn parent(pid: i32) -> io::Result<u64> {
    field(pid, 4)
}

/// Reads a field of `/proc/PID/stat` by its number in proc(5), which counts from 1.
pub(crate) fn field(pid: i32, number: usize) -> io::Result<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The command (field 2) may hold spaces and parentheses, so fields are counted from its last parenthesis.
    stat.rsplit_once(')')
        .and_then(|(_, rest)| rest.split_whitespace().nth(number.checked_sub(3)?))
        .and_then(|field| field.parse().ok())
        .ok_or_else(|| io::Error::other(format!("/proc/{pid}/stat has no field {number}")))
}

/// Reads the id of the host's current boot.
pub(crate) fn boot_id() -> io::Result<String> {
    Ok(std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?
        .trim()
        .to_owned())
}

/// The files of one instance in the runtime folder.
#[derive(Debug, Clone)]
pub(crate) struct InstanceFiles {
    stem: PathBuf,
}

impl InstanceFiles {
    /// Names the files; creates none.
    pub(crate) fn new(folder: &Path, tenant: &TenantName, id: InstanceId) -> Self {
        Self {
            stem: folder.join(format!("{tenant}.{}", id.0)),
        }
    }

    /// Returns the files of a path that [`stem`](Self::stem) returned.
    pub(crate) fn of_stem(stem: PathBuf) -> Self {
        Self { stem }
    }

    /// Returns the common path of the files, without extension.
    pub(crate) fn stem(&self) -> &Path {
        &self.stem
    }

    pub(crate) fn lock(&self) -> PathBuf {
        self.with("lock")
    }

    /// Returns the path of the socket on which the supervisor probes and instructs the instance.
    pub(crate) fn private(&self) -> PathBuf {
        self.with("sock")
    }

    /// Returns the path of the socket on which the instance reports.
    pub(crate) fn notify(&self) -> PathBuf {
        self.with("notify")
    }

    fn with(&self, extension: &str) -> PathBuf {
        let mut name = self.stem.clone().into_os_string();
        name.push(".");
        name.push(extension);
        name.into()
    }

    /// Removes all three files of an instance that has ended.
    pub(crate) fn remove(&self) {
        for path in [self.private(), self.notify(), self.lock()] {
            let _ = std::fs::remove_file(path);
        }
    }
}

/// Creates and locks the lock file of a new instance. The instance inherits the returned descriptor, which is
/// read-only, because a later supervisor believes the text of the file.
///
/// # Errors
/// When another process holds the lock, or the folder cannot be written.
pub(crate) fn create(path: &Path) -> io::Result<File> {
    let text = OpenOptions::new()
        .create(true)
        .append(true)
        .mode(0o600)
        .open(path)?;
    let file = File::open(path)?;
    file.try_lock().map_err(|error| match error {
        TryLockError::WouldBlock => io::Error::new(
            io::ErrorKind::AlreadyExists,
            "an instance with this number still runs",
        ),
        TryLockError::Error(error) => error,
    })?;
    text.set_len(0)?;
    Ok(file)
}

/// Writes the holder and what it runs into its lock file.
pub(crate) fn sign(path: &Path, holder: &LockHolder, what: &ConfigSummary) -> io::Result<()> {
    let LockHolder {
        pid,
        start_time,
        boot_id,
    } = holder;
    let what = serde_json::to_string(what)?;
    let mut file = OpenOptions::new().append(true).open(path)?;
    file.write_all(format!("{pid} {start_time} {boot_id}\n{what}\n").as_bytes())
}

/// State of a lock file.
#[derive(Debug, PartialEq)]
pub(crate) enum LockState {
    /// No process holds the lock.
    Stale,
    /// A process holds the lock.
    Held(Box<LockLabel>),
}

/// Content of a held lock file.
#[derive(Debug, PartialEq)]
pub(crate) struct LockLabel {
    /// The process that the file names.
    pub(crate) holder: Option<LockHolder>,
    /// Description of what the process runs.
    pub(crate) what: Option<ConfigSummary>,
}

/// Reads a lock file without keeping its lock.
pub(crate) fn look(path: &Path) -> io::Result<LockState> {
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(nix::libc::O_NOFOLLOW | nix::libc::O_NONBLOCK)
        .open(path)?;
    match file.try_lock() {
        Ok(()) => Ok(LockState::Stale),
        Err(TryLockError::WouldBlock) => {
            let mut text = String::new();
            file.read_to_string(&mut text)?;
            let mut lines = text.lines();
            Ok(LockState::Held(Box::new(LockLabel {
                holder: lines.next().and_then(LockHolder::parse),
                what: lines
                    .next()
                    .and_then(|line| serde_json::from_str(line).ok()),
            })))
        }
        Err(TryLockError::Error(error)) => Err(error),
    }
}

/// Parses the name of a lock file into tenant and number.
pub(crate) fn parse_name(file_name: &str) -> Option<(TenantName, InstanceId)> {
    let (tenant, id) = file_name.strip_suffix(".lock")?.rsplit_once('.')?;
    Some((
        TenantName::parse(tenant).ok()?,
        InstanceId(id.parse().ok()?),
    ))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn a_lock_is_held_while_any_copy_of_its_descriptor_is_open_and_stale_after() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("acme.7.lock");
        let file = create(&path).unwrap();
        let listen = brokkr_tenant::Listen::parse("127.0.0.1:1").unwrap();
        let what = ConfigSummary::listening(listen);
        let us = LockHolder::of(std::process::id() as i32).unwrap();
        sign(&path, &us, &what).unwrap();
        let inherited = file.try_clone().unwrap();
        drop(file);
        // An instance inherits the descriptor and cannot write another process into the file.
        assert!((&inherited).write_all(b"1 1 x").is_err());
        let LockState::Held(label) = look(&path).unwrap() else {
            panic!("not held")
        };
        assert_eq!(label.what, Some(what));
        let holder = label.holder.unwrap();
        assert_eq!(holder.pid, std::process::id() as i32);
        assert!(holder.lives());
        assert!(
            !LockHolder {
                start_time: holder.start_time + 1,
                ..holder
            }
            .lives()
        );
        assert!(create(&path).is_err());
        drop(inherited);
        assert_eq!(look(&path).unwrap(), LockState::Stale);
        assert_eq!(parse_name("acme.7.lock").unwrap().1, InstanceId(7));
        assert!(parse_name("acme.7.sock").is_none() && parse_name("supervisor.lock").is_none());
    }
}

//! The folders the daemon lives in, and the lock that makes it the only one there.

use crate::config::Supervisor;
use crate::control;
use nix::unistd::{AccessFlags, access};
use std::fs::{DirBuilder, File, Metadata, OpenOptions, TryLockError};
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// A process that has been killed may take so long to go.
const DYING: Duration = Duration::from_secs(1);
const LOOK: Duration = Duration::from_millis(10);

/// `RUNTIME_DIR/instances`.
pub(super) fn instances(config: &Supervisor) -> PathBuf {
    config.runtime_dir.join("instances")
}

/// The runtime folder, for this process alone.
#[derive(Debug)]
pub(crate) struct Taken {
    /// The lock file: passed on to the program that takes this one's place.
    pub(super) file: File,
    /// The folder itself is locked as well, for a file in it may be removed. Taken anew by the next program.
    folder: File,
}

impl Taken {
    /// Whether the runtime folder, and what brokers are started with there, is where it was put.
    pub(super) fn is_whole(&self, config: &Supervisor) -> bool {
        is_at(&self.folder, &config.runtime_dir) && instances(config).is_dir()
    }

    /// Makes again what has gone of the runtime folder, and takes it again. Blocks.
    ///
    /// # Errors
    /// What is in the way, for the operator.
    pub(super) fn repair(&mut self, config: &Supervisor) -> Result<(), String> {
        if !is_at(&self.folder, &config.runtime_dir) {
            *self = prepare(config, None)?;
            return Ok(());
        }
        make(&instances(config), 0o700)
    }
}

/// Makes what is missing and takes the runtime folder for this process alone, until what is returned is dropped. `held` is
/// the lock as the supervisor had it that has become this one.
///
/// # Errors
/// What is in the way, for the operator.
pub(super) fn prepare(config: &Supervisor, held: Option<OwnedFd>) -> Result<Taken, String> {
    // Others may pass through to reach the control socket, whose own mode says who may use it.
    make(&config.runtime_dir, 0o755)?;
    make(&config.state_dir, 0o755)?;
    let path = config.runtime_dir.join("supervisor.lock");
    let file = match held.map(File::from).filter(|held| is_at(held, &path)) {
        Some(held) => held,
        None => take(&path)?,
    };
    let folder = take_folder(&config.runtime_dir)?;
    make(&instances(config), 0o700)?;
    make(&config.state_dir.join("tenants"), 0o711)?;
    Ok(Taken { file, folder })
}

/// Whether the control socket could be placed. Changes nothing.
///
/// # Errors
/// What is in the way, for the operator.
pub(super) fn could_serve(config: &Supervisor) -> Result<(), String> {
    let path = config.runtime_dir.join(control::SOCKET);
    if std::fs::symlink_metadata(&path).is_ok_and(|found| found.is_dir()) {
        return Err(format!("cannot bind {}: it is a directory", path.display()));
    }
    match access(&config.runtime_dir, AccessFlags::W_OK | AccessFlags::X_OK) {
        // One that has gone is made.
        Ok(()) | Err(nix::errno::Errno::ENOENT) => Ok(()),
        Err(error) => Err(format!("cannot bind {}: {error}", path.display())),
    }
}

fn make(path: &Path, mode: u32) -> Result<(), String> {
    DirBuilder::new()
        .recursive(true)
        .mode(mode)
        .create(path)
        .map_err(|error| format!("cannot make {}: {error}", path.display()))
}

/// Whether this open file is the one at `path`.
fn is_at(file: &File, path: &Path) -> bool {
    let identity = |m: Metadata| (m.dev(), m.ino());
    let there = std::fs::metadata(path).map(identity).ok();
    there.is_some() && there == file.metadata().map(identity).ok()
}

/// Takes the lock; one that has just been killed has it until the kernel is done with it.
fn lock(file: &File) -> Result<(), TryLockError> {
    let began = Instant::now();
    loop {
        match file.try_lock() {
            Err(TryLockError::WouldBlock) if began.elapsed() < DYING => std::thread::sleep(LOOK),
            ended => return ended,
        }
    }
}

fn take_folder(path: &Path) -> Result<File, String> {
    let folder =
        File::open(path).map_err(|error| format!("cannot open {}: {error}", path.display()))?;
    match lock(&folder) {
        Ok(()) => Ok(folder),
        Err(TryLockError::WouldBlock) => Err(format!(
            "another brokkr-supervisor runs in {}, though its lock file has been removed (`pgrep -a brokkr-superv` finds it): stop that one",
            path.display()
        )),
        Err(TryLockError::Error(error)) => Err(format!("cannot lock {}: {error}", path.display())),
    }
}

fn take(path: &Path) -> Result<File, String> {
    let mut file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .read(true)
        .write(true)
        .mode(0o600)
        .open(path)
        .map_err(|error| format!("cannot open {}: {error}", path.display()))?;
    match lock(&file) {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut pid = String::new();
            let _ = file.read_to_string(&mut pid);
            return Err(format!(
                "another brokkr-supervisor (pid {}) runs in {}: stop it, or give this one a runtime_dir of its own",
                pid.trim(),
                path.parent().unwrap_or(path).display()
            ));
        }
        Err(TryLockError::Error(error)) => {
            return Err(format!("cannot lock {}: {error}", path.display()));
        }
    }
    let wrote = file
        .set_len(0)
        .and_then(|()| writeln!(file, "{}", std::process::id()));
    wrote.map_err(|error| format!("cannot write {}: {error}", path.display()))?;
    Ok(file)
}

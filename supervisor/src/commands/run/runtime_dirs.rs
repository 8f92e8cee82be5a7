//! The daemon's folders, and the lock that allows only one daemon in them.

use crate::config::SupervisorConfig;
use crate::control;
use nix::unistd::{AccessFlags, access};
use std::fs::{DirBuilder, File, Metadata, OpenOptions, Permissions, TryLockError};
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Time that a killed process may take to disappear.
const DYING: Duration = Duration::from_secs(1);
const LOOK: Duration = Duration::from_millis(10);

pub(super) fn instances(config: &SupervisorConfig) -> PathBuf {
    config.runtime_dir.join("instances")
}

/// The runtime folder, locked for this process.
#[derive(Debug)]
pub(crate) struct RuntimeDirLock {
    /// Lock file, passed on to the program that replaces this program.
    pub(super) file: File,
    /// Lock on the folder itself, because the lock file may be removed. The next program takes this lock anew.
    folder: File,
}

impl RuntimeDirLock {
    /// Returns true when the runtime folder and its instances folder are still in place.
    pub(super) fn is_whole(&self, config: &SupervisorConfig) -> bool {
        is_at(&self.folder, &config.runtime_dir) && instances(config).is_dir()
    }

    /// Restores missing parts of the runtime folder, and locks it again. Blocks.
    pub(super) fn repair(&mut self, config: &SupervisorConfig) -> Result<(), String> {
        if !is_at(&self.folder, &config.runtime_dir) {
            *self = prepare(config, None)?;
            return Ok(());
        }
        make_instances(config)
    }
}

/// Creates missing folders and locks the runtime folder until the returned value is dropped. `held` is the lock of the
/// supervisor that executed this program.
pub(super) fn prepare(
    config: &SupervisorConfig,
    held: Option<OwnedFd>,
) -> Result<RuntimeDirLock, String> {
    // Other users may pass through to the control socket, whose own mode restricts its use.
    make(&config.runtime_dir, 0o755)?;
    make(&config.state_dir, 0o755)?;
    let path = config.runtime_dir.join("supervisor.lock");
    let file = match held.map(File::from).filter(|held| is_at(held, &path)) {
        Some(held) => held,
        None => take(&path)?,
    };
    let folder = take_folder(&config.runtime_dir)?;
    make_instances(config)?;
    make(&config.state_dir.join("tenants"), 0o711)?;
    if config.own_uids().is_some() {
        open_to_tenants(config)?;
    }
    Ok(RuntimeDirLock { file, folder })
}

/// Checks that the control socket could be placed. Changes nothing.
pub(super) fn could_serve(config: &SupervisorConfig) -> Result<(), String> {
    let path = config.runtime_dir.join(control::SOCKET);
    if std::fs::symlink_metadata(&path).is_ok_and(|found| found.is_dir()) {
        return Err(format!("cannot bind {}: it is a directory", path.display()));
    }
    match access(&config.runtime_dir, AccessFlags::W_OK | AccessFlags::X_OK) {
        // A missing folder will be created.
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

/// Creates the instances' folder. Tenants with user ids of their own must reach their sockets in it, and not list it.
fn make_instances(config: &SupervisorConfig) -> Result<(), String> {
    let path = instances(config);
    let mode = match config.own_uids() {
        Some(_) => 0o711,
        None => 0o700,
    };
    make(&path, mode)?;
    set_mode(&path, mode)
}

/// Lets every user pass through the folders above those of the tenants, and lets no other user change them: before
/// `[isolation] uids` they may have been the user's that ran all brokers.
fn open_to_tenants(config: &SupervisorConfig) -> Result<(), String> {
    let tenants = config.state_dir.join("tenants");
    for path in [&config.runtime_dir, &config.state_dir, &tenants] {
        let said =
            |error: std::io::Error| format!("cannot open {} to tenants: {error}", path.display());
        let found = std::fs::symlink_metadata(path).map_err(said)?;
        if found.is_dir() && found.uid() != 0 {
            std::os::unix::fs::lchown(path, Some(0), None).map_err(said)?;
        }
        let mode = std::fs::metadata(path).map_err(said)?.mode() & 0o777;
        if mode & 0o001 == 0 {
            set_mode(path, mode | 0o001)?;
        }
        for above in path.ancestors().skip(1) {
            if std::fs::metadata(above).is_ok_and(|found| found.mode() & 0o001 == 0) {
                return Err(format!(
                    "tenants with user ids of their own cannot reach {}, because {} is closed to them: `chmod o+x {}`",
                    path.display(),
                    above.display(),
                    above.display()
                ));
            }
        }
    }
    Ok(())
}

fn set_mode(path: &Path, mode: u32) -> Result<(), String> {
    std::fs::set_permissions(path, Permissions::from_mode(mode))
        .map_err(|error| format!("cannot change the mode of {}: {error}", path.display()))
}

/// Returns true when this open file is the file at `path`.
fn is_at(file: &File, path: &Path) -> bool {
    let identity = |m: Metadata| (m.dev(), m.ino());
    let there = std::fs::metadata(path).map(identity).ok();
    there.is_some() && there == file.metadata().map(identity).ok()
}

/// Takes the lock; waits briefly, because a killed process holds its lock until the kernel has ended it.
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

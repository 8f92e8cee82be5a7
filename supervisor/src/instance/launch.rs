//! Makes everything one instance is started with (docs: "Between supervisor and broker"), and starts it.

use super::lock::{self, Files};
use super::notify::NotifySocket;
use super::orphans::{self, Registered};
use crate::sys::{self, Plan, Spawned};
use brokkr_tenant::InstanceConfig;
use nix::fcntl::{FcntlArg, OFlag, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use std::ffi::CString;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// What it takes to start one instance.
pub(crate) struct Launch {
    pub(crate) program: PathBuf,
    pub(crate) files: Files,
    pub(crate) listener: Arc<OwnedFd>,
    pub(crate) config: InstanceConfig,
    pub(crate) open_files: (u64, u64),
}

/// A process, and the ends of its channels that are ours.
pub(crate) struct Launched {
    pub(crate) process: Spawned,
    /// To be dropped once the process has been reaped.
    pub(crate) registered: Option<Registered>,
    pub(crate) log: OwnedFd,
    pub(crate) notify: UnixDatagram,
}

impl Launch {
    /// Starts it. Blocks for about a millisecond: not for the event loop.
    ///
    /// # Errors
    /// What could not be made, in words for the operator. Nothing is left behind then.
    pub(crate) fn run(self) -> Result<Launched, String> {
        let files = self.files.clone();
        // Before anything else: while somebody holds it, the files are theirs.
        let lock_file = lock::create(&files.lock())
            .map_err(|error| format!("cannot lock the instance's lock file: {error}"))?;
        self.try_run(&lock_file).inspect_err(|_| files.remove())
    }

    fn try_run(self, lock_file: &File) -> Result<Launched, String> {
        let said = |what: &str| {
            let what = what.to_owned();
            move |error: io::Error| format!("{what}: {error}")
        };
        own_folder(&self.config.state_dir).map_err(said(&format!(
            "cannot make {}",
            self.config.state_dir.display()
        )))?;
        let private = private_socket(&self.files.private())
            .map_err(said("cannot bind the private socket"))?;
        let _ = std::fs::remove_file(self.files.notify());
        let notify = NotifySocket::bind(&self.files.notify())
            .map_err(said("cannot bind the notify socket"))?;
        let config = sealed(self.config.to_json().as_bytes())
            .map_err(said("cannot make the configuration's memfd"))?;
        let (log, log_write) = nix::unistd::pipe2(OFlag::O_CLOEXEC)
            .map_err(|e| format!("cannot make the log pipe: {e}"))?;
        let null = File::open("/dev/null").map_err(said("cannot open /dev/null"))?;
        let plan = Plan {
            program: c_string(&self.program).map_err(said("bad path of the broker"))?,
            arguments: vec![c"brokkr-broker".into(), c"serve".into()],
            environment: vec![
                c"LISTEN_FDS=2".into(),
                c"LISTEN_FDNAMES=http:private".into(),
                c"BROKKR_CONFIG_FD=5".into(),
                prefixed("NOTIFY_SOCKET=", &self.files.notify())
                    .map_err(said("bad runtime folder"))?,
            ],
            standard: [null.as_fd(), log_write.as_fd(), log_write.as_fd()],
            passed: vec![
                self.listener.as_fd(),
                private.as_fd(),
                config.as_fd(),
                lock_file.as_fd(),
            ],
            open_files: self.open_files,
        };
        let mut registered = None;
        let process = sys::spawn(&plan, |pid| {
            registered = Some(orphans::register(pid));
            lock::sign(lock_file, pid)
        })
        .map_err(said(&format!("cannot start {}", self.program.display())))?;
        Ok(Launched {
            process,
            registered,
            log,
            notify,
        })
    }
}

/// Creates the tenant's state folder, for its owner only.
fn own_folder(path: &Path) -> io::Result<()> {
    std::fs::create_dir_all(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o700))
}

fn private_socket(path: &Path) -> io::Result<UnixListener> {
    let _ = std::fs::remove_file(path);
    let socket = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

/// A file in memory that nobody can change any more, us included.
fn sealed(content: &[u8]) -> io::Result<OwnedFd> {
    let fd = memfd_create(
        "brokkr-config",
        MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING,
    )?;
    let mut file = File::from(fd);
    file.write_all(content)?;
    file.set_permissions(std::fs::Permissions::from_mode(0o400))?;
    io::Seek::rewind(&mut file)?;
    let seals = SealFlag::F_SEAL_SHRINK
        | SealFlag::F_SEAL_GROW
        | SealFlag::F_SEAL_WRITE
        | SealFlag::F_SEAL_SEAL;
    fcntl(&file, FcntlArg::F_ADD_SEALS(seals))?;
    Ok(file.into())
}

fn c_string(path: &Path) -> io::Result<CString> {
    Ok(CString::new(path.as_os_str().as_bytes())?)
}

fn prefixed(prefix: &str, path: &Path) -> io::Result<CString> {
    Ok(CString::new(
        [prefix.as_bytes(), path.as_os_str().as_bytes()].concat(),
    )?)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use std::io::Read;

    #[test]
    fn a_sealed_memfd_can_be_read_and_not_be_written() {
        let fd = sealed(b"secret").unwrap();
        let mut file = File::from(fd);
        let mut text = String::new();
        file.read_to_string(&mut text).unwrap();
        assert_eq!(text, "secret");
        assert!(file.write_all(b"x").is_err());
        assert!(file.set_len(0).is_err());
    }
}

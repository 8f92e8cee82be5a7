//! Prepares everything that an instance is started with (docs: "Between supervisor and broker"), and starts it.

use super::cgroup::{Cgroup, limits_of};
use super::lock::{self, InstanceFiles, LockHolder};
use super::notify::NotifySocket;
use super::reaper::{self, OwnedChild};
use super::state_folder;
use crate::config::{ConfigSummary, Stamp};
use crate::memfd;
use crate::servers::provision::{Provisioner, RoleWish};
use crate::sys::{self, SpawnPlan, Spawned};
use brokkr_tenant::instance_protocol::{CONFIG_FD, HTTP_SOCKET, PRIVATE_SOCKET};
use brokkr_tenant::{DatabaseUrl, InstanceConfig, SocketPath};
use nix::fcntl::OFlag;
use std::ffi::{CString, OsStr};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Everything needed to start one instance.
pub(crate) struct SpawnRequest {
    pub(crate) program: PathBuf,
    pub(crate) files: InstanceFiles,
    pub(crate) listener: Arc<OwnedFd>,
    pub(crate) config: InstanceConfig,
    /// The role to provision before the start, and the thread that does so.
    pub(crate) role: Option<(Provisioner, RoleWish)>,
    /// The URL that logs in as the provisioned role.
    pub(crate) login: Option<DatabaseUrl>,
    pub(crate) open_files: (u64, u64),
    /// Its cgroup, where instances have cgroups.
    pub(crate) group: Option<Cgroup>,
}

/// A started process and the supervisor's ends of its channels.
pub(crate) struct SpawnedInstance {
    pub(crate) process: Spawned,
    pub(crate) start_time: u64,
    /// The program it was started from.
    pub(crate) program: Option<Stamp>,
    /// Must be dropped only after the process has been reaped.
    pub(crate) registered: Option<OwnedChild>,
    pub(crate) log: OwnedFd,
    pub(crate) notify: OwnedFd,
}

impl SpawnRequest {
    /// Provisions the role, so that [`SpawnRequest::run`] can start the instance.
    ///
    /// # Errors
    /// A message for the operator.
    pub(crate) async fn provision(&mut self) -> Result<(), String> {
        if let Some((provisioner, wish)) = self.role.take() {
            self.login = Some(provisioner.provision(wish).await?);
        }
        Ok(())
    }

    /// Starts the instance. Blocks for about a millisecond, so it must not run on the event loop.
    ///
    /// # Errors
    /// A message for the operator. The files and the cgroup are removed then.
    pub(crate) fn run(self) -> Result<SpawnedInstance, String> {
        let files = self.files.clone();
        // Locks first, because the files belong to the process that holds the lock.
        let lock_file = lock::create(&files.lock())
            .map_err(|error| format!("cannot lock the instance's lock file: {error}"))?;
        let group = self.group.clone();
        self.try_run(&lock_file).inspect_err(|_| {
            files.remove();
            if let Some(group) = group {
                group.remove();
            }
        })
    }

    fn try_run(self, lock_file: &File) -> Result<SpawnedInstance, String> {
        let said = |what: &str| {
            let what = what.to_owned();
            move |error: io::Error| format!("{what}: {error}")
        };
        let (folder, database) = (&self.config.state_dir, &self.config.config.database);
        state_folder::prepare(folder, &self.config.tenant, database)
            .map_err(said(&format!("cannot make {}", folder.display())))?;
        let private = private_socket(&self.files.private())
            .map_err(said("cannot bind the private socket"))?;
        let _ = std::fs::remove_file(self.files.notify());
        let notify = NotifySocket::bind(&self.files.notify())
            .map_err(said("cannot bind the notify socket"))?;
        let mut told = self.config.clone();
        if let Some(login) = &self.login {
            told.config.database.url.clone_from(login);
        }
        let config = memfd::sealed("brokkr-config", told.to_json().as_bytes())
            .map_err(said("cannot make the configuration's memfd"))?;
        let (log, log_write) = nix::unistd::pipe2(OFlag::O_CLOEXEC)
            .map_err(|e| format!("cannot make the log pipe: {e}"))?;
        // Read before the program is executed, so that a program replaced meanwhile is seen as newer.
        let program = Stamp::of(&self.program);
        let what = ConfigSummary::of(&self.config.config, program.clone());
        let null = File::open("/dev/null").map_err(said("cannot open /dev/null"))?;
        let plan = SpawnPlan {
            program: c_string(&self.program).map_err(said("bad path of the broker"))?,
            arguments: vec![c"brokkr-broker".into(), c"serve".into()],
            environment: environment(&self.files.notify()).map_err(said("bad runtime folder"))?,
            standard: [null.as_fd(), log_write.as_fd(), log_write.as_fd()],
            passed: vec![
                self.listener.as_fd(),
                private.as_fd(),
                config.as_fd(),
                lock_file.as_fd(),
            ],
            open_files: self.open_files,
        };
        let limits = limits_of(&self.config.config);
        let tenant = &self.config.tenant;
        // Starts the broker without limits rather than not at all, because its agents need it.
        let without = |error: &io::Error| {
            tracing::warn!(%tenant, "runs without a control group, [limits] is not enforced: {error}");
        };
        let group = self.group.as_ref();
        let group = group.filter(|group| group.create(&limits).inspect_err(without).is_ok());
        let mut registered = None;
        let mut start_time = 0;
        let process = sys::spawn(&plan, |pid| {
            registered = Some(reaper::register(pid));
            let holder = LockHolder::of(pid)?;
            start_time = holder.start_time;
            // Enters the cgroup before it executes anything, so that all its descendants are in the cgroup too.
            if let Some(group) = group {
                let _ = group.enter(pid).inspect_err(without);
            }
            lock::sign(&self.files.lock(), &holder, &what).map_err(|error| {
                let path = self.files.lock();
                io::Error::new(
                    error.kind(),
                    format!("cannot write {}: {error}", path.display()),
                )
            })
        })
        .map_err(said(&format!("cannot start {}", self.program.display())))?;
        Ok(SpawnedInstance {
            process,
            start_time,
            program,
            registered,
            log,
            notify,
        })
    }
}

fn private_socket(path: &Path) -> io::Result<UnixListener> {
    let _ = std::fs::remove_file(path);
    let socket = UnixListener::bind(SocketPath::of(path)?.as_path())?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

fn c_string(path: &Path) -> io::Result<CString> {
    Ok(CString::new(path.as_os_str().as_bytes())?)
}

/// Returns the broker's environment, which names the descriptors of [`SpawnPlan::passed`].
fn environment(notify_socket: &Path) -> io::Result<Vec<CString>> {
    let names = format!("{HTTP_SOCKET}:{PRIVATE_SOCKET}");
    let variables = [
        ("LISTEN_FDS", OsStr::new("2")),
        ("LISTEN_FDNAMES", OsStr::new(&names)),
        (CONFIG_FD, OsStr::new("5")),
        ("NOTIFY_SOCKET", notify_socket.as_os_str()),
    ];
    let assigned = variables
        .map(|(name, value)| CString::new([name.as_bytes(), b"=", value.as_bytes()].concat()));
    Ok(assigned.into_iter().collect::<Result<_, _>>()?)
}

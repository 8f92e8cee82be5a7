//! Prepares everything that an instance is started with (docs: "Between supervisor and broker"), and starts it.

use super::cgroup::{Cgroup, limits_of};
use super::lock::{self, InstanceFiles, LockHolder};
use super::notify::NotifySocket;
use super::reaper::{self, OwnedChild};
use super::state_folder;
use super::tenant_uids::{TenantUids, UidError};
use crate::config::{ConfigSummary, Stamp};
use crate::memfd;
use crate::servers::provision::{Provisioner, RoleWish};
use crate::sys::{self, ChildUser, SpawnPlan, Spawned};
use brokkr_tenant::instance_protocol::{CONFIG_FD, HTTP_SOCKET, PRIVATE_SOCKET};
use brokkr_tenant::{DatabaseUrl, InstanceConfig, SocketPath};
use nix::fcntl::OFlag;
use nix::unistd::geteuid;
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
    /// The user ids of tenants, where each tenant has its own.
    pub(crate) uids: Option<TenantUids>,
}

/// An error in starting an instance, as a text for the operator.
#[derive(Debug)]
pub(crate) enum SpawnError {
    /// There is no user id for the tenant, and another try would not find one either.
    NoUid(String),
    /// Another try may succeed.
    Failed(String),
}

impl From<String> for SpawnError {
    fn from(reason: String) -> Self {
        Self::Failed(reason)
    }
}

/// A started process and the supervisor's ends of its channels.
pub(crate) struct SpawnedInstance {
    pub(crate) process: Spawned,
    pub(crate) start_time: u64,
    /// The program it was started from.
    pub(crate) program: Option<Stamp>,
    /// Its user.
    pub(crate) uid: u32,
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
    /// See [`SpawnError`]. The files and the cgroup are removed then.
    pub(crate) fn run(self) -> Result<SpawnedInstance, SpawnError> {
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

    fn try_run(self, lock_file: &File) -> Result<SpawnedInstance, SpawnError> {
        let said = |what: &str| {
            let what = what.to_owned();
            move |error: io::Error| format!("{what}: {error}")
        };
        let owner = self.prepare_state_folder()?;
        let limits = limits_of(&self.config.config);
        let private = private_socket(&self.files.private())
            .map_err(said("cannot bind the private socket"))?;
        let _ = std::fs::remove_file(self.files.notify());
        let notify = NotifySocket::bind(&self.files.notify(), owner)
            .map_err(said("cannot bind the notify socket"))?;
        let mut told = self.config.clone();
        if let Some(login) = &self.login {
            told.config.database.url.clone_from(login);
        }
        let config = memfd::sealed("brokkr-config", told.to_json().as_bytes())
            .map_err(said("cannot make the configuration's memfd"))?;
        if let Some(uid) = owner {
            std::os::unix::fs::fchown(&config, Some(uid), Some(uid))
                .map_err(said("cannot give the configuration's memfd to the tenant"))?;
        }
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
            user: owner.map(|uid| ChildUser {
                uid,
                // Two instances of a tenant run at most, and each cgroup has its own limit.
                processes: 2 * u64::from(limits.pids_max.unwrap_or(u32::MAX)),
            }),
        };
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
        .map_err(|error| self.not_started(owner, &error))?;
        Ok(SpawnedInstance {
            process,
            start_time,
            program,
            uid: owner.unwrap_or_else(|| geteuid().as_raw()),
            registered,
            log,
            notify,
        })
    }
}

impl SpawnRequest {
    /// Prepares the tenant's state folder, and returns the user that the instance runs as, if it has one of its own.
    fn prepare_state_folder(&self) -> Result<Option<u32>, SpawnError> {
        let (folder, tenant) = (&self.config.state_dir, &self.config.tenant);
        let database = &self.config.config.database;
        let said = |error: io::Error| format!("cannot make {}: {error}", folder.display());
        // First, because the folder brings its user along.
        state_folder::follow_schema(folder, tenant, database).map_err(said)?;
        let uid = match self.uids.as_ref().map(|uids| uids.assign(tenant)) {
            None => None,
            Some(Ok(uid)) => Some(uid),
            Some(Err(error @ UidError::NoneLeft { .. })) => {
                return Err(SpawnError::NoUid(error.to_string()));
            }
            Some(Err(UidError::Record { path, source })) => {
                let path = path.display();
                return Err(format!("cannot write {path}: {source}").into());
            }
        };
        // Without user ids root takes back the files that it gave to a tenant.
        let owner = uid.or(geteuid().is_root().then_some(0));
        state_folder::prepare(folder, tenant, database, owner).map_err(said)?;
        Ok(uid)
    }

    fn not_started(&self, uid: Option<u32>, error: &io::Error) -> String {
        let program = self.program.display();
        match uid {
            Some(uid) => format!(
                "cannot start {program} as user {uid}: {error} (every user must be able to reach and execute it, and \
                 root needs CAP_SETUID, CAP_SETGID and CAP_SETPCAP)"
            ),
            None => format!("cannot start {program}: {error}"),
        }
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

//! The sandbox of a supervised broker: an attacker who runs code in this process reaches no more than the broker needs.
//!
//! Two layers of the kernel, entered before the first thread starts, because both bind the calling thread and the
//! threads that it starts:
//!
//! - [`landlock`](landlock_rules) allows files by path: certificates, resolver and time zone to read, the state folder as
//!   long as the first start must write. It also forbids signals and abstract sockets to processes outside.
//! - [`seccomp`](seccomp_rules) forbids system calls that no broker makes: exec, fork, ptrace, bind, io_uring and others.
//!
//! A kernel may lack a layer or a part of one. The broker then runs without it and says so on its private socket, unless
//! `[isolation] required = true`.

mod landlock_rules;
mod seccomp_rules;

use std::ffi::OsString;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use brokkr_tenant::Host;
use brokkr_tenant::instance_protocol::{Isolation, IsolationLayer};
use nix::fcntl::{OFlag, open};
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::stat::Mode;

use crate::config::Instance;
use crate::db::start;

/// The resources that one instance needs besides what every broker needs.
#[derive(Debug)]
struct Needs {
    /// The state folder, if this start may write it.
    writes: Option<PathBuf>,
    /// The state folder, where it is only read.
    reads: Vec<PathBuf>,
    /// The folder of the database's Unix socket.
    database_socket: Option<PathBuf>,
    /// The supervisor's notify socket.
    notify: Option<OsString>,
}

impl Needs {
    fn of(instance: &Instance) -> Self {
        let url = &instance.config.database.url;
        let writes = instance.core || start::writes_state(&instance.plan());
        let state = instance.state_dir.clone();
        let certificate = url.ssl_root_cert().map(Path::to_owned);
        Self {
            reads: certificate.into_iter().chain([state.clone()]).collect(),
            writes: writes.then_some(state),
            database_socket: match url.host() {
                Host::Unix(folder) => Some(folder.clone()),
                Host::Tcp(_) => None,
            },
            notify: std::env::var_os("NOTIFY_SOCKET"),
        }
    }
}

static ENTERED: OnceLock<Isolation> = OnceLock::new();
/// Keeps `/proc/self` in the kernel's memory, because Landlock's rule is about this very inode.
static PROC_SELF: OnceLock<OwnedFd> = OnceLock::new();

/// Enters the sandbox. Call it before any thread is started.
///
/// # Errors
/// The missing layers, if `required`.
pub fn enter(instance: &Instance, required: bool) -> Result<(), String> {
    let needs = Needs::of(instance);
    if let Ok(folder) = open(
        "/proc/self",
        OFlag::O_PATH | OFlag::O_CLOEXEC,
        Mode::empty(),
    ) {
        let _ = PROC_SELF.set(folder);
    }
    if needs.writes.is_none() {
        // A file that Landlock does not guard cannot grow either.
        let _ = setrlimit(Resource::RLIMIT_FSIZE, 0, 0);
    }
    let layers = vec![
        layer("landlock", landlock_rules::enter(&needs)),
        // Last, because it forbids nothing that Landlock's own calls need, but might in the future.
        layer(
            "seccomp",
            seccomp_rules::enter(needs.database_socket.is_some()),
        ),
    ];
    let missing: Vec<String> = layers
        .iter()
        .filter(|layer| !layer.on)
        .map(|layer| format!("{}: {}", layer.name, layer.detail))
        .collect();
    let _ = ENTERED.set(Isolation {
        layers,
        unreadable: Vec::new(),
    });
    if required && !missing.is_empty() {
        return Err(format!(
            "[isolation] required = true, and this host lacks a layer ({}): use a kernel that has it, or set it to false",
            missing.join("; ")
        ));
    }
    Ok(())
}

fn layer(name: &str, entered: Result<String, String>) -> IsolationLayer {
    let on = entered.is_ok();
    let (Ok(detail) | Err(detail)) = entered;
    IsolationLayer {
        name: name.to_owned(),
        on,
        detail,
    }
}

/// Returns the layers in force, and the files that may no longer be read; `None` outside a sandbox. Reads files, so it
/// must not run on the event loop.
pub fn state() -> Option<Isolation> {
    let entered = ENTERED.get()?;
    let unreadable = landlock_rules::REPLACEABLE.iter().filter(|path| {
        let denied = File::open(path).err();
        denied.is_some_and(|error| error.kind() == std::io::ErrorKind::PermissionDenied)
    });
    Some(Isolation {
        unreadable: unreadable.map(|path| (*path).to_owned()).collect(),
        ..entered.clone()
    })
}

//! The sandbox of a supervised broker: an attacker who runs code in this process reaches no more than the broker needs.
//!
//! Three layers of the kernel, entered before the first thread starts, because they bind the calling thread and the
//! threads that it starts:
//!
//! - Capabilities are given up, so that a broker of root's is a user like others: it cannot put another process's id on
//!   a datagram.
//! - [`landlock`](landlock_rules) allows files by path: certificates, resolver and time zone to read, the state folder as
//!   long as the first start must write. It also forbids signals and abstract sockets to processes outside.
//! - [`seccomp`](seccomp_rules) forbids system calls that no broker makes: exec, fork, ptrace, bind, io_uring and others.
//!
//! A kernel may lack a layer or a part of one. The broker then runs without it and says so on its private socket, unless
//! `[isolation] required = true`.

mod landlock_rules;
mod seccomp_rules;

use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use brokkr_tenant::Host;
use brokkr_tenant::instance_protocol::{Isolation, IsolationLayer};
use caps::{CapSet, Capability, CapsHashSet};
use nix::fcntl::{OFlag, open};
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::stat::Mode;

use crate::config::Instance;
use crate::db::start::{self, Plan};
use landlock_rules::Needs;

/// Returns the resources that the sandbox must leave to this instance.
fn needs(instance: &Instance) -> Needs {
    let url = &instance.config.database.url;
    let writes = instance.core || start::writes_state(&instance.plan());
    let state = instance.state_dir.clone();
    let certificates = url.ssl_files().map(Path::to_owned);
    Needs {
        reads: certificates.chain([state.clone()]).collect(),
        writes: writes.then_some(state),
        database_socket: match url.host() {
            Host::Unix(folder) => Some(folder.clone()),
            Host::Tcp(_) => None,
        },
        notify: std::env::var_os("NOTIFY_SOCKET"),
    }
}

static ENTERED: OnceLock<Isolation> = OnceLock::new();
/// Keeps `/proc/self` in the kernel's memory, because Landlock's rule is about this very inode.
static PROC_SELF: OnceLock<OwnedFd> = OnceLock::new();

/// The settings of a start that may not write its state folder.
static READ_ONLY: OnceLock<Plan> = OnceLock::new();

/// Enters the sandbox. Call it before any thread is started.
///
/// # Errors
/// The missing layers, if `required`.
pub fn enter(instance: &Instance, required: bool) -> Result<(), String> {
    let needs = needs(instance);
    if let Ok(folder) = open(
        "/proc/self",
        OFlag::O_PATH | OFlag::O_CLOEXEC,
        Mode::empty(),
    ) {
        let _ = PROC_SELF.set(folder);
    }
    if needs.writes.is_none() {
        let _ = READ_ONLY.set(instance.plan());
        // A file that Landlock does not guard cannot grow either.
        let _ = setrlimit(Resource::RLIMIT_FSIZE, 0, 0);
    }
    let layers = vec![
        layer("capabilities", give_up_capabilities(&needs)),
        layer("landlock", landlock_rules::enter(&needs)),
        // Last, so that it may forbid the calls that the layers before it make.
        layer(
            "seccomp",
            seccomp_rules::enter(needs.database_socket.is_some()),
        ),
    ];
    let missing = missing(&layers);
    let _ = ENTERED.set(Isolation {
        layers,
        unreadable: Vec::new(),
    });
    match missing {
        Some(missing) if required => Err(missing),
        _ => Ok(()),
    }
}

/// Names the missing layers, in the words for a tenant that must not run without them; `None` when none is missing.
fn missing(layers: &[IsolationLayer]) -> Option<String> {
    let missing = layers.iter().filter(|layer| !layer.on);
    let missing: Vec<String> = missing
        .map(|layer| format!("{}: {}", layer.name, layer.detail))
        .collect();
    (!missing.is_empty()).then(|| {
        format!(
            "[isolation] required = true in supervisor.toml, and this host lacks a layer ({}): use a kernel that has it, or set required = false",
            missing.join("; ")
        )
    })
}

/// Gives up every capability, except that root may still use the socket of a PostgreSQL that runs as another user.
fn give_up_capabilities(needs: &Needs) -> Result<String, String> {
    let had = caps::read(None, CapSet::Permitted).map_err(|error| error.to_string())?;
    // A process that has none can get none. Its unit may forbid even the attempt to give them up.
    if had.is_empty() {
        return Ok("none".to_owned());
    }
    let socket = CapsHashSet::from([Capability::CAP_DAC_OVERRIDE]);
    let kept: CapsHashSet = match needs.database_socket {
        Some(_) => had.intersection(&socket).copied().collect(),
        None => CapsHashSet::new(),
    };
    for set in [
        CapSet::Ambient,
        CapSet::Inheritable,
        CapSet::Effective,
        CapSet::Permitted,
    ] {
        let keep = match set {
            CapSet::Effective | CapSet::Permitted => kept.clone(),
            _ => CapsHashSet::new(),
        };
        caps::set(None, set, &keep).map_err(|error| error.to_string())?;
    }
    Ok(match kept.is_empty() {
        true => "none".to_owned(),
        false => "only CAP_DAC_OVERRIDE, for the socket of the database".to_owned(),
    })
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

/// Returns the state folder, if this process would have to write there and may not: its content was removed or replaced
/// after the process had entered its sandbox. Reads files.
pub fn unwritable_folder() -> Option<PathBuf> {
    let plan = READ_ONLY.get()?;
    let folder = plan.key_file.path().parent()?.to_owned();
    start::writes_state(plan).then_some(folder)
}

/// Returns the layers in force, and the files that may no longer be read; `None` outside a sandbox. Reads files, so it
/// must not run on the event loop.
pub fn state() -> Option<Isolation> {
    let entered = ENTERED.get()?;
    let unreadable = landlock_rules::REPLACEABLE.iter().filter(|path| {
        let denied = File::open(path).err();
        denied.is_some_and(|error| error.kind() == std::io::ErrorKind::PermissionDenied)
    });
    let unreadable = unreadable.map(|path| (*path).to_owned());
    let folder = unwritable_folder().map(|folder| folder.display().to_string());
    Some(Isolation {
        unreadable: unreadable.chain(folder).collect(),
        ..entered.clone()
    })
}

#[cfg(test)]
mod tests {
    use super::{layer, missing};

    #[test]
    fn a_missing_layer_is_named_with_its_reason() {
        let on = layer("seccomp", Ok("no exec".to_owned()));
        assert_eq!(missing(std::slice::from_ref(&on)), None);
        let off = layer("landlock", Err("this kernel has no Landlock".to_owned()));
        let said = missing(&[on, off]).unwrap_or_default();
        assert!(
            said.contains("(landlock: this kernel has no Landlock)"),
            "{said}"
        );
    }
}

//! The files, sockets and signals that Landlock allows a broker.

use std::ffi::OsString;
use std::path::PathBuf;

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible, LandlockStatus, Ruleset,
    RulesetAttr, RulesetCreatedAttr, RulesetStatus, Scope, path_beneath_rules,
};

/// The resources that one instance needs besides what every broker needs.
#[derive(Debug)]
pub(super) struct Needs {
    /// The state folder, if this start may write it.
    pub(super) writes: Option<PathBuf>,
    /// The state folder and the certificate in the database's URL.
    pub(super) reads: Vec<PathBuf>,
    /// The folder of the database's Unix socket.
    pub(super) database_socket: Option<PathBuf>,
    /// The supervisor's notify socket.
    pub(super) notify: Option<OsString>,
}

/// The newest version of Landlock whose rights are known here. Older kernels enforce the part that they know.
const NEWEST: ABI = ABI::V9;

/// Files that other programs replace by new ones. Landlock's rules are about the old file, so a broker may not read the
/// new one.
pub(super) const REPLACEABLE: &[&str] = &[
    "/etc/resolv.conf",
    "/etc/hosts",
    "/etc/nsswitch.conf",
    "/etc/localtime",
];

/// Files and folders that every broker reads: certificates, resolver, time zone, libraries that the resolver loads, and
/// what it says of itself in its metrics.
const READS: &[&str] = &[
    "/dev/null",
    "/dev/urandom",
    "/etc/ca-certificates",
    "/etc/gai.conf",
    "/etc/host.conf",
    "/etc/ld.so.cache",
    "/etc/machine-id",
    "/etc/pki",
    "/etc/ssl",
    "/lib",
    "/lib64",
    "/proc/self",
    "/proc/stat",
    "/proc/sys/kernel",
    "/run/NetworkManager",
    "/run/resolvconf",
    "/run/systemd/resolve",
    "/usr/lib",
    "/usr/lib64",
    "/usr/local/share/ca-certificates",
    "/usr/share/ca-certificates",
    "/usr/share/zoneinfo",
    "/var/lib/dbus/machine-id",
];

/// Restricts this thread and its later threads. Returns the parts in force, or the reason why none is.
pub(super) fn enter(needs: &Needs) -> Result<String, String> {
    let read = AccessFs::ReadFile | AccessFs::ReadDir;
    let reads = READS.iter().chain(REPLACEABLE).map(PathBuf::from);
    let reads = reads.chain(needs.reads.iter().cloned());
    let sockets = needs.notify.iter().map(PathBuf::from);
    let sockets = sockets.chain(needs.database_socket.clone());
    let all: BitFlags<AccessFs> = AccessFs::from_all(NEWEST);
    let entered = (|| {
        Ruleset::default()
            .set_compatibility(CompatLevel::BestEffort)
            .handle_access(all)?
            // No rule allows binding, and webhooks may use any port, so connecting stays free.
            .handle_access(AccessNet::BindTcp)?
            .scope(Scope::from_all(NEWEST))?
            .create()?
            .add_rules(path_beneath_rules(reads, read))?
            .add_rules(path_beneath_rules(sockets, AccessFs::ResolveUnix))?
            .add_rules(path_beneath_rules(
                &needs.writes,
                all & !(AccessFs::Execute | AccessFs::IoctlDev),
            ))?
            .restrict_self()
    })()
    .map_err(|error: landlock::RulesetError| error.to_string())?;
    let abi = match entered.landlock {
        LandlockStatus::NotEnabled => return Err("turned off when this kernel booted".to_owned()),
        LandlockStatus::NotImplemented => return Err("this kernel has no Landlock".to_owned()),
        LandlockStatus::Available { effective_abi, .. } => effective_abi,
    };
    if entered.ruleset == RulesetStatus::NotEnforced {
        return Err("this kernel enforces nothing of it".to_owned());
    }
    let parts = [
        (ABI::V1, "files"),
        (ABI::V4, "TCP listeners"),
        (ABI::V6, "signals, abstract sockets"),
        (ABI::V9, "Unix sockets"),
    ];
    let parts = parts.iter().filter(|(since, _)| abi >= *since);
    let parts: Vec<&str> = parts.map(|(_, part)| *part).collect();
    Ok(format!("version {}: {}", abi as i32, parts.join(", ")))
}

//! Gives up the rights of root that the supervisor does not use, before a second thread starts.
//!
//! A supervisor that is not root has none, and a unit may have taken some away already. `CAP_SYS_ADMIN` above all must
//! go: with it a process may put any other process's id on a datagram.

use caps::{CapSet, Capability, CapsHashSet};
use nix::unistd::geteuid;

/// The rights that the supervisor uses as root.
const USED: [Capability; 9] = [
    // Gives tenants their files, and the control socket its group.
    Capability::CAP_CHOWN,
    Capability::CAP_FOWNER,
    // Reads and writes in folders of tenants, of the embedded server and of the operator's choice.
    Capability::CAP_DAC_OVERRIDE,
    // Starts brokers as their users, without groups and with an empty bounding set, and the embedded server.
    Capability::CAP_SETUID,
    Capability::CAP_SETGID,
    Capability::CAP_SETPCAP,
    // Ends them.
    Capability::CAP_KILL,
    // Takes sockets and log pipes back from brokers of a killed supervisor, and describes the threads of hung ones.
    Capability::CAP_SYS_PTRACE,
    // Listens on ports below 1024.
    Capability::CAP_NET_BIND_SERVICE,
];

/// Keeps only the rights in use, for this process and for every program that it starts. Does nothing unless this is
/// root.
///
/// # Errors
/// A message for the operator.
pub(super) fn keep_only_used() -> Result<(), String> {
    if !geteuid().is_root() {
        return Ok(());
    }
    let said = |error: caps::errors::CapsError| format!("cannot give up capabilities: {error}");
    let has = caps::read(None, CapSet::Permitted).map_err(said)?;
    let keeps: CapsHashSet = USED.into_iter().filter(|cap| has.contains(cap)).collect();
    // The bounding set first, because that needs one of the rights. Otherwise a program that is executed in this one's
    // place would have everything again.
    if has.contains(&Capability::CAP_SETPCAP) {
        for cap in caps::all() {
            if !USED.contains(&cap) && caps::has_cap(None, CapSet::Bounding, cap).unwrap_or(false) {
                caps::drop(None, CapSet::Bounding, cap).map_err(said)?;
            }
        }
    }
    for set in [CapSet::Ambient, CapSet::Inheritable] {
        caps::clear(None, set).map_err(said)?;
    }
    for set in [CapSet::Effective, CapSet::Permitted] {
        caps::set(None, set, &keeps).map_err(said)?;
    }
    Ok(())
}

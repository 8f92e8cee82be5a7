//! The failures that are allowed during a fault.

use crate::procs;
use crate::wait::until;
use nix::sys::signal::Signal;
use std::collections::BTreeSet;
use std::fs;
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// Time for which the connections of a killed process are remembered. It is longer than any request lasts, and less
/// than the minute of TIME_WAIT after which the kernel may use a port again.
const REMEMBERED: Duration = Duration::from_secs(50);

/// Time without a broker that accepts, after which the supervisor answers in the tenant's place.
const STAND_IN_AFTER: Duration = Duration::from_secs(2);

/// Delay after which a session knows of a changed setting, and a broker of the end of its session.
const MOMENT: Duration = Duration::from_secs(1);

/// All currently allowed failures, shared by all clients.
#[derive(Debug, Default)]
pub struct AllowedFailures {
    doomed: Mutex<Vec<Doomed>>,
    windows: Mutex<Vec<Window>>,
}

/// The connections that a process held when it was stopped for good.
#[derive(Debug)]
struct Doomed {
    /// The tenant of the process; `None` means any tenant, because the supervisor answers in any broker's place.
    tenant: Option<String>,
    pid: i32,
    /// The clients' ports of these connections; `None` when the kernel does not show them to this user, or not yet.
    ports: Option<BTreeSet<u16>>,
    seen: Instant,
}

/// A reason for which an answer 503 is allowed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reason {
    /// The server of every tenant is away.
    ServerAway,
    /// This tenant has no broker that serves, so the supervisor may answer in its place after two seconds.
    NoBroker(String),
}

#[derive(Debug)]
struct Window {
    reason: Reason,
    from: Instant,
    to: Option<Instant>,
}

/// The origin of an allowed 503.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Allowed {
    /// The broker answered, because its server is away.
    Unavailable,
    /// The supervisor answered, because no broker serves.
    StoodIn,
}

impl AllowedFailures {
    /// Stops `pid` by SIGSTOP, notes the connections that it holds and returns their number. `tenant` is `None` for the
    /// supervisor.
    ///
    /// A stopped process accepts nothing, so any other connection waits in the backlog for another process and must be
    /// answered.
    ///
    /// # Panics
    /// When the process does not stop within half a minute.
    pub fn hold(&self, tenant: Option<&str>, pid: i32) -> usize {
        stand_still(pid);
        let mut doomed = self.lock_doomed();
        doomed.retain(|d| d.seen.elapsed() < REMEMBERED);
        doomed.push(Doomed {
            tenant: tenant.map(str::to_owned),
            pid,
            ports: None,
            seen: Instant::now(),
        });
        drop(doomed);
        let ports = connections_of(pid);
        let held = ports.as_ref().map_or(0, BTreeSet::len);
        let mut doomed = self.lock_doomed();
        if let Some(ours) = doomed.iter_mut().find(|d| d.pid == pid) {
            ours.ports = ports;
        }
        held
    }

    /// Returns true when a killed process held this connection, opened at `opened`. Each connection excuses one
    /// failure.
    pub fn was_killed(&self, tenant: &str, port: Option<u16>, opened: Instant) -> bool {
        self.lock_doomed().iter_mut().any(|d| {
            d.tenant.as_deref().is_none_or(|whose| whose == tenant)
                && d.seen.elapsed() < REMEMBERED
                && opened <= d.seen
                && match (&mut d.ports, port) {
                    (Some(ports), Some(port)) => ports.remove(&port),
                    _ => true,
                }
        })
    }

    /// Allows 503 for this reason until [`Self::close`].
    pub fn open(&self, reason: Reason) {
        self.lock_windows().push(Window {
            reason,
            from: Instant::now(),
            to: None,
        });
    }

    /// Ends all reasons after one second, because the host has recovered.
    pub fn close(&self) {
        let mut windows = self.lock_windows();
        windows.retain(|w| w.to.is_none_or(|to| to.elapsed() < REMEMBERED));
        for window in windows.iter_mut() {
            window.to.get_or_insert(Instant::now() + MOMENT);
        }
    }

    /// Returns the reason that allows a 503 that was asked for at `asked` and came now.
    pub fn allows(&self, tenant: &str, asked: Instant, stand_in: bool) -> Option<Allowed> {
        let windows = self.lock_windows();
        let now = Instant::now();
        let mut open = windows.iter().filter(|w| w.to.is_none_or(|to| asked <= to));
        let allowed = open.any(|w| match &w.reason {
            Reason::ServerAway => true,
            Reason::NoBroker(whose) => {
                stand_in && whose == tenant && now.duration_since(w.from) >= STAND_IN_AFTER
            }
        });
        allowed.then_some(if stand_in {
            Allowed::StoodIn
        } else {
            Allowed::Unavailable
        })
    }

    fn lock_doomed(&self) -> std::sync::MutexGuard<'_, Vec<Doomed>> {
        self.doomed
            .lock()
            .unwrap_or_else(|broken| broken.into_inner())
    }

    fn lock_windows(&self) -> std::sync::MutexGuard<'_, Vec<Window>> {
        self.windows
            .lock()
            .unwrap_or_else(|broken| broken.into_inner())
    }
}

/// Stops a process and waits until all its threads have stopped.
///
/// # Panics
/// When the process does not stop within half a minute.
pub fn stand_still(pid: i32) {
    procs::signal(pid, Signal::SIGSTOP);
    until(
        Duration::from_secs(30),
        format!("process {pid} to stand still"),
        || procs::stands_still(pid).then_some(()),
    );
}

/// Returns the peer's ports of the TCP connections that `pid` holds; `None` when the kernel does not show them.
pub fn connections_of(pid: i32) -> Option<BTreeSet<u16>> {
    fs::read_dir(format!("/proc/{pid}/fd")).ok()?;
    let held: BTreeSet<String> = procs::open_files(pid)
        .iter()
        .filter_map(|file| Some(file.strip_prefix("socket:[")?.strip_suffix(']')?.to_owned()))
        .collect();
    let table = fs::read_to_string(format!("/proc/{pid}/net/tcp")).ok()?;
    let ports = table.lines().skip(1).filter_map(|line| {
        // sl: local remote state queues timer retransmits uid timeout inode
        let (_, line) = line.split_once(": ")?;
        // Skip TIME_WAIT (06): there are many thousands of them, and no process holds them.
        if line.get(28..30) == Some("06") {
            return None;
        }
        let mut fields = line.split_ascii_whitespace();
        let (_, port) = fields.nth(1)?.split_once(':')?;
        held.contains(fields.nth(6)?)
            .then(|| u16::from_str_radix(port, 16).ok())?
    });
    // A listening socket has peer port 0.
    Some(ports.filter(|port| *port != 0).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_says_which_connections_a_process_holds() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let port = client.local_addr().unwrap().port();
        let own = i32::try_from(std::process::id()).unwrap();
        let before = connections_of(own).unwrap();
        let (_held, _) = listener.accept().unwrap();
        let after = connections_of(own).unwrap();
        assert!(!before.contains(&port), "in the backlog it is nobody's");
        assert!(after.contains(&port));
    }

    #[test]
    fn a_503_is_allowed_in_an_open_window_and_from_the_supervisor_after_two_seconds_without_a_broker()
     {
        let allowed_failures = AllowedFailures::default();
        let now = Instant::now();
        assert_eq!(allowed_failures.allows("a", now, false), None);
        allowed_failures.open(Reason::NoBroker("a".into()));
        assert_eq!(allowed_failures.allows("a", now, true), None, "too early");
        if let Some(window) = allowed_failures.lock_windows().first_mut() {
            window.from -= STAND_IN_AFTER;
        }
        assert_eq!(
            allowed_failures.allows("a", now, true),
            Some(Allowed::StoodIn)
        );
        assert_eq!(
            allowed_failures.allows("a", now, false),
            None,
            "not by a broker"
        );
        assert_eq!(
            allowed_failures.allows("b", now, true),
            None,
            "not for another"
        );
        allowed_failures.open(Reason::ServerAway);
        assert_eq!(
            allowed_failures.allows("b", now, false),
            Some(Allowed::Unavailable)
        );
        allowed_failures.close();
        assert_eq!(
            allowed_failures.allows("b", now, false),
            Some(Allowed::Unavailable)
        );
        let later = now + MOMENT + Duration::from_secs(1);
        assert_eq!(allowed_failures.allows("b", later, false), None);
    }
}

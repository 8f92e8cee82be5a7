//! Notifications to systemd: readiness, reloading, stopping, a status line, and the watchdog.
//!
//! Not a library, because a full socket must not block the event loop.

pub(crate) mod job;
pub(crate) mod store;

use std::ffi::OsString;
use std::io;
use std::os::fd::OwnedFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::sync::Arc;
use std::time::Duration;

/// Sends notifications to systemd; does nothing without `NOTIFY_SOCKET`. Cheap to clone. A datagram that cannot be sent
/// is lost, because a silent systemd must not affect tenants.
#[derive(Debug, Clone, Default)]
pub(crate) struct Notifier {
    target: Option<Arc<(UnixDatagram, SocketAddr)>>,
    watchdog: Option<Duration>,
}

impl Notifier {
    /// Makes a notifier from systemd's environment variables. The variables stay set, because removing them is unsafe
    /// with threads, and brokers get their own environment anyway.
    ///
    /// # Errors
    /// When `NOTIFY_SOCKET` is not a valid socket address.
    pub(crate) fn from_env() -> io::Result<Self> {
        Self::new(std::env::var_os("NOTIFY_SOCKET"), |name| {
            std::env::var(name).ok()
        })
    }

    /// Makes a notifier for `socket` with this watchdog interval.
    #[cfg(test)]
    pub(crate) fn to(socket: &std::path::Path, interval: Duration) -> io::Result<Self> {
        let patience = (interval * 2).as_micros().to_string();
        Self::new(Some(socket.into()), |name| {
            (name == "WATCHDOG_USEC").then(|| patience.clone())
        })
    }

    fn new(
        socket: Option<OsString>,
        variable: impl Fn(&str) -> Option<String>,
    ) -> io::Result<Self> {
        let Some(socket) = socket.filter(|socket| !socket.is_empty()) else {
            return Ok(Self::default());
        };
        let bytes = socket.into_vec();
        let address = match bytes.strip_prefix(b"@") {
            Some(name) => SocketAddr::from_abstract_name(name)?,
            None => SocketAddr::from_pathname(std::ffi::OsStr::from_bytes(&bytes))?,
        };
        let datagrams = UnixDatagram::unbound()?;
        datagrams.set_nonblocking(true)?;
        let ours = match variable("WATCHDOG_PID").map(|pid| pid.parse()) {
            None => true,
            Some(pid) => pid == Ok(std::process::id()),
        };
        let microseconds = variable("WATCHDOG_USEC").and_then(|usec| usec.parse().ok());
        let watchdog = microseconds
            .filter(|usec| ours && *usec > 0)
            .map(Duration::from_micros);
        Ok(Self {
            target: Some(Arc::new((datagrams, address))),
            watchdog,
        })
    }

    /// Returns a separate socket to systemd for messages that must not be lost, which can be waited for; `None` without
    /// systemd.
    ///
    /// # Errors
    /// When systemd's socket does not exist.
    fn connected(&self) -> io::Result<Option<OwnedFd>> {
        let Some(target) = &self.target else {
            return Ok(None);
        };
        let socket = UnixDatagram::unbound()?;
        socket.set_nonblocking(true)?;
        socket.connect_addr(&target.1)?;
        Ok(Some(socket.into()))
    }

    /// Returns true when systemd receives notifications.
    pub(crate) fn is_heard(&self) -> bool {
        self.target.is_some()
    }

    /// Reports that every tenant that could start has started, or waits for an external cause.
    pub(crate) fn ready(&self) {
        self.send("READY=1");
    }

    /// Reports the beginning of a reload; `ready` ends it.
    pub(crate) fn reloading(&self) {
        // systemd compares this with its own CLOCK_MONOTONIC to distinguish a new reload from an old one.
        match nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC) {
            Ok(now) => {
                let now = Duration::from(now).as_micros();
                self.send(&format!("RELOADING=1\nMONOTONIC_USEC={now}"));
            }
            Err(_) => self.send("RELOADING=1"),
        }
    }

    /// Reports that draining has begun.
    pub(crate) fn stopping(&self) {
        self.send("STOPPING=1");
    }

    /// Sets the line that `systemctl status` shows.
    pub(crate) fn status(&self, line: &str) {
        self.send(&format!("STATUS={}", line.replace('\n', " ")));
    }

    /// Extends the timeout of the running operation to `time` from now.
    pub(crate) fn extend_timeout(&self, time: Duration) {
        self.send(&format!("EXTEND_TIMEOUT_USEC={}", time.as_micros()));
    }

    /// Reports that the event loop runs.
    pub(crate) fn watchdog(&self) {
        self.send("WATCHDOG=1");
    }

    /// Returns the interval for calling [`watchdog`](Self::watchdog), half of systemd's timeout; `None` without a
    /// watchdog.
    pub(crate) fn watchdog_interval(&self) -> Option<Duration> {
        self.watchdog.map(|patience| patience / 2)
    }

    fn send(&self, text: &str) {
        if let Some(target) = &self.target {
            let (datagrams, address) = target.as_ref();
            // Ignores an error, as explained at the type.
            let _ = datagrams.send_to_addr(text.as_bytes(), address);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn notifier(variables: &'static [(&str, &str)]) -> (tempfile::TempDir, UnixDatagram, Notifier) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let systemd = UnixDatagram::bind(&path).unwrap();
        let variable = |name: &str| {
            variables
                .iter()
                .find(|(key, _)| *key == name)
                .map(|(_, value)| (*value).to_owned())
        };
        let notifier = Notifier::new(Some(path.into()), variable).unwrap();
        (dir, systemd, notifier)
    }

    fn heard(systemd: &UnixDatagram) -> String {
        let mut buffer = [0; 256];
        let length = systemd.recv(&mut buffer).unwrap();
        String::from_utf8(buffer[..length].to_vec()).unwrap()
    }

    #[test]
    fn systemd_hears_each_word_as_it_spells_it() {
        let (_dir, systemd, notifier) = notifier(&[]);
        notifier.ready();
        assert_eq!(heard(&systemd), "READY=1");
        notifier.reloading();
        let text = heard(&systemd);
        let usec = text.strip_prefix("RELOADING=1\nMONOTONIC_USEC=").unwrap();
        assert!(usec.parse::<u64>().unwrap() > 0);
        notifier.status("2 tenants\nready");
        assert_eq!(heard(&systemd), "STATUS=2 tenants ready");
        notifier.extend_timeout(Duration::from_secs(3));
        assert_eq!(heard(&systemd), "EXTEND_TIMEOUT_USEC=3000000");
        notifier.watchdog();
        assert_eq!(heard(&systemd), "WATCHDOG=1");
        notifier.stopping();
        assert_eq!(heard(&systemd), "STOPPING=1");
    }

    #[test]
    fn the_watchdog_is_answered_twice_as_often_as_it_asks_and_only_by_whom_it_asks() {
        let (_dir, _systemd, watched) = notifier(&[("WATCHDOG_USEC", "4000000")]);
        assert_eq!(watched.watchdog_interval(), Some(Duration::from_secs(2)));
        let (_dir, _systemd, other) =
            notifier(&[("WATCHDOG_USEC", "4000000"), ("WATCHDOG_PID", "1")]);
        assert_eq!(other.watchdog_interval(), None);
    }

    #[test]
    fn without_systemd_nothing_is_sent_and_a_full_socket_never_blocks() {
        let silent = Notifier::new(None, |_| None).unwrap();
        silent.ready();
        assert_eq!(silent.watchdog_interval(), None);
        let (_dir, _systemd, notifier) = notifier(&[]);
        for _ in 0..10_000 {
            notifier.ready();
        }
    }
}

//! Notifications to the process that started the broker, as `sd_notify` sends them.

use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::Path;
use std::time::Duration;

use brokkr_tenant::SocketPath;

/// The sender to `NOTIFY_SOCKET`; without that variable it sends nothing.
#[derive(Debug)]
pub(super) struct Notifier(Option<(UnixDatagram, Address)>);

/// The address of the receiver.
#[derive(Debug)]
struct Address {
    name: SocketAddr,
    /// The short form of a long path; it exists only as long as this value.
    _path: Option<SocketPath>,
}

impl Address {
    /// Parses a path, or `@` and an abstract name.
    fn of(name: &[u8], path: &Path) -> io::Result<Self> {
        if let Some(name) = name.strip_prefix(b"@") {
            let name = SocketAddr::from_abstract_name(name)?;
            return Ok(Self { name, _path: None });
        }
        let path = SocketPath::of(path)?;
        Ok(Self {
            name: SocketAddr::from_pathname(path.as_path())?,
            _path: Some(path),
        })
    }
}

impl Notifier {
    /// Reads `NOTIFY_SOCKET` (a path, or `@` and an abstract name).
    pub(super) fn from_env() -> Self {
        let Some(name) = std::env::var_os("NOTIFY_SOCKET") else {
            return Notifier(None);
        };
        let address = Address::of(name.as_bytes(), Path::new(&name));
        let socket = UnixDatagram::unbound()
            .and_then(|socket| socket.set_nonblocking(true).map(|()| socket));
        match (address, socket) {
            (Ok(address), Ok(socket)) => Notifier(Some((socket, address))),
            (Err(error), _) | (_, Err(error)) => {
                tracing::warn!(%error, "NOTIFY_SOCKET cannot be used");
                Notifier(None)
            }
        }
    }

    /// Sends these lines as one datagram. Waits up to a second while the receiver's queue is full, then drops and logs
    /// the datagram.
    pub(super) async fn send(&self, lines: &[&str]) {
        let Some((socket, address)) = &self.0 else {
            return;
        };
        let message = lines.join("\n");
        for _ in 0..100 {
            match socket.send_to_addr(message.as_bytes(), &address.name) {
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
                Err(error) => {
                    tracing::debug!(%error, "no process takes the notification");
                    return;
                }
                Ok(_) => return,
            }
        }
        tracing::warn!("a notification was dropped: the receiver does not read");
    }

    /// Sends `STATUS=`, in one line.
    pub(super) async fn status(&self, status: &str) {
        self.send(&[&format!("STATUS={}", one_line(status))]).await;
    }

    /// Sends the exit code and the reason, before the process ends.
    pub(super) async fn exit(&self, code: u8, reason: &str) {
        self.send(&[
            &format!("EXIT_STATUS={code}"),
            &format!("STATUS={}", one_line(reason)),
        ])
        .await;
    }
}

/// Replaces line ends, because they would end the assignment.
fn one_line(text: &str) -> String {
    text.replace(['\n', '\r'], " ")
}

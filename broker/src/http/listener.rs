//! Listening sockets, inherited or bound by the broker.
//!
//! The supervisor and the tenant's other instance share an inherited socket. So the broker never shuts it down and
//! never makes it blocking; dropping it closes only this process's descriptor. A socket bound by the broker is closed
//! when draining begins.

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use brokkr_tenant::Listen;
use brokkr_tenant::instance_protocol::{HTTP_SOCKET, PRIVATE_SOCKET};
use nix::sys::socket::{AddressFamily, SockaddrLike, SockaddrStorage, getsockname};
use tokio::io::{AsyncRead, AsyncWrite};

use crate::sys;

/// The largest number of connections that wait to be accepted.
const BACKLOG: u32 = 4096;

/// A listening socket.
#[derive(Debug)]
pub(super) struct Listener {
    socket: Socket,
    /// True when this broker bound the socket, so that no other process serves its backlog.
    own: bool,
    /// The path of a Unix socket that this broker bound; removed at the end.
    path: Option<PathBuf>,
    /// The user who alone may connect to a Unix socket, beside root; `None` permits every user.
    only: Option<u32>,
}

#[derive(Debug)]
enum Socket {
    Tcp(tokio::net::TcpListener),
    Unix(tokio::net::UnixListener),
}

/// An accepted connection.
pub(super) trait AcceptedStream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> AcceptedStream for T {}

/// The sockets passed by `LISTEN_FDS`.
#[derive(Debug, Default)]
pub struct InheritedSockets {
    /// The tenant's socket.
    pub http: Option<OwnedFd>,
    /// The private socket, for probes and orders.
    pub private: Option<OwnedFd>,
}

impl InheritedSockets {
    /// Takes over the descriptors that `LISTEN_PID` assigns to this process. Descriptors with names other than `http`
    /// and `private` stay untouched; without any name, as under a plain socket unit, the first descriptor is the
    /// tenant's.
    ///
    /// Call once, before any other code opens a file.
    ///
    /// # Errors
    ///
    /// When an announced descriptor is not open.
    pub fn from_env() -> io::Result<Self> {
        let mut inherited = InheritedSockets::default();
        let var = |name: &str| std::env::var(name).ok();
        let pid = var("LISTEN_PID").and_then(|text| text.parse().ok());
        let count: i32 = var("LISTEN_FDS")
            .and_then(|text| text.parse().ok())
            .unwrap_or(0);
        if pid != Some(std::process::id()) || count <= 0 {
            return Ok(inherited);
        }
        let names = var("LISTEN_FDNAMES").unwrap_or_default();
        let names: Vec<&str> = names.split(':').collect();
        let named = names.contains(&HTTP_SOCKET);
        for index in 0..count {
            let name = names.get(index as usize).copied().unwrap_or_default();
            let slot = match name {
                HTTP_SOCKET => &mut inherited.http,
                PRIVATE_SOCKET => &mut inherited.private,
                _ if !named && index == 0 => &mut inherited.http,
                _ => continue,
            };
            *slot = Some(sys::inherited_file(3 + index)?.into());
        }
        Ok(inherited)
    }
}

impl Listener {
    /// Wraps an inherited socket.
    ///
    /// # Errors
    ///
    /// When the descriptor is not a TCP or Unix listening socket.
    pub(super) fn inherited(fd: OwnedFd) -> io::Result<Self> {
        let address: SockaddrStorage = getsockname(fd.as_raw_fd())?;
        let socket = match address.family() {
            Some(AddressFamily::Unix) => {
                let listener = std::os::unix::net::UnixListener::from(fd);
                listener.set_nonblocking(true)?;
                Socket::Unix(tokio::net::UnixListener::from_std(listener)?)
            }
            Some(AddressFamily::Inet | AddressFamily::Inet6) => {
                let listener = std::net::TcpListener::from(fd);
                listener.set_nonblocking(true)?;
                Socket::Tcp(tokio::net::TcpListener::from_std(listener)?)
            }
            _ => {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidInput,
                    "neither a TCP nor a Unix socket",
                ));
            }
        };
        Ok(Listener {
            socket,
            own: false,
            path: None,
            only: None,
        })
    }

    /// Refuses the connections of all users but root and this process's own, as the kernel tells them.
    ///
    /// The supervisor is root wherever it has another user than this broker. The socket file's mode does the same, but not
    /// against a descriptor handed on or a changed mode. The process is not compared, because another supervisor takes a
    /// broker over.
    #[must_use]
    pub(super) fn for_own_user(mut self) -> Self {
        self.only = Some(nix::unistd::geteuid().as_raw());
        self
    }

    /// Binds the address. Replaces a Unix socket on which no process answers.
    ///
    /// # Errors
    ///
    /// When the address cannot be bound, or a process answers on the Unix socket.
    pub(super) async fn bind(listen: &Listen) -> io::Result<Self> {
        match listen {
            Listen::Tcp(address) => {
                let socket = if address.is_ipv4() {
                    tokio::net::TcpSocket::new_v4()?
                } else {
                    tokio::net::TcpSocket::new_v6()?
                };
                socket.set_reuseaddr(true)?;
                socket.bind(*address)?;
                Ok(Listener {
                    socket: Socket::Tcp(socket.listen(BACKLOG)?),
                    own: true,
                    path: None,
                    only: None,
                })
            }
            Listen::Unix(path) => {
                remove_stale(path).await?;
                let socket = Socket::Unix(tokio::net::UnixListener::bind(path)?);
                Ok(Listener {
                    socket,
                    own: true,
                    path: Some(path.clone()),
                    only: None,
                })
            }
        }
    }

    /// Returns true when this broker bound the socket.
    pub(super) fn is_own(&self) -> bool {
        self.own
    }

    /// Returns the address, for the log and for tests.
    pub(super) fn address(&self) -> String {
        match &self.socket {
            Socket::Tcp(listener) => listener
                .local_addr()
                .map(|a| a.to_string())
                .unwrap_or_default(),
            Socket::Unix(listener) => {
                let path = listener
                    .local_addr()
                    .ok()
                    .and_then(|a| a.as_pathname().map(Path::to_owned));
                path.map(|path| format!("unix:{}", path.display()))
                    .unwrap_or_default()
            }
        }
    }

    /// Accepts the next connection, and returns its peer's address, which a Unix socket has not. Cancel-safe.
    pub(super) async fn accept(&self) -> io::Result<(Box<dyn AcceptedStream>, Option<IpAddr>)> {
        match &self.socket {
            Socket::Tcp(listener) => {
                let (stream, peer) = listener.accept().await?;
                // Answers are written whole, so waiting for an acknowledgement would only delay them.
                let _ = stream.set_nodelay(true);
                Ok((Box::new(stream), Some(peer.ip())))
            }
            Socket::Unix(listener) => loop {
                let (stream, _) = listener.accept().await?;
                let Some(only) = self.only else {
                    return Ok((Box::new(stream), None));
                };
                let peer = stream.peer_cred()?;
                if [0, only].contains(&peer.uid()) {
                    return Ok((Box::new(stream), None));
                }
                let (uid, pid) = (peer.uid(), peer.pid());
                tracing::warn!(
                    uid,
                    pid,
                    "refused a connection to the private socket, which is the supervisor's"
                );
            },
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Some(path) = &self.path {
            let _ = std::fs::remove_file(path);
        }
    }
}

/// Removes a socket that a dead process has left; leaves files of other kinds.
async fn remove_stale(path: &Path) -> io::Result<()> {
    match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
        Ok(metadata) if !metadata.file_type().is_socket() => {
            return Err(io::Error::new(
                io::ErrorKind::AlreadyExists,
                "the path is taken by something that is no socket",
            ));
        }
        Ok(_) => {}
    }
    match tokio::net::UnixStream::connect(path).await {
        Ok(_) => Err(io::Error::new(
            io::ErrorKind::AddrInUse,
            "another process serves this socket",
        )),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            std::fs::remove_file(path)
        }
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]
    use super::*;
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::net::{UnixListener, UnixStream};

    /// Connects, and prints the number of bytes until the end of the connection.
    const CLIENT: &str = "import socket, sys\ns = socket.socket(socket.AF_UNIX)\ns.connect(sys.argv[1])\nprint(len(s.recv(1)))";

    #[tokio::test]
    async fn the_private_socket_is_for_root_and_the_supervisors_user_only() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        let own = nix::unistd::geteuid().as_raw();
        let bound = UnixListener::bind(&path).unwrap();
        let listener = Listener::inherited(bound.into()).unwrap();
        let listener = listener.for_own_user();
        let _client = UnixStream::connect(&path).unwrap();
        listener.accept().await.unwrap();
        if own != 0 {
            println!("skipped: only root can connect as another user");
            return;
        }
        // The socket file's mode lets every user connect.
        for (path, mode) in [(folder.path(), 0o755), (&path, 0o666)] {
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
        }
        let mut client = std::process::Command::new("setpriv");
        client.args(["--reuid=61234", "--regid=61234", "--clear-groups", "--"]);
        client.args(["/usr/bin/python3", "-c", CLIENT]).arg(&path);
        let client = tokio::task::spawn_blocking(move || client.output().unwrap());
        tokio::select! {
            _ = listener.accept() => panic!("accepted"),
            output = client => {
                let output = output.unwrap();
                assert_eq!(String::from_utf8_lossy(&output.stdout), "0\n", "{output:?}");
            }
        }
    }
}

//! Listening sockets: the supervisor binds them and passes them to every instance of the tenant.

use crate::handover::fd_names::Ids;
use brokkr_tenant::Listen;
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, SockaddrStorage, UnixAddr, bind, connect,
    getsockopt, listen, setsockopt, socket, sockopt,
};
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::Path;
use std::sync::Arc;

/// Connections wait in this backlog while a broker is replaced; the kernel caps it at `net.core.somaxconn`.
const BACKLOG: i32 = 4096;

/// The open sockets of one tenant: the current address, and during a change of address the previous address too.
#[derive(Debug, Default)]
pub(crate) struct Listeners {
    open: BTreeMap<String, Listener>,
}

/// An open listening socket.
#[derive(Debug, Clone)]
pub(crate) struct Listener {
    pub(crate) listen: Listen,
    pub(crate) socket: Arc<OwnedFd>,
    /// The id of its descriptor when it is passed to another supervisor.
    pub(crate) short: u32,
}

impl Listeners {
    /// Binds `listen`, unless it is bound already.
    ///
    /// # Errors
    /// A message for the operator: the address and the reason.
    pub(crate) fn open(&mut self, listen: &Listen, ids: &mut Ids) -> Result<(), String> {
        if let Entry::Vacant(place) = self.open.entry(listen.to_string()) {
            let fd = bind_listener(listen)
                .map_err(|error| format!("cannot listen on {listen}: {}", explain(&error)))?;
            place.insert(Listener {
                listen: listen.clone(),
                socket: Arc::new(fd),
                short: ids.take(),
            });
        }
        Ok(())
    }

    /// Takes over a socket that is bound already.
    pub(crate) fn adopt(&mut self, listener: Listener) {
        self.open.insert(listener.listen.to_string(), listener);
    }

    /// Returns the socket of `listen`, if bound.
    pub(crate) fn get(&self, listen: &Listen) -> Option<Arc<OwnedFd>> {
        self.open
            .get(&listen.to_string())
            .map(|listener| Arc::clone(&listener.socket))
    }

    /// Makes a socket reachable again. A socket that was shut down listens again. A Unix path that no longer leads to
    /// the socket is bound again; the instances that hold the old socket still serve its connections.
    ///
    /// # Errors
    /// As [`open`](Self::open); then the old socket is kept.
    pub(crate) fn renew(&mut self, listen: &Listen, ids: &mut Ids) -> Result<(), String> {
        let address = listen.to_string();
        let Some(ours) = self.open.get(&address) else {
            return Ok(());
        };
        if !getsockopt(&ours.socket, sockopt::AcceptConn).unwrap_or(true) {
            let again = Backlog::new(BACKLOG)
                .and_then(|backlog| nix::sys::socket::listen(&ours.socket, backlog));
            again.map_err(|error| {
                format!("cannot listen on {listen} again, for its broker has shut it down: {error}")
            })?;
        }
        if is_found(listen) {
            return Ok(());
        }
        let mut new = Self::default();
        new.open(listen, ids)?;
        for (address, listener) in std::mem::take(&mut new.open) {
            if let Some(old) = self.open.insert(address, listener) {
                ids.free(old.short);
            }
        }
        Ok(())
    }

    /// Iterates over the open sockets.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Listener> {
        self.open.values()
    }

    /// Closes every socket except that of `keep`.
    pub(crate) fn close_all_but(&mut self, keep: Option<&Listen>, ids: &mut Ids) {
        let keep = keep.map(ToString::to_string);
        self.open.retain(|address, listener| {
            let kept = Some(address) == keep.as_ref();
            if !kept {
                ids.free(listener.short);
                if let Listen::Unix(path) = &listener.listen {
                    // Clients would find a path on which no process listens otherwise.
                    let _ = std::fs::remove_file(path);
                }
            }
            kept
        });
    }

    /// Closes this supervisor's copies without removing any path, because another supervisor goes on with the sockets.
    pub(crate) fn leave(&mut self) {
        self.open.clear();
    }
}

impl Drop for Listeners {
    fn drop(&mut self) {
        self.close_all_but(None, &mut Ids::default());
    }
}

fn explain(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::AddrInUse => "another program has it".into(),
        io::ErrorKind::AddrNotAvailable => "this host has no such address".into(),
        io::ErrorKind::PermissionDenied => {
            "not permitted (ports below 1024 need CAP_NET_BIND_SERVICE)".into()
        }
        _ => error.to_string(),
    }
}

fn bind_listener(address: &Listen) -> io::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    match address {
        Listen::Tcp(address) => {
            let family = if address.is_ipv4() {
                AddressFamily::Inet
            } else {
                AddressFamily::Inet6
            };
            let fd = socket(family, SockType::Stream, flags, None)?;
            // A previous broker's connections in TIME_WAIT must not block the address.
            setsockopt(&fd, sockopt::ReuseAddr, &true)?;
            bind(fd.as_raw_fd(), &SockaddrStorage::from(*address))?;
            listen(&fd, Backlog::new(BACKLOG)?)?;
            Ok(fd)
        }
        Listen::Unix(path) => {
            remove_stale(path)?;
            let fd = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
            bind(fd.as_raw_fd(), &UnixAddr::new(path)?)?;
            // The socket is as open as a TCP port; the folder's permissions and the PAK restrict access.
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o666))?;
            listen(&fd, Backlog::new(BACKLOG)?)?;
            Ok(fd)
        }
    }
}

/// Returns false when clients cannot reach the socket because its path is gone or leads to a dead socket.
pub(super) fn is_found(listen: &Listen) -> bool {
    match listen {
        Listen::Tcp(_) => true,
        Listen::Unix(path) => !matches!(
            knock(path),
            Err(nix::errno::Errno::ENOENT | nix::errno::Errno::ECONNREFUSED)
        ),
    }
}

/// Removes a socket on which no process listens. Refuses a live socket and any other kind of file.
fn remove_stale(path: &Path) -> io::Result<()> {
    match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
        Ok(found) if found.file_type().is_socket() => match knock(path) {
            Err(nix::errno::Errno::ECONNREFUSED) => std::fs::remove_file(path),
            _ => Err(io::ErrorKind::AddrInUse.into()),
        },
        Ok(_) => Err(io::Error::new(
            io::ErrorKind::AlreadyExists,
            "a file that is no socket is in the way",
        )),
    }
}

/// Connects without waiting. A full backlog gives EAGAIN, so a hung listener is not taken for a dead socket.
fn knock(path: &Path) -> nix::Result<()> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let fd = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    connect(fd.as_raw_fd(), &UnixAddr::new(path)?)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn an_address_of_a_stranger_is_refused_with_its_name() {
        let stranger = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = Listen::Tcp(stranger.local_addr().unwrap());
        let error = Listeners::default()
            .open(&address, &mut Ids::default())
            .unwrap_err();
        assert!(
            error.contains(&address.to_string()) && error.contains("another program"),
            "{error}"
        );
    }

    #[test]
    fn a_path_that_was_removed_is_bound_anew_and_one_that_is_there_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.sock");
        let address = Listen::Unix(path.clone());
        let (mut ours, mut ids) = (Listeners::default(), Ids::default());
        ours.open(&address, &mut ids).unwrap();
        let first = ours.get(&address).unwrap();
        ours.renew(&address, &mut ids).unwrap();
        assert!(Arc::ptr_eq(&first, &ours.get(&address).unwrap()));
        let waiting = std::os::unix::net::UnixStream::connect(&path).unwrap();

        std::fs::remove_file(&path).unwrap();
        ours.renew(&address, &mut ids).unwrap();
        let second = ours.get(&address).unwrap();
        assert!(!Arc::ptr_eq(&first, &second) && knock(&path).is_ok());
        // The holder of the old socket still gets the connections made to it.
        nix::sys::socket::accept(&first).unwrap();
        drop(waiting);

        // A dead socket of another program at the path is replaced; when nothing can be bound, the old socket is kept.
        std::fs::remove_file(&path).unwrap();
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        ours.renew(&address, &mut ids).unwrap();
        assert!(knock(&path).is_ok());
        let third = ours.get(&address).unwrap();
        std::fs::remove_dir_all(folder.path()).unwrap();
        assert!(ours.renew(&address, &mut ids).is_err());
        assert!(Arc::ptr_eq(&third, &ours.get(&address).unwrap()));
    }

    #[test]
    fn one_that_was_shut_down_listens_again() {
        let (mut ours, mut ids) = (Listeners::default(), Ids::default());
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = free.local_addr().unwrap();
        drop(free);
        let listen = Listen::Tcp(address);
        ours.open(&listen, &mut ids).unwrap();
        let socket = ours.get(&listen).unwrap();
        nix::sys::socket::shutdown(socket.as_raw_fd(), nix::sys::socket::Shutdown::Both).unwrap();
        assert!(std::net::TcpStream::connect(address).is_err());
        ours.renew(&listen, &mut ids).unwrap();
        assert!(std::net::TcpStream::connect(address).is_ok());
        assert!(Arc::ptr_eq(&socket, &ours.get(&listen).unwrap()));
    }

    #[test]
    fn a_stale_unix_socket_is_replaced_a_live_one_and_a_file_are_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.sock");
        let address = Listen::Unix(path.clone());
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        let mut ours = Listeners::default();
        ours.open(&address, &mut Ids::default()).unwrap();
        assert!(
            Listeners::default()
                .open(&address, &mut Ids::default())
                .is_err()
        );
        ours.close_all_but(None, &mut Ids::default());
        assert!(!path.exists());
        std::fs::write(&path, "precious").unwrap();
        assert!(
            Listeners::default()
                .open(&address, &mut Ids::default())
                .is_err()
        );
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "precious");
    }
}

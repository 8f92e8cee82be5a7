//! Takes descriptors back from a running broker when no earlier supervisor left them.
//!
//! `pidfd_getfd` copies the listening socket out of the process. It needs the right to trace the process (the same user
//! and no more capabilities than this process, or CAP_SYS_PTRACE). The log pipe is opened for reading through
//! `/proc/PID/fd/2`, the end that the process writes to, because a pipe is one object whichever end is opened.

use crate::sys;
use brokkr_tenant::Listen;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{SockaddrStorage, getsockname, getsockopt, sockopt};
use std::fs::{File, OpenOptions};
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};

/// The descriptor of the tenant's socket in a broker (docs: "Between supervisor and broker").
const HTTP: RawFd = 3;

/// Copies the socket of `listen` out of the process that `pidfd` names.
///
/// # Errors
/// When this is not permitted, or the descriptor is another socket.
pub(super) fn listener(pidfd: BorrowedFd<'_>, listen: &Listen) -> io::Result<OwnedFd> {
    let fd = sys::pidfd_getfd(pidfd, HTTP)?;
    if listens_on(&fd, listen) {
        Ok(fd)
    } else {
        Err(io::Error::other(format!(
            "its descriptor {HTTP} is not the socket of {listen}"
        )))
    }
}

/// Returns true when this is a listening socket of that address.
pub(super) fn listens_on(fd: &OwnedFd, listen: &Listen) -> bool {
    getsockopt(fd, sockopt::AcceptConn).is_ok_and(|listens| listens)
        && address(fd).as_ref() == Some(listen)
}

fn address(fd: &OwnedFd) -> Option<Listen> {
    let address: SockaddrStorage = getsockname(fd.as_raw_fd()).ok()?;
    if let Some(v4) = address.as_sockaddr_in() {
        return Some(Listen::Tcp(SocketAddr::V4((*v4).into())));
    }
    if let Some(v6) = address.as_sockaddr_in6() {
        return Some(Listen::Tcp(SocketAddr::V6((*v6).into())));
    }
    Some(Listen::Unix(address.as_unix_addr()?.path()?.to_owned()))
}

/// Returns true when the process of a pidfd has ended.
pub(super) fn has_ended(pidfd: &OwnedFd) -> bool {
    let mut fds = [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)];
    poll(&mut fds, PollTimeout::ZERO).is_ok_and(|ready| ready > 0)
}

/// Returns the process that a pidfd names, until it has been reaped.
pub(super) fn pid_of(pidfd: &OwnedFd) -> Option<i32> {
    let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", pidfd.as_raw_fd())).ok()?;
    let pid = info.lines().find_map(|line| line.strip_prefix("Pid:"))?;
    pid.trim().parse().ok().filter(|pid| *pid > 0)
}

/// Opens the read end of a process's log pipe. Data already in the pipe is kept.
///
/// # Errors
/// When this is not permitted, or the standard error is no pipe.
pub(super) fn log(pid: i32) -> io::Result<OwnedFd> {
    // Without O_NONBLOCK the open would wait for a writer if the process ended just now.
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(OFlag::O_NONBLOCK.bits())
        .open(format!("/proc/{pid}/fd/2"))?;
    if !file.metadata()?.file_type().is_fifo() {
        return Err(io::Error::other("its standard error is no pipe"));
    }
    blocking(&file)?;
    Ok(file.into())
}

/// Makes reads block, as the log reader expects. The flag belongs to this open file: the writer's is not changed.
fn blocking(file: &File) -> io::Result<()> {
    let flags = OFlag::from_bits_retain(fcntl(file.as_fd(), FcntlArg::F_GETFL)?);
    fcntl(file.as_fd(), FcntlArg::F_SETFL(flags - OFlag::O_NONBLOCK))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};
    use std::process::{Command, Stdio};

    #[test]
    fn a_socket_and_a_pipe_with_what_is_in_it_come_back_from_a_process() {
        let socket = TcpListener::bind("127.0.0.1:0").unwrap();
        let listen = Listen::Tcp(socket.local_addr().unwrap());
        let (read, write) = nix::unistd::pipe().unwrap();
        let mut child = Command::new("sh")
            .args([
                "-c",
                "exec 3<&0; echo before >&2; echo ready; exec sleep 1000",
            ])
            .stdin(OwnedFd::from(socket.try_clone().unwrap()))
            .stdout(Stdio::piped())
            .stderr(write)
            .spawn()
            .unwrap();
        let mut ready = [0; 6];
        child
            .stdout
            .as_mut()
            .unwrap()
            .read_exact(&mut ready)
            .unwrap();
        // Closes the read end and the first copy of the socket, as the death of a supervisor does.
        drop((read, socket));
        let pid = child.id() as i32;
        let pidfd = sys::pidfd_open(pid).unwrap();

        let other = Listen::parse("127.0.0.1:1").unwrap();
        assert!(listener(pidfd.as_fd(), &other).is_err());
        let socket = TcpListener::from(listener(pidfd.as_fd(), &listen).unwrap());
        let mut client = TcpStream::connect(socket.local_addr().unwrap()).unwrap();
        client.write_all(b"x").unwrap();
        socket.accept().unwrap();

        let mut log = File::from(log(pid).unwrap());
        let mut line = [0; 7];
        log.read_exact(&mut line).unwrap();
        assert_eq!(&line, b"before\n");
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(log.read(&mut line).unwrap(), 0);
    }
}

//! Receives an instance's `sd_notify` datagrams, and accepts them only from the instance's own pid.

use brokkr_tenant::SocketPath;
use brokkr_tenant::instance_protocol::HELD_CONNECTIONS;
use nix::sys::socket::{
    ControlMessageOwned, MsgFlags, UnixCredentials, recvmsg, setsockopt, sockopt,
};
use std::io::{self, IoSliceMut};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::unix::AsyncFd;
use tokio::time::Instant;

/// The largest datagram in bytes; a longer datagram is cut, as systemd does.
const LONGEST: usize = 4096;
/// The longest status in characters, because `status` shows it in one line.
const LONGEST_STATUS: usize = 400;

/// A statement of an instance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum NotifyMessage {
    Ready,
    Status(String),
    Extend(Duration),
    ExitStatus(u8),
    Connections(u32),
}

/// The largest number of datagrams read after the end of a process. The kernel queues fewer (`net.unix.max_dgram_qlen`).
const MOST_DRAINED: usize = 1024;

/// The sustained rate: one datagram in this time.
const EACH: Duration = Duration::from_millis(5);
/// The largest burst of datagrams above that rate.
const BURST: u32 = 100;

/// Limits how often an instance is heard, so that it cannot take the supervisor's time. Further datagrams wait in the
/// socket; once that is full, the instance waits.
#[derive(Debug, Default)]
pub(crate) struct NotifyRateLimit {
    /// Time at which the datagrams heard so far are within the rate.
    paid: Option<Instant>,
}

impl NotifyRateLimit {
    /// Counts a datagram.
    pub(crate) fn one(&mut self) {
        let now = Instant::now();
        self.paid = Some(self.paid.map_or(now, |paid| paid.max(now)) + EACH);
    }

    /// Returns the time at which the next datagram may be heard.
    pub(crate) fn next(&self) -> Instant {
        let now = Instant::now();
        self.paid
            .and_then(|paid| paid.checked_sub(EACH * BURST))
            .unwrap_or(now)
    }

    /// Returns true when a datagram may be heard now.
    pub(crate) fn may_hear(&self) -> bool {
        self.next() <= Instant::now()
    }
}

/// The notify socket of one instance.
#[derive(Debug)]
pub(crate) struct NotifySocket {
    socket: AsyncFd<Arc<OwnedFd>>,
}

impl NotifySocket {
    /// Binds the socket; every datagram carries credentials from then on. Only `owner` and root may send, or this
    /// process's own user if there is no `owner`.
    pub(crate) fn bind(path: &Path, owner: Option<u32>) -> io::Result<OwnedFd> {
        let socket = UnixDatagram::bind(SocketPath::of(path)?.as_path())?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
        if let Some(uid) = owner {
            // The folder is this supervisor's, so no other process can put a link in the path's place.
            std::os::unix::fs::lchown(path, Some(uid), Some(uid))?;
        }
        socket.set_nonblocking(true)?;
        setsockopt(&socket, sockopt::PassCred, &true)?;
        Ok(socket.into())
    }

    /// Registers the socket with the event loop.
    pub(crate) fn new(socket: Arc<OwnedFd>) -> io::Result<Self> {
        Ok(Self {
            socket: crate::sys::readable_shared(socket)?,
        })
    }

    /// Receives the next datagram. A datagram of another process than `pid` has no messages, and counts for the rate too.
    /// Cancel-safe: a datagram is taken only when it is returned.
    pub(crate) async fn receive(&self, pid: i32) -> io::Result<Vec<NotifyMessage>> {
        loop {
            let mut ready = self.socket.readable().await?;
            if let Ok(read) = ready.try_io(|socket| read_one(socket.get_ref())) {
                return Ok(match read {
                    Ok((sender, text)) if sender == Some(pid) => parse(&text),
                    // A datagram that cannot be read whole comes from a stranger too.
                    Ok(_) | Err(_) => Vec::new(),
                });
            }
        }
    }

    /// Returns the datagrams already received, for a process that has ended. Strangers may go on sending, so the number
    /// of datagrams read is bounded.
    pub(crate) fn drain(&self, pid: i32) -> Vec<NotifyMessage> {
        let mut all = Vec::new();
        for _ in 0..MOST_DRAINED {
            match read_one(self.socket.get_ref()) {
                Ok((sender, text)) if sender == Some(pid) => all.extend(parse(&text)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Ok(_) => {}
                Err(_) => break,
            }
        }
        all
    }
}

/// The largest number of descriptors that the kernel passes in one datagram. There must be room for them, because they
/// would cut the credentials off otherwise; they are closed.
const MOST_DESCRIPTORS: usize = 253;

/// Reads one datagram and the pid of its sender.
fn read_one(socket: &OwnedFd) -> io::Result<(Option<i32>, String)> {
    let mut buffer = [0u8; LONGEST];
    let mut control = nix::cmsg_space!(UnixCredentials, [RawFd; MOST_DESCRIPTORS]);
    let mut parts = [IoSliceMut::new(&mut buffer)];
    let message = recvmsg::<()>(
        socket.as_raw_fd(),
        &mut parts,
        Some(&mut control),
        MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_CMSG_CLOEXEC,
    )?;
    let mut sender = None;
    for control in message.cmsgs().into_iter().flatten() {
        match control {
            ControlMessageOwned::ScmCredentials(credentials) => sender = Some(credentials.pid()),
            ControlMessageOwned::ScmRights(descriptors) => {
                for descriptor in descriptors {
                    // Closes descriptors that no message needs.
                    let _ = nix::unistd::close(descriptor);
                }
            }
            _ => {}
        }
    }
    let length = message.bytes;
    Ok((
        sender,
        String::from_utf8_lossy(&buffer[..length]).into_owned(),
    ))
}

fn parse(text: &str) -> Vec<NotifyMessage> {
    text.lines()
        .filter_map(|line| {
            let (key, value) = line.split_once('=')?;
            match key {
                "READY" if value == "1" => Some(NotifyMessage::Ready),
                "STATUS" => Some(NotifyMessage::Status(
                    value.chars().take(LONGEST_STATUS).collect(),
                )),
                "EXTEND_TIMEOUT_USEC" => value
                    .parse()
                    .ok()
                    .map(|n| NotifyMessage::Extend(Duration::from_micros(n))),
                "EXIT_STATUS" => value.parse().ok().map(NotifyMessage::ExitStatus),
                HELD_CONNECTIONS => value.parse().ok().map(NotifyMessage::Connections),
                _ => None,
            }
        })
        .collect()
}

/// Parses any bytes, and panics when the result is not within its bounds. For fuzzing.
pub(crate) fn check_parsing(data: &[u8]) {
    let text = String::from_utf8_lossy(&data[..data.len().min(LONGEST)]);
    let messages = parse(&text);
    assert!(messages.len() <= text.lines().count());
    for message in messages {
        if let NotifyMessage::Status(status) = message {
            assert!(status.chars().count() <= LONGEST_STATUS && !status.contains('\n'));
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[tokio::test]
    async fn only_datagrams_of_the_instances_own_pid_are_believed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("n");
        let socket = NotifySocket::new(NotifySocket::bind(&path, None).unwrap().into()).unwrap();
        let us = std::process::id() as i32;
        let sender = UnixDatagram::unbound().unwrap();
        sender
            .send_to(
                b"READY=1\nSTATUS=up and well\nX_CONNECTIONS=3\nNONSENSE\nREADY=0",
                &path,
            )
            .unwrap();
        assert_eq!(
            socket.receive(us).await.unwrap(),
            [
                NotifyMessage::Ready,
                NotifyMessage::Status("up and well".into()),
                NotifyMessage::Connections(3)
            ]
        );
        let stranger = std::process::Command::new("python3")
            .args(["-c", "import socket,sys; socket.socket(socket.AF_UNIX,socket.SOCK_DGRAM).sendto(b'READY=1',sys.argv[1])"])
            .arg(&path)
            .status()
            .unwrap();
        assert!(stranger.success());
        assert_eq!(socket.receive(us).await.unwrap(), []);
        // A datagram with descriptors attached is read too.
        let null = std::fs::File::open("/dev/null").unwrap();
        let fds = [null.as_raw_fd(); 20];
        nix::sys::socket::sendmsg(
            sender.as_raw_fd(),
            &[std::io::IoSlice::new(b"READY=1")],
            &[nix::sys::socket::ControlMessage::ScmRights(&fds)],
            MsgFlags::empty(),
            Some(&nix::sys::socket::UnixAddr::new(&path).unwrap()),
        )
        .unwrap();
        assert_eq!(socket.receive(us).await.unwrap(), [NotifyMessage::Ready]);
        sender.send_to(b"EXIT_STATUS=78", &path).unwrap();
        assert_eq!(
            socket.receive(us).await.unwrap(),
            [NotifyMessage::ExitStatus(78)]
        );
    }

    #[tokio::test(start_paused = true)]
    async fn an_instance_is_heard_in_bursts_and_then_at_a_pace() {
        let mut pace = NotifyRateLimit::default();
        for _ in 0..=BURST {
            assert!(pace.may_hear());
            pace.one();
        }
        assert!(!pace.may_hear());
        tokio::time::sleep_until(pace.next()).await;
        assert!(pace.may_hear());
        pace.one();
        assert!(!pace.may_hear());
        tokio::time::sleep(Duration::from_secs(60)).await;
        for _ in 0..BURST {
            assert!(pace.may_hear());
            pace.one();
        }
    }
}

//! The one thread that writes: many chunks in one system call, and whatever the sink does stays in this thread.

use super::journal;
use super::queue::{Shared, Turn};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::fs::File;
use std::io::{self, ErrorKind, IoSlice, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::time::Duration;

/// Bytes taken from the queues for one system call.
const BATCH: usize = 1 << 20;
/// Chunks in one system call; the kernel takes 1024.
const CHUNKS: usize = 256;

/// Where lines go.
#[derive(Debug)]
pub(super) enum Sink {
    /// A file, pipe or terminal.
    Stream(Stream),
    /// journald's socket.
    Journal(UnixDatagram, PathBuf),
}

/// A byte stream that whole lines are written to.
#[derive(Debug)]
pub(super) struct Stream {
    file: File,
    /// A write failed in the midst of a line: the next begins with a line feed, so that only that one is spoilt.
    torn: bool,
}

impl Stream {
    pub(super) fn new(file: File) -> Self {
        Self { file, torn: false }
    }

    /// Writes all of `turns`, and says from which turn on it did not.
    fn write(&mut self, turns: &[Turn]) -> Result<(), usize> {
        let mut at = 0;
        let mut within = 0;
        while let Some(turn) = turns.get(at) {
            if self.torn {
                match self.file.write(b"\n") {
                    Ok(_) => self.torn = false,
                    Err(error) if self.again(&error) => continue,
                    Err(_) => return Err(at),
                }
            }
            let rest = turns[at + 1..].iter().map(|turn| &turn.bytes[..]);
            let slices = std::iter::once(&turn.bytes[within..]).chain(rest);
            let slices: Vec<IoSlice<'_>> = slices.take(CHUNKS).map(IoSlice::new).collect();
            let mut written = match self.file.write_vectored(&slices) {
                Ok(0) => return Err(at),
                Ok(written) => written,
                Err(error) if self.again(&error) => continue,
                Err(_) => {
                    self.torn = within > 0;
                    return Err(at);
                }
            };
            while let Some(turn) = turns.get(at) {
                let left = turn.bytes.len() - within;
                if written < left {
                    within += written;
                    break;
                }
                written -= left;
                within = 0;
                at += 1;
            }
        }
        Ok(())
    }

    /// Whether to try the same write again, after having waited for room where the sink is non-blocking: we did not make
    /// it so, but a terminal or pipe is shared with programs that may have.
    fn again(&self, error: &io::Error) -> bool {
        match error.kind() {
            ErrorKind::Interrupted => true,
            ErrorKind::WouldBlock => {
                let mut fds = [PollFd::new(self.file.as_fd(), PollFlags::POLLOUT)];
                poll(&mut fds, PollTimeout::NONE).is_ok()
            }
            _ => false,
        }
    }
}

/// Writes until everything is written and nothing will come.
pub(super) fn run(shared: &Shared, mut sink: Sink) {
    while let Some(turns) = shared.take(BATCH) {
        match &mut sink {
            Sink::Stream(stream) => {
                if let Err(from) = stream.write(&turns) {
                    // A full disk or a reader that has gone: the lines are lost and counted, brokers run on.
                    for turn in &turns[from..] {
                        shared.lost(&turn.name, turn.lines, turn.says);
                    }
                }
            }
            Sink::Journal(socket, path) => {
                for turn in &turns {
                    for datagram in journal::datagrams(&turn.bytes) {
                        if !send(shared, socket, path, datagram) {
                            shared.lost(&turn.name, 1, turn.says);
                        }
                    }
                }
            }
        }
    }
}

/// Sends one datagram, waiting while journald is away: it comes back, and until then its lines queue up like those of any
/// slow sink. Only when we are ending is that the line's loss.
fn send(shared: &Shared, socket: &UnixDatagram, path: &std::path::Path, datagram: &[u8]) -> bool {
    loop {
        match journal::send(socket, path, datagram) {
            Ok(()) => return true,
            Err(error) => match error.kind() {
                ErrorKind::Interrupted => {}
                ErrorKind::NotFound | ErrorKind::ConnectionRefused | ErrorKind::WouldBlock
                    if !shared.is_closed() =>
                {
                    std::thread::sleep(Duration::from_millis(100));
                }
                _ => return false,
            },
        }
    }
}

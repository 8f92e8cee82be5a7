//! The one thread that writes: many chunks in one system call, and whatever the sink does stays in this thread.

use super::journal;
use super::queue::{Shared, Turn};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::fs::File;
use std::io::{self, ErrorKind, IoSlice, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// Bytes taken from the queues for one system call.
const BATCH: usize = 1 << 20;
/// Chunks in one system call; the kernel takes 1024.
const CHUNKS: usize = 256;

/// Most lines handed to journald in one of our seconds. The unit's `LogRateLimitBurst=` is twice that, so that in no second
/// of journald's, however it lies to ours, journald has more than its limit: it would drop lines without asking whose. We
/// wait instead; tenants' queues fill, and each loses lines of its own.
const JOURNAL_LINES: u32 = 500_000;
/// The unit's `LogRateLimitIntervalSec=`.
const JOURNAL_SECOND: Duration = Duration::from_secs(1);

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

/// Keeps what journald is given below its limit.
#[derive(Debug)]
struct Pace {
    second: Instant,
    lines: u32,
}

impl Pace {
    fn new(now: Instant) -> Self {
        Self {
            second: now,
            lines: 0,
        }
    }

    /// Counts one line; says how long to wait before it.
    fn line(&mut self, now: Instant) -> Duration {
        let passed = now.saturating_duration_since(self.second);
        let mut wait = Duration::ZERO;
        if passed >= JOURNAL_SECOND {
            *self = Self::new(now);
        } else if self.lines == JOURNAL_LINES {
            wait = JOURNAL_SECOND - passed;
            *self = Self::new(now + wait);
        }
        self.lines += 1;
        wait
    }
}

/// Writes until everything is written and nothing will come.
pub(super) fn run(shared: &Shared, mut sink: Sink) {
    let mut pace = Pace::new(Instant::now());
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
                        let wait = pace.line(Instant::now());
                        if wait > Duration::ZERO {
                            std::thread::sleep(wait);
                        }
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn no_second_of_journald_has_more_lines_than_its_limit() {
        let unit = include_str!("../../../systemd/brokkr-supervisor.service");
        let set = |key: &str| unit.lines().find_map(|line| line.strip_prefix(key));
        assert_eq!(set("LogRateLimitIntervalSec="), Some("1s"));
        let burst: usize = set("LogRateLimitBurst=").unwrap().parse().unwrap();

        // The loudest there can be: a line whenever one may be written, 300 ns after the one before, with a pause between.
        let mut now = Instant::now();
        let mut pace = Pace::new(now);
        let mut times = Vec::new();
        for n in 0..3 * JOURNAL_LINES {
            if n == JOURNAL_LINES / 2 {
                now += Duration::from_millis(700);
            }
            now += Duration::from_nanos(300) + pace.line(now);
            times.push(now);
        }
        let mut first = 0;
        for (last, time) in times.iter().enumerate() {
            while *time - times[first] >= JOURNAL_SECOND {
                first += 1;
            }
            assert!(last - first < burst);
        }
        assert!(times.last().unwrap().duration_since(times[0]) >= JOURNAL_SECOND);
    }
}

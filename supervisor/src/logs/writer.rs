//! The thread that writes to the sink: it combines many chunks in one system call, and only this thread waits for a
//! slow sink.

use super::journal;
use super::queue::{Shared, SourceTurn};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::fs::File;
use std::io::{self, ErrorKind, IoSlice, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// Number of bytes taken from the queues for one system call.
const BATCH: usize = 1 << 20;
/// Largest number of chunks in one system call; the kernel accepts 1024.
const CHUNKS: usize = 256;

/// Largest number of lines sent to journald in one second of this thread. The unit's `LogRateLimitBurst=` is twice
/// that, so that no second of journald's clock, wherever it begins, exceeds journald's limit: beyond it journald would
/// drop lines of any tenant. The writer waits instead; the tenants' queues fill, and each tenant loses only its own
/// lines.
const JOURNAL_LINES: u32 = 500_000;
/// The unit's `LogRateLimitIntervalSec=`.
const JOURNAL_SECOND: Duration = Duration::from_secs(1);

/// Destination of the encoded lines.
#[derive(Debug)]
pub(super) enum Sink {
    /// A file, pipe or terminal.
    Stream(ByteSink),
    /// journald's socket.
    Journal(UnixDatagram, PathBuf),
}

/// Byte stream that takes whole lines.
#[derive(Debug)]
pub(super) struct ByteSink {
    file: File,
    /// True after a write failed within a line: the next write begins with a line feed, so that only that line is
    /// spoilt.
    torn: bool,
}

impl ByteSink {
    pub(super) fn new(file: File) -> Self {
        Self { file, torn: false }
    }

    /// Writes all of `turns`. On failure returns the index of the first turn that is not fully written.
    fn write(&mut self, turns: &[SourceTurn]) -> Result<(), usize> {
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

    /// Returns true when the write must be tried again. Waits first for room in a non-blocking sink, because other
    /// programs that share the terminal or pipe may have made it non-blocking.
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

/// Rate limiter that keeps the lines sent to journald below its limit.
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

    /// Counts one line and returns the time to wait before sending it.
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

/// Writes until all lines are written and no more will come.
pub(super) fn run(shared: &Shared, mut sink: Sink) {
    let mut pace = Pace::new(Instant::now());
    while let Some(turns) = shared.take(BATCH) {
        match &mut sink {
            Sink::Stream(stream) => {
                if let Err(from) = stream.write(&turns) {
                    // The disk is full or the log's reader has gone: count the lines as lost, so that brokers run on.
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

/// Sends one datagram, waiting while journald is away. Meanwhile lines queue as for any slow sink; the line is lost
/// only when the log is closing.
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

        // Simulates the highest rate possible: a line whenever one is allowed, 300 ns after the last, with a pause
        // between.
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

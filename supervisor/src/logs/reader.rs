//! The thread that reads the brokers' log pipes, each in turn, one block at a time.
//!
//! The pipes are in blocking mode. A read does not block, because it follows the report that the pipe is readable and
//! no other process reads there. A tenant that floods gets one block per round, like every other tenant.

use super::line_format::{LineOrigin, LineSplitter, timestamp};
use super::queue::Shared;
use super::record::LogChunk;
use crate::handover::PartialLine;
use bytes::Bytes;
use chrono::Utc;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::eventfd::{EfdFlags, EventFd};
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::oneshot;

/// Size of one read in bytes; a pipe holds as much.
const BLOCK: usize = 64 << 10;
/// Size in bytes at which a chunk is pushed. Short lines of text grow sevenfold in canonical form.
const CHUNK: usize = 64 << 10;
/// Largest number of bytes read from one pipe at its end, because another process may still be writing.
const LAST: usize = 1 << 20;
/// Token of the wake-up descriptor.
const WAKE: u64 = 0;

/// Commands to the reader.
pub(super) enum ReaderCommand {
    /// Read a new pipe.
    Attach {
        token: u64,
        origin: Arc<LineOrigin>,
        pipe: Arc<OwnedFd>,
        partial_line: PartialLine,
    },
    /// Read all that an ended process wrote, emit its unfinished line, and answer.
    Drain {
        origin: LineOrigin,
        done: oneshot::Sender<()>,
    },
    /// Release every pipe, and answer with each pipe's unfinished line by pid.
    Release(oneshot::Sender<BTreeMap<i32, PartialLine>>),
    /// Read all pipes empty, and end.
    Stop,
}

/// Handle through which other threads command the reader.
pub(super) struct ReaderHandle {
    epoll: Epoll,
    wake: EventFd,
    commands: Mutex<VecDeque<ReaderCommand>>,
    tokens: AtomicU64,
}

impl ReaderHandle {
    pub(super) fn new() -> io::Result<Self> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        let wake =
            EventFd::from_value_and_flags(0, EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        epoll.add(&wake, EpollEvent::new(EpollFlags::EPOLLIN, WAKE))?;
        let commands = Mutex::default();
        Ok(Self {
            epoll,
            wake,
            commands,
            tokens: AtomicU64::new(WAKE + 1),
        })
    }

    /// Hands a pipe to the reader.
    pub(super) fn attach(
        &self,
        origin: Arc<LineOrigin>,
        pipe: Arc<OwnedFd>,
        partial_line: PartialLine,
    ) -> io::Result<()> {
        let token = self.tokens.fetch_add(1, Ordering::Relaxed);
        // Register the pipe here, where the caller gets the error. The reader skips a token that it does not know yet,
        // and the kernel reports a readable pipe again.
        self.epoll
            .add(&*pipe, EpollEvent::new(EpollFlags::EPOLLIN, token))?;
        self.tell(ReaderCommand::Attach {
            token,
            origin,
            pipe,
            partial_line,
        });
        Ok(())
    }

    pub(super) fn tell(&self, command: ReaderCommand) {
        self.commands
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push_back(command);
        // The write fails only after four thousand million wake-ups that the reader has not seen.
        let _ = self.wake.write(1);
    }

    fn next(&self) -> Option<ReaderCommand> {
        self.commands
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .pop_front()
    }
}

struct Source {
    origin: Arc<LineOrigin>,
    pipe: Arc<OwnedFd>,
    splitter: LineSplitter,
}

pub(super) struct Reader {
    control: Arc<ReaderHandle>,
    shared: Arc<Shared>,
    sources: HashMap<u64, Source>,
    block: Box<[u8]>,
    out: Vec<u8>,
}

impl Reader {
    pub(super) fn new(control: Arc<ReaderHandle>, shared: Arc<Shared>) -> Self {
        let block = vec![0; BLOCK].into_boxed_slice();
        Self {
            control,
            shared,
            sources: HashMap::new(),
            block,
            out: Vec::new(),
        }
    }

    /// Reads until a stop command.
    pub(super) fn run(mut self) {
        let mut events = [EpollEvent::empty(); 256];
        loop {
            // The kernel serves ready pipes in turn, because the events are level-triggered and the list is short.
            let count = match self.control.epoll.wait(&mut events, EpollTimeout::NONE) {
                Ok(count) => count,
                Err(Errno::EINTR) => continue,
                // An own descriptor cannot fail here; if it does, reading ends.
                Err(_) => break,
            };
            let mut woken = false;
            for event in &events[..count] {
                if event.data() == WAKE {
                    woken = true;
                } else {
                    self.read(event.data());
                }
            }
            if woken && !self.obey() {
                break;
            }
        }
        self.shared.close();
    }

    /// Carries out the queued commands. Returns false when the reader must stop.
    fn obey(&mut self) -> bool {
        let _ = self.control.wake.read();
        while let Some(command) = self.control.next() {
            match command {
                ReaderCommand::Attach {
                    token,
                    origin,
                    pipe,
                    partial_line,
                } => {
                    let splitter = LineSplitter::resume(partial_line);
                    self.sources.insert(
                        token,
                        Source {
                            origin,
                            pipe,
                            splitter,
                        },
                    );
                }
                ReaderCommand::Drain { origin, done } => {
                    let of_it = self
                        .sources
                        .iter()
                        .filter(|(_, source)| *source.origin == origin);
                    for token in of_it.map(|(token, _)| *token).collect::<Vec<_>>() {
                        self.drain(token);
                    }
                    // The requester may have gone; the lines are in memory anyway.
                    let _ = done.send(());
                }
                ReaderCommand::Release(done) => {
                    let mut left = BTreeMap::new();
                    for (_, source) in self.sources.drain() {
                        // The descriptor stays open elsewhere, so the kernel would go on reporting it.
                        let _ = self.control.epoll.delete(&*source.pipe);
                        self.shared.pipe_closed(&source.origin.tenant);
                        left.insert(source.origin.pid, source.splitter.leave());
                    }
                    let _ = done.send(left);
                }
                ReaderCommand::Stop => {
                    for token in self.sources.keys().copied().collect::<Vec<_>>() {
                        self.drain(token);
                    }
                    return false;
                }
            }
        }
        true
    }

    /// Reads all that a pipe holds, then emits its unfinished line.
    fn drain(&mut self, token: u64) {
        let mut total = 0;
        while total < LAST {
            match self.sources.get(&token) {
                Some(source) if is_readable(&source.pipe) => total += self.read(token),
                _ => break,
            }
        }
        if let Some(source) = self.sources.get_mut(&token) {
            let lines = source
                .splitter
                .end(&source.origin, &timestamp(Utc::now()), &mut self.out);
            hand_on(&self.shared, &source.origin, &mut self.out, lines);
        }
    }

    /// Reads one block and returns its size in bytes.
    fn read(&mut self, token: u64) -> usize {
        let Some(source) = self.sources.get_mut(&token) else {
            return 0;
        };
        let now = timestamp(Utc::now());
        match nix::unistd::read(&*source.pipe, &mut self.block) {
            Ok(0) => {}
            Ok(count) => {
                let mut lines = 0;
                // Feed the block in parts, so that no chunk becomes much larger than others.
                for part in self.block[..count].chunks(BLOCK / 4) {
                    lines += source
                        .splitter
                        .feed(&source.origin, part, &now, &mut self.out);
                    if self.out.len() >= CHUNK {
                        hand_on(
                            &self.shared,
                            &source.origin,
                            &mut self.out,
                            std::mem::take(&mut lines),
                        );
                    }
                }
                hand_on(&self.shared, &source.origin, &mut self.out, lines);
                return count;
            }
            Err(Errno::EINTR | Errno::EAGAIN) => return 0,
            // A pipe has no other errors; after any error the pipe is closed.
            Err(_) => {}
        }
        if let Some(mut source) = self.sources.remove(&token) {
            let lines = source.splitter.end(&source.origin, &now, &mut self.out);
            hand_on(&self.shared, &source.origin, &mut self.out, lines);
            // The descriptor may be open elsewhere too, so the kernel would go on reporting it.
            let _ = self.control.epoll.delete(&*source.pipe);
            self.shared.pipe_closed(&source.origin.tenant);
        }
        0
    }
}

fn hand_on(shared: &Shared, origin: &Arc<LineOrigin>, out: &mut Vec<u8>, lines: u32) {
    if lines > 0 {
        let bytes = Bytes::copy_from_slice(out);
        shared.push(LogChunk {
            origin: Arc::clone(origin),
            bytes,
            lines,
        });
    }
    out.clear();
    // Keep the buffer for the next block, but not the size that a flood of tiny lines gave it.
    out.shrink_to(8 * CHUNK);
}

fn is_readable(pipe: &OwnedFd) -> bool {
    let mut fds = [PollFd::new(pipe.as_fd(), PollFlags::POLLIN)];
    poll(&mut fds, PollTimeout::ZERO).is_ok_and(|ready| ready > 0)
}
